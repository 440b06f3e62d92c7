"""What several rules look at, computed once: which validation series to follow, its noise, its best point, what came after."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tunesmith.diagnosis import advice
from tunesmith.diagnosis import series as stats
from tunesmith.diagnosis.history import Floats, History, Series
from tunesmith.diagnosis.limits import LIMITS

#: Below this share of the first value a loss counts as nothing, so that a rise from 1e-6 to 2e-6 is none.
_FLOOR = 1e-3


@dataclass(frozen=True)
class View:
    """A history with the figures that rules share."""

    history: History

    @cached_property
    def train(self) -> Series:
        """Training loss behind step 0."""
        return self.history["train_loss"].after(0)

    @cached_property
    def is_full(self) -> bool:
        """Whether `loss` is of the whole validation set each time."""
        full = self.history["full_valid_loss"]
        return len(full) >= 2 or (len(full) > 0 and not len(self.history["valid_loss"]))

    @cached_property
    def loss(self) -> Series:
        """The validation loss that is followed, the base model's at step 0 included."""
        return self.history["full_valid_loss" if self.is_full else "valid_loss"]

    @cached_property
    def metric(self) -> tuple[str, Series]:
        """The name and series of what is to be high: F1, accuracy, or else token accuracy; empty where none was logged."""
        for name in ("f1", "accuracy", "full_valid_accuracy" if self.is_full else "valid_accuracy"):
            if len(self.history[name]) >= 2:
                return name, self.history[name]
        return "", Series(np.empty(0), np.empty(0))

    @cached_property
    def base(self) -> float | None:
        """The base model's validation loss."""
        at_0 = self.loss.until(0)
        return float(at_0.values[0]) if len(at_0) else None

    @cached_property
    def smooth(self) -> Floats:
        """The followed loss, smoothed where it has many points."""
        return stats.smoothed(self.loss.values)

    @cached_property
    def sigma(self) -> float:
        """The noise of one value of `smooth`: of the paired difference of its last two full evaluations, else of the series itself."""
        if self.is_full and len(self.loss) < 12 and (paired := self.paired_error(-2, -1)) is not None:
            return paired / math.sqrt(2)
        # Without the base model's: the first fall is no noise.
        values = self.loss.after(0).values
        if len(values) < 6 and stats.turns(values) <= 1:
            return 0.0  # so few points that go one way, or one way and back, show no noise, only their bend
        return stats.smoothed_noise(values)

    @cached_property
    def best(self) -> int:
        """Where `smooth` is least."""
        return int(np.argmin(self.smooth)) if len(self.smooth) else 0

    @cached_property
    def best_point(self) -> tuple[int, float]:
        """The step and the value that were logged where the smoothed loss is least."""
        at = stats.least_logged(self.loss.values)
        return int(self.loss.steps[at]), float(self.loss.values[at])

    @cached_property
    def rise(self) -> float:
        """How far the followed loss ends above its least, as a share of that; a loss of next to nothing counts as more."""
        if not len(self.smooth):
            return 0.0
        least = max(float(self.smooth[self.best]), _FLOOR * float(np.max(self.smooth)))
        return float(self.smooth[-1]) / least - 1 if least > 0 else 0.0

    @cached_property
    def rise_in_noise(self) -> float:
        """The same rise in standard errors."""
        if not len(self.smooth):
            return 0.0
        gap = float(self.smooth[-1] - self.smooth[self.best])
        return gap / (self.sigma * math.sqrt(2)) if self.sigma > 0 else math.inf if gap > 0 else 0.0

    @property
    def has_risen(self) -> bool:
        """Whether the followed loss ends above its least, beyond noise."""
        if self.is_noise or self.rise <= LIMITS.rise:
            return False
        if not self.is_full and self.history.hyperparameters.get("eval_samples") and len(self.loss) < 12:
            return False  # so few points of a few rows each, other ones each time
        if len(self.loss) < 12:  # noise cannot be told well from so few: two evaluations in a row must be clearly above the least
            least = float(self.smooth[self.best])
            if len(self.smooth) - self.best > 2 and float(self.smooth[-2:].min()) > (1 + 2 * LIMITS.rise) * least:
                return True
            if self.sigma == 0.0:
                return self.rise > LIMITS.surely_risen
        return self.rise_in_noise > LIMITS.sure

    @cached_property
    def progress(self) -> float:
        """How much of its first value the followed loss lost at best."""
        if len(self.smooth) < 2 or self.smooth[0] <= 0:
            return 0.0
        return 1 - float(self.smooth[self.best]) / float(self.smooth[0])

    @cached_property
    def train_noise(self) -> float:
        """The noise of one step's training loss."""
        return stats.noise(self.train.values)

    @cached_property
    def train_ends(self) -> tuple[float, float]:
        """The training loss at the beginning and the end, each the mean of a tenth."""
        return stats.level(self.train.values) if len(self.train) else (math.nan, math.nan)

    @cached_property
    def train_share(self) -> float:
        """The share of the training loss's whole fall that came in its last quarter; 0 where it did not fall."""
        if len(self.train) < 4:
            return 0.0
        fall = self.train_ends[0] - min(self._quarters[1], self.train_ends[1])
        return (self._quarters[0] - self._quarters[1]) / fall if fall > 0 else 0.0

    @cached_property
    def train_falls(self) -> bool:
        """Whether the training loss still fell in its last quarter, beyond noise."""
        if len(self.train) < 4:
            return False
        half = self.train.after(float(self.train.steps[len(self.train) // 2 - 1]))
        _, surely = stats.slope(half if len(half) >= 4 else self.train)
        return self.train_share > LIMITS.still and surely < -LIMITS.differ

    @cached_property
    def _quarters(self) -> tuple[float, float]:
        """The mean training loss of the last quarter but one, and of the last."""
        count = max(2, len(self.train) // 4)
        return float(self.train.values[-2 * count : -count].mean()), float(self.train.values[-count:].mean())

    @cached_property
    def valid_share(self) -> float | None:
        """The share of the followed loss's fall that came in the last quarter of its steps: 0 within noise, None if it cannot be told."""
        if len(self.loss) < 3:
            return None
        steps = self.loss.steps
        before = float(np.interp(steps[-1] - 0.25 * (steps[-1] - steps[0]), steps, self.smooth))
        fall, gain = float(self.smooth[0] - self.smooth.min()), before - float(self.smooth[-1])
        error = self.paired_error(-2, -1) or self.sigma * math.sqrt(2)
        return gain / fall if fall > 0 and gain > LIMITS.differ * error else 0.0

    @cached_property
    def rate_ratio(self) -> float | None:
        """The learning rate as a multiple of the one that suits the model."""
        return advice.rate_ratio(self.history)

    @cached_property
    def is_noise(self) -> bool:
        """Whether the followed loss is hardly more than sampling noise.

        By ranks, so that spikes count for little: neither a bend (a parabola, adjusted R²) nor a trend that is significant explains a
        share of them worth speaking of, and neighbours are no more alike than others.
        """
        values = self.loss.values
        if len(values) < 5 or np.ptp(values) == 0:
            return False
        if stats.noise(values) < LIMITS.smooth * float(np.std(values)):
            return False
        if len(values) == 5:
            return stats.turns(values) > 1 and stats.noise(values) > float(np.std(values))
        bend, trend, surely = stats.order(values)
        has_trend = trend > LIMITS.trend and surely > LIMITS.differ
        return bend < LIMITS.bend and not has_trend and stats.autocorrelation(values) < LIMITS.alike

    def paired_error(self, before: int, after: int) -> float | None:
        """Return the standard error of the change of the full validation loss between two evaluations, by rows; None without them.

        What makes one row harder than another cancels in the difference (the paired error of a ratio estimator: tokens are the weights).
        """
        rows = self.history.rows
        if rows is None or len(rows.steps) < max(abs(before), abs(after)) or len(rows.lines) < 2:
            return None
        weight_R = rows.num_targets_R
        change_R = rows.loss_ER[after] - rows.loss_ER[before]
        mean = float(weight_R @ change_R / weight_R.sum())
        spread_R = weight_R * (change_R - mean)
        count = len(weight_R)
        return float(math.sqrt(count / (count - 1) * float(spread_R @ spread_R)) / weight_R.sum())

    def at(self, series: Series, step: float) -> float | None:
        """Return a series' last value up to a step."""
        known = series.until(step)
        return float(known.values[-1]) if len(known) else None
