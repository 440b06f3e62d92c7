"""Which examples make up a step, and how a step's examples become padded micro-batches. Knows no model.

What a step is (examples_per_step rows of a seeded order) is the maths; how it is cut into micro-batches is only memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tunesmith.training import dropout
from tunesmith.training.data import TokenizedExample


@dataclass(frozen=True)
class MicroBatch:
    """Rows padded on the right to the longest. `is_target_BT` marks positions whose *next* token is a target."""

    ids_BT: Tensor
    is_target_BT: Tensor
    #: The target tokens in row order, [targets].
    targets_N: Tensor
    hash_BT: Tensor
    rows: tuple[int, ...]

    @property
    def num_targets(self) -> int:
        """Target tokens in this micro-batch."""
        return len(self.targets_N)


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


def micro_batches(examples: Sequence[TokenizedExample], token_budget: int, device: str) -> Iterator[MicroBatch]:
    """Cut examples into micro-batches of at most `token_budget` padded tokens (one example at least), short ones first.

    Rows of like length go together. Padding stands on the right, where causal attention never looks from a real token,
    so no attention mask is needed and the result is that of each example alone.
    """
    order = sorted(range(len(examples)), key=lambda row: (len(examples[row]), row))
    group: list[int] = []
    for row in order:
        if group and len(examples[row]) * (len(group) + 1) > token_budget:
            yield _pad([examples[i] for i in group], tuple(group), device)
            group = []
        group.append(row)
    if group:
        yield _pad([examples[i] for i in group], tuple(group), device)


def _pad(examples: Sequence[TokenizedExample], rows: tuple[int, ...], device: str) -> MicroBatch:
    length = max(len(example) for example in examples)
    ids_BT = np.zeros((len(examples), length), dtype=np.int64)
    hash_BT = np.zeros((len(examples), length), dtype=np.int64)
    is_target_BT = np.zeros((len(examples), length), dtype=np.bool_)
    for b, example in enumerate(examples):
        ids_BT[b, : len(example)] = example.ids_T
        hash_BT[b, : len(example)] = dropout.prefix_hashes(example.ids_T)
        is_target_BT[b, : len(example) - 1] = example.is_target_T[1:]
    targets_N = np.concatenate([example.ids_T[1:][example.is_target_T[1:]] for example in examples])
    ids, mask, targets, hashes = (torch.from_numpy(a).to(device) for a in (ids_BT, is_target_BT, targets_N, hash_BT))
    return MicroBatch(ids, mask, targets, hashes, rows)
