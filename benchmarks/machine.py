"""What the figures were measured on. Knows no contender."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import subprocess
import time
from pathlib import Path

from tunesmith import hardware

_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "bf16")


def describe() -> dict[str, object]:
    """Return processor, memory, versions, date and commit."""
    return {
        "processor": hardware.processor(),
        "cores": hardware.physical_cores(),
        "flags": [flag for flag in _FLAGS if flag in _flags()],
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "transformers": importlib.metadata.version("transformers"),
        "date": time.strftime("%Y-%m-%d"),
        "commit": _commit(),
    }


def others_seconds() -> float:
    """Return the processor seconds since the start that neither this process nor its finished children took; 0 where Linux is not."""
    path = Path("/proc/stat")
    if not path.is_file():
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = map(int, path.read_text().split()[1:9])
    own = sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK") - own


def _flags() -> set[str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return {word for line in lines if line.lower().startswith(("flags", "features")) for word in line.split()}


def _commit() -> str:
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(git, capture_output=True, text=True).stdout.strip()
