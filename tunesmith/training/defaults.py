"""The "auto" rules: from what was asked and what is known of model and data to what runs, each value with its reason.

Pure arithmetic; imports no torch, so that a worker can resolve a spec before it starts a trainer.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from tunesmith.domain.models import ModelFacts
from tunesmith.domain.specs import AUTO, BY_NAME, ResolvedSpec, TrainingSpec, Value, check_together
from tunesmith.errors import InvalidRequest

#: OpenAI's published data preparation notebook: aim at 3 passes, within 100 to 25,000 examples seen, 1 to 25 passes.
_TARGET_EPOCHS, _MIN_SEEN, _MAX_SEEN, _MAX_EPOCHS = 3, 100, 25_000, 25
_MAX_LENGTH = 2048


@dataclass(frozen=True)
class DataFacts:
    """What the defaults need to know of the data."""

    num_training: int
    num_validation: int


@dataclass(frozen=True)
class AdapterFacts:
    """The adapter that training continues from."""

    name: str
    rank: int
    alpha: float


def base_learning_rate(facts: ModelFacts, tuning: str) -> tuple[float, str]:
    """Return the peak learning rate that suits a model of this size, and why.

    Full tuning: 1e-5 at 7 billion parameters, growing with the inverse cube root of the size. LoRA: ten times that, the
    ratio found over many models in "LoRA Without Regret" (Schulman et al., 2025). Both at most 1e-3.
    """
    billions = max(facts.num_parameters, 1) / 1e9
    full = 1e-5 * (7 / billions) ** (1 / 3)
    rate = float(f"{min(full * (10 if tuning == 'lora' else 1), 1e-3):.2g}")
    kind = "LoRA, 10 x the full-tuning rate" if tuning == "lora" else "full tuning"
    return rate, f"auto: {kind} for a model of {facts.num_parameters / 1e6:,.0f} M parameters"


def num_epochs(num_examples: int) -> tuple[int, str]:
    """Return the number of passes OpenAI's rule gives for this many examples, and why."""
    if _TARGET_EPOCHS * num_examples < _MIN_SEEN:
        return min(_MAX_EPOCHS, max(1, _MIN_SEEN // num_examples)), f"auto: {num_examples} examples are few, so about {_MIN_SEEN} are seen"
    if _TARGET_EPOCHS * num_examples > _MAX_SEEN:
        return max(1, _MAX_SEEN // num_examples), f"auto: {num_examples} examples are many, so about {_MAX_SEEN} are seen"
    return _TARGET_EPOCHS, f"auto: {_TARGET_EPOCHS} passes suit {num_examples} examples"


def batch_size(num_examples: int) -> tuple[int, str]:
    """Return the batch size for this many examples, and why."""
    if num_examples < 64:
        return max(1, num_examples // 8), f"auto: an eighth of {num_examples} examples"
    return min(256, max(8, round(0.002 * num_examples))), f"auto: 0.2 % of {num_examples} examples, at least 8, at most 256"


def max_length(facts: ModelFacts) -> int:
    """Return the length in tokens at which rows are cut where nothing else is asked."""
    return min(facts.max_length, _MAX_LENGTH)


def resolve(
    spec: TrainingSpec, facts: ModelFacts, data: DataFacts, adapter: AdapterFacts | None = None, seed: int | None = None
) -> ResolvedSpec:
    """Turn what was asked into what runs. `seed` is the job's own, for when the hyperparameter is "auto".

    Raises: InvalidRequest for values that contradict each other, the model or the data.
    """
    asked = dict(spec.values)
    resolved: dict[str, Any] = {}
    reasons = {name: "asked" if name in spec.asked else "default" for name in BY_NAME}

    def settle(name: str, value: Value, reason: str) -> None:
        """Use `value` where "auto" was asked or is the default."""
        if asked[name] == AUTO:
            resolved[name], reasons[name] = value, reason
        else:
            resolved[name] = asked[name]

    if adapter:  # its own rank and alpha stand in for the table's defaults
        asked |= {name: AUTO for name in ("lora_rank", "lora_alpha") if name not in spec.asked}
    settle("tuning", "lora", "auto: a causal language model is tuned by LoRA")
    settle("lora_rank", adapter.rank if adapter else 16, f"auto: as in {adapter.name}" if adapter else "auto: 16 suits most tasks")
    settle("lora_alpha", adapter.alpha if adapter else 64, f"auto: as in {adapter.name}" if adapter else "auto: scale alpha / rank = 4")
    settle("lora_dropout", 0.05, "auto: a light regularizer")
    settle("batch_size", *batch_size(data.num_training))
    settle("accumulation_steps", 1, "auto: batch_size is the whole batch")
    settle("n_steps", None, "auto: n_epochs decides")
    settle("n_epochs", *num_epochs(data.num_training))
    settle("learning_rate_multiplier", 1.0, "auto: the base learning rate as it is")
    rate, why = base_learning_rate(facts, resolved["tuning"])
    settle("base_learning_rate", rate, why)
    settle("training_split", None, "auto: every training row trains")
    settle("stop_eval_loss", None, "auto: no such stop")
    settle("early_stopping_patience", None, "auto: no such stop")
    settle("select_by", "last", "auto: the last weights, as at OpenAI")
    settle("eval_interval", 10, "auto: every 10 steps")
    settle("eval_samples", resolved["batch_size"], "auto: batch_size rows")
    settle("checkpoint_seconds", 300.0, "auto: at most 5 minutes of work are at risk")
    settle("seed", *((seed, "auto: the job's seed") if seed is not None else (random.SystemRandom().randrange(2**31), "auto: drawn")))
    settle("learning_rate_schedule", "linear", "auto: falls in a line to 0")
    settle("warmup_ratio", 0.03, "auto: a short warm-up")
    settle("max_length", max_length(facts), f"auto: the model's {facts.max_length}, at most {_MAX_LENGTH}")
    settle("score_training_rows", False, "auto: costs a pass over the training rows")

    usual, _ = base_learning_rate(facts, resolved["tuning"])
    result = ResolvedSpec(model=spec.model, reasons=reasons, usual_learning_rate=usual, **resolved)
    check_together(resolved, spec.asked, has_validation=bool(data.num_validation))
    _check_with_facts(result, facts, adapter)
    if data.num_validation and result.training_split is not None:
        reasons["training_split"] += "; not used, there is a validation file"
    return result


def warnings(spec: ResolvedSpec, facts: ModelFacts) -> list[str]:
    """Return what a user should hear before the run: a learning rate far from the model's own."""
    usual = spec.usual_learning_rate or base_learning_rate(facts, spec.tuning)[0]
    ratio = spec.learning_rate / usual
    if 0.01 <= ratio <= 30:
        return []
    way = "so low that the run may learn nothing" if ratio < 1 else "so high that the run may diverge"
    return [
        f"The learning rate {spec.learning_rate:.3g} (base_learning_rate {spec.base_learning_rate:g} x learning_rate_multiplier "
        f"{spec.learning_rate_multiplier:g}) is {ratio:.3g} x the {usual:.3g} that suits this model: {way}."
    ]


def _check_with_facts(spec: ResolvedSpec, facts: ModelFacts, adapter: AdapterFacts | None) -> None:
    if spec.max_length > facts.max_length:
        raise InvalidRequest(f"max_length {spec.max_length} is over the model's context of {facts.max_length} tokens.", param="max_length")
    if spec.tuning == "full" and adapter:
        raise InvalidRequest(f"{adapter.name} is an adapter; training continues from it with tuning 'lora', not 'full'.", param="tuning")
    if adapter and (spec.lora_rank, spec.lora_alpha) != (adapter.rank, adapter.alpha):
        raise InvalidRequest(
            f"{adapter.name} has lora_rank {adapter.rank} and lora_alpha {adapter.alpha:g}; training that continues from it keeps them, "
            f"but {spec.lora_rank} and {spec.lora_alpha:g} were asked. Hint: leave both out.",
            param="lora_rank",
        )
