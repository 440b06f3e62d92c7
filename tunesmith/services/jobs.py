"""Creating a job, and reading off it what was asked and what it became. What a worker does with it is not known here."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tunesmith.domain import ids
from tunesmith.domain.jobs import Job
from tunesmith.domain.specs import AUTO, TrainingSpec, check_together
from tunesmith.errors import FileNotFound, InvalidRequest, ModelNotFound
from tunesmith.services import Context
from tunesmith.services import files as file_services
from tunesmith.services import models as model_services
from tunesmith.store import bases, files, jobs

#: The hyperparameters that every job shows, OpenAI's.
STANDARD = ("n_epochs", "batch_size", "learning_rate_multiplier")
#: How long a request that is sent again finds the job it made the first time.
RETRY_SECONDS = 600


@dataclass(frozen=True)
class NewJob:
    """What a client asks for. `prefix` is where in its request the hyperparameters were, for errors."""

    model: str
    training_file: str
    validation_file: str | None = None
    suffix: str | None = None
    seed: int | None = None
    hyperparameters: Mapping[str, Any] | None = None
    metadata: Mapping[str, str] | None = None
    prefix: str = "method.supervised.hyperparameters."


def create(context: Context, new: NewJob, *, retried: bool = False) -> Job:
    """Check what is cheap to check, store the job and return it; its files are validated by a worker.

    `retried`: the client says that it sends this request again; then the job it made before is returned, if there is one.
    Raises: InvalidRequest with the parameter that is wrong.
    """
    digest = hashlib.sha256(json.dumps(asdict(new), sort_keys=True).encode()).hexdigest()
    if retried:
        known = jobs.find_by_request_hash(context.db, digest, time.time() - RETRY_SECONDS)
        if known is not None:
            return known
    spec, seed = check(context, new)
    job = Job(
        id=ids.new(ids.JOB), created_at=0, status="validating_files", model=spec.model, training_file=new.training_file,
        validation_file=new.validation_file, suffix=new.suffix, seed=seed, asked=dict(spec.asked), metadata=new.metadata,
    )  # fmt: skip
    return jobs.create(context.db, job, request_hash=digest)


def check(context: Context, new: NewJob) -> tuple[TrainingSpec, int]:
    """Check what is cheap to check, and return what is asked and the seed. Raises: InvalidRequest with the parameter that is wrong."""
    spec = TrainingSpec.ask(_trainable(context, new.model), new.hyperparameters or {}, "api", prefix=new.prefix)
    check_together(spec.values, spec.asked, has_validation=new.validation_file is not None, prefix=new.prefix)
    for param in ("training_file", "validation_file"):
        check_file(context, getattr(new, param), param)
    if new.suffix is not None and (":" in new.suffix or "/" in new.suffix):
        raise InvalidRequest(f"Invalid value for 'suffix': {new.suffix!r}. ':' and '/' are not accepted in it.", param="suffix")
    return spec, _seed(new, spec)


def hyperparameters(job: Job) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return OpenAI's three, and these with every other that was asked: "auto" until resolved.

    One that does not limit the run (n_epochs null beside n_steps) is left out of the three, where no null is allowed.
    """
    known = dict(job.resolved or job.asked)
    standard = {name: known.get(name, AUTO) for name in STANDARD}
    shown = {name: value for name, value in standard.items() if value is not None}
    return shown, shown | {name: known.get(name) for name in job.asked if name not in STANDARD}


def _trainable(context: Context, name: str) -> str:
    try:
        return model_services.canonical(context, name)
    except ModelNotFound as error:
        words = f"Model {name} is not available for fine-tuning or does not exist. Bases here: {_bases(context)}."
        raise InvalidRequest(words, param="model", code="model_not_available") from error


def _bases(context: Context) -> str:
    return ", ".join([*bases.names(context.settings.allowed_models), *context.settings.model_aliases])


def check_file(context: Context, file_id: str | None, param: str) -> None:
    """Raises: InvalidRequest naming `param` for a file that is not there or not for training."""
    if file_id is None:
        return
    try:
        purpose = files.get(context.db, file_id).purpose
    except FileNotFound as error:
        raise InvalidRequest(f"No such File object: {file_id}. Hint: upload it first, with purpose 'fine-tune'.", param=param) from error
    if purpose != file_services.FOR_TRAINING:
        words = f"File {file_id} has purpose '{purpose}'; expected 'fine-tune'. Hint: upload it again with that purpose."
        raise InvalidRequest(words, param=param)


def _seed(new: NewJob, spec: TrainingSpec) -> int:
    """Return the seed that was asked for, as a hyperparameter or beside them, or one drawn now."""
    among = spec.asked.get("seed", AUTO)
    if isinstance(among, int):
        if new.seed not in (None, among):
            raise InvalidRequest(f"'seed' is {new.seed}, but the hyperparameter 'seed' is {among}. Hint: give only one.", param="seed")
        return among
    return random.SystemRandom().randrange(2**31) if new.seed is None else new.seed
