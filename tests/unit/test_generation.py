"""Many generations at once: each one's numbers are those of the model's plain forward of its text alone, whatever runs beside it."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AttentionInterface

from tests.unit.test_engine import Heard, make_adapter, run, submit, tiny_llama
from tunesmith.errors import TunesmithError
from tunesmith.inference import attention, engine
from tunesmith.inference.requests import Sampling

SMALL: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 640, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "initializer_range": 0.3,
}  # fmt: skip
HEADS: dict[str, Any] = {"vocab_size": 128, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3}
MOE: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
#: Families that compute many sequences in one row.
TOGETHER: dict[str, transformers.PretrainedConfig] = {
    "llama": transformers.LlamaConfig(**SMALL),
    "qwen2": transformers.Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=6, max_window_layers=1),
    "qwen3": transformers.Qwen3Config(**SMALL, head_dim=16),
    "mistral": transformers.MistralConfig(**SMALL, sliding_window=6),
    "gemma2": transformers.Gemma2Config(
        **SMALL, head_dim=8, final_logit_softcapping=5.0, attn_logit_softcapping=2.0, sliding_window=6, query_pre_attn_scalar=24
    ),
    "gemma3": transformers.Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=6, layer_types=["sliding_attention", "full_attention"]),
    "phi3": transformers.Phi3Config(**SMALL, sliding_window=100),
    "gpt_neox": transformers.GPTNeoXConfig(
        **HEADS, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=640
    ),
    "gpt2": transformers.GPT2Config(**HEADS, n_embd=32, n_layer=2, n_head=4, n_positions=640),
    "granite": transformers.GraniteConfig(**SMALL, logits_scaling=3.0),
    "olmo3": transformers.Olmo3Config(**SMALL, sliding_window=6, layer_types=["sliding_attention", "full_attention"]),
    "mixtral": transformers.MixtralConfig(**SMALL, **MOE),
}
#: Families that do not, and why.
APART: dict[str, tuple[transformers.PretrainedConfig, str]] = {
    "bloom": (transformers.BloomConfig(**HEADS, hidden_size=32, n_layer=2, n_head=4), "cannot be exchanged"),
    "lfm2": (transformers.Lfm2Config(**SMALL, layer_types=["conv", "full_attention"]), "1 of its 2 layers attend"),
    "gpt_oss": (transformers.GptOssConfig(**SMALL, **MOE, head_dim=8), "s_aux"),
    "longrope": (
        transformers.Phi3Config(
            **SMALL,
            rope_parameters={
                "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
                "original_max_position_embeddings": 32,
            },
        ),
        "longest sequence",
    ),
}  # fmt: skip
SINGLE_PRECISION = ("mixtral", "gpt_oss")  # torch's grouped multiplications know no float64
LOGPROBS = Sampling(temperature=0, max_tokens=12, top_logprobs=0)


def random_model(family: str) -> Any:
    """Return a random model whose norms and biases are not the ones and zeros they begin with."""
    torch.manual_seed(0)
    config = TOGETHER[family] if family in TOGETHER else APART[family][0]
    model = transformers.AutoModelForCausalLM.from_config(config).to(torch.float32 if family in SINGLE_PRECISION else torch.float64).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter += torch.randn_like(parameter) * 0.3
    return model


def tokens(length: int, seed: int = 0) -> list[int]:
    return [int(id) for id in np.random.default_rng([length, seed]).integers(3, 128, length)]


def finish(machine: engine.Engine) -> None:
    while machine.step():
        pass


def assert_plain(model: Any, prompt: Sequence[int], heard: Heard, rel: float = 1e-9) -> None:
    """Assert that the tokens are the likeliest, and their log-probabilities the plain forward's, of one text without a cache."""
    assert heard.error is None and heard.ids()
    with torch.inference_mode():
        logits_TV = model(input_ids=torch.tensor([[*prompt, *heard.ids()]]), use_cache=False).logits[0]
    logprobs_TV = torch.log_softmax(logits_TV, dim=-1)[len(prompt) - 1 : -1]
    assert logprobs_TV.argmax(-1).tolist() == heard.ids()
    expected = logprobs_TV.gather(1, torch.tensor(heard.ids())[:, None])[:, 0].tolist()
    assert [token.logprob for token in heard.tokens[0]] == pytest.approx(expected, rel=rel, abs=rel)


def tolerance(family: str) -> float:
    # The attention that transformers computes Gemma 2 and Bloom with weighs in float32 whatever the model's type.
    return 1e-9 if family not in (*SINGLE_PRECISION, "gemma2", "bloom") else 1e-4


@pytest.mark.parametrize("family", [*TOGETHER, *APART])
def test_generations_of_all_lengths_beside_each_other_are_each_the_plain_forward(family: str) -> None:
    model = random_model(family)
    machine = engine.Engine(model)
    assert machine.manner.startswith("all requests are computed together") == (family in TOGETHER)
    # Lengths around the borders of shelves, windows and pieces; the later ones arrive while the first are written.
    lengths = [1, 2, 6, 7, 20, 59, 64, 120, 250, 300]
    prompts = [tokens(length) for length in lengths]
    heard = []
    for number, prompt in enumerate(prompts):
        heard.append(submit(machine, prompt, LOGPROBS, prompt_logprobs=number % 3 == 0)[0])
        if number % 2:
            machine.step()
    finish(machine)
    for number, (prompt, own) in enumerate(zip(prompts, heard, strict=True)):
        assert_plain(model, prompt, own, tolerance(family))
        assert own.prompt_tokens is not None and len(own.prompt_tokens) == (len(prompt) if number % 3 == 0 else 0)


@pytest.mark.parametrize("family", ["llama", "mistral", "phi3", "gemma2"])
def test_long_texts_are_cut_where_nobody_sees_it(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of attention and pieces of prompts as they are in texts of thousands of tokens."""
    monkeypatch.setattr(attention, "_BLOCK", 64)
    monkeypatch.setattr(attention, "_MOST_SCORES", 1)
    monkeypatch.setattr(engine, "_FAR", 50)
    model = random_model(family)
    machine = engine.Engine(model)
    passes = count_rows(model)
    prompts = [tokens(length) for length in (30, 200, 500)]
    heard = [submit(machine, prompt, LOGPROBS)[0] for prompt in prompts]
    finish(machine)
    pieces = [num_rows for num_rows in passes if num_rows > len(prompts)]
    assert pieces[0] == 30 + 200 + 26 and pieces[-2] < 40
    for prompt, own in zip(prompts, heard, strict=True):
        assert_plain(model, prompt, own, tolerance(family))


@pytest.mark.parametrize("family", APART)
def test_a_model_that_cannot_compute_many_at_once_says_why(family: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        machine = engine.Engine(random_model(family))
    assert APART[family][1] in machine.manner
    assert machine.manner in caplog.text


def test_transformers_finds_attention_and_no_mask_in_its_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where this fails, a new transformers has changed its registry: answers stay right, but are computed one after the other."""
    assert AttentionInterface()[attention.NAME] is attention._attend
    assert engine.Engine(tiny_llama()).manner == "all requests are computed together"
    monkeypatch.delitem(AttentionInterface._global_mapping, attention.NAME)
    model = tiny_llama()
    machine = engine.Engine(model)
    assert attention.NAME in machine.manner
    assert_plain(model, [5, 6, 7], run(machine, [5, 6, 7], LOGPROBS))


def test_wrong_attention_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = attention._attend

    def twice_as_sharp(*arguments: Any, scaling: float, **more: Any) -> Any:
        return right(*arguments, scaling=2 * scaling, **more)

    monkeypatch.setitem(AttentionInterface._global_mapping, attention.NAME, twice_as_sharp)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        assert "other numbers" in engine.Engine(tiny_llama().to(dtype)).manner
    monkeypatch.undo()
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        assert engine.Engine(tiny_llama().to(dtype)).manner == "all requests are computed together"


def test_a_window_that_attention_is_not_told_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = attention._attend

    def far_sighted(*arguments: Any, sliding_window: int | None, **more: Any) -> Any:
        return right(*arguments, sliding_window=None, **more)

    monkeypatch.setitem(AttentionInterface._global_mapping, attention.NAME, far_sighted)
    model = random_model("mistral")
    model.config.sliding_window = 4096  # far beyond what is tried
    assert "other numbers" in engine.Engine(model).manner
    assert model.config.sliding_window == 4096


def test_the_model_stays_as_it_was() -> None:
    model = random_model("gemma3")
    before = model.config._attn_implementation, [module.sliding_window for module in model.modules() if hasattr(module, "sliding_window")]
    machine = engine.Engine(model)
    run(machine, [3, 4, 5])
    after = model.config._attn_implementation, [module.sliding_window for module in model.modules() if hasattr(module, "sliding_window")]
    assert after == before
    with pytest.raises(RuntimeError, match="within an engine's step only"), attention.implementation([model.config], attention.NAME):
        model(input_ids=torch.tensor([[1, 2]]))


# --- company -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama() -> Any:
    return random_model("llama")


def test_what_others_ask_reaches_no_answer(llama: Any) -> None:
    """The same lengths, other words: not one bit may move."""
    heard = []
    for seed in (1, 2):
        machine = engine.Engine(llama)
        own, _ = submit(machine, tokens(30), Sampling(temperature=0, max_tokens=60, top_logprobs=2), prompt_logprobs=True)
        for length in (5, 28, 31, 90, 300):
            submit(machine, tokens(length, seed), Sampling(temperature=0, max_tokens=length))
        finish(machine)
        heard.append(own)
    assert heard[0].tokens == heard[1].tokens and heard[0].prompt_tokens == heard[1].prompt_tokens


def test_a_cancelled_generation_leaves_the_others_as_they_are(llama: Any) -> None:
    machine = engine.Engine(llama)
    prompts = [tokens(length) for length in (20, 40, 60, 61)]
    heard = [submit(machine, prompt, Sampling(temperature=0, max_tokens=30, top_logprobs=0)) for prompt in prompts]
    for number in (0, 2):
        for _ in range(5):
            machine.step()
        heard[number][1].cancelled = True
    finish(machine)
    for number in (1, 3):
        assert len(heard[number][0].ids()) == 30
        assert_plain(llama, prompts[number], heard[number][0])
    assert not heard[0][0].reasons and not heard[2][0].reasons


def test_nonsense_leaves_nothing_behind(tmp_path: Path, llama: Any) -> None:
    """An adapter of NaN beside others, and in the places that it leaves."""
    network = tiny_llama()
    machine = engine.Engine(network)
    directory = make_adapter(tmp_path)
    tensors = load_file(directory / "adapter_model.safetensors")
    broken = {name: tensor * (float("nan") if "layers.1.mlp" in name else 0) for name, tensor in tensors.items()}
    save_file(broken, directory / "adapter_model.safetensors")
    nonsense = machine.adapters.load(directory)
    for _ in range(3):
        good = [submit(machine, tokens(length), LOGPROBS)[0] for length in (10, 11)]
        bad = [submit(machine, tokens(length), LOGPROBS, adapter=nonsense)[0] for length in (10, 30)]
        good.append(submit(machine, tokens(12), LOGPROBS)[0])
        finish(machine)
        assert all(own.error is not None and "NaN" in own.error.message and not own.tokens for own in bad)
        for length, own in zip((10, 11, 12), good, strict=True):
            assert_plain(network, tokens(length), own)
    assert not any(strip.made_with(nonsense) for strip in machine._runner._prefixes._strips)


class Deaf(Heard):
    """A listener that gives up at its third token."""

    def token(self, choice: int, token: engine.Token) -> bool:
        if len(self.ids(choice)) == 2:
            raise TunesmithError("Heard enough.")
        return super().token(choice, token)


def test_a_generation_that_fails_in_mid_answer_leaves_its_place(llama: Any) -> None:
    machine = engine.Engine(llama)
    good = [submit(machine, tokens(length), LOGPROBS)[0] for length in (10, 11)]
    deaf = Deaf()
    machine.submit(engine.Generation(tokens(12), LOGPROBS, deaf, n=3))
    good.append(submit(machine, tokens(13), LOGPROBS)[0])
    finish(machine)
    assert deaf.error is not None and deaf.error.message == "Heard enough." and len(deaf.ids()) == 2 and not deaf.reasons
    for length, own in zip((10, 11, 13), good, strict=True):
        assert_plain(llama, tokens(length), own)
    assert not any(shelf.seats for shelf in machine._runner._shelves._shelves.values())


def test_base_and_adapters_are_computed_in_one_pass(tmp_path_factory: pytest.TempPathFactory) -> None:
    network = tiny_llama()
    machine = engine.Engine(network)
    directories = [make_adapter(tmp_path_factory.mktemp("adapter"), r=rank, seed=rank) for rank in (2, 4)]
    loaded = [None, *map(machine.adapters.load, directories)]
    passes = count_rows(network)
    heard = [submit(machine, tokens(length), LOGPROBS, adapter=loaded[length % 3])[0] for length in range(20, 29)]
    finish(machine)
    assert len(passes) <= 14, "one for each token, and at most two for the prompts"
    references = [network, *(peft.PeftModel.from_pretrained(tiny_llama(), directory).double().eval() for directory in directories)]
    for length, own in zip(range(20, 29), heard, strict=True):
        assert_plain(references[length % 3], tokens(length), own)
    assert len({tuple(own.ids()) for own in heard}) == 9


def count_rows(model: Any) -> list[int]:
    """Return a list that grows by the number of tokens of every forward pass."""
    passes: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: passes.append(output.shape[1]))
    return passes


# --- the schedule ------------------------------------------------------------------------------------------------------


def test_a_long_prompt_delays_no_answer(llama: Any) -> None:
    machine = engine.Engine(llama)
    passes = count_rows(llama)
    answer, _ = submit(machine, tokens(5), Sampling(temperature=0, max_tokens=100))
    machine.step()
    long, _ = submit(machine, tokens(600), Sampling(temperature=0, max_tokens=2))
    machine.step()
    short, _ = submit(machine, tokens(30), Sampling(temperature=0, max_tokens=2))
    while not long.tokens:
        before = len(answer.ids())
        machine.step()
        assert len(answer.ids()) == before + 1
        assert short.tokens, "its prompt goes first"
    assert max(passes) <= engine._PROMPT_PIECE + 3
    assert sum(passes) < 5 + 600 + 30 + len(passes) * 3


def test_many_choices_of_one_token_do_not_come_all_at_once(llama: Any) -> None:
    machine = engine.Engine(llama)
    other, _ = submit(machine, tokens(5), Sampling(temperature=0, max_tokens=100))
    many, _ = submit(machine, tokens(5, 1), Sampling(seed=1, max_tokens=1), n=30)
    for _ in range(3):
        machine.step()
    assert len(many.reasons) == 3 * engine._MAX_CHOICES and len(other.ids()) == 3
    finish(machine)
    assert many.reasons == dict.fromkeys(range(30), "length") and len(other.ids()) == 100


def test_short_prompts_do_not_starve_a_long_one(llama: Any) -> None:
    machine = engine.Engine(llama)
    long, _ = submit(machine, tokens(600), Sampling(max_tokens=1))
    steps = 0
    while not long.tokens:
        for seed in range(2):
            submit(machine, tokens(200, 100 + 2 * steps + seed), Sampling(max_tokens=1))
        machine.step()
        steps += 1
    assert steps <= -(-600 // engine._OLDEST_PIECE)


# --- beginnings that come again ----------------------------------------------------------------------------------------


@pytest.fixture
def counted() -> Iterator[tuple[engine.Engine, Any, list[int]]]:
    model = random_model("llama")
    yield engine.Engine(model), model, count_rows(model)


def test_a_chats_next_turn_reads_only_what_is_new(counted: tuple[engine.Engine, Any, list[int]]) -> None:
    machine, model, passes = counted
    first = run(machine, tokens(50), LOGPROBS)
    passes.clear()
    turn = [*tokens(50), *first.ids(), *tokens(20, 1)]
    heard = run(machine, turn, LOGPROBS)
    # Of the first answer's last token nothing was computed; the new one's last needs no computing either.
    assert sum(passes) == 1 + 20 + 11
    assert_plain(model, turn, heard)
    passes.clear()
    other = [*tokens(50), *tokens(30, 2)]
    heard = run(machine, other, LOGPROBS)
    assert sum(passes) == 30 + 11
    assert_plain(model, other, heard)
    passes.clear()
    assert run(machine, turn, LOGPROBS, prompt_logprobs=True).prompt_tokens
    assert sum(passes) == len(turn) + 11, "the numbers of all its tokens are wanted"


def test_the_same_prompt_again_is_read_again_at_its_last_token_only(counted: tuple[engine.Engine, Any, list[int]]) -> None:
    machine, model, passes = counted
    heard = [run(machine, tokens(40), LOGPROBS) for _ in range(2)]
    assert passes[0] == 40 and passes[12] == 1
    for own in heard:
        assert_plain(model, tokens(40), own)


def test_requests_at_once_share_their_beginning(counted: tuple[engine.Engine, Any, list[int]]) -> None:
    machine, model, passes = counted
    system = tokens(100)
    prompts = [[*system, *tokens(10 + number, number)] for number in range(5)]
    heard = [submit(machine, prompt, LOGPROBS)[0] for prompt in prompts]
    finish(machine)
    assert sum(passes) == 100 + sum(10 + number for number in range(5)) + 5 * 11
    for prompt, own in zip(prompts, heard, strict=True):
        assert_plain(model, prompt, own)


def test_who_waits_for_anothers_beginning_goes_on_without_it(counted: tuple[engine.Engine, Any, list[int]]) -> None:
    machine, model, _ = counted
    leaving = submit(machine, tokens(600), LOGPROBS)[1]
    prompt = [*tokens(600)[:590], *tokens(5)]
    waiting, _ = submit(machine, prompt, LOGPROBS)
    machine.step()
    assert not waiting.tokens
    leaving.cancelled = True
    finish(machine)
    assert_plain(model, prompt, waiting)


def test_choices_share_their_prompt(counted: tuple[engine.Engine, Any, list[int]]) -> None:
    machine, _, passes = counted
    heard = run(machine, tokens(200), Sampling(seed=1, max_tokens=3), n=9)
    assert sum(passes) == 200 + 9 * 2 and len(heard.reasons) == 9


def test_few_tokens_are_not_worth_sharing(counted: tuple[engine.Engine, Any, list[int]]) -> None:
    machine, _, passes = counted
    run(machine, tokens(30), Sampling(max_tokens=1))
    for same, computed in ((15, 40), (16, 24)):
        passes.clear()
        run(machine, [*tokens(30)[:same], *[127 - same] * (40 - same)], Sampling(max_tokens=1))
        assert sum(passes) == computed


def test_a_beginning_is_never_anothers(tmp_path: Path) -> None:
    model = tiny_llama()
    machine = engine.Engine(model)
    make_adapter(tmp_path)
    loaded = [None, machine.adapters.load(tmp_path), machine.adapters.load(tmp_path)]
    passes = count_rows(model)
    heard = [run(machine, tokens(40), LOGPROBS, adapter=adapter) for adapter in loaded]
    assert sum(passes) == 3 * (40 + 11)
    assert_plain(model, tokens(40), heard[0])
    assert heard[1].tokens == heard[2].tokens != heard[0].tokens


def test_what_is_kept_is_bounded_and_the_oldest_goes_first(monkeypatch: pytest.MonkeyPatch, counted: tuple[Any, Any, list[int]]) -> None:
    monkeypatch.setattr(engine, "_KEPT_TOKENS", 100)
    machine, _, passes = counted
    kept = machine._runner._prefixes
    first, second, third = (tokens(40, seed) for seed in (1, 2, 3))

    def computed(prompt: list[int]) -> int:
        passes.clear()
        run(machine, prompt, Sampling(max_tokens=1))
        return sum(passes)

    assert [computed(prompt) for prompt in (first, second, first, third)] == [40, 40, 1, 40]
    assert kept.num_tokens <= 100
    assert [computed(prompt) for prompt in (first, second)] == [1, 40]
    assert computed(tokens(200)) == 200 and kept.num_tokens <= 100


def test_what_running_requests_hold_is_not_kept_beside(monkeypatch: pytest.MonkeyPatch, counted: tuple[Any, Any, list[int]]) -> None:
    machine, _, _ = counted
    run(machine, tokens(100), Sampling(max_tokens=1))
    monkeypatch.setattr(engine, "_CACHED_TOKENS", 300)
    submit(machine, tokens(50, 1), Sampling(max_tokens=100))
    machine.step()
    assert machine._runner._prefixes.num_tokens == 150
    monkeypatch.setattr(engine, "_CACHED_TOKENS", 140)
    machine.step()
    assert machine._runner._prefixes.num_tokens <= 90
    finish(machine)


def test_an_unloaded_adapters_beginnings_go_with_it(tmp_path: Path) -> None:
    machine = engine.Engine(tiny_llama())
    loaded = machine.adapters.load(make_adapter(tmp_path))
    heard, generation = submit(machine, tokens(40), LOGPROBS, adapter=loaded)
    finish(machine)
    assert machine._runner._prefixes.num_tokens > 0 and heard.tokens
    del loaded, generation
    gc.collect()
    machine.step()
    assert machine._runner._prefixes.num_tokens == 0
