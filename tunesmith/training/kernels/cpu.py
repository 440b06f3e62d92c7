"""The kernels in C++ for processors with AVX-512, in bfloat16 and float32; everything else goes to the ones in plain torch.

`build` compiles them at install. They are found by name and called through ctypes, which lets go of Python's lock meanwhile.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from tunesmith.training.kernels import Activation, Attention, Drop, Kernels, build
from tunesmith.training.kernels.reference import TorchKernels
from tunesmith.training.packing import Layout

_SUFFIX = {torch.bfloat16: "bf16", torch.float32: "f32"}
_ACTIVATIONS: dict[Activation, int] = {"silu": 0, "gelu": 1, "gelu_tanh": 2}

#: Below so many numbers a second thread costs more than it saves.
_WORTH_THREADS = 8192


def available() -> tuple[bool, str]:
    """Say whether these kernels can be used here, and what they are or why not."""
    loaded = _library()
    return (False, loaded) if isinstance(loaded, str) else (True, _description())


def _description() -> str:
    return "C++ kernels for AVX-512" + (" with bfloat16" if "avx512_bf16" in build.processor_flags() else "")


@functools.cache
def _library() -> ctypes.CDLL | str:
    """Load the library, or say why there is none."""
    if not build.processor_flags() >= build.NEEDED:
        return "this processor has no AVX-512"
    path = build.library()
    if not path.exists():
        sources = path.stem.rsplit("-", 1)[0]
        if next(path.parent.glob(f"{sources}-*.so"), None):
            return f"they were built for another processor; `{build.COMMAND}` makes them for this one"
        if next(path.parent.glob("kernels-*.so"), None):
            return f"they were built from other sources; `{build.COMMAND}` makes them anew"
        return f"no compiler was there at install; `{build.COMMAND}` makes them"
    try:
        # Not global: its open names are OpenMP's, which torch has loaded for all.
        return ctypes.CDLL(str(path))
    except OSError as error:
        return f"they do not load ({error})"


@functools.cache
def _function(name: str, dtype: torch.dtype) -> Any:
    library = _library()
    assert isinstance(library, ctypes.CDLL), library
    address = ctypes.c_void_p.in_dll(library, f"{name}_{_SUFFIX[dtype]}").value
    assert address is not None
    return ctypes.CFUNCTYPE(ctypes.c_int)(address)


def _call(name: str, work: Tensor, *arguments: Tensor | int | float | None) -> None:
    """Call a kernel for the type of `work` on torch's number of threads, on one if work is small."""
    threads = 1 if work.numel() < _WORTH_THREADS else torch.get_num_threads()
    failed = _function(name, work.dtype)(ctypes.c_long(threads), *map(_argument, arguments))
    if failed:
        raise MemoryError(f"{name}: no memory for its scratch")


def _argument(value: Tensor | int | float | None) -> Any:
    if isinstance(value, float):
        return ctypes.c_double(value)
    if isinstance(value, int):
        return ctypes.c_long(value)
    return ctypes.c_void_p(None if value is None else value.data_ptr())


def _ours(*tensors: Tensor) -> bool:
    """Say whether all are of one type that we know, on the CPU, with features one behind the other, and heads too."""
    first = tensors[0]
    return first.dtype in _SUFFIX and all(
        x.dtype == first.dtype
        and x.device.type == "cpu"
        and x.shape[-1] > 0
        and (x.shape[-1] == 1 or x.stride(-1) == 1)
        and (x.dim() < 3 or x.shape[1] <= 1 or x.stride(1) == x.shape[2])
        for x in tensors
    )


def _rows(x: Tensor) -> tuple[Tensor, int]:
    return x, x.stride(0)


def _is_vector(x: Tensor, dtype: torch.dtype, length: int) -> bool:
    return x.dtype == dtype and x.shape == (length,) and x.is_contiguous() and x.device.type == "cpu"


class CpuKernels:
    """See `Kernels`."""

    name = "cpu"

    def __init__(self) -> None:
        self._torch: Kernels = TorchKernels()

    def rms_norm(self, h_TI: Tensor, weight_I: Tensor, eps: float, out_TI: Tensor) -> Tensor:
        T, features = h_TI.shape
        assert out_TI.shape == (T, features)
        if not (_ours(h_TI, out_TI) and _is_vector(weight_I, torch.float32, features)):
            return self._torch.rms_norm(h_TI, weight_I, eps, out_TI)
        rstd_T = torch.empty(T)
        _call("rms_norm", h_TI, T, features, *_rows(h_TI), weight_I, float(eps), *_rows(out_TI), rstd_T)
        return rstd_T

    def rms_norm_backward(self, dout_TI: Tensor, h_TI: Tensor, weight_I: Tensor, rstd_T: Tensor, dh_TI: Tensor) -> None:
        T, features = h_TI.shape
        assert dout_TI.shape == dh_TI.shape == (T, features)
        if not (_ours(dout_TI, h_TI, dh_TI) and _is_vector(weight_I, torch.float32, features) and _is_vector(rstd_T, torch.float32, T)):
            return self._torch.rms_norm_backward(dout_TI, h_TI, weight_I, rstd_T, dh_TI)
        _call("rms_norm_backward", h_TI, T, features, *_rows(dout_TI), *_rows(h_TI), weight_I, rstd_T, *_rows(dh_TI))

    def glu(self, gate_up_T2F: Tensor, activation: Activation, out_TF: Tensor) -> None:
        T, F = out_TF.shape
        assert gate_up_T2F.shape == (T, 2 * F)
        if not _ours(gate_up_T2F, out_TF):
            return self._torch.glu(gate_up_T2F, activation, out_TF)
        _call("glu", out_TF, _ACTIVATIONS[activation], T, F, *_rows(gate_up_T2F), *_rows(out_TF))

    def glu_backward(self, dout_TF: Tensor, gate_up_T2F: Tensor, activation: Activation) -> Tensor:
        T, F = dout_TF.shape
        assert gate_up_T2F.shape == (T, 2 * F)
        if not _ours(dout_TF, gate_up_T2F):
            return self._torch.glu_backward(dout_TF, gate_up_T2F, activation)
        d_T2F = torch.empty(T, 2 * F, dtype=dout_TF.dtype)
        _call("glu_backward", dout_TF, _ACTIVATIONS[activation], T, F, *_rows(dout_TF), *_rows(gate_up_T2F), *_rows(d_T2F))
        return d_T2F

    def lora_down(self, x_TI: Tensor, drop: Drop | None, a_RI: Tensor, low_TR: Tensor) -> None:
        (T, features), R = x_TI.shape, a_RI.shape[0]
        assert a_RI.shape == (R, features) and low_TR.shape == (T, R)
        mask = _mask(drop, T, features)
        if mask is None or not _ours(x_TI, a_RI, low_TR):
            return self._torch.lora_down(x_TI, drop, a_RI, low_TR)
        _call("lora_down", x_TI, *mask, T, features, R, *_rows(x_TI), *_rows(a_RI), *_rows(low_TR))

    def lora_down_backward(self, dlow_TR: Tensor, x_TI: Tensor, drop: Drop | None, a_RI: Tensor, dx_TI: Tensor | None) -> Tensor:
        (T, features), R = x_TI.shape, a_RI.shape[0]
        assert a_RI.shape == (R, features) and dlow_TR.shape == (T, R) and (dx_TI is None or dx_TI.shape == (T, features))
        mask = _mask(drop, T, features)
        if mask is None or not _ours(dlow_TR, x_TI, a_RI, *(() if dx_TI is None else (dx_TI,))):
            return self._torch.lora_down_backward(dlow_TR, x_TI, drop, a_RI, dx_TI)
        da_RI = torch.empty(R, features)
        dx = (None, 0) if dx_TI is None else _rows(dx_TI)
        _call("lora_down_backward", x_TI, *mask, T, features, R, *_rows(dlow_TR), *_rows(x_TI), *_rows(a_RI), *dx, da_RI)
        return da_RI

    def lora_up_backward(self, dy_TO: Tensor, low_TR: Tensor) -> Tensor:
        (T, outputs), R = dy_TO.shape, low_TR.shape[1]
        assert low_TR.shape[0] == T
        if not _ours(dy_TO, low_TR):
            return self._torch.lora_up_backward(dy_TO, low_TR)
        db_OR = torch.empty(outputs, R)
        _call("lora_up_backward", dy_TO, T, outputs, R, *_rows(dy_TO), *_rows(low_TR), db_OR)
        return db_OR

    def rope(self, x_THD: Tensor, cos_TD: Tensor, sin_TD: Tensor, inverse: bool) -> None:
        T, H, D = x_THD.shape
        assert cos_TD.shape == sin_TD.shape and cos_TD.shape[0] == T and cos_TD.shape[1] <= D
        if not (_ours(x_THD) and _ours(cos_TD, sin_TD) and cos_TD.dtype == torch.float32):
            return self._torch.rope(x_THD, cos_TD, sin_TD, inverse)
        sign = -1.0 if inverse else 1.0
        _call("rope", x_THD, T, H, D, cos_TD.shape[1] // 2, *_rows(x_THD), *_rows(cos_TD), *_rows(sin_TD), sign)

    def attention(self, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, layout: Layout, how: Attention, out_THD: Tensor) -> Tensor:
        assert q_THD.shape == out_THD.shape and k_TGD.shape == v_TGD.shape
        if not _can_attend(layout, how, q_THD, k_TGD, v_TGD, out_THD):
            return self._torch.attention(q_THD, k_TGD, v_TGD, layout, how, out_THD)
        lse_TH = torch.empty(q_THD.shape[:2])
        tensors = (*_rows(q_THD), *_rows(k_TGD), *_rows(v_TGD), *_rows(out_THD))
        _call("attention", q_THD, *_what(q_THD, k_TGD, layout, how), *tensors, lse_TH)
        return lse_TH

    def attention_backward(
        self, dout_THD: Tensor, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, out_THD: Tensor, saved: Tensor,
        layout: Layout, how: Attention, dq_THD: Tensor, dk_TGD: Tensor, dv_TGD: Tensor,
    ) -> None:  # fmt: skip
        assert q_THD.shape == out_THD.shape == dout_THD.shape == dq_THD.shape
        assert k_TGD.shape == v_TGD.shape == dk_TGD.shape == dv_TGD.shape
        tensors = (dout_THD, q_THD, k_TGD, v_TGD, out_THD)
        # What torch's forward pass has saved is of another shape.
        is_lse = saved.shape == q_THD.shape[:2] and saved.dtype == torch.float32 and saved.is_contiguous()
        if not (is_lse and _can_attend(layout, how, *tensors, dq_THD, dk_TGD, dv_TGD)):
            return self._torch.attention_backward(*tensors, saved, layout, how, dq_THD, dk_TGD, dv_TGD)
        given = (a for x in tensors for a in _rows(x))
        gradients = (*_rows(dq_THD), *_rows(dk_TGD), *_rows(dv_TGD))
        _call("attention_backward", q_THD, *_what(q_THD, k_TGD, layout, how), *given, saved, *gradients)

    def cross_entropy(self, logits_NV: Tensor, targets_N: Tensor, softcap: float | None, gradient: bool) -> tuple[Tensor, Tensor]:
        N, V = logits_NV.shape
        if not (_ours(logits_NV) and logits_NV.is_contiguous() and _is_vector(targets_N, torch.int64, N)):
            return self._torch.cross_entropy(logits_NV, targets_N, softcap, gradient)
        assert N == 0 or bool((targets_N >= 0).all() & (targets_N < V).all()), "a target is not in the vocabulary"
        nll_N, hits_N = torch.empty(N), torch.empty(N, dtype=torch.bool)
        _call("cross_entropy", logits_NV, N, V, logits_NV, targets_N, float(softcap or 0), int(gradient), nll_N, hits_N)
        return nll_N, hits_N


def _mask(drop: Drop | None, T: int, features: int) -> tuple[Tensor | int | None, ...] | None:
    """Return a dropout mask's arguments; None if it is none that the kernels know."""
    if drop is None:
        return None, None, 0
    known = _is_vector(drop.row_T, torch.int32, T) and _is_vector(drop.column_I, torch.int32, features) and drop.threshold < 2**31
    return (drop.row_T, drop.column_I, drop.threshold) if known else None


def _can_attend(layout: Layout, how: Attention, *tensors: Tensor) -> bool:
    T, _, D = tensors[0].shape
    assert layout.num_tokens == T and all(x.shape[0] == T and x.shape[2] == D for x in tensors)
    return _ours(*tensors) and D % 8 == 0 and D <= 256 and how.scale > 0


def _what(q_THD: Tensor, k_TGD: Tensor, layout: Layout, how: Attention) -> tuple[int | float | Tensor, ...]:
    """Return the arguments of attention that come before its tensors."""
    _, H, D = q_THD.shape
    G = k_TGD.shape[1]
    assert H % G == 0
    numbers = [layout.start_S, layout.length_S, layout.first_ancestor_S1, layout.ancestor_A]
    return (
        H, G, D, float(how.scale), int(how.causal), how.window or 0, float(how.softcap or 0), len(layout.start_S),
        *(torch.from_numpy(x) for x in numbers),
    )  # fmt: skip
