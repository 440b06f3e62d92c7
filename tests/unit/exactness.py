"""What the exactness tests share: examples, a network with a LoRA whose B is not zero, its loss and gradients, and the reference's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from torch import Tensor, nn

from tunesmith.domain.models import ModelFacts
from tunesmith.domain.specs import ExecutionPlan, ResolvedSpec, TrainingSpec
from tunesmith.training import defaults, lora, model
from tunesmith.training.data import TokenizedExample
from tunesmith.training.network import Network

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4}
Result = tuple[float, dict[str, Tensor]]


def random_examples(seed: int = 0, count: int = 16, longest: int = 60, vocabulary: int = 256, shared: int = 0) -> list[TokenizedExample]:
    """Return examples of random tokens; two of three begin with the same `shared` ones, half of those with a second common piece."""
    rng = np.random.default_rng(seed)
    first, second = rng.integers(3, vocabulary, shared), rng.integers(3, vocabulary, shared)
    rows = []
    for line in range(count):
        length = int(rng.integers(5, longest))
        pieces = [first] if line % 3 else []
        pieces += [second] if line % 3 == 1 else []
        ids_T = np.concatenate([*pieces, rng.integers(3, vocabulary, length)])
        is_target = rng.random(len(ids_T)) < 0.4
        is_target[0], is_target[-1] = False, True
        rows.append(TokenizedExample(line, ids_T, is_target))
    return rows


def resolved(**asked: object) -> ResolvedSpec:
    spec = TrainingSpec.ask("tiny", {"seed": 3, "lora_dropout": 0.0, **asked}, "api")
    return defaults.resolve(spec, ModelFacts("LlamaForCausalLM", 100_000, 256, True), defaults.DataFacts(100, 0))


def plan(dtype: torch.dtype = torch.float64, **changes: object) -> ExecutionPlan:
    values = {"kernels": "torch", "path": "decoder", "recompute": False, "token_budget": 4096, **changes}
    return ExecutionPlan("cpu", str(dtype).removeprefix("torch."), 2, processor="any", torch="any", **values)  # type: ignore[arg-type]


def network(base: Path, spec: ResolvedSpec, execution: ExecutionPlan) -> Network:
    """Load the base with LoRA whose B is random and not zero, so that A has a gradient too."""
    made = Network(model.load_base(base, getattr(torch, execution.dtype), "cpu"), spec, execution)
    generator = torch.Generator().manual_seed(1)
    for _, layer in lora.lora_layers(made.model):
        noise = torch.randn(layer.lora_B.shape, generator=generator, dtype=torch.float64) * 0.1
        layer.lora_B.data = noise.to(layer.lora_B.dtype)
    return made


def step(made: Network, examples: list[TokenizedExample], budget: int = 4096, number: int = 7) -> Result:
    """Return a step's loss and gradients, computed as the loop does with micro-batches of `budget` tokens."""
    made.model.zero_grad()
    made.refresh()
    total = sum(example.num_targets for example in examples)
    loss = 0.0
    for batch in made.micro_batches(examples, budget):
        made.masks.begin(number, batch.hash_T)
        part = made.loss(batch, 1 / total)
        part.total.backward()
        loss += float(part.total.detach())
    return loss, {name: parameter.grad.clone() for name, parameter in model.trainable(made.model).items() if parameter.grad is not None}


def reference(base: Path, made: Network, spec: ResolvedSpec, examples: list[TokenizedExample], directory: Path) -> Result:
    """Return the same of transformers with eager attention and PEFT, one example at a time, no padding at all."""
    dtype = getattr(torch, made.plan.dtype)
    lora.save_adapter(made.model, spec, directory)
    plain = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=dtype, attn_implementation="eager")
    theirs = peft.PeftModel.from_pretrained(plain, directory, is_trainable=True, autocast_adapter_dtype=False).to(dtype).eval()
    if dtype == torch.float64:
        make_wide(theirs)
    total = sum(example.num_targets for example in examples)
    loss = 0.0
    for example in examples:
        ids = torch.from_numpy(example.ids_T)[None]
        labels = torch.where(torch.from_numpy(example.is_target_T), ids[0], -100)[1:]
        logits = theirs(input_ids=ids).logits[0, :-1]
        nll = nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum") / total
        nll.backward()
        loss += float(nll.detach())
    named = dict(theirs.named_parameters())
    gradients = {
        f"{name}.lora_{half}": named[f"base_model.model.{name}.lora_{half}.default.weight"].grad
        for name, _ in lora.lora_layers(made.model)
        for half in "AB"
    }
    return loss, {name: gradient for name, gradient in gradients.items() if gradient is not None}


class _WideNorm(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight_I = norm.weight if hasattr(norm, "variance_epsilon") else norm.weight + 1
        self.eps = getattr(norm, "variance_epsilon", None) or norm.eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight_I


def make_wide(network: nn.Module) -> None:
    """Take the float32 out of a float64 model: transformers' norms and eager softmax round to it whatever the model's type is."""
    for name, module in list(network.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            parent, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(parent), leaf, _WideNorm(module))
    network.register_forward_pre_hook(lambda *_: _wide_softmax(True))
    network.register_forward_hook(lambda *_: _wide_softmax(False))


_softmax = nn.functional.softmax


def _wide_softmax(on: bool) -> None:
    nn.functional.softmax = (lambda x, dim, dtype=None: _softmax(x, dim)) if on else _softmax  # type: ignore[assignment]


def worst(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Return the largest difference, each as a share of its tensor's norm."""
    assert ours.keys() == theirs.keys() and ours
    return max(float((ours[name] - theirs[name]).norm() / theirs[name].norm()) for name in ours)


def assert_equal(ours: Result, theirs: Result, tolerance: float) -> None:
    assert abs(ours[0] - theirs[0]) / abs(theirs[0]) <= tolerance
    assert worst(ours[1], theirs[1]) <= tolerance
