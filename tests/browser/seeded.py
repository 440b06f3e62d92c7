"""A server's data with a job in each state, written through the store as a worker writes it. No model is trained."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from typing import Any

from tunesmith.domain.jobs import Event, Job, JobError
from tunesmith.domain.runs import MetricPoint, RowLosses
from tunesmith.services import Context, files
from tunesmith.services import diagnoses as diagnosis
from tunesmith.services import jobs as job_services
from tunesmith.store import diagnoses, jobs, queue

from ..contract import serving
from ..contract.serving import BASE

ROWS = 40
#: As long as a name may be.
LONG = "a-name-that-takes-three-days-to-read-and-then-some-more-to-forget"[:64]


@dataclass(frozen=True)
class Jobs:
    """The ids of the jobs, by what they show."""

    succeeded: str
    overfit: str
    running: str
    paused: str
    failed: str
    cancelled: str
    queued: str
    validating: str
    training_file: str
    tuned: str

    def all(self) -> dict[str, str]:
        """Return the jobs by their state."""
        return {name: value for name, value in self.__dict__.items() if value.startswith("ftjob-")}


def upload(context: Context, filename: str = "train.jsonl", rows: int = ROWS) -> str:
    """Upload rows and return the file's id."""
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"Question {n}: how much is {n} + {n}?"},
                {"role": "assistant", "content": f"It is {2 * n}."},
            ]
        }
        for n in range(rows)
    ]
    with files.Upload(context) as incoming:
        incoming.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        return incoming.finish(filename=filename, purpose="fine-tune").id


def create(context: Context, **given: Any) -> Job:
    """Create a job."""
    return job_services.create(context, job_services.NewJob(**{"model": BASE} | given))


def curve(steps: int, total: int, *, overfits: bool = False, seed: int = 1, every: int = 10) -> list[MetricPoint]:
    """Return figures as a run has them, the base model's first."""
    draw = random.Random(seed)
    points = [MetricPoint(0, total, 0.0, full_valid_loss=2.41, full_valid_mean_token_accuracy=0.48)]
    for step in range(1, steps + 1):
        train = 0.25 + 2.1 * math.exp(-4 * step / total) + draw.gauss(0, 0.05)
        valid = 0.42 + 1.9 * math.exp(-4 * step / total) + (1.2 * max(0.0, step / total - 0.4) if overfits else 0)
        sampled, full = step % every == 0, step % max(1, total // 6) == 0 or step == total
        points.append(
            MetricPoint(
                step, total, 3 * step / total, train_loss=max(0.01, train), train_mean_token_accuracy=min(0.99, 0.95 - train / 5),
                learning_rate=2e-4 * (1 - step / total), grad_norm=abs(draw.gauss(1, 0.2)),
                tokens_seen=1_700 * step, tokens_per_second=812.5,
                valid_loss=valid + draw.gauss(0, 0.04) if sampled else None,
                valid_mean_token_accuracy=0.93 - valid / 5 if sampled else None,
                full_valid_loss=valid if full else None, full_valid_mean_token_accuracy=0.93 - valid / 5 if full else None,
            )
        )  # fmt: skip
    return points


def run(context: Context, points: list[MetricPoint], **given: Any) -> Job:
    """Create a job and run it as far as `points` go, diagnosed."""
    given.setdefault("training_file", upload(context))
    made = create(context, **given)
    while serving.validate(context).id != made.id:
        pass
    job = serving.begin(context)
    for start in range(0, len(points), 2_000):
        some = points[start : start + 2_000]
        jobs.record(context.db, job.id, job.fence, points=some, events=[point.event() for point in some])
    for point in points:
        if point.full_valid_loss is not None:
            losses = [point.full_valid_loss * (0.5 + line / ROWS) for line in range(1, ROWS + 1)]
            rows = RowLosses(point.step, range(1, ROWS + 1), [6] * ROWS, losses)
            diagnoses.record_row_losses(context.db, job.id, job.fence, rows.to_dict())
    serving.diagnose(context, job)
    return jobs.get(context.db, job.id)


def fill(context: Context) -> Jobs:
    """Fill an empty server."""
    training_file, validation_file = upload(context), upload(context, "valid.jsonl")
    both = {"training_file": training_file, "validation_file": validation_file}
    done = run(context, curve(300, 300), suffix="support", **both)
    serving.diagnose(context, done, final=True)
    done = serving.finish(context, done, (100, 200, 300))
    overfit = run(context, curve(240, 240, overfits=True, seed=2), suffix=LONG, **both, hyperparameters={"n_epochs": 9, "lora_rank": 32})
    serving.diagnose(context, overfit, final=True)
    overfit = serving.finish(context, overfit, (80, 160, 240))
    paused = run(context, curve(90, 300, seed=3), suffix="paused", **both)
    jobs.request_pause(context.db, paused.id)
    queue.release(context.db, paused.id, paused.fence)
    failed = run(context, curve(40, 300, seed=4), suffix="failed", **both)
    error = JobError("non_finite", "The training loss became NaN at step 41. Hint: lower learning_rate_multiplier to a third.")
    diagnosis.conclude(context.db, failed.id, failed.fence, broke_down=True)
    jobs.move(context.db, failed.id, failed.fence, "failed", events=[Event(error.message, "failed", level="error")], error=error)
    cancelled = create(context, suffix="cancelled", **both)
    jobs.request_cancel(context.db, cancelled.id)
    running = run(context, curve(120, 300, seed=5), suffix="running", **both)
    queued = [create(context, suffix=f"queued-{n}", **both) for n in range(2)]
    for _ in queued:
        serving.validate(context)
    validating = create(context, **both)
    return Jobs(
        succeeded=done.id, overfit=overfit.id, running=running.id, paused=paused.id, failed=failed.id, cancelled=cancelled.id,
        queued=queued[1].id, validating=validating.id, training_file=training_file, tuned=str(done.fine_tuned_model),
    )  # fmt: skip
