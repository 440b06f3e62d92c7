"""Who is measured, in which environment, and how one run of one contender is made. Knows no figures and no tables.

A peer is a requirements file and a runner in `peers/`; its environment is made in `.bench/` when it is first needed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import machine

from tunesmith import hardware
from tunesmith.domain import models
from tunesmith.services import bases
from tunesmith.settings import Settings

ROOT = Path(__file__).parent.parent
PEERS = Path(__file__).parent / "peers"
ENVIRONMENTS = ROOT / ".bench"
OURS = "tunesmith"
_LIMIT_SECONDS = 3600
#: Other work that the machine may do beside a run before the run counts as disturbed.
_QUIET_CORES = 0.1
#: Nothing is fetched while the clock runs.
_QUIET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "DISABLE_VERSION_CHECK": "1"}


@dataclass(frozen=True)
class Contender:
    """One way to train: a peer (`peers/run_<peer>.py`) with options and environment variables of its own."""

    name: str
    title: str
    peer: str
    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


DROPOUT = ("--dropout", "0.05")
CPU_KERNELS, TORCH_KERNELS = ("--variant", "kernels=cpu"), ("--variant", "kernels=torch")
_BEST = ("--weights", "bfloat16", "--batch", "1")
_DEFAULTS = ("--autocast", "--recompute", "--batch", "8")
TRAINING = (
    Contender("ours", "Tunesmith", OURS),
    Contender("ours-dropout", "Tunesmith, dropout 0.05", OURS, DROPOUT),
    Contender("ours-torch", "Tunesmith without its C++ kernels", OURS, TORCH_KERNELS),
    Contender("ours-unshared", "Tunesmith, shared beginnings computed for each row", OURS, ("--variant", "share=off")),
    Contender("ours-modules", "Tunesmith on transformers' modules", OURS, ("--variant", "path=modules")),
    Contender("trl-fp32", "TRL, float32, 4 × 4 rows", "trl"),
    Contender("trl-fp32-dropout", "TRL, float32, 4 × 4 rows, dropout 0.05", "trl", DROPOUT),
    Contender("trl-bf16", "TRL, bf16 autocast, 4 × 4 rows", "trl", ("--autocast",)),
    Contender(
        "trl-defaults", "TRL, its defaults (bf16 autocast, recomputation, 2 × 8 rows)", "trl", ("--autocast", "--recompute", "--batch", "8")
    ),
    Contender("trl-best", "TRL, bf16 weights, 16 × 1 rows", "trl", _BEST),
    Contender("trl-best-dropout", "TRL, bf16 weights, 16 × 1 rows, dropout 0.05", "trl", (*_BEST, *DROPOUT)),
    Contender("litgpt", "LitGPT, bf16-true, 16 × 1 rows", "litgpt", ("--batch", "1")),
    Contender("llamafactory", "LLaMA-Factory, bf16, 16 × 1 rows", "llamafactory", ("--batch", "1")),
)
#: Peers that do not come to train on a processor, and what they say.
DID_NOT_RUN = {
    "torchtune 0.6.1": "does not import with the torchao 0.18 that pip picks; with torchao 0.9 it does, but has no builder for SmolLM2",
    "unsloth 2026.10.7": "NotImplementedError: Unsloth cannot find any torch accelerator? You need a GPU.",
}


class Failed(Exception):
    """A contender that did not run; the message says why in one line."""


def train(contender: Contender, data: Path, steps: int, seed: int = 42, adapter: Path | None = None) -> dict[str, Any]:
    """Run a contender in a process of its own; return what its runner reports.

    Raises: Failed.
    """
    command = [
        *(python(contender.peer), PEERS / f"run_{contender.peer}.py", "--model", base(), "--data", data, "--steps", str(steps)),
        *("--threads", str(hardware.physical_cores()), "--seed", str(seed), *contender.options),
        *(("--adapter", adapter) if adapter else ()),
    ]
    return report(command, contender.environment)


def report(command: list[Any], environment: Mapping[str, str] = {}) -> dict[str, Any]:
    """Run a command; return the JSON of its last line and, as `other_cores`, how many cores were busy with something else meanwhile.

    Raises: Failed.
    """
    started, others = time.monotonic(), machine.others_seconds()
    try:
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **_QUIET, **environment}, timeout=_LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        raise Failed(f"not done after {_LIMIT_SECONDS} seconds") from None
    if done.returncode:
        raise Failed(_last_line(done.stderr) or f"status {done.returncode}")
    other_cores = (machine.others_seconds() - others) / (time.monotonic() - started)
    if other_cores > _QUIET_CORES:
        print(f"Not alone: {other_cores:.1f} cores were busy with something else during this run.", file=sys.stderr)
    return {**json.loads(_last_line(done.stdout)), "other_cores": round(other_cores, 2)}


def python(peer: str) -> Path:
    """Return the Python of a peer's environment, made first where it is not there. Raises: Failed."""
    if peer == OURS:
        return Path(sys.executable)
    folder, requirements = ENVIRONMENTS / peer, PEERS / f"{peer}.txt"
    stamp, wanted = folder / "installed.txt", requirements.read_text()
    if not stamp.is_file() or stamp.read_text() != wanted:
        print(f"==> Making the environment of {peer} in {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        for what in (("-c", requirements, "torch"), ("--no-deps", "-r", requirements)):
            pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what]
            done = subprocess.run(pip, stderr=subprocess.PIPE, text=True)
            if done.returncode:
                raise Failed(f"pip: {_last_line(done.stderr)}")
        stamp.write_text(wanted)
    return folder / "bin" / "python"


def base() -> Path:
    """Return the directory of SmolLM2-135M-Instruct, obtained first where it is not there."""
    return Path(bases.ready(Settings.load(), models.DEFAULT).directory)


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
