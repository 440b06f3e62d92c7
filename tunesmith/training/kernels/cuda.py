"""The kernels for CUDA: torch's FlexAttention, and formulas that torch.compile fuses into few passes over memory.

No code of our own for GPUs. It is compiled once for all numbers of tokens; not compiled it computes on any device, which is how it is
tested. On a GPU it is used only after it has computed there, on a sample, what the reference does (`available`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from subprocess import SubprocessError  # by a compiler that Triton calls
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from tunesmith.training import packing
from tunesmith.training.kernels import Activation, Attention, Drop, Kernels, blocks
from tunesmith.training.kernels.reference import TorchKernels, activate, dropped, kept, wide
from tunesmith.training.packing import Layout

_NEEDED = (8, 0)  # compute capability: from there on bfloat16 is native, and FlexAttention is tested by torch itself
_AGREEMENT = 0.03  # of the norm of the reference's results in bfloat16, one rounding to which is 0.004
_FUSED = ("rms_norm", "rms_norm_backward", "glu", "glu_backward", "rope", "cross_entropy")
#: Most variants of a compiled function, by types, sizes of heads, one of something or more: far more than a run needs. torch's limit is 8.
_VARIANTS = 64


@functools.cache
def available() -> tuple[bool, str]:
    """Say whether these kernels can be used here, and what they are or why not. To know it, most are compiled: that takes a while."""
    if not torch.cuda.is_available():
        return False, "no CUDA device"
    if torch.cuda.get_device_capability() < _NEEDED:
        return False, f"this GPU is older than compute capability {_NEEDED[0]}.{_NEEDED[1]}"
    return prove(CudaKernels(), "cuda")


def prove(side: Kernels, device: str) -> tuple[bool, str]:
    """Have kernels compute a sample on a device; say whether they can be used there, and what they are or why not."""
    try:
        pairs = zip(_sample(side, device), _sample(TorchKernels(), device), strict=True)
        apart = float(torch.stack([(ours - theirs).norm() / theirs.norm() for ours, theirs in pairs]).max())
    except (AttributeError, ImportError, OSError, RuntimeError, SubprocessError, TypeError, ValueError) as error:
        return False, f"FlexAttention and torch.compile do not run here ({' '.join(str(error).split())[:200]})"
    if not apart <= _AGREEMENT:
        return False, f"FlexAttention and torch.compile go wrong here: they are {apart:.2g} of the norm off"
    return True, "FlexAttention, and kernels fused by torch.compile"


class CudaKernels(TorchKernels):
    """See `Kernels`. Products of matrices are the reference's."""

    name = "cuda"

    def __init__(self, backend: str = "inductor") -> None:
        """`backend` of torch.compile."""
        # Here and not at import: only who uses them pays for it.
        for name in _FUSED:
            setattr(self, name, _compiled(_of_fixed_width(getattr(self, name)), backend))
        self._masked, self._add_masked = (_compiled(_of_fixed_width(f), backend) for f in (_masked, _add_masked))
        self._attend, self._attend_backward = _compiled(_attend, backend), _compiled(_attend_backward, backend)
        #: One for each micro-batch and kind of attention: every layer of that kind uses it, forwards and backwards.
        self._masks: WeakKeyDictionary[Layout, dict[tuple[object, ...], BlockMask]] = WeakKeyDictionary()

    def glu(self, gate_up_T2F: Tensor, activation: Activation, out_TF: Tensor) -> None:
        gate_TF, up_TF = wide(gate_up_T2F).chunk(2, dim=-1)
        out_TF.copy_(activate(gate_TF, activation) * up_TF)

    def glu_backward(self, dout_TF: Tensor, gate_up_T2F: Tensor, activation: Activation) -> Tensor:
        gate_TF, up_TF = wide(gate_up_T2F).chunk(2, dim=-1)
        dactive_TF, dup_TF = wide(dout_TF) * up_TF, wide(dout_TF) * activate(gate_TF, activation)
        if activation == "silu":
            dgate_TF = torch.ops.aten.silu_backward(dactive_TF, gate_TF)
        else:
            dgate_TF = torch.ops.aten.gelu_backward(dactive_TF, gate_TF, approximate="tanh" if activation == "gelu_tanh" else "none")
        return torch.cat([dgate_TF, dup_TF], dim=-1).to(gate_up_T2F.dtype)

    def lora_down(self, x_TI: Tensor, drop: Drop | None, a_RI: Tensor, low_TR: Tensor) -> None:
        super().lora_down(x_TI if drop is None else self._masked(x_TI, drop), None, a_RI, low_TR)

    def lora_down_backward(self, dlow_TR: Tensor, x_TI: Tensor, drop: Drop | None, a_RI: Tensor, dx_TI: Tensor | None) -> Tensor:
        if drop is None:
            return super().lora_down_backward(dlow_TR, x_TI, None, a_RI, dx_TI)
        if dx_TI is not None:
            self._add_masked(dx_TI, dlow_TR @ a_RI, drop)
        return super().lora_down_backward(dlow_TR, self._masked(x_TI, drop), None, a_RI, None)

    def attention(self, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, layout: Layout, how: Attention, out_THD: Tensor) -> Tensor:
        if q_THD.dtype == torch.float64 or not 16 <= q_THD.shape[-1] <= 256:
            return super().attention(q_THD, k_TGD, v_TGD, layout, how, out_THD)
        with _constant_floats():
            out, lse_1HT = self._attend(*_heads_first(q_THD, k_TGD, v_TGD), *self._rules(layout, how, q_THD.device))
        out_THD.copy_(out[0].transpose(0, 1))
        lse_TH: Tensor = lse_1HT[0].t()
        return lse_TH

    def attention_backward(
        self, dout_THD: Tensor, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, out_THD: Tensor, saved: Tensor,
        layout: Layout, how: Attention, dq_THD: Tensor, dk_TGD: Tensor, dv_TGD: Tensor,
    ) -> None:  # fmt: skip
        if saved.shape[1] == 0:  # the reference's forward pass saves nothing
            return super().attention_backward(dout_THD, q_THD, k_TGD, v_TGD, out_THD, saved, layout, how, dq_THD, dk_TGD, dv_TGD)
        heads, rules = _heads_first(q_THD, k_TGD, v_TGD, out_THD, dout_THD), self._rules(layout, how, q_THD.device)
        with torch.enable_grad(), _constant_floats():
            if how.softcap:  # its derivative torch 2.13 finds only together with a forward pass, so that is computed again
                leaves = [x.detach().requires_grad_() for x in heads[:3]]
                found = torch.autograd.grad(self._attend(*leaves, *rules)[0], leaves, heads[4])
            else:
                found = self._attend_backward(*heads, saved.t().contiguous()[None], *rules)
        for dx, dx_1HTD in zip((dq_THD, dk_TGD, dv_TGD), found, strict=True):
            dx.copy_(dx_1HTD[0].transpose(0, 1))

    def cross_entropy(self, logits_NV: Tensor, targets_N: Tensor, softcap: float | None, gradient: bool) -> tuple[Tensor, Tensor]:
        capped_NV = wide(logits_NV)
        largest_N, best_N = capped_NV.max(-1)
        if softcap:  # which keeps their order, but where it rounds them to the same
            capped_NV, largest_N = (softcap * torch.tanh(x / softcap) for x in (capped_NV, largest_N))
        powers_NV = (capped_NV - largest_N[:, None]).exp()
        sum_N = powers_NV.sum(-1)
        nll_N = sum_N.log() + largest_N - capped_NV.gather(-1, targets_N[:, None])[:, 0]
        if gradient:
            # Compared and not set at an index, which would be a pass of its own.
            is_target_NV = torch.arange(logits_NV.shape[1], device=logits_NV.device) == targets_N[:, None]
            grad_NV = powers_NV / sum_N[:, None] - is_target_NV.to(powers_NV.dtype)
            logits_NV.copy_(grad_NV * (1 - (capped_NV / softcap).square()) if softcap else grad_NV)
        return nll_N, best_N == targets_N

    def _rules(self, layout: Layout, how: Attention, device: torch.device) -> tuple[Callable[..., Tensor], BlockMask, float]:
        """Return what becomes of a score, who sees whom, and the scores' scale."""
        masks, kind = self._masks.setdefault(layout, {}), (how.causal, how.window, device)
        if kind not in masks:
            masks[kind] = blocks.mask(layout, how, device)
        return _capped(how.softcap), masks[kind], how.scale


def _compiled(function: Callable[..., Any], backend: str) -> Callable[..., Any]:
    options: Any = {"dynamic": True, "fullgraph": True, "recompile_limit": _VARIANTS, "isolate_recompiles": True, "backend": backend}
    compiled: Callable[..., Any] = torch.compile(function, **options)
    return compiled


def _of_fixed_width(function: Callable[..., Any]) -> Callable[..., Any]:
    """Have a function compiled for each width that rows have, as a model has few: only the number of rows stays open."""

    def fixed(*arguments: Any, **named: Any) -> Any:
        for x in arguments:
            for dim in range(1, x.dim() if isinstance(x, Tensor) else 0):
                torch._dynamo.mark_static(x, dim)
        return function(*arguments, **named)

    return fixed


def _constant_floats() -> AbstractContextManager[None]:
    """Have scale and soft-cap compiled in; torch's compiler would make inputs of them, which FlexAttention's kernels cannot have."""
    in_this_thread: AbstractContextManager[None] = torch._dynamo.config.patch(specialize_float=True)  # the backward pass has its own
    return in_this_thread


def _masked(x_TI: Tensor, drop: Drop) -> Tensor:
    return dropped(x_TI, kept(drop))


def _add_masked(sum_TI: Tensor, x_TI: Tensor, drop: Drop) -> None:
    sum_TI += dropped(x_TI, kept(drop))


def _heads_first(*tensors: Tensor) -> list[Tensor]:
    """Return views [1, heads, T, D] of tensors [T, heads, D]."""
    return [x_THD.transpose(0, 1)[None] for x_THD in tensors]


def _attend(q: Tensor, k: Tensor, v: Tensor, cap: Callable[..., Tensor], mask: BlockMask, scale: float) -> tuple[Tensor, Tensor | None]:
    out, more = flex_attention(q, k, v, cap, mask, scale, True, kernel_options=_options(q.shape[-1]), return_aux=AuxRequest(lse=True))
    return out, more.lse


def _attend_backward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, dout: Tensor, lse: Tensor, cap: Callable[..., Tensor], mask: BlockMask, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Call the operator behind `flex_attention`'s gradient, so that the forward pass is not computed again."""
    for x in (q, k, v):  # as `flex_attention` does it: the kernel is made for a number of heads and their size
        torch._dynamo.mark_static(x, -3)
        torch._dynamo.mark_static(x, -1)
    dq, dk, dv, _ = torch.ops.higher_order.flex_attention_backward(
        q, k, v, out, lse / math.log(2), dout, None, cap, None, mask.as_tuple(), scale, _options(q.shape[-1]), (), ()
    )
    return dq, dk, dv


def _options(head_size: int) -> Any:
    """Return FlexAttention's options: never its kernel for single queries; with large heads no more shared memory than every GPU has."""
    sizes = ("bwd_BLOCK_M1", "bwd_BLOCK_N1", "bwd_BLOCK_M2", "bwd_BLOCK_N2") if head_size > 128 else ()
    return {"BACKEND": "TRITON", **dict.fromkeys(sizes, 32)}


@functools.cache
def _capped(softcap: float | None) -> Callable[..., Tensor]:
    def cap(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap) if softcap else score

    return cap


def _sample(side: Kernels, device: str) -> list[Tensor]:
    """Return what kernels compute, forwards and backwards, from random numbers in bfloat16 that are always the same."""
    generator = torch.Generator().manual_seed(0)

    def rows(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, torch.bfloat16)

    shared = np.arange(100)
    layout = packing.pack([np.append(shared, shared + 200), np.append(shared, shared[:60] + 400), shared + 600]).layout
    T, features, rank = layout.num_tokens, 128, 8
    results = []
    for how in (Attention(0.125), Attention(0.125, window=70, softcap=20.0)):
        q, k, v, dout = (rows(T, heads, 64) for heads in (4, 2, 2, 4))
        out, dq, dk, dv = (torch.empty_like(x) for x in (q, q, k, v))
        side.attention_backward(dout, q, k, v, out, side.attention(q, k, v, layout, how, out), layout, how, dq, dk, dv)
        results += [out, dq, dk, dv]
    h, dh, dx, d, gate_up = rows(T, features), rows(T, features), rows(T, features), rows(T, features), rows(T, 2 * features)
    normal, gated, low, weight = torch.empty_like(h), torch.empty_like(h), rows(T, rank), rows(features).float()
    side.rms_norm_backward(d, h, weight, side.rms_norm(h, weight, 1e-6, normal), dh)
    side.glu(gate_up, "silu", gated)
    angle = rows(T, 32).float()
    side.rope(q, angle.cos().repeat(1, 2), angle.sin().repeat(1, 2), False)
    results += [normal, dh, gated, side.glu_backward(d, gate_up, "silu"), q]
    odd = [(torch.randint(-(2**31), 2**31, (n,), generator=generator, dtype=torch.int32) | 1).to(device) for n in (T, features)]
    drop, a = Drop(odd[0], odd[1], -(2**30)), rows(rank, features)
    results += [side.lora_down_backward(low, h, drop, a, dx), dx]
    side.lora_down(h, drop, a, low)
    logits = rows(50, 300)
    results += [low, side.cross_entropy(logits, torch.arange(50, device=device), None, True)[0], logits]
    return [x.float() for x in results]
