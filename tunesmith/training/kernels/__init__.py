"""The seam between the maths of a layer and who computes it. Three sides: `torch` (always there, the reference), `cpu`
(our C++ for AVX-512, built at install) and `cuda` (torch's FlexAttention and compiler).

All functions take and fill plain tensors; nothing here is differentiable (`ops` joins them to autograd). A "row matrix" has
unit stride in its last dimension and any stride between rows, so that it may be a slice of a wider buffer. Shape letters:
T tokens of the packed row, I features in, O features out, R rank, F hidden features, H query heads, G key/value heads, D head size,
N targets, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

if TYPE_CHECKING:  # so that building the C++ kernels needs no torch
    from torch import Tensor

    from tunesmith.training.packing import Layout

Activation = Literal["silu", "gelu", "gelu_tanh"]


class Drop(NamedTuple):
    """Which features of a row matrix are kept: those with `row_T[t] * column_I[i] >= threshold`, in wrapping int32."""

    row_T: Tensor
    column_I: Tensor
    threshold: int


class Attention(NamedTuple):
    """What an attention layer computes besides its inputs. `window`: keys at most that many positions back, itself included.

    `softcap` c: scores become c tanh(score / c) before the softmax (Gemma 2).
    """

    scale: float
    causal: bool = True
    window: int | None = None
    softcap: float | None = None


class Kernels(Protocol):
    """Forward and backward of what a decoder layer does besides its large matrix products."""

    name: str

    def rms_norm(self, h_TI: Tensor, weight_I: Tensor, eps: float, out_TI: Tensor) -> Tensor:
        """Fill out = h / rms(h) * weight (Zhang & Sennrich, 2019); weight float32 (float64 beside float64). Return 1 / rms as [T]."""

    def rms_norm_backward(self, dout_TI: Tensor, h_TI: Tensor, weight_I: Tensor, rstd_T: Tensor, dh_TI: Tensor) -> None:
        """Add the gradient by h to dh."""

    def glu(self, gate_up_T2F: Tensor, activation: Activation, out_TF: Tensor) -> None:
        """Fill out = activation(gate) * up (Shazeer, 2020); gate is the first half of the columns, up the second."""

    def glu_backward(self, dout_TF: Tensor, gate_up_T2F: Tensor, activation: Activation) -> Tensor:
        """Return the gradient by gate and up, [T, 2F]."""

    def lora_down(self, x_TI: Tensor, drop: Drop | None, a_RI: Tensor, low_TR: Tensor) -> None:
        """Fill low = drop(x) Aᵀ, dropped features being 0 (the factor 1 / (1 - p) is the caller's)."""

    def lora_down_backward(self, dlow_TR: Tensor, x_TI: Tensor, drop: Drop | None, a_RI: Tensor, dx_TI: Tensor | None) -> Tensor:
        """Add keep * (dlow A) to dx, unless it is None; return dA = dlowᵀ drop(x), [R, I] in float32 at least."""

    def lora_up_backward(self, dy_TO: Tensor, low_TR: Tensor) -> Tensor:
        """Return dyᵀ low, [O, R] in float32 at least."""

    def rope(self, x_THD: Tensor, cos_TD: Tensor, sin_TD: Tensor, inverse: bool) -> None:
        """Rotate the halves of each head's first cos.shape[1] features in place (Su et al., 2021); `inverse` is the backward pass.

        x may have any stride between tokens; its heads lie one behind the other. cos and sin are float32 (float64 beside float64),
        their two halves equal.
        """

    def attention(self, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, layout: Layout, how: Attention, out_THD: Tensor) -> Tensor:
        """Fill out = softmax(scale q kᵀ) v within each segment and its ancestors.

        Return what these kernels' backward pass needs besides, [T, ...]: the log-sum-exp of the scores, [T, H], or nothing.

        Query head h reads key head h // (H / G). All may have any stride between tokens; heads lie one behind the other.
        """

    def attention_backward(
        self, dout_THD: Tensor, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, out_THD: Tensor, saved: Tensor,
        layout: Layout, how: Attention, dq_THD: Tensor, dk_TGD: Tensor, dv_TGD: Tensor,
    ) -> None:  # fmt: skip
        """Fill dq, dk and dv (Dao et al., 2022, appendix B.2); `saved` is what `attention` returned."""

    def cross_entropy(self, logits_NV: Tensor, targets_N: Tensor, softcap: float | None, gradient: bool) -> tuple[Tensor, Tensor]:
        """Return the negative log-likelihood [N] (float32 at least) in nats, and whether the arg-max is the target [N].

        The first of equal maxima counts. With `gradient`, the logits (contiguous) are overwritten by the gradient of the sum of
        the negative log-likelihoods by them. `softcap` c: logits become c tanh(logit / c) first.
        """
