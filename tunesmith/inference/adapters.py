"""LoRA adapters beside a base that stays as it is. Reads PEFT's format; knows no PEFT.

y = W x + (alpha / rank) B A x (Hu et al., 2021). Shape letters: I inputs, O outputs, R rank.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tunesmith.errors import InvalidRequest
from tunesmith.inference.weights import LINEAR, LaidOut

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

#: MKL multiplies fewer than 12 rows in an order that depends on their number. With this many or more, an answer is the same to the
#: last bit whatever is computed beside it.
_FEWEST_ROWS = 16


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter in memory: per linear layer A as [I, R] and scaled B as [R, O]."""

    directory: Path
    pairs: Mapping[str, tuple[Tensor, Tensor]]


#: An adapter and the rows that are its own; None, None: all that there are.
_Run = tuple[Adapter, int | None, int | None]


class Switch:
    """Adds adapters' updates to the linear layers of a model, to each row of a batch its own; none in use: the base alone.

    The layers are hooked when the first adapter is loaded. Another thread may compute meanwhile: what it computes uses none.
    """

    def __init__(self, model: nn.Module) -> None:
        self._everywhere: list[_Run] = []
        self._runs: dict[int, list[_Run]] = {}  # by how many rows a layer computes
        self._layers: dict[str, nn.Linear | LaidOut] = {name: module for name, module in model.named_modules() if type(module) in LINEAR}
        self._hooked = False
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def using(self, adapters: Sequence[Adapter | None], kept: Sequence[int] = ()) -> Iterator[None]:
        """Let row i of what is computed within be adapters[i]'s; None: the base's.

        `kept` are the rows that go on to the output head. Rows of one adapter are computed together where they stand together.
        """
        if len(set(adapters)) > 1:
            self._runs = {len(kept): _runs([adapters[row] for row in kept]), len(adapters): _runs(adapters)}
        elif adapters[0] is not None:
            self._everywhere = [(adapters[0], None, None)]
        try:
            yield
        finally:
            self._everywhere, self._runs = [], {}

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
        self._hook()
        return Adapter(directory, pairs)

    def _hook(self) -> None:
        with self._lock:
            if not self._hooked:
                self._hooked = True
                for name, module in self._layers.items():
                    module.register_forward_hook(functools.partial(self._update, name))

    def _update(self, name: str, layer: nn.Module, inputs: tuple[Tensor, ...], y_NO: Tensor) -> None:
        if not self._everywhere and not self._runs:
            return
        x_NI = inputs[0]
        if not self._everywhere and x_NI.shape[-2] not in self._runs:
            raise RuntimeError(f"{name} computes {x_NI.shape[-2]} rows, which are not the batch's.")
        for adapter, start, stop in self._everywhere or self._runs[x_NI.shape[-2]]:
            if name in adapter.pairs:
                own_NO = y_NO[..., start:stop, :]
                own_NO.copy_(own_NO + _update(x_NI[..., start:stop, :], *adapter.pairs[name]))


def _update(x_NI: Tensor, a_IR: Tensor, b_RO: Tensor) -> Tensor:
    num_rows = x_NI.shape[-2]
    x_NI = x_NI.to(a_IR.dtype)
    if num_rows >= _FEWEST_ROWS:
        return x_NI @ a_IR @ b_RO
    return (nn.functional.pad(x_NI, (0, 0, 0, _FEWEST_ROWS - num_rows)) @ a_IR @ b_RO)[..., :num_rows, :]


def _runs(adapters: Sequence[Adapter | None]) -> list[_Run]:
    """Return where equal neighbours begin and end; the base's are left out."""
    runs: list[_Run] = []
    start = 0
    for adapter, group in itertools.groupby(adapters):
        stop = start + len(list(group))
        if adapter is not None:
            runs.append((adapter, start, stop))
        start = stop
    return runs


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


def _check_shapes(directory: Path, path: str, pair: Mapping[str, Tensor], rank: int, layer: nn.Linear | LaidOut) -> None:
    for half, wanted in (("A", (rank, layer.in_features)), ("B", (layer.out_features, rank))):
        found = tuple(pair[half].shape) if half in pair else "missing"
        if found != wanted:
            words = f"lora_{half} of {path} is {found}, but this base model needs {wanted}. Hint: was it trained on another base?"
            raise _unusable(directory, words)


def _unusable(directory: Path, words: str) -> InvalidRequest:
    return InvalidRequest(f"Adapter {directory.name!r}: {words}")
