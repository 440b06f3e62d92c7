"""Many browsers watch one running job: how long from a step's commit to each of them, and what the API takes for it.

A real `tunesmith serve` without a trainer: this process writes the steps through the store, as a worker does, and holds the watchers'
connections. So both share the machine with the server; on two cores the figures are an upper bound.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tunesmith import services
from tunesmith.domain.jobs import Event, Job
from tunesmith.domain.runs import MetricPoint
from tunesmith.settings import Settings
from tunesmith.store import files, jobs, queue

_KEY = "sk-benchmark"
_SERVER = "import sys, uvicorn; from tunesmith.api.app import create_app; from tunesmith.settings import Settings; \
app = create_app(Settings.load(data_dir=sys.argv[1])); uvicorn.run(app, port=int(sys.argv[2]), http='h11', log_level='warning')"


def main() -> None:
    """Run and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--watchers", type=int, default=300)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=float, default=0.25, help="seconds between two steps")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        print(json.dumps(asyncio.run(_measure(Path(directory), arguments)), indent=1))


async def _measure(directory: Path, arguments: argparse.Namespace) -> dict[str, object]:
    context = services.open(Settings.load(data_dir=directory, cache_dir=directory))
    job = running_job(context)
    port = 18_000 + os.getpid() % 10_000
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER, str(directory), str(port)],
        env=os.environ | {"TUNESMITH_API_KEY": _KEY, "TUNESMITH_CACHE_DIR": str(directory)},
    )
    try:
        await _up(port)
        process = psutil.Process(server.pid)
        rss_idle = process.memory_info().rss
        last = arguments.steps * 2 + job.last_seq
        heard: list[dict[int, float]] = [{} for _ in range(arguments.watchers)]
        watching = [asyncio.create_task(_watch(port, job.id, one, last)) for one in heard]
        await asyncio.sleep(2)
        before = process.cpu_times()
        committed, most = {}, 0
        for step in range(1, arguments.steps + 1):
            point = MetricPoint(step, arguments.steps, step / 100, train_loss=2 / step, train_mean_token_accuracy=0.5, tokens_seen=step)
            job = await asyncio.to_thread(jobs.record, context.db, job.id, job.fence, events=[point.event()], points=[point])
            committed[job.last_seq] = time.time()
            most = max(most, process.memory_info().rss)
            await asyncio.sleep(arguments.every)
        await asyncio.wait_for(asyncio.gather(*watching), 30)
        after = process.cpu_times()
        delays = sorted(1000 * (one[seq] - moment) for one in heard for seq, moment in committed.items())
        p99 = delays[int(0.99 * len(delays))]
        whole = all(sorted(one) == list(range(1, last + 1)) for one in heard)
        return {
            "watchers": arguments.watchers, "steps": arguments.steps, "seconds_between_steps": arguments.every,
            "delivered": sum(map(len, heard)), "every_watcher_without_gap": whole,
            "milliseconds": {"median": round(statistics.median(delays)), "p99": round(p99), "max": round(delays[-1])},
            "api_rss_mb": {"idle": rss_idle // 2**20, "most": most // 2**20},
            "api_cpu_share": round((after.user + after.system - before.user - before.system) / (arguments.steps * arguments.every), 2),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        }  # fmt: skip
    finally:
        server.kill()
        server.wait()
        context.close()


def running_job(context: services.Context) -> Job:
    """Store a job that this process runs."""
    files.create(context.db, files.FileRow("file-1", 2, 1, "t.jsonl", "fine-tune", "00"))
    new = Job(
        id="ftjob-1",
        created_at=0,
        status="queued",
        model="base",
        training_file="file-1",
        validation_file=None,
        suffix=None,
        seed=1,
        asked={},
    )
    jobs.create(context.db, new)
    claimed = queue.claim(context.db, "benchmark", lease_seconds=3600)
    assert claimed is not None
    return jobs.move(context.db, claimed.id, claimed.fence, "running", events=[Event("started", "started")])


async def _up(port: int) -> None:
    for _ in range(200):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        except OSError:
            await asyncio.sleep(0.1)
    raise SystemExit("the server did not start")


async def _watch(port: int, job_id: str, heard: dict[int, float], last: int) -> None:
    """Note when each number arrives, until the last."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = f"GET /api/jobs/{job_id}/stream HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {_KEY}\r\n\r\n"
    writer.write(request.encode())
    while last not in heard:
        line = await reader.readline()
        if not line:
            raise SystemExit("the server closed a stream")
        if line.startswith(b"id: "):
            heard.setdefault(int(line[4:]), time.time())
    writer.close()


if __name__ == "__main__":
    main()
