"""Loss and LoRA gradients against plain transformers + PEFT, and against themselves cut another way."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

from tunesmith.domain.models import ModelFacts
from tunesmith.domain.specs import ResolvedSpec, TrainingSpec
from tunesmith.training import batching, data, defaults, losses, model

FACTS = ModelFacts("LlamaForCausalLM", 100_000, 256, True)
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4}


@pytest.fixture(scope="module")
def examples() -> list[data.TokenizedExample]:
    rng = np.random.default_rng(0)
    rows = []
    for line in range(16):
        length = int(rng.integers(5, 60))
        is_target = rng.random(length) < 0.4
        is_target[0], is_target[-1] = False, True
        rows.append(data.TokenizedExample(line, rng.integers(0, 256, length), is_target))
    return rows


def resolved(**asked: object) -> ResolvedSpec:
    spec = TrainingSpec.ask("tiny", {"seed": 3, "lora_dropout": 0.0, **asked}, "api")
    return defaults.resolve(spec, FACTS, defaults.DataFacts(100, 0))


def with_lora(base: Path, spec: ResolvedSpec, dtype: torch.dtype) -> tuple[nn.Module, object]:
    """Load the base with LoRA whose B is random and not zero, so that A has a gradient too."""
    network = model.load_base(base, dtype, "cpu")
    masks = model.attach_lora(network, spec)
    generator = torch.Generator().manual_seed(1)
    for _, layer in model.lora_layers(network):
        noise = torch.randn(layer.lora_B.shape, generator=generator, dtype=torch.float64) * 0.1
        layer.lora_B.data = noise.to(layer.lora_B.dtype)
    return network, masks


def step(
    network: nn.Module, masks: object, examples: list[data.TokenizedExample], budget: int, seed_step: int = 7
) -> tuple[float, dict[str, Tensor]]:
    """Return the step's loss and gradients, computed as the loop does with micro-batches of `budget` tokens."""
    network.zero_grad()
    total = sum(example.num_targets for example in examples)
    loss = 0.0
    for batch in batching.micro_batches(examples, budget, "cpu"):
        masks.begin(seed_step, batch.hash_BT)  # type: ignore[attr-defined]
        nll_N, _ = losses.nll_and_hits(losses.target_logits(network, batch), batch.targets_N)
        (nll_N.sum() / total).backward()
        loss += float(nll_N.detach().sum()) / total
    return loss, {name: parameter.grad.clone() for name, parameter in model.trainable(network).items()}


def worst(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    assert ours.keys() == theirs.keys() and ours
    return max(float((ours[name] - theirs[name]).norm() / theirs[name].norm()) for name in ours)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
def test_loss_and_gradients_equal_peft(tiny: Path, examples: list[data.TokenizedExample], dtype: torch.dtype, tmp_path: Path) -> None:
    spec = resolved()
    network, masks = with_lora(tiny, spec, dtype)
    loss, gradients = step(network, masks, examples, budget=256)
    model.save_adapter(network, spec, tmp_path)

    base = transformers.AutoModelForCausalLM.from_pretrained(tiny, dtype=dtype)
    reference = peft.PeftModel.from_pretrained(base, tmp_path, is_trainable=True, autocast_adapter_dtype=False).to(dtype).eval()
    total = sum(example.num_targets for example in examples)
    reference_loss = 0.0
    for example in examples:  # one row at a time, no padding at all
        ids = torch.from_numpy(example.ids_T)[None]
        labels = torch.where(torch.from_numpy(example.is_target_T), ids[0], -100)[1:]
        logits = reference(input_ids=ids).logits[0, :-1]
        nll = nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
        (nll / total).backward()
        reference_loss += float(nll.detach()) / total
    named = dict(reference.named_parameters())
    theirs = {
        f"{name}.lora_{half}": named[f"base_model.model.{name}.lora_{half}.default.weight"].grad
        for name, _ in model.lora_layers(network)
        for half in "AB"
    }
    assert abs(loss - reference_loss) / reference_loss <= TOLERANCE[dtype]
    assert worst(gradients, theirs) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
def test_micro_batches_do_not_change_the_result(
    tiny: Path, examples: list[data.TokenizedExample], dtype: torch.dtype, dropout: float
) -> None:
    network, masks = with_lora(tiny, resolved(lora_dropout=dropout), dtype)
    whole = step(network, masks, examples, budget=10_000)
    cut = step(network, masks, examples, budget=1)  # one example each
    assert abs(whole[0] - cut[0]) / cut[0] <= TOLERANCE[dtype]
    assert worst(whole[1], cut[1]) <= TOLERANCE[dtype]


def test_dropout_changes_the_result(tiny: Path, examples: list[data.TokenizedExample]) -> None:
    """The control of the test above: masks are really applied, and differ from step to step."""
    network, masks = with_lora(tiny, resolved(lora_dropout=0.3), torch.float64)
    seventh, again, eighth = (step(network, masks, examples, 256, number)[0] for number in (7, 7, 8))
    masks.off()  # type: ignore[attr-defined]
    assert seventh == again
    assert abs(seventh - eighth) > 1e-6


def test_four_by_four_equals_sixteen_by_one() -> None:
    """batch_size x accumulation_steps is all that the maths sees: the same rows in the same steps."""
    four, sixteen = resolved(batch_size=4, accumulation_steps=4), resolved(batch_size=16, accumulation_steps=1)
    rows = [[batching.rows_of_step(100, spec.examples_per_step, spec.seed, n) for n in range(1, 20)] for spec in (four, sixteen)]
    assert rows[0] == rows[1]
    assert sorted(itertools.chain.from_iterable(rows[0][:7])) == list(range(100))  # seven steps are one pass, each example once
    assert rows[0][0] != rows[0][7]  # the next pass has another order


def test_padding_has_no_influence(tiny: Path, examples: list[data.TokenizedExample]) -> None:
    """An example's loss is the same alone and beside a longer one, and hears nothing of its neighbour."""
    network, masks = with_lora(tiny, resolved(), torch.float64)
    short, long = sorted(examples, key=len)[0], sorted(examples, key=len)[-1]
    other = data.TokenizedExample(99, (long.ids_T + 1) % 256, long.is_target_T)

    def nll(rows: list[data.TokenizedExample]) -> Tensor:
        (batch,) = batching.micro_batches(rows, 10_000, "cpu")
        masks.off()  # type: ignore[attr-defined]
        return losses.nll_and_hits(losses.target_logits(network, batch), batch.targets_N)[0].detach()[: short.num_targets]

    assert torch.allclose(nll([short]), nll([short, long]), rtol=1e-12)
    assert torch.equal(nll([short, long]), nll([short, other]))
