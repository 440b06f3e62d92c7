"""Find out by trying whether a model may compute many sequences in one row. Knows no schedule.

A short text is read in pieces and continued beside another one, and compared with the model's own forward of each whole text. Sliding
windows are made smaller than the texts meanwhile, so that a wrong one shows.

Shape letters: T tokens, V vocabulary.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.inference import attention
from tunesmith.inference.adapters import Switch
from tunesmith.inference.cache import Strip
from tunesmith.inference.forward import Part, Runner
from tunesmith.inference.packed import Packed
from tunesmith.inference.single import Single

_WINDOW = 4  # tokens
_LONG, _SHORT, _WRITTEN = 9, 8, 3  # tokens of the two texts, and how many of them are written one by one
#: How far a token's logits may be off, as a share of their spread: at each token, in 16 bits at most tokens. Their rounding moves a few
#: by a lot (a text's first ones above all), wrong attention moves all.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_LOW_PRECISION_TOLERANCE = 0.1

_log = logging.getLogger(__name__)


def choose(model: nn.Module, switch: Switch) -> tuple[Runner, str]:
    """Return the fastest runner that computes what the model computes, and in words how it works."""
    problem = _problem(model, switch)
    if problem is None:
        return Packed(model, switch), "all requests are computed together"
    words = f"requests are computed one after the other, which is slower beside others: {problem}"
    _log.warning("%s: %s", type(model).__name__, words)
    return Single(model, switch), words


def _problem(model: nn.Module, switch: Switch) -> str | None:
    """Return why a model cannot compute many sequences in one row."""
    if not getattr(model, "_supports_attention_backend", False):
        return "the model's attention cannot be exchanged"
    kinds = {str(module.rope_type) for module in model.modules() if hasattr(module, "rope_type")}
    if any("dynamic" in kind or "longrope" in kind for kind in kinds):
        return "its positions depend on the longest sequence of a batch"
    try:
        with torch.inference_mode(), _narrow_windows(model):
            difference = _difference(model, switch)
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        return f"trying it ended with {type(error).__name__}: {error}"
    dtype = next(model.parameters()).dtype
    if not difference <= _TOLERANCE.get(dtype, _LOW_PRECISION_TOLERANCE):
        return f"trying it gave other numbers than the model does, by {difference:.1g} of their spread"
    return None


@contextlib.contextmanager
def _narrow_windows(model: nn.Module) -> Iterator[None]:
    """Have every sliding window, of modules and of configurations, be a short one."""
    owners: dict[int, Any] = {}
    for module in model.modules():
        for owner in (module, getattr(module, "config", None)):
            if isinstance(getattr(owner, "sliding_window", None), int):
                owners[id(owner)] = owner
    before = {id(owner): owner.sliding_window for owner in owners.values()}
    try:
        for owner in owners.values():
            owner.sliding_window = _WINDOW
        yield
    finally:
        for owner in owners.values():
            owner.sliding_window = before[id(owner)]


def _difference(model: nn.Module, switch: Switch) -> float:
    """Return how far the logits of two texts are from those of the model's plainest attention."""
    num_ids: int = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    texts = [[(7 * place + 3) % num_ids for place in range(_LONG)], [(5 * place + 2) % num_ids for place in range(_SHORT)]]
    found, num_layers = _packed_logits(Packed(model, switch), texts)
    config: Any = model.config
    wanted = config.get_text_config().num_hidden_layers
    if num_layers != wanted:
        raise ValueError(f"{num_layers} of its {wanted} layers attend")
    read, written = [], []
    for text, found_TV in zip(texts, found, strict=True):
        off_T = _off(found_TV, _plain_logits(model, text))
        read.append(off_T[:-_WRITTEN])
        written.append(off_T[-_WRITTEN:])
    share = 1.0 if found[0].dtype in _TOLERANCE else 0.5
    return max(float(torch.cat(offs).quantile(share)) for offs in (read, written))


def _plain_logits(model: nn.Module, text: list[int]) -> Tensor:
    ids_1T = torch.tensor([text], device=next(model.parameters()).device)
    with attention.implementation(attention.configurations(model), "eager"):
        logits_TV: Tensor = model(input_ids=ids_1T, use_cache=False).logits[0]
    return logits_TV.cpu()


def _off(found_TV: Tensor, plain_TV: Tensor) -> Tensor:
    """Return how far each token's logits are off, as a share of their spread, [T]."""
    plain_TV = plain_TV.double()
    spread_T = (plain_TV - plain_TV.mean(dim=-1, keepdim=True)).norm(dim=-1)
    off_T: Tensor = (found_TV.double() - plain_TV).norm(dim=-1) / spread_T
    return off_T


def _packed_logits(packed: Packed, texts: list[list[int]]) -> tuple[list[Tensor], int]:
    """Return the logits at every token of two texts, and how many layers attended.

    They are read in pieces and continued side by side.
    """
    long, short = (Strip(text[:-_WRITTEN], None) for text in texts)
    found = [_run(packed, [Part(long, texts[0][:4], None, all_logits=True)])]
    rest = Part(long, texts[0][4:-_WRITTEN], None, all_logits=True)
    found.append(_run(packed, [rest, Part(short, texts[1][:-_WRITTEN], None, all_logits=True)]))
    seats = [packed.fork(strip, None, last=True) for strip in (long, short)]
    for place in range(-_WRITTEN, 0):
        found.append(_run(packed, [Part(seat, [text[place]], None) for seat, text in zip(seats, texts, strict=True)]))
    return [torch.cat([logits[0] for logits in found]), torch.cat([logits[1] for logits in found[1:]])], len(long.layers())


def _run(packed: Packed, parts: list[Part]) -> list[Tensor]:
    logits = []
    for result in packed.compute(parts):
        if not isinstance(result, Tensor):
            raise RuntimeError(result.message)
        logits.append(result)
    return logits
