"""Statistics of one series that a rule may rest on. All are relative to the series' own noise; none knows what it measures."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from tunesmith.diagnosis.history import Floats, Series

Flags = npt.NDArray[np.bool_]

#: The median absolute deviation of a normal variable times this is its standard deviation.
_MAD = 1.4826


def noise(values: Floats) -> float:
    """Return the standard deviation of what changes from point to point, from differences, robustly. 0 for fewer than 4 points.

    The k-th differences of white noise have its deviation times the root of the sum of squared binomials: √6 for the second, √20 for the
    third. Second differences have nothing of a straight trend; third ones, taken from 6 points on, nothing of a bend either. A robust
    scale, because spikes are no noise.
    """
    if len(values) < 4:
        return 0.0
    order, scale = (3, 20) if len(values) >= 6 else (2, 6)
    return float(_MAD * np.median(np.abs(np.diff(values, order))) / math.sqrt(scale))


def smoothed(values: Floats, window: int = 10) -> Floats:
    """Return the mean of each value and those before it, `window` at most, and at most a third of the series."""
    width = max(1, min(window, len(values) // 3))
    total = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return np.asarray((total[ends] - total[starts]) / (ends - starts))


def least_logged(values: Floats, window: int = 10) -> int:
    """Return where the value is that was least of those that the least mean of `smoothed` is of: near the bottom, and really logged."""
    if not len(values):
        return 0
    at = int(np.argmin(smoothed(values, window)))
    first = max(0, at - max(1, min(window, len(values) // 3)) + 1)
    return first + int(np.argmin(values[first : at + 1]))


def smoothed_noise(values: Floats, window: int = 10) -> float:
    """Return the noise of a value of `smoothed`."""
    return noise(values) / math.sqrt(max(1, min(window, len(values) // 3)))


def blocks(values: Floats, count: int = 8) -> tuple[Floats, Floats, list[int]]:
    """Cut a series into `count` parts of 3 values at least; return each part's mean, the standard error of that, and where it begins."""
    starts = [round(i * len(values) / max(1, min(count, len(values) // 3))) for i in range(max(1, min(count, len(values) // 3)))]
    parts = np.split(values, starts[1:])
    errors = [float(np.std(part, ddof=1)) / math.sqrt(len(part)) if len(part) > 1 else 0.0 for part in parts]
    return np.array([part.mean() for part in parts]), np.array(errors), starts


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


def turns(values: Floats) -> int:
    """Return how often a series changes its direction."""
    ways = np.sign(np.diff(values))
    ways = ways[ways != 0]
    return int((ways[1:] != ways[:-1]).sum())


def order(values: Floats) -> tuple[float, float, float]:
    """Return how far place explains rank: adjusted R² of a parabola, R² of a straight line, and that line's t value without its sign.

    Ranks, so that a spike counts for no more than being highest. 0 for fewer than 4 points.
    """
    n = len(values)
    if n < 4:
        return 0.0, 0.0, 0.0
    ranks, place = np.argsort(np.argsort(values)).astype(float), np.arange(n)
    ranks -= ranks.mean()
    rest = ranks - np.polyval(np.polyfit(place, ranks, 2), place)
    bend = 1 - float(rest @ rest) / float(ranks @ ranks) * (n - 1) / (n - 3)
    rho = float(np.corrcoef(place, ranks)[0, 1])
    return bend, rho * rho, abs(rho) * math.sqrt((n - 2) / max(1 - rho * rho, 1e-12))


def two_groups(values: Floats) -> tuple[float, Flags]:
    """Split values at the point that explains most of their variance; return that share, and which values are in the upper group.

    Otsu's criterion (1979). One normal distribution gives 0.64, a uniform one 0.75; two groups apart give more.
    """
    order = np.argsort(values)
    ordered, n = values[order], len(values)
    upper = np.zeros(n, dtype=bool)
    if n < 4 or ordered[0] == ordered[-1]:
        return 0.0, upper
    sums, sizes = np.cumsum(ordered)[:-1], np.arange(1, n)
    between = sizes * (n - sizes) / n * (sums / sizes - (ordered.sum() - sums) / (n - sizes)) ** 2
    at = int(np.argmax(between[1:-1])) + 1  # at least two on either side
    upper[order[at + 1 :]] = True
    return float(between[at] / (n * ordered.var())), upper
