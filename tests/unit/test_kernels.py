"""Every kernel against its formula in float64: values, gradients, masks, what it must not touch, NaN, and the same bits twice.

The formulas below are written to be read, and their gradients are autograd's; `TorchKernels` in float64 must agree with them to
rounding, the C++ kernels in float32 to a few units of rounding, and in bfloat16 at least as well as torch's own bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tunesmith.training.kernels import Activation, Attention, Drop, Kernels, cpu, cuda
from tunesmith.training.kernels.reference import TorchKernels
from tunesmith.training.packing import Layout

BUILT, WHY_NOT = cpu.available()
OURS = pytest.param("cpu", marks=pytest.mark.skipif(not BUILT, reason=f"no C++ kernels: {WHY_NOT}"))
both_sides = pytest.mark.parametrize("side", ["torch", OURS])
every_side = pytest.mark.parametrize("side", ["torch", OURS, "cuda"])  # of `cuda` what does not attend; see `test_kernels_cuda`
only_ours = pytest.mark.skipif(not BUILT, reason=f"no C++ kernels: {WHY_NOT}")

#: What one rounding to bfloat16 costs at most, relative.
HALF_UNIT = 2.0**-8


@pytest.fixture(autouse=True, scope="module")
def every_size_on_threads() -> Iterator[None]:
    """Divide even the smallest work among threads, and leave torch's number of them as it was; compile nothing."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, torch.compiler.set_stance("force_eager"):
        patch.setattr(cpu, "_WORTH_THREADS", 0)
        yield
    torch.set_num_threads(threads)


def kernels(side: str) -> Kernels:
    return {"torch": TorchKernels, "cpu": cpu.CpuKernels, "cuda": cuda.CudaKernels}[side]()


@dataclass(frozen=True)
class Draw:
    """Random tensors of one type, each a slice of a wider buffer filled with 7, so that nothing around it may change."""

    seed: int
    dtype: torch.dtype
    gap: int

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)

    def rows(self, *shape: int, spread: float = 1.0) -> Tensor:
        width = math.prod(shape[1:])
        buffer = torch.full((shape[0], width + self.gap), 7.0, dtype=self.dtype)
        inner = buffer[:, self.gap // 2 : self.gap // 2 + width]
        inner.copy_(torch.randn(shape[0], width) * spread)
        return inner.unflatten(1, shape[1:]) if len(shape) > 2 else inner

    def vector(self, length: int) -> Tensor:
        return torch.randn(length, dtype=torch.float64 if self.dtype == torch.float64 else torch.float32)

    def check_untouched(self, *slices: Tensor) -> None:
        for x in slices:
            outside = torch.ones(len(x), x.stride(0), dtype=torch.bool)
            outside[:, self.gap // 2 : self.gap // 2 + math.prod(x.shape[1:])] = False
            buffer = torch.as_strided(x, (len(x), x.stride(0)), (x.stride(0), 1), 0)
            assert bool((buffer[outside] == 7).all())


def draws(side: str, types: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)) -> st.SearchStrategy[Draw]:
    chosen = st.just(torch.float64) if side == "torch" else st.sampled_from(types)
    return st.builds(Draw, seed=st.integers(0, 2**31), dtype=chosen, gap=st.sampled_from([0, 2, 5, 64]))


def threads() -> st.SearchStrategy[int]:
    return st.sampled_from([1, 2, 3, 8])


def wide(x: Tensor) -> Tensor:
    """Return a leaf in float64 with the same values."""
    return x.detach().double().requires_grad_()


def close(got: Tensor, exact: Tensor, bound: float, scale: float = 0.0) -> None:
    """Assert that the difference's norm is within `bound` of the exact one's, or of `scale` (where what is exact is nearly 0)."""
    assert got.shape == exact.shape
    error, size = float((got.double() - exact).norm()), max(float(exact.norm()), scale)
    assert error <= bound * size + 1e-300, f"relative error {error / size:.2e}, allowed {bound:.2e}"


def rounding(dtype: torch.dtype, operations: float = 1.0) -> float:
    """Return the bound on a result that is rounded once, after so many times a few operations in float32 (or all in float64)."""
    exactness = {torch.float64: 1e-14, torch.float32: 6e-7, torch.bfloat16: 6e-7}[dtype] * operations
    return exactness + (1.02 * HALF_UNIT if dtype == torch.bfloat16 else 0)


# Norm, gated linear units, rotary positions -------------------------------------------------------------------------------


def rms_norm(h: Tensor, weight: Tensor, eps: float) -> Tensor:
    return h / (h.square().mean(-1, keepdim=True) + eps).sqrt() * weight


@every_side
@given(data=st.data())
def test_rms_norm(side: str, data: st.DataObject) -> None:
    draw, T, features = data.draw(draws(side)), data.draw(st.integers(1, 70)), data.draw(st.integers(1, 700))
    torch.set_num_threads(data.draw(threads()))
    h, dout, dh, out, weight = (
        draw.rows(T, features, spread=3),
        draw.rows(T, features),
        draw.rows(T, features),
        draw.rows(T, features),
        draw.vector(features),
    )
    exact_h = wide(h)
    exact = rms_norm(exact_h, weight.double(), 1e-5)
    exact_dh = dh.double() + torch.autograd.grad(exact, exact_h, dout.double())[0]

    rstd = kernels(side).rms_norm(h, weight, 1e-5, out)
    kernels(side).rms_norm_backward(dout, h, weight, rstd, dh)
    close(out, exact.detach(), rounding(draw.dtype))
    close(rstd, 1 / (h.double().square().mean(-1) + 1e-5).sqrt(), rounding(rstd.dtype))
    close(dh, exact_dh, rounding(draw.dtype, 4), scale=math.sqrt(T * features))
    draw.check_untouched(out, dh, h, dout)


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": nn.functional.silu,
    "gelu": nn.functional.gelu,
    "gelu_tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
}


@every_side
@given(data=st.data(), activation=st.sampled_from(sorted(ACTIVATIONS)))
def test_glu(side: str, activation: Activation, data: st.DataObject) -> None:
    draw, T, F = data.draw(draws(side)), data.draw(st.integers(1, 40)), data.draw(st.integers(1, 300))
    torch.set_num_threads(data.draw(threads()))
    gate_up, dout, out = draw.rows(T, 2 * F, spread=data.draw(st.sampled_from([0.1, 2.0, 20.0]))), draw.rows(T, F), draw.rows(T, F)
    exact_in = wide(gate_up)
    gate, up = exact_in.chunk(2, dim=-1)
    exact = ACTIVATIONS[activation](gate) * up

    kernels(side).glu(gate_up, activation, out)
    gradient = kernels(side).glu_backward(dout, gate_up, activation)
    close(out, exact.detach(), rounding(draw.dtype), scale=0.1)
    close(gradient, torch.autograd.grad(exact, exact_in, dout.double())[0], rounding(draw.dtype, 2), scale=0.1)
    draw.check_untouched(out, gate_up, dout)


@only_ours
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_activations_everywhere(activation: Activation) -> None:
    """Over the whole range of gates each value is right to float32's rounding, of itself or of the largest that is near 0."""
    gate = torch.cat([torch.linspace(-30, 30, 200_001), torch.logspace(-30, 30, 999), -torch.logspace(-30, 30, 999)])[:, None]
    out = torch.empty_like(gate)
    cpu.CpuKernels().glu(torch.cat([gate, torch.ones_like(gate)], 1), activation, out)
    exact = ACTIVATIONS[activation](gate.double())
    assert float(((out - exact).abs() / exact.abs().clamp_min(1)).max()) < 3e-7


@every_side
@given(data=st.data())
def test_rope(side: str, data: st.DataObject) -> None:
    """As a rotation of complex numbers; and back by its inverse."""
    draw, T, H = data.draw(draws(side)), data.draw(st.integers(1, 30)), data.draw(st.integers(1, 6))
    D = data.draw(st.sampled_from([8, 16, 32, 64, 80, 96, 128, 256]))
    half = data.draw(st.integers(1, D // 2))
    torch.set_num_threads(data.draw(threads()))
    x, angle = draw.rows(T, H, D), draw.vector(T * half).view(T, half) * 9
    cos, sin = angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)
    turned = torch.complex(x[..., :half].double(), x[..., half : 2 * half].double()) * torch.complex(cos, sin)[:, None, :half]
    exact = torch.cat([turned.real, turned.imag, x[..., 2 * half :].double()], -1)

    before = x.double()
    kernels(side).rope(x, cos, sin, False)
    close(x, exact, rounding(draw.dtype))
    kernels(side).rope(x, cos, sin, True)
    close(x, before, 2 * rounding(draw.dtype))
    draw.check_untouched(x)


# Low-rank adapters ----------------------------------------------------------------------------------------------------------


def draw_drop(probability: float, T: int, features: int) -> Drop:
    integers = [torch.randint(-(2**31), 2**31, (n,), dtype=torch.int32) for n in (T, features)]
    return Drop(integers[0], integers[1] | 1, round(probability * 2**32) - 2**31)


def kept(drop: Drop, threshold: int) -> Tensor:
    product = drop.row_T.long()[:, None] * drop.column_I.long()
    return ((product + 2**31) % 2**32 - 2**31) >= threshold


@every_side
@given(data=st.data(), probability=st.sampled_from([None, 0.05, 0.5]), further=st.booleans())
def test_lora(side: str, probability: float | None, further: bool, data: st.DataObject) -> None:
    """Down with its mask and backwards, and the backward pass of up."""
    draw, T, features = data.draw(draws(side)), data.draw(st.integers(1, 260)), data.draw(st.integers(1, 1000))
    R = data.draw(st.sampled_from([1, 2, 7, 8, 16, 32, 48, 64, 65, 130]))
    torch.set_num_threads(data.draw(threads()))
    x, a, low, dlow, dx = draw.rows(T, features), draw.rows(R, features), draw.rows(T, R), draw.rows(T, R), draw.rows(T, features)
    drop = None if probability is None else draw_drop(probability, T, features)
    keep = torch.ones(T, features) if drop is None else kept(drop, drop.threshold).double()
    exact_x, exact_a = wide(x), wide(a)
    exact = (exact_x * keep) @ exact_a.t()
    exact_dx, exact_da = torch.autograd.grad(exact, (exact_x, exact_a), dlow.double())

    sums = rounding(torch.float32 if side == "cpu" and draw.dtype == torch.bfloat16 else draw.dtype, 4)
    scale = math.sqrt(x.numel() * R)
    expected_dx = dx.double() + exact_dx if further else None
    kernels(side).lora_down(x, drop, a, low)
    da = kernels(side).lora_down_backward(dlow, x, drop, a, dx if further else None)
    close(low, exact.detach(), rounding(draw.dtype, 4), scale)
    close(da, exact_da, sums, scale)
    if expected_dx is not None:
        close(dx, expected_dx, rounding(draw.dtype, 4), scale)
    close(kernels(side).lora_up_backward(x, dlow), x.double().t() @ dlow.double(), sums, scale)
    draw.check_untouched(x, a, low, dlow, dx)


@only_ours
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropped_features_are_as_if_they_were_not_there(dtype: torch.dtype) -> None:
    """NaN in a dropped feature is not seen, in a kept one it is; of dropped features the gradient stays as it was, to the bit."""
    T, features, R = 100, 300, 16
    torch.manual_seed(1)
    x, a, dlow, dx = (torch.randn(*shape).to(dtype) for shape in ((T, features), (R, features), (T, R), (T, features)))
    drop = draw_drop(0.3, T, features)
    keep = kept(drop, drop.threshold)
    low, before = torch.empty(T, R, dtype=dtype), dx.clone()
    holes = torch.where(keep, x, math.nan)
    cpu.CpuKernels().lora_down(holes, drop, a, low)
    da = cpu.CpuKernels().lora_down_backward(dlow, holes, drop, a, dx)
    assert bool(low.isfinite().all()) and bool(da.isfinite().all())
    assert torch.equal(dx[~keep], before[~keep]) and not bool((dx[keep] == before[keep]).all())
    x[3, int(keep[3].nonzero()[0])] = math.nan
    cpu.CpuKernels().lora_down(x, drop, a, low)
    assert bool(low[3].isnan().all()) and bool(low[:3].isfinite().all())


# Attention ------------------------------------------------------------------------------------------------------------------


def make_layout(lengths: list[int], parents: list[int | None]) -> Layout:
    """Return segments one behind the other, each with its parent, the parent's parent and so on as ancestors."""
    chains: list[list[int]] = []
    for parent in parents:
        chains.append([] if parent is None else [*chains[parent], parent])
    start = np.cumsum([0, *lengths])[:-1].astype(np.int32)
    firsts = np.cumsum([0, *map(len, chains)]).astype(np.int32)
    return Layout(start, np.array(lengths, np.int32), firsts, np.array([a for chain in chains for a in chain], np.int32))


@st.composite
def layouts(pick: st.DrawFn) -> Layout:
    lengths = pick(
        st.lists(
            st.sampled_from([st.integers(1, 20), st.integers(1, 60), st.integers(1, 200)]).flatmap(lambda n: n), min_size=1, max_size=5
        )
    )
    parents = [pick(st.one_of(st.none(), st.integers(0, s - 1))) if s else None for s in range(len(lengths))]
    return make_layout(lengths, parents)


def seen(layout: Layout, how: Attention) -> Tensor:
    """Return which token sees which, [T, T]."""
    sees = torch.zeros(layout.num_tokens, layout.num_tokens, dtype=torch.bool)
    for s in range(len(layout.start_S)):
        chain = [*layout.ancestors(s), s]
        keys = torch.cat([torch.arange(layout.start_S[c], layout.start_S[c] + layout.length_S[c]) for c in chain])
        queries = keys[layout.depth(s) :]
        back = torch.arange(layout.depth(s), len(keys))[:, None] - torch.arange(len(keys))
        visible = torch.ones_like(back, dtype=torch.bool)
        if how.causal:
            visible &= back >= 0
        if how.window is not None:
            visible &= back < how.window
        sees[queries[:, None], keys] = visible
    return sees


def attention(q: Tensor, k: Tensor, v: Tensor, layout: Layout, how: Attention) -> tuple[Tensor, Tensor]:
    copies = q.shape[1] // k.shape[1]
    scores = torch.einsum("thd,shd->hts", q, k.repeat_interleave(copies, 1)) * how.scale
    if how.softcap is not None:
        scores = how.softcap * torch.tanh(scores / how.softcap)
    scores = scores.masked_fill(~seen(layout, how), -math.inf)
    return torch.einsum("hts,shd->thd", scores.softmax(-1), v.repeat_interleave(copies, 1)), scores.logsumexp(-1).t()


def run_attention(
    side: Kernels, tensors: list[Tensor], gradients: list[Tensor], out: Tensor, layout: Layout, how: Attention
) -> Tensor:  # what the backward pass is given: of ours the log-sum-exp
    q, k, v, dout = tensors
    saved = side.attention(q, k, v, layout, how, out)
    side.attention_backward(dout, q, k, v, out, saved, layout, how, *gradients)
    return saved


def sdpa_errors(tensors: list[Tensor], exact: list[Tensor], layout: Layout, how: Attention) -> list[float]:
    """Return the errors of torch's own attention in the tensors' type: of the output and of the gradients by q, k and v."""
    q, k, v, dout = tensors
    leaves = [x.detach().contiguous().requires_grad_() for x in (q, k, v)]
    copies = q.shape[1] // k.shape[1]
    heads = [x.repeat_interleave(n, 1).transpose(0, 1)[None] for x, n in zip(leaves, (1, copies, copies), strict=True)]
    mask = torch.zeros(len(q), len(q), dtype=q.dtype).masked_fill(~seen(layout, how), -math.inf)
    out = nn.functional.scaled_dot_product_attention(*heads, attn_mask=mask, scale=how.scale)[0].transpose(0, 1)
    got = [out.detach(), *torch.autograd.grad(out, leaves, dout)]
    return [float((a.double() - b).norm()) for a, b in zip(got, exact, strict=True)]


@both_sides
@given(data=st.data(), layout=layouts(), heads=st.sampled_from([(1, 1), (1, 3), (2, 2), (3, 1), (1, 4)]))
def test_attention(side: str, layout: Layout, heads: tuple[int, int], data: st.DataObject) -> None:
    (groups, copies), draw, D = heads, data.draw(draws(side)), data.draw(st.sampled_from([8, 16, 32, 64, 80, 96, 128, 256]))
    how = Attention(
        scale=data.draw(st.sampled_from([D**-0.5, 0.05])),
        causal=data.draw(st.sampled_from([True, True, False])),
        window=data.draw(st.sampled_from([None, None, 1, 5, 37, 100])),
        softcap=data.draw(st.sampled_from([None, None, 2.0])),
    )
    torch.set_num_threads(data.draw(threads()))
    T = layout.num_tokens
    tensors = [draw.rows(T, n, D) for n in (groups * copies, groups, groups, groups * copies)]
    gradients, out = [draw.rows(T, n, D) for n in (groups * copies, groups, groups)], draw.rows(T, groups * copies, D)
    leaves = [wide(x) for x in tensors[:3]]
    exact, exact_lse = attention(leaves[0], leaves[1], leaves[2], layout, how)
    answers = [exact.detach(), *torch.autograd.grad(exact, leaves, tensors[3].double())]

    lse = run_attention(kernels(side), tensors, gradients, out, layout, how)
    if side == "cpu":
        close(lse, exact_lse.detach(), 4e-6 if draw.dtype == torch.bfloat16 else 1e-6, scale=math.sqrt(lse.numel()))
    draw.check_untouched(*tensors, *gradients, out)
    if draw.dtype != torch.bfloat16:
        for got, answer in zip([out, *gradients], answers, strict=True):
            close(got, answer, 1e-13 if draw.dtype == torch.float64 else 4e-6, scale=math.sqrt(T * D))
        return
    theirs = [1.0] * 4 if how.softcap else sdpa_errors(tensors, answers, layout, how)
    for got, answer, error in zip([out, *gradients], answers, theirs, strict=True):
        close(got, answer, 8e-3, scale=math.sqrt(T * D))
        if not how.softcap:
            assert float((got.double() - answer).norm()) <= 1.1 * error + 5e-4 * float(answer.norm()) + 1e-3 * math.sqrt(D)


@only_ours
@pytest.mark.parametrize(
    ("lengths", "parents", "groups", "copies"),
    [([4096], [None], 1, 1), ([1100, 1500, 1], [None, 0, 0], 1, 2), ([37] * 60, [None] + [0] * 59, 2, 2)],
    ids=["one long", "long and shared", "much shared"],
)
def test_long_and_shared_segments(lengths: list[int], parents: list[int | None], groups: int, copies: int) -> None:
    """Long ones are divided among threads; what many segments share is summed over threads, the same way each time."""
    layout, how, draw = make_layout(lengths, parents), Attention(0.125), Draw(5, torch.bfloat16, 0)
    torch.set_num_threads(2)
    heads = [groups * copies, groups, groups, groups * copies]
    rounded = [draw.rows(layout.num_tokens, n, 64) for n in heads]
    doubled = [x.double() for x in rounded]
    answers = [torch.empty_like(x) for x in doubled]
    run_attention(TorchKernels(), doubled, answers[:3], answers[3], layout, how)
    for dtype, bound in ((torch.float32, 4e-6), (torch.bfloat16, 3e-3)):
        tensors = [x.to(dtype) for x in rounded]
        first, second = [[torch.empty_like(x) for x in tensors] for _ in range(2)]
        for got in (first, second):
            run_attention(cpu.CpuKernels(), tensors, got[:3], got[3], layout, how)
        for got, again, answer in zip(first, second, answers, strict=True):
            close(got, answer, bound)
            assert torch.equal(got, again)


@only_ours
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_scores_far_from_zero(dtype: torch.dtype, sign: float) -> None:
    """Scores near 200 and near -200, and lengths that fill no register: neither overflow nor what fills up may show."""
    layout, how, draw = make_layout([300, 21, 21], [None, None, 1]), Attention(1.0), Draw(4, dtype, 0)
    T, D = layout.num_tokens, 32
    tensors, out = [draw.rows(T, 2, D, spread=0.1) for _ in range(4)], torch.empty(T, 2, D, dtype=dtype)
    tensors[0] += 2.5
    tensors[1] += 2.5 * sign
    leaves = [wide(x) for x in tensors[:3]]
    exact, lse = attention(leaves[0], leaves[1], leaves[2], layout, how)
    assert float((lse.detach() * sign).min()) > 150
    gradients = [torch.empty_like(x) for x in tensors[:3]]
    run_attention(cpu.CpuKernels(), tensors, gradients, out, layout, how)
    for got, answer in zip([out, *gradients], [exact.detach(), *torch.autograd.grad(exact, leaves, tensors[3].double())], strict=True):
        close(got, answer, 1e-4 if dtype == torch.float32 else 0.2)


@only_ours
def test_the_comparison_sees_one_key_too_many() -> None:
    """Negative control: of 300 tokens, a window that is one longer is far outside the bounds."""
    draw, layout = Draw(3, torch.float32, 0), make_layout([300], [None])
    q, k, v, out = (draw.rows(300, 2, 32) for _ in range(4))
    cpu.CpuKernels().attention(q, k, v, layout, Attention(0.2, window=64), out)
    close(out, attention(q.double(), k.double(), v.double(), layout, Attention(0.2, window=64))[0], 4e-6)
    with pytest.raises(AssertionError, match="relative error"):
        close(out, attention(q.double(), k.double(), v.double(), layout, Attention(0.2, window=65))[0], 4e-3)


# Cross-entropy --------------------------------------------------------------------------------------------------------------


@every_side
@given(data=st.data(), softcap=st.sampled_from([None, 3.0, 30.0]), gradient=st.booleans())
def test_cross_entropy(side: str, softcap: float | None, gradient: bool, data: st.DataObject) -> None:
    seed, N, V = data.draw(st.integers(0, 2**31)), data.draw(st.integers(1, 30)), data.draw(st.integers(1, 3000))
    dtype = torch.float64 if side == "torch" else data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    torch.set_num_threads(data.draw(threads()))
    torch.manual_seed(seed)
    logits, targets = (torch.randn(N, V) * data.draw(st.sampled_from([1.0, 10.0]))).to(dtype), torch.randint(0, V, (N,))
    if softcap is None and data.draw(st.booleans()):
        logits[torch.rand(N, V) < 0.2] = -math.inf
        logits[torch.arange(N), targets] = 1.0
    exact_in = wide(logits)
    capped = exact_in if softcap is None else softcap * torch.tanh(exact_in / softcap)
    exact = nn.functional.cross_entropy(capped, targets, reduction="none")
    exact_gradient = torch.autograd.grad(exact.sum(), exact_in)[0]
    hits = logits.double().argmax(-1) == targets

    before = logits.clone()
    nll, got_hits = kernels(side).cross_entropy(logits, targets, softcap, gradient)
    close(nll, exact.detach(), 1e-12 if dtype == torch.float64 else 2e-6 if softcap else 5e-7, scale=math.sqrt(N))
    assert torch.equal(got_hits, hits)
    if gradient:
        close(logits, exact_gradient, rounding(dtype, 4), scale=0.1)
    else:
        assert torch.equal(logits, before)


@every_side
def test_the_first_of_equal_logits_counts(side: str) -> None:
    logits = torch.zeros(4, 100)
    logits[:, [17, 40, 99]] = 5.0
    targets = torch.tensor([17, 40, 99, 3])
    assert kernels(side).cross_entropy(logits, targets, None, False)[1].tolist() == [True, False, False, False]


@every_side
@pytest.mark.parametrize("vocabulary", [1, 15, 16, 33, 49152])
def test_cross_entropy_at_the_edges(side: str, vocabulary: int) -> None:
    """A target of minus infinity costs infinity; NaN anywhere makes the row NaN and counts as the largest; other rows are as before."""
    logits = torch.randn(4, vocabulary, generator=torch.Generator().manual_seed(vocabulary)).float()
    last = vocabulary - 1
    targets = torch.tensor([0, last, last, 0])
    if vocabulary > 1:
        logits[0, 0] = -math.inf
    logits[1, last] = math.nan
    logits[2] = -math.inf
    nll, hits = kernels(side).cross_entropy(logits, targets, None, True)
    assert float(nll[0]) == (math.inf if vocabulary > 1 else 0.0)
    assert math.isnan(nll[1]) and math.isnan(nll[2]) and math.isfinite(nll[3])
    assert bool(hits[1]) and not bool(logits[1].isfinite().any()) and bool(logits[3].isfinite().all())
    if vocabulary > 1:
        assert float(logits[0, 0]) == -1.0


@only_ours
def test_a_target_outside_the_vocabulary_is_refused() -> None:
    for target in (-100, 7):
        with pytest.raises(AssertionError, match="vocabulary"):
            cpu.CpuKernels().cross_entropy(torch.zeros(1, 7), torch.tensor([target]), None, True)


# What holds for all ---------------------------------------------------------------------------------------------------------


@only_ours
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_not_a_number_comes_through(dtype: torch.dtype) -> None:
    """NaN in row 5 of any input is NaN in row 5 of what comes out, and in no other row of another segment."""
    draw, side = Draw(1, dtype, 0), cpu.CpuKernels()
    T, features, R = 60, 96, 16
    bad, good = 5, [t for t in range(T) if t != 5]
    h, out, gate_up, low, a = (
        draw.rows(T, features),
        draw.rows(T, features),
        draw.rows(T, 2 * features),
        draw.rows(T, R),
        draw.rows(R, features),
    )
    h[bad, 3] = gate_up[bad, 3] = math.nan
    rstd = side.rms_norm(h, torch.ones(features), 1e-5, out)
    dh = torch.zeros_like(h)
    side.rms_norm_backward(torch.ones_like(h), h, torch.ones(features), rstd, dh)
    for x in (out, dh):
        assert bool(x[bad].isnan().all()) and bool(x[good].isfinite().all())
    side.lora_down(h, None, a, low)
    assert bool(low[bad].isnan().all()) and bool(low[good].isfinite().all())
    assert bool(side.lora_down_backward(torch.ones_like(low), h, None, a, None)[:, 3].isnan().all())
    assert bool(side.lora_up_backward(h, torch.ones_like(low))[3].isnan().all())
    for activation in ACTIVATIONS:
        side.glu(gate_up, activation, out)
        gradient = side.glu_backward(torch.ones_like(out), gate_up, activation)
        assert math.isnan(out[bad, 3]) and math.isnan(gradient[bad, 3]) and math.isnan(gradient[bad, features + 3])
        assert int(out.isnan().sum()) == 1 and int(gradient.isnan().sum()) == 2
    layout, how = make_layout([20, 40], [None, None]), Attention(0.2)
    for which in range(3):
        tensors = [draw.rows(T, n, 32) for n in (2, 1, 1, 2)]
        tensors[which][bad, 0, 7] = math.nan
        gradients, attended = [draw.rows(T, n, 32) for n in (2, 1, 1)], draw.rows(T, 2, 32)
        run_attention(side, tensors, gradients, attended, layout, how)
        assert bool(attended[bad, 0].isnan().any())
        assert all(bool(x[20:].isfinite().all()) for x in (attended, *gradients))


@only_ours
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_same_bits_twice(dtype: torch.dtype, count: int) -> None:
    """For a number of threads every sum is added up in the same order."""
    torch.set_num_threads(count)
    draw, side = Draw(2, dtype, 0), cpu.CpuKernels()
    layout = make_layout([100, 30, 200, 7, 90, 64], [None, 0, 0, 1, None, 0])
    T = layout.num_tokens
    x, a, dlow, drop = draw.rows(T, 300), draw.rows(24, 300), draw.rows(T, 24), draw_drop(0.1, T, 300)
    tensors, out = [draw.rows(T, n, 64) for n in (6, 2, 2, 6)], draw.rows(T, 6, 64)
    results = []
    for _ in range(5):
        gradients = [torch.empty_like(t) for t in tensors[:3]]
        lse = run_attention(side, tensors, gradients, out, layout, Attention(0.125))
        dx = x.clone()
        results.append([out.clone(), lse, *gradients, side.lora_down_backward(dlow, x, drop, a, dx), dx, side.lora_up_backward(x, dlow)])
    assert all(torch.equal(a, b) for again in results[1:] for a, b in zip(results[0], again, strict=True))


@only_ours
@settings(max_examples=5)
@given(data=st.data())
def test_nothing_is_nothing(data: st.DataObject) -> None:
    """No tokens at all."""
    draw, side = data.draw(draws("cpu")), cpu.CpuKernels()
    empty, a = torch.empty(0, 32, dtype=draw.dtype), draw.rows(8, 32)
    assert side.rms_norm(empty, torch.ones(32), 1e-5, empty).shape == (0,)
    side.lora_down(empty, None, a, torch.empty(0, 8, dtype=draw.dtype))
    gradient = side.lora_down_backward(torch.empty(0, 8, dtype=draw.dtype), empty, None, a, None)
    assert gradient.shape == (8, 32) and not bool(gradient.any())
    assert side.cross_entropy(torch.empty(0, 32, dtype=draw.dtype), torch.empty(0, dtype=torch.int64), None, True)[0].shape == (0,)


@only_ours
def test_what_the_kernels_do_not_know_goes_to_torch() -> None:
    """Float64, head sizes that are no multiple of 8, columns that do not lie side by side."""
    side, layout, how = cpu.CpuKernels(), make_layout([9], [None]), Attention(0.3)
    torch.manual_seed(0)
    for dtype, D in ((torch.float64, 16), (torch.float32, 12), (torch.float32, 264)):
        q, k, v, out, expected = (torch.randn(9, 2, D).to(dtype) for _ in range(5))
        lse = side.attention(q, k, v, layout, how, out)
        assert torch.equal(lse, TorchKernels().attention(q, k, v, layout, how, expected)) and torch.equal(out, expected)
    h = torch.randn(40, 9).t()
    out, expected = torch.empty(9, 40), torch.empty(9, 40)
    side.rms_norm(h, torch.ones(40), 1e-5, out)
    TorchKernels().rms_norm(h, torch.ones(40), 1e-5, expected)
    assert torch.equal(out, expected)
