"""What an attempt may delete: what is its own or older, never what a later attempt wrote."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tunesmith import services
from tunesmith.domain import ids
from tunesmith.domain.jobs import Job
from tunesmith.domain.runs import MetricPoint
from tunesmith.domain.specs import ExecutionPlan, ResolvedSpec, TrainingSpec
from tunesmith.settings import Settings
from tunesmith.store import bases, files, jobs, queue, records
from tunesmith.training import defaults
from tunesmith.worker.attempt import Attempt


def test_an_attempt_that_wakes_up_late_deletes_nothing_newer(tiny: Path, tmp_path: Path) -> None:
    context = services.open(Settings(data_dir=tmp_path / "data", cache_dir=tmp_path / "cache"))
    resolved = defaults.resolve(TrainingSpec.ask("tiny", {}, "api"), bases.facts(tiny), defaults.DataFacts(40, 0))
    job = Job("ftjob-1", 0, "running", "tiny", "file-1", None, None, 7, {}, resolved=resolved.to_dict(), fence=2)
    attempt = Attempt(context, job)
    for name in ("attempt-1", "attempt-2", "attempt-3", "attempt-10", "checkpoints/step-000001-f1", "checkpoints/step-000005-f3"):
        (attempt.directory / name).mkdir(parents=True)
    attempt._delete_older(attempt.directory.glob("attempt-*"))
    attempt._delete_older(attempt.published.iterdir())
    context.close()
    assert sorted(path.name for path in attempt.directory.iterdir()) == ["attempt-10", "attempt-3", "checkpoints"]
    assert [path.name for path in attempt.published.iterdir()] == ["step-000005-f3"]


def test_a_trainer_killed_for_its_memory_is_given_less(tiny: Path, tmp_path: Path) -> None:
    """What the next attempt reads from the job: half the budget from the first step that is not done; none below the smallest."""
    context = services.open(Settings(data_dir=tmp_path / "data", cache_dir=tmp_path / "cache"))
    plan = ExecutionPlan("cpu", "float32", 1, 512, "any", "any")
    resolved = dataclasses.replace(
        defaults.resolve(TrainingSpec.ask("tiny", {}, "api"), bases.facts(tiny), defaults.DataFacts(40, 0)), plan=plan
    )
    files.create(context.db, files.FileRow("file-1", 2, 1, "train.jsonl", "fine-tune", "00"))
    job = jobs.create(
        context.db, Job(ids.new(ids.JOB), 0, "validating_files", "tiny", "file-1", None, None, 7, {}, resolved=resolved.to_dict())
    )
    claimed = queue.claim(context.db, "worker", ("validating_files",))
    assert claimed is not None
    jobs.move(context.db, job.id, claimed.fence, "queued", resolved=resolved.to_dict())
    jobs.move(context.db, job.id, claimed.fence, "running")
    # Before anything is known of the run, what was too large is the base model's evaluation.
    fresh = Attempt(context, jobs.get(context.db, job.id))
    assert fresh._halve_budget()
    cut = ResolvedSpec.from_dict(jobs.get(context.db, job.id).resolved).plan  # type: ignore[arg-type]
    assert cut is not None and cut.budget_at(0.5) == 256
    jobs.move(context.db, job.id, claimed.fence, "running", resolved=resolved.to_dict())
    jobs.record(context.db, job.id, claimed.fence, points=[MetricPoint(step, 40, 0.0) for step in range(4)])
    found = []
    while True:
        attempt = Attempt(context, jobs.get(context.db, job.id))
        if not attempt._halve_budget():
            break
        found.append(ResolvedSpec.from_dict(jobs.get(context.db, job.id).resolved).plan)  # type: ignore[arg-type]
    messages = [event.message for event in records.events(context.db, job.id) if (event.key or "").startswith("memory:")]
    context.close()
    assert [(p.budget_at(3), p.budget_at(4), p.budget_at(9)) for p in found if p] == [(512, 256, 256), (512, 128, 128)]
    assert "The trainer was killed because memory ran out; from step 4 on micro-batches have 256 tokens." in messages
