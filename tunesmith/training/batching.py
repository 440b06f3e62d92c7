"""Which examples make up a step, and how a step's examples become packed micro-batches. Knows no model.

What a step is (examples_per_step rows of a seeded order) is the maths; how it is cut into micro-batches is only memory.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tunesmith.training import dropout, packing
from tunesmith.training.data import TokenizedExample
from tunesmith.training.packing import Layout


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Examples packed into one row of T tokens, and the N places in it whose *next* token is a target."""

    ids_T: Tensor
    #: Each token's position in its example.
    position_T: Tensor
    #: Dropout's hash of the tokens up to each place.
    hash_T: Tensor
    layout: Layout
    #: Where each target is predicted, in the order of the examples; a shared place may be there more than once.
    place_N: Tensor
    targets_N: Tensor
    #: The example each target belongs to, by its number in the list the micro-batches were cut from.
    row_N: npt.NDArray[np.int64]
    #: Tokens of the examples before sharing.
    num_tokens: int


def epoch_order(num_examples: int, seed: int, epoch: int) -> list[int]:
    """Return the order in which epoch number `epoch` (from 0) visits the examples."""
    return [int(row) for row in np.random.default_rng([seed, 0, epoch]).permutation(num_examples)]


def rows_of_step(num_examples: int, per_step: int, seed: int, step: int) -> list[int]:
    """Return the rows of optimizer step `step` (from 1); an epoch's last step takes what is left."""
    epoch, position = divmod(step - 1, steps_per_epoch(num_examples, per_step))
    return epoch_order(num_examples, seed, epoch)[position * per_step : (position + 1) * per_step]


def steps_per_epoch(num_examples: int, per_step: int) -> int:
    """Return how many steps one pass takes."""
    return -(-num_examples // per_step)


def sample(num_examples: int, count: int, seed: int, turn: int) -> list[int]:
    """Return the rows of sampled validation number `turn`: the next `count` of a seeded order that starts over at its end."""
    order = np.random.default_rng([seed, 2]).permutation(num_examples)
    start = turn * count
    return [int(order[i % num_examples]) for i in range(start, start + min(count, num_examples))]


def micro_batches(examples: Sequence[TokenizedExample], token_budget: int, device: str, *, share: bool = True) -> Iterator[MicroBatch]:
    """Cut examples into micro-batches of at most `token_budget` packed tokens each (one example at least).

    With `share`, examples that begin alike go together and their common beginning counts and is computed once.
    """
    for rows in _groups(examples, token_budget, share):
        yield _pack(examples, rows, device, share)


@dataclass(frozen=True)
class Sharing:
    """How many tokens some examples have, how many of them lie in beginnings that are computed for several, and how many are computed."""

    tokens: int
    shared: int
    computed: int


def sharing(examples: Sequence[TokenizedExample], token_budget: int) -> Sharing:
    """Count what `micro_batches` shares."""
    shared = computed = 0
    for rows in _groups(examples, token_budget, share=True):
        packed = packing.pack([examples[row].ids_T for row in rows])
        uses_T = np.bincount(np.concatenate(packed.place_E))
        shared += int(uses_T[uses_T > 1].sum())
        computed += len(uses_T)
    return Sharing(sum(map(len, examples)), shared, computed)


def _groups(examples: Sequence[TokenizedExample], token_budget: int, share: bool) -> Iterator[list[int]]:
    order = sorted(range(len(examples)), key=lambda row: examples[row].ids_T.tobytes())
    costs = [len(examples[order[0]])]
    for before, row in itertools.pairwise(order):
        common = packing.common_length([examples[before].ids_T, examples[row].ids_T], 0) if share else 0
        costs.append(len(examples[row]) - max(0, common - packing.SHORTEST_SHARED + 1))  # the last few may not be shared
    # Micro-batches of like size: a small one at the end would run at a worse speed than all the others.
    limit = sum(costs) / math.ceil(sum(costs) / token_budget)
    group: list[int] = []
    size = 0
    for row, cost in zip(order, costs, strict=True):
        if group and (size + cost > token_budget or size >= limit):
            yield group
            group, size = [], 0
        size += cost if group else len(examples[row])
        group.append(row)
    yield group


def _pack(examples: Sequence[TokenizedExample], rows: Sequence[int], device: str, share: bool) -> MicroBatch:
    packed = packing.pack([examples[row].ids_T for row in rows], share)
    hash_T = np.empty(len(packed.ids_T), dtype=np.int64)
    for row, place_T in zip(rows, packed.place_E, strict=True):
        hash_T[place_T] = dropout.prefix_hashes(examples[row].ids_T)
    place_N, targets_N, row_N = [], [], []
    for row, place_T in zip(rows, packed.place_E, strict=True):
        is_target_T = examples[row].is_target_T[1:]
        place_N.append(place_T[:-1][is_target_T])
        targets_N.append(examples[row].ids_T[1:][is_target_T])
        row_N.append(np.full(len(targets_N[-1]), row))

    def tensor(*parts: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts)).to(device)

    return MicroBatch(
        tensor(packed.ids_T), tensor(packed.position_T), tensor(hash_T), packed.layout, tensor(*place_N), tensor(*targets_N),
        np.concatenate(row_N), sum(len(examples[row]) for row in rows),
    )  # fmt: skip
