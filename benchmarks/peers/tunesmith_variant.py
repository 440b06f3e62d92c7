"""`tunesmith` as ever, but for choices of its own that the benchmark makes instead: `tunesmith_variant.py kernels=torch train ...`."""

from __future__ import annotations

import sys

from tunesmith import cli, processes

processes.compute_here()  # before torch is imported

from tunesmith.training import batching, network  # noqa: E402
from tunesmith.training.kernels import cpu, selection  # noqa: E402

_WHY = "the benchmark asked for it"


def main() -> None:
    """Override what the leading words name, then be `tunesmith`."""
    while "=" in sys.argv[1]:
        name, _, value = sys.argv.pop(1).partition("=")
        _OVERRIDES[name](value)
    cli.main()


def _kernels(name: str) -> None:
    available, reason = cpu.available()
    if name == "cpu" and not available:
        sys.exit(f"no C++ kernels: {reason}")
    selection.choose = lambda device: (name, _WHY)


def _path(name: str) -> None:
    network.path_for = lambda model_type, tuning: (name, _WHY)


def _share(_off: str) -> None:
    cut = batching.micro_batches
    batching.micro_batches = lambda *arguments, share: cut(*arguments, share=False)


_OVERRIDES = {"kernels": _kernels, "path": _path, "share": _share}


if __name__ == "__main__":
    main()
