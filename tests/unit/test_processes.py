"""Children see none of their parent's secrets and do not outlive it, however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunesmith import processes
from tunesmith.settings import Settings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")

SECRETS = {
    "TUNESMITH_API_KEY": "canary", "OPENAI_API_KEY": "canary", "AWS_SECRET_ACCESS_KEY": "canary", "HF_TOKEN": "canary",
    "TUNESMITH_DATABASE_URL": "postgresql://canary", "PYTHONSTARTUP": "canary", "LD_PRELOAD_OF_MINE": "canary",
}  # fmt: skip

#: Modules that a child runs; each says something on stdout and then stays.
CHILDREN = {
    "show_environment": "import json, os; print(json.dumps(dict(os.environ)))",
    "sleeper": """
import os, sys, time
from tunesmith import processes
processes.die_with_parent()
print(os.getpid(), flush=True)
time.sleep(600)
""",
    "parent": """
import subprocess, sys, time
from tunesmith import processes
child = processes.spawn("sleeper", stdout=subprocess.PIPE, environment={"PYTHONPATH": sys.argv[1]})
print(child.stdout.readline().decode().strip(), flush=True)
time.sleep(600)
""",
    "family": """
import subprocess, sys, time
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(grandchild.pid, flush=True)
time.sleep(600)
""",
    "stubborn": """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(600)
""",
}


@pytest.fixture
def path(tmp_path: Path) -> dict[str, str]:
    """Return the environment with which a child finds the modules above."""
    for name, code in CHILDREN.items():
        (tmp_path / f"{name}.py").write_text(code)
    return {"PYTHONPATH": str(tmp_path)}


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not is_alive(pid)


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Whatever a failing test leaves is ended here."""
    all_of_them: list[subprocess.Popen[bytes]] = []
    yield all_of_them
    for process in all_of_them:
        processes.kill_group(process)
        process.wait()


def first_line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


def test_a_child_inherits_no_secrets(path: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TMPDIR", "/tmp")
    child = processes.spawn("show_environment", stdout=subprocess.PIPE, environment=path | {"OMP_WAIT_POLICY": "PASSIVE"})
    out, _ = child.communicate(timeout=60)
    seen = json.loads(out)
    assert "canary" not in json.dumps(seen) and not seen.keys() & SECRETS.keys()
    assert seen["PATH"] == os.environ["PATH"] and seen["TMPDIR"] == "/tmp" and seen["OMP_WAIT_POLICY"] == "PASSIVE"
    allowed = {*processes._PASSED, "PYTHONPATH", "OMP_WAIT_POLICY", "LC_CTYPE", processes._PARENT}
    assert seen.keys() <= allowed


def test_a_workers_environment_has_no_key(tmp_path: Path) -> None:
    settings = Settings(api_key="canary", data_dir=tmp_path, cache_dir=tmp_path, allowed_models=("a/b", "/c"), model_aliases={"x": "y"})
    environment = settings.environment()
    assert "canary" not in json.dumps(environment)
    assert environment["TUNESMITH_DATA_DIR"] == str(tmp_path) and environment["TUNESMITH_ALLOWED_MODELS"] == "a/b,/c"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_dies_with_its_parent(path: dict[str, str], started: list[subprocess.Popen[bytes]], number: int) -> None:
    parent = processes.spawn("parent", path["PYTHONPATH"], stdout=subprocess.PIPE, environment=path)
    started.append(parent)
    child = int(first_line(parent))
    assert is_alive(child) and os.getpgid(child) == child != os.getpgid(parent.pid)
    os.kill(parent.pid, number)
    parent.wait(10)
    assert gone(child)


def test_a_child_whose_parent_is_gone_already_ends_at_once(path: dict[str, str]) -> None:
    """Between the start of a child and its first line its parent may end; then no signal would ever come."""
    environment = path | {"PATH": os.environ["PATH"], processes._PARENT: "1"}
    done = subprocess.run([sys.executable, "-m", "sleeper"], env=environment, capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL and done.stdout == b""


def test_a_group_is_killed_whole(path: dict[str, str], started: list[subprocess.Popen[bytes]]) -> None:
    family = processes.spawn("family", stdout=subprocess.PIPE, environment=path)
    started.append(family)
    grandchild = int(first_line(family))
    assert os.getpgid(grandchild) == family.pid != os.getpgid(0)
    processes.kill_group(family)
    assert family.wait(10) == -signal.SIGKILL and gone(grandchild)
    processes.kill_group(family)  # a second time is no error


def test_another_signal_may_be_sent(path: dict[str, str], started: list[subprocess.Popen[bytes]]) -> None:
    stubborn = processes.spawn("stubborn", stdout=subprocess.PIPE, environment=path)
    started.append(stubborn)
    assert first_line(stubborn) == b"ready\n"
    processes.kill_group(stubborn, signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        stubborn.wait(0.2)
    processes.kill_group(stubborn)
    assert stubborn.wait(10) == -signal.SIGKILL


def test_a_child_has_no_terminal_to_read_from(path: dict[str, str]) -> None:
    code = "import sys; print(repr(sys.stdin.read()))"
    (Path(path["PYTHONPATH"]) / "reader.py").write_text(code)
    child = processes.spawn("reader", stdout=subprocess.PIPE, environment=path)
    assert child.communicate(timeout=60)[0] == b"''\n"
