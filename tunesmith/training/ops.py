"""What a decoder layer computes, as differentiable operations on the packed row: the kernels joined to autograd.

Each saves as little as its backward pass can do with. Only LoRA's A and B get gradients; the base is frozen. The gradient of
the residual stream is updated in place as it travels down: nothing else reads it. Shape letters as in `kernels`; X = I + R: a
row matrix with room for the low-rank columns behind its features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from tunesmith.training.kernels import Activation, Attention, Drop, Kernels
from tunesmith.training.packing import Layout

if TYPE_CHECKING:
    from tunesmith.training.lora import LoraGroup


class Norm(NamedTuple):
    """An RMS norm: its weight in float32 at least (Gemma's 1 added), and epsilon."""

    weight_I: Tensor
    eps: float


def project(x_TI: Tensor, group: LoraGroup) -> Tensor:
    """Return the outputs of the group's layers side by side, [T, O]."""
    buffer_TX = x_TI.new_empty(len(x_TI), group.num_in + group.num_low)
    y_TO: Tensor = _Project.apply(_Widen.apply(x_TI, buffer_TX), None, group, *group.parameters())
    return y_TO


def project_add(x_TX: Tensor, residual_TO: Tensor | None, group: LoraGroup) -> Tensor:
    """Return residual + the group's output, for features that already have the low-rank columns' room behind them."""
    y_TO: Tensor = _Project.apply(x_TX, residual_TO, group, *group.parameters())
    return y_TO


def norm_project(h_TI: Tensor, norm: Norm, group: LoraGroup) -> tuple[Tensor, Tensor]:
    """Return h itself, for the residual connection, and the group's output for norm(h)."""
    pair: tuple[Tensor, Tensor] = _NormProject.apply(h_TI, norm, group, *group.parameters())
    return pair


def glu_project_add(gate_up_T2F: Tensor, activation: Activation, residual_TO: Tensor | None, group: LoraGroup) -> Tensor:
    """Return residual + the group's output for activation(gate) * up."""
    y_TO: Tensor = _GluProject.apply(gate_up_T2F, activation, residual_TO, group, *group.parameters())
    return y_TO


def rms_norm(h_TI: Tensor, norm: Norm, kernels: Kernels) -> Tensor:
    """Return norm(h), [T, I]."""
    out_TI: Tensor = _RmsNorm.apply(h_TI, norm, kernels)
    return out_TI


def attend(q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, layout: Layout, how: Attention, kernels: Kernels) -> Tensor:
    """Return each token's attention over its segment and the segment's ancestors, [T, H, D]."""
    out_THD: Tensor = _Attend.apply(q_THD, k_TGD, v_TGD, layout, how, kernels)
    return out_THD


class _Saved(NamedTuple):
    """What the backward pass of a group needs besides its input."""

    group: LoraGroup
    drop: Drop | None
    a_RI: Tensor
    gain: float


def _multiply(buffer_TX: Tensor, group: LoraGroup, residual_TO: Tensor | None = None) -> tuple[Tensor, _Saved, Tensor]:
    """Fill the low-rank columns of the buffer and multiply it by [W | scale B]ᵀ; return a copy of those columns too.

    A copy, because the features are not kept: to compute them again in the backward pass is cheaper.
    """
    drop, a_RI, gain = group.drop()
    low_TR = buffer_TX[:, group.num_in :]
    group.kernels.lora_down(buffer_TX[:, : group.num_in], drop, a_RI, low_TR)
    addend = residual_TO if group.bias_O is None else group.bias_O if residual_TO is None else residual_TO + group.bias_O
    weight_XO = group.extended_OX.t()
    y_TO = buffer_TX @ weight_XO if addend is None else torch.addmm(addend, buffer_TX, weight_XO)
    return y_TO, _Saved(group, drop, a_RI, gain), low_TR.clone()


def _gradient_in(dy_TO: Tensor, saved: _Saved, needed: bool) -> tuple[Tensor, Tensor | None]:
    """Return the gradients by the low-rank columns and, where needed, by the features (a row matrix with their room behind it)."""
    group = saved.group
    if not needed:
        return dy_TO @ group.extended_OX[:, group.num_in :], None
    dbuffer_TX = dy_TO @ group.extended_OX
    return dbuffer_TX[:, group.num_in :], dbuffer_TX


def _gradients(dy_TO: Tensor, dlow_TR: Tensor, dx_TI: Tensor | None, x_TI: Tensor, low_TR: Tensor, saved: _Saved) -> list[Tensor]:
    """Add LoRA's part to dx; return the gradients of each layer's A and B."""
    group = saved.group
    da_RI = group.kernels.lora_down_backward(dlow_TR, x_TI, saved.drop, saved.a_RI, dx_TI)
    if saved.gain != 1:
        da_RI *= saved.gain
    gradients = []
    for out, low in zip(group.outs, group.lows, strict=True):
        gradients.append(da_RI[low])
        gradients.append(group.kernels.lora_up_backward(dy_TO[:, out], low_TR[:, low]).mul_(group.scale))
    return gradients


class Heads(NamedTuple):
    """How the columns of q, k and v side by side divide into heads, and what is done to them before attention."""

    num_query: int
    num_key: int
    size: int
    q_norm: Norm | None = None
    k_norm: Norm | None = None

    def split(self, qkv_TO: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return views [T, heads, D] of q, k and v."""
        x_THD = qkv_TO.unflatten(1, (-1, self.size))
        keys = self.num_query + self.num_key
        return x_THD[:, : self.num_query], x_THD[:, self.num_query : keys], x_THD[:, keys:]


class Turn(NamedTuple):
    """The rotary position embedding of the packed row: cos and sin, [T, D] each, float32 at least."""

    cos_TD: Tensor
    sin_TD: Tensor


def rope_attend(qkv_TO: Tensor, heads: Heads, turn: Turn, layout: Layout, how: Attention, kernels: Kernels, room: int) -> Tensor:
    """Return the attention's output [T, H D + room], for q, k and v that are normalized per head and rotated first.

    q and k are rotated where they lie: nothing else may read `qkv_TO` afterwards.
    """
    out_TX: Tensor = _RopeAttend.apply(qkv_TO, heads, turn, layout, how, kernels, room)
    return out_TX


class _RopeAttend(Function):
    @staticmethod
    def forward(ctx: Any, qkv_TO: Tensor, heads: Heads, turn: Turn, layout: Layout, how: Attention, kernels: Kernels, room: int) -> Tensor:
        raw_q_THD, raw_k_TGD, v_TGD = heads.split(qkv_TO.data)
        q_THD, rstd_q = _norm_heads(raw_q_THD, heads.q_norm, kernels)
        k_TGD, rstd_k = _norm_heads(raw_k_TGD, heads.k_norm, kernels)
        for x in (q_THD, k_TGD):
            kernels.rope(x, *turn, inverse=False)
        width = heads.num_query * heads.size
        buffer_TX = qkv_TO.new_empty(len(qkv_TO), width + room)
        out_THD = buffer_TX[:, :width].unflatten(1, (-1, heads.size))
        lse_TH = kernels.attention(q_THD, k_TGD, v_TGD, layout, how, out_THD)
        normal = (q_THD, rstd_q, k_TGD, rstd_k) if heads.q_norm else ()
        ctx.save_for_backward(qkv_TO, buffer_TX, lse_TH, *normal)
        ctx.arguments = heads, turn, layout, how, kernels
        return buffer_TX

    @staticmethod
    def backward(ctx: Any, dbuffer_TX: Tensor) -> Any:
        heads, turn, layout, how, kernels = ctx.arguments
        qkv_TO, buffer_TX, lse_TH, *normal = ctx.saved_tensors
        width = heads.num_query * heads.size
        raw_q_THD, raw_k_TGD, v_TGD = heads.split(qkv_TO)
        q_THD, rstd_q, k_TGD, rstd_k = normal or (raw_q_THD, None, raw_k_TGD, None)
        out_THD, dout_THD = (x[:, :width].unflatten(1, (-1, heads.size)) for x in (buffer_TX, dbuffer_TX))
        dqkv_TO = torch.empty_like(qkv_TO)
        dq_THD, dk_TGD, dv_TGD = heads.split(dqkv_TO)
        kernels.attention_backward(dout_THD, q_THD, k_TGD, v_TGD, out_THD, lse_TH, layout, how, dq_THD, dk_TGD, dv_TGD)
        for dx, raw, rstd, norm in ((dq_THD, raw_q_THD, rstd_q, heads.q_norm), (dk_TGD, raw_k_TGD, rstd_k, heads.k_norm)):
            kernels.rope(dx, *turn, inverse=True)
            if norm:
                draw = torch.zeros(raw.shape, dtype=raw.dtype, device=raw.device)
                rows = (-1, heads.size)
                kernels.rms_norm_backward(dx.reshape(rows), raw.reshape(rows), norm.weight_I, rstd, draw.view(rows))
                dx.copy_(draw)
        return dqkv_TO, None, None, None, None, None, None


def _norm_heads(x_THD: Tensor, norm: Norm | None, kernels: Kernels) -> tuple[Tensor, Tensor | None]:
    """Return the heads, each normalized where there is a norm, and what its backward pass needs."""
    if norm is None:
        return x_THD, None
    rows = (-1, x_THD.shape[-1])
    out_THD = torch.empty(x_THD.shape, dtype=x_THD.dtype, device=x_THD.device)
    return out_THD, kernels.rms_norm(x_THD.reshape(rows), norm.weight_I, norm.eps, out_THD.view(rows))


class _Widen(Function):
    """Copy features into a wider buffer; its backward pass is a slice."""

    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, buffer_TX: Tensor) -> Tensor:
        ctx.num_in = x_TI.shape[1]
        buffer_TX[:, : ctx.num_in] = x_TI
        return buffer_TX

    @staticmethod
    def backward(ctx: Any, dbuffer_TX: Tensor | None) -> Any:
        return None if dbuffer_TX is None else dbuffer_TX[:, : ctx.num_in], None


class _Project(Function):
    @staticmethod
    def forward(ctx: Any, x_TX: Tensor, residual_TO: Tensor | None, group: LoraGroup, *_: Tensor) -> Tensor:
        y_TO, ctx.saved, _low = _multiply(x_TX.data, group, residual_TO)  # .data: the low-rank columns are nobody's but ours
        ctx.save_for_backward(x_TX)
        return y_TO

    @staticmethod
    def backward(ctx: Any, dy_TO: Tensor) -> Any:
        (x_TX,) = ctx.saved_tensors
        saved: _Saved = ctx.saved
        num_in = saved.group.num_in
        dlow_TR, dx_TX = _gradient_in(dy_TO, saved, ctx.needs_input_grad[0])
        dx_TI = None if dx_TX is None else dx_TX[:, :num_in]
        gradients = _gradients(dy_TO, dlow_TR, dx_TI, x_TX[:, :num_in], x_TX[:, num_in:], saved)
        return dx_TX, dy_TO if ctx.needs_input_grad[1] else None, None, *gradients


class _NormProject(Function):
    @staticmethod
    def forward(ctx: Any, h_TI: Tensor, norm: Norm, group: LoraGroup, *_: Tensor) -> tuple[Tensor, Tensor]:
        buffer_TX = h_TI.new_empty(len(h_TI), group.num_in + group.num_low)
        group.kernels.rms_norm(h_TI, norm.weight_I, norm.eps, buffer_TX[:, : group.num_in])
        y_TO, ctx.saved, low_TR = _multiply(buffer_TX, group)
        ctx.norm = norm
        ctx.save_for_backward(h_TI, low_TR)
        return h_TI.view_as(h_TI), y_TO

    @staticmethod
    def backward(ctx: Any, dh_TI: Tensor, dy_TO: Tensor) -> Any:
        h_TI, low_TR = ctx.saved_tensors
        saved: _Saved = ctx.saved
        kernels, num_in = saved.group.kernels, saved.group.num_in
        x_TI = torch.empty_like(h_TI)
        rstd_T = kernels.rms_norm(h_TI, ctx.norm.weight_I, ctx.norm.eps, x_TI)
        dlow_TR, dx_TX = _gradient_in(dy_TO, saved, ctx.needs_input_grad[0])
        dx_TI = None if dx_TX is None else dx_TX[:, :num_in]
        gradients = _gradients(dy_TO, dlow_TR, dx_TI, x_TI, low_TR, saved)
        if dx_TI is None:
            return None, None, None, *gradients
        kernels.rms_norm_backward(dx_TI, h_TI, ctx.norm.weight_I, rstd_T, dh_TI)
        return dh_TI, None, None, *gradients


class _GluProject(Function):
    @staticmethod
    def forward(ctx: Any, gate_up_T2F: Tensor, activation: Activation, residual_TO: Tensor | None, group: LoraGroup, *_: Tensor) -> Tensor:
        buffer_TX = gate_up_T2F.new_empty(len(gate_up_T2F), group.num_in + group.num_low)
        group.kernels.glu(gate_up_T2F, activation, buffer_TX[:, : group.num_in])
        y_TO, ctx.saved, low_TR = _multiply(buffer_TX, group, residual_TO)
        ctx.activation = activation
        ctx.save_for_backward(gate_up_T2F, low_TR)
        return y_TO

    @staticmethod
    def backward(ctx: Any, dy_TO: Tensor) -> Any:
        gate_up_T2F, low_TR = ctx.saved_tensors
        saved: _Saved = ctx.saved
        kernels, num_in = saved.group.kernels, saved.group.num_in
        x_TF = gate_up_T2F.new_empty(len(gate_up_T2F), num_in)
        kernels.glu(gate_up_T2F, ctx.activation, x_TF)
        dlow_TR, dx_TX = _gradient_in(dy_TO, saved, True)
        assert dx_TX is not None
        gradients = _gradients(dy_TO, dlow_TR, dx_TX[:, :num_in], x_TF, low_TR, saved)
        dgate_up_T2F = kernels.glu_backward(dx_TX[:, :num_in], gate_up_T2F, ctx.activation)
        return dgate_up_T2F, None, dy_TO if ctx.needs_input_grad[2] else None, None, *gradients


class _RmsNorm(Function):
    @staticmethod
    def forward(ctx: Any, h_TI: Tensor, norm: Norm, kernels: Kernels) -> Tensor:
        out_TI = torch.empty_like(h_TI)
        rstd_T = kernels.rms_norm(h_TI, norm.weight_I, norm.eps, out_TI)
        ctx.save_for_backward(h_TI, rstd_T)
        ctx.norm, ctx.kernels = norm, kernels
        return out_TI

    @staticmethod
    def backward(ctx: Any, dout_TI: Tensor) -> Any:
        h_TI, rstd_T = ctx.saved_tensors
        dh_TI = torch.zeros_like(h_TI)
        ctx.kernels.rms_norm_backward(dout_TI, h_TI, ctx.norm.weight_I, rstd_T, dh_TI)
        return dh_TI, None, None


class _Attend(Function):
    @staticmethod
    def forward(ctx: Any, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, layout: Layout, how: Attention, kernels: Kernels) -> Tensor:
        out_THD = q_THD.new_empty(q_THD.shape)
        lse_TH = kernels.attention(q_THD, k_TGD, v_TGD, layout, how, out_THD)
        ctx.save_for_backward(q_THD, k_TGD, v_TGD, out_THD, lse_TH)
        ctx.arguments = layout, how, kernels
        return out_THD

    @staticmethod
    def backward(ctx: Any, dout_THD: Tensor) -> Any:
        layout, how, kernels = ctx.arguments
        q_THD, k_TGD, v_TGD, out_THD, lse_TH = ctx.saved_tensors
        dq_THD, dk_TGD, dv_TGD = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q_THD, k_TGD, v_TGD))
        kernels.attention_backward(
            dout_THD.contiguous(), q_THD, k_TGD, v_TGD, out_THD, lse_TH, layout, how, dq_THD, dk_TGD, dv_TGD
        )  # fmt: skip
        return dq_THD, dk_TGD, dv_TGD, None, None, None
