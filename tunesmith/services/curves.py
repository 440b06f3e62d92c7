"""A job's figures thinned for a chart: no peak and no dip is lost, and what was drawn stays where it is while the run goes on."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

from tunesmith.domain.jobs import Job
from tunesmith.store import records
from tunesmith.store.database import Database
from tunesmith.store.records import MetricRow

#: The series whose peaks and dips are kept. Full evaluations are few and all kept.
SERIES = ("train_loss", "train_mean_token_accuracy", "valid_loss", "valid_mean_token_accuracy")
#: Fewest points that can be asked for: full evaluations, at most 50 and the base, and a few buckets.
MIN_POINTS = 100
_ALWAYS_KEPT = 60
_KEPT_CURVES = 64
#: Rows read at once: few enough that the API never holds a long job.
_PAGE = 2_000

#: For each of SERIES, the least and the greatest value and its row.
_Bucket = list[tuple[float, MetricRow] | None]


class Thinned:
    """At most `max_points` of the rows it is given, whose steps are `first_step` and later.

    Steps fall into buckets of 2^k steps; of each bucket the rows with the least and the greatest value of each series stay. When there
    are too many buckets k grows by one and neighbours merge, which keeps a part of the rows that were kept before and adds none. So more
    rows never change what is kept of the complete buckets before them.
    """

    def __init__(self, max_points: int, first_step: int = 0) -> None:
        self._first_step = first_step
        self._max_buckets = max(1, (max_points - _ALWAYS_KEPT) // (2 * len(SERIES)))
        self._shift = 0
        self._buckets: dict[int, _Bucket] = {}
        self._evaluated: dict[int, MetricRow] = {}
        self._newest: MetricRow | None = None

    @property
    def seq(self) -> int:
        """The number of the newest row."""
        return self._newest.seq if self._newest else 0

    def add(self, row: MetricRow) -> None:
        """Take the next row; steps never go back."""
        data = row.data
        step: int = data["step"] - self._first_step
        while step >> self._shift >= self._max_buckets:
            self._coarsen()
        bucket = self._buckets.get(step >> self._shift)
        if bucket is None:
            bucket = self._buckets[step >> self._shift] = [None] * (2 * len(SERIES))
        place = 0
        for name in SERIES:
            value = data.get(name)
            if value is not None:
                least, greatest = bucket[place], bucket[place + 1]
                if least is None or value < least[0]:
                    bucket[place] = (value, row)
                if greatest is None or value > greatest[0]:
                    bucket[place + 1] = (value, row)
            place += 2
        if "full_valid_loss" in data:
            self._evaluated[row.seq] = row
        self._newest = row

    def rows(self) -> list[MetricRow]:
        """Return what is kept, the newest row included, oldest first."""
        kept = dict(self._evaluated)
        if self._newest:
            kept[self._newest.seq] = self._newest
        for bucket in self._buckets.values():
            for extreme in bucket:
                if extreme is not None:
                    kept[extreme[1].seq] = extreme[1]
        return [kept[seq] for seq in sorted(kept)]

    def _coarsen(self) -> None:
        self._shift += 1
        merged: dict[int, _Bucket] = {}
        for index, bucket in self._buckets.items():
            merged[index >> 1] = _merge(merged[index >> 1], bucket) if index >> 1 in merged else bucket
        self._buckets = merged


def _merge(first: _Bucket, second: _Bucket) -> _Bucket:
    """Return the extremes of two neighbours; of equals the earlier."""
    joined: _Bucket = []
    for place, (one, other) in enumerate(zip(first, second, strict=True)):
        if one is None or other is None:
            joined.append(one or other)
        elif place % 2 == 0:
            joined.append(other if other[0] < one[0] else one)
        else:
            joined.append(other if other[0] > one[0] else one)
    return joined


def between(db: Database, job_id: str, first_step: int, last_step: int, max_points: int) -> list[MetricRow]:
    """Return the figures of some steps, thinned."""
    thinned = Thinned(max_points, first_step)
    for row in records.metrics_between(db, job_id, first_step, last_step):
        thinned.add(row)
    return thinned.rows()


class Curves:
    """The thinned curves of the jobs looked at last, so that each figure is read once however many look."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._curves: OrderedDict[tuple[str, int, int], tuple[Lock, Thinned]] = OrderedDict()
        self._lock = Lock()

    def read(self, job: Job, max_points: int) -> tuple[list[MetricRow], int]:
        """Return the job's figures so far, thinned, and the number of the newest."""
        # Another attempt may say steps again; they are the same but for round-off and speed, and are read again.
        key = (job.id, max_points, job.fence)
        with self._lock:
            lock, thinned = self._curves.setdefault(key, (Lock(), Thinned(max_points)))
            self._curves.move_to_end(key)
            while len(self._curves) > _KEPT_CURVES:
                self._curves.popitem(last=False)
        with lock:
            while rows := records.metrics_after(self._db, job.id, thinned.seq, limit=_PAGE):
                for row in rows:
                    thinned.add(row)
            return thinned.rows(), thinned.seq
