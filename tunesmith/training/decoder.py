"""The fast path: a Llama-type decoder computed by our own operations from a loaded model's weights, driven by its configuration.

Llama, Qwen 2 and 3, Mistral, Gemma 2 and 3 and Phi-3 differ in few things, all read from the loaded modules: biases, norms of q and k,
norms behind the blocks, windows, soft-caps, the activation. What is not listed here takes the modules' own path (`modules`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tunesmith.training import ops
from tunesmith.training.kernels import Activation, Attention, Kernels
from tunesmith.training.lora import LoraGroup, LoraLinear
from tunesmith.training.packing import Layout

FAMILIES = frozenset({"llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "phi3"})
_ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}


@dataclass(frozen=True)
class _Layer:
    """One decoder layer. The norms behind attention and MLP are Gemma's."""

    input_norm: ops.Norm
    qkv: LoraGroup
    heads: ops.Heads
    how: Attention
    attention_out: LoraGroup
    attention_norm: ops.Norm | None
    mlp_norm: ops.Norm
    gate_up: LoraGroup
    activation: Activation
    down: LoraGroup
    mlp_out_norm: ops.Norm | None
    #: Which rotary embedding; Gemma 3 has two.
    kind: str | None


class Decoder:
    """The layers of a model; see `hidden`."""

    def __init__(self, model: nn.Module, kernels: Kernels) -> None:
        body: Any = model.get_decoder()  # type: ignore[operator]
        self.kernels = kernels
        self.embedding, self.rotary = body.embed_tokens, body.rotary_emb
        self.norm = _norm(body.norm)
        self.layers = [_layer(layer, body.config) for layer in body.layers]

    def hidden(self, ids_T: Tensor, position_T: Tensor, layout: Layout, *, recompute: bool) -> Tensor:
        """Return the features behind the last layer, before the last norm, [T, I]; with `recompute` each layer keeps its input only."""
        h_TI: Tensor = self.embedding(ids_T)
        turns = {kind: self._turn(h_TI, position_T, kind) for kind in {layer.kind for layer in self.layers}}
        for layer in self.layers:
            if recompute and torch.is_grad_enabled():
                h_TI = checkpoint(self._forward, layer, h_TI, turns[layer.kind], layout, use_reentrant=False, preserve_rng_state=False)
            else:
                h_TI = self._forward(layer, h_TI, turns[layer.kind], layout)
        return h_TI

    def last_norm(self, h_NI: Tensor) -> Tensor:
        """Return what the output head reads, for some rows of `hidden`."""
        return ops.rms_norm(h_NI, self.norm, self.kernels)

    def _forward(self, layer: _Layer, h_TI: Tensor, turn: ops.Turn, layout: Layout) -> Tensor:
        h_TI, qkv_TO = ops.norm_project(h_TI, layer.input_norm, layer.qkv)
        out_TX = ops.rope_attend(qkv_TO, layer.heads, turn, layout, layer.how, self.kernels, layer.attention_out.num_low)
        if layer.attention_norm is None:
            h_TI = ops.project_add(out_TX, h_TI, layer.attention_out)
        else:
            h_TI = h_TI + ops.rms_norm(ops.project_add(out_TX, None, layer.attention_out), layer.attention_norm, self.kernels)
        h_TI, gate_up_T2F = ops.norm_project(h_TI, layer.mlp_norm, layer.gate_up)
        if layer.mlp_out_norm is None:
            return ops.glu_project_add(gate_up_T2F, layer.activation, h_TI, layer.down)
        down_TI = ops.glu_project_add(gate_up_T2F, layer.activation, None, layer.down)
        return h_TI + ops.rms_norm(down_TI, layer.mlp_out_norm, self.kernels)

    def _turn(self, h_TI: Tensor, position_T: Tensor, kind: str | None) -> ops.Turn:
        like = torch.empty(0, device=h_TI.device, dtype=torch.promote_types(h_TI.dtype, torch.float32))
        cos_1TD, sin_1TD = self.rotary(like, position_T[None], *([kind] if kind else []))
        return ops.Turn(cos_1TD[0].contiguous(), sin_1TD[0].contiguous())


def _layer(layer: Any, config: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    has_four_norms = hasattr(layer, "pre_feedforward_layernorm")
    q_norm, k_norm = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
    window = getattr(attention, "sliding_window", None)
    if not hasattr(attention, "sliding_window"):  # Mistral and Phi-3 have one for all layers
        window = getattr(config, "sliding_window", None)
    return _Layer(
        input_norm=_norm(layer.input_layernorm),
        qkv=_group(getattr(attention, "qkv_proj", None) or attention.q_proj),
        heads=ops.Heads(
            config.num_attention_heads, config.num_key_value_heads, attention.head_dim,
            _norm(q_norm) if q_norm is not None else None, _norm(k_norm) if k_norm is not None else None,
        ),
        how=Attention(attention.scaling, True, window, getattr(attention, "attn_logit_softcapping", None)),
        attention_out=_group(attention.o_proj),
        attention_norm=_norm(layer.post_attention_layernorm) if has_four_norms else None,
        mlp_norm=_norm(layer.pre_feedforward_layernorm if has_four_norms else layer.post_attention_layernorm),
        gate_up=_group(getattr(mlp, "gate_up_proj", None) or mlp.gate_proj),
        activation=_ACTIVATIONS[getattr(config, "hidden_act", None) or config.hidden_activation],
        down=_group(mlp.down_proj),
        mlp_out_norm=_norm(layer.post_feedforward_layernorm) if has_four_norms else None,
        kind=attention.layer_type if config.model_type == "gemma3_text" else None,
    )  # fmt: skip


def _group(layer: LoraLinear) -> LoraGroup:
    return layer.group


def _norm(module: Any) -> ops.Norm:
    """Read an RMS norm. Gemma's stores its weight less 1 and calls its epsilon `eps`; the others' `variance_epsilon`."""
    weight_I = module.weight.detach()
    wide_I = weight_I.to(torch.promote_types(weight_I.dtype, torch.float32))
    if hasattr(module, "variance_epsilon"):
        return ops.Norm(wide_I, module.variance_epsilon)
    return ops.Norm(wide_I + 1, module.eps)
