"""The kernels for CUDA, on CPU tensors: not compiled, against the formulas in float64; compiled as far as that goes without a GPU.

What is the same for all sides is in `test_kernels`. The code that torch's compiler makes for a GPU is not tested here: where there is one,
the kernels prove themselves on it before they are used, and that proof is tested.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn.attention import flex_attention

from tests.unit.exactness import TOLERANCE, assert_equal, network, plan, random_examples, resolved, step
from tests.unit.test_kernels import Draw, attention, close, layouts, make_layout, run_attention, seen, wide
from tunesmith.training.kernels import Activation, Attention, Drop, blocks, cuda, selection
from tunesmith.training.kernels.cuda import CudaKernels
from tunesmith.training.packing import Layout

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
CPU = torch.device("cpu")
SHARED = random_examples(shared=20)


@pytest.fixture(autouse=True, scope="module")
def flex_attention_on_a_cpu() -> Iterator[None]:
    """Let FlexAttention derive on a CPU: the computation is there, only its check of the arguments refuses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flex_attention, "_validate_device", lambda *_: None)
        yield


@pytest.fixture
def not_compiled() -> Iterator[None]:
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture
def counted() -> Iterator[None]:
    """Count the graphs that torch's compiler makes, and forget them in the end."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


# Who sees whom --------------------------------------------------------------------------------------------------------------


def any_how(pick: st.DataObject) -> Attention:
    return Attention(
        scale=pick.draw(st.sampled_from([0.2, 0.05])),
        causal=pick.draw(st.sampled_from([True, True, False])),
        window=pick.draw(st.sampled_from([None, None, 1, 5, 37, 150, 400])),
        softcap=pick.draw(st.sampled_from([None, None, 2.0])),
    )


def long_layouts() -> st.SearchStrategy[Layout]:
    """Several blocks long, ancestors anywhere before their descendants."""

    def of(lengths: list[int]) -> st.SearchStrategy[Layout]:
        parents = [st.one_of(st.none(), st.integers(0, s - 1)) if s else st.none() for s in range(len(lengths))]
        return st.tuples(*parents).map(lambda found: make_layout(lengths, list(found)))

    return st.lists(st.sampled_from([1, 20, 100, 128, 256, 300]), min_size=2, max_size=7).flatmap(of)


@given(data=st.data(), layout=st.one_of(layouts(), long_layouts()))
def test_a_mask_says_who_sees_whom(layout: Layout, data: st.DataObject) -> None:
    """The function for each pair; no pair outside the listed blocks; in the blocks that are seen as a whole nothing but such pairs."""
    how, T = any_how(data), layout.num_tokens
    mask, exact = blocks.mask(layout, how, CPU), seen(layout, how)
    assert mask.seq_lengths == (T, T)
    assert torch.equal(flex_attention.create_mask(mask.mask_mod, None, None, T, T, device="cpu")[0, 0], exact)
    padded = torch.zeros(-(-T // blocks.SIZE) * blocks.SIZE, -(-T // blocks.SIZE) * blocks.SIZE, dtype=torch.bool)
    padded[:T, :T] = exact
    tiles = padded.unflatten(1, (-1, blocks.SIZE)).unflatten(0, (-1, blocks.SIZE)).transpose(1, 2).flatten(2)
    listed = {kind: torch.zeros(tiles.shape[:2], dtype=torch.bool) for kind in ("partial", "full")}
    for kind, count, order in (("partial", mask.kv_num_blocks, mask.kv_indices), ("full", mask.full_kv_num_blocks, mask.full_kv_indices)):
        assert count is not None and order is not None
        for query in range(len(tiles)):
            listed[kind][query, order[0, 0, query, : int(count[0, 0, query])].long()] = True
    assert not bool((listed["partial"] & listed["full"]).any())
    assert not bool((tiles.any(2) & ~listed["partial"] & ~listed["full"]).any())
    assert torch.equal(listed["full"], tiles.all(2))


def test_of_what_nobody_sees_little_is_listed() -> None:
    """Ten examples of 512 tokens: ten triangles of blocks and no square between them. A window of 128 leaves two blocks a row."""
    layout = make_layout([512] * 10, [None] * 10)
    whole, window = (blocks.mask(layout, how, CPU) for how in (Attention(1.0), Attention(1.0, window=128)))
    for mask, partial, full in ((whole, 40, 10 * 6), (window, 40 + 30, 0)):
        assert mask.full_kv_num_blocks is not None
        assert (int(mask.kv_num_blocks.sum()), int(mask.full_kv_num_blocks.sum())) == (partial, full)


def test_all_layers_of_a_kind_use_one_mask(not_compiled: None) -> None:
    side, layout = CudaKernels(), make_layout([30, 9], [None, 0])
    made = [side._rules(layout, how, CPU)[1] for how in (Attention(1.0), Attention(0.5, softcap=3.0), Attention(1.0, window=7))]
    assert made[0] is made[1] is not made[2]
    assert len(side._masks) == 1
    del layout
    gc.collect()
    assert len(side._masks) == 0, "a micro-batch's masks go with it"


# Attention ------------------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    data=st.data(),
    layout=st.one_of(layouts(), long_layouts()),
    heads=st.sampled_from([(1, 1), (1, 3), (2, 2), (3, 1), (1, 4)]),
    dtype=st.sampled_from([torch.float32, torch.float32, torch.bfloat16]),
)
def test_attention(layout: Layout, heads: tuple[int, int], dtype: torch.dtype, data: st.DataObject) -> None:
    (groups, copies), D, how = heads, data.draw(st.sampled_from([16, 17, 64, 80, 128])), any_how(data)
    draw, T = Draw(data.draw(st.integers(0, 2**31)), dtype, data.draw(st.sampled_from([0, 5, 64]))), layout.num_tokens
    tensors = [draw.rows(T, n, D) for n in (groups * copies, groups, groups, groups * copies)]
    gradients, out = [draw.rows(T, n, D) for n in (groups * copies, groups, groups)], draw.rows(T, groups * copies, D)
    leaves = [wide(x) for x in tensors[:3]]
    exact, exact_lse = attention(leaves[0], leaves[1], leaves[2], layout, how)
    answers = [exact.detach(), *torch.autograd.grad(exact, leaves, tensors[3].double())]
    with torch.compiler.set_stance("force_eager"):
        lse = run_attention(CudaKernels(), tensors, gradients, out, layout, how)
    close(lse, exact_lse.detach(), 4e-6, scale=math.sqrt(lse.numel()))
    for got, answer in zip([out, *gradients], answers, strict=True):
        close(got, answer, 1e-2 if dtype == torch.bfloat16 else 4e-6, scale=math.sqrt(T * D))
    draw.check_untouched(*tensors, *gradients, out)


def test_the_comparison_sees_one_key_too_many(not_compiled: None) -> None:
    """Negative control: of 300 tokens, a window that is one longer is far outside the bounds."""
    draw, layout = Draw(3, torch.float32, 0), make_layout([300], [None])
    q, k, v, out = (draw.rows(300, 2, 32) for _ in range(4))
    CudaKernels().attention(q, k, v, layout, Attention(0.2, window=64), out)
    close(out, attention(q.double(), k.double(), v.double(), layout, Attention(0.2, window=64))[0], 4e-6)
    with pytest.raises(AssertionError, match="relative error"):
        close(out, attention(q.double(), k.double(), v.double(), layout, Attention(0.2, window=65))[0], 4e-3)


@pytest.mark.parametrize(("dtype", "D"), [(torch.float64, 64), (torch.float32, 8)])
def test_what_it_cannot_do_the_reference_does(not_compiled: None, dtype: torch.dtype, D: int) -> None:
    draw, layout, how = Draw(3, dtype, 0), make_layout([50, 20, 30], [None, 0, 0]), Attention(0.2, window=30, softcap=4.0)
    tensors, gradients, out = [draw.rows(100, 2, D) for _ in range(4)], [draw.rows(100, 2, D) for _ in range(3)], draw.rows(100, 2, D)
    leaves = [wide(x) for x in tensors[:3]]
    exact = attention(leaves[0], leaves[1], leaves[2], layout, how)[0]
    assert run_attention(CudaKernels(), tensors, gradients, out, layout, how).shape == (100, 0)
    for got, answer in zip([out, *gradients], [exact.detach(), *torch.autograd.grad(exact, leaves, tensors[3].double())], strict=True):
        close(got, answer, 1e-13 if dtype == torch.float64 else 4e-6)


# Training -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", [False, True], ids=["not compiled", "compiled"])
@pytest.mark.parametrize("changes", [{}, {"recompute": True}, {"path": "modules"}, {"path": "modules", "recompute": True}], ids=str)
def test_training_computes_the_same(
    tiny: Path, changes: dict[str, object], compiled: bool, counted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = resolved(lora_dropout=0.3)
    theirs = step(network(tiny, spec, plan(torch.float32)), SHARED)
    monkeypatch.setattr(selection, "by_name", lambda name: CudaKernels(backend="aot_eager"))
    with torch.compiler.set_stance("default" if compiled else "force_eager"):
        made = network(tiny, spec, plan(torch.float32, **changes))
        assert (made.kernels.name, made.path, made.notice) == ("cuda", changes.get("path", "decoder"), None)
        assert_equal(step(made, SHARED), theirs, TOLERANCE[torch.float32])


# Compilation ----------------------------------------------------------------------------------------------------------------


def everything(side: CudaKernels, layout: Layout, how: Attention, activation: Activation) -> list[Tensor]:
    """Call every kernel as `ops` does, into and from slices of wider tensors."""
    T, D, features, R = layout.num_tokens, 32, 48, 8
    draw = Draw(T, torch.bfloat16, 0)
    q, k, v, dout, dq, dk, dv, out = (draw.rows(T, 8, D)[:, :heads] for heads in (4, 2, 2, 4, 4, 2, 2, 4))
    side.rope(q, draw.rows(T, D).float(), draw.rows(T, D).float(), False)
    side.attention_backward(dout, q, k, v, out, side.attention(q, k, v, layout, how, out), layout, how, dq, dk, dv)
    h, dh, x, dx = draw.rows(T, features), draw.rows(T, features), draw.rows(T, features + R), draw.rows(T, features + R)
    side.rms_norm_backward(dx[:, :features], h, draw.vector(features), side.rms_norm(h, draw.vector(features), 1e-5, x[:, :features]), dh)
    gate_up = draw.rows(T, 2 * features)
    side.glu(gate_up, activation, x[:, :features])
    odd = [torch.randint(-(2**31), 2**31, (n,), dtype=torch.int32) | 1 for n in (T, features)]
    drop, a = Drop(odd[0], odd[1], -(2**30)), draw.rows(R, features)
    side.lora_down(x[:, :features], drop, a, x[:, features:])
    da = side.lora_down_backward(dx[:, features:], x[:, :features], drop, a, dx[:, :features])
    logits = draw.rows(T, 100)
    nll, _ = side.cross_entropy(logits, torch.arange(T) % 100, how.softcap, True)
    return [q, out, dq, dk, dv, h, dh, x, side.glu_backward(dx[:, :features], gate_up, activation), da, dx, nll, logits]


GEMMA = Attention(0.2, window=50, softcap=8.0)


@pytest.mark.parametrize(("how", "activation"), [(Attention(0.2), "silu"), (GEMMA, "gelu_tanh")], ids=["llama", "gemma"])
def test_one_graph_serves_all_micro_batches(how: Attention, activation: Activation, counted: None) -> None:
    """One for each function, whatever the numbers of tokens, segments and blocks; it computes what the function does when not compiled.

    Taken as far through the compiler as there is a CPU for: what is left is to make a GPU's code of the graph.
    """
    side = CudaKernels(backend="aot_eager")
    rng = np.random.default_rng(0)
    graphs = []
    # The first has not as many blocks as heads: what is equal the first time is taken for the same, until it is not.
    for lengths in ([300, 200, 250, 100, 20], [290] * 9, [100, 300, 133], [int(n) for n in rng.integers(1, 200, 14)]):
        parents = [None, *(int(rng.integers(s)) if rng.random() < 0.6 else None for s in range(1, len(lengths)))]
        layout = make_layout(lengths, parents)
        found = everything(side, layout, how, activation)
        graphs.append(counters["stats"]["unique_graphs"])
        with torch.compiler.set_stance("force_eager"):
            expected = everything(side, layout, how, activation)
        for ours, theirs in zip(found, expected, strict=True):
            close(ours.detach(), theirs.double(), 1e-5)
    assert graphs == [10] * len(graphs) and not counters["graph_break"]


# Who may be chosen ----------------------------------------------------------------------------------------------------------


class Wrong(CudaKernels):
    """As it could be by an error of a compiler: right in all but one place."""

    def glu_backward(self, dout_TF: Tensor, gate_up_T2F: Tensor, activation: Activation) -> Tensor:
        return super().glu_backward(dout_TF, gate_up_T2F, activation) * self.factor

    factor = 1.1


class Unable(CudaKernels):
    def cross_entropy(self, logits_NV: Tensor, targets_N: Tensor, softcap: float | None, gradient: bool) -> tuple[Tensor, Tensor]:
        raise RuntimeError("Cannot find a working\ntriton installation.")


def test_they_prove_themselves_first(not_compiled: None) -> None:
    assert cuda.prove(CudaKernels(), "cpu") == (True, "FlexAttention, and kernels fused by torch.compile")


@pytest.mark.parametrize("factor", [1.1, -1.0, math.nan])
def test_who_computes_something_else_is_not_used(factor: float, not_compiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Wrong, "factor", factor)
    usable, reason = cuda.prove(Wrong(), "cpu")
    assert not usable and "go wrong here" in reason


def test_who_does_not_run_is_not_used(not_compiled: None) -> None:
    reason = "FlexAttention and torch.compile do not run here (Cannot find a working triton installation.)"
    assert cuda.prove(Unable(), "cpu") == (False, reason)


def test_where_there_is_no_gpu_or_an_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cuda.available.__wrapped__() == (False, "no CUDA device")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert cuda.available.__wrapped__() == (False, "this GPU is older than compute capability 8.0")


@pytest.mark.parametrize("usable", [True, False])
def test_a_plan_has_the_kernels_that_can_be_used(usable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "available", lambda: (usable, "the reason"))
    assert selection.choose("cuda") == (("cuda", "the reason") if usable else ("torch", "plain torch: the reason"))
    assert selection.by_name("cuda").name == ("cuda" if usable else "torch")
    assert selection.choose("cpu")[0] != "cuda"
