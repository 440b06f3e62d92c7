"""The two pictures of a run: loss and token accuracy over steps. Sequences in, figures out; knows no run and no store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_TRAIN, _VALID, _FULL, _BASE = "#1f6fd6", "#2e9e4f", "#d62728", "#8a8a8a"
_SIZE = (9.0, 4.6)
#: More epochs than this would be a fence, not a help.
_MAX_BORDERS = 30

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
        fig.suptitle(title if len(title) <= 90 else title[:87] + "...", fontsize=10)
    return fig


def save(points: Sequence[Mapping[str, Any]], directory: Path, title: str = "") -> list[Path]:
    """Write loss.png and token_accuracy.png to `directory` and return their paths."""
    paths = []
    for panel in _PANELS:
        path = directory / f"{panel}.png"
        figure(points, title, [panel]).savefig(path, dpi=140)
        paths.append(path)
    return paths


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
    ax.grid(alpha=0.25, linewidth=0.5)
    ax.spines[["top", "right"]].set_visible(False)
    if trained:
        ax.set_xlim(0, max(point["step"] for point in trained) * 1.02)
    else:
        ax.text(0.5, 0.5, "no steps yet", transform=ax.transAxes, ha="center", va="center", color=_BASE)
    if panel == "token_accuracy":
        ax.set_ylim(bottom=0 if not trained else None, top=1.02)
    if ax.get_legend_handles_labels()[0]:
        # Above the panel, where it can hide no curve.
        ax.legend(frameon=False, fontsize=9, ncols=4, loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2, handlelength=1.4)


def _line(ax: Axes, points: Sequence[Mapping[str, Any]], key: str, **style: Any) -> None:
    known = [(point["step"], point[key]) for point in points if point.get(key) is not None]
    if known:
        ax.plot(*zip(*known, strict=True), **style)


def _epoch_borders(points: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return the steps at which an epoch ended, all but the last point's."""
    borders = [
        after["step"] - 0.5 if after["epoch"] % 1 else after["step"]
        for before, after in zip([{"epoch": 0.0}, *points], points, strict=False)
        if int(after["epoch"]) > int(before["epoch"])
    ]
    borders = borders[:-1] if points and borders and borders[-1] == points[-1]["step"] else borders
    return borders if len(borders) <= _MAX_BORDERS else []
