"""Memory of the API process after 1,000 mixed requests and two large uploads: python benchmarks/api_memory.py

Prints one JSON line. The server is a process of its own, so that the client's memory does not count.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil

KEY = "benchmark-key"
ROW = json.dumps({"messages": [{"role": "user", "content": "x" * 200}, {"role": "assistant", "content": "y" * 50}]}).encode() + b"\n"
SERVE = """
import sys, uvicorn
from pathlib import Path
from tunesmith.api.app import create_app
from tunesmith.settings import Settings
directory = Path(sys.argv[1])
settings = Settings(data_dir=directory, cache_dir=directory, api_key=sys.argv[2])
config = uvicorn.Config(create_app(settings), port=0, http="h11", server_header=False, log_level="warning")
server = uvicorn.Server(config)
startup = server.startup
async def announce(*args, **kwargs):
    await startup(*args, **kwargs)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)
server.startup = announce
server.run()
"""


def main() -> None:
    """Start a server, send the requests, print what it weighs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--upload-mb", type=int, default=64)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        process = subprocess.Popen([sys.executable, "-c", SERVE, directory, KEY], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            url = f"http://127.0.0.1:{int(process.stdout.readline())}"
            print(json.dumps(_measure(process.pid, url, arguments.requests, arguments.upload_mb, Path(directory))))
        finally:
            process.terminate()
            process.wait(10)


def _measure(pid: int, url: str, num_requests: int, upload_mb: int, directory: Path) -> dict[str, float]:
    server, kinds = psutil.Process(pid), random.Random(0)
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {KEY}"}, timeout=120) as http:
        file = http.post("/v1/files", files={"file": ("t.jsonl", ROW * 20)}, data={"purpose": "fine-tune"}).json()["id"]
        idle, began = _megabytes(server), time.perf_counter()
        for _ in range(num_requests):
            _send(http, kinds.randrange(8), file)
        seconds, after = time.perf_counter() - began, _megabytes(server)
        large = directory / "large.jsonl"
        with large.open("wb") as out:
            out.writelines(_rows(upload_mb))
        for _ in range(2):
            with large.open("rb") as content:
                http.post("/v1/files", files={"file": content}, data={"purpose": "fine-tune"}).raise_for_status()
        return {
            "requests": num_requests, "requests_per_second": round(num_requests / seconds), "rss_mb_idle": idle, "rss_mb": after,
            "rss_mb_after_uploads": _megabytes(server), "upload_mb": upload_mb,
        }  # fmt: skip


def _send(http: httpx.Client, kind: int, file: str) -> None:
    if kind == 0:
        http.post("/v1/files", files={"file": ("t.jsonl", ROW * 200)}, data={"purpose": "fine-tune"}).raise_for_status()
    elif kind == 1:
        http.post("/v1/fine_tuning/jobs", json={"model": "smollm2-135m-instruct", "training_file": file}).raise_for_status()
    elif kind == 2:
        assert http.post("/v1/fine_tuning/jobs", json={"model": "none", "training_file": file, "metadata": {"a": "b"}}).status_code == 400
    elif kind == 3:
        assert (
            http.post("/v1/chat/completions", json={"model": "none", "messages": [{"role": "user", "content": "?" * 9999}]}).status_code
            == 404
        )
    else:
        http.get(("/v1/files", "/v1/fine_tuning/jobs?limit=100", "/v1/models", f"/v1/files/{file}/content")[kind - 4]).raise_for_status()


def _rows(megabytes: int) -> Iterator[bytes]:
    for _ in range(megabytes * 2**20 // len(ROW)):
        yield ROW


def _megabytes(process: psutil.Process) -> float:
    return round(process.memory_info().rss / 2**20, 1)


if __name__ == "__main__":
    main()
