"""Keys and values of tokens that were read: of one sequence, of many that grow side by side, of beginnings that come again.

Knows no model and no schedule. Shape letters: N sequences, K key heads, T tokens, D width of a head.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from tunesmith.inference.adapters import Adapter

_SMALLEST_SHELF = 64  # tokens
_SHORTEST_REUSE = 16  # tokens; fewer are not worth the copying

#: Per layer that attends, by its number in the model: keys and values.
Layers = Mapping[int, tuple[Tensor, Tensor]]


class Strip:
    """A sequence's beginning, [K, T, D] per layer. It is filled from the left, once; others copy from it.

    `ids` are the tokens that it is for, `length` is how many of them it holds.
    """

    def __init__(self, ids: Sequence[int], adapter: Adapter | None) -> None:
        self.ids = list(ids)
        self.length = 0
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        # Weak, so that an unloaded adapter leaves the memory although a beginning of its making is still here.
        self._adapter = None if adapter is None else weakref.ref(adapter)

    def made_with(self, adapter: Adapter | None) -> bool:
        """Say whether these are the numbers of an adapter; None: of the base."""
        return (None if self._adapter is None else self._adapter()) is adapter and not self.orphaned

    @property
    def orphaned(self) -> bool:
        """Say whether the adapter is gone, so that nobody can ask for this again."""
        return self._adapter is not None and self._adapter() is None

    def extend(self, layer: int, keys_KTD: Tensor, values_KTD: Tensor) -> tuple[Tensor, Tensor]:
        """Write what comes next in a layer; return all its keys and values so far. Counts once `length` is set."""
        if layer not in self._layers:
            self._layers[layer] = _room(len(self.ids), keys_KTD), _room(len(self.ids), values_KTD)
        keys, values = self._layers[layer]
        end = self.length + keys_KTD.shape[1]
        keys[:, self.length : end] = keys_KTD
        values[:, self.length : end] = values_KTD
        return keys[:, :end], values[:, :end]

    def begin_with(self, layers: Layers, length: int) -> None:
        """Copy the first `length` tokens of another sequence."""
        for layer, (keys_KTD, values_KTD) in layers.items():
            self.extend(layer, keys_KTD[:, :length], values_KTD[:, :length])
        self.length = length

    def layers(self) -> Layers:
        """Return what is held, [K, length, D] each."""
        return {layer: (keys[:, : self.length], values[:, : self.length]) for layer, (keys, values) in self._layers.items()}


def _room(num_tokens: int, like_KTD: Tensor) -> Tensor:
    return like_KTD.new_empty(like_KTD.shape[0], num_tokens, like_KTD.shape[2])


@dataclass(eq=False)
class Seat:
    """A growing sequence's place on a shelf, and its length in tokens."""

    shelf: Shelf
    slot: int
    length: int
    adapter: Adapter | None


class Shelf:
    """Growing sequences of at most `capacity` tokens, [N, K, capacity, D] per layer, so that one multiplication serves them all.

    The slots in use are the first ones. What stands behind a sequence's end means nothing, but is never NaN.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.seats: list[Seat] = []  # by slot
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._num_slots = 0

    def put(self, seat: Seat, layers: Layers) -> None:
        """Take a sequence in."""
        if len(self.seats) == self._num_slots:
            self._resize(self._num_slots + max(1, self._num_slots // 2), layers)
        seat.shelf, seat.slot = self, len(self.seats)
        self.seats.append(seat)
        for layer, pair in layers.items():
            for whole_NKTD, own_KTD in zip(self.layers[layer], pair, strict=True):
                whole_NKTD[seat.slot, :, : seat.length] = own_KTD
                whole_NKTD[seat.slot, :, seat.length :] = 0

    def look(self, slot: int) -> Layers:
        """Return a sequence's keys and values, [K, length, D] each; they are not copied."""
        end = self.seats[slot].length
        return {layer: (keys[slot, :, :end], values[slot, :, :end]) for layer, (keys, values) in self.layers.items()}

    def remove(self, slot: int) -> None:
        """Let a sequence go; the last one moves into its place."""
        last = self.seats.pop()
        end = len(self.seats)
        if slot != end:
            for pair in self.layers.values():
                for whole_NKTD in pair:
                    whole_NKTD[slot] = whole_NKTD[end]
            self.seats[slot], last.slot = last, slot
        if len(self.seats) <= self._num_slots // 4:
            self._resize(len(self.seats), self.layers)

    def _resize(self, num_slots: int, like: Layers) -> None:
        """Make room for `num_slots`, one layer after the other, so that two copies of all are never there at once."""
        self._num_slots = num_slots
        for layer, pair in list(like.items()):
            old = self.layers.get(layer, (None, None))
            self.layers[layer] = self._resized(old[0], pair[0]), self._resized(old[1], pair[1])
        if num_slots == 0:
            self.layers.clear()

    def _resized(self, old_NKTD: Tensor | None, like: Tensor) -> Tensor:
        new_NKTD = like.new_zeros(self._num_slots, like.shape[-3], self.capacity, like.shape[-1])
        if old_NKTD is not None:
            new_NKTD[: len(self.seats)] = old_NKTD[: len(self.seats)]
        return new_NKTD


class Shelves:
    """Shelves for 64, 96, 128, 192, 256, ... tokens: a sequence that has outgrown its shelf moves to the next."""

    def __init__(self) -> None:
        self._shelves: dict[int, Shelf] = {}

    def seat(self, strip: Strip, adapter: Adapter | None) -> Seat:
        """Give a copy of a strip a place to grow in."""
        shelf = self._shelf(strip.length + 1)
        seat = Seat(shelf, 0, strip.length, adapter)
        shelf.put(seat, strip.layers())
        return seat

    def make_room(self, seat: Seat) -> None:
        """See to it that a sequence can take one more token."""
        if seat.length == seat.shelf.capacity:
            old, slot = seat.shelf, seat.slot
            self._shelf(seat.length + 1).put(seat, old.look(slot))
            old.remove(slot)

    def _shelf(self, num_tokens: int) -> Shelf:
        power = 1 << (num_tokens - 1).bit_length()
        capacity = max(_SMALLEST_SHELF, power * 3 // 4 if num_tokens <= power * 3 // 4 else power)
        if capacity not in self._shelves:
            self._shelves[capacity] = Shelf(capacity)
        return self._shelves[capacity]


class Prefixes:
    """Strips that a new sequence may begin with, complete or still being filled; the least recently used first."""

    def __init__(self) -> None:
        self._strips: list[Strip] = []

    @property
    def num_tokens(self) -> int:
        """Return how many tokens are held."""
        return sum(len(strip.ids) for strip in self._strips)

    def begin(self, ids: Sequence[int], adapter: Adapter | None) -> Strip | None:
        """Return a new strip that holds as many of `ids` as are known, never the last: what follows it must be computed.

        None: a strip that is being filled will soon hold more of them; ask again.
        """
        ids = list(ids)
        source, now, soon = None, 0, 0
        for strip in self._strips:
            if strip.made_with(adapter):
                same = min(_num_common(strip.ids, ids), len(ids) - 1)
                soon = max(soon, same)
                if min(same, strip.length) > now:
                    source, now = strip, min(same, strip.length)
        if soon - now >= _SHORTEST_REUSE:
            return None
        new = Strip(ids, adapter)
        if source is not None and now >= _SHORTEST_REUSE:
            new.begin_with(source.layers(), now)
            self._strips.append(self._strips.pop(self._strips.index(source)))
        self._strips.append(new)
        return new

    def keep(self, strip: Strip, adapter: Adapter | None) -> None:
        """Keep a strip that is filled, in place of those that are its beginnings."""
        self.drop(strip)
        for other in [other for other in self._strips if other.length == len(other.ids) and other.made_with(adapter)]:
            if other.ids == strip.ids[: other.length]:
                self.drop(other)
        self._strips.append(strip)

    def drop(self, strip: Strip) -> None:
        """Forget a strip."""
        if strip in self._strips:
            self._strips.remove(strip)

    def trim(self, num_tokens: int) -> None:
        """Forget what nobody can ask for again, and the least recently used until at most `num_tokens` are held."""
        self._strips = [strip for strip in self._strips if not strip.orphaned]
        while self.num_tokens > num_tokens:
            self._strips.pop(0)


def _num_common(a: list[int], b: list[int]) -> int:
    """Return how many tokens two sequences have in common at their beginning; halving, because Python compares slices fast."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low
