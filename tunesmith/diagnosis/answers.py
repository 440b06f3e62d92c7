"""What the answers of a training file show: classes too rare to learn, answers too much alike, prompts that stand among the answers."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from tunesmith.diagnosis.texts import Flags, Table, Vocabulary
from tunesmith.domain.findings import Change, Finding, Severity

#: Lines listed of what a finding is about; all are counted.
MAX_LISTED = 20

#: Answers are labels where nine in ten have at most this many words, ...
_LABEL_WORDS, _LABEL_SHARE = 6, 0.9
#: ... eight in ten rows have an answer that others have too, and a class has ten rows on average. Three classes may have fewer.
_REPEATED_SHARE, _ROWS_PER_CLASS, _FEW_CLASSES = 0.8, 10, 3
#: More are no classes but short answers; and more numbers than these are quantities.
_MOST_CLASSES, _MOST_NUMBERS = 200, 20
#: Validation has the same labels where it shares this much of them; what else is there is a class that training does not know.
_SAME_LABELS = 0.8
#: 10:1 is the bound of SageMaker Debugger's ClassImbalance; a class of 5 rows teaches little, one of 50 enough whatever the rest is.
_IMBALANCE, _LEAST_ROWS, _ENOUGH_ROWS, _MAJORITY = 10, 5, 50, 0.9
#: The counts are facts; that the answers are labels is a guess by their shape, tried on the shapes that the tests list.
_LABELS_CONFIDENCE = 0.9

_NUMBER = re.compile(r"[-+$€]?\d[\d.,: ]*%?")

#: Fewer rows show nothing of how varied answers are.
_LEAST_FOR_VARIETY = 30
#: Free text has at least this many words at the median; each answer stands there five times on average; half begin with the same words.
_FREE_WORDS, _VARIETY, _OPENING_WORDS, _OPENING_SHARE = 8, 0.2, 4, 0.5

#: Nearly every row.
_NEARLY_ALL = 0.95
#: What marks a place in a text: "### Answer", "###" alone, "Note:", "[/INST]", "<answer>", "<|user|>", "->".
_MARK = re.compile(
    r"#{1,6} [^\n]{1,40}|#{3,}(?=\s)|[^\s:\"'{}]{1,30}:(?=\s|$)|\[/?[A-Za-z]\w{0,19}\]|<[/|]?[A-Za-z]\w{0,19}\|?>|[-=]+>(?=\s|$)"
)
_MARKED_SHARE = 0.9
_NOTATION = re.compile(r"\s*(\{|\[\s*[\[{\"\d]|<\?xml)")


def listed(table: Table, flags: Flags) -> list[int]:
    """Return the first line numbers of the rows that are flagged."""
    return [int(line) for line in table.lines_N[np.flatnonzero(flags)[:MAX_LISTED]]]


def percent(part: float, whole: float) -> str:
    """Say a share: "12 %", "0.4 %"."""
    share = 100 * part / whole
    return f"{share:.0f} %" if share >= 10 or share == 0 else f"{share:.1f} %"


def are_labels(table: Table) -> bool:
    """Whether the answers are few, short and repeated: labels rather than text."""
    if not len(table):
        return False
    rows = len(table)
    keys, counts = np.unique(table.answer_N, return_counts=True)
    if not 2 <= len(keys) <= min(_MOST_CLASSES, max(_FEW_CLASSES, rows / _ROWS_PER_CLASS)):
        return False
    numbers = sum(bool(_NUMBER.fullmatch(table.labels.get(key, ""))) for key in keys.tolist())
    is_short = np.mean(table.length_N <= _LABEL_WORDS) >= _LABEL_SHARE
    return bool(is_short and numbers <= _MOST_NUMBERS and counts[counts > 1].sum() >= _REPEATED_SHARE * rows)


def examine(training: Table, validation: Table | None, vocabulary: Vocabulary) -> list[Finding]:
    """Return what the answers show."""
    found = [_imbalance(training, validation)] if are_labels(training) else [_low_variety(training, vocabulary)]
    return [finding for finding in (*found, _prompt_in_loss(training)) if finding is not None]


# --- classes ---


def _imbalance(training: Table, validation: Table | None) -> Finding | None:
    classes = _classes(training, validation)
    counts = np.array([count for _, count in classes.values()])
    rows, largest, smallest, few = len(training), int(counts.max()), int(counts.min()), int((counts < _LEAST_ROWS).sum())
    ratio = largest / max(smallest, 1)
    if ratio < _IMBALANCE and not few:
        return None
    is_grave = few or smallest < _ENOUGH_ROWS or largest >= _MAJORITY * rows
    by_size = sorted(classes.values(), key=lambda named: (-named[1], named[0]))
    majority = by_size[0][0]
    rarest = by_size[::-1][:5]
    rare_keys = [key for key, (_, count) in classes.items() if count <= max(smallest, _LEAST_ROWS - 1)]
    is_rare = np.isin(training.answer_N, np.array(rare_keys, dtype=np.uint64))
    words = f"The answers are labels of {len(classes)} classes: {percent(largest, rows)} of the {rows} training rows are {majority!r}, "
    words += "and the rarest are " + ", ".join(f"{name!r} ({count})" for name, count in rarest) + "."
    words += f" {few} of the classes have fewer than {_LEAST_ROWS} rows." if few else ""
    evidence: dict[str, Any] = {
        "rows": rows, "classes": len(classes), "majority": majority, "majority_share": largest / rows, "ratio": ratio,
        "counts": dict(by_size[:MAX_LISTED]), "rarest": dict(rarest), "below_5": few, "training_lines": listed(training, is_rare),
    }  # fmt: skip
    advice = (
        f"A model that always says {majority!r} is right in {percent(largest, rows)} of the rows, so judge by macro-F1, not by accuracy. "
        f"Add rows of the rare classes (at least {_ENOUGH_ROWS} each), repeat them, or join classes that need not be told apart."
    )
    reason = f"the most frequent class has {largest} rows and the rarest {smallest}"
    change = Change("training_data", f"{smallest} rows of {rarest[0][0]!r}", f"at least {_ENOUGH_ROWS}", reason)
    severity: Severity = "warning" if is_grave else "info"
    return Finding("class_imbalance", severity, _LABELS_CONFIDENCE, words, advice, evidence, changes=(change,))


def _classes(training: Table, validation: Table | None) -> dict[int, tuple[str, int]]:
    """Return label and number of training rows of each class, by its key; 0 for a class that only validation has."""
    keys, counts = np.unique(training.answer_N, return_counts=True)
    classes = {int(key): (training.labels.get(int(key), "..."), int(count)) for key, count in zip(keys, counts, strict=True)}
    if validation is None or np.isin(validation.answer_N, keys).mean() < _SAME_LABELS:
        return classes
    new = np.setdiff1d(validation.answer_N, keys).tolist()
    return classes | {key: (validation.labels.get(key, "..."), 0) for key in new}


# --- variety ---


def _low_variety(table: Table, vocabulary: Vocabulary) -> Finding | None:
    rows = len(table)
    keys, counts = np.unique(table.answer_N, return_counts=True)
    if len(keys) == 1:
        evidence = {"rows": rows, "distinct": 1, "effective": 1.0, "training_lines": listed(table, np.ones(rows, dtype=np.bool_))}
        return _same_answers("critical", f"All {rows} training rows have the same answer, so there is nothing else to learn.", evidence)
    if rows < _LEAST_FOR_VARIETY or np.median(table.length_N) < _FREE_WORDS:
        return None
    shares = counts / rows
    effective = math.exp(-float(shares @ np.log(shares)))
    if effective > _VARIETY * rows:
        return _same_openings(table, vocabulary)
    words = f"The {rows} training rows have only {len(keys)} different answers, as varied as {effective:.0f} equally frequent ones."
    is_repeated = np.isin(table.answer_N, keys[counts > 1])
    evidence = {"rows": rows, "distinct": len(keys), "effective": effective, "training_lines": listed(table, is_repeated)}
    return _same_answers("warning", words, evidence)


def _same_answers(severity: Severity, words: str, evidence: dict[str, Any]) -> Finding:
    before = f"{evidence['distinct']} different answers"
    change = Change("training_data", before, "an answer of its own for each prompt", "answers are repeated")
    advice = "The model will recite these answers whatever is asked. Write an answer for each prompt, or collect more of them."
    # The counts are facts; whether such data was meant (a bot with ten replies) is not known.
    return Finding("low_variety", severity, 1.0 if severity == "critical" else 0.7, words, advice, evidence, changes=(change,))


def _same_openings(table: Table, vocabulary: Vocabulary) -> Finding | None:
    """Say when half of the answers begin with the same words; answers in a notation (JSON, XML) do so rightly."""
    rows = table.num_compared
    openings = [tuple(table.answer(row)[:_OPENING_WORDS].tolist()) for row in range(rows)]
    opening, count = Counter(openings).most_common(1)[0]
    spelled = list(vocabulary)
    words = [spelled[number] if number < len(spelled) else "..." for number in opening]
    if count < _OPENING_SHARE * rows or len(words) < _OPENING_WORDS or not all(word[0].isalnum() for word in words[:2]):
        return None
    text = " ".join(words)
    flags = np.array([found == opening for found in openings])
    evidence = {"rows": rows, "opening": text, "share": count / rows, "training_lines": listed(table, flags)}
    advice = "If that is not meant, let the answers begin differently: the model will begin nearly all of its answers so."
    # A fixed beginning is often meant.
    return Finding("low_variety", "info", 0.5, f"{percent(count, rows)} of the training answers begin with “{text}”.", advice, evidence)


# --- prompts among the answers ---


def _prompt_in_loss(table: Table) -> Finding | None:
    rows, repeated, unprompted = len(table), int(table.repeats_N.sum()), int((~table.is_prompted_N).sum())
    if repeated >= _NEARLY_ALL * rows:
        words = f"{repeated} of {rows} training answers begin with their own prompt, word for word: the loss is taken over the prompt too."
        evidence = {"kind": "repeated", "rows": repeated, "of": rows, "training_lines": listed(table, table.repeats_N)}
        reason = "the model would learn to repeat what it is asked"
        change = Change("training_data", "answers that repeat their prompts", "answers alone", reason)
        return Finding("prompt_in_loss", "warning", 1.0, words, "Leave the prompts out of the answers.", evidence, changes=(change,))
    if unprompted < _NEARLY_ALL * rows:
        return None
    marks = _scaffold(table.unprompted)
    words = f"In {unprompted} of {rows} training rows nothing stands before the answer: the loss is taken over the whole text."
    evidence = {
        "kind": "scaffold" if marks else "plain", "rows": unprompted, "of": rows, "marks": marks, "looked_at": len(table.unprompted),
        "training_lines": listed(table, ~table.is_prompted_N),
    }  # fmt: skip
    if not marks:
        advice = "That is right for plain text. If a part of each row is what the model will be given, put that part into the prompt."
        return Finding("prompt_in_loss", "info", 0.5, words, advice, evidence)
    shown, last = " … ".join(f"“{mark}”" for mark in marks), f"“{marks[-1]}”"
    words += f" But the rows are built alike ({shown}), and what stands before {last} looks like the prompt."
    advice = f"Put the text up to and with {last} into the prompt (or a user message), and only what follows into the answer."
    reason = f"the model learns to write prompts, and their loss hides that of what follows {last}"
    change = Change("training_data", "prompts inside the answers", f"prompts apart, cut behind {last}", reason)
    # Documents in a fixed form (a title, then a text) look the same and are meant to be learned whole.
    return Finding("prompt_in_loss", "warning", 0.8, words, advice, evidence, changes=(change,))


def _scaffold(texts: Sequence[str]) -> list[str]:
    """Return the marks that nearly all texts have, in their order; none if no mark has text before and after it.

    A mark begins a line, or stands once in a text. What comes after the last of them is what the rest asks for.
    """
    if not texts or sum(bool(_NOTATION.match(text)) for text in texts) > len(texts) / 2:  # JSON has marks of its own
        return []
    places: dict[str, list[float]] = {}
    for text in texts:
        for mark, place in _marks(text.strip()).items():
            places.setdefault(mark, []).append(place)
    common = {mark: float(np.median(found)) for mark, found in places.items() if len(found) >= _MARKED_SHARE * len(texts)}
    return sorted(common, key=common.__getitem__) if any(common.values()) else []


def _marks(text: str) -> dict[str, float]:
    """Return where in a text, from 0 to 1, its marks are first."""
    first: dict[str, float] = {}
    again: set[str] = set()
    for match in _MARK.finditer(text):
        mark, place = match[0].strip(), match.start()
        begins_line = place == 0 or text[place - 1] == "\n"
        if mark in first and not begins_line:
            again.add(mark)
        if match.end() < len(text):
            first.setdefault(mark, place / len(text))
    return {mark: place for mark, place in first.items() if mark not in again}
