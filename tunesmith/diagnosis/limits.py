"""The thresholds of all rules in one table, each with the data that set it."""

from __future__ import annotations

from typing import Final, NamedTuple


class Limits(NamedTuple):
    """What decides. "OverfitGuard" are its 419 labelled training histories; "runs" is the development half of benchmarks/diagnosis."""

    #: A validation loss that ends this far above its least has risen. OverfitGuard: 4 to 5 % separate best.
    rise: float = 0.045
    #: ... and surely so, enough to stop a run for it, from here on. OverfitGuard: of 375 that do not overfit none goes beyond 12.4 %.
    surely_risen: float = 0.15
    #: ... and by this many standard errors. OverfitGuard: any from 0 to 6 gives the same; 3 is the usual one.
    sure: float = 3.0
    #: Standard errors where the extreme of several is compared.
    sure_of_many: float = 4.0
    #: Standard errors beyond which two values differ.
    differ: float = 2.0
    #: Fewest validation points, the base model's included, from which a trend can be told. Three lie on a parabola whatever they are.
    few_points: int = 4
    #: A loss is noise if place explains less than these shares of its ranks (a parabola; a straight line that is significant), and values
    #: next to each other are less alike than this. Fifty-eight real fine-tunings that a reader looked at: all said to be noisy are below
    #: .19, .26 and .1, all but one healthy above .33.
    bend: float = 0.25
    trend: float = 0.2
    alike: float = 0.4
    #: ... and never where its noise is below this share of its whole spread: a fall and then a flat stretch.
    smooth: float = 0.1
    #: A training loss this many times its least has diverged.
    diverged: float = 1.5
    #: A learning rate this many times the model's own, or this small a share of it, is suspect.
    fast_rate: float = 4.0
    #: ... and does harm if the training loss rises by this share at first, or a gradient is this many times the first. Runs: at 10 times
    #: the rate nothing rises, gradients reach 2 times the first, and the run is better for it; at 25 times 49 % and 50 times.
    early_rise: float = 0.2
    gradient_spike: float = 5.0
    slow_rate: float = 0.2
    #: Share of its first value that a loss must lose to have learnt at all.
    learnt: float = 0.02
    #: A run is slow if its loss lost less than this share of its first value and still falls, or twice this at a rate that is suspect.
    slow: float = 0.12
    #: ... and lost at least this share of it in the second half: a quick fall and a flat rest is not slow.
    late: float = 0.3
    #: Share of all its fall that a loss has in its last quarter while it still improves.
    still: float = 0.10
    #: Share of all its fall that a loss may move in its last quarter when it has converged.
    converged: float = 0.02
    #: Share of its value that a loss may drift over the last 60 % of a plateau.
    plateau: float = 0.02
    #: Noise from point to point, as a share of a training loss, from which a small batch says next to nothing.
    noisy_step: float = 0.15
    #: Validation rows fall into two groups if that explains more than this share of their losses' variance: what it does of a uniform
    #: distribution's. Runs: at most .72 where all answers are right, .78 and more where some are not.
    two_groups: float = 0.75
    #: ... and if the upper group's median is this many times the lower one's. Runs: 1.5 and 1.9.
    group_ratio: float = 1.6
    #: ... and if the smaller has at least this share of the rows.
    odd_rows: float = 0.05
    #: A training loss below this share of the validation loss, at this token accuracy, is memory.
    memory_loss: float = 0.25
    memory_accuracy: float = 0.97
    #: A loss in nats, and an accuracy, that are too good to be true at the first evaluation.
    perfect_loss: float = 1e-3
    perfect_accuracy: float = 0.9999
    #: lora_dropout above which the adapter sees too little.
    dropout: float = 0.5


LIMITS: Final = Limits()
