"""How this machine will compute a run: device, type, kernels, path, threads, token budget, each with its reason.

Made in two steps: before the model is loaded, and, for the budget, when its memory can be told.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import torch

from tunesmith import hardware
from tunesmith.domain.jobs import Event
from tunesmith.domain.runs import RunSink
from tunesmith.domain.specs import ExecutionPlan, ResolvedSpec
from tunesmith.training import memory, network
from tunesmith.training.kernels import selection
from tunesmith.training.model import native_bfloat16


def draft(tuning: str, base: Path | None = None) -> tuple[ExecutionPlan, dict[str, str]]:
    """Choose for the model in directory `base` (None: of no particular family)."""
    cuda = torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    threads = hardware.physical_cores()
    dtype, why = _dtype(cuda, tuning)
    kernels, why_kernels = selection.choose(device)
    path, why_path = network.path_for(_model_type(base), tuning)
    reasons = {
        "device": "a CUDA device is present" if cuda else "no CUDA device",
        "dtype": why,
        "kernels": why_kernels,
        "path": why_path,
        "threads": "every core this process may use",
    }
    capability = torch.backends.cpu.get_cpu_capability()
    name = torch.cuda.get_device_name() if cuda else f"{hardware.processor()} ({capability})"
    return ExecutionPlan(device, dtype, threads, memory.LARGEST_BUDGET[device], name, torch.__version__, kernels, path), reasons


def begin(spec: ResolvedSpec, base: Path, sink: RunSink) -> ResolvedSpec:
    """Give the spec a plan but for its budget; one it already has is obeyed, aloud where this machine is another."""
    here, reasons = draft(spec.tuning, base)
    if spec.plan is None:
        return dataclasses.replace(spec, plan=here, reasons={**spec.reasons, **reasons})
    there = spec.plan
    if there.device != here.device:
        spec = dataclasses.replace(spec, plan=dataclasses.replace(there, device=here.device, dtype=here.dtype, kernels=here.kernels))
    same = (there.device, there.processor, there.torch) == (here.device, here.processor, here.torch)
    lacking = there.kernels != "torch" and there.kernels != here.kernels
    if not same or lacking or there.threads > (os.cpu_count() or 1):
        where = f"This attempt runs on {here.device}, {here.processor}, torch {here.torch}, {here.kernels} kernels, not where the run began"
        words = f"{where}: its results are equal within round-off, not bit for bit."
        sink.event(Event(words, key=f"plan:{here.processor}", level="warn"))
    return spec


def settle(spec: ResolvedSpec, net: network.Network, longest: int, sink: RunSink) -> ResolvedSpec:
    """Choose the token budget by the memory that is free; `longest` is the longest example, which must fit in any case."""
    assert spec.plan is not None
    device = spec.plan.device
    whole, recomputed = memory.estimates(net)
    free = memory.free(device)
    budget, recompute, _ = memory.fit(whole, recomputed, free, device)
    one_by_one = net.path == "plain"
    net.recompute = recompute and not one_by_one
    most = longest if one_by_one else max(budget, longest)
    estimate = recomputed if net.recompute else whole
    peak = estimate.peak(most)
    what = f"one example at a time, {most:,} tokens at most, takes" if one_by_one else f"{budget:,} tokens a micro-batch take"
    words = f"{what} about {peak / 1e9:.1f} GB in all; {(free + whole.now) / 1e9:.1f} GB are there"
    said = f"Memory: {words}{', with activations computed twice to save it' if net.recompute else ''}."
    sink.event(Event(said, key="memory", data=dataclasses.asdict(estimate) | {"most_tokens": most}))
    if peak > whole.now + free:
        hint = "Hint: lower max_length, or use a machine with more memory."
        sink.event(
            Event(f"This may be too little memory: the longest example has {longest:,} tokens. {hint}", key="memory:short", level="warn")
        )
    plan = dataclasses.replace(spec.plan, path=net.path, token_budget=budget, recompute=net.recompute)
    return dataclasses.replace(spec, plan=plan, reasons={**spec.reasons, "token_budget": words})


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
