"""How long a run will take and how much memory, reckoned before anything is loaded. Rough: `memory` and the run itself know better.

Imports no torch. The constants were measured on SmolLM2-135M on two cores of an AMD EPYC with AVX-512.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tunesmith import hardware
from tunesmith.domain.models import ModelFacts
from tunesmith.domain.specs import ResolvedSpec

#: English chat rows as JSON lines have 4.3 to 5.5 bytes for each token of SmolLM2.
BYTES_PER_TOKEN = 4.5
#: Floating-point operations that training gets done in a second on one core, with bfloat16 products and without.
_SPEED = {True: 320e9, False: 75e9}
#: Operations for each parameter and token. Forward takes 2, gradients of inputs 2, and of weights, where all are trained, 2 more.
_OPERATIONS = {"lora": 4, "full": 6}
_FORWARD = 2
#: Seconds before the first step: libraries, weights, the passes that estimate memory.
_START = 10.0
#: Most full evaluations of a run, as in `loop`; the base model's besides.
_FULL_EVALUATIONS = 50
#: Bytes of the process before the weights are loaded.
_EMPTY = 0.4e9
#: Numbers that a token keeps for the backward pass, for each input and output of the layers' matrices.
_KEPT = {"decoder": 0.63, "modules": 1.64}
_FAST = ("Llama", "Qwen2", "Qwen3", "Mistral", "Gemma2", "Gemma3", "Phi3")
_LARGEST_BUDGET = 4096
#: Tokens of a large step beside those of the average one; rows differ in length.
_LARGEST_STEP = 1.3


@dataclass(frozen=True)
class Work:
    """Tokens that a run trains on and evaluates, every pass counted; the most that are in one step."""

    trained: float
    evaluated: float
    step: float


def work(spec: ResolvedSpec, num_training: int, num_validation: int, row_tokens: float, validation_row_tokens: float) -> Work:
    """Return a run's work; rows have so many tokens on average."""
    steps, per_step = spec.total_steps(num_training), min(spec.examples_per_step, num_training)
    per_epoch = -(-num_training // spec.examples_per_step)
    epochs, rest = divmod(steps, per_epoch)
    trained = epochs * num_training + rest * per_step
    full = 1 + min(_FULL_EVALUATIONS, math.ceil(steps / per_epoch))
    samples = steps // spec.eval_interval * min(spec.eval_samples, num_validation) if spec.eval_interval else 0
    evaluated = full * num_validation + samples
    return Work(trained * row_tokens, evaluated * validation_row_tokens, _LARGEST_STEP * per_step * row_tokens)


def tokens_per_second(facts: ModelFacts, tuning: str) -> tuple[float, str]:
    """Return how fast this machine's processor trains, and what that is reckoned from."""
    fast, cores = tuning == "lora" and hardware.native_bfloat16(), hardware.physical_cores()
    rate = cores * _SPEED[fast] / (_OPERATIONS[tuning] * max(facts.num_parameters, 1))
    kind = "bfloat16" if fast else "float32"
    return rate, f"{facts.num_parameters / 1e6:,.0f} M parameters and {cores} cores at {_SPEED[fast] / 1e9:.0f} GFLOP/s in {kind}"


def seconds(work: Work, tuning: str, rate: float) -> float:
    """Return how long a run takes at `rate` tokens of training a second."""
    return _START + work.trained / rate + work.evaluated / (rate * _OPERATIONS[tuning] / _FORWARD)


def adapter_bytes(facts: ModelFacts, rank: int) -> float:
    """Return what LoRA's parameters, their gradients and Adam's two moments take, four bytes a number."""
    return 16.0 * rank * facts.width


def peak_bytes(facts: ModelFacts, spec: ResolvedSpec, tokens: float) -> float:
    """Return the memory of a run whose largest step has so many tokens.

    Weights and a copy in the order in which they are multiplied; what is trained, with gradients and moments; a token's activations.
    """
    full = spec.tuning == "full"
    size = 2 if hardware.native_bfloat16() and not full else 4
    weights = (4 + 12 if full else 2 * size) * facts.num_parameters
    path = "decoder" if facts.architecture.startswith(_FAST) and not full else "modules"
    adapter = 0.0 if full else adapter_bytes(facts, spec.lora_rank)
    return _EMPTY + weights + adapter + _KEPT[path] * size * facts.width * min(tokens, _LARGEST_BUDGET)
