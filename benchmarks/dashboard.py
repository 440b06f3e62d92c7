"""How soon the page of a long job shows its curves, and how smoothly they move: a real Chromium on a real `tunesmith serve`.

"cold" is the first look after the server started, "warm" one after it. The moment is the first frame on which both charts have been drawn.
Frames are counted while the curves are zoomed and panned by the wheel and by dragging, at every frame.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from playwright.sync_api import Page, sync_playwright
from watchers import running_job

from tunesmith import services
from tunesmith.domain.runs import MetricPoint
from tunesmith.settings import Settings
from tunesmith.store import jobs

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.browser import chromium

_KEY = "sk-benchmark"
#: Notes the first frame on which both charts have ink on them.
_WATCH = """
addEventListener("DOMContentLoaded", function look() {
  const drawn = [...document.querySelectorAll("canvas")].filter((canvas) => {
    const { width, height } = canvas;
    return width && height && canvas.getContext("2d").getImageData(0, 0, width, height).data.some((value) => value);
  });
  if (drawn.length >= 2) window.drawnAt = performance.now();
  else requestAnimationFrame(look);
});
"""
_MOVE = """async () => {
  const over = document.querySelector(".u-over");
  const { left, top, width, height } = over.getBoundingClientRect();
  const frames = [];
  let last = performance.now();
  for (let frame = 0; frame < 240; frame++) {
    const deltaY = frame < 80 ? -60 : frame < 160 ? 0 : 60;
    const deltaX = frame < 80 || frame >= 160 ? 0 : frame % 40 < 20 ? 60 : -60;
    const place = { clientX: left + width / 2, clientY: top + height / 2, bubbles: true, cancelable: true };
    over.dispatchEvent(new WheelEvent("wheel", { deltaX, deltaY, ctrlKey: deltaY !== 0, ...place }));
    await new Promise(requestAnimationFrame);
    const now = performance.now();
    frames.push(now - last);
    last = now;
  }
  return frames;
}"""


def main() -> None:
    """Run and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        job_id = _long_job(Path(directory), arguments.points)
        cold, warm, frames = [], [], []
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium.path(), args=list(chromium.ARGUMENTS))
            for _ in range(arguments.rounds):
                port = 19_000 + random.randrange(10_000)
                server = _serve(directory, port)
                try:
                    context = browser.new_context(base_url=f"http://127.0.0.1:{port}", viewport={"width": 1440, "height": 900})
                    context.add_init_script(_WATCH)
                    context.request.post("/login", form={"key": _KEY}, max_redirects=0)
                    page = context.new_page()
                    cold.append(_look(page, job_id))
                    warm.append(_look(page, job_id))
                    frames += page.evaluate(_MOVE)
                    context.close()
                finally:
                    server.kill()
                    server.wait()
            browser.close()
    frames.sort()
    slowest = frames[int(0.99 * len(frames))]
    result: dict[str, Any] = {
        "points": arguments.points, "rounds": arguments.rounds,
        "milliseconds_to_curves": {"cold": _said(cold), "warm": _said(warm)},
        "frames_per_second": {"median": round(1000 / statistics.median(frames)), "slowest_hundredth": round(1000 / slowest)},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }  # fmt: skip
    print(json.dumps(result, indent=1))


def _said(times: list[float]) -> dict[str, int]:
    return {"median": round(statistics.median(times)), "worst": round(max(times))}


def _long_job(directory: Path, count: int) -> str:
    """Store a job that is over, with noisy figures."""
    context = services.open(Settings.load(data_dir=directory, cache_dir=directory))
    job = running_job(context)
    draw = random.Random(1)
    for start in range(0, count, 5_000):
        points = [_point(step, count, draw) for step in range(start, start + 5_000)]
        jobs.record(context.db, job.id, job.fence, points=points, events=[point.event() for point in points if point.step])
    jobs.request_cancel(context.db, job.id)
    context.close()
    return job.id


def _point(step: int, count: int, draw: random.Random) -> MetricPoint:
    full, sampled = step % (count // 50) == 0, step % 10 == 0
    loss = 0.4 + 2 / (1 + 20 * step / count)
    accuracy = 0.9 - loss / 5
    return MetricPoint(
        step, count, 10 * step / count, train_loss=loss + abs(draw.gauss(0, 0.3)),
        train_mean_token_accuracy=min(1, accuracy + draw.gauss(0, 0.05)),
        learning_rate=2e-4, grad_norm=abs(draw.gauss(1, 0.2)), tokens_seen=1_700 * step, tokens_per_second=812.5,
        valid_loss=loss + draw.gauss(0, 0.1) if sampled else None, valid_mean_token_accuracy=accuracy if sampled else None,
        full_valid_loss=loss if full else None, full_valid_mean_token_accuracy=accuracy if full else None,
    )  # fmt: skip


def _serve(directory: str, port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tunesmith.cli", "serve", "--data-dir", directory, "--port", str(port)]
    environment = os.environ | {"TUNESMITH_API_KEY": _KEY, "TUNESMITH_CACHE_DIR": directory}
    server = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    for _ in range(200):
        try:
            urlopen(f"http://127.0.0.1:{port}/healthz").read()
            break
        except OSError:
            time.sleep(0.1)
    time.sleep(3)  # its worker is up by then
    return server


def _look(page: Page, job_id: str) -> float:
    """Open the job's page; return the milliseconds from the navigation to its curves."""
    page.goto("about:blank")
    page.goto(f"/jobs/{job_id}")
    for _ in range(600):
        if moment := page.evaluate("window.drawnAt"):
            return float(moment)
        page.wait_for_timeout(50)
    raise SystemExit("the curves were not drawn within 30 s")


if __name__ == "__main__":
    main()
