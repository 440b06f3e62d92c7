"""The embedded backend with the real small model: words, streams, company, deaths, adapters."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
import torch
from safetensors.torch import save_file

from tunesmith.errors import TunesmithError, Unavailable
from tunesmith.inference import chat
from tunesmith.inference.backend import EmbeddedBackend, Reply, Target
from tunesmith.inference.engine import Generation, Token
from tunesmith.inference.requests import Sampling

CHAT = "/v1/chat/completions"
QUESTION = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
STORY = {"messages": [{"role": "user", "content": "Tell me a long story about a fox."}], "model": "fox", "seed": 1}

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def target(smollm2: Path) -> Target:
    return Target("smollm2-135m-instruct", smollm2)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def backend(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedBackend]:
    backend = EmbeddedBackend(tmp_path_factory.mktemp("run"))
    yield backend
    children = model_processes()
    await backend.close()
    assert children and not any(child.is_running() for child in children)


def model_processes() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "tunesmith.inference.server" in child.cmdline()]


async def chunks(reply: Reply) -> list[dict[str, Any]]:
    """Return the stream's objects; its last event must be [DONE]."""
    assert reply.status == 200 and reply.events is not None
    events = [event async for event in reply.events]
    assert events[-1] == "data: [DONE]\n\n"
    assert all(event.startswith("data: {") and event.endswith("\n\n") for event in events[:-1])
    return [json.loads(event[6:]) for event in events[:-1]]


def words(reply: Reply, choice: int = 0) -> str:
    assert reply.body is not None and reply.status == 200, reply.body
    content = reply.body["choices"][choice]["message"]["content"]
    assert isinstance(content, str)
    return content


async def test_it_answers(backend: EmbeddedBackend, target: Target) -> None:
    reply = await backend.post(target, CHAT, {**QUESTION, "model": "as-asked"})
    assert "Paris" in words(reply)
    body = reply.body
    assert body is not None
    assert (body["object"], body["model"], body["choices"][0]["finish_reason"]) == ("chat.completion", "as-asked", "stop")
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"] > 30
    cut = await backend.post(target, CHAT, {**QUESTION, "stop": " Par"})
    assert words(reply).startswith(words(cut) + " Par")


async def test_a_stream_says_the_same(backend: EmbeddedBackend, target: Target) -> None:
    body = {**STORY, "max_tokens": 40, "n": 2, "logprobs": True, "top_logprobs": 2}
    whole = await backend.post(target, CHAT, body)
    streamed = await chunks(await backend.post(target, CHAT, {**body, "stream": True, "stream_options": {"include_usage": True}}))
    assert len({chunk["id"] for chunk in streamed}) == 1 and {chunk["model"] for chunk in streamed} == {"fox"}
    *parts, last = streamed
    assert last["choices"] == [] and whole.body is not None and last["usage"] == whole.body["usage"]
    assert all(chunk["usage"] is None for chunk in parts)
    for index in range(2):
        deltas = [chunk["choices"][0] for chunk in parts if chunk["choices"][0]["index"] == index]
        assert deltas[0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
        assert "".join(choice["delta"].get("content", "") for choice in deltas) == words(whole, index)
        assert (deltas[-1]["delta"], deltas[-1]["finish_reason"]) == ({}, "length")
        tokens = [token for choice in deltas if choice["logprobs"] for token in choice["logprobs"]["content"]]
        assert tokens == whole.body["choices"][index]["logprobs"]["content"]
        assert bytes(byte for token in tokens for byte in token["bytes"]).decode() == words(whole, index)
        assert all(len(token["top_logprobs"]) == 2 and token["logprob"] <= token["top_logprobs"][0]["logprob"] for token in tokens)


async def test_completions(backend: EmbeddedBackend, target: Target) -> None:
    body = {"prompt": ["The capital of France is", "2 + 2 ="], "temperature": 0, "echo": True, "logprobs": 1, "max_tokens": 3}
    reply = await backend.post(target, "/v1/completions", body)
    assert reply.body is not None and reply.body["object"] == "text_completion"
    first, second = reply.body["choices"]
    assert first["text"].startswith("The capital of France is Paris") and second["text"].startswith("2 + 2 =") and second["index"] == 1
    columns = first["logprobs"]
    assert columns["token_logprobs"][0] is None and all(logprob < 0 for logprob in columns["token_logprobs"][1:])
    places = [*columns["text_offset"], len(first["text"])]
    assert [first["text"][a:b] for a, b in itertools.pairwise(places)] == columns["tokens"]


async def test_what_no_model_can_answer_is_refused(backend: EmbeddedBackend, target: Target) -> None:
    reply = await backend.post(target, CHAT, {"messages": [{"role": "user", "content": "long " * 9000}]})
    assert reply.status == 400 and reply.body is not None
    assert (reply.body["error"]["code"], reply.body["error"]["param"]) == ("context_length_exceeded", "messages")


async def test_several_at_once(backend: EmbeddedBackend, target: Target) -> None:
    alone = await backend.post(target, CHAT, {**STORY, "max_tokens": 30})
    long = asyncio.create_task(backend.post(target, CHAT, {**STORY, "seed": 2, "max_tokens": 400}))
    company = await asyncio.gather(*(backend.post(target, CHAT, {**STORY, "max_tokens": 30}) for _ in range(3)))
    assert [words(reply) for reply in company] == [words(alone)] * 3
    assert not long.done(), "the short ones must not have waited for the long one"
    long.cancel()


async def test_eight_at_once_are_not_eight_times_as_slow(backend: EmbeddedBackend, target: Target) -> None:
    body = {**STORY, "max_tokens": 40, "logit_bias": {"2": -100}}
    await backend.post(target, CHAT, body)
    alone = await seconds(backend, target, body)
    begin = time.monotonic()
    replies = await asyncio.gather(*(backend.post(target, CHAT, {**body, "seed": seed}) for seed in range(8)))
    together = time.monotonic() - begin
    assert all(reply.body is not None and reply.body["usage"]["completion_tokens"] == 40 for reply in replies)
    assert together < 8 * alone / 2, f"{alone:.1f} s alone, {together:.1f} s for eight"


async def test_an_answer_is_the_same_alone_in_company_and_again(smollm2: Path) -> None:
    """To the last bit where that was measured, which is AVX-512 with bfloat16; elsewhere up to its rounding."""
    model = chat.load(smollm2)
    text = model.vocabulary.encode(Path(__file__).read_text())
    # Company of other lengths, which arrives before, with and after it; a beginning that is read for the second time.
    alone = written(model, [text[:300]])
    company = written(model, [text[700:900], text[:300], text[40:55], text[100:1300]])
    again = written(model, [text[:300]])
    for other in (company, again):
        assert [token.id for token in other] == [token.id for token in alone]
        assert [token.logprob for token in other] == pytest.approx([token.logprob for token in alone], abs=0 if SAME_BITS else 0.1)


CPU = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
SAME_BITS = "avx512_bf16" in CPU and "amx_bf16" not in CPU


def written(model: chat.Model, prompts: list[list[int]]) -> list[Token]:
    """Return what is written greedily after the prompt of 300 tokens, beside the others."""
    heard: list[Token] = []

    class Listener:
        def __init__(self, listens: bool) -> None:
            self.listens = listens

        def prompt(self, tokens: object) -> None: ...

        def token(self, choice: int, token: Token) -> bool:
            heard.extend([token] if self.listens else [])
            return True

        def finished(self, choice: int, reason: str) -> None: ...

        def failed(self, error: TunesmithError) -> None:
            raise error

    for prompt in prompts:
        asked = Sampling(temperature=0, max_tokens=20 if len(prompt) == 300 else 30, top_logprobs=0)
        model.engine.submit(Generation(prompt, asked, Listener(len(prompt) == 300)))
        model.engine.step()
    while model.engine.step():
        pass
    return heard


async def test_an_answer_nobody_waits_for_is_not_computed(backend: EmbeddedBackend, target: Target) -> None:
    endless = {**STORY, "max_tokens": 5000, "logit_bias": {"2": -100}}
    reply = await backend.post(target, CHAT, {**endless, "stream": True})
    assert reply.events is not None
    await anext(reply.events)
    unread = await backend.post(target, CHAT, {**endless, "stream": True})
    waiting = asyncio.create_task(backend.post(target, CHAT, endless))
    await asyncio.sleep(1)
    (child,) = model_processes()
    assert busy(child) > 0.3
    waiting.cancel()
    del reply, unread
    await asyncio.sleep(2)
    assert busy(child) < 0.1


def busy(process: psutil.Process) -> float:
    """Return the processor seconds that a process used in one second."""
    before = process.cpu_times()
    time.sleep(1)
    after = process.cpu_times()
    return after.user + after.system - before.user - before.system


@pytest.fixture(scope="module")
def adapted(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Target:
    """A target with an adapter of random weights, as a checkpoint directory has it: among other files."""
    directory = write_adapter(tmp_path_factory.mktemp("checkpoint"), width=576)
    return Target("smollm2-135m-instruct", smollm2, "ft:smollm2:org::12345678", directory)


def write_adapter(directory: Path, width: int) -> Path:
    generator = torch.Generator().manual_seed(3)
    paths = [f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_" for layer in range(30)]
    halves = {"A.weight": (8, width), "B.weight": (576, 8)}
    save_file(
        {path + half: torch.randn(shape, generator=generator) for path in paths for half, shape in halves.items()},
        directory / "adapter_model.safetensors",
    )
    (directory / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 2}))
    (directory / "manifest.json").write_text("{}")
    return directory


async def test_base_and_tuned_model_share_a_process(backend: EmbeddedBackend, target: Target, adapted: Target) -> None:
    body = {**QUESTION, "max_tokens": 15}
    base = words(await backend.post(target, CHAT, body))
    both = await asyncio.gather(*(backend.post(each, CHAT, body) for each in (adapted, target, adapted)))
    assert words(both[0]) == words(both[2]) != base == words(both[1])
    assert len(model_processes()) == 1
    assert both[0].body is not None and both[0].body["model"] == adapted.adapter_name


async def test_an_adapter_of_another_base_is_refused(backend: EmbeddedBackend, target: Target, tmp_path: Path) -> None:
    other = Target(target.base_name, target.base_directory, "ft:other", write_adapter(tmp_path, width=512))
    with pytest.raises(TunesmithError, match="needs \\(8, 576\\)"):
        await backend.post(other, CHAT, QUESTION)
    assert "Paris" in words(await backend.post(target, CHAT, QUESTION))


async def test_a_dead_process_is_replaced(backend: EmbeddedBackend, target: Target, adapted: Target) -> None:
    before = words(await backend.post(adapted, CHAT, {**QUESTION, "max_tokens": 15}))
    stream = await backend.post(target, CHAT, {**STORY, "max_tokens": 2000, "stream": True})
    assert stream.events is not None
    await anext(stream.events)
    # This one has not been answered a word when the process dies, so that it can be asked again.
    waiting = asyncio.create_task(backend.post(adapted, CHAT, {**QUESTION, "max_tokens": 15}))
    await asyncio.sleep(0.1)
    (child,) = model_processes()
    child.send_signal(signal.SIGKILL)
    events = [event async for event in stream.events]
    assert json.loads(events[-1][6:])["error"]["code"] == "unavailable"
    assert words(await waiting) == before
    (other,) = model_processes()
    assert other.pid != child.pid


async def test_an_idle_process_ends(target: Target, tmp_path: Path) -> None:
    known = {process.pid for process in model_processes()}
    backend = EmbeddedBackend(tmp_path, idle_seconds=1)
    try:
        words(await backend.post(target, CHAT, {**STORY, "max_tokens": 60}))
        (child,) = (process for process in model_processes() if process.pid not in known)
        deadline = time.monotonic() + 10
        while child.is_running() and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        assert not child.is_running() and list(tmp_path.iterdir()) == []
        assert "Paris" in words(await backend.post(target, CHAT, QUESTION))
    finally:
        await backend.close()


async def test_a_base_that_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "llama"}')
    backend = EmbeddedBackend(tmp_path / "run")
    try:
        with pytest.raises(Unavailable, match="'broken' cannot be loaded"):
            await backend.post(Target("broken", tmp_path / "broken"), CHAT, QUESTION)
    finally:
        await backend.close()


ORPHAN = """
import asyncio, pathlib, sys
from tunesmith.inference.backend import EmbeddedBackend, Target
async def main():
    backend = EmbeddedBackend(pathlib.Path(sys.argv[2]))
    await backend.post(Target("m", pathlib.Path(sys.argv[1])), "/v1/completions", {"prompt": "a", "max_tokens": 1})
    print([name for name in ("torch", "transformers") if name in sys.modules], flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


async def test_the_process_dies_with_its_parent_which_never_loads_torch(smollm2: Path, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ORPHAN, str(smollm2), str(tmp_path)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"[]\n"
        (child,) = psutil.Process(parent.pid).children()
        assert os.getpgid(child.pid) == child.pid, "a Ctrl-C at the terminal is the parent's business"
        parent.kill()
    gone, alive = psutil.wait_procs([child], timeout=5)
    assert gone and not alive


async def test_a_trainer_beside_it_does_not_starve_it(backend: EmbeddedBackend, target: Target) -> None:
    body = {**STORY, "max_tokens": 40}
    await backend.post(target, CHAT, body)
    alone = await seconds(backend, target, body)
    trainers = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"], preexec_fn=lambda: os.nice(10)) for _ in range(os.cpu_count() or 1)
    ]
    try:
        beside = await seconds(backend, target, body)
    finally:
        for trainer in trainers:
            trainer.kill()
            trainer.wait()
    assert beside < 4 * alone + 1, f"{alone:.1f} s alone, {beside:.1f} s beside a trainer"


async def seconds(backend: EmbeddedBackend, target: Target, body: dict[str, Any]) -> float:
    begin = time.monotonic()
    await backend.post(target, CHAT, body)
    return time.monotonic() - begin
