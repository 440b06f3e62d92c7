"""The hyperparameter table, what may be asked of it, and what "auto" becomes, each with its reason."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.domain.models import ModelFacts
from tunesmith.domain.specs import AUTO, BY_NAME, HYPERPARAMETERS, ExecutionPlan, Hyperparameter, ResolvedSpec, TrainingSpec
from tunesmith.errors import InvalidRequest
from tunesmith.training import defaults
from tunesmith.training.defaults import AdapterFacts, DataFacts

#: name, default of `tunesmith train`, default over the API, whether null is accepted. A new knob is a deliberate line here.
TABLE = [
    ("lora_alpha", 64, 64, False),
    ("lora_dropout", 0.05, 0.05, False),
    ("lora_rank", 16, 16, False),
    ("tuning", "auto", "auto", False),
    ("batch_size", 4, "auto", False),
    ("accumulation_steps", 4, 1, False),
    ("n_steps", 500, None, True),
    ("n_epochs", 500, "auto", True),
    ("learning_rate_multiplier", 2.5e-5, "auto", False),
    ("base_learning_rate", 1.0, "auto", False),
    ("training_split", 0.8, None, True),
    ("stop_eval_loss", 0.01, None, True),
    ("early_stopping_patience", None, None, True),
    ("select_by", "last", "last", False),
    ("eval_interval", "auto", "auto", True),
    ("eval_samples", "auto", "auto", False),
    ("checkpoint_seconds", 300, 300, False),
    ("seed", 42, "auto", False),
    ("learning_rate_schedule", "linear", "linear", False),
    ("warmup_ratio", 0.03, 0.03, False),
    ("max_length", "auto", "auto", False),
    ("score_training_rows", False, False, False),
]
#: name, values on the border that are accepted, values just beyond that are not.
BOUNDS: list[tuple[str, list[Any], list[Any]]] = [
    ("lora_alpha", [1e-3, 0.5, 65536], [0, -1, 65536.1]),
    ("lora_dropout", [0, 0.999], [-0.01, 1]),
    ("lora_rank", [1, 1024], [0, 1025, 1.5]),
    ("batch_size", [1, 256], [0, 257, 2.5]),
    ("accumulation_steps", [1, 4096], [0, 4097]),
    ("n_steps", [1, 10_000_000], [0, 10_000_001, 0.5]),
    ("n_epochs", [1, 50, 10_000], [0, -1, 10_001]),
    ("learning_rate_multiplier", [1e-12, 100.0], [0, -1]),
    ("base_learning_rate", [1e-12, 100.0], [0, -1]),
    ("training_split", [0.001, 0.999], [0, 1, 1.5]),
    ("stop_eval_loss", [0, 10], [-0.1]),
    ("early_stopping_patience", [1, 10_000], [0, 10_001]),
    ("eval_interval", [1, 1_000_000], [0, 1_000_001]),
    ("eval_samples", [1, 1_000_000], [0, 1_000_001]),
    ("checkpoint_seconds", [0, 86_400], [-1, 86_401]),
    ("seed", [0, 2**31 - 1], [-1, 2**31]),
    ("warmup_ratio", [0, 0.99], [-0.1, 1]),
    ("max_length", [8, 1_048_576], [7, 1_048_577]),
]
FACTS = ModelFacts("LlamaForCausalLM", 134_515_008, 8192, True)
DATA = DataFacts(440, 90)


def ask(source: Any = "api", **asked: Any) -> TrainingSpec:
    return TrainingSpec.ask("m", asked, source)


def resolve(source: Any = "api", data: DataFacts = DATA, adapter: AdapterFacts | None = None, **asked: Any) -> ResolvedSpec:
    return defaults.resolve(ask(source, **asked), FACTS, data, adapter)


def refused(call: Any, *arguments: Any, **named: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        call(*arguments, **named)
    return caught.value


def test_the_table_is_the_documented_one() -> None:
    assert [(h.name, h.train_default, h.api_default, h.none) for h in HYPERPARAMETERS] == TABLE
    assert [field.name for field in dataclasses.fields(ResolvedSpec)] == ["model", *BY_NAME, "reasons", "usual_learning_rate", "plan"]
    for h in HYPERPARAMETERS:
        assert (
            h.help.endswith(".") and h.check(h.train_default, h.name) == h.train_default and h.check(h.api_default, h.name) == h.api_default
        )


@pytest.mark.parametrize("name,inside,outside", BOUNDS, ids=[name for name, _, _ in BOUNDS])
def test_bounds(name: str, inside: list[Any], outside: list[Any]) -> None:
    for value in inside:
        assert ask(**{name: value}).values[name] == value
    for value in [*outside, math.nan, math.inf, -math.inf, True, "3", "none", [1], {}, 10**400, -(10**400)]:
        error = refused(TrainingSpec.ask, "m", {name: value}, "api", prefix="method.supervised.hyperparameters.")
        assert error.param == f"method.supervised.hyperparameters.{name}" and error.status == 400
        assert f"{value!r}. Expected {BY_NAME[name].accepted}" in error.message


@pytest.mark.parametrize("value", [0, 1, "true", None, [True]])
def test_a_switch_is_true_or_false(value: Any) -> None:
    assert ask(score_training_rows=True).values["score_training_rows"] is True
    error = refused(TrainingSpec.ask, "m", {"score_training_rows": value}, "api")
    assert f"{value!r}. Expected true or false, 'auto'." in error.message


def test_every_number_has_its_bounds_tested() -> None:
    assert {name for name, _, _ in BOUNDS} == {h.name for h in HYPERPARAMETERS if h.kind not in (str, bool)}


@pytest.mark.parametrize("h", [h for h in HYPERPARAMETERS if h.kind is str], ids=lambda h: h.name)
def test_words_are_chosen_from_a_list(h: Hyperparameter) -> None:
    for choice in h.choices:
        assert ask(**{h.name: choice}).values[h.name] == choice
    for value in ("LORA", "", 3, None, ["last"]):
        assert h.choices[0] in refused(ask, **{h.name: value}).message


@pytest.mark.parametrize("h", HYPERPARAMETERS, ids=lambda h: h.name)
def test_auto_and_null(h: Hyperparameter) -> None:
    assert ask(**{h.name: AUTO}).values[h.name] == AUTO
    if h.none:
        other = {"n_epochs": 1} if h.name == "n_steps" else {"n_steps": 1}
        assert ask(**{h.name: None}, **other).values[h.name] is None and "null" in h.accepted
    else:
        assert "Expected" in refused(ask, **{h.name: None}).message and "null" not in h.accepted


def test_types_are_settled() -> None:
    values = ask(n_steps=5.0, lora_alpha=8, learning_rate_multiplier=1).values
    assert type(values["n_steps"]) is int and type(values["lora_alpha"]) is float and type(values["learning_rate_multiplier"]) is float


@pytest.mark.parametrize(
    "name,hint",
    [
        ("n_epoch", "Did you mean 'n_epochs'?"),
        ("lora_r", "Did you mean 'lora_rank'?"),
        ("learning_rate", "Did you mean 'base_learning_rate'?"),
        ("beta", "Accepted: lora_alpha, "),
        ("", "Accepted: lora_alpha, "),
    ],
)
def test_an_unknown_name_is_an_error_with_a_suggestion(name: str, hint: str) -> None:
    error = refused(TrainingSpec.ask, "m", {name: 1}, "api", prefix="hyperparameters.")
    assert f"Unknown hyperparameter '{name}'. {hint}" in error.message and error.param == f"hyperparameters.{name}"


@pytest.mark.parametrize("asked", [{"n_epochs": None}, {"n_epochs": None, "n_steps": None}, {"n_epochs": None, "n_steps": "auto"}])
def test_something_must_end_the_run(asked: dict[str, Any]) -> None:
    assert "nothing would end the run" in refused(ask, **asked).message
    assert ask("train", n_epochs=None).values["n_steps"] == 500


def test_the_columns_differ_by_source() -> None:
    for source, column in (("train", 1), ("api", 2)):
        assert list(ask(source).values.values()) == [row[column] for row in TABLE]
    over_api, from_train = resolve("api", seed=1), resolve("train")
    assert (from_train.learning_rate, from_train.examples_per_step, from_train.seed) == (2.5e-5, 16, 42)
    assert (over_api.n_steps, over_api.n_epochs, over_api.batch_size, over_api.training_split) == (None, 3, 8, None)


@pytest.mark.parametrize(
    "examples,epochs",
    [(1, 25), (3, 25), (10, 10), (12, 8), (20, 5), (25, 4), (33, 3), (100, 3), (8333, 3), (8334, 2), (12500, 2), (12501, 1), (10**6, 1)],
)  # fmt: skip
def test_epochs_follow_the_published_rule(examples: int, epochs: int) -> None:
    resolved = resolve(data=DataFacts(examples, 0))
    assert resolved.n_epochs == epochs
    assert resolved.reasons["n_epochs"].startswith("auto: ") and str(examples) in resolved.reasons["n_epochs"]


@pytest.mark.parametrize(
    "examples,batch",
    [(10, 1), (15, 1), (16, 2), (63, 7), (64, 8), (440, 8), (4000, 8), (4250, 8), (5000, 10), (50_000, 100), (128_000, 256), (10**6, 256)],
)
def test_batch_size_rule(examples: int, batch: int) -> None:
    resolved = resolve(data=DataFacts(examples, 0))
    assert resolved.batch_size == resolved.eval_samples == batch and str(examples) in resolved.reasons["batch_size"]


def test_the_base_learning_rate_grows_with_small_models() -> None:
    for tuning, factor in (("lora", 10), ("full", 1)):
        for billions in (7.0, 0.5):
            rate, reason = defaults.base_learning_rate(ModelFacts("x", int(billions * 1e9), 2048, True), tuning)
            assert rate == pytest.approx(1e-5 * factor * (7 / billions) ** (1 / 3), rel=0.02)
            assert f"{billions * 1000:,.0f} M parameters" in reason and ("LoRA" in reason) == (tuning == "lora")
    assert defaults.base_learning_rate(ModelFacts("x", 1, 64, True), "lora")[0] == 1e-3
    assert resolve().base_learning_rate == pytest.approx(3.7e-4) and resolve().learning_rate_multiplier == 1.0


@pytest.mark.parametrize("source,asked", [("api", {"base_learning_rate": 1.0}), ("train", {"learning_rate_multiplier": 2})])
def test_a_mad_learning_rate_is_refused_with_both_factors(source: str, asked: dict[str, Any]) -> None:
    error = refused(resolve, source, **asked)
    values = {"api": (1, 1, 1), "train": (1, 2, 2)}[source]
    assert "base_learning_rate {:g} x learning_rate_multiplier {:g} = {:g};".format(*values) in error.message
    assert "(0, 0.01]" in error.message and "Hint" in error.message and error.param == "learning_rate_multiplier"
    assert resolve(base_learning_rate=1, learning_rate_multiplier=0.01).learning_rate == 0.01
    tiny = refused(resolve, base_learning_rate=1e-200, learning_rate_multiplier=1e-200)
    assert "= 0;" in tiny.message  # a product that is no longer above 0


@pytest.mark.parametrize("ratio,words", [(0.009, "may learn nothing"), (0.011, ""), (1, ""), (29, ""), (31, "may diverge")])
def test_a_far_learning_rate_is_a_warning(ratio: float, words: str) -> None:
    usual = ModelFacts("x", 7_000_000_000, 2048, True)
    spec = defaults.resolve(ask(learning_rate_multiplier=ratio), usual, DATA)
    warnings = defaults.warnings(spec, usual)
    assert len(warnings) == bool(words)
    for warning in warnings:
        assert words in warning and f"{ratio:g}" in warning and "base_learning_rate 0.0001" in warning


def test_every_value_has_a_reason() -> None:
    resolved = resolve("api", lora_rank=8, seed=AUTO)
    assert list(resolved.reasons) == list(BY_NAME)
    assert resolved.reasons["lora_rank"] == "asked" and resolved.reasons["lora_alpha"] == "default"
    for name, reason in resolve("api", **dict.fromkeys(BY_NAME, AUTO)).reasons.items():
        assert reason.startswith("auto: ") and len(reason) > 10, name
    assert resolve("train").reasons["training_split"] == "default; not used, there is a validation file"
    assert resolve("train", data=DataFacts(440, 0)).reasons["training_split"] == "default"


def test_a_drawn_seed_is_drawn() -> None:
    seeds = {resolve().seed for _ in range(5)}
    assert len(seeds) == 5 and all(0 <= seed < 2**31 for seed in seeds)


def test_max_length_is_the_models_or_less() -> None:
    assert resolve().max_length == 2048
    small = ModelFacts("x", 10**6, 512, True)
    assert defaults.resolve(ask(), small, DATA).max_length == 512
    assert defaults.resolve(ask(max_length=100), small, DATA).max_length == 100
    error = refused(defaults.resolve, ask(max_length=513), small, DATA)
    assert "513 is over the model's context of 512" in error.message and error.param == "max_length"


@pytest.mark.parametrize(
    "asked", [{"select_by": "full_valid_loss"}, {"select_by": "accuracy"}, {"stop_eval_loss": 0.5}, {"early_stopping_patience": 2}]
)
def test_what_needs_validation_data_says_so(asked: dict[str, Any]) -> None:
    (name,) = asked
    error = refused(resolve, data=DataFacts(440, 0), **asked)
    assert error.message.startswith(f"{name} needs validation data") and error.param == name
    assert resolve(data=DataFacts(440, 0), training_split=0.8, **asked) and resolve(data=DataFacts(440, 9), **asked)
    assert resolve("train", data=DataFacts(440, 0), training_split=None).stop_eval_loss == 0.01  # a default asks for nothing


def test_classification_scores_are_not_for_language_models() -> None:
    assert "needs a classification run" in refused(resolve, select_by="f1_macro").message


def test_going_on_with_an_adapter() -> None:
    adapter = AdapterFacts("ft:m:o::abcd", 8, 12.0)
    for source in ("api", "train"):
        for asked in ({}, {"lora_rank": 8}, {"lora_alpha": 12, "lora_rank": 8}, {"lora_rank": AUTO, "lora_alpha": AUTO}):
            resolved = resolve(source, adapter=adapter, **asked)
            assert (resolved.lora_rank, resolved.lora_alpha) == (8, 12.0)
    assert resolve(adapter=adapter).reasons["lora_rank"] == "auto: as in ft:m:o::abcd"
    for asked in ({"lora_rank": 16}, {"lora_alpha": 64}):
        message = refused(resolve, adapter=adapter, **asked).message
        assert "has lora_rank 8 and lora_alpha 12" in message and "leave both out" in message
    assert "tuning 'lora', not 'full'" in refused(resolve, adapter=adapter, tuning="full").message


def values_of(h: Hyperparameter) -> st.SearchStrategy[Any]:
    """Return any value that `h` accepts."""
    inside: st.SearchStrategy[Any]
    if h.choices:
        inside = st.sampled_from(h.choices)
    else:
        low, high = h.minimum or 0, h.maximum or 1e6
        inside = st.integers(int(low), int(high)) if h.kind is int else st.floats(low, high, exclude_min=True, exclude_max=True)
    return inside | st.just(AUTO) | (st.none() if h.none else st.nothing())


ASKED = st.fixed_dictionaries({}, optional={h.name: values_of(h) for h in HYPERPARAMETERS})


@settings(max_examples=200, deadline=None)
@given(ASKED, st.sampled_from(["train", "api"]))
def test_specs_survive_json(asked: dict[str, Any], source: Any) -> None:
    try:
        spec = TrainingSpec.ask("m", asked, source)
        resolved = defaults.resolve(spec, FACTS, DATA)
    except InvalidRequest as error:
        assert error.message and error.param
        return
    assert TrainingSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    resolved = dataclasses.replace(resolved, plan=ExecutionPlan("cpu", "float32", 2, 2048, "a processor", "2.13.0"))
    assert ResolvedSpec.from_dict(json.loads(json.dumps(resolved.to_dict()))) == resolved
    assert list(resolved.hyperparameters()) == list(BY_NAME)
    for name, value in asked.items():
        assert value == AUTO or getattr(resolved, name) == value
    assert resolved.n_steps or resolved.n_epochs


def test_a_stored_spec_is_checked_again() -> None:
    stored = ask(n_epochs=3).to_dict()
    stored["asked"]["n_epochs"] = 0
    assert "n_epochs" in refused(TrainingSpec.from_dict, stored).message
