"""The portable path: transformers' own modules on the packed row, with our attention in them.

Works for every architecture whose attention goes through transformers' registry, decoders and encoders alike; `network`
checks at load that it does.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from tunesmith.training import ops
from tunesmith.training.kernels import Attention, Kernels
from tunesmith.training.packing import Layout

_NAME = "tunesmith_segments"
#: What some models pass to attention that it does not know: sinks, relative positions, choices of keys.
_FOREIGN = ("s_aux", "sinks", "position_bias", "indices", "block_indices")
#: Dropout that a layer has as a number, not as a module.
_DROPOUTS = ("dropout", "attention_dropout", "activation_dropout", "hidden_dropout", "layerdrop")


class _Current:
    """What the registered function attends with, and how often it was called. transformers calls it by name; not every model passes
    arguments through to it.
    """

    layout: Layout
    kernels: Kernels
    calls: int = 0
    windows: int = 0


def install(model: nn.Module) -> None:
    """Have the model attend by segments of the packed row.

    Raises: ValueError when transformers knows no registry for this architecture.
    """
    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, _no_mask)
    if not getattr(model, "_supports_attention_backend", False):
        raise ValueError(f"{type(model).__name__} does not attend through transformers' registry")
    model.set_attn_implementation(_NAME)  # type: ignore[operator]


def uninstall(model: nn.Module) -> None:
    """Have the model attend as transformers does."""
    model.set_attn_implementation("eager")  # type: ignore[operator]


def recompute(model: nn.Module, on: bool) -> None:
    """Have each layer's activations computed again in the backward pass instead of kept, or kept again."""
    if on == model.is_activation_checkpointing:
        return
    if not on:
        for module in _recomputed(model):
            module.training = False
        model.activation_checkpointing_disable()  # type: ignore[operator]
        return
    model.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})  # type: ignore[operator]
    if getattr(model, "_require_grads_hook", None) is not None:
        model.disable_input_require_grads()  # type: ignore[operator]
    for module in _recomputed(model):
        # transformers heeds the flag in training only; the module's children stay as they are, and its own dropout stays off.
        module.training = True
        for name in _DROPOUTS:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _recomputed(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]


def hidden(body: nn.Module, ids_T: Tensor, position_T: Tensor, layout: Layout, kernels: Kernels) -> Tensor:
    """Return the last hidden state of the model's body for a packed row, [T, I]."""
    _Current.layout, _Current.kernels = layout, kernels
    _Current.calls = _Current.windows = 0
    output: Any = body(input_ids=ids_T[None], position_ids=position_T[None], use_cache=False)
    state_TI: Tensor = output.last_hidden_state[0]
    return state_TI


def check_calls(config: Any) -> None:
    """Check that the last `hidden` attended in every layer, and with a window where the configuration has one.

    Raises: ValueError. A layer that mixes tokens by other means would mix those of different examples; a window that transformers
    keeps in its mask alone would be lost with the mask.
    """
    layers = config.num_hidden_layers
    if _Current.calls != layers:
        raise ValueError(f"{_Current.calls} of its {layers} layers attend through the registry")
    if getattr(config, "sliding_window", None) is None or not getattr(config, "use_sliding_window", True):
        return
    kinds = getattr(config, "layer_types", None)
    expected = sum("sliding" in kind for kind in kinds) if kinds else layers
    if _Current.windows != expected:
        raise ValueError(f"{expected} of its layers have a sliding window, {_Current.windows} say so when they attend")


def _no_mask(*_args: Any, **_kwargs: Any) -> None:
    """Make no [T, T] mask: the layout says who may look where."""


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *, scaling: float | None = None,
    dropout: float = 0.0, is_causal: bool | None = None, sliding_window: int | None = None, softcap: float | None = None, **more: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attend as transformers asks: query [1, H, T, D], key and value [1, G, T, D]; return [1, T, H, D]."""
    if dropout or attention_mask is not None:
        raise ValueError("packed rows have neither attention dropout nor masks")
    if foreign := [name for name in _FOREIGN if more.get(name) is not None]:
        raise ValueError(f"its attention has {', '.join(foreign)}")
    if value.shape[-1] != key.shape[-1]:
        raise ValueError(f"its values are {value.shape[-1]} wide, its keys {key.shape[-1]}")
    _Current.calls += 1
    _Current.windows += sliding_window is not None
    causal = bool(getattr(module, "is_causal", True)) if is_causal is None else is_causal
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q_THD, k_TGD, v_TGD = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    how = Attention(scale, causal, sliding_window if causal else None, softcap)
    out_THD = ops.attend(q_THD, k_TGD, v_TGD, _Current.layout, how, _Current.kernels)
    return out_THD[None], None
