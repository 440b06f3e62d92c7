"""Training in a process of its own whose memory is measured or limited; run by test_memory.

python -m tests.unit.memory_trials peak BASE BUDGET PATH RECOMPUTE
python -m tests.unit.memory_trials limited BASE DATA DIRECTORY MEGABYTES
"""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
from pathlib import Path

import numpy as np
import psutil
import torch

from tests.unit.exactness import plan, resolved
from tunesmith.domain.jobs import Event
from tunesmith.domain.runs import Checkpoint, MetricPoint, RowLosses
from tunesmith.domain.specs import ResolvedSpec
from tunesmith.training import loop, memory, model
from tunesmith.training import plan as planning
from tunesmith.training.data import TokenizedExample
from tunesmith.training.network import Network


def peak(base: str, budget: str, path: str, recompute: str) -> None:
    """Print the estimate and what two steps really took, both in bytes."""
    drafted, _ = planning.draft("lora", Path(base))
    network = Network(
        model.load_base(Path(base), torch.bfloat16, "cpu"),
        resolved(lora_dropout=0.05),
        plan(torch.bfloat16, path=path, kernels=drafted.kernels),
    )
    estimate = memory.estimates(network)[recompute == "True"]
    network.recompute = recompute == "True"
    rng = np.random.default_rng(0)
    rows = [TokenizedExample(n, rng.integers(0, 40_000, 128), np.arange(128) > 64) for n in range(int(budget) // 128)]
    optimizer = torch.optim.AdamW(model.trainable(network.model).values())
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    for step in (1, 2):
        optimizer.zero_grad()
        network.refresh()
        for batch in network.micro_batches(rows, int(budget)):
            network.masks.begin(step, batch.hash_T)
            network.loss(batch, 1e-3).total.backward()
        optimizer.step()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(json.dumps({"estimate": estimate.peak(len(batch.ids_T)), "real": int(status["VmHWM"].split()[0]) * 1024}))


class LimitedSink:
    """Writes what it hears; before step 1 it takes away the process's room to grow, after the first cut it gives it back."""

    def __init__(self, directory: Path, megabytes: float) -> None:
        self.directory, self.megabytes = directory, megabytes
        self.points: list[MetricPoint] = []
        self.spec: ResolvedSpec | None = None

    def resolved(self, spec: ResolvedSpec) -> None:
        self.spec = spec
        (self.directory / "spec.json").write_text(json.dumps(spec.to_dict()))
        if spec.plan is not None and spec.plan.cuts:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        elif self.megabytes:
            room = psutil.Process().memory_info().vms + int(self.megabytes * 1e6)
            resource.setrlimit(resource.RLIMIT_AS, (room, resource.RLIM_INFINITY))

    def event(self, event: Event) -> None:
        print(event.message, file=sys.stderr)

    def metric(self, point: MetricPoint) -> None:
        self.points.append(point)

    def row_losses(self, losses: RowLosses) -> None:
        pass

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        (self.directory / "checkpoint").write_text(str(checkpoint.directory))

    def request(self) -> str:
        return "run"


def limited(base: str, data: str, directory: str, megabytes: str) -> None:
    """Train three steps, the first with so little memory, and print the losses and the cuts."""
    sink = LimitedSink(Path(directory), float(megabytes))
    spec = resolved(batch_size=64, n_steps=3, lora_dropout=0.1)
    before = sink.directory / "spec.json"
    if before.exists():  # go on as that run did
        spec = ResolvedSpec.from_dict(json.loads(before.read_text()))
    else:
        spec = dataclasses.replace(spec, plan=plan(torch.float32, token_budget=16_384))
    loop.train(loop.Order(spec, Path(base), Path(data), None, sink.directory / "run"), sink)  # type: ignore[arg-type]
    assert sink.spec is not None and sink.spec.plan is not None
    print(json.dumps({"losses": [point.train_loss for point in sink.points], "cuts": sink.spec.plan.cuts}))


if __name__ == "__main__":
    torch.set_num_threads(2)
    globals()[sys.argv[1]](*sys.argv[2:])
