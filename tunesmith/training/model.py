"""Load a base model and attach LoRA to it. Knows no data and no optimizer.

LoRA (Hu et al., 2021): y = W x + (alpha / rank) B A dropout(x), W frozen, A and B trained in float32 at least.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tunesmith import hardware
from tunesmith.domain.specs import ExecutionPlan, ResolvedSpec
from tunesmith.errors import InvalidRequest
from tunesmith.training import dropout

ADAPTER_FILE, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PEFT_PREFIX = "base_model.model."
#: A model directory is data: nothing in it is run, nothing is fetched.
_PLAIN: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}


def plan(tuning: str) -> tuple[ExecutionPlan, dict[str, str]]:
    """Choose device, dtype, threads and token budget for this machine, each with its reason."""
    cuda = torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    threads = hardware.physical_cores()
    dtype, why = _dtype(cuda, tuning)
    budget = 8192 if cuda else 2048
    reasons = {
        "device": "a CUDA device is present" if cuda else "no CUDA device",
        "dtype": why,
        "threads": "every core this process may use",
        "token_budget": f"{budget} padded tokens a micro-batch suit a {device} device",
    }
    capability = torch.backends.cpu.get_cpu_capability()
    name = torch.cuda.get_device_name() if cuda else f"{hardware.processor()} ({capability})"
    return ExecutionPlan(device, dtype, threads, budget, name, torch.__version__), reasons


def native_bfloat16() -> bool:
    """Say whether the device to compute on multiplies bfloat16 natively; elsewhere it is slower than float32."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_capability() >= (8, 0)
    return hardware.native_bfloat16()


def _dtype(cuda: bool, tuning: str) -> tuple[str, str]:
    if tuning == "full":
        return "float32", "full tuning updates the weights themselves, which needs 32 bits"
    if native_bfloat16():
        return "bfloat16", f"this {'device' if cuda else 'processor'} computes bfloat16 natively; adapters stay float32"
    return "float32", "no native bfloat16 here"


def load_base(directory: Path, dtype: torch.dtype, device: str) -> nn.Module:
    """Load a causal language model from a checked directory; safetensors only, none of its code is run.

    Raises: InvalidRequest when it cannot be loaded whole.
    """
    try:
        network, report = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, use_safetensors=True, output_loading_info=True, **_PLAIN
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise InvalidRequest(f"Base model {directory.name!r} cannot be loaded: {' '.join(str(error).split())}") from error
    if missing := sorted(report["missing_keys"]):  # transformers would go on with random numbers in their place
        raise InvalidRequest(f"Base model {directory.name!r} is not whole: {len(missing)} weights are missing ({', '.join(missing[:3])}).")
    # eval(): the base's own dropout, where it has any, stays off; LoRA has a dropout of its own.
    loaded: nn.Module = network.to(device).eval()
    return loaded


def load_tokenizer(directory: Path) -> Any:
    """Load the tokenizer that belongs to a base. Raises: InvalidRequest."""
    try:
        return transformers.AutoTokenizer.from_pretrained(directory, **_PLAIN)
    except (OSError, ValueError, RuntimeError) as error:
        raise InvalidRequest(f"Base model {directory.name!r}: its tokenizer cannot be loaded: {' '.join(str(error).split())}") from error


class LoraLinear(nn.Module):
    """A frozen linear layer with a trained low-rank update beside it."""

    def __init__(self, base: nn.Linear, index: int, spec: ResolvedSpec, masks: dropout.Masks, generator: torch.Generator) -> None:
        super().__init__()
        self.base, self.index, self.masks = base, index, masks
        self.scale = spec.lora_alpha / spec.lora_rank
        dtype = torch.promote_types(base.weight.dtype, torch.float32)
        bound = 1 / math.sqrt(base.in_features)  # kaiming_uniform with a = sqrt(5), as PEFT
        a_RI = torch.rand(spec.lora_rank, base.in_features, generator=generator, dtype=torch.float32).mul_(2 * bound).sub_(bound)
        self.lora_A = nn.Parameter(a_RI.to(base.weight.device, dtype))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, spec.lora_rank, device=base.weight.device, dtype=dtype))

    def forward(self, x_BTI: Tensor) -> Tensor:
        """Return y [batch, tokens, out]; the dropout's 1 / (1 - p) is part of the scale."""
        dropped_BTI, gain = self.masks.apply(x_BTI, self.index)
        low_BTR = nn.functional.linear(dropped_BTI, self.lora_A.to(x_BTI.dtype))
        update_BTO = nn.functional.linear(low_BTR, (self.lora_B * (self.scale * gain)).to(x_BTI.dtype))
        y_BTO: Tensor = self.base(x_BTI)
        return y_BTO + update_BTO


def attach_lora(model: nn.Module, spec: ResolvedSpec) -> dropout.Masks:
    """Put LoRA on every linear layer but the output head, and freeze all else. Returns the dropout masks to feed.

    Raises: InvalidRequest when the architecture has no linear layers to put it on.
    """
    model.requires_grad_(False)
    masks = dropout.Masks(spec.lora_dropout, spec.seed)
    generator = torch.Generator().manual_seed(spec.seed)
    head = model.get_output_embeddings()  # type: ignore[operator]
    targets = [(name, module) for name, module in model.named_modules() if type(module) is nn.Linear and module is not head]
    if not targets:
        words = f"Model {spec.model!r} ({type(model).__name__}) has no linear layers that LoRA could be put on."
        raise InvalidRequest(words, param="model")
    for index, (name, module) in enumerate(targets):
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, LoraLinear(module, index, spec, masks, generator))
    return masks


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """Yield (path, layer) of every LoRA layer in the model's order."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            yield name, module


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trained parameters by name, in a fixed order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save_adapter(model: nn.Module, spec: ResolvedSpec, directory: Path) -> None:
    """Write the adapter in PEFT's format, which PEFT, transformers and vLLM load."""
    tensors: dict[str, Tensor] = {}
    leaves: set[str] = set()
    for name, layer in lora_layers(model):
        tensors[f"{_PEFT_PREFIX}{name}.lora_A.weight"] = layer.lora_A.detach().cpu().contiguous()
        tensors[f"{_PEFT_PREFIX}{name}.lora_B.weight"] = layer.lora_B.detach().cpu().contiguous()
        leaves.add(name.rpartition(".")[2])
    save_file(tensors, directory / ADAPTER_FILE, metadata={"format": "pt"})
    alpha = int(spec.lora_alpha) if spec.lora_alpha == int(spec.lora_alpha) else spec.lora_alpha
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": spec.model, "inference_mode": True,
        "r": spec.lora_rank, "lora_alpha": alpha, "lora_dropout": spec.lora_dropout, "target_modules": sorted(leaves),
        "bias": "none", "fan_in_fan_out": False, "init_lora_weights": True, "use_rslora": False, "use_dora": False,
    }  # fmt: skip
    (directory / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n")


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


def save_full(model: nn.Module, tokenizer: Any, directory: Path) -> None:
    """Write all weights, config and tokenizer: a model directory of its own."""
    model.save_pretrained(directory)  # type: ignore[operator]
    tokenizer.save_pretrained(directory)


def load_full(model: nn.Module, directory: Path) -> None:
    """Set all weights from a directory that `save_full` wrote."""
    for path in sorted(directory.glob("model*.safetensors")):
        model.load_state_dict(load_file(path), strict=False)
    model.tie_weights()  # type: ignore[operator]
