"""Tiny random models of several architectures: loss and LoRA gradients equal transformers' eager attention with PEFT."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.unit.exactness import TOLERANCE, assert_equal, network, plan, random_examples, reference, resolved, step
from tunesmith.errors import InvalidRequest
from tunesmith.training import decoder, lora, memory, modules, packing
from tunesmith.training.kernels import cpu, selection

SMALL: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAST: dict[str, transformers.PretrainedConfig] = {
    "llama": transformers.LlamaConfig(**SMALL),
    "llama with biases": transformers.LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "qwen2": transformers.Qwen2Config(**SMALL),
    "qwen2 with windows": transformers.Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=6, max_window_layers=1),
    "qwen3": transformers.Qwen3Config(**SMALL, head_dim=16),
    "mistral": transformers.MistralConfig(**SMALL, sliding_window=6),
    "gemma2": transformers.Gemma2Config(
        **SMALL, head_dim=8, final_logit_softcapping=5.0, attn_logit_softcapping=2.0, sliding_window=6, query_pre_attn_scalar=24
    ),
    "gemma3": transformers.Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=6, layer_types=["sliding_attention", "full_attention"]),
    "phi3": transformers.Phi3Config(**SMALL),
    "phi3 with half rotation": transformers.Phi3Config(**SMALL, partial_rotary_factor=0.5),
}
PORTABLE: dict[str, transformers.PretrainedConfig] = {
    "gpt_neox": transformers.GPTNeoXConfig(
        vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128
    ),
    "granite": transformers.GraniteConfig(**SMALL, logits_scaling=3.0),
    "cohere": transformers.CohereConfig(**SMALL),
    "olmo2": transformers.Olmo2Config(**SMALL),
    "starcoder2": transformers.Starcoder2Config(**SMALL),
}
EXAMPLES = random_examples(count=6, longest=40, vocabulary=128, shared=18)


def save(config: transformers.PretrainedConfig, directory: Path) -> Path:
    """Write a random model whose norms and biases are not the ones and zeros they begin with."""
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "norm" in name or "bias" in name:
                parameter += torch.randn_like(parameter) * 0.3
    made.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("family", FAST)
def test_the_fast_path_equals_peft(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    base, spec = save(FAST[family], tmp_path / "base"), resolved()
    made = network(base, spec, plan(dtype))
    assert (made.path, made.notice) == ("decoder", None)
    ours = step(made, EXAMPLES)
    assert_equal(ours, reference(base, made, spec, EXAMPLES, tmp_path), TOLERANCE[dtype])
    if dtype == torch.float32 and cpu.available()[0]:
        assert_equal(step(network(base, spec, plan(dtype, kernels="cpu")), EXAMPLES), ours, TOLERANCE[dtype])


@pytest.mark.parametrize("family", [*FAST, *PORTABLE])
def test_the_portable_path_equals_peft(family: str, tmp_path: Path) -> None:
    base, spec = save({**FAST, **PORTABLE}[family], tmp_path / "base"), resolved()
    made = network(base, spec, plan(torch.float32, path="modules"))
    assert (made.path, made.notice) == ("modules", None)
    assert_equal(step(made, EXAMPLES), reference(base, made, spec, EXAMPLES, tmp_path), TOLERANCE[torch.float32])


def test_an_architecture_that_cannot_be_packed_is_computed_one_example_at_a_time(tmp_path: Path) -> None:
    config = transformers.BloomConfig(vocab_size=128, hidden_size=32, n_layer=2, n_head=4)
    base, spec = save(config, tmp_path / "base"), resolved()
    made = network(base, spec, plan(torch.float32, path="modules"))
    assert made.path == "plain" and "does not attend through transformers' registry" in str(made.notice)
    assert_equal(step(made, EXAMPLES), reference(base, made, spec, EXAMPLES, tmp_path), TOLERANCE[torch.float32])


_MIXTURE: dict[str, Any] = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2, "shared_expert_intermediate_size": 32}
_LATENT: dict[str, Any] = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 32, "first_k_dense_replace": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (transformers.Lfm2Config(**SMALL, layer_types=["conv", "full_attention"]), "1 of its 2 layers attend"),
        (
            transformers.Qwen2MoeConfig(**SMALL, **_MIXTURE, use_sliding_window=True, sliding_window=6),
            "have a sliding window, 0 say so",
        ),
        (transformers.DeepseekV3Config(**{**SMALL, "num_key_value_heads": 4}, **_LATENT), "its values are 12 wide, its keys 16"),
        (transformers.GptOssConfig(**SMALL, head_dim=8, num_local_experts=4, num_experts_per_tok=2), "its attention has s_aux"),
    ],
    ids=lambda given: getattr(given, "model_type", ""),
)  # fmt: skip
def test_a_model_that_packing_would_change_is_computed_one_example_at_a_time(
    config: transformers.PretrainedConfig, why: str, tmp_path: Path
) -> None:
    """Short convolutions across examples, windows in the mask alone, values of another width, attention sinks."""
    base, spec = save(config, tmp_path / "base"), resolved()
    made = network(base, spec, plan(torch.float32, path="modules"))
    assert made.path == "plain" and why in str(made.notice)
    if config.model_type != "deepseek_v3":  # PEFT has other names for its layers
        assert_equal(step(made, EXAMPLES), reference(base, made, spec, EXAMPLES, tmp_path), TOLERANCE[torch.float32])


@pytest.mark.parametrize(("longest", "path"), [(32, "decoder"), (128, "plain")])
def test_positions_that_depend_on_the_longest_example(longest: int, path: str, tmp_path: Path) -> None:
    """Phi-3's long rotary factors take over for all examples beside one that is beyond the original length."""
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    config = transformers.Phi3Config(
        **SMALL, original_max_position_embeddings=32, rope_parameters=rope | {"original_max_position_embeddings": 32}
    )
    base, spec = save(config, tmp_path / "base"), dataclasses.replace(resolved(), max_length=longest)
    made = network(base, spec, plan(torch.float32))
    assert made.path == path
    rows = EXAMPLES if path == "plain" else [row for row in EXAMPLES if len(row) <= longest]
    assert_equal(step(made, rows), reference(base, made, spec, rows, tmp_path), TOLERANCE[torch.float32])


def test_the_base_models_own_dropout_stays_off(tmp_path: Path) -> None:
    """OPT has dropout by default, as a number of each layer; recomputing must not switch it on, nor leave anything behind."""
    config = transformers.OPTConfig(
        vocab_size=128, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128,
        word_embed_proj_dim=32, dropout=0.3,
    )  # fmt: skip
    base, spec = save(config, tmp_path / "base"), resolved()
    made = network(base, spec, plan(torch.float32, path="modules"))
    expected = reference(base, made, spec, EXAMPLES, tmp_path)
    memory.estimates(made)
    for made.recompute in (False, True, False):
        assert_equal(step(made, EXAMPLES), expected, TOLERANCE[torch.float32])
    assert {type(module) for module in made.model.modules() if module.training} <= {lora.LoraLinear}
    assert not made.model.get_input_embeddings()._forward_hooks  # type: ignore[operator]


def test_a_path_that_computes_something_else_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check at load: a family's new feature that the fast path knows nothing of, here norms behind the blocks."""
    base = save(FAST["gemma2"], tmp_path / "base")
    read = decoder._layer
    monkeypatch.setattr(decoder, "_layer", lambda *arguments: dataclasses.replace(read(*arguments), mlp_out_norm=None))
    made = network(base, resolved(), plan(torch.float32))
    assert made.path == "modules" and "does not compute what this model does" in str(made.notice)


def test_a_head_we_do_not_know_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save(FAST["llama"], tmp_path / "base")
    original = transformers.LlamaForCausalLM.forward

    def scaled(self: Any, *arguments: Any, **named: Any) -> Any:
        output = original(self, *arguments, **named)
        output.logits = output.logits * 2
        return output

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", scaled)
    with pytest.raises(InvalidRequest, match="its output is not its last hidden state times its output embeddings"):
        network(base, resolved(), plan(torch.float32))


@pytest.mark.parametrize("config", [
    transformers.BertConfig(vocab_size=128, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64),
    transformers.RobertaConfig(vocab_size=128, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64),
    transformers.DistilBertConfig(vocab_size=128, dim=32, n_layers=2, n_heads=4, hidden_dim=64),
], ids=lambda config: config.model_type)  # fmt: skip
def test_encoders_pack_too(config: transformers.PretrainedConfig) -> None:
    """Bidirectional attention within each example, none between them."""
    torch.manual_seed(0)
    plain = transformers.AutoModel.from_config(config, attn_implementation="eager").double().eval()
    rows = [example.ids_T for example in EXAMPLES]
    packed = packing.pack(rows, share=False)
    first = plain.embeddings.padding_idx + 1 if config.model_type == "roberta" else 0  # where RoBERTa's positions begin
    with torch.no_grad():
        expected = torch.cat([plain(input_ids=torch.from_numpy(row)[None]).last_hidden_state[0] for row in rows])
        modules.install(plain)
        ids, positions = torch.from_numpy(packed.ids_T), torch.from_numpy(packed.position_T)
        found = modules.hidden(plain, ids, positions + first, packed.layout, selection.by_name("torch"))
    assert float((found - expected).norm() / expected.norm()) < 1e-6
