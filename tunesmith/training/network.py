"""A loaded model as the loop sees it: a micro-batch in, the loss out. Chooses between three ways to compute the same thing.

`decoder`: our own operations, for the Llama-type families under LoRA. `modules`: transformers' modules on packed rows. `plain`:
transformers' modules, one example at a time, for architectures that cannot be packed. A way is taken only if it computes, on a
few tokens, what the untouched model does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tunesmith.domain.specs import ExecutionPlan, ResolvedSpec
from tunesmith.errors import InvalidRequest
from tunesmith.training import batching, dropout, lora, losses, modules
from tunesmith.training.batching import MicroBatch
from tunesmith.training.data import TokenizedExample
from tunesmith.training.decoder import FAMILIES, Decoder
from tunesmith.training.kernels import selection
from tunesmith.training.losses import Loss

PATHS = ("decoder", "modules", "plain")
#: How far the logits may be from the untouched model's, as a share of their norm, before a way is held to compute something else.
_AGREEMENT = {torch.bfloat16: 0.1, torch.float16: 0.1, torch.float32: 1e-3, torch.float64: 1e-6}

Features = Callable[[MicroBatch], Tensor]


def path_for(model_type: str, tuning: str) -> tuple[str, str]:
    """Return the way to try first for an architecture, and why."""
    if tuning == "lora" and model_type in FAMILIES:
        return "decoder", f"the fast path knows the {model_type} family"
    why = "all weights are tuned" if tuning == "full" else f"the fast path does not know the {model_type} family"
    return "modules", f"transformers' modules on packed rows: {why}"


class Network:
    """A model with LoRA attached, or to be tuned in full, as the plan says.

    `path` is the way that was taken; `notice` says why it is not the plan's, or is None.
    Raises: InvalidRequest for an architecture that none of the ways computes.
    """

    def __init__(self, model: nn.Module, spec: ResolvedSpec, plan: ExecutionPlan) -> None:
        self.model, self.plan, self._longest = model, plan, spec.max_length
        self.kernels = selection.by_name(plan.kernels)
        self.masks = dropout.Masks(spec.lora_dropout if spec.tuning == "lora" else 0.0, spec.seed)
        self.notice: str | None = None
        self.recompute = plan.recompute
        self._body: Any = model.base_model
        head: Any = model.get_output_embeddings()  # type: ignore[operator]
        text: Any = model.config.get_text_config()  # type: ignore[union-attr, operator]
        self.num_layers: int = getattr(text, "num_hidden_layers", 1)
        self._multiplier = getattr(text, "logit_scale", None) or 1 / (getattr(text, "logits_scaling", None) or 1)
        self.head = losses.Head(head.weight, head.bias, getattr(text, "final_logit_softcapping", None), self.kernels)
        probe = _probe(head.weight.shape[0])
        expected_NV = self._plain_logits(probe)
        self.groups = lora.attach(model, spec, self.masks, self.kernels) if spec.tuning == "lora" else []
        self.refresh()
        self._features, self.path = self._choose(probe, expected_NV)

    def refresh(self) -> None:
        """Take over LoRA weights that changed; call after an optimizer step or a load."""
        for group in self.groups:
            group.refresh()

    def micro_batches(self, examples: Sequence[TokenizedExample], budget: int) -> Iterator[MicroBatch]:
        """Cut examples into micro-batches of at most `budget` tokens that this way can compute."""
        packable = self.path != "plain"
        return batching.micro_batches(examples, budget if packable else 1, self.plan.device, share=packable)

    def loss(self, batch: MicroBatch, weight: float = 1.0) -> Loss:
        """Return the loss over the micro-batch's targets, each weighing `weight`."""
        return losses.target_loss(self._scaled(self._features(batch)), batch.targets_N, self.head, weight)

    # ------------------------------------------------------------------ the three ways; each returns what the head reads, [N, I]

    def _decoder(self) -> Features:
        decoder = Decoder(self.model, self.kernels)

        def features(batch: MicroBatch) -> Tensor:
            h_TI = decoder.hidden(batch.ids_T, batch.position_T, batch.layout, recompute=self.recompute)
            return decoder.last_norm(h_TI.index_select(0, batch.place_N))

        return features

    def _modules(self) -> Features:
        modules.install(self.model)

        def features(batch: MicroBatch) -> Tensor:
            modules.recompute(self.model, self.recompute)
            h_TI = modules.hidden(self._body, batch.ids_T, batch.position_T, batch.layout, self.kernels)
            return h_TI.index_select(0, batch.place_N)

        return features

    def _plain(self) -> Features:
        modules.uninstall(self.model)

        def features(batch: MicroBatch) -> Tensor:
            output: Any = self._body(input_ids=batch.ids_T[None], use_cache=False)
            h_NI: Tensor = output.last_hidden_state[0].index_select(0, batch.place_N)
            return h_NI

        return features

    def _choose(self, probe: list[TokenizedExample], expected_NV: Tensor) -> tuple[Features, str]:
        """Return the first way, from the plan's on, that agrees with the untouched model."""
        for path in PATHS[PATHS.index(self.plan.path) :]:
            try:
                features = {"decoder": self._decoder, "modules": self._modules, "plain": self._plain}[path]()
                self.path = path
                if path != "plain" and self._turns_with_length():
                    raise ValueError("its positions depend on the longest example beside")
                with torch.no_grad():
                    found_NV = torch.cat([self._logits(features(batch)) for batch in self.micro_batches(probe, 1024)])
                if path == "modules":
                    modules.check_calls(self.model.config.get_text_config())  # type: ignore[union-attr, operator]
                apart = float((found_NV - expected_NV).norm() / expected_NV.norm())
                # A model that computes NaN untouched is broken, whichever way; the first step says so.
                if apart <= _AGREEMENT[self.head.weight_VI.dtype] or not bool(expected_NV.isfinite().all()):
                    return features, path
                why = f"its logits are {apart:.2g} of their norm off"
            except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
                why = " ".join(str(error).split())[:200]
            self.notice = f"The {path!r} path does not compute what this model does ({why}); a slower one is taken."
        kind = type(self.model).__name__
        raise InvalidRequest(f"{kind} cannot be trained: its output is not its last hidden state times its output embeddings ({why}).")

    def _turns_with_length(self) -> bool:
        """Whether rotary embeddings differ with the longest of the examples computed together: some do, beyond their original length."""
        for module in self.model.modules():
            kind = str(getattr(module, "rope_type", ""))
            if "dynamic" in kind or "longrope" in kind:
                config: Any = module.config
                original = (getattr(config, "rope_parameters", None) or {}).get("original_max_position_embeddings")
                if self._longest > (original or config.max_position_embeddings):
                    return True
        return False

    def _scaled(self, x_NI: Tensor) -> Tensor:
        return x_NI if self._multiplier == 1 else x_NI * self._multiplier

    def _logits(self, x_NI: Tensor) -> Tensor:
        logits_NV = nn.functional.linear(self._scaled(x_NI), self.head.weight_VI, self.head.bias_V).double()
        cap = self.head.softcap
        return logits_NV if cap is None else cap * torch.tanh(logits_NV / cap)

    @torch.no_grad()
    def _plain_logits(self, probe: list[TokenizedExample]) -> Tensor:
        """Return the untouched model's logits at the probe's targets, in the order in which micro-batches have them."""
        rows = []
        for example in sorted(probe, key=lambda example: example.ids_T.tobytes()):
            output: Any = self.model(input_ids=torch.from_numpy(example.ids_T)[None].to(self.plan.device), use_cache=False)
            rows.append(output.logits[0, :-1][torch.from_numpy(example.is_target_T[1:]).to(self.plan.device)].double())
        return torch.cat(rows)


def _probe(vocabulary: int) -> list[TokenizedExample]:
    """Return two short examples with a common beginning."""
    ids_T = np.random.default_rng(0).integers(0, vocabulary, 40)
    rows = [ids_T[:30], np.concatenate([ids_T[:20], ids_T[30:]])]
    return [TokenizedExample(line, row, np.arange(30) >= 18) for line, row in enumerate(rows)]
