"""The objects of /api, ours: what the dashboard shows and OpenAI's API has no place for. TypeScript's types are made from these.

Knows the wire only; decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel

from tunesmith.api import schemas
from tunesmith.domain import jobs
from tunesmith.domain.findings import Severity
from tunesmith.store.overviews import Role

Value = int | float | bool | str | None


class FileRef(BaseModel):
    """A file as a job names it; `filename` and `bytes` are None once it is deleted."""

    id: str
    filename: str | None
    bytes: int | None


class JobOverview(BaseModel):
    """One line of the list of jobs. Losses are full validation losses, in nats per target token."""

    id: str
    status: jobs.Status
    model: str
    suffix: str | None
    fine_tuned_model: str | None
    created_at: int
    finished_at: int | None
    estimated_finish: int | None
    error: str | None
    #: 1 is next; None for a job that is not waiting.
    queue_position: int | None
    step: int | None
    total_steps: int | None
    base_loss: float | None
    loss: float | None
    #: [step, full validation loss], oldest first; step 0 is the base model.
    losses: list[tuple[int, float]]
    verdict: str | None
    severity: Severity | None


class JobOverviewList(BaseModel):
    """A page of jobs, newest first; `counts` has every status that any job has, whatever is filtered."""

    data: list[JobOverview]
    has_more: bool
    counts: Mapping[jobs.Status, int]


class Run(BaseModel):
    """A job with how its hyperparameters came about."""

    id: str
    status: jobs.Status
    asked: Mapping[str, Value]
    resolved: Mapping[str, Any] | None
    reasons: Mapping[str, str]
    plan: Mapping[str, Any] | None
    job: schemas.Job
    training_file: FileRef
    validation_file: FileRef | None
    #: What a client has asked of a running job and its worker has not done yet.
    request: jobs.Request
    queue_position: int | None


class MetricData(BaseModel):
    """One step's figures; those that were not computed are absent. Losses in nats per target token."""

    step: int
    total_steps: int
    epoch: float
    train_loss: float | None = None
    train_mean_token_accuracy: float | None = None
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None
    full_valid_loss: float | None = None
    full_valid_mean_token_accuracy: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens_seen: int = 0
    tokens_per_second: float | None = None


class Metric(BaseModel):
    """One step's figures under the job's gapless sequence number; `created_at` in Unix seconds."""

    seq: int
    created_at: float | None
    data: MetricData


class MetricList(BaseModel):
    """Figures, oldest first; `next` is the `after` that continues them."""

    object: Literal["list"] = "list"
    data: list[Metric]
    next: int
    has_more: bool


class StreamEvent(schemas.Event):
    """An event with its place in the job's sequence."""

    seq: int


class Change(BaseModel):
    """One change for the next run: `knob` is a hyperparameter, or "training_data" or "validation_data"."""

    knob: str
    before: Value
    after: Value
    reason: str


class Finding(BaseModel):
    """Something that curves or data show."""

    code: str
    severity: Severity
    confidence: float
    message: str
    advice: str
    steps: tuple[int, int] | None
    evidence: Mapping[str, Any]
    changes: list[Change]


class Score(BaseModel):
    """What to expect of a checkpoint on new data, with its 90 % interval."""

    name: str
    value: float
    low: float
    high: float


class CheckpointChoice(BaseModel):
    """Which checkpoint to use and why."""

    step: int
    reason: str
    score: Score | None


class RowLoss(BaseModel):
    """The loss of one row by its line in the file, in nats per target token; `base_loss` under the base model."""

    line: int
    loss: float
    base_loss: float | None = None
    target_tokens: int


class RowsWorthALook(BaseModel):
    """Single rows the model does badly on; empty where rows were not scored."""

    worst_validation: list[RowLoss] = []
    worse_than_base: list[RowLoss] = []
    worst_training: list[RowLoss] = []
    num_worse_than_base: int | None = None
    num_validation: int | None = None


class Diagnosis(BaseModel):
    """What happened in a job, why, and what to do next, as of `step`; final for a job that ended by itself."""

    id: str
    status: jobs.Status
    final: bool
    step: int
    verdict: str
    findings: list[Finding]
    checkpoint: CheckpointChoice | None
    next_hyperparameters: Mapping[str, Value]
    plots: Mapping[str, str]
    reading: str
    rows: RowsWorthALook
    cannot_tell: list[str]


class Streamed(BaseModel):
    """What the events of a job's stream carry, by their name."""

    metric: Metric
    event: StreamEvent
    job: Run
    diagnosis: Diagnosis


class UsedBy(BaseModel):
    """A job that names a file or model."""

    id: str
    status: jobs.Status
    role: Role


class FileOverview(schemas.File):
    """A file and the jobs that name it."""

    used_by: list[UsedBy]


class FileOverviewList(BaseModel):
    """A page of files, newest first."""

    data: list[FileOverview]
    has_more: bool


class ModelOverview(BaseModel):
    """A base, a fine-tuned model or one of its checkpoints, with where it comes from."""

    name: str
    kind: Literal["base", "lora", "full"]
    #: The base the weights go back to; a base names itself.
    base: str
    created_at: int
    job_id: str | None
    training_file: FileRef | None
    step: int | None
    is_checkpoint: bool
    #: On disk; None for a base not fetched yet and for weights that are gone.
    bytes: int | None
    used_by: list[UsedBy]


class ModelOverviewList(BaseModel):
    """All models: bases first, then fine-tuned ones, newest first, each followed by its checkpoints."""

    data: list[ModelOverview]


class HyperparameterInfo(BaseModel):
    """One row of the table of hyperparameters."""

    name: str
    kind: Literal["int", "float", "str", "bool"]
    help: str
    accepted: str
    default: Value
    choices: list[str]
    nullable: bool


class Estimate(BaseModel):
    """What a job will take, and what that is reckoned from. None where nothing is known to reckon from."""

    seconds: float | None
    seconds_basis: str
    memory_bytes: int | None
    memory_basis: str


class Resolution(BaseModel):
    """What a job would become if it were created now."""

    model: str
    resolved: Mapping[str, Value]
    reasons: Mapping[str, str]
    warnings: list[str]
    num_training: int
    num_validation: int
    total_steps: int
    estimate: Estimate


class LineError(BaseModel):
    """What is wrong with one line of a file (1 is the first), or with the whole file (None)."""

    line: int | None
    message: str


class TokenFigures(BaseModel):
    """How long the rows are under a model's template, in tokens; `of_rows` of `rows` were looked at, and counts are of those.

    `mean`, `median`, `p95`, `max` and the histogram are of whole rows, before those longer than `max_length` are cut.
    """

    of_rows: int
    rows: int
    #: Of one pass over all rows, cut where they are too long; scaled up where only some were looked at.
    total: int
    target: int
    mean: float
    median: int
    p95: int
    max: int
    #: Counts of rows between neighbouring edges.
    edges: list[int]
    counts: list[int]
    max_length: int
    truncated: int
    #: Left without a target token.
    dropped: int


class DataReport(BaseModel):
    """What is known of a training file so far; each one replaces the one before. `done` is on the last."""

    stage: Literal["errors", "sample", "exact"]
    done: bool
    #: Since the report was asked for.
    seconds: float
    format: str | None
    rows: int
    validation_rows: int | None
    errors: list[LineError]
    num_errors: int
    tokens: TokenFigures | None
    #: Duplicates, leakage, contradictions and the like, the gravest first; None until they were looked for.
    findings: list[Finding] | None
    #: Why something is missing that was asked for.
    notes: list[str]


class Span(BaseModel):
    """Neighbouring tokens that are all targets or all not, as text."""

    text: str
    is_target: bool
    tokens: int


class RenderedRow(BaseModel):
    """A row as the model will see it; `error` instead where it cannot be rendered."""

    line: int
    #: Up to `max_length` tokens.
    spans: list[Span]
    #: Before it was cut.
    num_tokens: int
    #: Of those that are left.
    num_targets: int
    truncated: bool
    error: str | None


class RenderedRows(BaseModel):
    """Some rows of a file, rendered."""

    data: list[RenderedRow]
    total: int
    max_length: int


class FileRow(BaseModel):
    """A line of a file; `data` is what it holds if it is a JSON object, else `error` says what is wrong."""

    line: int
    data: Mapping[str, Any] | None
    error: str | None


class FileRows(BaseModel):
    """Some lines of a file; fewer than were asked for where they are long. `total` counts all of it, blank ones at the end aside."""

    data: list[FileRow]
    total: int
