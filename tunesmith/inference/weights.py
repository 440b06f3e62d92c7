"""Multiply a model's weights the way the processor likes it: their layout, and how many threads. Knows linear layers only.

oneDNN otherwise does so again in each multiplication, which for a few rows takes longer than the multiplication. In float32 it replaces
MKL, which is slow on processors that are not Intel's. Measured on SmolLM2's layers, 8 rows on an AMD EPYC 9005: bfloat16 1.5 times as
fast, float32 twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

_ROWS = 8  # that the layout is made for
_BLOCK = 1024  # inputs; oneDNN adds up more of them in parts, for one row alone in others than for several
_SAME = 1e-2  # of the outputs' size; a wrong layout gives something else entirely
#: What one multiplication costs on one core, and what sharing it costs: threads that wait passively must be woken. An AMD EPYC 9005's.
_BYTES_PER_SECOND, _PRODUCTS_PER_SECOND, _WAKING_SECONDS = 23e9, 220e9, 80e-6


class LaidOut(nn.Module):
    """A linear layer for inference on a processor. `weight` has the layer's shape, but only oneDNN can read it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x_NI: Tensor) -> Tensor:
        """Return [N, O]."""
        if x_NI.shape[-2] == 1 and self.in_features > _BLOCK:
            return self.forward(nn.functional.pad(x_NI, (0, 0, 0, 1)))[..., :1, :]
        y_NO: Tensor = torch.ops.mkldnn._linear_pointwise(x_NI, self.weight, self.bias, "none", [], "")
        return y_NO


#: The layers that compute y = W x + b.
LINEAR = (nn.Linear, LaidOut)


@torch.inference_mode()
def lay_out(model: nn.Module) -> None:
    """Replace a model's linear layers where that makes it faster. It can compute as before, but neither be trained nor saved.

    Takes no more memory, except that an output head which shares its weights with the input gets its own.
    """
    onednn = torch.ops.mkldnn
    if not hasattr(onednn, "_linear_pointwise") or not hasattr(onednn, "_reorder_linear_weight"):
        return
    for parent in list(model.modules()):
        for leaf, module in list(parent.named_children()):
            if type(module) is nn.Linear and _multiplies(module.weight):
                laid_out = LaidOut(module)
                if _same(module, laid_out):
                    setattr(parent, leaf, laid_out)
    # What is left looks into the file that all were loaded from, and would keep the whole of it mapped.
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()


def _multiplies(weight: Tensor) -> bool:
    """Say whether oneDNN multiplies such weights on this processor."""
    types = {torch.float32, torch.bfloat16} if torch.ops.mkldnn._is_mkldnn_bf16_supported() else {torch.float32}
    return weight.device.type == "cpu" and weight.dtype in types


def _same(linear: nn.Linear, laid_out: LaidOut) -> bool:
    x_NI = torch.linspace(-1, 1, 2 * linear.in_features, dtype=linear.weight.dtype).view(2, -1).sin()
    wanted_NO, found_NO = linear(x_NI).float(), laid_out(x_NI).float()
    return bool((found_NO - wanted_NO).norm() <= _SAME * wanted_NO.norm())


class Threads:
    """Chooses between one thread and all: a few rows of a small model are done before a second thread has woken up."""

    def __init__(self, model: nn.Module) -> None:
        sizes = [(m.weight.numel(), m.weight.element_size()) for m in model.modules() if isinstance(m, LINEAR)]
        self._products = sum(numel for numel, _ in sizes) / max(1, len(sizes))
        self._bytes = sum(numel * size for numel, size in sizes) / max(1, len(sizes))

    @contextlib.contextmanager
    def for_rows(self, num_rows: int) -> Iterator[None]:
        """Let torch use as many threads within as pay for this many rows."""
        every = torch.get_num_threads()
        seconds = self._bytes / _BYTES_PER_SECOND + num_rows * self._products / _PRODUCTS_PER_SECOND
        torch.set_num_threads(every if seconds * (1 - 1 / every) > _WAKING_SECONDS else 1)
        try:
            yield
        finally:
            torch.set_num_threads(every)
