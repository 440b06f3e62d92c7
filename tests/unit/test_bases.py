"""Base models on disk: which may be used, which are refused, what is read off them, and how they are obtained."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from tunesmith.errors import InvalidRequest, ModelNotFound, Unavailable
from tunesmith.services import bases as base_service
from tunesmith.settings import Settings
from tunesmith.store import bases


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Return a directory that is accepted: 12 x 3 + 5 parameters."""
    directory = tmp_path / "base"
    directory.mkdir()
    save_file({"a": torch.zeros(12, 3), "b": torch.zeros(5)}, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 77}))
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    return directory


def refused(directory: Path, look: Callable[[Path], object] = bases.check) -> str:
    with pytest.raises(InvalidRequest) as caught:
        look(directory)
    assert caught.value.param == "model" and caught.value.message.startswith(f"Base model {directory.name!r}: ")
    return caught.value.message


def configure(directory: Path, **changes: object) -> None:
    config = json.loads((directory / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value != "absent"}))


def test_a_plain_directory_is_accepted(base: Path, tiny: Path, smollm2: Path) -> None:
    for directory in (base, tiny, smollm2):
        bases.check(directory)


def test_code_is_refused(base: Path) -> None:
    (base / "modeling_evil.py").write_text("import os")
    assert "contains Python code (modeling_evil.py)" in refused(base)
    (base / "modeling_evil.py").unlink()
    configure(base, auto_map={"AutoModel": "modeling_evil.Evil"})
    assert "'auto_map', i.e. wants to run code of its own" in refused(base)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt", "weights.pkl"])
def test_pickles_alone_are_refused(base: Path, name: str) -> None:
    (base / name).write_bytes(b"\x80\x04N.")
    bases.check(base)  # beside safetensors a pickle is never read
    (base / "model.safetensors").unlink()
    assert f"no *.safetensors weights (found only {name}, a pickle)" in refused(base)
    (base / name).unlink()
    assert "(found none)" in refused(base)


def test_a_directory_that_is_no_model(base: Path, tmp_path: Path) -> None:
    (base / "config.json").write_text("{oops")
    assert "config.json is not valid JSON" in refused(base)
    (base / "config.json").unlink()
    assert "no config.json in its directory" in refused(base)
    (tmp_path / "file").write_text("")
    assert "no config.json" in refused(tmp_path / "file") and "no config.json" in refused(tmp_path / "nowhere")


def test_facts(base: Path, tiny: Path, smollm2: Path) -> None:
    facts = bases.facts(base)
    assert (facts.architecture, facts.num_parameters, facts.max_length, facts.has_chat_template) == ("LlamaForCausalLM", 41, 77, True)
    (base / "tokenizer_config.json").unlink()
    assert not bases.facts(base).has_chat_template
    (base / "chat_template.jinja").write_text("{{ messages }}")
    assert bases.facts(base).has_chat_template
    for directory in (tiny, smollm2):
        network = transformers.AutoModelForCausalLM.from_pretrained(directory)
        assert bases.facts(directory).num_parameters == sum(parameter.numel() for parameter in network.parameters())
        assert bases.facts(directory).max_length == network.config.max_position_embeddings


@pytest.mark.parametrize(
    "changes,length",
    [
        ({"max_position_embeddings": "absent", "n_positions": 99}, 99),
        ({"max_position_embeddings": "absent"}, 2048),
        ({"max_position_embeddings": None}, 2048),
        ({"text_config": {"max_position_embeddings": 55}}, 55),
    ],
)
def test_the_longest_context_by_its_other_names(base: Path, changes: dict[str, Any], length: int) -> None:
    configure(base, **changes)
    assert bases.facts(base).max_length == length


def test_a_context_that_is_no_number_is_refused(base: Path) -> None:
    configure(base, max_position_embeddings="long")
    assert "'long' as its longest context" in refused(base, bases.facts)


def header(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


@pytest.mark.parametrize(
    "content",
    [
        b"", b"abc", header(b""), header(b"{}", 10**15), header(b"{}", 2**64 - 1), header(b"{oops}"), header(b"\xff\xfe"), header(b"[1]"),
        header(b'{"a": 1}'), header(b'{"a": {}}'), header(b'{"a": {"shape": 5}}'), header(b'{"a": {"shape": ["x", 2]}}'),
    ],
    ids=range(12),
)  # fmt: skip
def test_a_damaged_header_is_refused(base: Path, content: bytes) -> None:
    (base / "model.safetensors").write_bytes(content)
    assert "model.safetensors is not a whole safetensors file" in refused(base, bases.facts)


def test_names(tmp_path: Path) -> None:
    local, hub = str(tmp_path / "my-model"), "someone/Some-Model"
    allowed = (local, hub)
    assert bases.names(allowed) == ["smollm2-135m-instruct", "my-model", hub]
    assert bases.describe("my-model", tmp_path, allowed) == bases.describe(local, tmp_path, allowed)
    assert bases.describe(local, tmp_path, allowed).directory == tmp_path / "my-model"
    found = bases.describe(hub, tmp_path, allowed)
    assert found.kind == "hub" and found.directory == tmp_path / "bases" / "someone--Some-Model" and not found.ready
    assert bases.describe("smollm2-135m-instruct", tmp_path, ()).kind == "catalogue"
    twins = (local, str(tmp_path / "other" / "my-model"))
    with pytest.raises(InvalidRequest, match="Two allowed models are called 'my-model'"):
        bases.describe("my-model", tmp_path, twins)
    strangers = [
        "other/model",
        "..",
        "",
        "/etc",
        "someone",
        "Some-Model",
        str(tmp_path),
        "smollm2-135m-instruct/",
        f"{local}/../x",
        "my-model/",
    ]
    for stranger in strangers:
        with pytest.raises(ModelNotFound, match=r"Bases here: smollm2-135m-instruct, my-model.* need the setting allowed_models"):
            bases.describe(stranger, tmp_path, allowed)


def test_ready_refuses_what_is_not_there_or_not_plain(base: Path, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, cache_dir=tmp_path, allowed_models=(str(base), str(tmp_path / "gone")))
    assert base_service.ready(settings, "base").directory == base
    with pytest.raises(Unavailable, match="'gone': its directory is not there"):
        base_service.ready(settings, "gone")
    (base / "x.py").write_text("")
    with pytest.raises(InvalidRequest, match="contains Python code"):
        base_service.ready(settings, "base")


def prepare(name: str, directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tunesmith.training.bases", name, "--to", str(directory)]
    return subprocess.run(command, env=dict(os.environ) | environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", ["nobody/no-such-model", "no such id!!", "../../etc"])
def test_a_base_that_cannot_be_had_leaves_nothing(tmp_path: Path, name: str) -> None:
    done = prepare(name, tmp_path / "bases" / "it", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hub"))
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "Hugging Face Hub" in last and repr(name) in done.stderr and "Traceback" not in done.stderr
    assert list((tmp_path / "bases").iterdir()) == []


def test_a_base_is_made_from_its_wheel_once(tmp_path: Path, smollm2: Path) -> None:
    """`smollm2` was: whole, readable, and with nothing beside it; several who need it wait for one."""
    settings = Settings(data_dir=tmp_path, cache_dir=tmp_path)
    target = bases.describe("smollm2-135m-instruct", tmp_path, ()).directory
    assert not target.exists()
    target.parent.mkdir()
    lock = threading.Barrier(3)
    found: list[Path] = []

    def need() -> None:
        lock.wait()
        found.append(base_service.ready(settings, "smollm2-135m-instruct").directory)

    threads = [threading.Thread(target=need) for _ in range(2)]
    for thread in threads:
        thread.start()
    shutil.copytree(smollm2, target)  # somebody else obtained it meanwhile
    lock.wait()
    for thread in threads:
        thread.join()
    assert found == [target, target]
    assert bases.describe("smollm2-135m-instruct", tmp_path, ()).ready
    config = json.loads((smollm2 / "config.json").read_text())
    assert config["dtype"] == "bfloat16" and "quantization_config" not in config
    assert not [path.name for path in smollm2.parent.iterdir() if path.name.startswith(".") and not path.name.endswith(".lock")]


def test_one_who_waits_for_a_base_may_be_called_away(tmp_path: Path) -> None:
    """A worker that waits for another's download still heeds a cancel."""
    settings = Settings(data_dir=tmp_path, cache_dir=tmp_path)
    (tmp_path / "bases").mkdir()
    code = "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX); print(1, flush=True); sys.stdin.read()"
    path = tmp_path / "bases" / ".smollm2-135m-instruct.lock"
    holder = subprocess.Popen([sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"1\n"

    class CalledAway(Exception):
        pass

    def heed() -> None:
        raise CalledAway

    try:
        with pytest.raises(CalledAway):
            base_service.ready(settings, "smollm2-135m-instruct", heed)
    finally:
        holder.communicate()
