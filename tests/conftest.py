"""Fixtures every test may use: the real small model, and a tiny random one with a real tokenizer and chat template."""

from __future__ import annotations

import json
import os
from pathlib import Path

import hypothesis
import pytest
import tokenizers
import torch
import transformers

from tunesmith import processes
from tunesmith.services import bases
from tunesmith.settings import Settings

os.environ["TQDM_DISABLE"] = "1"
processes.compute_here()

hypothesis.settings.register_profile("sample", max_examples=50, deadline=None, derandomize=True)
hypothesis.settings.register_profile("drills", max_examples=2000, deadline=None, print_blob=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--drills", action="store_true", help="Run property tests with 2,000 examples and each kill drill 10 times.")


def pytest_configure(config: pytest.Config) -> None:
    hypothesis.settings.load_profile("drills" if config.getoption("--drills") else "sample")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Repeat the tests that take a `drill` number."""
    if "drill" in metafunc.fixturenames:
        metafunc.parametrize("drill", range(10 if metafunc.config.getoption("--drills") else 1))


CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Return the directory of SmolLM2-135M-Instruct, converted from its wheel when it is not in the cache yet."""
    return bases.ready(Settings.load(), "smollm2-135m-instruct").directory


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a random Llama (grouped queries, tied embeddings) with a byte-level tokenizer; trains in milliseconds a step."""
    directory = tmp_path_factory.mktemp("bases") / "tiny"
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>", chat_template=CHAT_TEMPLATE
    )
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def write_chat(path: Path, pairs: list[tuple[str, str]]) -> Path:
    """Write question and answer pairs as a training file."""
    rows = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def letters(tmp_path: Path) -> tuple[Path, Path]:
    """Return training and validation files of a task a tiny model can begin to learn: say the letter twice."""
    train = [(f"{chr(97 + i % 26)}{i}", chr(97 + i % 26) * (2 + i % 5)) for i in range(40)]
    valid = [(f"{chr(97 + i % 26)}{i}", chr(97 + i % 26) * 2) for i in range(100, 112)]
    return write_chat(tmp_path / "train.jsonl", train), write_chat(tmp_path / "valid.jsonl", valid)
