"""What an attempt may delete: what is its own or older, never what a later attempt wrote."""

from __future__ import annotations

from pathlib import Path

from tunesmith import services
from tunesmith.domain.jobs import Job
from tunesmith.domain.specs import TrainingSpec
from tunesmith.settings import Settings
from tunesmith.store import bases
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
