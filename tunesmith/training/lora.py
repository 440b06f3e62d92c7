"""LoRA inside the base model's matrix products.

LoRA (Hu et al., 2021): y = W x + (alpha / rank) B A dropout(x), W frozen, A and B trained in float32 at least. Computed as one product,
`[x | dropout(x) Aᵀ] · [W | (alpha / rank) B]ᵀ`, the sum is taken in the accumulator: faster than adding a second product, and small
updates are not lost to rounding. Layers that read the same input (q, k, v; gate, up) form a group and share that product.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tunesmith.domain.specs import ResolvedSpec
from tunesmith.errors import InvalidRequest
from tunesmith.training import dropout, ops
from tunesmith.training.kernels import Drop, Kernels

ADAPTER_FILE, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PEFT_PREFIX = "base_model.model."
#: Siblings that transformers' models give the same input.
_GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("query", "key", "value"))


class LoraLinear(nn.Module):
    """A frozen linear layer with a trained low-rank update; what it computes is its group's affair."""

    def __init__(self, base: nn.Linear, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        dtype = torch.promote_types(base.weight.dtype, torch.float32)
        bound = 1 / math.sqrt(base.in_features)  # kaiming_uniform with a = sqrt(5), as PEFT
        a_RI = torch.rand(rank, base.in_features, generator=generator, dtype=torch.float32).mul_(2 * bound).sub_(bound)
        self.base = base
        self.lora_A = nn.Parameter(a_RI.to(base.weight.device, dtype))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=base.weight.device, dtype=dtype))
        self.group: LoraGroup

    def forward(self, x: Tensor) -> Tensor:
        """Return y, [..., out] for x [..., in]."""
        return self.group.output(self, x)


class LoraGroup:
    """Layers that read the same input. Shape letters: I features in, O features out and R ranks of all its layers together.

    `extended_OX` is [W | scale B], X = I + R, each layer's B standing in the columns of its own ranks. The layers' weights become
    views of it. `a_RI` and `dropped_a_RI` are the A of all, the second one times 1 / (1 - p).
    """

    def __init__(self, index: int, layers: Sequence[LoraLinear], scale: float, masks: dropout.Masks, kernels: Kernels) -> None:
        self.index, self.layers, self.scale, self.masks, self.kernels = index, layers, scale, masks, kernels
        weight = layers[0].base.weight
        rank, self.num_in = layers[0].lora_A.shape
        self.num_out = sum(layer.base.out_features for layer in layers)
        self.num_low = rank * len(layers)
        self.outs = _slices([layer.base.out_features for layer in layers])
        self.lows = _slices([rank] * len(layers))
        self.extended_OX = torch.zeros(self.num_out, self.num_in + self.num_low, dtype=weight.dtype, device=weight.device)
        self.a_RI = torch.empty(self.num_low, self.num_in, dtype=weight.dtype, device=weight.device)
        self.dropped_a_RI = torch.empty_like(self.a_RI)
        biases = [layer.base.bias for layer in layers]
        self.bias_O = None if all(bias is None for bias in biases) else _joined(biases, layers)
        self._last: tuple[Tensor, Tensor] | None = None
        for layer, out in zip(layers, self.outs, strict=True):
            self.extended_OX[out, : self.num_in] = layer.base.weight.detach()
            layer.base.weight = nn.Parameter(self.extended_OX[out, : self.num_in], requires_grad=False)
            layer.group = self

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the layers' A and B; to be called after they changed."""
        for layer, out, low in zip(self.layers, self.outs, self.lows, strict=True):
            self.extended_OX[out, self.num_in + low.start : self.num_in + low.stop] = layer.lora_B * self.scale
            self.a_RI[low] = layer.lora_A
            self.dropped_a_RI[low] = layer.lora_A * self.masks.gain

    def drop(self) -> tuple[Drop | None, Tensor, float]:
        """Return the mask of the present forward pass, the A that goes with it, and the factor of A's gradient."""
        drop = self.masks.drop(self.index, self.num_in)
        return (None, self.a_RI, 1.0) if drop is None else (drop, self.dropped_a_RI, self.masks.gain)

    def parameters(self) -> list[nn.Parameter]:
        """Return A and B of each layer in turn."""
        return [parameter for layer in self.layers for parameter in (layer.lora_A, layer.lora_B)]

    def output(self, layer: LoraLinear, x: Tensor) -> Tensor:
        """Return the output of one layer; the first one asked computes it for its siblings, if they are given the same tensor."""
        if self._last is None or self._last[0] is not x:
            y_TO = ops.project(x.reshape(-1, self.num_in), self)
            self._last = (x, y_TO.view(*x.shape[:-1], self.num_out))
        position = self.layers.index(layer)
        y: Tensor = self._last[1][..., self.outs[position]]
        if position == len(self.layers) - 1:
            self._last = None
        return y


def attach(model: nn.Module, spec: ResolvedSpec, masks: dropout.Masks, kernels: Kernels) -> list[LoraGroup]:
    """Put LoRA on every linear layer but the output head, and freeze all else.

    Raises: InvalidRequest when the architecture has no linear layers to put it on.
    """
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(spec.seed)
    head = model.get_output_embeddings()  # type: ignore[operator]
    targets = [name for name, module in model.named_modules() if type(module) is nn.Linear and module is not head]
    if not targets:
        words = f"Model {spec.model!r} ({type(model).__name__}) has no linear layers that LoRA could be put on."
        raise InvalidRequest(words, param="model")
    layers: dict[str, LoraLinear] = {}
    for name in targets:
        parent, _, leaf = name.rpartition(".")
        layers[name] = LoraLinear(model.get_submodule(name), spec.lora_rank, generator)  # type: ignore[arg-type]
        setattr(model.get_submodule(parent), leaf, layers[name])
    scale = spec.lora_alpha / spec.lora_rank
    return [
        LoraGroup(index, [layers[name] for name in names], scale, masks, kernels)
        for index, names in enumerate(_group_names(targets, {name: layer.base.in_features for name, layer in layers.items()}))
    ]


def _group_names(targets: Sequence[str], num_in: dict[str, int]) -> Iterator[list[str]]:
    done: set[str] = set()
    for name in targets:
        if name in done:
            continue
        parent, dot, leaf = name.rpartition(".")
        siblings = next((group for group in _GROUPS if leaf in group), (leaf,))
        names = [parent + dot + sibling for sibling in siblings if parent + dot + sibling in num_in]
        names = [other for other in names if num_in[other] == num_in[name]]
        done.update(names)
        yield names


def _slices(sizes: Sequence[int]) -> list[slice]:
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def _joined(biases: Sequence[Tensor | None], layers: Sequence[LoraLinear]) -> Tensor:
    parts = [layer.base.weight.new_zeros(layer.base.out_features) if b is None else b for b, layer in zip(biases, layers, strict=True)]
    return torch.cat(parts).detach()


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """Yield (path, layer) of every LoRA layer in the model's order."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            yield name, module


def save_adapter(model: nn.Module, spec: ResolvedSpec, directory: Path) -> None:
    """Write the adapter in PEFT's format, which PEFT, transformers and vLLM load."""
    tensors: dict[str, Tensor] = {}
    for name, layer in lora_layers(model):
        tensors[f"{_PEFT_PREFIX}{name}.lora_A.weight"] = layer.lora_A.detach().cpu().contiguous()
        tensors[f"{_PEFT_PREFIX}{name}.lora_B.weight"] = layer.lora_B.detach().cpu().contiguous()
    save_file(tensors, directory / ADAPTER_FILE, metadata={"format": "pt"})
    alpha = int(spec.lora_alpha) if spec.lora_alpha == int(spec.lora_alpha) else spec.lora_alpha
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": spec.model, "inference_mode": True,
        "r": spec.lora_rank, "lora_alpha": alpha, "lora_dropout": spec.lora_dropout, "target_modules": _target_modules(model),
        "bias": "none", "fan_in_fan_out": False, "init_lora_weights": True, "use_rslora": False, "use_dora": False,
    }  # fmt: skip
    (directory / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def _target_modules(model: nn.Module) -> list[str]:
    """Return the names by which PEFT finds the layers: the last parts, if no other module has one of them, else whole paths."""
    paths = {name for name, _ in lora_layers(model)}
    leaves = {path.rpartition(".")[2] for path in paths}
    meant = {name for name, module in model.named_modules() if name.rpartition(".")[2] in leaves}
    return sorted(leaves if meant == paths else paths)


def load_adapter(model: nn.Module, directory: Path) -> None:
    """Set the LoRA weights from an adapter directory.

    Raises: InvalidRequest when its layers or shapes are not this model's.
    """
    tensors = load_file(directory / ADAPTER_FILE)
    for name, layer in lora_layers(model):
        for half in ("lora_A", "lora_B"):
            key = f"{_PEFT_PREFIX}{name}.{half}.weight"
            parameter: nn.Parameter = getattr(layer, half)
            stored = tensors.pop(key, None)
            if stored is None or stored.shape != parameter.shape:
                found = "missing" if stored is None else f"of shape {tuple(stored.shape)}"
                raise InvalidRequest(f"Adapter: {key} is {found}; this model needs {tuple(parameter.shape)}.")
            with torch.no_grad():
                parameter.copy_(stored)
    if tensors:
        raise InvalidRequest(f"Adapter: {next(iter(tensors))} belongs to no layer of this model.")
