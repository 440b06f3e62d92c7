"""One attempt at a job's run: start the trainer child, store what it says under the fence, publish what it wrote.

The child writes only under `attempt-<fence>/`. What it hands over is verified, moved to `checkpoints/` under a name that
carries the fence, and only then known to the store, so nothing a superseded attempt does can be mistaken for the job's.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import queue
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tunesmith import hardware, processes
from tunesmith.diagnosis.watch import Watch
from tunesmith.domain import ids, models, runs
from tunesmith.domain.jobs import MAX_CRASHES, Event, Job, JobError, Request
from tunesmith.domain.runs import Checkpoint, MetricPoint
from tunesmith.domain.specs import ResolvedSpec
from tunesmith.errors import CheckpointDamaged, InvalidRequest, LeaseLost, TunesmithError
from tunesmith.services import Context, bases, diagnoses
from tunesmith.store import diagnoses as diagnosis_store
from tunesmith.store import jobs as job_store
from tunesmith.store import queue as job_queue
from tunesmith.store import records
from tunesmith.store.files import FileRow
from tunesmith.store.jobs import CheckpointRow
from tunesmith.store.models import ModelRow
from tunesmith.training import checkpoints

_log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 1.0
#: What the child says is stored at most this often.
_FLUSH_SECONDS = 0.3
_ESTIMATE_SECONDS = 10.0
#: How long a child may take to checkpoint after it was asked to stop.
STOP_SECONDS = 25.0


class Attempt:
    """Supervises one trainer child until it ends, the lease is lost, or the worker must stop."""

    def __init__(self, context: Context, job: Job) -> None:
        assert job.resolved is not None
        self.context, self.job = context, job
        self.spec = ResolvedSpec.from_dict(job.resolved)
        self.directory = context.settings.data_dir / "jobs" / job.id
        self.scratch = self.directory / f"attempt-{job.fence}"
        self.published = self.directory / "checkpoints"
        self._events: list[Event] = []
        self._points: list[MetricPoint] = []
        self._said: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._estimated_at = 0.0
        self._started_at = time.monotonic()
        self._first_step: int | None = None
        self._killed_to_pause = False
        self._watch = Watch()
        self._oom_kills = hardware.oom_kills()

    def run(self, stopping: threading.Event) -> None:
        """Run to the end of the attempt. Call from the process's main thread (the child dies with it)."""
        job, db = self.job, self.context.db
        if job.crashes >= MAX_CRASHES:
            words = f"The trainer died {job.crashes} times with no new checkpoint in between; its log is in the job's directory."
            self._fail({"code": "training_crashed", "message": words, "param": None})
            return
        child = None
        try:
            job_store.move(db, job.id, job.fence, "running", events=[Event("Fine-tuning job started", key="started")])
            child = self._spawn()
            self._supervise(child, stopping)
        except LeaseLost as lost:
            _log.info("%s", lost.message)
            self._clean_up_if_over()
        finally:
            if child is not None:
                processes.kill_group(child)
                child.wait()
            shutil.rmtree(self.scratch, ignore_errors=True)

    # --- the child ---

    def _spawn(self) -> subprocess.Popen[bytes]:
        context, job = self.context, self.job
        start = bases.start(context, job.model, self._keep_lease)
        self.published.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._beat()  # whoever lost the lease meanwhile must not touch what is on disk
        self._delete_older(self.directory.glob("attempt-*"))
        self.scratch.mkdir(mode=0o700)
        order = {
            "spec": self.spec.to_dict(),
            "base": str(start.base),
            "adapter": str(start.adapter) if start.adapter else None,
            "training_file": str(context.blobs.path(job.training_file)),
            "validation_file": str(context.blobs.path(job.validation_file)) if job.validation_file else None,
            "directory": str(self.scratch),
            "resume": self._resume_from(),
        }
        environment = processes.COMPUTE_ENVIRONMENT | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
        with (self.directory / "log.txt").open("ab") as log:
            child = processes.spawn(
                "tunesmith.worker.trainer", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, environment=environment
            )
        self._tell(child, order)
        threading.Thread(target=self._listen, args=(child,), daemon=True).start()
        return child

    def _resume_from(self) -> str | None:
        """Return the newest published checkpoint that is whole."""
        for row in reversed(records.checkpoints(self.context.db, self.job.id)):
            directory = self.context.settings.data_dir / row.directory
            try:
                checkpoints.verify(directory)
            except CheckpointDamaged as damaged:
                words = f"{damaged.message} The one before it is used."
                self._events.append(Event(words, key=f"damaged:{row.step}:{self.job.fence}", level="warn"))
                continue
            return str(directory)
        return None

    def _listen(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stdout is not None
        for line in child.stdout:
            try:
                self._said.put(json.loads(line))
            except ValueError:  # a line cut off by the child's end
                break
        self._said.put(None)

    def _tell(self, child: subprocess.Popen[bytes], content: Mapping[str, Any]) -> None:
        assert child.stdin is not None
        try:
            child.stdin.write(json.dumps(content).encode() + b"\n")
            child.stdin.flush()
        except BrokenPipeError:  # it is dead already; its silence will tell
            pass

    # --- supervision ---

    def _supervise(self, child: subprocess.Popen[bytes], stopping: threading.Event) -> None:
        asked: Request = "run"
        asked_at = 0.0
        beat_at = flush_at = 0.0
        while True:
            now = time.monotonic()
            if now >= beat_at:
                request = self._beat()
                if stopping.is_set():
                    request = "pause"
                beat_at = now + HEARTBEAT_SECONDS
                if request != asked:
                    self._tell(child, {"request": request})
                    asked, asked_at = request, now
            if asked == "pause" and now - asked_at > STOP_SECONDS:
                self._killed_to_pause = True  # it is loading, or stuck; the newest checkpoint stands
                processes.kill_group(child)
            try:
                message = self._said.get(timeout=max(0.05, min(beat_at, flush_at if self._points else beat_at) - now))
            except queue.Empty:
                message = {}
            if message is None:
                self._end_without_last_word(child, stopping)
                return
            if self._hear(message, stopping):
                return
            if self._points and time.monotonic() >= flush_at:
                self._flush()
                flush_at = time.monotonic() + _FLUSH_SECONDS

    def _beat(self) -> Request:
        return job_queue.heartbeat(self.context.db, self.job.id, self.job.fence)

    def _keep_lease(self) -> None:
        self._beat()

    def _hear(self, message: Mapping[str, Any], stopping: threading.Event) -> bool:
        """Act on one message of the child; return whether it was its last."""
        for kind, content in message.items():
            if kind == "resolved":
                self.spec = ResolvedSpec.from_dict(content)
                job_store.move(self.context.db, self.job.id, self.job.fence, "running", resolved=content)
            elif kind == "event":
                self._events.append(Event(**content))
                self._flush()
            elif kind == "metric":
                self._metric(MetricPoint(**content))
            elif kind == "row_losses":
                diagnosis_store.record_row_losses(self.context.db, self.job.id, self.job.fence, content)
            elif kind == "checkpoint":
                self._flush()
                self._publish(Checkpoint(**content | {"directory": Path(content["directory"])}))
            elif kind == "error":
                self._flush()
                self._fail(content)
                return True
            elif kind == "result":
                self._flush()
                self._end(runs.RunResult(**content), stopping)
                return True
        return False

    def _metric(self, point: MetricPoint) -> None:
        self._points.append(point)
        self._events.append(point.event())
        if self._watch.is_due(point):
            self._diagnose()
        if self._first_step is None:
            self._first_step, self._started_at = point.step, time.monotonic()
        elif time.monotonic() - self._estimated_at > _ESTIMATE_SECONDS and point.step > self._first_step:
            self._estimated_at = time.monotonic()
            pace = (self._estimated_at - self._started_at) / (point.step - self._first_step)
            finish = int(time.time() + pace * (point.total_steps - point.step))
            job_store.move(self.context.db, self.job.id, self.job.fence, "running", estimated_finish=finish)

    def _diagnose(self) -> None:
        """Look at the run as it goes on: store what is to be said of it, and say what is new."""
        self._flush()
        try:
            found = diagnoses.history(self.context.db, self.job.id)
        except InvalidRequest as refused:  # a diagnosis must cost no run
            self._events.append(Event(f"The job cannot be diagnosed: {refused.message}", key="undiagnosed", level="warn"))
            return
        diagnoses.record(self.context.db, self.job.id, self.job.fence, found)
        self._events += self._watch.hear(found)

    def _flush(self) -> None:
        events, points = self._events, self._points
        self._events, self._points = [], []
        if events or points:
            job_store.record(self.context.db, self.job.id, self.job.fence, events=events, points=points)

    # --- checkpoints ---

    def _publish(self, checkpoint: Checkpoint) -> None:
        """Move a checkpoint out of the child's reach, make it known, and thin out what is no longer needed."""
        checkpoints.verify(checkpoint.directory)
        target = self.published / f"{checkpoints.directory_name(checkpoint.step)}-f{self.job.fence}"
        os.rename(checkpoint.directory, target)
        checkpoints.fsync(self.published)
        row = CheckpointRow(
            id=ids.new(ids.CHECKPOINT), job_id=self.job.id, step=checkpoint.step, epoch=checkpoint.epoch, created_at=0,
            directory=str(target.relative_to(self.context.settings.data_dir)),
            metrics=dict(checkpoint.metrics), tokens_seen=checkpoint.tokens_seen,
        )  # fmt: skip
        job_store.add_checkpoint(self.context.db, self.job.id, self.job.fence, row)
        self._thin_out()

    def _thin_out(self) -> None:
        rows = records.checkpoints(self.context.db, self.job.id)
        kept = {c.step for c in runs.listed([_checkpoint(row) for row in rows], self.spec.select_by)}
        dropped = [row.id for row in rows if row.step not in kept]
        job_store.drop_checkpoints(self.context.db, self.job.id, self.job.fence, dropped)
        names = {Path(row.directory).name for row in rows if row.step in kept}
        self._delete_older(directory for directory in self.published.iterdir() if directory.name not in names)

    def _delete_older(self, directories: Iterable[Path]) -> None:
        """Delete directories of this attempt and earlier ones; a later one's are never ours, however late we wake up."""
        for directory in directories:
            fence = re.search(r"\d+$", directory.name)
            if fence and int(fence[0]) <= self.job.fence:
                shutil.rmtree(directory, ignore_errors=True)

    # --- ends ---

    def _end(self, result: runs.RunResult, stopping: threading.Event) -> None:
        if result.outcome == "finished":
            self._succeed(result)
        elif stopping.is_set():
            job_queue.release(self.context.db, self.job.id, self.job.fence)
        else:
            self._pause()

    def _pause(self) -> None:
        paused = job_store.paused(self.job.fence)
        job_store.move(self.context.db, self.job.id, self.job.fence, "paused", events=[paused])

    def _end_without_last_word(self, child: subprocess.Popen[bytes], stopping: threading.Event) -> None:
        """The child died: give the job back, counting a crash unless it was stopped by us."""
        self._flush()
        status = child.wait()
        if stopping.is_set():
            job_queue.release(self.context.db, self.job.id, self.job.fence)
            return
        if self._killed_to_pause:
            self._pause()
            return
        if status == -signal.SIGKILL and hardware.oom_kills() > self._oom_kills and self._halve_budget():
            job_queue.release(self.context.db, self.job.id, self.job.fence)
            return
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        words = f"The trainer died ({how}); the run continues from its newest checkpoint."
        event = Event(words, key=f"died:{self.job.fence}", level="warn")
        job_store.record(self.context.db, self.job.id, self.job.fence, events=[event])
        job_queue.abandon(self.context.db, self.job.id, self.job.fence)

    def _halve_budget(self) -> bool:
        """After the kernel killed the trainer for its memory: have the next attempt take less; return whether it can."""
        done = max((point.step for point in records.points(self.context.db, self.job.id)), default=-1)
        plan = self.spec.plan and self.spec.plan.halved(done + 1)
        if not plan:
            return False
        budget = plan.budget_at(done + 1)
        words = f"The trainer was killed because memory ran out; from step {done + 1} on micro-batches have {budget} tokens."
        event = Event(words, key=f"memory:{done + 1}:{budget}", level="warn")
        resolved = dataclasses.replace(self.spec, plan=plan).to_dict()
        job_store.move(self.context.db, self.job.id, self.job.fence, "running", resolved=resolved, events=[event])
        return True

    def _fail(self, error: Mapping[str, Any]) -> None:
        event = Event(f"The job failed: {error['message']}", key="failed", level="error")
        try:
            diagnoses.conclude(self.context.db, self.job.id, self.job.fence, broke_down=error["code"] == "non_finite")
            job_store.move(self.context.db, self.job.id, self.job.fence, "failed", error=JobError(**error), events=[event])
        except LeaseLost:
            return
        self._clean_up_if_over()

    def _succeed(self, result: runs.RunResult) -> None:
        """Name the model and its checkpoints, write the result file, and end the job in one transaction."""
        context, job, settings = self.context, self.job, self.context.settings
        rows = {row.step: row for row in records.checkpoints(context.db, job.id)}
        known = [_checkpoint(row) for row in rows.values()]
        chosen = runs.chosen(known, self.spec.select_by)
        start = bases.start(context, job.model)
        base = start.base_name
        name = models.fine_tuned_name(base, settings.organization, job.suffix)
        listed: list[CheckpointRow] = []
        events: list[Event] = []
        for checkpoint in runs.listed(known, self.spec.select_by):
            row = rows[checkpoint.step]
            own = name
            if checkpoint.step != chosen.step:
                own = models.checkpoint_name(base, settings.organization, job.suffix, checkpoint.step)
                words = f"Checkpoint created at step {checkpoint.step} with Snapshot ID: {own}"
                events.append(Event(words, key=f"checkpoint:{checkpoint.step}"))
            listed.append(CheckpointRow(**{**row.__dict__, "name": own, "listed": True}))
        if verdict := diagnoses.conclude(context.db, job.id, job.fence):
            events.append(Event(f"Verdict: {verdict}", key="verdict"))
        events.append(Event(f"New fine-tuned model created: {name}", key="model"))
        events.append(Event("The job has successfully completed", key="succeeded"))
        below = start.weights if self.spec.tuning == "lora" else base
        model = ModelRow(name, job.id, below, chosen.step, rows[chosen.step].directory, self.spec.tuning, int(time.time()))
        job_store.finish_succeeded(
            context.db, job.id, job.fence, model=model, checkpoints=listed, result_file=self._result_file(), events=events,
            trained_tokens=result.tokens_seen,
        )  # fmt: skip

    def _result_file(self) -> FileRow:
        """Write step_metrics.csv: plain text, OpenAI's five columns first; the base evaluation (step 0) is not in it."""
        content = runs.step_metrics_csv(records.points(self.context.db, self.job.id)).encode()
        file_id = ids.new(ids.FILE)
        with self.context.blobs.new_temp() as temp:
            temp.write(content)
            self.context.blobs.commit(temp, file_id)
        return FileRow(file_id, len(content), int(time.time()), "step_metrics.csv", "fine-tune-results", temp.sha256)

    def _clean_up_if_over(self) -> None:
        """A job that failed or was cancelled leaves no model; its checkpoints go, its log stays."""
        try:
            status = job_store.get(self.context.db, self.job.id).status
        except TunesmithError:
            return
        if status in ("failed", "cancelled"):
            shutil.rmtree(self.published, ignore_errors=True)


def _checkpoint(row: CheckpointRow) -> Checkpoint:
    return Checkpoint(row.step, Path(row.directory), row.metrics, row.epoch, row.tokens_seen)
