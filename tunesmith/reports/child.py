"""What the children have in common: an order in, findings out, a limit to their memory, a tokenizer without torch."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from tunesmith import processes
from tunesmith.errors import TunesmithError

#: Most errors of a file that are listed; all are counted.
MAX_LISTED = 100
_MAX_BYTES = 4 * 2**30


def obey(work: Callable[[dict[str, Any]], None]) -> None:
    """Do what was ordered. A child that needs too much memory ends, instead of harming who trains beside it."""
    processes.die_with_parent()
    resource.setrlimit(resource.RLIMIT_DATA, (_MAX_BYTES, _MAX_BYTES))
    try:
        work(orjson.loads(sys.argv[1]))
    except TunesmithError as error:
        say(error=error.message)


def say(**found: Any) -> None:
    """Tell the parent; each field stands until it is said again."""
    sys.stdout.buffer.write(orjson.dumps(found) + b"\n")
    sys.stdout.buffer.flush()


def listed(errors: list[tuple[int, str]]) -> list[dict[str, Any]]:
    """Return the first errors as they are sent."""
    return [{"line": line, "message": message} for line, message in errors[:MAX_LISTED]]


def tokenizer(directory: Path) -> Any:
    """Load a base's tokenizer. Raises: InvalidRequest."""
    # transformers then does not look for torch and is there after 1 s instead of 5 s; torch can no longer be imported in this process.
    sys.modules["torch"] = None  # type: ignore[assignment]
    from tunesmith.training.tokenizer import load_tokenizer  # noqa: PLC0415

    return load_tokenizer(directory)
