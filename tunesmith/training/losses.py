"""The loss over target tokens and the token accuracy. Shapes: B rows, T tokens, H features, V vocabulary, N targets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.training.batching import MicroBatch


def target_logits(model: nn.Module, batch: MicroBatch) -> Tensor:
    """Return logits [N, V] at the positions that predict a target, in float32 at least.

    A hook hands the output head only those positions, so the [B, T, V] tensor never exists, and whatever the model does
    to its logits afterwards (a soft-cap, a scale) still happens.
    """
    head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]

    def select(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (inputs[0][batch.is_target_BT],)

    hook = head.register_forward_pre_hook(select)
    try:
        output: Any = model(input_ids=batch.ids_BT, use_cache=False)
    finally:
        hook.remove()
    logits_NV: Tensor = output.logits
    return logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))


def nll_and_hits(logits_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return the negative log-likelihood of each target in nats, and whether the arg-max is it; both [N]."""
    nll_N = nn.functional.cross_entropy(logits_NV, targets_N, reduction="none")
    return nll_N, logits_NV.detach().argmax(-1) == targets_N
