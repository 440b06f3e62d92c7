"""The training loop: one run from the first base evaluation to the last checkpoint. Read it from top to bottom.

Knows no store and no API: it is given files and a sink, and says everything to the sink. All randomness is a function
of (seed, step), so a run that is cut off and resumed computes the same bits as one that is not.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tunesmith.domain import specs
from tunesmith.domain.jobs import Event, Request
from tunesmith.domain.runs import Checkpoint, MetricPoint, RunResult, RunSink
from tunesmith.domain.specs import ResolvedSpec
from tunesmith.errors import TrainingFailed
from tunesmith.training import batching, checkpoints, data, evaluation, lora, memory, model
from tunesmith.training import plan as planning
from tunesmith.training.data import TokenizedExample
from tunesmith.training.network import Network
from tunesmith.training.tokenizer import load_tokenizer

_T = TypeVar("_T")
#: Most full evaluations of a run; epoch ends beyond it are thinned out evenly, the last step always has one.
MAX_FULL_EVALUATIONS = 50


@dataclass(frozen=True)
class Order:
    """One run: what to train, on what, where to write. `resume` is the checkpoint directory to go on from."""

    spec: ResolvedSpec
    base: Path
    training_file: Path
    validation_file: Path | None
    directory: Path
    adapter: Path | None = None
    resume: Path | None = None


@dataclass
class State:
    """Where a run is; with the weights, the optimizer and torch's generators, all that a checkpoint holds.

    `pending` is the step whose update is done but whose figures are not yet out; step 0 is the base model's evaluation.
    """

    step: int = 0
    tokens_seen: int = 0
    sampled: int = 0
    full_evaluations: int = 0
    without_improvement: int = 0
    best_nll: list[float] | None = None
    stop: str | None = None
    pending: dict[str, Any] | None = None


class _Interrupted(Exception):
    """A pause or a cancel was asked for in the middle of a step."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self.request = request


def train(order: Order, sink: RunSink) -> RunResult:
    """Train until a stop condition holds, a pause or a cancel is asked for, or the run cannot go on.

    Raises: DataError, InvalidRequest, TrainingFailed, CheckpointDamaged.
    """
    run = _Run(order, sink)
    try:
        while True:
            run.report()  # of the base model first, then of each step
            if run.state.stop:
                run.score_training_rows()
                sink.event(Event(f"Training stopped at step {run.state.step}: {run.state.stop}", key="stopped"))
                return run.result("finished")
            run.take_step()
    except _Interrupted as interrupted:
        if interrupted.request == "cancel":
            return run.result("cancelled")
        run.save(None)
        return run.result("paused")


class _Run:
    """The run's parts and its three moves: take a step, report it, save a checkpoint."""

    def __init__(self, order: Order, sink: RunSink) -> None:
        self.order, self.sink = order, sink
        self.spec = spec = planning.begin(order.spec, order.base, sink)
        assert spec.plan is not None
        self.device = spec.plan.device
        torch.set_num_threads(spec.plan.threads)
        torch.use_deterministic_algorithms(True, warn_only=True)
        # A debugging aid that would fill every new tensor; torch.utils.deterministic is a module with properties.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.manual_seed(spec.seed)

        self.tokenizer = load_tokenizer(order.base)
        self.training, self.validation = data.load_all(order.training_file, order.validation_file, self.tokenizer, spec, sink)
        self.per_epoch = batching.steps_per_epoch(len(self.training), spec.examples_per_step)
        self.total_steps = spec.total_steps(len(self.training))
        limit = "n_steps" if self.total_steps == spec.n_steps else "n_epochs"
        self.last_step_reason = f"{limit} {getattr(spec, limit)} reached."
        self.full_at = _full_evaluation_steps(self.total_steps, self.per_epoch) if self.validation else set()

        self.model = model.load_base(order.base, getattr(torch, spec.plan.dtype), self.device)
        self.network = Network(self.model, spec, spec.plan)
        if self.network.notice:
            sink.event(Event(self.network.notice, key="path", level="warn"))
        if order.spec.plan is None:
            self.spec = spec = planning.settle(spec, self.network, max(map(len, self.training + self.validation)), sink)
        sink.resolved(spec)
        self._say_what_is_shared()
        self.parameters = model.trainable(self.model)
        if order.adapter:
            lora.load_adapter(self.model, order.adapter)
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=spec.learning_rate,
            betas=specs.ADAM_BETAS,
            eps=specs.ADAM_EPS,
            weight_decay=specs.WEIGHT_DECAY,
            fused=True,
        )
        self.state = State(pending=asdict(MetricPoint(0, self.total_steps, 0.0)))
        if order.resume:
            self._restore(order.resume)
        self.saved_at = time.monotonic()
        self.saved_step = self.state.step if order.resume and self.state.pending is None else -1

    def _say_what_is_shared(self) -> None:
        """Say what computing shared beginnings once saves, by the first steps."""
        assert self.spec.plan is not None
        parts = []
        for step in range(1, min(4, self.total_steps) + 1):
            rows = batching.rows_of_step(len(self.training), self.spec.examples_per_step, self.spec.seed, step)
            parts.append((len(rows), batching.sharing([self.training[row] for row in rows], self.spec.plan.token_budget)))
        num_rows, tokens, shared, computed = (sum(column) for column in zip(*((n, *astuple(part)) for n, part in parts), strict=True))
        if self.network.path != "plain" and tokens >= 1.05 * computed:
            words = f"Shared prefix: {shared / num_rows:.0f} of {tokens / num_rows:.0f} tokens, {tokens / computed:.1f} × less work."
            self.sink.event(Event(words, key="shared_prefix"))

    # ------------------------------------------------------------------ a single training step

    def take_step(self) -> None:
        """Compute the gradient of the mean loss over the step's target tokens, clip it, update."""
        started = time.perf_counter()
        step, spec = self.state.step + 1, self.spec
        rows = batching.rows_of_step(len(self.training), spec.examples_per_step, spec.seed, step)
        examples = [self.training[row] for row in rows]
        num_targets = sum(example.num_targets for example in examples)

        nll, hits = self._within_memory(step, lambda budget: self._accumulate(step, examples, num_targets, budget))
        grad_norm = float(nn.utils.clip_grad_norm_(self.parameters.values(), specs.MAX_GRAD_NORM))
        if not (math.isfinite(nll) and math.isfinite(grad_norm)):
            raise TrainingFailed(
                f"Step {step}: the training loss is {nll / num_targets} and the gradient norm {grad_norm}; the run has diverged. "
                f"Hint: lower learning_rate_multiplier (learning rate {spec.learning_rate:g} now).",
                code="non_finite",
            )
        rate = spec.learning_rate * schedule(spec, step, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()

        num_tokens = sum(len(example) for example in examples)
        self.state.step = step
        self.state.tokens_seen += num_tokens
        self.state.pending = asdict(
            MetricPoint(
                step, self.total_steps, epoch=self._epochs(step),
                train_loss=nll / num_targets, train_mean_token_accuracy=hits / num_targets,
                learning_rate=rate, grad_norm=grad_norm, tokens_seen=self.state.tokens_seen,
                tokens_per_second=num_tokens / (time.perf_counter() - started),
            )
        )  # fmt: skip

    def _accumulate(self, step: int, examples: Sequence[TokenizedExample], num_targets: int, budget: int) -> tuple[float, int]:
        """Add up the gradients of the step's micro-batches; return the sum of the losses, and the hits."""
        self.optimizer.zero_grad(set_to_none=True)
        self.network.refresh()
        nll, hits = 0.0, 0
        for batch in self.network.micro_batches(examples, budget):
            self._heed_requests()
            self.network.masks.begin(step, batch.hash_T)
            loss = self.network.loss(batch, weight=1 / num_targets)
            torch.autograd.backward(loss.total)
            nll += float(loss.nll_N.double().sum())
            hits += int(loss.hits_N.sum())
        return nll, hits

    def _within_memory(self, moment: float, compute: Callable[[int], _T]) -> _T:
        """Compute with the token budget of the moment; where memory runs out, with half of it, from then on and in every replay."""
        while True:
            assert self.spec.plan is not None
            budget = self.spec.plan.budget_at(moment)
            try:
                return compute(budget)
            except (RuntimeError, MemoryError) as error:
                if not memory.is_exhausted(error):
                    raise
            plan = self.spec.plan.halved(moment)
            if plan is None:
                words = f"Out of memory at step {math.ceil(moment)}, even with micro-batches of {budget} tokens."
                raise TrainingFailed(f"{words} Hint: lower max_length, or use a machine with more memory.", code="out_of_memory")
            self.spec = dataclasses.replace(self.spec, plan=plan)
            self.sink.resolved(self.spec)
            words = f"Out of memory at step {math.ceil(moment)}: micro-batches have {budget // 2} tokens instead of {budget} from here on."
            self.sink.event(Event(words, key=f"memory:{moment}:{budget}", level="warn"))

    # ------------------------------------------------------------------ what is said of it

    def report(self) -> None:
        """Evaluate where it is due, say the step's figures, decide whether to stop, save where it is due."""
        state, spec = self.state, self.spec
        if state.pending is None:
            return
        step = state.step
        figures = dict(state.pending)
        full_due = bool(self.validation) and (step == 0 or step in self.full_at)
        sampled_now = 0
        if self.validation and step and spec.eval_interval and step % spec.eval_interval == 0:
            rows = batching.sample(len(self.validation), spec.eval_samples, spec.seed, state.sampled)
            sampled = self._evaluate([self.validation[row] for row in rows])
            sampled_now = 1
            figures |= {"valid_loss": sampled.loss, "valid_mean_token_accuracy": sampled.accuracy}
            low = spec.stop_eval_loss is not None and sampled.loss < spec.stop_eval_loss
            to_come = sum(planned > step for planned in self.full_at)
            full_due = full_due or (low and state.full_evaluations + to_come < MAX_FULL_EVALUATIONS)
        if full_due:
            full = self._evaluate(self.validation)
            figures |= {"full_valid_loss": full.loss, "full_valid_mean_token_accuracy": full.accuracy}
            self._judge(full)
            self.sink.row_losses(full.rows(step, self.validation))
        if step == self.total_steps:
            state.stop = state.stop or self.last_step_reason
        # Only now, when nothing can interrupt any more: a step that is reported again must see the same sample.
        state.sampled += sampled_now
        state.pending = None

        point = MetricPoint(**figures)
        if step or full_due:
            self.sink.metric(point)
        overdue = time.monotonic() - self.saved_at >= spec.checkpoint_seconds
        if step and (step % self.per_epoch == 0 or full_due or overdue or state.stop):
            self.save(point)

    def score_training_rows(self) -> None:
        """Say each training row's loss under the final weights, where that was asked."""
        if self.spec.score_training_rows:
            self.sink.row_losses(self._evaluate(self.training).rows(self.state.step, self.training, "training"))

    def _judge(self, full: evaluation.Evaluation) -> None:
        """Draw the stop conditions' conclusions from a full evaluation."""
        state, spec = self.state, self.spec
        if state.step:
            state.full_evaluations += 1
        if not math.isfinite(full.loss):
            raise TrainingFailed(f"Step {state.step}: the full validation loss is {full.loss}.", code="non_finite")
        if state.best_nll is None or evaluation.beyond_noise(full, np.array(state.best_nll)):
            state.best_nll, state.without_improvement = full.nll_E.tolist(), 0
        else:
            state.without_improvement += 1
        if not state.step:
            return
        if spec.stop_eval_loss is not None and full.loss < spec.stop_eval_loss:
            state.stop = f"the full validation loss {full.loss:.4g} fell below stop_eval_loss {spec.stop_eval_loss:g}."
        elif spec.early_stopping_patience and state.without_improvement >= spec.early_stopping_patience:
            state.stop = (
                f"{state.without_improvement} full evaluations in a row without improvement beyond noise "
                f"(early_stopping_patience {spec.early_stopping_patience})."
            )

    def _evaluate(self, examples: Sequence[TokenizedExample]) -> evaluation.Evaluation:
        moment = self.state.step + 0.5
        return self._within_memory(moment, lambda budget: evaluation.evaluate(self.network, examples, budget, self._heed_requests))

    def _heed_requests(self) -> None:
        request = self.sink.request()
        if request != "run":
            raise _Interrupted(request)

    def _epochs(self, step: int) -> float:
        """Return how many passes `step` steps are; an epoch's last step may be a short one."""
        whole, part = divmod(step, self.per_epoch)
        return whole + min(part * self.spec.examples_per_step / len(self.training), 1.0)

    def result(self, outcome: Any) -> RunResult:
        """Say how the run ended."""
        return RunResult(outcome, self.state.stop or f"{outcome} by request", self.state.step, self.state.tokens_seen)

    # ------------------------------------------------------------------ checkpoints

    def save(self, point: MetricPoint | None) -> None:
        """Make the present step durable and tell the sink; `point` is None when its figures are not out yet."""
        step = self.state.step
        if step == self.saved_step:
            return
        target = self.order.directory / "checkpoints" / checkpoints.directory_name(step)
        checkpoints.write(target, self._fill)
        self.saved_at, self.saved_step = time.monotonic(), step
        metrics = {key: value for key, value in point.wire_data().items() if key != "total_steps"} if point else {"step": step}
        epoch = step // self.per_epoch if step % self.per_epoch == 0 and step else None
        self.sink.checkpoint(Checkpoint(step, target, metrics, epoch if point else None, self.state.tokens_seen))

    def _fill(self, directory: Path) -> None:
        if self.spec.tuning == "lora":
            lora.save_adapter(self.model, self.spec, directory)
        else:
            model.save_full(self.model, self.tokenizer, directory)
        moments = {
            f"{name}.{key}": value.contiguous()
            for name, parameter in self.parameters.items()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }
        save_file(moments, directory / checkpoints.OPTIMIZER)
        generators = {"cpu": torch.get_rng_state()}
        if self.device == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state()
        save_file(generators, directory / checkpoints.RNG)
        state = {"version": 1, "spec": self.spec.to_dict(), "state": asdict(self.state)}
        (directory / checkpoints.STATE).write_text(json.dumps(state))

    def _restore(self, directory: Path) -> None:
        checkpoints.verify(directory)
        if self.spec.tuning == "lora":
            lora.load_adapter(self.model, directory)
        else:
            model.load_full(self.model, directory)
        moments = load_file(directory / checkpoints.OPTIMIZER, device=self.device)
        for name, parameter in self.parameters.items():
            self.optimizer.state[parameter] = {
                key: moments[f"{name}.{key}"]  # `step` too lies on the device: the fused update reads it there
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"{name}.{key}" in moments
            }
        generators = load_file(directory / checkpoints.RNG)
        torch.set_rng_state(generators["cpu"])
        if self.device == "cuda" and "cuda" in generators:
            torch.cuda.set_rng_state(generators["cuda"])
        self.state = State(**json.loads((directory / checkpoints.STATE).read_bytes())["state"])


def schedule(spec: ResolvedSpec, step: int, total_steps: int) -> float:
    """Return the factor on the peak learning rate at `step` (from 1): a linear warm-up, then linear, cosine or constant."""
    warmup = min(round(spec.warmup_ratio * total_steps), total_steps - 1)
    if step <= warmup:
        return step / (warmup + 1)
    progress = (step - warmup - 1) / (total_steps - warmup)
    if spec.learning_rate_schedule == "linear":
        return 1 - progress
    if spec.learning_rate_schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1.0


def _full_evaluation_steps(total_steps: int, per_epoch: int) -> set[int]:
    """Return the steps with a full evaluation: epoch ends, thinned out evenly to 50 with the last step."""
    ends = list(range(per_epoch, total_steps, per_epoch))
    if len(ends) > MAX_FULL_EVALUATIONS - 1:
        ends = [ends[round(i)] for i in np.linspace(0, len(ends) - 1, MAX_FULL_EVALUATIONS - 1)]
    return {*ends, total_steps}
