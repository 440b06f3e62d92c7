"""A diagnosis as text for a terminal and as Markdown for a report. Knows no history."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.diagnosis import words
from tunesmith.domain.findings import Diagnosis, Finding

_WIDTH = 110
_ROWS = (
    ("worst_validation", "Validation rows with the highest loss"),
    ("worse_than_base", "Validation rows that got worse than under the base model"),
    ("worst_training", "Training rows with the highest loss"),
)
_PLOTS = {"loss": "Loss", "token_accuracy": "Token accuracy", "scores": "Scores"}
_CANNOT = "What these curves cannot tell"


def text(found: Diagnosis) -> str:
    """Return a diagnosis as plain text."""
    blocks = [_wrapped(found.verdict)]
    for finding in found.findings:
        block = [f"{finding.severity}: {finding.code} ({_sure(finding)})"]
        block += [_wrapped(finding.message, "  "), _wrapped(finding.advice, "  ")]
        block += [_wrapped(change.words(), "  - ") for change in finding.changes]
        if finding.evidence:
            block.append(_wrapped(f"numbers: {_numbers(finding.evidence)}", "  "))
        blocks.append("\n".join(block))
    if said := _checkpoint(found):
        blocks.append(_wrapped(said))
    blocks.append(f"Next run: {json.dumps(found.next_hyperparameters)}")
    blocks += [_wrapped(f"{_PLOTS[name]}. {said}") for name, said in found.plots.items() if name in _PLOTS]
    blocks.append(_wrapped(f"Loss and accuracy together. {found.reading}"))
    for key, title in _ROWS:
        if rows := found.rows.get(key):
            blocks.append(_wrapped(f"{title}: " + ", ".join(_row(row) for row in rows) + "."))
    blocks.append("\n".join([f"{_CANNOT}:", *(_wrapped(what, "- ") for what in found.cannot_tell)]))
    return "\n\n".join(blocks)


def markdown(found: Diagnosis, title: str = "") -> str:
    """Return a diagnosis as a Markdown page."""
    blocks = [f"# Report{f': {title}' if title else ''}", f"**{found.verdict}**", "## Findings"]
    if not found.findings:
        blocks.append("None.")
    for finding in found.findings:
        block = [f"### {finding.code} ({finding.severity}, {_sure(finding)})", "", f"{finding.message} {finding.advice}"]
        block += ["", *(f"- {change.words()}" for change in finding.changes)] if finding.changes else []
        block += ["", f"Numbers: {_numbers(finding.evidence)}."] if finding.evidence else []
        blocks.append("\n".join(block))
    if said := _checkpoint(found):
        blocks += ["## Checkpoint", said]
    blocks += ["## The next run", f"```json\n{json.dumps(found.next_hyperparameters, indent=2)}\n```", "## The plots in words"]
    blocks += [f"**{_PLOTS[name]}.** {said}" for name, said in found.plots.items() if name in _PLOTS]
    blocks.append(f"**Together.** {found.reading}")
    for key, heading in _ROWS:
        if rows := found.rows.get(key):
            blocks += [f"## {heading}", _table(rows)]
    blocks += [f"## {_CANNOT}", "\n".join(f"- {what}" for what in found.cannot_tell)]
    return "\n\n".join(blocks) + "\n"


def _checkpoint(found: Diagnosis) -> str:
    if not found.checkpoint:
        return ""
    said = f"Checkpoint: use step {found.checkpoint.step}, because {found.checkpoint.reason}."
    if score := found.checkpoint.score:
        low, high = f"{score['low']:.3g}", f"{score['high']:.3g}"
        said += f" On new data expect {words.called(str(score['name']))} of about {score['value']:.3g} ({low} to {high} nine times in ten)."
    return said


def _sure(finding: Finding) -> str:
    where = f", steps {finding.steps[0]} to {finding.steps[1]}" if finding.steps else ""
    return f"confidence {finding.confidence:.0%}{where}"


def _numbers(evidence: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_value(value)}" for key, value in evidence.items())


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_value, value[:10])) + (", ...]" if len(value) > 10 else "]")
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _row(row: Mapping[str, Any]) -> str:
    return f"line {row['line']} ({row['loss']:.3g}" + (f", base {row['base_loss']:.3g})" if "base_loss" in row else ")")


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(rows[0])
    lines = [f"| {' | '.join(name.replace('_', ' ') for name in names)} |", "|" + "---|" * len(names)]
    return "\n".join([*lines, *(f"| {' | '.join(_value(row[name]) for name in names)} |" for row in rows)])


def _wrapped(words: str, start: str = "") -> str:
    return textwrap.fill(words, _WIDTH, initial_indent=start, subsequent_indent=" " * len(start), break_long_words=False)
