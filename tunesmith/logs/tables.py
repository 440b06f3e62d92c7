"""Tables of figures: CSV in its dialects, JSON lines, JSON lists, JSON columns. Knows the shapes, not what the figures mean.

What a column is called is in `logs.columns`, what its figures say in `logs.points`.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.diagnosis.history import History
from tunesmith.errors import InvalidRequest
from tunesmith.logs import columns, files, points

_DELIMITERS = ",;\t|"
#: Characters of the line with a CSV's names, or of one of the JSON lines.
_MAX_LINE = 2**20
#: Lines of comments before a CSV's names.
_MAX_COMMENTS = 1000


# ------------------------------------------------------------------ CSV


def suits_csv(text: str) -> bool:
    """Return whether the first line has the name of a series, and is no table of Markdown."""
    line, _ = _head(text)
    return not line.startswith("|") and any(columns.is_known(cell) for cell in re.split(f"[{_DELIMITERS}]", line))


def read_csv(path: Path, text: str) -> History:
    """Return the history of a CSV with named columns; the delimiter is a comma, semicolon, tab or bar.

    A last line that was cut off is left out. Raises: InvalidRequest naming the columns, or the line and what is no number in it.
    """
    where = repr(str(path))
    line, end = _head(text)
    delimiter = max(_DELIMITERS, key=line.count)
    try:
        names = [name.strip() for name in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])]
        chosen = columns.choose(names, where)
        columns.require(chosen, names, where)
        figures = _figures(text, end, delimiter, names, chosen, where)
    except csv.Error as error:
        raise InvalidRequest(f"{where} is no CSV that can be read: {error}. Hint: look for a quotation mark without its pair.") from None
    return points.history(figures, where)


def _head(text: str) -> tuple[str, int]:
    """Return the line with the names, and where it ends; comments go before it, and it may be one itself."""
    for match in itertools.islice(re.finditer(r"[^\r\n]+", text), _MAX_COMMENTS):
        if len(match[0]) > _MAX_LINE:
            break
        line = match[0].strip()
        names = line.lstrip("# ")
        if line.startswith("#") and any(columns.is_known(cell) for cell in re.split(f"[{_DELIMITERS}]", names)):
            return names, match.end()
        if line and not line.startswith("#") and not line.lower().startswith("sep="):  # a spreadsheet's word on its delimiter
            return line, match.end()
    return "", len(text)


def _figures(text: str, end: int, delimiter: str, names: list[str], chosen: Mapping[str, str], where: str) -> points.Figures:
    """Return each chosen column's numbers in the rows of `text` behind `end`."""
    position = {ours: names.index(name) for ours, name in chosen.items()}
    found: dict[str, list[float | None]] = {ours: [] for ours in chosen}
    before = text.count("\n", 0, end)
    cut = 0 if text.endswith(("\n", "\r")) else text.count("\n") + 1  # the line that may be cut off
    are_whole, num_rows = True, 0
    rows = csv.reader(io.StringIO(text[end:], newline=""), delimiter=delimiter, skipinitialspace=True)
    for row in rows:
        if not any(map(str.strip, row)) or row[0].lstrip().startswith("#") or [cell.strip() for cell in row] == names:
            continue
        line = before + rows.line_num
        if line == cut and len(row) < len(names) and are_whole:
            break
        are_whole &= len(row) >= len(names)
        num_rows += 1
        if num_rows > files.MAX_ROWS:
            raise InvalidRequest(f"{where} has over {files.MAX_ROWS:,} rows, the most that is read. Hint: keep every tenth.")
        try:
            numbers = _numbers(row, names, position, decimal_comma=delimiter != ",")
        except ValueError as error:
            if line == cut:
                break
            raise InvalidRequest(f"{where}, line {line}, {error}. Hint: leave a cell empty where nothing was computed.") from None
        for ours, value in numbers.items():
            found[ours].append(value)
    return found


def _numbers(row: list[str], names: list[str], position: Mapping[str, int], *, decimal_comma: bool) -> dict[str, float | None]:
    """Return a row's numbers. Raises: ValueError naming the column and what is no number."""
    found = {}
    for ours, at in position.items():
        cell = row[at] if at < len(row) else ""
        try:
            found[ours] = columns.number(cell, decimal_comma=decimal_comma)
        except ValueError:
            raise ValueError(f"column {names[at][:60]!r}: {cell[:40]!r} is no number") from None
    return found


# ------------------------------------------------------------------ JSON


def suits_json(text: str) -> bool:
    """Return whether the text begins as a JSON object or list does."""
    return text.lstrip()[:1] in ("{", "[")


def read_json(path: Path, text: str) -> History:
    """Return the history of JSON lines, a list of objects, or an object of lists.

    Events and checkpoints of OpenAI's API, saved as JSON, are such lists; their figures lie one level deeper.
    Raises: InvalidRequest for what is no JSON, or has no figures.
    """
    where = repr(str(path))
    first, _, rest = text.lstrip().partition("\n")
    if rest.strip() and _is_object(first):
        return history(lines(text, where), where)
    content = files.document(path, text)
    if isinstance(content, dict):
        content = _inner(content)
    if isinstance(content, dict):
        return _of_columns(content, where)
    return history([entry for entry in content if isinstance(entry, dict)], where)


def history(entries: Sequence[Mapping[str, Any]], where: str, *, by_trainer: bool = False, **facts: Any) -> History:
    """Return the history of objects with figures; what is no number counts as not computed.

    The summary that Hugging Face logs at the end (with `train_runtime`) is a mean over the run, not a point of it.
    """
    entries = [_figures_of(entry) for entry in entries if "train_runtime" not in entry]
    names = list(dict.fromkeys(name for entry in entries for name in entry))
    chosen = columns.choose(names, where)
    columns.require(chosen, names, where)
    figures = {ours: [_number(entry.get(name)) for entry in entries] for ours, name in chosen.items()}
    return points.history(figures, where, by_trainer=by_trainer, **facts)


def lines(text: str, where: str) -> list[dict[str, Any]]:
    """Return the objects of JSON lines; a last line that was cut off is left out.

    Raises: InvalidRequest naming the line that is no object.
    """
    entries: list[dict[str, Any]] = []
    rows = text.split("\n")
    for at, row in enumerate(rows, start=1):
        if not row.strip():
            continue
        try:
            entry = json.loads(row) if len(row) <= _MAX_LINE else None
        except (ValueError, RecursionError):
            if at == len(rows):
                break
            entry = None
        if not isinstance(entry, dict):
            raise InvalidRequest(f"{where}, line {at}, is no JSON object: {files.beginning(row)}.")
        if len(entries) == files.MAX_ROWS:
            raise InvalidRequest(f"{where} has over {files.MAX_ROWS:,} lines, the most that is read. Hint: keep every tenth.")
        entries.append(entry)
    return entries


def _is_object(line: str) -> bool:
    try:
        return len(line) <= _MAX_LINE and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _inner(content: dict[str, Any]) -> Any:
    """Return the list of objects, or the object of lists, that an object holds, where it holds just one; else itself."""
    inside = [value for value in content.values() if _has_entries(value) or (isinstance(value, dict) and _has_lists(value))]
    return inside[0] if len(inside) == 1 and not _has_lists(content) else content


def _has_entries(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(entry, dict) for entry in value)


def _has_lists(value: dict[str, Any]) -> bool:
    return any(isinstance(cells, list) and cells and not _has_entries(cells) for cells in value.values())


def _of_columns(content: dict[str, Any], where: str) -> History:
    """Return the history of an object of lists, such as Keras keeps; an object of numbers is one row."""
    cells = {name: value if isinstance(value, list) else [value] for name, value in content.items()}
    chosen = columns.choose(cells, where)
    columns.require(chosen, cells, where)
    lengths = {name: len(cells[name]) for name in chosen.values()}
    if len(set(lengths.values())) > 1:
        words = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise InvalidRequest(f"{where} has lists of different lengths: {words}. Hint: write null where nothing was computed.")
    return points.history({ours: [_number(cell) for cell in cells[name]] for ours, name in chosen.items()}, where)


def _figures_of(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the figures of an event (in its data) or a checkpoint (in its metrics) of OpenAI's API; else the entry itself."""
    if isinstance(entry.get("data"), dict):
        figures: dict[str, Any] = entry["data"]
        return figures
    if isinstance(entry.get("metrics"), dict):
        step = entry.get("step_number", entry.get("step"))
        return entry["metrics"] | ({} if step is None else {"step": step})  # type: ignore[no-any-return]
    return entry


def _number(value: Any) -> float | None:
    try:
        return columns.number(value)
    except ValueError:
        return None
