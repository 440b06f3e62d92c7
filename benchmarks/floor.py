"""How long the matrix products of a training step alone take on this machine: the floor under every engine's step.

    python benchmarks/floor.py --tokens 3600 --targets 2800

A product is timed at its own shape, forward and backward, over the tokens of one step; what is frozen has no weight gradient.
Nothing else is counted: no attention, no norms, no softmax, no data. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import linear

LAYERS, RANK = 30, 16
#: SmolLM2-135M's layer: (inputs, outputs, projections that share the product) with q, k, v and gate, up side by side.
PROJECTIONS = ((576, 960, 3), (576, 576, 1), (576, 3072, 2), (1536, 576, 1))
HIDDEN, VOCABULARY = 576, 49152
_WARM, _TIMED = 2, 7

Product = tuple[str, int, Callable[[], Tensor], int]


def main() -> None:
    """Time every product in both types and add up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, required=True, help="Tokens of a step.")
    parser.add_argument("--targets", type=int, required=True, help="Tokens of a step that the loss is taken over.")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    types = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    floors = {name: _floor(arguments.tokens, arguments.targets, dtype) for name, dtype in types.items()}
    print(json.dumps(floors))


def _floor(tokens: int, targets: int, dtype: torch.dtype) -> dict[str, object]:
    """Return seconds of a step, tokens per second, and the speed of each product in GFLOP/s."""
    seconds, speeds = 0.0, {}
    for name, count, product, operations in _products(tokens, targets, dtype):
        once = _time(product)
        seconds += count * once
        speeds[name] = round(operations / once / 1e9, 1)
    return {"seconds": seconds, "tokens_per_second": tokens / seconds, "gflops": speeds}


def _products(tokens: int, targets: int, dtype: torch.dtype) -> Iterator[Product]:
    """Yield (name, how often in a step, the product, its floating point operations)."""
    for inputs, outputs, shared in PROJECTIONS:
        yield from _pair(f"{inputs}→{outputs}", LAYERS, tokens, inputs, outputs, dtype)
        yield from _lora(inputs, outputs, shared, tokens, dtype)
    yield from _pair(f"head {HIDDEN}→{VOCABULARY}", 1, targets, HIDDEN, VOCABULARY, dtype)


def _pair(name: str, count: int, tokens: int, inputs: int, outputs: int, dtype: torch.dtype) -> Iterator[Product]:
    x_TI, w_OI, dy_TO = (_random(*shape, dtype=dtype) for shape in ((tokens, inputs), (outputs, inputs), (tokens, outputs)))
    operations = 2 * tokens * inputs * outputs
    yield f"{name} forward", count, lambda: linear(x_TI, w_OI), operations
    yield f"{name} backward", count, lambda: dy_TO @ w_OI, operations


def _lora(inputs: int, outputs: int, shared: int, tokens: int, dtype: torch.dtype) -> Iterator[Product]:
    """A of all sharing projections is one product; each B has its own outputs. Both halves have weight gradients."""
    rank, own = RANK * shared, outputs // shared
    x_TI, a_RI, low_TR = (_random(*shape, dtype=dtype) for shape in ((tokens, inputs), (rank, inputs), (tokens, rank)))
    own_TR, b_OR, dy_TO = (_random(*shape, dtype=dtype) for shape in ((tokens, RANK), (own, RANK), (tokens, own)))
    name, a_operations, b_operations = f"LoRA {inputs}→{outputs}", 2 * tokens * inputs * rank, 2 * tokens * own * RANK
    yield f"{name} A forward", LAYERS, lambda: linear(x_TI, a_RI), a_operations
    yield f"{name} A backward", LAYERS, lambda: low_TR @ a_RI, a_operations
    yield f"{name} A gradient", LAYERS, lambda: low_TR.T @ x_TI, a_operations
    yield f"{name} B forward", LAYERS * shared, lambda: linear(own_TR, b_OR), b_operations
    yield f"{name} B backward", LAYERS * shared, lambda: dy_TO @ b_OR, b_operations
    yield f"{name} B gradient", LAYERS * shared, lambda: dy_TO.T @ own_TR, b_operations


def _random(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(rows, columns, dtype=dtype)


def _time(product: Callable[[], Tensor]) -> float:
    """Return the least seconds of a product: what disturbs the machine can only add."""
    seconds = []
    for _ in range(_WARM + _TIMED):
        started = time.perf_counter()
        product()
        seconds.append(time.perf_counter() - started)
    return min(seconds[_WARM:])


if __name__ == "__main__":
    main()
