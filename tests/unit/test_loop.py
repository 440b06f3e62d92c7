"""The loop on a tiny model: the reference's losses, every stop condition, and resumes that change no bit."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from torch import nn

from tests.unit.exactness import make_wide
from tunesmith.domain import runs
from tunesmith.domain.jobs import Event, Request
from tunesmith.domain.runs import Checkpoint, MetricPoint, RowLosses, RunResult
from tunesmith.domain.specs import ResolvedSpec, TrainingSpec
from tunesmith.errors import InvalidRequest, TrainingFailed
from tunesmith.store import bases
from tunesmith.training import batching, checkpoints, data, defaults, evaluation, loop, lora, model
from tunesmith.training import plan as planning
from tunesmith.training.network import Network
from tunesmith.training.tokenizer import load_tokenizer

from ..conftest import write_chat


class ListSink:
    """Keeps everything a run says; `ask` may request a pause, given how many questions were asked before."""

    def __init__(self, ask: Callable[[int], Request] = lambda n: "run") -> None:
        self.events: list[Event] = []
        self.points: list[MetricPoint] = []
        self.checkpoints: list[Checkpoint] = []
        self.rows: list[RowLosses] = []
        self.spec: ResolvedSpec | None = None
        self._ask, self._asked = ask, 0

    def resolved(self, spec: ResolvedSpec) -> None:
        self.spec = spec

    def event(self, event: Event) -> None:
        self.events.append(event)

    def metric(self, point: MetricPoint) -> None:
        self.points.append(point)

    def row_losses(self, losses: RowLosses) -> None:
        self.rows.append(losses)

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        self.checkpoints.append(checkpoint)

    def request(self) -> Request:
        self._asked += 1
        return self._ask(self._asked)


def resolve(tiny: Path, num_training: int = 40, num_validation: int = 12, **asked: object) -> ResolvedSpec:
    given = {"seed": 5, "batch_size": 4, "base_learning_rate": 2e-3, "learning_rate_multiplier": 1, **asked}
    return defaults.resolve(TrainingSpec.ask("tiny", given, "api"), bases.facts(tiny), defaults.DataFacts(num_training, num_validation))


def train(
    tiny: Path, files: tuple[Path, Path | None], directory: Path, sink: ListSink | None = None, resume: Path | None = None,
    spec: ResolvedSpec | None = None, **asked: object,
) -> tuple[RunResult, ListSink]:  # fmt: skip
    sink = sink or ListSink()
    spec = spec or resolve(tiny, num_validation=12 if files[1] else 0, **asked)
    return loop.train(loop.Order(spec, tiny, files[0], files[1], directory, resume=resume), sink), sink


def digest(directory: Path) -> str:
    return hashlib.sha256((directory / lora.ADAPTER_FILE).read_bytes()).hexdigest()


def figures(points: list[MetricPoint]) -> list[MetricPoint]:
    """Drop what depends on the clock."""
    return [dataclasses.replace(point, tokens_per_second=None) for point in points]


@pytest.mark.parametrize("dtype,tolerance", [("float64", 1e-9), ("float32", 2e-4)])
def test_first_twenty_losses_equal_a_plain_loop(
    tiny: Path, letters: tuple[Path, Path], tmp_path: Path, dtype: str, tolerance: float
) -> None:
    """The same batches through transformers, PEFT, torch's AdamW and clipping, written out plainly."""
    spec = resolve(tiny, lora_dropout=0.0, n_steps=20, n_epochs=None, warmup_ratio=0.1)
    plan, _ = planning.draft("lora")
    spec = dataclasses.replace(spec, plan=dataclasses.replace(plan, dtype=dtype))
    _, sink = train(tiny, (letters[0], None), tmp_path / "run", spec=spec)

    torch_dtype = getattr(torch, dtype)
    start = Network(model.load_base(tiny, torch_dtype, "cpu"), spec, spec.plan)  # type: ignore[arg-type]
    adapter = tmp_path / "start"
    adapter.mkdir()
    lora.save_adapter(start.model, spec, adapter)
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny, dtype=torch_dtype)
    reference = peft.PeftModel.from_pretrained(base, adapter, is_trainable=True, autocast_adapter_dtype=False).to(torch_dtype).eval()
    if dtype == "float64":
        make_wide(reference)
    parameters = [p for p in reference.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=spec.learning_rate, weight_decay=0.0)
    examples = data.load(letters[0], load_tokenizer(tiny), spec.max_length).examples
    for point in sink.points:
        rows = [examples[i] for i in batching.rows_of_step(len(examples), 4, spec.seed, point.step)]
        optimizer.zero_grad()
        total = sum(row.num_targets for row in rows)
        loss = torch.zeros((), dtype=torch_dtype)
        for row in rows:
            ids = torch.from_numpy(row.ids_T)[None]
            labels = torch.where(torch.from_numpy(row.is_target_T), ids[0], -100)[1:]
            logits = reference(input_ids=ids).logits[0, :-1]
            loss = loss + nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum") / total
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.param_groups[0]["lr"] = point.learning_rate
        optimizer.step()
        assert point.train_loss == pytest.approx(loss.item(), rel=tolerance)
    assert len(sink.points) == 20


def test_figures_are_sums_over_tokens(tiny: Path, letters: tuple[Path, Path], tmp_path: Path) -> None:
    result, sink = train(tiny, letters, tmp_path, n_epochs=2)
    assert result.outcome == "finished" and result.step == 20
    assert [point.step for point in sink.points] == list(range(21))
    base = sink.points[0]
    assert base.train_loss is None and base.full_valid_loss is not None and base.epoch == 0.0
    tokenizer = load_tokenizer(tiny)
    validation = data.load(letters[1], tokenizer, 512, "validation").examples
    plan = sink.spec.plan  # type: ignore[union-attr]
    assert plan is not None
    network = Network(model.load_base(tiny, getattr(torch, plan.dtype), "cpu"), sink.spec, plan)  # type: ignore[arg-type]
    alone = [evaluation.evaluate(network, [example], 2048) for example in validation]
    loss = sum(float(one.nll_E.sum()) for one in alone) / sum(one.num_targets for one in alone)
    assert base.full_valid_loss == pytest.approx(loss, rel=2e-3)
    assert [point.step for point in sink.points if point.valid_loss is not None] == [10, 20]
    assert [point.step for point in sink.points if point.full_valid_loss is not None] == [0, 10, 20]
    assert [rows.step for rows in sink.rows] == [0, 10, 20]
    for rows in sink.rows:  # their mean over targets is the figure of the step
        assert rows.lines == [example.line for example in validation]
        mean = sum(loss * count for loss, count in zip(rows.loss, rows.num_targets, strict=True)) / sum(rows.num_targets)
        assert mean == pytest.approx(sink.points[rows.step].full_valid_loss, rel=1e-9)
    assert sink.points[10].epoch == 1.0 and sink.points[5].epoch == 0.5
    examples = data.load(letters[0], tokenizer, 512).examples
    assert result.tokens_seen == 2 * sum(len(example) for example in examples) == sink.points[-1].tokens_seen
    assert [(c.step, c.epoch) for c in sink.checkpoints] == [(10, 1), (20, 2)]
    assert sink.points[-1].full_valid_loss < base.full_valid_loss  # type: ignore[operator]


def test_learning_rate_schedules(tiny: Path) -> None:
    linear = resolve(tiny, warmup_ratio=0.2)
    factors = [loop.schedule(linear, step, 10) for step in range(1, 11)]
    assert factors[0] == pytest.approx(1 / 3) and factors[2] == 1.0 and factors[-1] == pytest.approx(1 / 8)
    assert all(a > b for a, b in itertools.pairwise(factors[2:]))
    cosine = resolve(tiny, warmup_ratio=0, learning_rate_schedule="cosine")
    assert loop.schedule(cosine, 6, 10) == pytest.approx(0.5)
    assert loop.schedule(resolve(tiny, warmup_ratio=0, learning_rate_schedule="constant"), 10, 10) == 1.0


@pytest.mark.parametrize(
    "asked,step,reason",
    [
        ({"n_steps": 3}, 3, "n_steps 3 reached."),
        ({"n_epochs": 1, "n_steps": 500}, 10, "n_epochs 1 reached."),
        ({"n_epochs": 3, "stop_eval_loss": 100.0}, 10, "fell below stop_eval_loss 100"),
        ({"n_epochs": 9, "early_stopping_patience": 2, "base_learning_rate": 1e-14}, 20, "without improvement beyond noise"),
    ],
)
def test_stop_conditions(tiny: Path, letters: tuple[Path, Path], tmp_path: Path, asked: dict[str, object], step: int, reason: str) -> None:
    result, sink = train(tiny, letters, tmp_path, **asked)
    assert (result.outcome, result.step) == ("finished", step)
    assert reason in result.reason and reason in sink.events[-1].message and sink.events[-1].key == "stopped"
    assert sink.checkpoints[-1].step == step  # the last step always has a checkpoint
    assert sink.points[-1].full_valid_loss is not None  # and a full evaluation


def test_sampled_loss_only_triggers_a_full_evaluation(tiny: Path, letters: tuple[Path, Path], tmp_path: Path) -> None:
    result, sink = train(tiny, letters, tmp_path, n_epochs=1, eval_interval=4, stop_eval_loss=100.0)
    assert result.step == 4 and sink.points[-1].valid_loss is not None and sink.points[-1].full_valid_loss is not None


def test_a_long_run_has_at_most_fifty_full_evaluations() -> None:
    steps = loop._full_evaluation_steps(total_steps=5000, per_epoch=10)
    assert len(steps) == 50 and 5000 in steps and 10 in steps
    assert loop._full_evaluation_steps(25, 10) == {10, 20, 25}


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("cut", [1, 2, 6, 7, 13, 14, 15, 27])
def test_a_paused_run_continues_bit_for_bit(tiny: Path, letters: tuple[Path, Path], tmp_path: Path, cut: int, tuning: str) -> None:
    """Wherever it is cut (the base evaluation, a step, an evaluation, an epoch border), nothing shows in the end."""
    asked = {"n_epochs": 2, "lora_dropout": 0.2, "eval_interval": 5, "eval_samples": 5, "tuning": tuning, "base_learning_rate": 1e-3}
    spec = resolve(tiny, **asked)
    _, whole = train(tiny, letters, tmp_path / "whole", spec=spec)

    def pause(n: int) -> Request:
        return "pause" if n == cut else "run"

    result, first = train(tiny, letters, tmp_path / "cut", ListSink(pause), spec=spec)
    assert result.outcome == "paused"
    newest = checkpoints.newest(tmp_path / "cut" / "checkpoints")
    assert newest is not None
    result, second = train(tiny, letters, tmp_path / "cut", resume=newest, spec=first.spec)
    assert result.outcome == "finished"
    assert figures(first.points + second.points) == figures(whole.points)
    weights = "model.safetensors" if tuning == "full" else lora.ADAPTER_FILE
    ends = [hashlib.sha256((sink.checkpoints[-1].directory / weights).read_bytes()).hexdigest() for sink in (whole, second)]
    assert ends[0] == ends[1]


def test_the_seed_decides_the_bits(tiny: Path, letters: tuple[Path, Path], tmp_path: Path) -> None:
    digests = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        _, sink = train(tiny, letters, tmp_path / name, n_steps=4, seed=seed)
        digests.append(digest(sink.checkpoints[-1].directory))
    assert digests[0] == digests[1] != digests[2]


def test_cancel_stops_without_a_checkpoint(tiny: Path, letters: tuple[Path, Path], tmp_path: Path) -> None:
    result, sink = train(tiny, letters, tmp_path, ListSink(lambda n: "cancel" if n > 5 else "run"), n_epochs=2)
    assert result.outcome == "cancelled" and not sink.checkpoints


def test_divergence_is_said_with_advice(tiny: Path, letters: tuple[Path, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    network = transformers.AutoModelForCausalLM.from_pretrained(tiny)
    with torch.no_grad():
        network.model.layers[0].mlp.up_proj.weight.fill_(math.inf)
    network.save_pretrained(broken)
    load_tokenizer(tiny).save_pretrained(broken)
    with pytest.raises(TrainingFailed, match=r"Step 1: the training loss is nan.*lower learning_rate_multiplier") as caught:
        train(broken, (letters[0], None), tmp_path / "run", n_steps=2)
    assert caught.value.code == "non_finite"


def test_long_and_targetless_rows_are_counted_aloud(tiny: Path, tmp_path: Path) -> None:
    pairs = [("q", "a")] * 10 + [("q", "a" * 100)] * 3 + [("q" * 100, "a")]
    file = write_chat(tmp_path / "train.jsonl", pairs)
    _, sink = train(tiny, (file, None), tmp_path / "run", max_length=64, n_steps=1)
    cut, dropped = (next(e for e in sink.events if e.key == key) for key in ("truncated:training", "dropped:training"))
    assert cut.level == "warn" and "4 training examples are longer than max_length 64" in cut.message
    assert "1 training examples have no target token" in dropped.message and dropped.message.endswith("lines 14.")


def test_a_split_is_seeded_and_disjoint(tiny: Path, letters: tuple[Path, Path], tmp_path: Path) -> None:
    dataset = data.load(letters[0], load_tokenizer(tiny), 512)
    training, validation = data.split(dataset, 0.8, seed=1)
    lines = [{example.line for example in part.examples} for part in (training, validation)]
    assert len(lines[0]) == 32 and len(lines[1]) == 8 and not lines[0] & lines[1]
    assert [e.line for e in data.split(dataset, 0.8, seed=1)[1].examples] == [e.line for e in validation.examples]
    assert [e.line for e in data.split(dataset, 0.8, seed=2)[1].examples] != [e.line for e in validation.examples]
    _, sink = train(tiny, (letters[0], None), tmp_path / "run", training_split=0.8, n_steps=1)
    assert sink.points[0].full_valid_loss is not None


@pytest.mark.parametrize(
    "select_by,key,pick", [("full_valid_loss", "full_valid_loss", min), ("accuracy", "full_valid_mean_token_accuracy", max)]
)
def test_select_by(select_by: str, key: str, pick: Callable[[list[float]], float]) -> None:
    losses, accuracies = [0.9, 0.5, 0.7, 0.8, 0.9], [0.6, 0.5, 0.9, 0.7, 0.6]
    known = [
        Checkpoint(10 * n, Path(str(n)), {"full_valid_loss": loss, "full_valid_mean_token_accuracy": accuracy}, n, 0)
        for n, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True), 1)
    ]
    assert runs.chosen(known, "last").step == 50
    assert runs.chosen(known, select_by).metrics[key] == pick([c.metrics[key] for c in known])
    assert [c.step for c in runs.listed(known, "last")] == [20, 30, 40, 50]  # the last three epochs and the best


def test_select_by_needs_validation(tiny: Path, letters: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="select_by needs validation data"):
        resolve(tiny, num_validation=0, select_by="full_valid_loss")


def test_an_adapter_is_continued(tiny: Path, letters: tuple[Path, Path], tmp_path: Path) -> None:
    _, first = train(tiny, letters, tmp_path / "a", n_epochs=1)
    order = loop.Order(first.spec, tiny, *letters, tmp_path / "b", adapter=first.checkpoints[-1].directory)  # type: ignore[arg-type]
    second = ListSink()
    loop.train(order, second)
    assert second.points[0].full_valid_loss == first.points[-1].full_valid_loss


def test_another_machine_is_said_aloud(tiny: Path, letters: tuple[Path, Path], tmp_path: Path) -> None:
    _, first = train(tiny, letters, tmp_path / "a", n_steps=1)
    plan = dataclasses.replace(first.spec.plan, processor="another")  # type: ignore[union-attr, type-var]
    _, second = train(tiny, letters, tmp_path / "b", spec=dataclasses.replace(first.spec, plan=plan))  # type: ignore[type-var]
    assert not [event for event in first.events if event.level == "warn"]
    assert "equal within round-off, not bit for bit" in next(event.message for event in second.events if event.level == "warn")


def test_adapter_loads_in_plain_peft(tiny: Path, letters: tuple[Path, Path], tmp_path: Path) -> None:
    _, sink = train(tiny, letters, tmp_path, n_steps=3)
    directory = sink.checkpoints[-1].directory
    assert json.loads((directory / "adapter_config.json").read_text())["r"] == 16
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    loaded = peft.PeftModel.from_pretrained(base, directory).eval()
    spec = sink.spec
    assert spec is not None
    ours = model.load_base(tiny, torch.float32, "cpu")
    network = Network(ours, spec, dataclasses.replace(spec.plan, dtype="float32", path="modules"))  # type: ignore[type-var]
    lora.load_adapter(ours, directory)
    network.refresh()
    example = data.TokenizedExample(1, np.arange(20), np.arange(20) > 0)
    (batch,) = network.micro_batches([example], 100)
    logits = loaded(input_ids=torch.arange(20)[None]).logits[0, :-1]
    expected = nn.functional.cross_entropy(logits, torch.arange(1, 20), reduction="none")
    assert torch.allclose(network.loss(batch).nll_N, expected, atol=1e-5)
