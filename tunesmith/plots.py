"""The pictures of a run: loss and token accuracy over steps, and what was found in them. Figures out; knows no run and no store."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tunesmith.diagnosis.history import NAMES, History
from tunesmith.domain.findings import Diagnosis
from tunesmith.errors import InvalidRequest

_TRAIN, _VALID, _FULL, _BASE = "#1f6fd6", "#2e9e4f", "#d62728", "#8a8a8a"
_SIZE = (9.0, 4.6)
#: More epochs than this would be a fence, not a help.
_MAX_BORDERS = 30
_LONGEST_TITLE = 90

_SEVERITY = {"critical": "#b3261e", "warning": "#c77700", "info": "#5a6b7b"}
_SCORES = {"accuracy": "#1f6fd6", "precision": "#8e5bd0", "recall": "#2e9e4f", "f1": "#d62728"}

_PANELS = {
    "loss": ("Loss", "loss (nats per target token)", "train_loss", "valid_loss", "full_valid_loss"),
    "token_accuracy": (
        "Token accuracy",
        "share of target tokens predicted",
        "train_mean_token_accuracy",
        "valid_mean_token_accuracy",
        "full_valid_mean_token_accuracy",
    ),
}


def figure(points: Sequence[Mapping[str, Any]], title: str = "", panels: Sequence[str] = ("loss", "token_accuracy")) -> Figure:
    """Draw metric points (dicts with the names of metrics.jsonl) as one panel each for loss and token accuracy."""
    fig = Figure(figsize=(_SIZE[0], _SIZE[1] * len(panels)), layout="constrained")
    FigureCanvasAgg(fig)
    axes = fig.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for ax, panel in zip(axes, panels, strict=True):
        _draw(ax, points, panel)
    axes[-1].set_xlabel("step (optimizer updates)")
    if title:
        fig.suptitle(_short(title), fontsize=10)
    return fig


def save(points: Sequence[Mapping[str, Any]], directory: Path, title: str = "") -> list[Path]:
    """Write loss.png and token_accuracy.png to `directory` and return their paths."""
    paths = []
    for panel in _PANELS:
        path = directory / f"{panel}.png"
        figure(points, title, [panel]).savefig(path, dpi=140)
        paths.append(path)
    return paths


def diagnosis(history: History, found: Diagnosis, title: str = "") -> Figure:
    """Draw a history's curves with what was found in them: a numbered band a finding, the checkpoint to use, the verdict above."""
    points = _points(history)
    scores = [name for name in _SCORES if len(history[name])]
    panels = [panel for panel, names in _PANELS.items() if any(name in point for point in points for name in names[2:])]
    count = len(panels) + bool(scores)
    fig = Figure(figsize=(_SIZE[0], _SIZE[1] * max(1, count) + 1.0), layout="constrained")
    FigureCanvasAgg(fig)
    axes = fig.subplots(max(1, count), 1, sharex=True, squeeze=False)[:, 0]
    for ax, panel in zip(axes, panels, strict=False):
        _draw(ax, points, panel)
    if scores:
        _draw_scores(axes[-1], history, scores)
    for ax in axes:
        _mark(ax, found)
    axes[-1].set_xlabel("step (optimizer updates)")
    _explain(axes[-1], found)
    heading = "\n".join(textwrap.wrap(found.verdict, 105)[:4])
    fig.suptitle(f"{_short(title)}\n{heading}" if title else heading, fontsize=10, ha="left", x=0.02)
    return fig


def save_diagnosis(history: History, found: Diagnosis, path: Path, title: str = "") -> None:
    """Write `diagnosis` as a picture; the path's ending says of which kind. Raises: InvalidRequest."""
    if path.is_dir() or path.suffix not in (".png", ".svg", ".pdf"):
        raise InvalidRequest(f"The picture cannot be written to {str(path)!r}. Hint: a path that ends in .png, .svg or .pdf.")
    try:
        diagnosis(history, found, title).savefig(path, dpi=140)
    except OSError as error:
        raise InvalidRequest(f"The picture cannot be written to {str(path)!r}: {error}.") from None


def _points(history: History) -> list[dict[str, Any]]:
    """Return the history as metric points, with the names of metrics.jsonl."""
    points: dict[float, dict[str, Any]] = {}
    for name, series in history.series.items():
        wire = (*NAMES.get(name, ()), name)[0]
        for step, value in zip(series.steps, series.values, strict=True):
            points.setdefault(float(step), {"step": float(step)})[wire] = float(value)
    ordered = [points[step] for step in sorted(points)]
    epoch = 0.0
    for point in ordered:
        epoch = point.setdefault("epoch", epoch)
    return ordered


def _draw_scores(ax: Axes, history: History, names: Sequence[str]) -> None:
    for name in names:
        series = history[name]
        ax.plot(series.steps, series.values, color=_SCORES[name], marker="o", markersize=4, linewidth=1.3, label=name)
    ax.set_title("Scores", loc="left", fontsize=11)
    ax.set_ylabel("score")
    _finish(ax)


def _mark(ax: Axes, found: Diagnosis) -> None:
    """Draw each finding that has steps as a numbered band, one above the other, and the checkpoint to use as a line."""
    banded = [(number, finding) for number, finding in enumerate(found.findings, 1) if finding.steps]
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.06 * (high - low) * len(banded))  # so that bands lie above the curves
    for level, (number, finding) in enumerate(banded):
        assert finding.steps is not None
        first, last = finding.steps
        color = _SEVERITY[finding.severity]
        if finding.severity != "info":
            ax.axvspan(first, max(last, first + 0.2), color=color, alpha=0.07, zorder=0)
        height = 0.975 - 0.055 * level
        ax.plot([first, last], [height, height], transform=ax.get_xaxis_transform(), color=color, linewidth=2.5, solid_capstyle="butt")
        ax.text(
            first, height, f" {number} ", transform=ax.get_xaxis_transform(), va="center", ha="left", fontsize=8, color="white",
            bbox={"boxstyle": "round,pad=0.15", "facecolor": color, "edgecolor": "none"},
        )  # fmt: skip
    if found.checkpoint:
        ax.axvline(found.checkpoint.step, color="black", linewidth=1.0, linestyle="--", zorder=3)
        ax.annotate(
            f"use step {found.checkpoint.step}", (found.checkpoint.step, 0.5), xycoords=ax.get_xaxis_transform(), fontsize=8, rotation=90,
            xytext=(-3, 0), textcoords="offset points", ha="right", va="center",
            bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
        )  # fmt: skip


def _explain(ax: Axes, found: Diagnosis) -> None:
    """Write the findings' numbers and names under the last panel."""
    lines = [f"{number} {finding.code} ({finding.severity})" for number, finding in enumerate(found.findings, 1)]
    if lines:
        ax.annotate(
            "\n".join(textwrap.wrap("     ".join(lines).replace(" ", "\u00a0").replace("\u00a0" * 5, "   "), 120)),
            (0, -0.17), xycoords="axes fraction", fontsize=8.5, va="top",
        )  # fmt: skip


def _short(title: str) -> str:
    return title if len(title) <= _LONGEST_TITLE else "..." + title[3 - _LONGEST_TITLE :]


def _draw(ax: Axes, points: Sequence[Mapping[str, Any]], panel: str) -> None:
    name, label, train, valid, full = _PANELS[panel]
    trained = [point for point in points if point["step"] > 0]
    _line(ax, trained, train, color=_TRAIN, linewidth=1.3, label="train")
    _line(ax, trained, valid, color=_VALID, linewidth=1.6, label="validation")
    _line(ax, trained, full, color=_FULL, linestyle="none", marker="o", markersize=5.5, label="full validation", zorder=4)
    base = next((point[full] for point in points if point["step"] == 0 and full in point), None)
    if base is not None:
        ax.axhline(base, color=_BASE, linewidth=0.9, label=f"base model ({base:.3g})", zorder=1)
    for border in _epoch_borders(trained):
        ax.axvline(border, color=_BASE, linewidth=0.6, linestyle=":", zorder=0)
    ax.set_ylabel(label)
    ax.set_title(name, loc="left", fontsize=11)
    if trained:
        ax.set_xlim(0, max(point["step"] for point in trained) * 1.02)
    else:
        ax.text(0.5, 0.5, "no steps yet", transform=ax.transAxes, ha="center", va="center", color=_BASE)
    if panel == "token_accuracy":
        ax.set_ylim(bottom=0 if not trained else None, top=1.02)
    _finish(ax)


def _finish(ax: Axes) -> None:
    ax.grid(alpha=0.25, linewidth=0.5)
    ax.spines[["top", "right"]].set_visible(False)
    if ax.get_legend_handles_labels()[0]:
        # Above the panel, where it can hide no curve.
        ax.legend(frameon=False, fontsize=9, ncols=4, loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2, handlelength=1.4)


def _line(ax: Axes, points: Sequence[Mapping[str, Any]], key: str, **style: Any) -> None:
    known = [(point["step"], point[key]) for point in points if point.get(key) is not None]
    if known:
        alone: dict[str, Any] = {"marker": "o", "markersize": 4} if len(known) == 1 else {}
        ax.plot(*zip(*known, strict=True), **alone | style)


def _epoch_borders(points: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return the steps at which an epoch ended, all but the last point's."""
    borders = [
        after["step"] - 0.5 if after["epoch"] % 1 else after["step"]
        for before, after in zip([{"epoch": 0.0}, *points], points, strict=False)
        if int(after["epoch"]) > int(before["epoch"])
    ]
    borders = borders[:-1] if points and borders and borders[-1] == points[-1]["step"] else borders
    return borders if len(borders) <= _MAX_BORDERS else []
