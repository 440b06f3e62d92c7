"""LoRA and the loss on tiny random models of several architectures: equal to the model's own full logits, with a gradient everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tunesmith.domain.models import ModelFacts
from tunesmith.domain.specs import TrainingSpec
from tunesmith.training import batching, data, defaults, losses, model

SMALL: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES: dict[str, transformers.PretrainedConfig] = {
    "llama": transformers.LlamaConfig(**SMALL),
    "qwen2": transformers.Qwen2Config(**SMALL),
    "qwen3": transformers.Qwen3Config(**SMALL, head_dim=8),
    "mistral": transformers.MistralConfig(**SMALL, sliding_window=4),
    "gemma2": transformers.Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=5.0, sliding_window=4),
    "phi3": transformers.Phi3Config(**SMALL),
    "gpt_neox": transformers.GPTNeoXConfig(
        vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_is_the_models_own(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(FAMILIES[family]).save_pretrained(tmp_path)
    plain = model.load_base(tmp_path, torch.float64, "cpu")
    ours = model.load_base(tmp_path, torch.float64, "cpu")
    facts = ModelFacts(family, 100_000, 64, False)
    spec = defaults.resolve(TrainingSpec.ask(family, {"lora_dropout": 0.0}, "api"), facts, defaults.DataFacts(10, 0))
    model.attach_lora(ours, spec)  # B is 0: the base itself

    rng = np.random.default_rng(0)
    rows = [data.TokenizedExample(i, rng.integers(3, 128, length), np.arange(length) > length // 2) for i, length in enumerate((20, 9, 33))]
    (batch,) = batching.micro_batches(rows, 1000, "cpu")
    nll_N, _ = losses.nll_and_hits(losses.target_logits(ours, batch), batch.targets_N)
    expected = torch.zeros((), dtype=torch.float64)
    for row in rows:
        ids = torch.from_numpy(row.ids_T)[None]
        labels = torch.where(torch.from_numpy(row.is_target_T), ids[0], -100)[1:]
        logits = plain(input_ids=ids, use_cache=False).logits[0, :-1]
        expected += torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
    assert nll_N.sum().item() == pytest.approx(expected.item(), rel=1e-9)
    nll_N.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for name, p in model.trainable(ours).items() if name.endswith("lora_B"))
