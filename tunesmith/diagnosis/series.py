"""Statistics of one series that a rule may rest on. All are relative to the series' own noise; none knows what it measures."""

from __future__ import annotations

import math

import numpy as np

from tunesmith.diagnosis.history import Floats, Series

#: The median absolute deviation of a normal variable times this is its standard deviation.
_MAD = 1.4826


def noise(values: Floats) -> float:
    """Return the standard deviation of what changes from point to point: that of the second differences, robustly, over √6.

    Second differences, because a straight trend has none; a robust scale, because spikes are no noise. 0 for fewer than 4 points.
    """
    if len(values) < 4:
        return 0.0
    second = np.diff(values, 2)
    return float(_MAD * np.median(np.abs(second)) / math.sqrt(6))


def smoothed(values: Floats, window: int = 10) -> Floats:
    """Return the mean of each value and those before it, `window` at most, and at most a third of the series."""
    width = max(1, min(window, len(values) // 3))
    total = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return np.asarray((total[ends] - total[starts]) / (ends - starts))


def smoothed_noise(values: Floats, window: int = 10) -> float:
    """Return the noise of a value of `smoothed`."""
    return noise(values) / math.sqrt(max(1, min(window, len(values) // 3)))


def slope(series: Series) -> tuple[float, float]:
    """Return the least-squares change per step, and how many of its standard errors it is (0 where it cannot be told)."""
    n = len(series)
    if n < 4 or np.ptp(series.steps) == 0:
        return 0.0, 0.0
    x, y = series.steps - series.steps.mean(), series.values - series.values.mean()
    change = float(x @ y / (x @ x))
    residual = y - change * x
    error = math.sqrt(max(float(residual @ residual), 1e-300) / (n - 2) / float(x @ x))
    return change, change / error


def level(values: Floats, share: float = 0.1, at_least: int = 3) -> tuple[float, float]:
    """Return the means of the first and the last part of a series."""
    count = min(len(values), max(at_least, round(share * len(values))))
    return float(values[:count].mean()), float(values[-count:].mean())


def autocorrelation(values: Floats) -> float:
    """Return the correlation of each value with the next, after a straight trend is taken off; near 0 is pure noise."""
    if len(values) < 6:
        return 0.0
    x = np.arange(len(values))
    rest = values - np.polyval(np.polyfit(x, values, 1), x)
    if np.ptp(rest) == 0:
        return 0.0
    return float(rest[1:] @ rest[:-1] / (rest @ rest))
