"""What processor this is and what it can do. Knows no torch, so that training and inference can both ask."""

from __future__ import annotations

import os
import platform
from pathlib import Path

#: Linux's names of the instructions that multiply bfloat16: AVX-512, AMX, and Arm's.
_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def processor() -> str:
    """Return the processor's model name."""
    return _cpu_info("model name") or platform.processor() or platform.machine()


def native_bfloat16() -> bool:
    """Say whether this processor multiplies bfloat16 natively; where it does not, float32 is faster."""
    return bool(_BFLOAT16_FLAGS & {*_cpu_info("flags").split(), *_cpu_info("Features").split()})


def has_gpu() -> bool:
    """Say whether there is a graphics processor of NVIDIA's; whether torch can use it is not known here."""
    return any(Path("/dev").glob("nvidia[0-9]*"))


def physical_cores() -> int:
    """Count the cores this process may use; a second thread on one core has no arithmetic unit of its own."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = set()
    for number in usable:
        siblings = Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list")
        cores.add(siblings.read_text() if siblings.exists() else str(number))
    return len(cores)


def oom_kills() -> int:
    """Count the processes that the kernel has killed for want of memory since it started; 0 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))


def _cpu_info(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")
