"""The estimate against what training takes, the budget that fits, and training on when memory runs out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import write_chat
from tunesmith import processes
from tunesmith.training import memory
from tunesmith.training.memory import Estimate

ROOT = Path(__file__).parent.parent.parent


def trial(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.unit.memory_trials", *map(str, arguments)]
    environment = dict(os.environ) | processes.COMPUTE_ENVIRONMENT
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("budget,path,recompute", [(1024, "decoder", False), (2048, "decoder", True), (512, "modules", False)])
def test_the_estimate_is_within_15_percent(smollm2: Path, budget: int, path: str, recompute: bool) -> None:
    found = trial("peak", smollm2, budget, path, recompute)
    assert found["estimate"] == pytest.approx(found["real"], rel=0.15)


WHOLE, RECOMPUTED = Estimate(1e9, 0.5e9, 1e6), Estimate(1e9, 0.5e9, 2e5)


@pytest.mark.parametrize("free,expected", [
    (100e9, (4096, False)),
    (0.5e9 / 0.85 + 4096 * 1e6 / 0.85 + 1e6, (4096, False)),  # just enough
    (0.5e9 / 0.85 + 4096 * 1e6 / 0.85 - 1e6, (2048, False)),  # just not
    (2e9, (1024, False)),
    (1.5e9, (2048, True)),  # rather the work twice than many small products
    (1e9, (1024, True)),
    (0.7e9, (256, True)),
    (0.1e9, (128, True)),  # nothing fits; it is tried, and said
])  # fmt: skip
def test_the_budget_that_fits(free: float, expected: tuple[int, bool]) -> None:
    budget, recompute, peak = memory.fit(WHOLE, RECOMPUTED, free, "cpu")
    assert (budget, recompute) == expected
    assert peak == (RECOMPUTED if recompute else WHOLE).peak(budget)


def test_what_counts_as_out_of_memory() -> None:
    assert memory.is_exhausted(MemoryError())
    assert memory.is_exhausted(
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried ...")
    )
    assert not memory.is_exhausted(RuntimeError("shape mismatch")) and not memory.is_exhausted(ValueError("can't allocate memory"))


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the address space")
def test_out_of_memory_halves_the_budget_and_a_replay_obeys(tiny: Path, tmp_path: Path) -> None:
    """A real limit set before step 1: the step is done with smaller micro-batches, and a second run with that spec has the same bits."""
    rows = [(f"question {n} " + "x" * 150, f"answer {n} " + "y" * 150) for n in range(64)]
    data = write_chat(tmp_path / "data.jsonl", rows)
    folders = [tmp_path / name for name in ("cut", "replay", "plenty")]
    for folder in folders:
        folder.mkdir()
    cut = trial("limited", tiny, data, folders[0], 4)
    assert [moment for moment, _ in cut["cuts"]] == [1] * len(cut["cuts"]) and cut["cuts"][-1][1] < 16_384
    (folders[1] / "spec.json").write_text((folders[0] / "spec.json").read_text())
    replay, plenty = trial("limited", tiny, data, folders[1], 0), trial("limited", tiny, data, folders[2], 0)
    assert replay["losses"] == cut["losses"] and plenty["cuts"] == []
    assert plenty["losses"] == pytest.approx(cut["losses"], rel=1e-4)
    assert plenty["losses"] != cut["losses"]  # the control: the cut does change bits
