"""Seconds from creating a job to its first metric on SmolLM2-135M, through the real server: python benchmarks/first_metric.py [--rounds 3]

The first metric is the base model's evaluation on the bundled validation file, so this includes starting the trainer, loading the model and
one full validation. The server is up and the base model prepared before the clock starts. Writes benchmarks/results/first_metric.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import openai

from tunesmith import hardware
from tunesmith.services import bases
from tunesmith.settings import Settings

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "support-triage"
KEY = "benchmark-key"


def main() -> None:
    """Run the rounds and report the median."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    bases.ready(Settings.load(), "smollm2-135m-instruct")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tunesmith.cli", "serve", "--port", "0", "--data-dir", folder]
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"TUNESMITH_API_KEY": KEY})
        try:
            seconds = _measure(server, arguments.rounds)
        finally:
            server.terminate()
            server.wait(60)
    result = {
        "benchmark": "first_metric", "date": time.strftime("%Y-%m-%d"), "processor": hardware.processor(),
        "cores": hardware.physical_cores(),
        "seconds": {"median": statistics.median(seconds), "all": seconds},
    }  # fmt: skip
    print(json.dumps(result))
    (ROOT / "benchmarks" / "results" / "first_metric.json").write_text(json.dumps(result, indent=2) + "\n")


def _measure(server: subprocess.Popen[str], rounds: int) -> list[float]:
    assert server.stderr is not None
    match = re.search(r"API at (\S+)", server.stderr.readline())
    assert match is not None
    client = openai.OpenAI(base_url=match.group(1), api_key=KEY)
    files = {name: client.files.create(file=EXAMPLE / f"{name}.jsonl", purpose="fine-tune").id for name in ("train", "valid")}
    seconds = []
    for _ in range(rounds):
        started = time.monotonic()
        job = client.fine_tuning.jobs.create(model="smollm2-135m-instruct", training_file=files["train"], validation_file=files["valid"])
        while not any(event.type == "metrics" for event in client.fine_tuning.jobs.list_events(job.id)):
            time.sleep(0.05)
        seconds.append(round(time.monotonic() - started, 2))
        client.fine_tuning.jobs.cancel(job.id)
    return seconds


if __name__ == "__main__":
    main()
