"""A first job: on the bundled example."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tunesmith.domain import example, models
from tunesmith.domain.jobs import Job
from tunesmith.errors import Unavailable
from tunesmith.services import Context, jobs
from tunesmith.services import files as file_services
from tunesmith.store import files


def create(context: Context) -> Job:
    """Create a job on the example, its files uploaded first where they are not here. Raises: Unavailable where they are not installed."""
    training, validation = (_uploaded(context, example.FOLDER / f"{name}.jsonl") for name in ("train", "valid"))
    new = jobs.NewJob(
        model=models.DEFAULT, training_file=training, validation_file=validation, suffix=example.SUFFIX, seed=example.SEED,
        hyperparameters=example.HYPERPARAMETERS,
    )  # fmt: skip
    return jobs.create(context, new)


def _uploaded(context: Context, path: Path) -> str:
    """Return the id of the file with the content of `path`."""
    if not path.is_file():
        raise Unavailable(f"The example's {path.name} is not installed here. Hint: it is in examples/support-triage of the repository.")
    content = path.read_bytes()
    known = files.find(context.db, sha256=hashlib.sha256(content).hexdigest(), purpose=file_services.FOR_TRAINING)
    if known is not None:
        return known.id
    with file_services.Upload(context) as upload:
        upload.write(content)
        return upload.finish(filename=path.name, purpose=file_services.FOR_TRAINING).id
