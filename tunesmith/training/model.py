"""Load a base model, save one that was tuned in full. Knows no data and no optimizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from tunesmith import hardware
from tunesmith.errors import InvalidRequest
from tunesmith.training.tokenizer import PLAIN


def native_bfloat16() -> bool:
    """Say whether the device to compute on multiplies bfloat16 natively; elsewhere it is slower than float32."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_capability() >= (8, 0)
    return hardware.native_bfloat16()


def load_base(directory: Path, dtype: torch.dtype, device: str) -> nn.Module:
    """Load a causal language model from a checked directory; safetensors only, none of its code is run.

    Raises: InvalidRequest when it cannot be loaded whole.
    """
    try:
        network, report = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, use_safetensors=True, output_loading_info=True, **PLAIN
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise InvalidRequest(f"Base model {directory.name!r} cannot be loaded: {' '.join(str(error).split())}") from error
    if missing := sorted(report["missing_keys"]):  # transformers would go on with random numbers in their place
        raise InvalidRequest(f"Base model {directory.name!r} is not whole: {len(missing)} weights are missing ({', '.join(missing[:3])}).")
    # eval(): the base's own dropout, where it has any, stays off; LoRA has a dropout of its own.
    loaded: nn.Module = network.to(device).eval()
    return loaded


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trained parameters by name, in a fixed order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save_full(model: nn.Module, tokenizer: Any, directory: Path) -> None:
    """Write all weights, config and tokenizer: a model directory of its own."""
    model.save_pretrained(directory)  # type: ignore[operator]
    tokenizer.save_pretrained(directory)


def load_full(model: nn.Module, directory: Path) -> None:
    """Set all weights from a directory that `save_full` wrote."""
    for path in sorted(directory.glob("model*.safetensors")):
        model.load_state_dict(load_file(path), strict=False)
    model.tie_weights()  # type: ignore[operator]
