"""The loss over target tokens and the token accuracy. Shapes: N targets, I features, V vocabulary.

The output head is applied at target positions only and to a piece of them at a time, so no [tokens, vocabulary] tensor ever exists. The
gradient by the features is computed with the loss, while a piece's logits are there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from tunesmith.training.kernels import Kernels

_PIECE = 512  # targets at once; 50 MB of logits at 49,152 tokens in bfloat16. Fewer make the product with the weights' rows slower
_STRIP = 256  # of those, as many as one forward product writes: their logits stay in the third-level cache for the softmax


class Head(NamedTuple):
    """The output head: logits = x Wᵀ + b, then `softcap` tanh(logits / softcap) where there is one (Gemma 2)."""

    weight_VI: Tensor
    bias_V: Tensor | None
    softcap: float | None
    kernels: Kernels

    def piece_bytes(self) -> int:
        """Return the most memory that the logits of one piece take; all but our C++ are counted with three wide copies."""
        wide = 0 if self.kernels.name == "cpu" else 12
        return _PIECE * self.weight_VI.shape[0] * (self.weight_VI.element_size() + wide)


class Loss(NamedTuple):
    """`total` is the sum of the targets' negative log-likelihoods in nats times a weight; the rest is without gradient, [N]."""

    total: Tensor
    nll_N: Tensor
    hits_N: Tensor


def target_loss(x_NI: Tensor, targets_N: Tensor, head: Head, weight: float) -> Loss:
    """Return the loss for the features at the places that predict `targets_N`; hits are where the arg-max is the target."""
    return Loss(*_TargetLoss.apply(x_NI, targets_N, head, weight, torch.is_grad_enabled(), head.weight_VI, head.bias_V))


class _TargetLoss(Function):
    @staticmethod
    def forward(
        ctx: Any, x_NI: Tensor, targets_N: Tensor, head: Head, weight: float, wanted: bool, weight_VI: Tensor, bias_V: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        wide = torch.promote_types(x_NI.dtype, torch.float32)
        nll_N = x_NI.new_empty(len(x_NI), dtype=wide)
        hits_N = torch.empty(len(x_NI), dtype=torch.bool, device=x_NI.device)
        # Whether a gradient is needed says nothing of whether gradients are being computed: `wanted` does.
        needs_x, needs_weight, needs_bias = (wanted and ctx.needs_input_grad[place] for place in (0, 5, 6))
        dx_NI = torch.empty_like(x_NI) if needs_x else None
        dweight_VI = torch.zeros_like(weight_VI, dtype=wide) if needs_weight else None
        dbias_V = torch.zeros_like(bias_V, dtype=wide) if needs_bias and bias_V is not None else None
        buffer_NV = x_NI.new_empty(min(len(x_NI), _PIECE), len(weight_VI))
        for start in range(0, len(x_NI), _PIECE):
            piece = slice(start, start + _PIECE)
            logits_NV = buffer_NV[: len(x_NI) - start]
            for row in range(0, len(logits_NV), _STRIP):
                strip, rows = logits_NV[row : row + _STRIP], slice(start + row, start + min(row + _STRIP, len(logits_NV)))
                torch.mm(x_NI[rows], weight_VI.t(), out=strip)
                if head.bias_V is not None:
                    strip += head.bias_V
                nll_N[rows], hits_N[rows] = head.kernels.cross_entropy(
                    strip, targets_N[rows], head.softcap, gradient=needs_x or needs_weight or needs_bias
                )
            if dx_NI is not None:
                torch.mm(logits_NV, weight_VI, out=dx_NI[piece])
            if dweight_VI is not None:
                dweight_VI += logits_NV.t() @ x_NI[piece]
            if dbias_V is not None:
                dbias_V += logits_NV.sum(0, dtype=wide)
        ctx.gradients, ctx.dtype = (dx_NI, dweight_VI, dbias_V, weight), x_NI.dtype
        ctx.mark_non_differentiable(nll_N, hits_N)
        return nll_N.sum() * weight, nll_N, hits_N

    @staticmethod
    def backward(ctx: Any, dtotal: Tensor, *_: Tensor) -> Any:
        *gradients, weight = ctx.gradients
        scale = dtotal * weight
        dx_NI, dweight_VI, dbias_V = (None if gradient is None else (gradient * scale).to(ctx.dtype) for gradient in gradients)
        return dx_NI, None, None, None, None, dweight_VI, dbias_V
