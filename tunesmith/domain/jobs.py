"""A job, its status and the legal moves between statuses, and its events. Knows no database and no wire."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
Level = Literal["info", "warn", "error"]
Request = Literal["run", "pause", "cancel"]

#: Where a job may go from each status. A terminal status leads nowhere.
MOVES: Mapping[Status, frozenset[Status]] = {
    "validating_files": frozenset({"queued", "failed", "cancelled"}),
    "queued": frozenset({"running", "paused", "failed", "cancelled"}),
    "running": frozenset({"queued", "paused", "succeeded", "failed", "cancelled"}),
    "paused": frozenset({"queued", "cancelled"}),
    "succeeded": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}
TERMINAL: frozenset[Status] = frozenset(status for status, moves in MOVES.items() if not moves)

#: Crashes of a run with no new checkpoint between them after which the job is given up.
MAX_CRASHES = 3


@dataclass(frozen=True)
class JobError:
    """Why a job failed, as the API shows it."""

    code: str
    message: str
    param: str | None = None


@dataclass(frozen=True)
class Job:
    """One fine-tuning job as the store remembers it. Times are Unix seconds."""

    id: str
    created_at: int
    status: Status
    #: The base, fine-tuned model or checkpoint training starts from (aliases already resolved).
    model: str
    training_file: str
    validation_file: str | None
    suffix: str | None
    seed: int
    #: What was asked: the keys of the request's hyperparameters, nothing filled in.
    asked: Mapping[str, Any]
    #: `ResolvedSpec.to_dict()` once the files are validated.
    resolved: Mapping[str, Any] | None = None
    #: `Finding.to_dict()` of what the validation of the files found in the data.
    data_findings: Sequence[Mapping[str, Any]] | None = None
    metadata: Mapping[str, str] | None = None
    finished_at: int | None = None
    fine_tuned_model: str | None = None
    trained_tokens: int | None = None
    result_files: tuple[str, ...] = ()
    error: JobError | None = None
    estimated_finish: int | None = None
    #: What a client last asked of a job that a worker holds: go on, pause or cancel.
    request: Request = "run"
    #: Grows by one with each claim; every write of an attempt must carry the fence it was given.
    fence: int = 0
    crashes: int = 0
    last_seq: int = 0


@dataclass(frozen=True)
class Event:
    """One line of a job's log. `key` makes it unique in its job, so that a replay does not say it twice."""

    message: str
    key: str
    level: Level = "info"
    type: Literal["message", "metrics"] = "message"
    data: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""
    job_id: str = ""
    created_at: int = 0
    seq: int = 0
