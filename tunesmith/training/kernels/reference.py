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


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class TorchKernels:
    """See `Kernels`."""

    name = "torch"

    def rms_norm(self, h_TI: Tensor, weight_I: Tensor, eps: float, out_TI: Tensor) -> Tensor:
        wide_TI = _wide(h_TI)
        rstd_T = torch.rsqrt(wide_TI.pow(2).mean(-1) + eps)
        out_TI.copy_(wide_TI * rstd_T[:, None] * weight_I)
        return rstd_T

    def rms_norm_backward(self, dout_TI: Tensor, h_TI: Tensor, weight_I: Tensor, rstd_T: Tensor, dh_TI: Tensor) -> None:
        normal_TI = _wide(h_TI) * rstd_T[:, None]
        dnormal_TI = _wide(dout_TI) * weight_I
        along_T1 = (dnormal_TI * normal_TI).mean(-1, keepdim=True)
        dh_TI.copy_(_wide(dh_TI) + (dnormal_TI - normal_TI * along_T1) * rstd_T[:, None])

    def glu(self, gate_up_T2F: Tensor, activation: Activation, out_TF: Tensor) -> None:
        gate_TF, up_TF = _wide(gate_up_T2F).chunk(2, dim=-1)
        out_TF.copy_(_activate(gate_TF, activation) * up_TF)

    def glu_backward(self, dout_TF: Tensor, gate_up_T2F: Tensor, activation: Activation) -> Tensor:
        gate_TF, up_TF = _wide(gate_up_T2F).chunk(2, dim=-1)
        active_TF, slope_TF = _slope(gate_TF, activation)
        dout_TF = _wide(dout_TF)
        return torch.cat((dout_TF * up_TF * slope_TF, dout_TF * active_TF), dim=-1).to(gate_up_T2F.dtype)

    def lora_down(self, x_TI: Tensor, drop: Drop | None, a_RI: Tensor, low_TR: Tensor) -> None:
        low_TR.copy_(_dropped(x_TI, drop) @ a_RI.t())

    def lora_down_backward(self, dlow_TR: Tensor, x_TI: Tensor, drop: Drop | None, a_RI: Tensor, dx_TI: Tensor | None) -> Tensor:
        if dx_TI is not None:
            if drop is None:
                dx_TI.addmm_(dlow_TR, a_RI)
            else:
                dx_TI.add_(_dropped(dlow_TR @ a_RI, drop))
        return _wide(dlow_TR.t() @ _dropped(x_TI, drop))

    def lora_up_backward(self, dy_TO: Tensor, low_TR: Tensor) -> Tensor:
        return _wide(dy_TO.t() @ low_TR)

    def rope(self, x_THD: Tensor, cos_TD: Tensor, sin_TD: Tensor, inverse: bool) -> None:
        half = cos_TD.shape[1] // 2
        cos_T1D, sin_T1D = cos_TD[:, None, :half], sin_TD[:, None, :half]
        if inverse:
            sin_T1D = -sin_T1D
        low, high = _wide(x_THD[..., :half]), _wide(x_THD[..., half : 2 * half])
        x_THD[..., :half], x_THD[..., half : 2 * half] = low * cos_T1D - high * sin_T1D, high * cos_T1D + low * sin_T1D

    def attention(self, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, layout: Layout, how: Attention, out_THD: Tensor) -> Tensor:
        lse_TH = torch.empty(q_THD.shape[:2], device=q_THD.device, dtype=torch.promote_types(q_THD.dtype, torch.float32))
        for part in _parts(layout, k_TGD.device):
            q_GNLD = part.queries(q_THD, k_TGD.shape[1])
            k_G1KD, v_G1KD = part.keys(k_TGD), part.keys(v_TGD)
            scores_GNLK, _ = part.scores(q_GNLD, k_G1KD, how)
            lse_GNL = scores_GNLK.logsumexp(-1)
            probs_GNLK = (scores_GNLK - lse_GNL[..., None]).exp().to(q_THD.dtype)
            out_THD[part.rows] = (probs_GNLK @ v_G1KD).permute(2, 0, 1, 3).flatten(1, 2)
            lse_TH[part.rows] = lse_GNL.permute(2, 0, 1).flatten(1)
        return lse_TH

    def attention_backward(
        self, dout_THD: Tensor, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, out_THD: Tensor, lse_TH: Tensor,
        layout: Layout, how: Attention, dq_THD: Tensor, dk_TGD: Tensor, dv_TGD: Tensor,
    ) -> None:  # fmt: skip
        heads, dtype = k_TGD.shape[1], q_THD.dtype
        wide_dk_TGD = torch.zeros(k_TGD.shape, device=k_TGD.device, dtype=lse_TH.dtype)
        wide_dv_TGD = torch.zeros_like(wide_dk_TGD)
        for part in _parts(layout, k_TGD.device):
            q_GNLD, dout_GNLD = part.queries(q_THD, heads), part.queries(dout_THD, heads)
            k_G1KD, v_G1KD = part.keys(k_TGD), part.keys(v_TGD)
            scores_GNLK, slope_GNLK = part.scores(q_GNLD, k_G1KD, how)
            probs_GNLK = (scores_GNLK - part.queries(lse_TH[..., None], heads)).exp()
            wide_dv_TGD.index_add_(0, part.key_K, _sum_heads(probs_GNLK.to(dtype).transpose(-1, -2) @ dout_GNLD, lse_TH.dtype))
            dprobs_GNLK = _wide(dout_GNLD @ v_G1KD.transpose(-1, -2))
            delta_GNL1 = (_wide(dout_GNLD) * _wide(part.queries(out_THD, heads))).sum(-1, keepdim=True)
            dscores_GNLK = (probs_GNLK * (dprobs_GNLK - delta_GNL1) * how.scale * slope_GNLK).to(dtype)
            dq_THD[part.rows] = (dscores_GNLK @ k_G1KD).permute(2, 0, 1, 3).flatten(1, 2)
            wide_dk_TGD.index_add_(0, part.key_K, _sum_heads(dscores_GNLK.transpose(-1, -2) @ q_GNLD, lse_TH.dtype))
        dk_TGD.copy_(wide_dk_TGD)
        dv_TGD.copy_(wide_dv_TGD)

    def cross_entropy(self, logits_NV: Tensor, targets_N: Tensor, softcap: float | None, gradient: bool) -> tuple[Tensor, Tensor]:
        wide_NV = _wide(logits_NV)
        if softcap:
            wide_NV = softcap * torch.tanh(wide_NV / softcap)
        nll_N = nn.functional.cross_entropy(wide_NV, targets_N, reduction="none")
        hits_N = wide_NV.argmax(-1) == targets_N
        if gradient:
            slope_NV = 1 - (wide_NV / softcap).square() if softcap else None
            grad_NV = wide_NV.softmax(-1)
            grad_NV[torch.arange(len(targets_N), device=targets_N.device), targets_N] -= 1
            logits_NV.copy_(grad_NV if slope_NV is None else grad_NV * slope_NV)
        return nll_N, hits_N


def _dropped(x_TI: Tensor, drop: Drop | None) -> Tensor:
    if drop is None:
        return x_TI
    return torch.where(drop.row_T[:, None] * drop.column_I >= drop.threshold, x_TI, 0)


def _activate(gate: Tensor, activation: Activation) -> Tensor:
    if activation == "silu":
        return nn.functional.silu(gate)
    return nn.functional.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none")


def _slope(gate: Tensor, activation: Activation) -> tuple[Tensor, Tensor]:
    """Return the activation and its derivative."""
    if activation == "silu":
        sigmoid = torch.sigmoid(gate)
        return gate * sigmoid, sigmoid * (1 + gate * (1 - sigmoid))
    if activation == "gelu":
        cumulative = 0.5 * (1 + torch.erf(gate / math.sqrt(2)))
        return gate * cumulative, cumulative + gate * torch.exp(-0.5 * gate * gate) / math.sqrt(2 * math.pi)
    inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
    tanh = torch.tanh(inner)
    inner_slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * gate * gate)
    return 0.5 * gate * (1 + tanh), 0.5 * (1 + tanh) + 0.5 * gate * (1 - tanh * tanh) * inner_slope


def _sum_heads(x_GNKD: Tensor, dtype: torch.dtype) -> Tensor:
    """Add up what the query heads of a group say of its keys; [K, G, D]."""
    return x_GNKD.to(dtype).sum(1).transpose(0, 1)


@dataclass(frozen=True)
class _Part:
    """One segment's queries and the keys they may attend to. Shape letters: L queries, K keys, N query heads of a group G."""

    rows: slice
    key_K: Tensor
    depth: int

    def queries(self, x_THD: Tensor, groups: int) -> Tensor:
        """Return the segment's rows as [G, N, L, D]."""
        rows_LGND: Tensor = x_THD[self.rows].unflatten(1, (groups, -1))
        return rows_LGND.permute(1, 2, 0, 3)

    def keys(self, x_TGD: Tensor) -> Tensor:
        """Return the keys' rows as [G, 1, K, D]."""
        return x_TGD[self.key_K].transpose(0, 1).unsqueeze(1)

    def scores(self, q_GNLD: Tensor, k_G1KD: Tensor, how: Attention) -> tuple[Tensor, Tensor | float]:
        """Return the scores, minus infinity where a query may not look, and the soft-cap's derivative."""
        scores_GNLK = _wide(q_GNLD @ k_G1KD.transpose(-1, -2)) * how.scale
        slope: Tensor | float = 1.0
        if how.softcap:
            scores_GNLK = how.softcap * torch.tanh(scores_GNLK / how.softcap)
            slope = 1 - (scores_GNLK / how.softcap).square()
        back_LK = torch.arange(q_GNLD.shape[2], device=q_GNLD.device)[:, None] + self.depth
        back_LK = back_LK - torch.arange(len(self.key_K), device=q_GNLD.device)
        if how.causal:
            scores_GNLK = scores_GNLK.masked_fill(back_LK < 0, -math.inf)
        if how.window:
            scores_GNLK = scores_GNLK.masked_fill(back_LK >= how.window, -math.inf)
        return scores_GNLK, slope


def _parts(layout: Layout, device: torch.device) -> Iterator[_Part]:
    place = torch.arange(layout.num_tokens, device=device)
    for segment in range(len(layout.start_S)):
        spans = [(int(layout.start_S[s]), int(layout.length_S[s])) for s in (*layout.ancestors(segment), segment)]
        key_K = torch.cat([place[start : start + length] for start, length in spans])
        start, length = spans[-1]
        yield _Part(slice(start, start + length), key_K, len(key_K) - length)
