"""Hyperparameters: one table of what may be asked, the spec that was asked, and the spec that runs.

The table is the only list of them: API validation, command-line options and docs/hyperparameters.md are made from it.
Resolving "auto" needs facts of the model and the data and lives in `tunesmith.training.defaults`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from tunesmith.errors import InvalidRequest

Value = int | float | str | None
AUTO = "auto"


@dataclass(frozen=True)
class Hyperparameter:
    """One row of the table. Bounds are inclusive unless `exclusive` names the side that is not."""

    name: str
    kind: type[int] | type[float] | type[str] | type[bool]
    train_default: Value
    api_default: Value
    help: str
    minimum: float | None = None
    maximum: float | None = None
    exclusive: Literal["", "minimum", "maximum", "both"] = ""
    none: bool = False
    choices: tuple[str, ...] = ()

    @property
    def accepted(self) -> str:
        """Say in words what values are accepted."""
        if self.choices:
            words = " or ".join(repr(choice) for choice in self.choices)
        elif self.kind is bool:
            words = "true or false"
        else:
            words = "an integer" if self.kind is int else "a number"
            if self.minimum is not None:
                words += f" {'>' if self.exclusive in ('minimum', 'both') else '>='} {self.minimum:.12g}"
            if self.maximum is not None:
                joint = " and" if self.minimum is not None else ""
                words += f"{joint} {'<' if self.exclusive in ('maximum', 'both') else '<='} {self.maximum:.12g}"
        if AUTO not in self.choices:
            words += ", 'auto'"
        return words + (" or null" if self.none else "")

    def check(self, value: Any, param: str) -> Value:
        """Return `value` in this hyperparameter's type.

        Raises: InvalidRequest naming `param`, the value and what is accepted.
        """
        if value == AUTO or (value is None and self.none):
            return value  # type: ignore[no-any-return]
        problem = InvalidRequest(f"Invalid value for '{param}': {value!r}. Expected {self.accepted}.", param=param)
        if self.kind is str:
            if value not in self.choices:
                raise problem
            return str(value)
        if self.kind is bool:
            if not isinstance(value, bool):
                raise problem
            return value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:  # nan too
            raise problem
        if self.kind is int and value != int(value):
            raise problem
        low = self.minimum is not None and (value < self.minimum or (value == self.minimum and self.exclusive in ("minimum", "both")))
        high = self.maximum is not None and (value > self.maximum or (value == self.maximum and self.exclusive in ("maximum", "both")))
        if low or high:
            raise problem
        return self.kind(value)


_Kind = type[int] | type[float] | type[str] | type[bool]


def _h(name: str, kind: _Kind, train: Value, api: Value, help: str, **rules: Any) -> Hyperparameter:
    return Hyperparameter(name, kind, train, api, help, **rules)


HYPERPARAMETERS: tuple[Hyperparameter, ...] = (
    _h("lora_alpha", float, 64, 64, "Scale of the update: alpha / rank.", minimum=0, maximum=65536, exclusive="minimum"),
    _h("lora_dropout", float, 0.05, 0.05, "Dropout on the LoRA branch's input.", minimum=0, maximum=1, exclusive="maximum"),
    _h("lora_rank", int, 16, 16, "Rank r of the update.", minimum=1, maximum=1024),
    _h("tuning", str, AUTO, AUTO, "Train an adapter (lora) or every weight (full).", choices=("auto", "lora", "full")),
    _h("batch_size", int, 4, AUTO, "Examples per accumulation step.", minimum=1, maximum=256),
    _h(
        "accumulation_steps",
        int,
        4,
        1,
        "Accumulation steps per optimizer update: batch_size x accumulation_steps examples.",
        minimum=1,
        maximum=4096,
    ),
    _h("n_steps", int, 500, None, "Most optimizer updates.", minimum=1, maximum=10_000_000, none=True),
    _h("n_epochs", int, 500, AUTO, "Most passes over the training data.", minimum=1, maximum=10_000, none=True),
    _h(
        "learning_rate_multiplier",
        float,
        2.5e-5,
        AUTO,
        "Learning rate = base_learning_rate x learning_rate_multiplier.",
        minimum=0,
        exclusive="minimum",
    ),
    _h("base_learning_rate", float, 1.0, AUTO, "The rate that the multiplier scales.", minimum=0, exclusive="minimum"),
    _h(
        "training_split",
        float,
        0.8,
        None,
        "Share used for training where no validation file is given; the rest validates.",
        minimum=0,
        maximum=1,
        exclusive="both",
        none=True,
    ),
    _h("stop_eval_loss", float, 0.01, None, "Stop when the full validation loss falls below it.", minimum=0, none=True),
    _h(
        "early_stopping_patience",
        int,
        None,
        None,
        "Full evaluations without improvement beyond noise after which to stop.",
        minimum=1,
        maximum=10_000,
        none=True,
    ),
    _h(
        "select_by",
        str,
        "last",
        "last",
        "Which weights become the model.",
        choices=("last", "full_valid_loss", "accuracy", "f1_macro"),
    ),
    _h("eval_interval", int, AUTO, AUTO, "Steps between sampled validations.", minimum=1, maximum=1_000_000, none=True),
    _h("eval_samples", int, AUTO, AUTO, "Rows of a sampled validation.", minimum=1, maximum=1_000_000),
    _h("checkpoint_seconds", float, 300, 300, "Longest time without a checkpoint.", minimum=0, maximum=86_400),
    _h("seed", int, 42, AUTO, "Everything random.", minimum=0, maximum=2**31 - 1),
    _h(
        "learning_rate_schedule",
        str,
        "linear",
        "linear",
        "How the learning rate falls after the warm-up.",
        choices=("linear", "cosine", "constant"),
    ),
    _h(
        "warmup_ratio",
        float,
        0.03,
        0.03,
        "Share of the steps over which the learning rate rises from 0.",
        minimum=0,
        maximum=1,
        exclusive="maximum",
    ),
    _h("max_length", int, AUTO, AUTO, "Longest example in tokens; longer ones are cut at the end.", minimum=8, maximum=1_048_576),
    _h("score_training_rows", bool, False, False, "Score each training row with the final weights, for the report to name the worst."),
)
BY_NAME: Mapping[str, Hyperparameter] = {h.name: h for h in HYPERPARAMETERS}

#: AdamW's constants; the same for every run.
ADAM_BETAS = (0.9, 0.999)
ADAM_EPS = 1e-8
WEIGHT_DECAY = 0.0
MAX_GRAD_NORM = 1.0

MAX_LEARNING_RATE = 1e-2

Source = Literal["train", "api"]


@dataclass(frozen=True)
class TrainingSpec:
    """What was asked: a model and every hyperparameter, defaults filled in, "auto" not yet resolved."""

    model: str
    values: Mapping[str, Value]
    asked: Mapping[str, Value]
    source: Source

    @classmethod
    def ask(cls, model: str, asked: Mapping[str, Any], source: Source, *, prefix: str = "") -> TrainingSpec:
        """Check what was asked and fill in the defaults of `source`.

        `prefix` goes before the name in errors ("method.supervised.hyperparameters.").
        Raises: InvalidRequest for an unknown name (with a suggestion) or a value out of range.
        """
        for name in asked:
            if name not in BY_NAME:
                near = difflib.get_close_matches(name, BY_NAME, n=1)
                hint = f" Did you mean '{near[0]}'?" if near else f" Accepted: {', '.join(BY_NAME)}."
                raise InvalidRequest(f"Unknown hyperparameter '{name}'.{hint}", param=prefix + name)
        checked = {name: BY_NAME[name].check(value, prefix + name) for name, value in asked.items()}
        defaults = {h.name: h.train_default if source == "train" else h.api_default for h in HYPERPARAMETERS}
        values = defaults | checked
        if values["n_steps"] in (None, AUTO) and values["n_epochs"] is None:
            words = f"n_epochs is null and n_steps is {values['n_steps'] or 'null'}: nothing would end the run. Set one of them."
            raise InvalidRequest(words, param=prefix + "n_epochs")
        return cls(model, values, checked, source)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready form; `from_dict` reads it back."""
        return {"model": self.model, "asked": dict(self.asked), "source": self.source}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrainingSpec:
        """Read what `to_dict` wrote, checking it again."""
        return cls.ask(data["model"], data["asked"], data["source"])


def check_together(values: Mapping[str, Value], asked: Mapping[str, Value], *, has_validation: bool, prefix: str = "") -> None:
    """Check what can be known of the values together before model and data are; "auto" contradicts nothing.

    Raises: InvalidRequest.
    """
    base, multiplier = values["base_learning_rate"], values["learning_rate_multiplier"]
    if isinstance(base, (int, float)) and isinstance(multiplier, (int, float)) and not 0 < base * multiplier <= MAX_LEARNING_RATE:
        raise InvalidRequest(
            f"base_learning_rate {base:g} x learning_rate_multiplier {multiplier:g} = {base * multiplier:g}; "
            f"the learning rate must lie in (0, {MAX_LEARNING_RATE:g}]. "
            "Hint: leave base_learning_rate on 'auto' and give a multiplier near 1, or set it to 1 and give the rate itself.",
            param=prefix + "learning_rate_multiplier",
        )
    if values["select_by"] == "f1_macro":
        words = "select_by 'f1_macro' needs a classification run; a language model has 'last', 'full_valid_loss' or 'accuracy'."
        raise InvalidRequest(words, param=prefix + "select_by")
    if has_validation or values["training_split"] not in (None, AUTO):
        return
    for name, unused in {"stop_eval_loss": None, "early_stopping_patience": None, "select_by": "last"}.items():
        if asked.get(name, unused) not in (unused, AUTO):
            raise InvalidRequest(f"{name} needs validation data: give a validation file or a training_split.", param=prefix + name)


def training_rows(count: int, share: float) -> int:
    """Return how many of `count` rows are trained on where a `share` is asked for: at least one, and at least one validates."""
    return min(max(round(count * share), 1), count - 1)


#: Tokens; with less memory than that takes, a run cannot go on.
SMALLEST_BUDGET = 128


@dataclass(frozen=True)
class ExecutionPlan:
    """How this machine computes the run; frozen with the spec, so that a resumed attempt computes the same bits."""

    device: str
    dtype: str
    threads: int
    #: Most tokens in one physical micro-batch; a power of two.
    token_budget: int
    #: Processor type, the scope of "bit for bit".
    processor: str
    #: torch's version.
    torch: str
    #: Who computes what is not a matrix product: "torch", "cpu" or "cuda".
    kernels: str = "torch"
    #: Which way the model is computed: "decoder", "modules" or "plain".
    path: str = "modules"
    #: Whether activations are computed again in the backward pass instead of kept.
    recompute: bool = False
    #: Where memory ran out: (step, budget from then on); half a step more for the evaluation after the step.
    cuts: tuple[tuple[float, int], ...] = ()

    def budget_at(self, moment: float) -> int:
        """Return the token budget that holds at a step (half a step more: at the evaluation after it)."""
        return min((budget for since, budget in self.cuts if since <= moment), default=self.token_budget)

    def halved(self, moment: float) -> ExecutionPlan | None:
        """Return the plan with half the token budget from a moment on, or None when that would be too small."""
        budget = self.budget_at(moment) // 2
        return dataclasses.replace(self, cuts=(*self.cuts, (moment, budget))) if budget >= SMALLEST_BUDGET else None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ExecutionPlan:
        """Read what `asdict` made and JSON carried."""
        return cls(**{**data, "cuts": tuple((since, budget) for since, budget in data.get("cuts", ()))})


@dataclass(frozen=True)
class ResolvedSpec:
    """What runs: each hyperparameter's value, and in `reasons` why it has that value."""

    model: str
    lora_alpha: float
    lora_dropout: float
    lora_rank: int
    tuning: Literal["lora", "full"]
    batch_size: int
    accumulation_steps: int
    n_steps: int | None
    n_epochs: int | None
    learning_rate_multiplier: float
    base_learning_rate: float
    training_split: float | None
    stop_eval_loss: float | None
    early_stopping_patience: int | None
    select_by: Literal["last", "full_valid_loss", "accuracy", "f1_macro"]
    eval_interval: int | None
    eval_samples: int
    checkpoint_seconds: float
    seed: int
    learning_rate_schedule: Literal["linear", "cosine", "constant"]
    warmup_ratio: float
    max_length: int
    score_training_rows: bool = False
    reasons: Mapping[str, str] = field(default_factory=dict)
    #: The learning rate that suits the model, whatever was asked.
    usual_learning_rate: float | None = None
    #: Set when training starts on a machine; None before.
    plan: ExecutionPlan | None = None

    @property
    def learning_rate(self) -> float:
        """The peak learning rate."""
        return self.base_learning_rate * self.learning_rate_multiplier

    @property
    def examples_per_step(self) -> int:
        """Examples behind one optimizer update."""
        return self.batch_size * self.accumulation_steps

    def total_steps(self, num_examples: int) -> int:
        """Return the planned number of optimizer updates with so many training examples; an epoch's last one takes what is left."""
        by_epochs = self.n_epochs * -(-num_examples // self.examples_per_step) if self.n_epochs else math.inf
        return int(min(by_epochs, self.n_steps or math.inf))

    def hyperparameters(self) -> dict[str, Value]:
        """Return name -> value, in the table's order."""
        return {h.name: getattr(self, h.name) for h in HYPERPARAMETERS}

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready form; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ResolvedSpec:
        """Read what `to_dict` wrote."""
        values = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        plan = values.pop("plan", None)
        return cls(**values, plan=ExecutionPlan.from_dict(plan) if plan else None)
