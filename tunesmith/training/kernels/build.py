"""Compiles the C++ kernels into this folder: `python -m tunesmith.training.kernels.build`. Knows no torch.

The library's name carries two hashes, of the sources and of the processor they were compiled for, so that a stale one is never
loaded. Without a compiler, or on a processor without AVX-512, nothing is built and training uses the kernels in plain torch.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
NATIVE = HERE / "native"
COMMAND = "python -m tunesmith.training.kernels.build"

#: Not -ffast-math: NaN and infinity must come through. No products and sums are fused but those that are written so, or the same
#: formula may give two values in two places. GCC's own intrinsics trip the warnings that are off.
FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra",
         "-Wno-uninitialized", "-Wno-maybe-uninitialized")  # fmt: skip

#: How the instruction sets are called that a compiler uses unasked. Other flags of a processor change with the operating system.
USED = ("abm", "avx", "bmi", "f16c", "fma", "movbe", "popcnt", "sse", "ssse")

#: What the kernels cannot do without; bfloat16 products are used where the processor has them.
NEEDED = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"})


def processor_flags() -> frozenset[str]:
    """Return the instruction sets of this processor by Linux's names; none where there is no /proc."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), []))


def library() -> Path:
    """Return where the library for these sources and this processor is, or would be."""
    sources = hashlib.sha256(" ".join(FLAGS).encode())
    for path in sorted(NATIVE.iterdir()):
        sources.update(path.name.encode() + b"\0" + path.read_bytes())
    processor = hashlib.sha256(" ".join(sorted(flag for flag in processor_flags() if flag.startswith(USED))).encode())
    return HERE / f"kernels-{sources.hexdigest()[:12]}-{processor.hexdigest()[:8]}.so"


def compiler() -> list[str] | None:
    """Return the command of the first C++ compiler there is."""
    for candidate in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        command = shlex.split(candidate)
        if command and shutil.which(command[0]):
            return command
    return None


def build() -> str:
    """Compile the kernels unless they are there; return one line that says what came of it."""
    target = library()
    if not processor_flags() >= NEEDED:
        return "C++ kernels: not built, this processor has no AVX-512; training uses the ones in plain torch."
    if target.exists():
        return f"C++ kernels: {target.name} is there."
    command = compiler()
    if command is None:
        return f"C++ kernels: not built, there is no C++ compiler; training uses slower ones. With one: {COMMAND}"
    print(f"C++ kernels: compiling with {shlex.join(command)}", flush=True)
    start = time.monotonic()
    error = _compile(command, target)
    if error:
        return f"C++ kernels: not built, training uses slower ones. The compiler says: {error}"
    for old in HERE.glob(f"kernels-*-{target.stem.rsplit('-', 1)[1]}.so"):
        if old != target:
            old.unlink(missing_ok=True)
    return f"C++ kernels: built {target.name} in {time.monotonic() - start:.0f} s."


def _compile(command: list[str], target: Path) -> str:
    """Compile and link, all files at once; return the first line of what went wrong, or nothing."""
    try:
        with tempfile.TemporaryDirectory(dir=HERE, prefix=".build-") as folder:
            sources = sorted(NATIVE.glob("*.cpp"))
            objects = [str(Path(folder) / f"{source.stem}.o") for source in sources]
            jobs = [
                subprocess.Popen([*command, *FLAGS, "-c", str(source), "-o", obj], stderr=subprocess.PIPE, text=True)
                for source, obj in zip(sources, objects, strict=True)
            ]
            errors = [job.communicate()[1] for job in jobs]
            failed = [error for job, error in zip(jobs, errors, strict=True) if job.returncode]
            if failed:
                return _first_error(failed[0])
            # OpenMP's functions stay open, so that they are those of the library that torch has loaded.
            made = str(Path(folder) / target.name)
            link = subprocess.run([*command, "-shared", *objects, "-o", made], stderr=subprocess.PIPE, text=True)
            if link.returncode:
                return _first_error(link.stderr)
            os.replace(made, target)
    except OSError as error:
        return str(error)
    return ""


def _first_error(text: str) -> str:
    lines = text.strip().splitlines() or ["nothing"]
    return next((line for line in lines if "error" in line), lines[0])


if __name__ == "__main__":
    print(build())
    sys.exit(0)
