"""The objects of files, fine-tuning and models on the wire, in OpenAI's names. Requests are strict, responses exact.

Knows the domain's and the store's records, to be made from them; decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tunesmith.domain import jobs
from tunesmith.services import jobs as job_services
from tunesmith.store import files as file_store
from tunesmith.store import jobs as job_store

#: Most pairs of metadata that an object may have.
MAX_METADATA = 16


class Strict(BaseModel):
    """A request object: no unknown keys, no silent conversions ("3" is not 3)."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Ignored(BaseModel):
    """A sub-object of a method that was not chosen; OpenAI's own clients send them along."""

    model_config = ConfigDict(extra="ignore")


class Supervised(Strict):
    """The supervised method's configuration; names and ranges of the hyperparameters are checked by the domain's table."""

    hyperparameters: dict[str, Any] | None = None


class Method(Strict):
    """How to fine-tune."""

    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: Supervised | None = None
    dpo: Ignored | None = None
    reinforcement: Ignored | None = None


class CreateJob(Strict):
    """The body of POST /v1/fine_tuning/jobs."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    training_file: Annotated[str, Field(min_length=1, max_length=512)]
    validation_file: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    suffix: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    method: Method | None = None
    hyperparameters: dict[str, Any] | None = None
    integrations: list[Any] | None = None
    metadata: Annotated[
        dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None, Field(max_length=MAX_METADATA)
    ] = None


class File(BaseModel):
    """OpenAI's File. Keys that have no value are left out: its schema allows no null here."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: str
    expires_at: int | None = None

    @classmethod
    def of(cls, row: file_store.FileRow) -> File:
        """Show a stored file."""
        return cls(
            id=row.id, bytes=row.bytes, created_at=row.created_at, filename=row.filename,
            purpose=row.purpose, status=row.status, expires_at=row.expires_at,
        )  # fmt: skip


class FileList(BaseModel):
    """A page of files; `first_id` and `last_id` of an empty one are empty strings, for its schema allows no null."""

    object: Literal["list"] = "list"
    data: list[File]
    first_id: str
    last_id: str
    has_more: bool


class Deleted(BaseModel):
    """What deleting a file or model answers."""

    id: str
    object: Literal["file", "model"]
    deleted: Literal[True] = True


class Model(BaseModel):
    """OpenAI's Model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(BaseModel):
    """All models; not paged."""

    object: Literal["list"] = "list"
    data: list[Model]


class JobError(BaseModel):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class Job(BaseModel):
    """OpenAI's FineTuningJob with the keys that its live API sends."""

    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    id: str
    model: str
    created_at: int
    finished_at: int | None
    fine_tuned_model: str | None
    organization_id: str
    result_files: Sequence[str]
    status: jobs.Status
    validation_file: str | None
    training_file: str
    hyperparameters: Mapping[str, Any]
    trained_tokens: int | None
    error: JobError | None
    user_provided_suffix: str | None
    seed: int
    estimated_finish: int | None
    integrations: list[Any] = []
    metadata: Mapping[str, str] | None
    usage_metrics: None = None
    shared_with_openai: bool = False
    method: Mapping[str, Any]

    @classmethod
    def of(cls, job: jobs.Job, organization_id: str) -> Job:
        """Show a stored job."""
        standard, every = job_services.hyperparameters(job)
        error = None if job.error is None else JobError(code=job.error.code, message=job.error.message, param=job.error.param)
        return cls(
            id=job.id, model=job.model, created_at=job.created_at, finished_at=job.finished_at,
            fine_tuned_model=job.fine_tuned_model, organization_id=organization_id, result_files=job.result_files,
            status=job.status, validation_file=job.validation_file, training_file=job.training_file,
            hyperparameters=standard, trained_tokens=job.trained_tokens, error=error, user_provided_suffix=job.suffix,
            seed=job.seed, estimated_finish=job.estimated_finish, metadata=job.metadata,
            method={"type": "supervised", "supervised": {"hyperparameters": every}},
        )  # fmt: skip


class JobList(BaseModel):
    """A page of jobs, newest first."""

    object: Literal["list"] = "list"
    data: list[Job]
    has_more: bool


class Event(BaseModel):
    """OpenAI's FineTuningJobEvent."""

    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    id: str
    created_at: int
    level: jobs.Level
    message: str
    type: Literal["message", "metrics"]
    data: Mapping[str, Any]

    @classmethod
    def of(cls, event: jobs.Event) -> Event:
        """Show a stored event."""
        return cls(id=event.id, created_at=event.created_at, level=event.level, message=event.message, type=event.type, data=event.data)


class EventList(BaseModel):
    """A page of events, newest first."""

    object: Literal["list"] = "list"
    data: list[Event]
    has_more: bool


class Checkpoint(BaseModel):
    """OpenAI's FineTuningJobCheckpoint."""

    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    id: str
    created_at: int
    fine_tuned_model_checkpoint: str
    step_number: int
    metrics: Mapping[str, float]
    fine_tuning_job_id: str

    @classmethod
    def of(cls, row: job_store.CheckpointRow) -> Checkpoint:
        """Show a listed checkpoint."""
        assert row.name is not None
        return cls(
            id=row.id, created_at=row.created_at, fine_tuned_model_checkpoint=row.name, step_number=row.step,
            metrics={"step": row.step} | dict(row.metrics), fine_tuning_job_id=row.job_id,
        )  # fmt: skip


class CheckpointList(BaseModel):
    """A page of checkpoints, highest step first."""

    object: Literal["list"] = "list"
    data: list[Checkpoint]
    first_id: str | None
    last_id: str | None
    has_more: bool
