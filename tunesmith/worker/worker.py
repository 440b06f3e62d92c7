"""The worker's loop: validate new jobs in one thread, run queued ones in the main thread, one at a time."""

from __future__ import annotations

import logging
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType

from tunesmith import processes, services
from tunesmith.domain import datasets, findings, ids, specs
from tunesmith.domain.jobs import MAX_CRASHES, Event, Job, JobError
from tunesmith.errors import DatabaseUnavailable, LeaseLost, TunesmithError
from tunesmith.services import Context, bases
from tunesmith.services import data as data_service
from tunesmith.settings import Settings
from tunesmith.store import bases as base_store
from tunesmith.store import jobs as job_store
from tunesmith.store import queue as job_queue
from tunesmith.training import defaults
from tunesmith.worker.attempt import HEARTBEAT_SECONDS, Attempt

_log = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_SWEEP_SECONDS = 60.0


def main(settings: Settings, *, with_parent: bool = False) -> None:
    """Work until SIGTERM or SIGINT; the job in hand is then checkpointed and given back."""
    if with_parent:
        processes.die_with_parent(signal.SIGTERM)
    context = services.open(settings)
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    worker = Worker(context, stopping)
    validator = threading.Thread(target=worker.validate_jobs, name="validator")
    validator.start()
    try:
        worker.run_jobs()
    finally:
        stopping.set()
        validator.join()
        context.close()


class Worker:
    """One worker process's two loops."""

    def __init__(self, context: Context, stopping: threading.Event) -> None:
        self.context, self.stopping = context, stopping
        self.id = ids.new(ids.WORKER, 12)
        self._sweep_at = 0.0

    def run_jobs(self) -> None:
        """Claim and run queued jobs until stopped."""
        while not self.stopping.is_set():
            try:
                job = job_queue.claim(self.context.db, self.id)
                if job is not None:
                    self._run(job)
                elif time.monotonic() >= self._sweep_at:
                    self._sweep()
                else:
                    self.stopping.wait(_POLL_SECONDS)
            except TunesmithError as error:  # the database is away; the job, if any, is claimed again when its lease ends
                _log.error("%s", error.message)
                self.stopping.wait(_POLL_SECONDS)

    def _run(self, job: Job) -> None:
        try:
            Attempt(self.context, job).run(self.stopping)
        except LeaseLost as lost:
            _log.info("%s", lost.message)
        except DatabaseUnavailable:
            raise
        except TunesmithError as error:
            self._fail(job, error)
        except Exception as error:  # noqa: BLE001 - a fault around one job must not end the worker
            _log.exception("job %s", job.id)
            self._fail(job, TunesmithError(f"The worker failed unexpectedly ({type(error).__name__}: {error}).", code="internal_error"))

    def validate_jobs(self) -> None:
        """Claim and validate new jobs until stopped."""
        while not self.stopping.is_set():
            try:
                job = job_queue.claim(self.context.db, self.id, statuses=("validating_files",))
                if job is None:
                    self.stopping.wait(_POLL_SECONDS)
                else:
                    self._validate(job)
            except TunesmithError as error:
                _log.error("%s", error.message)
                self.stopping.wait(_POLL_SECONDS)

    def _validate(self, job: Job) -> None:
        try:
            if job.crashes >= MAX_CRASHES:
                raise TunesmithError(f"Validation of the files died {job.crashes} times.", code="validation_crashed")
            validate(self.context, job, self.stopping)
        except _Stopping:
            job_queue.release(self.context.db, job.id, job.fence)
        except LeaseLost as lost:
            _log.info("%s", lost.message)
        except DatabaseUnavailable:
            raise
        except TunesmithError as error:
            self._fail(job, error)
        except Exception as error:  # noqa: BLE001 - as above
            _log.exception("job %s", job.id)
            self._fail(job, TunesmithError(f"Validation failed unexpectedly ({type(error).__name__}: {error}).", code="internal_error"))

    def _fail(self, job: Job, error: TunesmithError) -> None:
        event = Event(f"The job failed: {error.message}", key="failed", level="error")
        reason = JobError(error.code or "invalid_request", error.message, error.param)
        try:
            job_store.move(self.context.db, job.id, job.fence, "failed", error=reason, events=[event])
        except LeaseLost:
            pass

    def _sweep(self) -> None:
        """Delete what jobs that ended without a model left on disk; once a minute, when there is nothing else to do."""
        self._sweep_at = time.monotonic() + _SWEEP_SECONDS
        for directory in (self.context.settings.data_dir / "jobs").glob("ftjob-*"):
            try:
                over = job_store.get(self.context.db, directory.name).status in ("failed", "cancelled")
            except TunesmithError:
                continue
            if over:
                for leftover in (directory / "checkpoints", *directory.glob("attempt-*")):
                    shutil.rmtree(leftover, ignore_errors=True)


class _Stopping(Exception):
    """The worker is to end; whoever claims the job next validates it from the start."""


def validate(context: Context, job: Job, stopping: threading.Event) -> None:
    """Check a job's files whole, examine what they hold, resolve the spec, and queue the job.

    Raises: DataError and InvalidRequest, for the job to fail with; LeaseLost.
    """
    db = context.db

    def beat() -> None:
        if stopping.is_set():
            raise _Stopping
        job_queue.heartbeat(db, job.id, job.fence)

    paced = _paced(beat)
    files = f"training file: {job.training_file}" + (f" and validation file: {job.validation_file}" if job.validation_file else "")
    job_store.record(db, job.id, job.fence, events=[Event(f"Validating {files}", key="validating")])
    with context.blobs.open(job.training_file) as file:
        training = datasets.check(_beating(file, paced), "training")
    num_validation = 0
    if job.validation_file:
        with context.blobs.open(job.validation_file) as file:
            num_validation = datasets.check(_beating(file, paced), "validation").num_examples

    start = bases.start(context, job.model, beat)
    facts = base_store.facts(start.base)
    adapter = defaults.AdapterFacts(job.model, start.adapter_rank, start.adapter_alpha) if start.adapter else None
    spec = specs.TrainingSpec.ask(start.base_name, job.asked, "api")
    resolved = defaults.resolve(spec, facts, defaults.DataFacts(training.num_examples, num_validation), adapter, seed=job.seed)
    events = [Event(words, key=f"warning:{n}", level="warn") for n, words in enumerate(defaults.warnings(resolved, facts))]
    other = context.blobs.path(job.validation_file) if job.validation_file else None
    found = data_service.examine(context.blobs.path(job.training_file), other, split=resolved.training_split, beat=paced)
    events += findings.data_events(found)
    events.append(Event("Files validated, moving job to queued state", key="validated"))
    job_store.move(
        db, job.id, job.fence, "queued", events=events, crashes=0,
        resolved=resolved.to_dict(), data_findings=[finding.to_dict() for finding in found],
    )  # fmt: skip


def _paced(beat: Callable[[], None]) -> Callable[[], None]:
    """Return a function that may be called all the time, and beats as often as is due."""
    due = time.monotonic() + HEARTBEAT_SECONDS

    def paced() -> None:
        nonlocal due
        if time.monotonic() > due:
            beat()
            due = time.monotonic() + HEARTBEAT_SECONDS

    return paced


def _beating(lines: Iterable[bytes], paced: Callable[[], None]) -> Iterator[bytes]:
    """Yield lines, keeping the lease alive meanwhile."""
    for line in lines:
        paced()
        yield line
