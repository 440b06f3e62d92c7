"""From result files to the tables of docs/performance.md, between `<!-- name:begin -->` and `<!-- name:end -->`. Measures nothing."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
_TYPES = ("bfloat16", "float32")
_OURS, _PLAIN = "ours", "trl-fp32"
_SET_TITLES = {"chat": "Ordinary chat rows", "shared-prefix": "Rows with the same long system message", "own": "Rows of one's own"}


def write(name: str, text: str) -> None:
    """Put a text between the page's two markers of that name."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    page, found = pattern.subn(lambda _: f"{begin}\n{text}\n{end}", PAGE.read_text())
    if not found:
        raise SystemExit(f"{PAGE} has no {begin} ... {end}.")
    PAGE.write_text(page)


def speed(seconds: Sequence[float], tokens: Sequence[int]) -> float:
    """Return the median step's tokens per second, the first step not among them."""
    each = [count / second for count, second in zip(tokens, seconds, strict=True)]
    return statistics.median(each[1:] or each)


def training(result: dict[str, Any]) -> str:
    """Return the machine and, for each set of rows, its two tables."""
    parts = [_machine(result)]
    for name, figures in result["sets"].items():
        parts += [f"### {_SET_TITLES[name]}", _rows_line(figures), _contenders(figures), _against(figures)]
    if result["did_not_run"]:
        parts.append("Did not run: " + "; ".join(f"{name} ({why})" for name, why in result["did_not_run"].items()) + ".")
    return "\n\n".join(part for part in parts if part)


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, all columns but the first aligned to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))


def middle(values: Sequence[float], digits: int = 0) -> str:
    """Return "median [lowest–highest]"."""
    low, high = (f"{value:,.{digits}f}" for value in (min(values), max(values)))
    return f"{statistics.median(values):,.{digits}f} [{low}–{high}]"


def _machine(result: dict[str, Any]) -> str:
    m, settings = result["machine"], result["settings"]
    return (
        f"{m['date']}, commit `{m['commit']}`: {m['processor']}, {m['cores']} cores ({', '.join(m['flags'])}), {m['memory_gb']} GB, "
        f"torch {m['torch']}. {settings['rounds']} rounds of {settings['steps']} steps of {settings['rows_per_step']} rows."
    )


def _rows_line(figures: dict[str, Any]) -> str:
    tokens, targets = sum(figures["tokens"]), sum(figures["targets"])
    floors = "; ".join(f"{kind} {_floor(figures, kind):,.0f} tokens/s" for kind in _TYPES)
    return (
        f"{tokens:,} tokens, {targets / tokens:.0%} of them targets. If a step were its matrix products alone: {floors}. {_others(figures)}"
    )


def _others(figures: dict[str, Any]) -> str:
    runs = [run for entry in figures["contenders"].values() for run in entry["runs"]]
    most = max((run["other_cores"] for run in runs), default=0.0)
    return f"Other work on the machine took at most {most:.2f} cores during a run."


def _floor(figures: dict[str, Any], kind: str) -> float:
    """Return the products' best round: what disturbs the machine can only slow them down."""
    return max(float(floor[kind]["tokens_per_second"]) for floor in figures["floor"])


def _speeds(entry: dict[str, Any], tokens: Sequence[int]) -> list[float]:
    return [speed(run["seconds"], tokens) for run in entry["runs"]]


def _memory(entry: dict[str, Any]) -> float:
    return statistics.median(float(run["peak_rss_mb"]) for run in entry["runs"])


def _contenders(figures: dict[str, Any]) -> str:
    tokens, entries = figures["tokens"], figures["contenders"]
    floor = max(_floor(figures, kind) for kind in _TYPES)
    plain = statistics.median(_speeds(entries[_PLAIN], tokens)) if entries.get(_PLAIN, {}).get("runs") else None
    lines = []
    for entry in entries.values():
        if not entry["runs"]:
            lines.append([entry["title"], f"did not run: {entry['failed']}", "", "", "", ""])
            continue
        speeds = _speeds(entry, tokens)
        typical = statistics.median(speeds)
        whole = [sum(tokens) / sum(run["seconds"]) for run in entry["runs"]]
        memory = [run["peak_rss_mb"] for run in entry["runs"]]
        times = f"{typical / plain:.1f} ×" if plain else "–"
        lines.append([entry["title"], middle(speeds), middle(whole), middle(memory), times, f"{typical / floor:.0%}"])
    return table(("", "tokens/s, median step [range]", "tokens/s, whole run", "peak memory, MB", "× TRL float32", "of the floor"), lines)


def _against(figures: dict[str, Any]) -> str:
    """Return how many times as fast we are as each bar, and how many times our memory it takes."""
    tokens, entries = figures["tokens"], figures["contenders"]
    lines = []
    for name, entry in entries.items():
        ours = entries.get(f"{_OURS}-dropout" if name.endswith("-dropout") else _OURS)
        if name.startswith(_OURS) or not entry["runs"] or not ours or not ours["runs"]:
            continue
        faster = statistics.median(_speeds(ours, tokens)) / statistics.median(_speeds(entry, tokens))
        smaller = statistics.median(run["peak_rss_mb"] for run in entry["runs"]) / statistics.median(
            run["peak_rss_mb"] for run in ours["runs"]
        )
        lines.append([entry["title"], f"{faster:.1f}", f"{smaller:.1f}"])
    return table(("Tunesmith beside", "times as fast", "its memory ÷ ours"), lines) if lines else ""
