"""The README's `openai` code, unmodified, against a real server; its files are the bundled ones, cut short."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .deployment import KEY, serving

ROOT = Path(__file__).resolve().parents[2]
ROWS = {"train": 24, "valid": 6}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a working directory with the first rows of the example's files."""
    target = tmp_path / "work" / "examples" / "support-triage"
    target.mkdir(parents=True)
    for name, count in ROWS.items():
        lines = (ROOT / "examples" / "support-triage" / f"{name}.jsonl").read_text().splitlines(keepends=True)
        (target / f"{name}.jsonl").write_text("".join(lines[:count]))
    return tmp_path / "work"


def code(marker: str) -> str:
    """Return the README's Python block that contains `marker`."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (block,) = [block for block in blocks if marker in block]
    return str(block)


def test_the_openai_code_works(folder: Path, smollm2: Path, tmp_path: Path) -> None:
    block = code("OpenAI()")
    assert len([line for line in block.splitlines() if line and "import" not in line]) <= 10
    with serving(tmp_path / "data") as deployment:
        environment = os.environ | {"OPENAI_BASE_URL": f"{deployment.url}/v1", "OPENAI_API_KEY": KEY}
        command = [sys.executable, "-c", block]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        (job,) = deployment.client.fine_tuning.jobs.list()
        assert job.status == "succeeded" and job.fine_tuned_model, job.error
    assert done.stdout.strip().startswith("{"), done.stdout  # the tuned model answers in the form of the example


def test_the_code_without_a_server_works(folder: Path, smollm2: Path) -> None:
    block = code("import tunesmith").replace("n_epochs=3", "n_epochs=3, n_steps=2")
    done = subprocess.run([sys.executable, "-c", block], cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (run,) = (folder / "runs").iterdir()
    assert (run / "loss.png").stat().st_size > 10_000 and (run / "adapter" / "adapter_model.safetensors").is_file()
    shutil.rmtree(run)
