"""Which kernels this machine has."""

from __future__ import annotations

from tunesmith.training.kernels import Kernels, cpu, reference


def choose(device: str) -> tuple[str, str]:
    """Return the name of the fastest kernels for a device, and why those."""
    if device != "cpu":
        return "torch", "plain torch"
    available, reason = cpu.available()
    return ("cpu", reason) if available else ("torch", f"plain torch: {reason}")


def by_name(name: str) -> Kernels:
    """Return kernels by the name that a plan has for them; plain torch where they cannot be had here."""
    return cpu.CpuKernels() if name == "cpu" and cpu.available()[0] else reference.TorchKernels()
