"""Attention over one row in which many sequences stand side by side, through transformers' registry of attention functions.

A model that finds its attention there computes with ours while a `Pack` is at work: its own code, our attention. For a name that the
registry of masks does not know, transformers builds none.

Scores are multiplied in the model's dtype and weighed in float32 at least, as the models' own "eager" attention does. In bfloat16 on
oneDNN each token's numbers then are the same bits whatever stands beside it, where the multiplications are cut at `_BLOCK`.

Shape letters: N sequences, H query heads, K key heads, G query heads per key head, R rows, T tokens, D width of a head.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from tunesmith.inference.cache import Seat, Shelf, Strip

NAME = "tunesmith_packed"
_BLOCK = 1024  # tokens; oneDNN adds up longer sums in parts
_MOST_SCORES = 2**19  # at once; 2 MiB of float32 stay in the processor's cache

#: What some models ask of attention besides, and is not computed here.
_FOREIGN = ("s_aux", "sinks", "position_bias", "indices", "block_indices")

_at_work = threading.local()


@dataclass(frozen=True)
class _Rule:
    """What a layer asks of attention."""

    scaling: float
    window: int | None  # a token sees this many, itself included
    softcap: float | None


class Pack:
    """A row of tokens: one of each seat and a piece of each strip. Attending writes their keys and values into the caches.

    Their lengths do not change: a row that failed may be computed again.
    """

    def __init__(self, seats: Sequence[tuple[int, Seat]], pieces: Sequence[tuple[int, int, Strip]], device: torch.device) -> None:
        """Take each seat with its token's place in the row, each strip with its piece's first place and the one behind."""
        self._device = device
        self._pieces = pieces
        shelves: dict[Shelf, list[tuple[int, Seat]]] = {}
        for place, seat in seats:
            shelves.setdefault(seat.shelf, []).append((place, seat))
        self._groups = [_Group(shelf, members, device) for shelf, members in shelves.items()]
        self._hidden: dict[tuple[int, int, int, int | None], Tensor] = {}

    @contextlib.contextmanager
    def at_work(self, configs: Sequence[Any]) -> Iterator[None]:
        """Be what a model of these configurations attends to within, in this thread."""
        _at_work.pack = self
        try:
            with implementation(configs, NAME):
                yield
        finally:
            _at_work.pack = None

    def attend(self, layer: int, q_HRD: Tensor, k_KRD: Tensor, v_KRD: Tensor, rule: _Rule) -> Tensor:
        """Return [R, H, D]."""
        out_RHD = q_HRD.new_empty(q_HRD.shape[1], q_HRD.shape[0], v_KRD.shape[2])
        for group in self._groups:
            out_RHD[group.places] = group.attend(layer, q_HRD, k_KRD, v_KRD, rule)
        for start, stop, strip in self._pieces:
            keys, values = strip.extend(layer, k_KRD[:, start:stop], v_KRD[:, start:stop])
            out_RHD[start:stop] = self._attend_piece(q_HRD[:, start:stop], keys, values, rule)
        return out_RHD

    def _attend_piece(self, q_HRD: Tensor, k_KTD: Tensor, v_KTD: Tensor, rule: _Rule) -> Tensor:
        """Return [R, H, D] for the last R of T tokens, a block of rows at a time."""
        (num_heads, num_rows, _), (num_keys, end, _) = q_HRD.shape, k_KTD.shape
        most = max(16, _MOST_SCORES // (num_heads * end))
        parts, at = [], end - num_rows
        while at < end:
            seen = min(end, (at // _BLOCK + 1) * _BLOCK)
            # Without gaps a multiplication is several times as fast, which pays for the copy.
            keys, values = k_KTD[:, :seen].contiguous(), v_KTD[:, :seen].contiguous()
            while at < seen:
                stop = min(seen, at + most)
                rows = slice(at - end + num_rows, stop - end + num_rows)
                q_KRD = q_HRD[:, rows].reshape(num_keys, -1, q_HRD.shape[2])
                shape = (num_keys, num_heads // num_keys, stop - at, seen)
                part = _weigh(q_KRD, keys, values, self._hides(at, stop, seen, rule.window), shape, rule)
                parts.append(part.view(num_heads, stop - at, -1))
                at = stop
        return torch.cat(parts, dim=1).transpose(0, 1)

    def _hides(self, at: int, stop: int, seen: int, window: int | None) -> Tensor:
        """Return which of `seen` tokens the tokens `at` to `stop` do not see, the same for every layer: the last columns of [R, T]."""
        key = at, stop, seen, window
        if key not in self._hidden:
            hidden_RT = _hidden(torch.arange(at, stop, device=self._device), seen, window)
            self._hidden[key] = hidden_RT[:, at:] if window is None else hidden_RT
        return self._hidden[key]


def configurations(model: nn.Module) -> list[Any]:
    """Return where a model's modules look up their attention; one that is made of several models has several."""
    return list({id(module.config): module.config for module in model.modules() if hasattr(module, "config")}.values())


@contextlib.contextmanager
def implementation(configs: Sequence[Any], name: str) -> Iterator[None]:
    """Let models of these configurations find the attention of a name within, whatever they compute with otherwise."""
    before = [config._attn_implementation for config in configs]
    try:
        for config in configs:
            config._attn_implementation = name
        yield
    finally:
        for config, own in zip(configs, before, strict=True):
            config._attn_implementation = own


class _Group:
    """The seats of one shelf, which one multiplication serves."""

    def __init__(self, shelf: Shelf, members: Sequence[tuple[int, Seat]], device: torch.device) -> None:
        members = sorted(members, key=lambda member: member[1].slot)
        places, slots = [place for place, _ in members], [seat.slot for _, seat in members]
        lengths = [seat.length for _, seat in members]
        self.places = _span(places) or torch.tensor(places, device=device)
        self._shelf = shelf
        self._slots_N = torch.tensor(slots, device=device)
        self._span = _span(slots) or self._slots_N
        self._lengths_N = torch.tensor(lengths, device=device)
        self._hidden: dict[int | None, Tensor] = {}

    def attend(self, layer: int, q_HRD: Tensor, k_KRD: Tensor, v_KRD: Tensor, rule: _Rule) -> Tensor:
        """Return [N, H, D]."""
        q_NHD, k_NKD, v_NKD = (x[:, self.places].transpose(0, 1) for x in (q_HRD, k_KRD, v_KRD))
        keys, values = self._shelf.layers[layer]
        keys[self._slots_N, :, self._lengths_N] = k_NKD
        values[self._slots_N, :, self._lengths_N] = v_NKD
        if rule.window not in self._hidden:
            self._hidden[rule.window] = _hidden(self._lengths_N, self._shelf.capacity, rule.window)[:, None, None]
        num, num_heads, width = q_NHD.shape
        shape = (num, keys.shape[1], num_heads // keys.shape[1], self._shelf.capacity)
        # To the shelf's end, empty or not: with gaps between the sequences a multiplication takes five times as long.
        k_BTD, v_BTD = (whole[self._span].flatten(0, 1) for whole in (keys, values))
        out = _weigh(q_NHD.reshape(num * shape[1], shape[2], width), k_BTD, v_BTD, self._hidden[rule.window], shape, rule)
        return out.view(num, num_heads, -1)


def _span(numbers: Sequence[int]) -> slice | None:
    """Return the slice that numbers are, if they are one without gaps: it costs no copy."""
    start, stop = numbers[0], numbers[-1] + 1
    return slice(start, stop) if list(numbers) == list(range(start, stop)) else None


def _hidden(places_R: Tensor, end: int, window: int | None) -> Tensor:
    """Return which of the keys 0 to `end` tokens at these places of their sequence do not see, [R, T]."""
    keys_T = torch.arange(end, device=places_R.device)
    hidden_RT = keys_T > places_R[:, None]
    return hidden_RT if window is None else hidden_RT | (keys_T <= places_R[:, None] - window)


def _weigh(q_BRD: Tensor, k_BTD: Tensor, v_BTD: Tensor, hidden: Tensor, shape: Sequence[int], rule: _Rule) -> Tensor:
    """Return the mean of the values that each query sees, [B, R, D].

    `hidden` is for the last keys, as many as it is wide, and fits the scores in `shape`.
    """
    scores = torch.bmm(q_BRD, k_BTD.transpose(1, 2)).view(*shape)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).mul_(rule.scaling)
    if rule.softcap is not None:
        scores = scores.div_(rule.softcap).tanh_().mul_(rule.softcap)
    scores[..., scores.shape[-1] - hidden.shape[-1] :].masked_fill_(hidden, float("-inf"))
    probs = torch.softmax(scores, dim=-1).to(v_BTD.dtype)
    return torch.bmm(probs.view(*q_BRD.shape[:2], -1), v_BTD)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers asks for it: [1, heads, rows, width] in, [1, rows, heads, width] out."""
    pack: Pack | None = getattr(_at_work, "pack", None)
    if pack is None:
        raise RuntimeError(f"Attention {NAME!r} works within an engine's step only.")
    foreign = [name for name in _FOREIGN if more.get(name) is not None]
    if foreign or attention_mask is not None or not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        raise RuntimeError(f"attention is not plain and causal here ({', '.join(foreign) or 'another mask'})")
    layer: Any = module.layer_idx
    rule = _Rule(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap)
    return pack.attend(layer, query[0], key[0], value[0], rule)[None], None


AttentionInterface.register(NAME, _attend)
