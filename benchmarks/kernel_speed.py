"""How fast each kernel of training is at the shapes of a micro-batch of SmolLM2-135M: `python benchmarks/kernel_speed.py [names]`.

Times are the least of a few runs, each with empty caches; processor time on one thread (OMP_NUM_THREADS=1), which a busy machine
disturbs less. "a step" is what the kernel costs in a step of 4,096 tokens, over the model's 30 layers. Bytes are those that must be
read and written once, operations those of the sums that the masks leave.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from tunesmith.training.kernels import Attention, Drop, Kernels, cpu, reference
from tunesmith.training.packing import Layout

T, WIDTH, F, H, G, D, R, V, N, LAYERS = 4096, 576, 1536, 9, 3, 64, 16, 49152, 2048, 30
LENGTHS = [50, 800, 120, 90, 410, 160, 75, 300, 220, 60, 140, 640, 180, 95, 260, 496]


class Case(NamedTuple):
    """One kernel at one shape: what runs it, how often a step does, and what it must move and compute."""

    name: str
    run: Callable[[Kernels], object]
    times: int
    megabytes: float
    gigaflops: float = 0


def main() -> None:
    torch.manual_seed(0)
    ours, why = cpu.available()
    print(f"{why}; {torch.get_num_threads()} threads")
    total = {"cpu": 0.0, "torch": 0.0}
    print(f"{'':30}{'ours µs':>9}{'GB/s':>7}{'GFLOP/s':>9}{'a step ms':>11}{'torch µs':>10}")
    for case in cases(torch.bfloat16):
        if sys.argv[1:] and not any(name in case.name for name in sys.argv[1:]):
            continue
        seconds = {side.name: least(case, side) for side in ([cpu.CpuKernels()] if ours else []) + [reference.TorchKernels()]}
        s = seconds.get("cpu", seconds["torch"])
        print(
            f"{case.name:30}{s * 1e6:9.0f}{case.megabytes / s / 1e3:7.1f}{case.gigaflops / s:9.0f}{s * case.times * 1e3:11.1f}"
            f"{seconds['torch'] * 1e6:10.0f}"
        )
        for side in seconds:
            total[side] += seconds[side] * case.times
    print(f"a step: {total['cpu'] * 1e3:.0f} ms, in torch {total['torch'] * 1e3:.0f} ms")


def least(case: Case, side: Kernels) -> float:
    """Return the seconds of the fastest of a few runs."""
    now = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    elsewhere = torch.ones(2**24)
    best, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < (0.3 if side.name == "cpu" else 0.0) or best == float("inf"):
        elsewhere += 1
        before = now()
        case.run(side)
        best = min(best, now() - before)
    return best


def cases(dtype: torch.dtype) -> Iterator[Case]:
    """Every kernel as a layer uses it: norms, projections in their groups, attention, then the loss."""

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape).to(dtype)

    size = dtype.itemsize
    rows = T * size / 1e6
    h, out, dh, weight = some(T, WIDTH), some(T, WIDTH), some(T, WIDTH), torch.rand(WIDTH)
    yield Case("rms_norm", lambda k: k.rms_norm(h, weight, 1e-5, out), 2 * LAYERS, 2 * rows * WIDTH)
    rstd = reference.TorchKernels().rms_norm(h, weight, 1e-5, out)
    yield Case("rms_norm_backward", lambda k: k.rms_norm_backward(out, h, weight, rstd, dh), 2 * LAYERS, 4 * rows * WIDTH)
    gate_up, hidden = some(T, 2 * F), some(T, F)
    yield Case("glu", lambda k: k.glu(gate_up, "silu", hidden), LAYERS, 3 * rows * F)
    yield Case("glu_backward", lambda k: k.glu_backward(hidden, gate_up, "silu"), LAYERS, 5 * rows * F)
    cos, sin = torch.rand(T, D), torch.rand(T, D)
    qkv = some(T, (H + 2 * G) * D)
    q, k, v = (x.unflatten(1, (-1, D)) for x in qkv.split([H * D, G * D, G * D], dim=1))
    yield Case("rope q", lambda side: side.rope(q, cos, sin, False), 2 * LAYERS, 2 * rows * H * D)
    yield Case("rope k", lambda side: side.rope(k, cos, sin, False), 2 * LAYERS, 2 * rows * G * D)
    yield from lora_cases(some, rows)
    yield from attention_cases(q, k, v, rows)
    logits, targets = some(N, V), torch.randint(0, V, (N,))
    yield Case("cross_entropy, gradient", lambda k: k.cross_entropy(logits, targets, None, True), 1, 2 * N * V * size / 1e6)
    yield Case("cross_entropy", lambda k: k.cross_entropy(logits, targets, None, False), 0, N * V * size / 1e6)


def lora_cases(some: Callable[..., torch.Tensor], rows: float) -> Iterator[Case]:
    yield from projections("q k v", WIDTH, [H * D, G * D, G * D], some, rows)
    yield from projections("o", H * D, [WIDTH], some, rows)
    yield from projections("gate up", WIDTH, [F, F], some, rows)
    yield from projections("down", F, [WIDTH], some, rows)


def projections(name: str, features: int, outputs: list[int], some: Callable[..., torch.Tensor], rows: float) -> Iterator[Case]:
    """Projections of the same input, each with an adapter of rank R."""
    rank = R * len(outputs)
    x, a, low, dx, dy = some(T, features), some(rank, features), some(T, rank), some(T, features), some(T, sum(outputs))
    integers = (torch.randint(-(2**31), 2**31, (n,), dtype=torch.int32) for n in (T, features))
    drop = Drop(*integers, round(0.05 * 2**32) - 2**31)
    slices = list(zip(dy.split(outputs, 1), low.split(R, 1), strict=True))
    work = 2 * T * features * rank / 1e9
    yield Case(f"lora_down {name}", lambda k: k.lora_down(x, drop, a, low), LAYERS, rows * features, work)
    yield Case(f"lora_down_backward {name}", lambda k: k.lora_down_backward(low, x, drop, a, dx), LAYERS, 3 * rows * features, 2 * work)
    yield Case(
        f"lora_up_backward {name}",
        lambda k: [k.lora_up_backward(*pair) for pair in slices],
        LAYERS,
        rows * sum(outputs),
        2 * T * sum(outputs) * R / 1e9,
    )


def attention_cases(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: float) -> Iterator[Case]:
    starts = np.cumsum([0, *LENGTHS])[:-1].astype(np.int32)
    layout = Layout(starts, np.array(LENGTHS, np.int32), np.zeros(len(LENGTHS) + 1, np.int32), np.zeros(0, np.int32))
    how = Attention(D**-0.5)
    out, dout, dq, dk, dv = (torch.randn(x.shape).to(x.dtype) for x in (q, q, q, k, k))
    work = sum(2 * length * (length + 1) / 2 * H * D for length in LENGTHS) / 1e9
    moved = rows * D
    yield Case("attention", lambda side: side.attention(q, k, v, layout, how, out), LAYERS, moved * (2 * H + 2 * G), 2 * work)
    sides: list[Kernels] = [reference.TorchKernels()] + ([cpu.CpuKernels()] if cpu.available()[0] else [])
    saved = {side.name: side.attention(q, k, v, layout, how, out) for side in sides}
    yield Case(
        "attention_backward",
        lambda side: side.attention_backward(dout, q, k, v, out, saved[side.name], layout, how, dq, dk, dv),
        LAYERS,
        moved * (4 * H + 4 * G),
        5 * work,
    )


if __name__ == "__main__":
    main()
