"""Loss and LoRA gradients against plain transformers + PEFT, and against themselves computed in another way."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from tests.unit.exactness import (
    TOLERANCE,
    assert_equal,
    network,
    plan,
    random_examples,
    reference,
    resolved,
    step,
)  # fmt: skip
from tunesmith.training import batching, losses, packing
from tunesmith.training.data import TokenizedExample
from tunesmith.training.kernels import cpu
from tunesmith.training.network import Network

EXAMPLES = random_examples()
SHARED = random_examples(shared=20)
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
KERNELS = ["torch", *(["cpu"] if cpu.available()[0] else [])]


@DTYPES
@pytest.mark.parametrize("path", ["decoder", "modules", "plain"])
def test_loss_and_gradients_equal_peft(tiny: Path, path: str, dtype: torch.dtype, tmp_path: Path) -> None:
    spec = resolved()
    made = network(tiny, spec, plan(dtype, path=path))
    assert made.path == path
    # transformers rounds norms to float32 also in a float64 model, and the last two paths are its modules.
    tolerance = TOLERANCE[dtype] if path == "decoder" or dtype == torch.float32 else 1e-5
    assert_equal(step(made, SHARED), reference(tiny, made, spec, SHARED, tmp_path), tolerance)


WAYS = {
    "one example each": {"budget": 1},
    "small micro-batches": {"budget": 130},
    "recompute": {"recompute": True},
    "modules": {"path": "modules"},
    "modules, recompute": {"path": "modules", "recompute": True},
    "cpu kernels": {"kernels": "cpu"},
    "cpu kernels, small micro-batches": {"kernels": "cpu", "budget": 130},
    "modules, cpu kernels": {"path": "modules", "kernels": "cpu"},
}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@DTYPES
@pytest.mark.parametrize("way", WAYS)
def test_every_way_computes_the_same(tiny: Path, way: str, dtype: torch.dtype, dropout: float) -> None:
    changes = dict(WAYS[way])
    if changes.get("kernels") == "cpu" and not cpu.available()[0]:
        pytest.skip(cpu.available()[1])
    budget = int(changes.pop("budget", 4096))
    spec = resolved(lora_dropout=dropout)
    ours = step(network(tiny, spec, plan(dtype, **changes)), SHARED, budget)
    tolerance = TOLERANCE[dtype] if dtype == torch.float32 or "path" not in changes else 1e-5
    assert_equal(ours, step(network(tiny, spec, plan(dtype)), SHARED), tolerance)


@DTYPES
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_shared_beginning_changes_nothing(
    tiny: Path, dtype: torch.dtype, kernels: str, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = network(tiny, resolved(lora_dropout=dropout), plan(dtype, kernels=kernels))
    (batch,) = made.micro_batches(SHARED, 10_000)
    assert len(batch.ids_T) < batch.num_tokens - 100  # something is shared
    shared = step(made, SHARED, 10_000)
    cut = batching.micro_batches
    monkeypatch.setattr(batching, "micro_batches", lambda *arguments, share: cut(*arguments, share=False))
    (batch,) = made.micro_batches(SHARED, 10_000)
    assert len(batch.ids_T) == batch.num_tokens
    assert_equal(shared, step(made, SHARED, 10_000), TOLERANCE[dtype])


@DTYPES
def test_the_pieces_of_the_loss_change_nothing(tiny: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    made = network(tiny, resolved(), plan(dtype))
    whole = step(made, EXAMPLES)
    monkeypatch.setattr(losses, "_PIECE", 7)
    assert_equal(step(made, EXAMPLES), whole, TOLERANCE[dtype])


def test_dropout_changes_the_result(tiny: Path) -> None:
    """The control of the tests above: masks are really applied, and differ from step to step."""
    made = network(tiny, resolved(lora_dropout=0.3), plan())
    seventh, again, eighth = (step(made, EXAMPLES, 256, number)[0] for number in (7, 7, 8))
    assert seventh == again
    assert abs(seventh - eighth) > 1e-6


def test_four_by_four_equals_sixteen_by_one() -> None:
    """batch_size x accumulation_steps is all that the maths sees: the same rows in the same steps."""
    four, sixteen = resolved(batch_size=4, accumulation_steps=4), resolved(batch_size=16, accumulation_steps=1)
    rows = [[batching.rows_of_step(100, spec.examples_per_step, spec.seed, n) for n in range(1, 20)] for spec in (four, sixteen)]
    assert rows[0] == rows[1]
    assert sorted(itertools.chain.from_iterable(rows[0][:7])) == list(range(100))  # seven steps are one pass, each example once
    assert rows[0][0] != rows[0][7]  # the next pass has another order


def nll(made: Network, rows: list[TokenizedExample]) -> dict[int, Tensor]:
    """Return each example's losses from one micro-batch of all."""
    (batch,) = made.micro_batches(rows, 10_000)
    made.masks.off()
    with torch.no_grad():
        nll_N = made.loss(batch).nll_N
    return {row: nll_N[torch.from_numpy(batch.row_N == row)] for row in range(len(rows))}


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("path", ["decoder", "modules"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=["fp64", "fp32", "bf16"])
def test_packed_examples_hear_nothing_of_each_other(tiny: Path, path: str, kernels: str, dtype: torch.dtype) -> None:
    """Changing every token of one example leaves the others' losses as they are, to the bit; its own are changed."""
    made = network(tiny, resolved(), plan(dtype, path=path, kernels=kernels))
    rows = random_examples(seed=5, count=6)
    other = dataclasses.replace(rows[2], ids_T=np.concatenate([rows[2].ids_T[:1], (rows[2].ids_T[1:] + 1) % 256]))
    before, after = nll(made, rows), nll(made, [*rows[:2], other, *rows[3:]])
    for row in range(6):
        assert torch.equal(before[row], after[row]) == (row != 2)


def test_a_shared_beginning_is_heard_by_all_who_share_it(tiny: Path) -> None:
    """The control: what is shared does matter to each."""
    made = network(tiny, resolved(), plan())
    rows = [row for row in SHARED if row.line % 3]
    changed = [dataclasses.replace(row, ids_T=np.concatenate([(row.ids_T[:1] + 1) % 256, row.ids_T[1:]])) for row in rows]
    before, after = nll(made, rows), nll(made, changed)
    assert not any(torch.allclose(before[row], after[row], rtol=1e-6) for row in range(len(rows)))


@pytest.mark.parametrize("kernels", KERNELS)
def test_the_same_twice_is_the_same_bits(tiny: Path, kernels: str) -> None:
    results = [step(network(tiny, resolved(lora_dropout=0.1), plan(torch.bfloat16, kernels=kernels)), SHARED) for _ in range(2)]
    assert results[0][0] == results[1][0]
    assert all(torch.equal(results[0][1][name], results[1][1][name]) for name in results[0][1])


@pytest.mark.parametrize("kernels", KERNELS)
def test_bfloat16_is_near_the_reference(tiny: Path, kernels: str, tmp_path: Path) -> None:
    """In bfloat16 our gradients are no farther from float64's than those of transformers and PEFT in bfloat16."""
    spec = resolved()
    exact = step(network(tiny, spec, plan(torch.float64)), EXAMPLES)
    made = network(tiny, spec, plan(torch.bfloat16, kernels=kernels))
    ours = step(made, EXAMPLES)
    theirs = reference(tiny, made, spec, EXAMPLES, tmp_path)
    ours_off = np.mean([float((ours[1][name].double() - exact[1][name]).norm() / exact[1][name].norm()) for name in exact[1]])
    theirs_off = np.mean([float((theirs[1][name].double() - exact[1][name]).norm() / exact[1][name].norm()) for name in exact[1]])
    assert ours_off <= theirs_off


@pytest.mark.parametrize("rows,tokens,segments", [
    ([[1] * 20], 20, 1),
    ([[1] * 20 + [2], [1] * 20 + [3]], 22, 3),
    ([[1] * 15 + [2], [1] * 15 + [3]], 32, 2),  # too little to share
    ([[1] * 20, [1] * 20], 20, 1),  # one example twice
    ([[1] * 20, [1] * 20 + [2]], 21, 2),  # one is the beginning of the other
    ([[1] * 20 + [2] * 20 + [3], [1] * 20 + [2] * 20 + [4], [1] * 20 + [5]], 43, 5),
])  # fmt: skip
def test_what_is_shared(rows: list[list[int]], tokens: int, segments: int) -> None:
    examples = [np.array(row) for row in rows]
    packed = packing.pack(examples)
    assert len(packed.ids_T) == packed.layout.num_tokens == tokens
    assert len(packed.layout.start_S) == segments
    for example, place in zip(examples, packed.place_E, strict=True):
        assert (packed.ids_T[place] == example).all()
        assert (packed.position_T[place] == np.arange(len(example))).all()


@pytest.mark.parametrize("budget", [1, 64, 200, 4096])
def test_micro_batches_keep_to_the_budget(budget: int) -> None:
    batches = list(batching.micro_batches(SHARED, budget, "cpu"))
    longest = max(map(len, SHARED))
    assert sorted(itertools.chain.from_iterable(set(batch.row_N.tolist()) for batch in batches)) == list(range(len(SHARED)))
    assert all(len(batch.ids_T) <= max(budget, longest) for batch in batches)
    assert sum(batch.num_tokens for batch in batches) == sum(map(len, SHARED))


def test_transformers_still_attends_through_its_registry() -> None:
    """The modules' path stands on this; without it every model falls back to one example at a time."""
    assert transformers.LlamaForCausalLM._supports_attention_backend
    assert {"sdpa", "eager"} <= set(transformers.AttentionMaskInterface._global_mapping)
