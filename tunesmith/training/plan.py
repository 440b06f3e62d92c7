"""How this machine will compute a run: device, type, kernels, path, threads, token budget, each with its reason."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tunesmith import hardware
from tunesmith.domain.specs import ExecutionPlan
from tunesmith.training import network
from tunesmith.training.kernels import selection
from tunesmith.training.model import native_bfloat16


def plan(tuning: str, base: Path | None = None) -> tuple[ExecutionPlan, dict[str, str]]:
    """Choose for the model in directory `base` (None: of no particular family)."""
    cuda = torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    threads = hardware.physical_cores()
    dtype, why = _dtype(cuda, tuning)
    kernels, why_kernels = selection.choose(device)
    path, why_path = network.path_for(_model_type(base), tuning)
    budget = 8192 if cuda else 4096
    reasons = {
        "device": "a CUDA device is present" if cuda else "no CUDA device",
        "dtype": why,
        "kernels": why_kernels,
        "path": why_path,
        "threads": "every core this process may use",
        "token_budget": f"{budget} tokens a micro-batch suit a {device} device",
    }
    capability = torch.backends.cpu.get_cpu_capability()
    name = torch.cuda.get_device_name() if cuda else f"{hardware.processor()} ({capability})"
    return ExecutionPlan(device, dtype, threads, budget, name, torch.__version__, kernels, path), reasons


def _dtype(cuda: bool, tuning: str) -> tuple[str, str]:
    if tuning == "full":
        return "float32", "full tuning updates the weights themselves, which needs 32 bits"
    if native_bfloat16():
        return "bfloat16", f"this {'device' if cuda else 'processor'} computes bfloat16 natively; adapters stay float32"
    return "float32", "no native bfloat16 here"


def _model_type(base: Path | None) -> str:
    if base is None:
        return "llama"
    return str(json.loads((base / "config.json").read_bytes()).get("model_type"))
