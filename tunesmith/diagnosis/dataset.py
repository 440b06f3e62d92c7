"""What training and validation data show before any step is made: copies, contradictions, leaks, too few rows.

Rows in, findings out, in one pass over either file. Knows no file and no tokenizer; what tokenizing found (rows cut off, rows without
targets) is handed to `truncated_rows` and `no_target_rows` as line numbers. Evidence says which file its line numbers are of.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from tunesmith.diagnosis import answers, copies, texts
from tunesmith.diagnosis.answers import MAX_LISTED, listed, percent
from tunesmith.diagnosis.texts import Flags, Ints, Keys, Table, Vocabulary
from tunesmith.domain.datasets import Example, Role
from tunesmith.domain.findings import Change, Finding, Severity, ordered

#: Rows of a validation file below which next to nothing, and below which little can be told from it.
FEW_VALIDATION_ROWS, SOME_VALIDATION_ROWS = 25, 200
#: Rows below which a fine-tuning learns the rows rather than what they have in common.
FEW_TRAINING_ROWS = 50
#: The difference in percentage points that advice on validation data is about.
_POINTS_WANTED = 5
#: Share of copies in the training file from which they bend what is learned; of leaked rows, from which they can bend a score by a point.
_MANY_COPIES, _MANY_LEAKED = 0.05, 0.01
#: Of healthy files of a few hundred rows one in ten has a pair that is alike by chance; none had two.
_FEWEST_EDITED = 2
#: Share of rows that contradict each other: where it bends what is learned, and where hardly anything can be learned.
_MANY_CONTRADICTIONS, _MOSTLY_CONTRADICTIONS = 0.01, 0.25
_SHORT_WORDS = 6
#: A prompt that this many training rows have, and this share of them, is no row's own ("Tell a joke").
_COMMON_ROWS, _COMMON_SHARE = 5, 0.01
#: Share of rows cut off, or left out, from which it matters.
_MANY_CUT = 0.01
#: How often a row said to be an edited copy was one, in benchmarks/diagnosis/data_findings.py; with a margin, as real edits are not ours.
_NEAR_CONFIDENCE = 0.9


def _nothing() -> None:
    """Beat for nobody."""


def examine(
    training: Iterable[Example],
    validation: Iterable[Example] | None = None,
    *,
    split: float | None = None,
    beat: Callable[[], None] = _nothing,
) -> list[Finding]:
    """Return what the data shows, the gravest first.

    `split` is the share of the training file that is trained on where no validation file is given; the rest validates. `beat` is called
    all the while, at least every few seconds.
    """
    train, valid, vocabulary = texts.read(training, validation, beat)
    if valid is not None:
        split, num_validation = None, len(valid)
    else:
        num_validation = round(len(train) * (1 - split)) if split else 0
    found = [
        _duplicates(train, split),
        *_inconsistent(train),
        *answers.examine(train, valid, vocabulary),
        too_little_data(len(train) - (num_validation if split else 0)),
        small_validation(num_validation) if num_validation else None,
        *(_leakage(train, valid, vocabulary, beat) if valid is not None else ()),
    ]
    return ordered([finding for finding in found if finding is not None])


# --- within the training file ---


def _duplicates(table: Table, split: float | None) -> Finding | None:
    rows = len(table)
    _, first_of, group, sizes = np.unique(table.row_N, return_index=True, return_inverse=True, return_counts=True)
    first = first_of[group]
    is_copy = (first != np.arange(rows)) & table.is_telling_N
    count, groups = int(is_copy.sum()), np.unique(group[is_copy])
    if not count:
        return None
    pairs = [[int(table.lines_N[first[place]]), int(table.lines_N[place])] for place in np.flatnonzero(is_copy)[:MAX_LISTED]]
    evidence: dict[str, Any] = {
        "rows": count, "of": rows, "share": count / rows, "groups": len(groups), "training_lines": listed(table, is_copy), "pairs": pairs,
    }  # fmt: skip
    words = f"{count} of {rows} training rows ({percent(count, rows)}) repeat an earlier row, prompt and answer."
    is_many = count >= _MANY_COPIES * rows
    if split:
        out, times = 1 - split, sizes[groups]
        leaked = float((times * out * (1 - out ** (times - 1))).sum())  # of each that validates, one of the others is trained on
        evidence["expected_leaked"] = leaked
        is_many = is_many or leaked >= _MANY_LEAKED * out * rows
        words += f" A part of this file is split off to validate: about {leaked:.0f} of its rows will have a copy in training."
    advice = "Remove the repeats, unless the weight is meant: a row counts as often as it is there, and repeats are learned by heart first."
    change = Change("training_data", f"{rows} rows", f"{rows - count} rows, each once", f"{count} rows are repeats")
    return Finding("duplicates", "warning" if is_many else "info", 1.0, words, advice, evidence, changes=(change,))


def _inconsistent(table: Table) -> list[Finding]:
    """Say where one prompt has several answers: a contradiction where they are short, perhaps all good where they are text."""
    _, first_of = np.unique(table.row_N, return_index=True)
    prompts, num_answers = np.unique(table.prompt_N[first_of], return_counts=True)
    differs = np.isin(table.prompt_N, prompts[(num_answers > 1) & (prompts != 0)])
    is_text = np.isin(table.prompt_N, table.prompt_N[differs & (table.length_N > _SHORT_WORDS)])
    found = [_contradictions(table, differs & flags, kind) for kind, flags in (("short", ~is_text), ("text", is_text))]
    return [finding for finding in found if finding is not None]


def _contradictions(table: Table, flags: Flags, kind: str) -> Finding | None:
    count, rows = int(flags.sum()), len(table)
    if not count:
        return None
    severity: Severity = "info"
    if kind == "short" and count >= _MANY_CONTRADICTIONS * rows:
        severity = "critical" if count >= _MOSTLY_CONTRADICTIONS * rows else "warning"
    prompts = len(np.unique(table.prompt_N[flags]))
    evidence = {
        "kind": kind, "prompts": prompts, "rows": count, "of": rows, "share": count / rows,
        "training_lines": listed(table, flags), "pairs": _different_answers(table, flags),
    }  # fmt: skip
    words = f"{count} of {rows} training rows ({percent(count, rows)}) share their prompt with a row that has another answer"
    words += f" ({prompts} prompts)."
    if kind == "text":
        advice = "Nothing to do if all of these answers are good. If one of them is better, leave the others out."
        return Finding("inconsistent_answers", severity, 0.5, words, advice, evidence)
    change = Change("training_data", f"{prompts} prompts with several answers", "one answer each", "they contradict each other")
    advice = "Decide on one answer for each of these prompts. If a prompt lacks what its answer depends on, add it."
    # The contradiction is a fact; that only one of the answers can be right is not ("Suggest a name").
    return Finding("inconsistent_answers", severity, 0.8, words, advice, evidence, changes=(change,))


def _different_answers(table: Table, flags: Flags) -> list[list[int]]:
    """Return lines of rows with the same prompt and different answers, one pair a prompt."""
    seen: dict[int, int] = {}
    paired: dict[int, list[int]] = {}
    for place in np.flatnonzero(flags).tolist():
        prompt = int(table.prompt_N[place])
        before = seen.setdefault(prompt, place)
        if prompt not in paired and table.answer_N[before] != table.answer_N[place]:
            paired[prompt] = [int(table.lines_N[before]), int(table.lines_N[place])]
            if len(paired) == MAX_LISTED:
                break
    return list(paired.values())


def too_little_data(rows: int) -> Finding | None:
    """Say when there are too few rows to train on."""
    if rows >= FEW_TRAINING_ROWS:
        return None
    words = f"There are {rows} rows to train on: enough to try whether training works, seldom enough to learn more than these rows."
    advice = f"Collect at least {FEW_TRAINING_ROWS}, better some hundred rows. Until then train for few epochs, and compare with the base."
    change = Change("training_data", f"{rows} rows", f"at least {FEW_TRAINING_ROWS} rows", "so few rows are learned by heart")
    # 50 is a rule of thumb, also OpenAI's (50 to 100 well-made examples); no runs set it.
    return Finding("too_little_data", "warning", 0.8, words, advice, {"rows": rows, "recommended": FEW_TRAINING_ROWS}, changes=(change,))


# --- the validation file ---


def small_validation(num_rows: int, num_target_tokens: int | None = None) -> Finding | None:
    """Say what difference so many validation rows can show: two standard errors of an accuracy p, √(p(1 - p)/n), at p = 0.5.

    With the number of target tokens also what token accuracy can show, at best: tokens of one row are not independent of each other.
    """
    if num_rows >= SOME_VALIDATION_ROWS:
        return None
    smallest, needed = 100 / math.sqrt(num_rows), round((100 / _POINTS_WANTED) ** 2)
    evidence: dict[str, Any] = {"rows": num_rows, "smallest_difference_points": smallest, "rows_for_5_points": needed}
    words = f"{num_rows} validation rows can show a difference in accuracy of {smallest:.0f} points or more; smaller ones may be chance."
    if num_target_tokens:
        of_tokens = 100 / math.sqrt(num_target_tokens)
        evidence |= {"target_tokens": num_target_tokens, "smallest_token_difference_points": of_tokens}
        words += f" Token accuracy, over their {num_target_tokens} target tokens, shows {of_tokens:.1f} points at best."
    advice = f"To see {_POINTS_WANTED} points, validate on {needed} rows. Until then choose no checkpoint and no setting "
    advice += "by smaller differences than that."
    reason = f"{num_rows} rows do not tell less than {smallest:.0f} points from chance"
    change = Change("validation_data", f"{num_rows} rows", f"{needed} rows", reason)
    severity: Severity = "warning" if num_rows < FEW_VALIDATION_ROWS else "info"
    return Finding("small_validation", severity, 1.0, words, advice, evidence, changes=(change,))


def _leakage(train: Table, valid: Table, vocabulary: Vocabulary, beat: Callable[[], None]) -> list[Finding]:
    """Say which validation rows are in the training file: whole, with another answer, or lightly edited. Each counts in one of these."""
    whole = np.isin(valid.row_N, train.row_N) & valid.is_telling_N
    prompts, counts = np.unique(train.prompt_N, return_counts=True)
    own = prompts[(prompts != 0) & (counts <= max(_COMMON_ROWS, _COMMON_SHARE * len(train)))]
    prompt_only = np.isin(valid.prompt_N, own) & ~whole
    rest = np.flatnonzero(~whole & ~prompt_only)
    edited = copies.near(rest, valid, train, vocabulary, beat)
    looked_up = len(valid) - len(rest) + edited.looked_up
    found = [
        _leaked(train, valid, "exact", _pairs(np.flatnonzero(whole), valid.row_N, train.row_N), len(valid)),
        _leaked(train, valid, "prompt", _pairs(np.flatnonzero(prompt_only), valid.prompt_N, train.prompt_N), len(valid)),
        _leaked(train, valid, "near", edited.pairs, looked_up),
    ]
    return [finding for finding in found if finding is not None]


def _pairs(rows: Ints, keys: Keys, known: Keys) -> list[tuple[int, int]]:
    """Return (row, the first row of the other table with the same key)."""
    found, first_of = np.unique(known, return_index=True)
    return list(zip(rows.tolist(), first_of[np.searchsorted(found, keys[rows])].tolist(), strict=True))


_LEAKS = {
    "exact": ("are in the training file too, prompt and answer", "the score rewards knowing them by heart"),
    "prompt": ("have a prompt that is in the training file, with another answer there", "they are no new questions"),
    "near": ("are in the training file but for a few words", "the score rewards knowing them by heart"),
}


def _leaked(train: Table, valid: Table, kind: str, pairs: Sequence[tuple[int, int]], looked_up: int) -> Finding | None:
    count, rows = len(pairs), len(valid)
    if not count:
        return None
    what, why = _LEAKS[kind]
    is_many = count >= max(_MANY_LEAKED * looked_up, _FEWEST_EDITED if kind == "near" else 1)
    severity: Severity = ("critical" if is_many else "warning") if kind == "exact" else ("warning" if is_many else "info")
    lines = [[int(train.lines_N[there]), int(valid.lines_N[here])] for here, there in pairs[:MAX_LISTED]]
    evidence = {
        "kind": kind, "rows": count, "of": rows, "share": count / looked_up, "looked_at": looked_up, "pairs": lines,
        "training_lines": [line for line, _ in lines], "validation_lines": [line for _, line in lines],
    }  # fmt: skip
    if kind == "near":
        evidence["training_rows_looked_at"] = train.num_compared
    words = f"{count} of {looked_up} validation rows ({percent(count, looked_up)}) {what}"
    words += f"; the file has {rows}, and the others were not compared word by word." if looked_up < rows else "."
    advice = "Take these rows out of one of the two files, and divide data before it is copied or edited. "
    advice += "Until then the validation figures are better than they should be."
    change = Change("validation_data", f"{rows} rows, {count} of them in training", "rows that training has not seen", why)
    return Finding("leakage", severity, _NEAR_CONFIDENCE if kind == "near" else 1.0, words, advice, evidence, changes=(change,))


# --- what tokenizing found ---


def truncated_rows(role: Role, rows: int, of: int, lines: Sequence[int], max_length: int) -> Finding:
    """Say which of a file's rows were cut at the end, being longer than `max_length` tokens: `rows` of them, at `lines` the first."""
    words = f"are longer than max_length {max_length} tokens and were cut at the end."
    advice = "Raise max_length, shorten the prompts or divide the rows: a row that is cut teaches no ending, and the model may not stop."
    return _cut("truncated_rows", role, rows, of, lines, max_length, words, advice, "the ends of their answers are lost")


def no_target_rows(role: Role, rows: int, of: int, lines: Sequence[int], max_length: int) -> Finding:
    """Say which of a file's rows were left out, having no target token within `max_length`: `rows` of them, at `lines` the first."""
    words = f"have no target token within max_length {max_length} tokens and were left out."
    advice = "Raise max_length or shorten these prompts: they fill all of it, and their answers are never seen."
    return _cut("no_target_rows", role, rows, of, lines, max_length, words, advice, "they were left out")


def _cut(
    code: str, role: Role, rows: int, of: int, lines: Sequence[int], max_length: int, words: str, advice: str, reason: str
) -> Finding:  # fmt: skip
    evidence = {"rows": rows, "of": of, "share": rows / of, "max_length": max_length, f"{role}_lines": [*lines[:MAX_LISTED]]}
    words = f"{rows} of {of} {role} rows ({percent(rows, of)}) {words}"
    severity: Severity = "warning" if rows >= _MANY_CUT * of else "info"
    change = Change(f"{role}_data", f"{rows} rows too long for max_length {max_length}", "none", reason)
    return Finding(code, severity, 1.0, words, advice, evidence, changes=(change,))
