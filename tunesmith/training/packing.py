"""How examples lie packed in one row of tokens, without padding, and with what they share computed once. Knows no tensors.

A *segment* is a run of consecutive tokens of the packed row. A token attends to the tokens before it in its own segment and
to all of the segment's *ancestors*: the segments that hold what comes before it in its example. Examples that begin with the
same tokens share the segments of that beginning, so it is computed once for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]
Tokens = npt.NDArray[np.int64]

#: Beginnings shorter than this are computed anew for each example: a segment has a price of its own in attention.
SHORTEST_SHARED = 16


@dataclass(frozen=True, eq=False)
class Layout:
    """The segments of one packed row, in the order in which they lie; together they are the whole row.

    Segment s is tokens `start_S[s]` up to `start_S[s] + length_S[s]`. Its ancestors, outermost first, are the segments
    `ancestor_A[first_ancestor_S1[s] : first_ancestor_S1[s + 1]]`. All int32.
    """

    start_S: Ints
    length_S: Ints
    first_ancestor_S1: Ints
    ancestor_A: Ints

    @property
    def num_tokens(self) -> int:
        """Tokens of the packed row."""
        return int(self.length_S.sum())

    def ancestors(self, segment: int) -> list[int]:
        """Return the segments that come before this one in its examples, outermost first."""
        return [int(a) for a in self.ancestor_A[self.first_ancestor_S1[segment] : self.first_ancestor_S1[segment + 1]]]

    def depth(self, segment: int) -> int:
        """Return how many tokens come before the segment's first one."""
        return sum(int(self.length_S[a]) for a in self.ancestors(segment))


@dataclass(frozen=True, eq=False)
class Packed:
    """Examples packed into one row: where each of their tokens lies, and the layout that attention needs."""

    ids_T: Tokens
    #: Each token's position in its example.
    position_T: Tokens
    layout: Layout
    #: For each example, the place in the packed row of each of its tokens.
    place_E: list[Tokens]


def pack(examples: Sequence[Tokens], share: bool = True) -> Packed:
    """Pack examples one behind the other; with `share`, equal beginnings are stored once."""
    packer = _Packer()
    if share:
        packer.grow(examples, sorted(range(len(examples)), key=lambda e: examples[e].tobytes()), 0, ())
    else:
        for e, ids_T in enumerate(examples):
            packer.add([e], ids_T, 0, ())
    places = [np.concatenate([np.arange(a, b) for a, b in spans]) for _, spans in sorted(packer.spans.items())]
    firsts = np.cumsum([0, *map(len, packer.ancestors)]).astype(np.int32)
    ancestors = np.array([a for chain in packer.ancestors for a in chain], dtype=np.int32)
    layout = Layout(np.array(packer.starts, np.int32), np.array(packer.lengths, np.int32), firsts, ancestors)
    return Packed(np.concatenate(packer.ids), np.concatenate(packer.positions), layout, places)


class _Packer:
    """Segments as they are laid down; `spans` are the places of each example's tokens."""

    def __init__(self) -> None:
        self.ids: list[Tokens] = []
        self.positions: list[Tokens] = []
        self.starts: list[int] = []
        self.lengths: list[int] = []
        self.ancestors: list[tuple[int, ...]] = []
        self.spans: dict[int, list[tuple[int, int]]] = {}

    def add(self, members: Sequence[int], ids_T: Tokens, position: int, ancestors: tuple[int, ...]) -> tuple[int, ...]:
        """Lay down a segment that belongs to the examples `members`; return the ancestors of what follows it."""
        start = self.starts[-1] + self.lengths[-1] if self.starts else 0
        self.ids.append(ids_T)
        self.positions.append(np.arange(position, position + len(ids_T)))
        self.starts.append(start)
        self.lengths.append(len(ids_T))
        self.ancestors.append(ancestors)
        for e in members:
            self.spans.setdefault(e, []).append((start, start + len(ids_T)))
        return (*ancestors, len(self.starts) - 1)

    def grow(self, examples: Sequence[Tokens], members: Sequence[int], position: int, ancestors: tuple[int, ...]) -> None:
        """Lay down what the examples `members`, equal up to `position`, hold from there on."""
        groups: dict[bytes, list[int]] = {}
        for e in members:
            rest_T = examples[e][position:]
            # Too short to share what is left: a group of its own.
            key = rest_T[:SHORTEST_SHARED].tobytes() if len(rest_T) >= SHORTEST_SHARED else f"alone {e}".encode()
            if len(rest_T):
                groups.setdefault(key, []).append(e)
        for group in groups.values():
            end = common_length([examples[e] for e in group], position)
            below = self.add(group, examples[group[0]][position:end], position, ancestors)
            if len(group) > 1:
                self.grow(examples, group, end, below)


def common_length(examples: Sequence[Tokens], start: int) -> int:
    """Return up to where the examples, equal up to `start`, are equal."""
    shortest = min(map(len, examples))
    first = examples[0][start:shortest]
    end = shortest
    for other in examples[1:]:
        differ = np.flatnonzero(other[start:end] != first[: end - start])
        end = start + int(differ[0]) if len(differ) else end
    return end
