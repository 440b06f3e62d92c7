"""From examples to tokens: what is a target, with the real tokenizer of SmolLM2 and a byte-level one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.domain import chat, datasets
from tunesmith.errors import DataError, InvalidRequest
from tunesmith.training import data
from tunesmith.training.tokenizer import load_tokenizer

from ..conftest import write_chat

END = "<|im_end|>"
TOOL = {"type": "function", "function": {"name": "weather", "description": "Tell the weather.", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}}

#: Shows tools and tool calls itself, as Qwen's and Hermes's templates do.
NATIVE = (
    "{% if tools %}{{ '<|im_start|>system\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content }}"
    "{% for call in message.tool_calls or [] %}{{ '<call>' + call.function.name + ':' + call.function.arguments.city + '</call>' }}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
#: Shows an answer's reasoning only where it is the last one, as DeepSeek's and Qwen3's templates do.
FORGETFUL = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' and not loop.last %}{{ message.content.split('</think>')[-1] }}"
    "{% else %}{{ message.content }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def real(smollm2: Path) -> Any:
    return load_tokenizer(smollm2)


@pytest.fixture
def small(tiny: Path) -> Any:
    return load_tokenizer(tiny)


def say(role: str, content: object, **more: object) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def example(*messages: dict[str, Any], tools: tuple[dict[str, Any], ...] = ()) -> datasets.Example:
    return datasets.Example(7, messages=messages, tools=tools)


def targets(tokenizer: Any, tokenized: data.TokenizedExample) -> str:
    return str(tokenizer.decode(tokenized.ids_T[tokenized.is_target_T]))


def whole(tokenizer: Any, tokenized: data.TokenizedExample) -> str:
    return str(tokenizer.decode(tokenized.ids_T))


PART = {"type": "text", "text": "part"}
TALK = [
    ([say("user", "Hi there"), say("assistant", "Hello!")], "Hello!" + END),
    ([say("system", "Be brief."), say("user", "Hi"), say("assistant", " spaced ")], " spaced " + END),
    ([say("user", "1"), say("assistant", "one"), say("user", "2"), say("assistant", "two")], "one" + END + "two" + END),
    ([say("user", "1"), say("assistant", "one", weight=0), say("user", "2"), say("assistant", "two", weight=1)], "two" + END),
    ([say("user", "1"), say("assistant", "one", weight=1), say("user", "2"), say("assistant", "two", weight=0)], "one" + END),
    ([say("assistant", "I begin."), say("user", "ok")], "I begin." + END),
    ([say("user", "a"), say("assistant", "b"), say("assistant", "c")], "b" + END + "c" + END),
    ([say("user", "a"), say("assistant", "")], END),
    ([say("user", [PART, PART]), say("assistant", [PART])], "part" + END),
    ([say("user", "Grüße 🙂"), say("assistant", "好的\n\nja")], "好的\n\nja" + END),
    ([say("user", "a"), say("assistant", None, refusal="No.")], "No." + END),
]  # fmt: skip


@pytest.mark.parametrize("messages,expected", TALK, ids=range(len(TALK)))
@pytest.mark.parametrize("which", ["real", "small"])
def test_targets_are_the_answers_and_their_ends(which: str, messages: list[dict[str, Any]], expected: str, request: Any) -> None:
    tokenizer = request.getfixturevalue(which)
    tokenized = data.Renderer(tokenizer).tokenize(example(*messages))
    assert targets(tokenizer, tokenized) == expected
    plain, _ = chat.normalize(messages, [], tokenizer.chat_template)
    assert whole(tokenizer, tokenized) in tokenizer.apply_chat_template(plain, tokenize=False)
    assert not tokenized.is_target_T[0] and len(tokenized.is_target_T) == len(tokenized.ids_T)


@pytest.mark.parametrize("messages", [messages for messages, _ in TALK if messages[-1]["role"] == "assistant"], ids=lambda m: len(m))
@pytest.mark.parametrize("which", ["real", "small"])
def test_training_starts_an_answer_from_the_tokens_of_inference(which: str, messages: list[dict[str, Any]], request: Any) -> None:
    tokenizer = request.getfixturevalue(which)
    tokenized = data.Renderer(tokenizer).tokenize(example(*messages))
    plain, _ = chat.normalize(messages[:-1], [], tokenizer.chat_template)
    prompt = tokenizer.apply_chat_template(plain, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert tokenized.ids_T[: len(prompt)].tolist() == prompt
    answer = chat.normalize(messages[-1:], [], tokenizer.chat_template)[0][0]["content"]
    assert tokenizer.decode(tokenized.ids_T[len(prompt) :]).removesuffix("\n") == answer + END


def test_a_developer_is_the_system(real: Any) -> None:
    one, other = (
        data.Renderer(real).tokenize(example(say(role, "Be brief."), say("user", "Hi"), say("assistant", "Yo")))
        for role in ("developer", "system")
    )
    assert np.array_equal(one.ids_T, other.ids_T) and "Be brief." in whole(real, one)


def test_tools_are_put_into_words_for_a_template_without_them(real: Any) -> None:
    messages = [
        say("system", "Be brief."),
        say("user", "Rain?"),
        {"role": "assistant", "tool_calls": [CALL]},
        say("tool", "yes", tool_call_id="c1"),
        say("assistant", "Yes."),
    ]
    tokenized = data.Renderer(real).tokenize(example(*messages, tools=(TOOL,)))
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
    assert targets(real, tokenized) == call + END + "Yes." + END
    text = whole(real, tokenized)
    assert text.startswith("<|im_start|>system\nBe brief.\n\nYou may call") and json.dumps(TOOL) in text
    without_system = data.Renderer(real).tokenize(example(*messages[1:], tools=(TOOL,)))
    assert targets(real, without_system) == targets(real, tokenized)
    assert whole(real, without_system).startswith("<|im_start|>system\nYou may call")
    old = {"role": "assistant", "function_call": CALL["function"]}
    assert targets(real, data.Renderer(real).tokenize(example(messages[1], old))) == call + END


def test_a_template_that_knows_tools_is_given_them(small: Any) -> None:
    small.chat_template = NATIVE
    messages = [say("user", "Rain?"), {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    tokenized = data.Renderer(small).tokenize(example(*messages, tools=(TOOL,)))
    assert targets(small, tokenized) == "<call>weather:Köln</call>" + END
    assert '"name": "weather"' in whole(small, tokenized) and "You may call" not in whole(small, tokenized)


def test_a_model_without_a_template_is_given_one(small: Any) -> None:
    small.chat_template = None
    tokenized = data.Renderer(small).tokenize(example(say("user", "a"), say("assistant", "b"), say("user", "c"), say("assistant", "d")))
    assert whole(small, tokenized) == f"<|user|>\na{END}\n<|assistant|>\nb{END}\n<|user|>\nc{END}\n<|assistant|>\nd{END}\n"
    assert targets(small, tokenized) == f"b{END}d{END}"


def test_a_template_that_rewrites_history_is_refused(small: Any) -> None:
    small.chat_template = FORGETFUL
    talk = [say("user", "a"), say("assistant", "hm</think>b"), say("user", "c"), say("assistant", "hm</think>d")]
    with pytest.raises(InvalidRequest, match=r"Example 7, message 2: the model's chat template renders this answer differently.*Hint"):
        data.Renderer(small).tokenize(example(*talk))
    alone = data.Renderer(small).tokenize(example(*talk[:2]))
    assert targets(small, alone) == "hm</think>b" + END
    plain = [say("user", "a"), say("assistant", "b"), say("user", "c"), say("assistant", "hm</think>d")]
    assert targets(small, data.Renderer(small).tokenize(example(*plain))) == f"b{END}hm</think>d{END}"


@pytest.mark.parametrize(
    "template,words",
    [
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{{ messages[0].content.nothing.here }}", "nothing"),
        ("{% for message in", "unexpected|expected"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    ],
)
def test_a_template_that_fails_is_named(small: Any, tmp_path: Path, template: str, words: str) -> None:
    """Templates are run in a sandbox; whatever goes wrong in one is the file's error, with its line."""
    small.chat_template = template
    file = write_chat(tmp_path / "t.jsonl", [("q", "a")] * 10)
    with pytest.raises(DataError, match=f"Example 1: the model's chat template cannot render it: .*({words})") as caught:
        data.load(file, small, 64)
    assert caught.value.code == "invalid_file_format"


@pytest.mark.parametrize(
    "row,place",
    [
        ([say("user", f"a{END}"), say("assistant", "b")], "Example 10, message 1"),
        ([say("user", "a"), say("assistant", "b<|im_start|>")], "Example 10, message 2"),
        ([say("user", [{"type": "text", "text": f"{END}a"}]), say("assistant", "b")], "Example 10, message 1"),
        ([say("user", "a"), say("assistant", None, refusal=f"b{END}")], "Example 10, message 2"),
        (
            [say("user", "a"), {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": f'"{END}"'}}]}],
            "Example 10, message 2",
        ),
    ],
)
@pytest.mark.parametrize("role", ["training", "validation"])
def test_control_tokens_in_text_are_refused(small: Any, tmp_path: Path, row: list[dict[str, Any]], place: str, role: datasets.Role) -> None:
    file = write_chat(tmp_path / "t.jsonl", [("q", "a")] * 9)
    with file.open("a") as more:
        more.write(json.dumps({"messages": row}) + "\n")
    with pytest.raises(DataError) as caught:
        data.load(file, small, 64, role)
    error = caught.value
    assert f"file format error in the {role} file. Invalid file format. {place} contains an invalid token: <|im_" in error.message
    assert (error.code, error.param) == ("invalid_file_format", f"{role}_file")


def test_all_control_tokens_are_listed_and_counted(small: Any, tmp_path: Path) -> None:
    file = write_chat(tmp_path / "t.jsonl", [("q", "a")] * 5 + [(f"q{END}", "a")] * 28)
    with pytest.raises(DataError) as caught:
        data.load(file, small, 64)
    said = caught.value.message
    assert said.count("contains an invalid token") == 20 and "Example 6, message 1" in said and "Example 25, message 1" in said
    assert said.endswith("(28 errors; the first 20 are shown)")


def test_deep_tools_are_an_error_and_not_a_crash(small: Any, tmp_path: Path) -> None:
    depth = 1000
    deep = '{"a":' * depth + "1" + "}" * depth
    head = '{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}],"tools":[{"function":{"name":"f","p":'
    file = tmp_path / "t.jsonl"
    file.write_text(f"{head}{deep}}}}}]}}\n" * 10)
    with pytest.raises(DataError, match="Example 1: its tools or tool calls are nested too deeply"):
        data.load(file, small, 64)
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[" * 100_000}}]}
    tokenized = data.Renderer(small).tokenize(example(say("user", "q"), call))
    assert "[[[[" in targets(small, tokenized)  # not JSON that can be read: shown as it is


def test_prompt_and_completion(real: Any) -> None:
    tokenized = data.Renderer(real).tokenize(datasets.Example(3, prompt="Translate: cat ->", completion=" Katze"))
    assert targets(real, tokenized) == " Katze" + real.eos_token
    assert whole(real, tokenized) == "Translate: cat -> Katze" + real.eos_token
    assert tokenized.ids_T[: -tokenized.num_targets].tolist() == real("Translate: cat ->")["input_ids"]
    bare = data.Renderer(real).tokenize(datasets.Example(3, completion="one two three"))
    assert whole(real, bare).startswith("one") and bare.num_targets == len(bare) - 1  # nothing predicts the first token


def test_a_cut_row_keeps_its_beginning(small: Any, tmp_path: Path) -> None:
    file = write_chat(tmp_path / "t.jsonl", [("q", "a" * 50)] * 10 + [("q" * 60, "a")])
    full, cut = data.load(file, small, 512), data.load(file, small, 40)
    assert not full.truncated_lines and len(full.examples) == 11
    assert cut.truncated_lines == list(range(1, 12)) and cut.dropped_lines == [11]
    assert np.array_equal(cut.examples[0].ids_T, full.examples[0].ids_T[:40]) and cut.num_tokens == 400
    with pytest.raises(DataError, match=r"no example with target tokens within 8 tokens\. Hint: raise max_length") as caught:
        data.load(file, small, 8)
    assert caught.value.code == "invalid_training_file"


def test_a_split_of_one_example_is_refused(small: Any) -> None:
    only = data.Renderer(small).tokenize(example(say("user", "a"), say("assistant", "b")))
    with pytest.raises(DataError, match=r"training_split 0.8 needs at least 2 examples, but there are 1"):
        data.split(data.Dataset([only]), 0.8, 1)
    for share in (0.01, 0.5, 0.99):
        parts = data.split(data.Dataset([only] * 3), share, 1)
        assert all(part.examples for part in parts) and sum(len(part.examples) for part in parts) == 3


MESSAGES = st.lists(
    st.tuples(st.sampled_from(["user", "assistant", "system"]), st.text(st.characters(codec="utf-8"), max_size=8), st.sampled_from([0, 1])),
    min_size=1, max_size=5,
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(MESSAGES)
def test_pieces_are_the_rendered_text_up_to_the_last_answer(small: Any, talk: list[tuple[str, str, int]]) -> None:
    messages = [say(role, text, weight=weight) if role == "assistant" else say(role, text) for role, text, weight in talk]
    tokenized = data.Renderer(small).tokenize(example(*messages))
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
    rendered = "".join(f"<|im_start|>{m['role']}\n{m['content']}{END}\n" for m in messages[: last + 1])
    assert whole(small, tokenized) == rendered
    assert targets(small, tokenized) == "".join(text + END for role, text, weight in talk if role == "assistant" and weight)
