"""The worker's script of examples/ai_worker: nine arguments with the documented defaults, at most 40 lines, and it trains."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tunesmith.domain.specs import BY_NAME

from ..conftest import write_chat

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "ai_worker"
SCRIPT = FOLDER / "fine_tune.py"
NINE = {
    "lora_alpha": 64, "lora_dropout": 0.05, "batch_size": 4, "accumulation_steps": 4, "n_steps": 500, "n_epochs": 500,
    "learning_rate_multiplier": 2.5e-5, "training_split": 0.8, "stop_eval_loss": 0.01,
}  # fmt: skip


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=300, check=False)


def test_it_is_short() -> None:
    assert len(SCRIPT.read_text().splitlines()) <= 40


def test_its_arguments_are_documented() -> None:
    words = " ".join(run("--help").stdout.split())
    for name, default in NINE.items():
        assert re.search(rf"--{name} [A-Z_]+ [^()]*\(default: {re.escape(str(default))}\)", words), words
        assert BY_NAME[name].train_default == default
    table = re.findall(r"^\| `--(\w+)` \| (\S+) \|$", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert {name: float(default) for name, default in table} == NINE


def test_it_trains(tiny: Path, tmp_path: Path) -> None:
    data = write_chat(tmp_path / "data.jsonl", [(f"letter {n}", "ab"[n % 2] * 3) for n in range(20)])
    asked = {"lora_alpha": "32", "lora_dropout": "0.1", "batch_size": "2", "accumulation_steps": "2", "n_steps": "5", "n_epochs": "9"}
    asked |= {"learning_rate_multiplier": "0.003", "training_split": "0.7", "stop_eval_loss": "0.001"}
    options = [word for name, value in asked.items() for word in (f"--{name}", value)]
    output = tmp_path / "run"
    done = run(str(data), "--model", tiny.name, "--output", str(output), *options, TUNESMITH_ALLOWED_MODELS=str(tiny))
    assert done.returncode == 0, done.stderr
    resolved = json.loads((output / "spec.json").read_text())["resolved"]
    assert {name: resolved[name] for name in asked} == {name: float(value) for name, value in asked.items()}
    assert "n_steps 5 reached. Adapter: " in done.stdout and "full_valid_loss: " in done.stdout
    assert "Step 5/5: training loss=" in done.stderr
    assert (output / "adapter" / "adapter_model.safetensors").is_file() and (output / "loss.png").is_file()
