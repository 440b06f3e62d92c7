"""The trainer child: one attempt at a run. Knows no database; hears its order on stdin, speaks JSON lines on stdout.

The first line on stdin is the order, each later one a request (`{"request": "pause"}`). When stdin ends, so does this
process: whoever gave the order is gone.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import torch
import transformers

from tunesmith import processes
from tunesmith.domain.jobs import Event, Request
from tunesmith.domain.runs import Checkpoint, MetricPoint, RowLosses
from tunesmith.domain.specs import ResolvedSpec
from tunesmith.errors import TunesmithError
from tunesmith.training import loop

#: Inference on the same machine goes first.
_NICENESS = 10


class PipeSink:
    """Tells the worker everything, one JSON object a line, and hears its requests."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._request: Request = "run"

    def say(self, kind: str, content: Any) -> None:
        """Send one message."""
        self._out.write(json.dumps({kind: content}, allow_nan=False) + "\n")
        self._out.flush()

    def listen(self) -> None:
        """Follow stdin until it ends, then end the process; run in a thread."""
        for line in sys.stdin:
            self._request = json.loads(line)["request"]
        os._exit(1)

    def resolved(self, spec: ResolvedSpec) -> None:
        """Say what will run."""
        self.say("resolved", spec.to_dict())

    def event(self, event: Event) -> None:
        """Say a message."""
        self.say("event", {"message": event.message, "key": event.key, "level": event.level, "data": dict(event.data)})

    def metric(self, point: MetricPoint) -> None:
        """Say one step's figures."""
        self.say("metric", point.to_dict())

    def row_losses(self, losses: RowLosses) -> None:
        """Say each row's loss."""
        self.say("row_losses", losses.to_dict())

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Hand a durable checkpoint over; the worker moves it away."""
        self.say("checkpoint", asdict(checkpoint) | {"directory": str(checkpoint.directory)})

    def request(self) -> Request:
        """Say what the worker last asked."""
        return self._request


def main() -> None:
    """Run the order that stdin gives; the last line said is a result or an error."""
    processes.die_with_parent()
    processes.keep_freed_memory()
    os.nice(_NICENESS)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not be taken for a message
    sink = PipeSink(out)
    transformers.utils.logging.disable_progress_bar()
    try:
        order = _order(json.loads(sys.stdin.readline()))
        threading.Thread(target=sink.listen, daemon=True).start()
        sink.say("result", asdict(loop.train(order, sink)))
    except TunesmithError as error:
        sink.say("error", {"code": error.code or "training_failed", "message": error.message, "param": error.param})
    except Exception as error:  # noqa: BLE001 - the child's last word: the job must say why it failed
        traceback.print_exc()
        sink.say("error", _unforeseen(error))
    os._exit(0)  # no interpreter shutdown: a library's thread must not keep a finished child alive


def _order(given: dict[str, Any]) -> loop.Order:
    paths = {key: Path(value) if value else None for key, value in given.items() if key != "spec"}
    return loop.Order(spec=ResolvedSpec.from_dict(given["spec"]), **paths)  # type: ignore[arg-type]


def _unforeseen(error: Exception) -> dict[str, Any]:
    words = f"{type(error).__name__}: {error}"
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in words:
        advice = "The trainer ran out of memory. Hint: lower max_length, or use a machine with more memory."
        return {"code": "out_of_memory", "message": f"{advice} ({words})", "param": None}
    return {"code": "internal_error", "message": f"The trainer failed unexpectedly ({words}). Its log has the details.", "param": None}


if __name__ == "__main__":
    main()
