"""The loss over target tokens and the token accuracy. Shapes: B rows, T tokens, H features, V vocabulary, N targets."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tunesmith.training.batching import MicroBatch

#: On a CPU, rows up to this long attend by plain matrix products: the fused kernel's backward pass is slow there
#: (a fifth of the whole step on SmolLM2 with rows of 90 tokens), and it saves little memory on short rows.
_PLAIN_ATTENTION_TOKENS = 256


def target_logits(model: nn.Module, batch: MicroBatch) -> Tensor:
    """Return logits [N, V] at the positions that predict a target, in float32 at least.

    A hook hands the output head only those positions, so the [B, T, V] tensor never exists, and whatever the model does
    to its logits afterwards (a soft-cap, a scale) still happens.
    """
    head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]

    def select(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (inputs[0][batch.is_target_BT],)

    short = batch.ids_BT.device.type == "cpu" and batch.ids_BT.shape[1] <= _PLAIN_ATTENTION_TOKENS
    hook = head.register_forward_pre_hook(select)
    try:
        with sdpa_kernel(SDPBackend.MATH) if short else nullcontext():
            output: Any = model(input_ids=batch.ids_BT, use_cache=False)
    finally:
        hook.remove()
    logits_NV: Tensor = output.logits
    return logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))


def nll_and_hits(logits_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return the negative log-likelihood of each target in nats, and whether the arg-max is it; both [N]."""
    nll_N = nn.functional.cross_entropy(logits_NV, targets_N, reduction="none")
    return nll_N, logits_NV.detach().argmax(-1) == targets_N
