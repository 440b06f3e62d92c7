"""Which kernels this machine has."""

from __future__ import annotations

from tunesmith.training.kernels import Kernels, cpu, cuda, reference


def choose(device: str) -> tuple[str, str]:
    """Return the name of the fastest kernels for a device ("cpu" or "cuda"), and why those."""
    available, reason = cuda.available() if device == "cuda" else cpu.available()
    return (device, reason) if available else ("torch", f"plain torch: {reason}")


def by_name(name: str) -> Kernels:
    """Return kernels by the name that a plan has for them; plain torch where they cannot be had here."""
    if name == "cpu" and cpu.available()[0]:
        return cpu.CpuKernels()
    if name == "cuda" and cuda.available()[0]:
        return cuda.CudaKernels()
    return reference.TorchKernels()
