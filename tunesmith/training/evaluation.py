"""Loss and token accuracy over a set of examples, dropout off. Knows no schedule and no sink."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from tunesmith.domain.runs import RowLosses
from tunesmith.training.data import TokenizedExample
from tunesmith.training.network import Network


@dataclass(frozen=True)
class Evaluation:
    """Sums over target tokens, so that parts add up exactly; `nll_E` is the summed loss of each example."""

    nll_E: npt.NDArray[np.float64]
    hits: int
    num_targets: int

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood in nats per target token."""
        return float(self.nll_E.sum()) / self.num_targets

    @property
    def accuracy(self) -> float:
        """Share of target tokens whose arg-max prediction is the target."""
        return self.hits / self.num_targets

    def rows(self, step: int, examples: Sequence[TokenizedExample], of: Literal["validation", "training"] = "validation") -> RowLosses:
        """Return the loss of each of the examples that were evaluated."""
        targets = [example.num_targets for example in examples]
        return RowLosses(step, [example.line for example in examples], targets, (self.nll_E / targets).tolist(), of)


@torch.no_grad()
def evaluate(
    network: Network, examples: Sequence[TokenizedExample], token_budget: int, heed: Callable[[], None] = lambda: None
) -> Evaluation:
    """Evaluate `examples` without dropout. `heed` is called before each micro-batch and may raise."""
    nll_E = np.zeros(len(examples))
    hits = num_targets = 0
    network.masks.off()
    network.refresh()
    for batch in network.micro_batches(examples, token_budget):
        heed()
        loss = network.loss(batch)
        np.add.at(nll_E, batch.row_N, loss.nll_N.double().cpu().numpy())
        hits += int(loss.hits_N.sum())
        num_targets += len(batch.row_N)
    return Evaluation(nll_E, hits, num_targets)


def beyond_noise(now: Evaluation, best: npt.NDArray[np.float64]) -> bool:
    """Say whether `now` is better than the best so far by more than its standard error.

    The error is that of the paired difference per example, so what makes some examples harder than others cancels.
    """
    difference_E = now.nll_E - best
    error = float(np.std(difference_E, ddof=1)) * np.sqrt(len(difference_E)) if len(difference_E) > 1 else 0.0
    return float(difference_E.sum()) < -error
