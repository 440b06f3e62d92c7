"""A run's progress bar in the terminal, on stderr: step, time left, losses, token accuracy, tokens per second."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text


class RunProgress:
    """Use in a `with` block; `show` each metric point (a dict in the names of metrics.jsonl)."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._seen: dict[str, Any] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(elapsed_when_finished=False),
            _Figures(),
            console=console,
            expand=True,
            speed_estimate_period=120,
            refresh_per_second=2,
        )
        self._task = self._progress.add_task("preparing", total=None, figures="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def say(self, words: str, style: str = "") -> None:
        """Print a line above the bar."""
        self._progress.console.print(Text(words, style=style))

    def show(self, point: Mapping[str, Any]) -> None:
        """Move the bar to a metric point."""
        self._seen |= {key: value for key, value in point.items() if value is not None}
        self._progress.update(
            self._task,
            description="base model" if point["step"] == 0 else "training",
            total=point["total_steps"],
            completed=point["step"],
            figures=figures(self._seen),
        )


class _Figures(TextColumn):
    def __init__(self) -> None:
        super().__init__("{task.fields[figures]}")


def figures(seen: Mapping[str, Any]) -> str:
    """Return the latest figures in one line, those that are known."""
    words = []
    if "train_loss" in seen:
        words.append(f"loss {seen['train_loss']:.3f} acc {seen['train_mean_token_accuracy']:.3f}")
    if "valid_loss" in seen:
        words.append(f"valid {seen['valid_loss']:.3f}")
    if "full_valid_loss" in seen:
        words.append(f"full {seen['full_valid_loss']:.3f} acc {seen['full_valid_mean_token_accuracy']:.3f}")
    if "tokens_per_second" in seen:
        words.append(f"{seen['tokens_per_second']:,.0f} tok/s")
    return " · ".join(words)
