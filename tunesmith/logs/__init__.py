"""Training logs that others wrote, and our own: `read` turns any of them into the history that a diagnosis takes.

`FORMATS` lists what can be read, in the order in which it is tried; a module beside this one reads each. What a log does not say stays
unknown, and what could mean two things is refused, not guessed. Knows no torch, no store, no job.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tunesmith.diagnosis.history import History
from tunesmith.errors import InvalidRequest
from tunesmith.logs import cards, columns, files, runs, tables, trainer


@dataclass(frozen=True)
class Format:
    """One kind of log. `names` are the files that hold it in a folder; `*` stands for a number, and the highest is taken.

    `suits` says whether a file's text looks like one; `read` takes the file and its text and raises InvalidRequest.
    """

    what: str
    names: tuple[str, ...]
    suits: Callable[[str], bool]
    read: Callable[[Path, str], History]


FORMATS: tuple[Format, ...] = (
    Format("a run folder of Tunesmith (spec.json, metrics.jsonl)", ("spec.json",), runs.suits, runs.read),
    Format("a Hugging Face trainer_state.json", ("trainer_state.json", "checkpoint-*/trainer_state.json"), trainer.suits, trainer.read),
    Format("JSON lines, or a JSON list, with a step's figures each", ("metrics.jsonl",), tables.suits_json, tables.read_json),
    Format(
        "a CSV with named columns, such as OpenAI's step_metrics.csv (also in base64) and Azure's results.csv",
        ("step_metrics.csv", "results.csv", "compiled_results.csv", "metrics.csv"),
        tables.suits_csv,
        tables.read_csv,
    ),
    Format("a model card with a table of training results", ("README.md",), cards.suits, cards.read),
)


def read(path: Path) -> History:
    """Return the history that a log holds; `path` is a file or a folder.

    Raises: InvalidRequest that names what was found and what was looked for.
    """
    path = Path(path)
    try:
        candidates = _inside(path) if files.is_folder(path) else ((form, path) for form in FORMATS)
        text, of = "", None
        for form, file in candidates:
            if file != of:
                text, of = files.text(file), file
            if form.suits(text):
                return form.read(file, text)
        raise InvalidRequest(f"{str(path)!r} is no training log: {_found(path, text)}. {_looked_for()}")
    except OSError as error:
        raise InvalidRequest(f"{str(path)!r} cannot be read: {error}.") from None


def _inside(folder: Path) -> Iterator[tuple[Format, Path]]:
    """Yield the files of a folder that may be a log, those first that say the most about a run."""
    for form in FORMATS:
        for name in form.names:
            if found := files.newest(folder, name):
                yield form, found


def _found(path: Path, text: str) -> str:
    if not files.is_folder(path):
        return f"it begins with {files.beginning(text)}"
    names = ", ".join(repr(name) for name in files.listing(path))
    return f"the folder has {names}" if names else "the folder is empty"


def _looked_for() -> str:
    kinds = "; ".join(form.what for form in FORMATS)
    return f"Looked for: {kinds}. Hint: a CSV with some of the columns {columns.EXAMPLE} always works."
