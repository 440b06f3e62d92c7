"""Latencies through the real server on SmolLM2-135M: python benchmarks/latency.py [--rounds 3]

- seconds from creating a job to its first metric, the base model's evaluation on the bundled validation file: this includes validating the
  files, starting the trainer, loading the model and one full validation;
- seconds to the first token of a chat answer, with the machine idle and beside a running training of the same base.

The server is up, the base prepared and the chat model loaded before any clock starts. Writes benchmarks/results/latency.json.
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
MODEL = "smollm2-135m-instruct"


def main() -> None:
    """Run the rounds and report the median."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    bases.ready(Settings.load(), MODEL)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tunesmith.cli", "serve", "--port", "0", "--data-dir", folder]
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"TUNESMITH_API_KEY": KEY})
        try:
            found = _measure(server, arguments.rounds)
        finally:
            server.terminate()
            server.wait(60)
    result = {
        "benchmark": "latency", "date": time.strftime("%Y-%m-%d"), "processor": hardware.processor(),
        "cores": hardware.physical_cores(),
        "seconds": {name: {"median": statistics.median(values), "all": values} for name, values in found.items()},
    }  # fmt: skip
    print(json.dumps(result))
    (ROOT / "benchmarks" / "results" / "latency.json").write_text(json.dumps(result, indent=2) + "\n")


def _measure(server: subprocess.Popen[str], rounds: int) -> dict[str, list[float]]:
    assert server.stderr is not None
    match = None
    while match is None:
        match = re.search(r"API at (\S+)", server.stderr.readline())
    client = openai.OpenAI(base_url=match.group(1), api_key=KEY)
    files = {name: client.files.create(file=EXAMPLE / f"{name}.jsonl", purpose="fine-tune").id for name in ("train", "valid")}
    _first_token(client)
    found: dict[str, list[float]] = {"job_to_first_metric": [], "first_token_idle": [], "first_token_beside_training": []}
    for _ in range(rounds):
        found["first_token_idle"] += [_first_token(client) for _ in range(3)]
        started = time.monotonic()
        job = client.fine_tuning.jobs.create(model=MODEL, training_file=files["train"], validation_file=files["valid"])
        while not any(event.type == "metrics" for event in client.fine_tuning.jobs.list_events(job.id)):
            time.sleep(0.05)
        found["job_to_first_metric"].append(round(time.monotonic() - started, 2))
        time.sleep(5)  # well into the first steps
        found["first_token_beside_training"] += [_first_token(client) for _ in range(3)]
        client.fine_tuning.jobs.cancel(job.id)
        time.sleep(2)
    return found


def _first_token(client: openai.OpenAI) -> float:
    """Return the seconds until a streamed answer's first words."""
    started = time.monotonic()
    question = {"role": "user", "content": "What is a good name for a cat?"}
    with client.chat.completions.create(model=MODEL, messages=[question], max_tokens=16, stream=True) as stream:
        for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                return round(time.monotonic() - started, 3)
    raise RuntimeError("an empty answer")


if __name__ == "__main__":
    main()
