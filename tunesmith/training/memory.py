"""How much memory a run will take, and the token budget that fits: estimated before step 1, from what two small passes keep.

What a micro-batch keeps for its backward pass grows with its tokens alone: attention keeps no scores. So two passes of different
length give the bytes per token of any architecture on any path.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor

from tunesmith.domain.specs import SMALLEST_BUDGET
from tunesmith.training.data import TokenizedExample
from tunesmith.training.network import Network

#: Largest budgets worth having: beyond them a step gets no faster.
LARGEST_BUDGET = {"cpu": 4096, "cuda": 16384}
_USABLE = 0.85  # of the memory that is free; others on this machine need some too
_PASSING = 4  # tensors as wide as the widest layer's input and output
#: How much more than is kept for the backward pass each token takes at the peak, measured on SmolLM2-135M with 512 to 4,096 tokens.
_SPREAD = {"decoder": 1.0, "modules": 1.35, "plain": 1.75}


@dataclass(frozen=True)
class Estimate:
    """Bytes: `fixed` whatever the budget is, `per_token` for each token of the largest micro-batch; `now` are in use already."""

    now: float
    fixed: float
    per_token: float

    def peak(self, tokens: int) -> float:
        """Return the most memory in use at once with micro-batches of so many tokens."""
        return self.now + self.fixed + self.per_token * tokens


def estimates(network: Network) -> tuple[Estimate, Estimate]:
    """Estimate the memory of training `network` in this process, loaded as it is: with activations kept, and with recomputing them."""
    now = in_use(network.plan.device)
    network.recompute = False
    whole = _estimate(network, now)
    if network.path == "plain":  # computes nothing twice
        return whole, whole
    network.recompute = True
    inputs = _estimate(network, now)
    network.recompute = False
    # One layer's activations are there again while its gradients are computed.
    return whole, replace(inputs, per_token=inputs.per_token + whole.per_token / network.num_layers)


def _estimate(network: Network, now: float) -> Estimate:
    trained = [parameter for parameter in network.model.parameters() if parameter.requires_grad]
    # A gradient and Adam's two moments each.
    fixed = 3.0 * sum(parameter.nbytes for parameter in trained)
    most = min(256, getattr(network.model.config.get_text_config(), "max_position_embeddings", None) or 256)  # type: ignore[union-attr, operator]
    short, long = (_kept(network, tokens) for tokens in (most // 2, most))
    size = network.head.weight_VI.element_size()
    passing = max((group.num_in + group.num_out for group in network.groups), default=network.head.weight_VI.shape[1] * 8)
    per_token = (long - short) / (most - most // 2) + _PASSING * passing * size
    return Estimate(now, fixed + network.head.piece_bytes(), per_token * _SPREAD[network.path])


def _kept(network: Network, tokens: int) -> int:
    """Return the bytes that a micro-batch of one example keeps for its backward pass."""
    ids_T = np.random.default_rng(0).integers(0, network.head.weight_VI.shape[0], tokens)
    (batch,) = network.micro_batches([TokenizedExample(0, ids_T, np.arange(tokens) > tokens - 2)], tokens)
    known = {tensor.untyped_storage().data_ptr() for tensor in (*network.model.parameters(), *network.model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice

    def note(tensor: Tensor) -> None:
        """Note what would be saved, and save nothing: a graph that holds its own tensors is never freed."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage

    network.masks.begin(1, batch.hash_T)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda nothing: nothing):
        network.loss(batch)
    network.masks.off()
    return sum(storage.nbytes() for storage in kept.values())


def in_use(device: str) -> int:
    """Return the bytes that this process has in use on the device."""
    return int(torch.cuda.memory_allocated()) if device == "cuda" else int(psutil.Process().memory_info().rss)


def free(device: str) -> int:
    """Return the bytes that this process may still take, within its control group too."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    available = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        inside = int((group / "memory.current").read_text())
    except OSError:
        return available
    return available if limit == "max" else min(available, int(limit) - inside)


def fit(whole: Estimate, recomputed: Estimate, free_bytes: float, device: str) -> tuple[int, bool, float]:
    """Return the token budget, whether to recompute activations, and the peak in bytes.

    The largest budget that fits without recomputing, if it is not a small one; else with it. The smallest if nothing fits.
    """
    usable = whole.now + _USABLE * free_bytes
    budgets = [LARGEST_BUDGET[device] >> n for n in range(8)]
    for kept, recompute, smallest in ((whole, False, 1024), (recomputed, True, SMALLEST_BUDGET)):
        for budget in budgets:
            if budget >= smallest and kept.peak(budget) <= usable:
                return budget, recompute, kept.peak(budget)
    return SMALLEST_BUDGET, True, recomputed.peak(SMALLEST_BUDGET)


def is_exhausted(error: BaseException) -> bool:
    """Say whether an error means that there was not enough memory."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    words = str(error)
    return isinstance(error, RuntimeError) and any(
        sign in words for sign in ("can't allocate memory", "bad_alloc", "could not create a memory")
    )
