"""A job's diagnosis from what the store knows of it. Computed where numpy may be loaded: in the worker and on the command line."""

from __future__ import annotations

from dataclasses import replace

from tunesmith.diagnosis import report
from tunesmith.diagnosis.history import History
from tunesmith.domain import jobs as job_rules
from tunesmith.errors import InvalidRequest
from tunesmith.logs import runs as run_logs
from tunesmith.store import diagnoses, jobs, records
from tunesmith.store.database import Database


def history(db: Database, job_id: str) -> History:
    """Return a job's history so far. Raises: NotFound, InvalidRequest where it has no figures yet."""
    job = jobs.get(db, job_id)
    points = [point.to_dict() for point in records.points(db, job_id)]
    if not points:
        raise InvalidRequest(f"Job '{job_id}' is {job.status} and has no figures yet. Hint: look again after its first steps.")
    return run_logs.history(
        points,
        f"job '{job_id}'",
        resolved=job.resolved,
        row_losses=diagnoses.row_losses(db, job_id),
        data_findings=job.data_findings or (),
        events={event.key: event.data for event in records.events(db, job_id) if event.type == "message"},
        checkpoint_steps=[row.step for row in records.checkpoints(db, job_id)],
        finished=job.status in job_rules.TERMINAL,
        broke_down=job.error is not None and job.error.code == "non_finite",
    )


def record(db: Database, job_id: str, fence: int, found: History) -> str:
    """Store the diagnosis of a history and return its verdict. Raises: LeaseLost."""
    said = report.diagnose(found)
    diagnoses.record(db, job_id, fence, {"step": found.last_step, "final": found.finished} | said.to_dict())
    return said.verdict


def conclude(db: Database, job_id: str, fence: int, *, broke_down: bool = False) -> str | None:
    """Store the diagnosis of a job that ends now and return its verdict, or None for one without figures. Raises: LeaseLost."""
    try:
        found = history(db, job_id)
    except InvalidRequest:
        return None
    broken = found.last_step + 1 if broke_down else found.non_finite_step
    return record(db, job_id, fence, replace(found, finished=True, non_finite_step=broken))
