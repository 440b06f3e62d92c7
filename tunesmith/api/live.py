"""Jobs as they go, over server-sent events: one tail of the store per watched job, however many watch.

What is numbered (events and figures) reaches each watcher in order and without a gap: a watcher is a position in the job's sequence,
and one that fell behind what the tail remembers reads the store itself. So a slow client holds no memory here. The job and its diagnosis
are sent whole, at first and whenever they changed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from fastapi.sse import format_sse_event
from pydantic import BaseModel

from tunesmith.api import shown
from tunesmith.domain.jobs import TERMINAL, Event
from tunesmith.errors import TunesmithError
from tunesmith.services import Context
from tunesmith.store import diagnoses, jobs, records
from tunesmith.store.records import MetricRow

_log = logging.getLogger(__name__)

#: Seconds between two looks at a watched job, and at what may change without the job's row.
_POLL_SECONDS, _SLOW_POLL_SECONDS = 0.1, 1.0
#: A comment is sent when nothing else was for so long, so that dead connections are noticed.
_PING_SECONDS = 15.0
_REMEMBERED = 2_000
_PAGE = 1_000


class Live:
    """The tails of the jobs that somebody watches."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._tails: dict[str, _Tail] = {}
        self._ended = False

    async def follow(self, job_id: str, after: int) -> AsyncIterator[bytes]:
        """Give a job's stream from the number after `after`, until the job is over or the server ends."""
        if self._ended:
            return
        tail = self._tails.get(job_id)
        if tail is None:
            tail = self._tails[job_id] = _Tail(self._context, job_id)
        tail.watchers += 1
        try:
            async for chunk in tail.follow(after):
                yield chunk
        finally:
            tail.watchers -= 1
            if not tail.watchers:
                tail.stop()
                self._tails.pop(job_id, None)

    def end(self) -> None:
        """End all streams, so that the server can end; clients come back to the next one."""
        self._ended = True
        for tail in self._tails.values():
            tail.end()


@dataclass
class _News:
    """What a look at a job found: the numbered beyond a position, up to another; the job and its diagnosis, if it was time to read them."""

    position: int
    said: list[tuple[int, bytes]] = field(default_factory=list)
    whole: dict[str, bytes] | None = None
    over: bool = False


class _Tail:
    """The newest of one job, already in the form it is sent in."""

    def __init__(self, context: Context, job_id: str) -> None:
        self._context = context
        self._job_id = job_id
        self._recent: deque[tuple[int, bytes]] = deque(maxlen=_REMEMBERED)
        self._position: int | None = None
        self._whole: dict[str, bytes] = {}  # the job and its diagnosis
        self._over = False
        self._ended = False
        self._changed = asyncio.Event()
        self._next_slow_look = 0.0
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(self._died)
        self.watchers = 0

    async def follow(self, after: int) -> AsyncIterator[bytes]:
        """Give what is numbered above `after` and the newest job and diagnosis, for as long as there is more to come."""
        yield format_sse_event(retry=1000)
        sent: dict[str, bytes] = {}
        while not self._ended:
            changed = self._changed
            if self._position is not None:
                while after < self._position:
                    after, chunk = await self._after(after)
                    yield chunk
                for name, whole in self._whole.items():
                    if sent.get(name) != whole:
                        sent[name] = whole
                        yield whole
                if self._over and after >= self._position:
                    yield format_sse_event(event="end", data_str="{}")
                    return
            try:
                await asyncio.wait_for(changed.wait(), _PING_SECONDS)
            except TimeoutError:
                yield format_sse_event(comment="ping")

    def end(self) -> None:
        """End every watcher's stream."""
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        """Let every watcher look."""
        self._changed.set()
        self._changed = asyncio.Event()

    def stop(self) -> None:
        """Look no more."""
        self._task.cancel()

    async def _after(self, seq: int) -> tuple[int, bytes]:
        """Return what comes after number `seq`, and the number it reaches."""
        if self._recent and self._recent[0][0] <= seq + 1:
            later = [chunk for number, chunk in self._recent if number > seq]
            return self._recent[-1][0], b"".join(later)
        said = await asyncio.to_thread(records.since, self._context.db, self._job_id, seq, _PAGE)
        return said[-1].seq, b"".join(_numbered(one) for one in said)

    async def _run(self) -> None:
        while True:
            try:
                found = await asyncio.to_thread(self._look, self._position)
            except TunesmithError:  # the database is away; watchers wait
                await asyncio.sleep(_SLOW_POLL_SECONDS)
            else:
                # Only here, in the event loop, does what watchers read change.
                self._recent.extend(found.said)
                changed = found.position != self._position or found.whole not in (None, self._whole)
                self._position, self._whole = found.position, found.whole or self._whole
                self._over = self._over or found.over
                if changed:
                    self._wake()
            await asyncio.sleep(_POLL_SECONDS)

    def _look(self, position: int | None) -> _News:
        """Read what there is beyond `position`; the job and its diagnosis with it, or when it is time to."""
        context, job = self._context, jobs.get(self._context.db, self._job_id)
        # Watchers that join read what was before from the store, at the pace of their connection.
        news = _News(job.last_seq if position is None else position)
        while news.position < job.last_seq:
            said = records.since(context.db, self._job_id, news.position, _PAGE)
            news.said += [(one.seq, _numbered(one)) for one in said]
            news.position = said[-1].seq
        if news.position != position or time.monotonic() >= self._next_slow_look:
            self._next_slow_look = time.monotonic() + _SLOW_POLL_SECONDS
            diagnosis = diagnoses.read(context.db, self._job_id)
            news.whole = {"job": _encoded("job", shown.run(context, job))}
            if diagnosis is not None:
                news.whole["diagnosis"] = _encoded("diagnosis", shown.diagnosis(job, diagnosis))
            news.over = job.status in TERMINAL
        return news

    def _died(self, task: asyncio.Task[None]) -> None:
        """End the streams of a tail that cannot go on: their clients come back to another."""
        if not task.cancelled() and task.exception():
            _log.error("the tail of job %s ended", self._job_id, exc_info=task.exception())
            self.end()


def _numbered(one: Event | MetricRow) -> bytes:
    if isinstance(one, MetricRow):
        return _encoded("metric", shown.metric(one), one.seq)
    return _encoded("event", shown.event(one), one.seq)


def _encoded(name: str, what: BaseModel, seq: int | None = None) -> bytes:
    id: dict[str, Any] = {} if seq is None else {"id": str(seq)}
    return format_sse_event(event=name, data_str=what.model_dump_json(exclude_none=name == "metric"), **id)
