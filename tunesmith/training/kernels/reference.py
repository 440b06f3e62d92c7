"""The kernels in plain torch: the reference that the others are tested against, for every device and type.

Matrix products run in the type of their inputs, everything else in float32 (float64 beside float64).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tunesmith.training.kernels import Activation, Attention, Drop
from tunesmith.training.packing import Layout


def wide(x: Tensor) -> Tensor:
    """Return x in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class TorchKernels:
    """See `Kernels`."""

    name = "torch"

    def rms_norm(self, h_TI: Tensor, weight_I: Tensor, eps: float, out_TI: Tensor) -> Tensor:
        wide_TI = wide(h_TI)
        rstd_T = torch.rsqrt(wide_TI.pow(2).mean(-1) + eps)
        out_TI.copy_(wide_TI * rstd_T[:, None] * weight_I)
        return rstd_T

    def rms_norm_backward(self, dout_TI: Tensor, h_TI: Tensor, weight_I: Tensor, rstd_T: Tensor, dh_TI: Tensor) -> None:
        normal_TI = wide(h_TI) * rstd_T[:, None]
        dnormal_TI = wide(dout_TI) * weight_I
        along_T1 = (dnormal_TI * normal_TI).mean(-1, keepdim=True)
        dh_TI.copy_(wide(dh_TI) + (dnormal_TI - normal_TI * along_T1) * rstd_T[:, None])

    def glu(self, gate_up_T2F: Tensor, activation: Activation, out_TF: Tensor) -> None:
        gate_TF, up_TF = gate_up_T2F.chunk(2, dim=-1)
        torch.mul(activate(gate_TF, activation), up_TF, out=out_TF)

    def glu_backward(self, dout_TF: Tensor, gate_up_T2F: Tensor, activation: Activation) -> Tensor:
        with torch.enable_grad():
            again_T2F = gate_up_T2F.detach().requires_grad_()
            gate_TF, up_TF = again_T2F.chunk(2, dim=-1)
            out_TF = activate(gate_TF, activation) * up_TF
        return torch.autograd.grad(out_TF, again_T2F, dout_TF)[0]

    def lora_down(self, x_TI: Tensor, drop: Drop | None, a_RI: Tensor, low_TR: Tensor) -> None:
        low_TR.copy_(dropped(x_TI, kept(drop)) @ a_RI.t())

    def lora_down_backward(self, dlow_TR: Tensor, x_TI: Tensor, drop: Drop | None, a_RI: Tensor, dx_TI: Tensor | None) -> Tensor:
        kept_TI = kept(drop)
        if dx_TI is not None and kept_TI is None:
            dx_TI.addmm_(dlow_TR, a_RI)
        elif dx_TI is not None:
            dx_TI += dropped(dlow_TR @ a_RI, kept_TI)
        return wide(dlow_TR.t() @ dropped(x_TI, kept_TI))

    def lora_up_backward(self, dy_TO: Tensor, low_TR: Tensor) -> Tensor:
        return wide(dy_TO.t() @ low_TR)

    def rope(self, x_THD: Tensor, cos_TD: Tensor, sin_TD: Tensor, inverse: bool) -> None:
        half = cos_TD.shape[1] // 2
        cos_T1D, sin_T1D = cos_TD[:, None, :half], sin_TD[:, None, :half]
        if inverse:
            sin_T1D = -sin_T1D
        low, high = wide(x_THD[..., :half]), wide(x_THD[..., half : 2 * half])
        x_THD[..., :half], x_THD[..., half : 2 * half] = low * cos_T1D - high * sin_T1D, high * cos_T1D + low * sin_T1D

    def attention(self, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, layout: Layout, how: Attention, out_THD: Tensor) -> Tensor:
        for part in _parts(layout):
            out_THD[part.rows] = part.attend(part.queries(q_THD, k_TGD.shape[1]), part.keys(k_TGD), part.keys(v_TGD), how)
        return q_THD.new_empty(len(q_THD), 0)

    def attention_backward(
        self, dout_THD: Tensor, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, out_THD: Tensor, saved: Tensor,
        layout: Layout, how: Attention, dq_THD: Tensor, dk_TGD: Tensor, dv_TGD: Tensor,
    ) -> None:  # fmt: skip
        groups, dtype = k_TGD.shape[1], torch.promote_types(k_TGD.dtype, torch.float32)
        wide_dk_TGD, wide_dv_TGD = (torch.zeros(x.shape, device=x.device, dtype=dtype) for x in (k_TGD, v_TGD))
        for part in _parts(layout):
            again = [x.detach().requires_grad_() for x in (part.queries(q_THD, groups), part.keys(k_TGD), part.keys(v_TGD))]
            with torch.enable_grad():
                out_LHD = part.attend(again[0], again[1], again[2], how)
            dq_GMD, dk_GKD, dv_GKD = torch.autograd.grad(out_LHD, again, dout_THD[part.rows])
            dq_THD[part.rows] = part.per_query(dq_GMD)
            part.add_to(wide_dk_TGD, dk_GKD)
            part.add_to(wide_dv_TGD, dv_GKD)
        dk_TGD.copy_(wide_dk_TGD)
        dv_TGD.copy_(wide_dv_TGD)

    def cross_entropy(self, logits_NV: Tensor, targets_N: Tensor, softcap: float | None, gradient: bool) -> tuple[Tensor, Tensor]:
        wide_NV = wide(logits_NV)
        if softcap:
            wide_NV = softcap * torch.tanh(wide_NV / softcap)
        slope_NV = 1 - (wide_NV / softcap).square() if softcap and gradient else None
        largest_N, best_N = wide_NV.max(-1)
        target_N = wide_NV.gather(-1, targets_N[:, None])[:, 0]
        powers_NV = (wide_NV - largest_N[:, None]).exp_()
        sum_N = powers_NV.sum(-1)
        if gradient:
            grad_NV = powers_NV.mul_(1 / sum_N[:, None])
            grad_NV[torch.arange(len(targets_N), device=targets_N.device), targets_N] -= 1
            logits_NV.copy_(grad_NV if slope_NV is None else grad_NV.mul_(slope_NV))
        return sum_N.log() + largest_N - target_N, best_N == targets_N


def kept(drop: Drop | None) -> Tensor | None:
    """Return which features of a row matrix are kept, or None for all."""
    return None if drop is None else drop.row_T[:, None] * drop.column_I >= drop.threshold


def dropped(x_TI: Tensor, kept_TI: Tensor | None) -> Tensor:
    """Return x with 0 for what is not kept."""
    return x_TI if kept_TI is None else torch.where(kept_TI, x_TI, 0)


def activate(gate: Tensor, activation: Activation) -> Tensor:
    """Return activation(gate)."""
    if activation == "silu":
        return nn.functional.silu(gate)
    return nn.functional.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none")


@dataclass(frozen=True)
class _Part:
    """One segment's queries and the keys they may attend to.

    Shape letters: L queries, K keys, N query heads of each group G; M = N L, the queries of a group's heads one behind the other.
    """

    #: Where the segment's ancestors and the segment itself lie.
    spans: list[slice]
    depth: int

    @property
    def rows(self) -> slice:
        """The queries' rows."""
        return self.spans[-1]

    def queries(self, x_THD: Tensor, groups: int) -> Tensor:
        """Return the segment's rows as [G, M, D]."""
        x_LGND: Tensor = x_THD[self.rows].unflatten(1, (groups, -1))
        return x_LGND.permute(1, 2, 0, 3).flatten(1, 2)

    def per_query(self, x_GMD: Tensor) -> Tensor:
        """Return [L, H, D] from [G, M, D]."""
        x_GNLD: Tensor = x_GMD.unflatten(1, (-1, self.rows.stop - self.rows.start))
        return x_GNLD.permute(2, 0, 1, 3).flatten(1, 2)

    def keys(self, x_TGD: Tensor) -> Tensor:
        """Return the keys' rows as [G, K, D]."""
        rows = [x_TGD[span] for span in self.spans]
        return (rows[0] if len(rows) == 1 else torch.cat(rows)).transpose(0, 1)

    def add_to(self, sum_TGD: Tensor, x_GKD: Tensor) -> None:
        """Add what each key got to where it lies."""
        start = 0
        for span in self.spans:
            length = span.stop - span.start
            sum_TGD[span] += x_GKD[:, start : start + length].transpose(0, 1)
            start += length

    def attend(self, q_GMD: Tensor, k_GKD: Tensor, v_GKD: Tensor, how: Attention) -> Tensor:
        """Return the queries' attention, [L, H, D]."""
        length = self.rows.stop - self.rows.start
        mask_MK = self._mask(length, k_GKD.shape[1], how, q_GMD).repeat(q_GMD.shape[1] // length, 1)
        if how.softcap:
            scores_GMK = q_GMD @ k_GKD.transpose(-1, -2) * how.scale
            scores_GMK = how.softcap * torch.tanh(scores_GMK / how.softcap) + mask_MK
        else:
            scores_GMK = torch.baddbmm(mask_MK, q_GMD, k_GKD.transpose(-1, -2), alpha=how.scale)
        return self.per_query(scores_GMK.softmax(-1) @ v_GKD)

    def _mask(self, length: int, num_keys: int, how: Attention, like: Tensor) -> Tensor:
        """Return what is added to the scores, [L, K]: minus infinity where a query may not look."""
        back_LK = torch.arange(self.depth, self.depth + length, device=like.device)[:, None] - torch.arange(num_keys, device=like.device)
        hidden_LK = torch.zeros_like(back_LK, dtype=torch.bool)
        if how.causal:
            hidden_LK |= back_LK < 0
        if how.window:
            hidden_LK |= back_LK >= how.window
        return torch.zeros(back_LK.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden_LK, -math.inf)


def _parts(layout: Layout) -> Iterator[_Part]:
    for segment in range(len(layout.start_S)):
        starts = [(int(layout.start_S[s]), int(layout.length_S[s])) for s in (*layout.ancestors(segment), segment)]
        spans = [slice(start, start + length) for start, length in starts]
        yield _Part(spans, sum(length for _, length in starts[:-1]))
