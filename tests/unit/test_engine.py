"""The engine, the adapters and the text layer on a tiny random Llama, against transformers and PEFT."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tunesmith.errors import InvalidRequest, TunesmithError
from tunesmith.inference import chat, engine, requests, text, wire
from tunesmith.inference.requests import Sampling

GREEDY = Sampling(temperature=0, max_tokens=20)
PROMPT = [10, 20, 30, 40, 50]
USER = {"role": "user", "content": "Hi"}


def tiny_llama(seed: int = 0, hidden: int = 32) -> Any:
    """Return a Llama whose weights are large enough that its answers vary; float64, so that equal can mean equal."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=260, hidden_size=hidden, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=640, initializer_range=0.5, bos_token_id=257, eos_token_id=258, pad_token_id=258,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).double().eval()


def byte_tokenizer() -> Any:
    """Return a tokenizer with one token per byte and four control tokens."""
    letters = sorted(text._BYTE_OF, key=text._BYTE_OF.__getitem__)
    tokenizer = Tokenizer(models.BPE({letter: byte for byte, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<unk>", "<bos>", "<eos>", "<turn>"])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<bos>", eos_token="<eos>", additional_special_tokens=["<turn>"]
    )


class Heard:
    """A listener that writes everything down."""

    def __init__(self, stop_after: int = 10**9) -> None:
        self.tokens: dict[int, list[engine.Token]] = {}
        self.reasons: dict[int, str] = {}
        self.prompt_tokens: Sequence[engine.Token] | None = None
        self.error: TunesmithError | None = None
        self.stop_after = stop_after

    def prompt(self, tokens: Sequence[engine.Token]) -> None:
        self.prompt_tokens = list(tokens)

    def token(self, choice: int, token: engine.Token) -> bool:
        self.tokens.setdefault(choice, []).append(token)
        return len(self.tokens[choice]) < self.stop_after

    def finished(self, choice: int, reason: engine.Reason) -> None:
        self.reasons[choice] = reason

    def failed(self, error: TunesmithError) -> None:
        self.error = error

    def ids(self, choice: int = 0) -> list[int]:
        return [token.id for token in self.tokens.get(choice, [])]


def submit(machine: engine.Engine, prompt: Sequence[int] = PROMPT, sampling: Sampling = GREEDY, **more: Any) -> tuple[Heard, Any]:
    heard = Heard()
    generation = engine.Generation(prompt, sampling, heard, **more)
    machine.check(prompt, sampling, "prompt")
    machine.submit(generation)
    return heard, generation


def run(machine: engine.Engine, prompt: Sequence[int] = PROMPT, sampling: Sampling = GREEDY, **more: Any) -> Heard:
    heard, _ = submit(machine, prompt, sampling, **more)
    while machine.step():
        pass
    return heard


@pytest.fixture(scope="module")
def network() -> Any:
    return tiny_llama()


@pytest.fixture(params=["together", "one after the other"])
def machine(network: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> engine.Engine:
    """Return an engine that computes its requests in one of the two ways there are."""
    monkeypatch.setattr(network, "_supports_attention_backend", request.param == "together")
    machine = engine.Engine(network)
    assert request.param in machine.manner
    return machine


def reference_logprobs(network: Any, ids: Sequence[int]) -> torch.Tensor:
    with torch.inference_mode():
        return torch.log_softmax(network(input_ids=torch.tensor([ids])).logits[0], dim=-1)


# --- the numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 5, 64, 255, 256, 257, 600])
def test_greedy_tokens_and_logprobs_are_those_of_one_plain_forward(machine: engine.Engine, network: Any, length: int) -> None:
    prompt = np.random.default_rng(length).integers(0, 256, length).tolist()
    heard = run(machine, prompt, Sampling(temperature=0, max_tokens=20, top_logprobs=3), prompt_logprobs=True)
    ids = heard.ids()
    assert len(ids) == 20
    logprobs_TV = reference_logprobs(network, prompt + ids)
    assert logprobs_TV[length - 1 : -1].argmax(-1).tolist() == ids
    for position, token in enumerate([*heard.prompt_tokens, *heard.tokens[0]]):
        if position == 0:
            assert token.logprob is None
            continue
        expected_V = logprobs_TV[position - 1]
        assert token.logprob == pytest.approx(float(expected_V[token.id]), rel=1e-9)
        values, top = expected_V.topk(3)
        assert [logprob for _, logprob in token.top] == pytest.approx(values.tolist(), rel=1e-9)
        assert [id for id, _ in token.top] == top.tolist()


def test_each_choice_goes_on_from_the_prompt_alone(machine: engine.Engine, network: Any) -> None:
    heard = run(machine, sampling=Sampling(seed=1, max_tokens=20, top_logprobs=0), n=6)
    for choice in range(6):
        ids = heard.ids(choice)
        logprobs_TV = reference_logprobs(network, PROMPT + ids)[len(PROMPT) - 1 : -1]
        expected = [float(logprobs_V[id]) for logprobs_V, id in zip(logprobs_TV, ids, strict=True)]
        assert [token.logprob for token in heard.tokens[choice]] == pytest.approx(expected, rel=1e-9)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapter"))


def make_adapter(directory: Path, hidden: int = 32, seed: int = 7, **config: Any) -> Path:
    """Write an adapter with PEFT whose B is not zero."""
    torch.manual_seed(seed)
    settings_ = {"r": 4, "lora_alpha": 16, "target_modules": "all-linear", "lora_dropout": 0.1, "task_type": "CAUSAL_LM"} | config
    model = peft.get_peft_model(tiny_llama(hidden=hidden), peft.LoraConfig(**settings_))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("config", [{}, {"use_rslora": True}, {"target_modules": ["q_proj", "down_proj"], "r": 3}])
def test_an_adapter_computes_what_peft_computes(tmp_path: Path, config: dict[str, Any]) -> None:
    directory = make_adapter(tmp_path, **config)
    machine = engine.Engine(tiny_llama())
    base = run(machine).ids()
    loaded = machine.adapters.load(directory)
    heard = run(machine, sampling=Sampling(temperature=0, max_tokens=20, top_logprobs=0), adapter=loaded)
    reference = peft.PeftModel.from_pretrained(tiny_llama(), directory).double().eval()
    logprobs_TV = reference_logprobs(reference, PROMPT + heard.ids())[len(PROMPT) - 1 : -1]
    assert logprobs_TV.argmax(-1).tolist() == heard.ids()
    expected = [float(logprobs_V[id]) for logprobs_V, id in zip(logprobs_TV, heard.ids(), strict=True)]
    assert [token.logprob for token in heard.tokens[0]] == pytest.approx(expected, rel=1e-9)
    assert heard.ids() != base, "the adapter must make a difference, or this test shows nothing"
    assert run(machine).ids() == base


def test_base_and_adapters_answer_side_by_side(adapter: Path, network: Any) -> None:
    machine = engine.Engine(network)
    loaded = machine.adapters.load(adapter)
    alone = run(machine).ids(), run(machine, adapter=loaded).ids()
    first, second = submit(machine)[0], submit(machine, adapter=loaded)[0]
    while machine.step():
        pass
    assert (first.ids(), second.ids()) == alone


def damage(directory: Path, what: str) -> None:
    weights, config = directory / "adapter_model.safetensors", directory / "adapter_config.json"
    tensors, settings_ = load_file(weights), json.loads(config.read_text())
    key = next(name for name in tensors if "q_proj.lora_A" in name)
    if what == "shape":
        tensors[key] = torch.zeros(4, 33)
    elif what == "missing":
        del tensors[key]
    elif what == "unknown":
        tensors[key.replace("q_proj", "r_proj")] = tensors[key].clone()
    elif what == "empty":
        tensors = {}
    elif what == "rank":
        settings_["r"] = 5
    else:
        settings_ |= {"dora": {"use_dora": True}, "pattern": {"rank_pattern": {"q_proj": 2}}, "type": {"peft_type": "IA3"}}[what]
    save_file(tensors, weights)
    config.write_text(json.dumps(settings_))


@pytest.mark.parametrize("what", ["shape", "missing", "unknown", "empty", "rank", "dora", "pattern", "type"])
def test_an_adapter_that_does_not_fit_is_refused(tmp_path: Path, machine: engine.Engine, what: str) -> None:
    directory = make_adapter(tmp_path)
    machine.adapters.load(directory)
    damage(directory, what)
    with pytest.raises(InvalidRequest, match=directory.name):
        machine.adapters.load(directory)


def test_a_damaged_adapter_file_is_refused(tmp_path: Path, machine: engine.Engine) -> None:
    directory = make_adapter(tmp_path)
    weights = directory / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InvalidRequest, match="cannot be read"):
        machine.adapters.load(directory)
    weights.unlink()
    with pytest.raises(InvalidRequest, match="cannot be read"):
        machine.adapters.load(directory)


# --- drawing tokens ----------------------------------------------------------------------------------------------------

LOGITS_V = torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0])


def draws(sampling: Sampling, count: int = 4000, counts: Counter[int] | None = None) -> np.ndarray:
    random = np.random.default_rng(1)
    drawn = [engine.draw(LOGITS_V, sampling, counts or Counter(), random) for _ in range(count)]
    return np.bincount(drawn, minlength=5) / count


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_from_the_distribution(temperature: float) -> None:
    expected = torch.softmax(LOGITS_V / temperature, -1).numpy()
    assert draws(Sampling(temperature=temperature)) == pytest.approx(expected, abs=0.03)


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    probs = torch.softmax(LOGITS_V, -1).numpy()  # 0.64 0.23 0.09 0.03 0.01
    assert draws(Sampling(top_p=0.8)) == pytest.approx([*(probs[:2] / probs[:2].sum()), 0, 0, 0], abs=0.03)
    assert draws(Sampling(top_p=0.5), 50).tolist() == [1, 0, 0, 0, 0]
    assert draws(Sampling(top_p=0.0), 50).tolist() == [1, 0, 0, 0, 0]


def test_bias_and_penalties_move_the_choice() -> None:
    greedy = {"temperature": 0.0}
    assert draws(Sampling(**greedy), 1).argmax() == 0
    assert draws(Sampling(**greedy, logit_bias={0: -100}), 1).argmax() == 1
    assert draws(Sampling(**greedy, logit_bias={4: 100}), 1).argmax() == 4
    assert draws(Sampling(**greedy, presence_penalty=1.5), 1, Counter({0: 1})).argmax() == 1
    assert draws(Sampling(**greedy, frequency_penalty=0.4), 1, Counter({0: 2})).argmax() == 0
    assert draws(Sampling(**greedy, frequency_penalty=0.4), 1, Counter({0: 3})).argmax() == 1
    assert LOGITS_V.tolist() == [2.0, 1.0, 0.0, -1.0, -2.0], "the model's own numbers stay as they are"


@pytest.mark.parametrize("machine", ["together"], indirect=True)  # the other way takes ten times as long
def test_a_seed_draws_the_same_alone_and_in_company(machine: engine.Engine) -> None:
    sampling = Sampling(seed=5, max_tokens=30)
    alone = run(machine, sampling=sampling, n=6)
    answers = [alone.ids(choice) for choice in range(6)]
    assert len({tuple(ids) for ids in answers}) == 6
    others = [submit(machine, [choice + 1] * 300, Sampling(max_tokens=40)) for choice in range(3)]
    machine.step()
    company = run(machine, sampling=sampling, n=6)
    assert [company.ids(choice) for choice in range(6)] == answers
    assert all(len(heard.ids()) == 40 for heard, _ in others)
    assert run(machine, sampling=Sampling(seed=6, max_tokens=30)).ids() != answers[0]
    assert run(machine, sampling=Sampling(seed=-5, max_tokens=30)).ids() == run(machine, sampling=Sampling(seed=-5, max_tokens=30)).ids()


# --- the schedule ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", ["together"], indirect=True)  # the other way takes ten times as long
def test_a_short_question_is_answered_while_long_ones_go_on(machine: engine.Engine) -> None:
    long, _ = submit(machine, sampling=Sampling(seed=1, max_tokens=300))
    many, _ = submit(machine, sampling=Sampling(seed=1, max_tokens=8), n=128)
    for _ in range(10):
        machine.step()
    short, _ = submit(machine, sampling=Sampling(temperature=0, max_tokens=5))
    for _ in range(7):
        machine.step()
    assert short.reasons == {0: "length"}
    assert not long.reasons and len(many.reasons) < 128
    while machine.step():
        pass
    assert len(long.ids()) == 300 and len(many.reasons) == 128


def test_ends_are_told_apart(machine: engine.Engine) -> None:
    ids = run(machine).ids()
    assert run(machine).reasons == {0: "length"}
    stopped = run(machine, stop_ids=frozenset({ids[3]}))
    assert (stopped.ids(), stopped.reasons) == (ids[: ids.index(ids[3])], {0: "stop"})
    heard = Heard(stop_after=2)
    machine.submit(engine.Generation(PROMPT, GREEDY, heard))
    while machine.step():
        pass
    assert (heard.ids(), heard.reasons) == (ids[:2], {0: "stop"})
    assert run(machine, sampling=Sampling(max_tokens=0)).reasons == {0: "length"}


def test_an_answer_ends_with_the_context(machine: engine.Engine) -> None:
    heard = run(machine, [1] * 630, Sampling(temperature=0, max_tokens=None))
    assert (len(heard.ids()), heard.reasons) == (10, {0: "length"})
    with pytest.raises(InvalidRequest) as caught:
        machine.check([1] * 640, GREEDY, "messages")
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


def test_ids_outside_the_vocabulary_are_refused(machine: engine.Engine) -> None:
    with pytest.raises(InvalidRequest, match="260"):
        machine.check([1, 260], GREEDY, "prompt")
    with pytest.raises(InvalidRequest) as caught:
        machine.check([1], Sampling(logit_bias={999: 1.0}), "prompt")
    assert caught.value.param == "logit_bias"


def test_a_cancelled_generation_says_nothing_more(machine: engine.Engine) -> None:
    heard, generation = submit(machine, sampling=Sampling(max_tokens=400))
    for _ in range(5):
        machine.step()
    generation.cancelled = True
    count = len(heard.ids())
    assert count > 0 and machine.step() is False
    assert (len(heard.ids()), heard.reasons) == (count, {})


def test_a_generation_that_fails_takes_no_other_with_it(tmp_path: Path, network: Any) -> None:
    machine = engine.Engine(network)
    directory = make_adapter(tmp_path)
    tensors = load_file(directory / "adapter_model.safetensors")
    save_file({name: tensor * float("nan") for name, tensor in tensors.items()}, directory / "adapter_model.safetensors")
    good, _ = submit(machine)
    bad = run(machine, adapter=machine.adapters.load(directory))
    assert bad.error is not None and "NaN" in bad.error.message and not bad.reasons
    assert good.reasons == {0: "length"} and good.error is None


class Broken(Heard):
    """A listener with a fault of its own."""

    def token(self, choice: int, token: engine.Token) -> bool:
        raise IndexError("not there")


def test_a_fault_around_one_generation_is_not_the_others_affair(machine: engine.Engine) -> None:
    broken = Broken()
    good, _ = submit(machine)
    machine.submit(engine.Generation(PROMPT, GREEDY, broken))
    while machine.step():
        pass
    assert broken.error is not None and good.reasons == {0: "length"}


def test_a_prompt_without_tokens_is_refused(machine: engine.Engine) -> None:
    with pytest.raises(InvalidRequest, match="no tokens at all"):
        submit(machine, [])


def test_answers_that_may_be_long_are_written_together(machine: engine.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """No request says how long its answer may be; each could fill the context, none does. Beyond what is kept only the oldest goes on."""
    monkeypatch.setattr(engine, "_EXPECTED_TOKENS", 20)
    monkeypatch.setattr(engine, "_CACHED_TOKENS", 8 * (len(PROMPT) + 20))
    heard = [submit(machine, PROMPT, Sampling(temperature=0, max_tokens=None))[0] for _ in range(8)]
    for _ in range(4):
        machine.step()
    assert all(own.ids() for own in heard)
    while machine.step():
        held = sum(map(engine._held_tokens, machine._running))
        assert held <= engine._CACHED_TOKENS + machine.max_length + len(machine._running)
    alone = run(machine, PROMPT, Sampling(temperature=0, max_tokens=None))
    assert all(own.ids() == alone.ids() and own.reasons for own in heard)


# --- text --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(network: Any) -> chat.Model:
    return chat.Model(network, byte_tokenizer())


@settings(deadline=None, max_examples=100)
@given(ids=st.lists(st.integers(0, 259), max_size=30), words=st.text(max_size=10))
def test_pieces_of_text_add_up_to_the_whole(model: chat.Model, ids: list[int], words: str) -> None:
    ids = ids + list(words.encode())
    whole = model.vocabulary.decode(ids)
    detokenizer = text.Detokenizer(model.vocabulary)
    pieces = [detokenizer.push(id) for id in ids]
    assert "".join(pieces) + detokenizer.flush() == whole
    assert b"".join(model.vocabulary.bytes(id) for id in ids if id < 256) == bytes(id for id in ids if id < 256)


def spoken(model: chat.Model, words: str, stops: Sequence[str] = (), *, parse_calls: bool = False) -> tuple[list[text.Piece], bool]:
    answer = text.Answer(model.vocabulary, 0, [], stops, parse_calls=parse_calls)
    pieces = []
    for byte in words.encode():
        pieces.append(answer.push(engine.Token(byte)))
        if answer.stopped:
            break
    return [*filter(None, pieces), answer.finish("stop")], answer.stopped


@pytest.mark.parametrize(
    ("words", "stops", "expected"),
    [
        ("one, two; three", ["; "], "one, two"),
        ("aaab", ["aab"], "a"),
        ("say END", ["ENDE"], "say END"),
        ("a grüne Straße", ["ß"], "a grüne Stra"),
        ("first second", ["second", "first"], ""),
        ("x" * 50, [], "x" * 50),
    ],
)
def test_an_answer_is_cut_at_the_first_stop_text(model: chat.Model, words: str, stops: list[str], expected: str) -> None:
    pieces, stopped = spoken(model, words, stops)
    assert "".join(piece.text for piece in pieces) == expected
    assert stopped == (expected != words)
    tokens = [token.id for piece in pieces for _, token in piece.tokens]
    assert bytes(tokens) == expected.encode()


def test_nothing_that_may_be_a_stop_text_is_shown_early(model: chat.Model) -> None:
    answer = text.Answer(model.vocabulary, 0, [], ["END"], parse_calls=False)
    shown = [piece.text if (piece := answer.push(engine.Token(byte))) else "" for byte in b"an ENERGY"]
    assert shown == ["a", "n", " ", "", "", "EN", "ER", "G", "Y"]


CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'


def test_tool_calls_are_taken_out_of_the_text(model: chat.Model) -> None:
    pieces, _ = spoken(model, "Let me see. " + CALL + "\n" + CALL, parse_calls=True)
    assert "".join(piece.text for piece in pieces) == "Let me see. "
    assert pieces[-1].calls == (("weather", '{"city": "Köln"}'),) * 2
    assert pieces[-1].finish == "tool_calls"


@pytest.mark.parametrize("words", ["a < b", "<tool_cal", "<tool_call>{no json}</tool_call>", '<tool_call>["weather"]</tool_call>'])
def test_what_is_no_tool_call_stays_text(model: chat.Model, words: str) -> None:
    pieces, _ = spoken(model, words, parse_calls=True)
    assert "".join(piece.text for piece in pieces) == words
    assert (pieces[-1].calls, pieces[-1].finish) == ((), "stop")


def test_tool_calls_reach_the_wire_whole_and_streamed(model: chat.Model) -> None:
    asked = requests.parse_chat({"messages": [USER], "tools": [{"type": "function", "function": {"name": "weather"}}]})
    pieces, _ = spoken(model, CALL, parse_calls=asked.parse_calls)
    whole = wire.ChatWire(asked, "m", model.vocabulary, 3).whole(pieces)["choices"][0]
    function = {"name": "weather", "arguments": '{"city": "Köln"}'}
    (call,) = whole["message"]["tool_calls"]
    assert (call["type"], call["function"], whole["message"]["content"], whole["finish_reason"]) == (
        "function",
        function,
        None,
        "tool_calls",
    )
    streaming = wire.ChatWire(asked, "m", model.vocabulary, 3)
    choices = [chunk["choices"][0] for piece in pieces for chunk in streaming.chunks(piece)]
    deltas = [call for choice in choices for call in choice["delta"].get("tool_calls", [])]
    assert [(call["index"], call["function"]) for call in deltas] == [(0, function)]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == "" and choices[-1]["finish_reason"] == "tool_calls"


def test_conversations_end_at_the_templates_end_of_turn(network: Any) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<turn>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    model = chat.Model(network, tokenizer)
    assert model._turn_ends == {258, 259}
    request = requests.parse_chat({"messages": [{"role": "developer", "content": [{"type": "text", "text": "Hi"}]}]})
    assert bytes(model._render(request)[:10]) == b"[system]Hi"


def test_a_base_with_missing_weights_is_refused(network: Any, tmp_path: Path) -> None:
    network.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    assert chat.load(tmp_path).complete("a", max_tokens=2)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidRequest, match=r"1 weights are missing \(model.layers.1.mlp.up_proj.weight\)"):
        chat.load(tmp_path)


def test_a_template_that_refuses_is_the_callers_error(network: Any) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        chat.Model(network, tokenizer).chat([{"role": "user", "content": "Hi"}])


def test_chat_stream_and_complete_agree(model: chat.Model) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    whole = model.chat(messages, seed=3, max_tokens=30)
    assert whole and "".join(model.stream(messages, seed=3, max_tokens=30)) == whole
    first, second = (model.stream(messages, seed=3, max_tokens=30) for _ in range(2))
    mixed = [(next(first, ""), next(second, "")) for _ in range(40)]
    assert ["".join(column) for column in zip(*mixed, strict=True)] == [whole, whole]
    assert model.complete("Hello", temperature=0) == model.complete("Hello", temperature=0, max_tokens=16)
    assert model.complete("", temperature=0)


# --- what may be asked -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("messages", {}),
        ("messages", {"messages": []}),
        ("messages[0]", {"messages": ["Hi"]}),
        ("messages[0].role", {"messages": [{"role": "asistant", "content": "Hi"}]}),
        ("messages[0].content", {"messages": [{"role": "user"}]}),
        ("messages[0].content", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
        ("messages[0].tool_calls", {"messages": [{"role": "assistant", "tool_calls": [{}]}]}),
        ("temperature", {"temperature": 2.1}),
        ("temperature", {"temperature": True}),
        ("temperature", {"temperature": float("nan")}),
        ("top_p", {"top_p": "1"}),
        ("n", {"n": 0}),
        ("n", {"n": 129}),
        ("stop", {"stop": ["a", "b", "c", "d", "e"]}),
        ("stop", {"stop": 5}),
        ("seed", {"seed": 1.5}),
        ("seed", {"seed": 2**63}),
        ("max_tokens", {"max_tokens": 0}),
        ("max_completion_tokens", {"max_completion_tokens": -1}),
        ("top_logprobs", {"top_logprobs": 2}),
        ("top_logprobs", {"logprobs": True, "top_logprobs": 21}),
        ("logprobs", {"logprobs": 5}),
        ("logit_bias", {"logit_bias": {"a": 1}}),
        ("logit_bias", {"logit_bias": {"1": 101}}),
        ("presence_penalty", {"presence_penalty": -3}),
        ("response_format", {"response_format": {"type": "json_object"}}),
        ("tool_choice", {"tool_choice": "required"}),
        ("tools", {"tools": {}}),
        ("tools[0]", {"tools": [{"type": "web_search"}]}),
        ("audio", {"audio": {"voice": "alloy"}}),
        ("modalities", {"modalities": ["text", "audio"]}),
        ("stream", {"stream": "yes"}),
        ("stream_options", {"stream_options": True}),
    ],
)
def test_a_wrong_field_is_named(param: str, body: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        requests.parse("/v1/chat/completions", ({} if param == "messages" else {"messages": [USER]}) | body)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("prompt", {}),
        ("prompt", {"prompt": []}),
        ("prompt", {"prompt": ["a", 1]}),
        ("prompt", {"prompt": [-1]}),
        ("logprobs", {"prompt": "a", "logprobs": 21}),
        ("best_of", {"prompt": "a", "best_of": 3}),
        ("suffix", {"prompt": "a", "suffix": "b"}),
    ],
)
def test_a_wrong_field_of_a_completion_is_named(param: str, body: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        requests.parse("/v1/completions", body)
    assert caught.value.param == param


def test_defaults_are_openais() -> None:
    asked = requests.parse_chat({"messages": [USER], "temperature": None, "top_p": None, "n": None, "stop": None, "tools": []})
    assert asked.sampling == Sampling() and (asked.n, asked.stop, asked.stream, asked.parse_calls) == (1, (), False, False)
    completion = requests.parse_completion({"prompt": [[1, 2], [3]]})
    assert completion.sampling.max_tokens == 16 and completion.prompts == ([1, 2], [3])
    assert requests.parse_completion({"prompt": [1, 2]}).prompts == ([1, 2],)
    assert requests.parse_chat({"messages": [USER], "logprobs": True}).sampling.top_logprobs == 0
