"""LoRA adapters beside a base that stays as it is. Reads PEFT's format; knows no PEFT.

y = W x + (alpha / rank) B A x (Hu et al., 2021). Shape letters: I inputs, O outputs, R rank.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tunesmith.errors import InvalidRequest

_KEY = re.compile(r"base_model\.model\.(?P<path>.+)\.lora_(?P<half>[AB])(?:\.default)?\.weight")

#: What this forward does not compute: configuration key -> the values that mean "not used".
_UNUSED: Mapping[str, tuple[Any, ...]] = {
    "bias": (None, "none"),
    "use_dora": (None, False),
    "fan_in_fan_out": (None, False),
    "lora_bias": (None, False),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
}


@dataclass(frozen=True)
class Adapter:
    """An adapter in memory: per linear layer A as [I, R] and scaled B as [R, O]."""

    directory: Path
    pairs: Mapping[str, tuple[Tensor, Tensor]]


class Switch:
    """Adds the active adapter's update to every linear layer of a model; none active: the base alone.

    The layers are hooked once, before any forward runs: adapters can then be loaded while another thread computes.
    """

    def __init__(self, model: nn.Module) -> None:
        self.active: Adapter | None = None
        self._layers = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
        for name, module in self._layers.items():
            module.register_forward_hook(functools.partial(self._update, name))

    def load(self, directory: Path) -> Adapter:
        """Read an adapter.

        Raises: InvalidRequest when it is not whole, is of a kind not computed here, or belongs to another base.
        """
        rank, scale = _read_config(directory)
        halves: dict[str, dict[str, Tensor]] = {}
        for key, tensor in _read_tensors(directory).items():
            match = _KEY.fullmatch(key)
            if match is None or match["path"] not in self._layers:
                raise _unusable(directory, f"{key} belongs to no linear layer of this base model.")
            halves.setdefault(match["path"], {})[match["half"]] = tensor
        if not halves:
            raise _unusable(directory, "it has no weights.")
        pairs = {}
        for path, pair in halves.items():
            layer = self._layers[path]
            _check_shapes(directory, path, pair, rank, layer)
            # float32 at least: beside a bfloat16 base a small update would drown in the rounding of its own products.
            device, dtype = layer.weight.device, torch.promote_types(layer.weight.dtype, torch.float32)
            pairs[path] = (pair["A"].to(device, dtype).T.contiguous(), pair["B"].to(device, dtype).T.contiguous() * scale)
        return Adapter(directory, pairs)

    def _update(self, name: str, layer: nn.Module, inputs: tuple[Tensor, ...], y_O: Tensor) -> Tensor | None:
        pair = self.active.pairs.get(name) if self.active is not None else None
        if pair is None:
            return None
        a_IR, b_RO = pair
        return (y_O + inputs[0].to(a_IR.dtype) @ a_IR @ b_RO).to(y_O.dtype)


def _read_config(directory: Path) -> tuple[int, float]:
    """Return rank and scale."""
    try:
        config = json.loads((directory / "adapter_config.json").read_bytes())
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unusable(directory, f"adapter_config.json cannot be read ({type(error).__name__}: {error}).") from error
    for key, unused in _UNUSED.items():
        if config.get(key) not in unused:
            raise _unusable(directory, f"{key}={config[key]!r} is not supported; accepted: plain LoRA on linear layers.")
    if config.get("peft_type", "LORA") != "LORA" or rank < 1:
        raise _unusable(directory, f"type {config.get('peft_type')!r} of rank {rank}; accepted: LORA of rank 1 or more.")
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _read_tensors(directory: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(directory / "adapter_model.safetensors")
    except (OSError, SafetensorError) as error:
        raise _unusable(directory, f"adapter_model.safetensors cannot be read ({error}).") from error
    return tensors


def _check_shapes(directory: Path, path: str, pair: Mapping[str, Tensor], rank: int, layer: nn.Linear) -> None:
    for half, wanted in (("A", (rank, layer.in_features)), ("B", (layer.out_features, rank))):
        found = tuple(pair[half].shape) if half in pair else "missing"
        if found != wanted:
            words = f"lora_{half} of {path} is {found}, but this base model needs {wanted}. Hint: was it trained on another base?"
            raise _unusable(directory, words)


def _unusable(directory: Path, words: str) -> InvalidRequest:
    return InvalidRequest(f"Adapter {directory.name!r}: {words}")
