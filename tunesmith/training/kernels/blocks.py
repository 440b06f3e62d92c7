"""Who sees whom in a packed row, in the form that FlexAttention takes: numbers for each token, and lists of blocks. Computes no attention.

All that differs between layouts, kinds of attention and windows is in tensors, so that one compiled kernel serves all of them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from tunesmith.training.kernels import Attention
from tunesmith.training.packing import Ints, Layout

SIZE = 128  # queries, and keys, that FlexAttention takes together or leaves out; its default


class _Numbers(NamedTuple):
    """Numbers for each token: a query q sees a key k if `low[k] <= number[q] < end[k]` and `position[k] >= oldest[q]`.

    Tokens are numbered such that a segment's and then those of all its descendants follow each other; `end` is the number behind
    the last of them. `low` is the token's own number, or that of its segment's first token if attention is not causal.
    """

    number_T: Ints
    low_T: Ints
    end_T: Ints
    position_T: Ints
    oldest_T: Ints


def mask(layout: Layout, how: Attention, device: torch.device) -> BlockMask:
    """Return which blocks of keys a block of queries sees in part and which as a whole, and the function that says it of one pair.

    A block in the first list may turn out to be seen by nobody; one in the second is seen by all.
    """
    numbers = _numbers(layout, how)
    T = layout.num_tokens
    blocks = [np.pad(x_T, (0, -T % SIZE), mode="edge").reshape(-1, SIZE) for x_T in numbers]
    least, most = _Numbers(*(x.min(1) for x in blocks)), _Numbers(*(x.max(1) for x in blocks))
    least_Q1, most_Q1 = _Numbers(*(x[:, None] for x in least)), _Numbers(*(x[:, None] for x in most))
    some_QK = (least.low_T <= most_Q1.number_T) & (least_Q1.number_T < most.end_T) & (most.position_T >= least_Q1.oldest_T)
    every_QK = (most.low_T <= least_Q1.number_T) & (most_Q1.number_T < least.end_T) & (least.position_T >= most_Q1.oldest_T)
    if T % SIZE:  # a block that is not full is not seen as a whole
        every_QK[-1] = every_QK[:, -1] = False
    number_T, low_T, end_T, position_T, oldest_T = (torch.from_numpy(x_T).to(device) for x_T in numbers)

    def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (low_T[k] <= number_T[q]) & (number_T[q] < end_T[k]) & (position_T[k] >= oldest_T[q])

    partial, full = _listed(some_QK & ~every_QK, device), _listed(every_QK, device)
    return BlockMask.from_kv_blocks(*partial, *full, BLOCK_SIZE=SIZE, mask_mod=sees, seq_lengths=(T, T))


def _numbers(layout: Layout, how: Attention) -> _Numbers:
    S = len(layout.start_S)
    size_S = layout.length_S.copy()  # with all descendants
    np.add.at(size_S, layout.ancestor_A, np.repeat(layout.length_S, np.diff(layout.first_ancestor_S1)))
    first_S, depth_S = np.zeros(S, np.int32), np.zeros(S, np.int32)
    free_S1 = np.zeros(S + 1, np.int32)  # each segment's next number for a child; the last one for those without a parent
    for s in range(S):
        parent = (layout.ancestors(s) or [-1])[-1]
        first_S[s], depth_S[s] = free_S1[parent], layout.depth(s)
        free_S1[parent] += size_S[s]
        free_S1[s] = first_S[s] + layout.length_S[s]
    segment_T = np.repeat(np.arange(S), layout.length_S)
    within_T = np.arange(len(segment_T), dtype=np.int32) - layout.start_S[segment_T]
    number_T, position_T = first_S[segment_T] + within_T, depth_S[segment_T] + within_T
    low_T = number_T if how.causal else first_S[segment_T]
    oldest_T = position_T - np.int32(how.window - 1) if how.window else np.zeros_like(position_T)
    return _Numbers(number_T, low_T, (first_S + size_S)[segment_T], position_T, oldest_T)


def _listed(blocks_QK: npt.NDArray[np.bool_], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return how many blocks of keys each block of queries has, and which: [1, 1, Q], and [1, 1, Q, K] with those in front."""
    count_Q, order_QK = blocks_QK.sum(1, dtype=np.int32), np.argsort(~blocks_QK, axis=1, kind="stable").astype(np.int32)
    return torch.from_numpy(count_Q)[None, None].to(device), torch.from_numpy(order_QK)[None, None].to(device)
