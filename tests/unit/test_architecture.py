"""The house's rules, read from the source: who may import whom, where the heavy libraries live, and what is never done."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "tunesmith"
MODULES = {
    ".".join(["tunesmith", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__"): path for path in ROOT.rglob("*.py")
}
MAX_LINES = 400

#: Room -> the rooms it may import from, besides itself. Arrows point downwards only.
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "hardware": set(),
    "processes": set(),
    "plots": {"diagnosis", "domain", "errors"},
    "progress": set(),
    "settings": {"errors"},
    "domain": {"errors"},
    "logs": {"diagnosis", "domain", "errors"},
    "store": {"domain", "errors"},
    "diagnosis": {"domain"},
    "training": {"domain", "errors", "processes", "hardware"},
    "inference": {"domain", "errors", "processes", "hardware", "training.model", "training.tokenizer"},
    "reports": {"diagnosis", "domain", "errors", "processes", "hardware", "training.data", "training.tokenizer"},
    "services": {
        "store",
        "diagnosis",
        "domain",
        "logs",
        "processes",
        "settings",
        "errors",
        "training.checkpoints",
        "training.defaults",
        "training.outlook",
        "hardware",
    },
    "api": {"services", "store", "domain", "settings", "errors", "inference.backend", "inference.requests"},
    "worker": {
        "services",
        "store",
        "diagnosis",
        "domain",
        "processes",
        "hardware",
        "settings",
        "errors",
        "training.defaults",
        "training.checkpoints",
    },
    "worker.trainer": {"domain", "processes", "errors", "training"},
    "server": {"api", "processes", "settings", "errors"},
    "run": {
        "services",
        "store",
        "diagnosis",
        "domain",
        "training",
        "inference.chat",
        "logs",
        "folder",
        "plots",
        "processes",
        "settings",
        "errors",
    },
    "folder": {"store", "diagnosis", "domain", "training.checkpoints", "logs", "plots", "errors"},
    "conversation": {"run", "services", "store", "inference.chat", "settings", "errors"},
    "doctor": {"store", "domain", "training.plan", "settings", "errors"},
    "demo": {"domain", "plots", "processes", "progress", "errors"},
    "cli": {
        "domain",
        "errors",
        "plots",
        "services",
        "server",
        "worker",
        "run",
        "progress",
        "conversation",
        "doctor",
        "demo",
        "processes",
        "settings",
        "logs",
        "diagnosis",
    },
    "": {"run", "errors"},  # the package itself: its public names
}
#: Library -> the only places that may import it.
HOMES: dict[str, set[str]] = {
    "torch": {"training", "inference", "worker.trainer"},
    "transformers": {"training", "inference", "worker.trainer"},
    "safetensors": {"training", "inference"},
    "sqlalchemy": {"store"},
    "alembic": {"store"},
    "fastapi": {"api"},
    "starlette": {"api", "inference.server"},
    "uvicorn": {"server", "inference.server"},
    "matplotlib": {"plots", "run"},  # run: for a type only
    "typer": {"cli"},
    "openai": {"demo"},
}
#: Modules of training/ and inference/ that others import without paying for torch.
TORCH_FREE = {
    "training",
    "training.defaults",
    "training.checkpoints",
    "training.outlook",
    "inference",
    "inference.backend",
    "inference.requests",
}
#: What may be imported inside a function, so that `tunesmith --help` and `import tunesmith` stay quick.
LATE = {
    "cli": {
        "server",
        "settings",
        "processes",
        "worker.worker",
        "progress",
        "run",
        "conversation",
        "doctor",
        "demo",
        "logs",
        "plots",
        "services",
        "services.diagnoses",
        "diagnosis.render",
        "diagnosis.report",
    },
    "folder": {"plots"},
    "run": {"plots", "inference.chat", "training.loop"},
    "conversation": {"inference.chat"},
    "doctor": {"training.plan"},
    "store.database": {"store.migrations.upgrade"},  # alembic
    "reports.check": {"diagnosis.dataset"},  # numpy
    "reports.child": {"training.tokenizer"},  # transformers
}
#: Who reads the environment: the settings; what is passed to children; the demo, which hands its TUNESMITH_* on; the compiler's name.
ENVIRONMENT = {"settings", "processes", "demo", "training.kernels.build"}


def short(module: str) -> str:
    return module.removeprefix("tunesmith").removeprefix(".")


def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def imports(node: ast.AST, package: dict[str, Path] = MODULES) -> Iterator[tuple[str, ast.stmt]]:
    """Yield (module, statement) of every import below `node`; `from tunesmith.domain import ids` is tunesmith.domain.ids."""
    for found in ast.walk(node):
        if isinstance(found, ast.Import):
            yield from ((alias.name, found) for alias in found.names)
        elif isinstance(found, ast.ImportFrom):
            assert found.level == 0 and found.module is not None, "imports are absolute"
            for alias in found.names:
                whole = f"{found.module}.{alias.name}"
                yield (whole if whole in package else found.module), found


def within(module: str, rooms: set[str]) -> bool:
    return any(module == room or module.startswith(room + ".") for room in rooms)


def room_of(module: str) -> str:
    return max((room for room in ROOMS if module == room or (room and module.startswith(room + "."))), key=len)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_arrows_point_downwards(module: str) -> None:
    room = room_of(short(module))
    allowed = ROOMS[room] | ({room} if room else set())
    for name, statement in imports(tree(module)):
        if name.split(".")[0] != "tunesmith" or name == "tunesmith":
            continue
        assert within(short(name), allowed), f"{module}:{statement.lineno} imports {name}; {room!r} may import {sorted(allowed)}"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_libraries_stay_at_home(module: str) -> None:
    for name, statement in imports(tree(module)):
        home = HOMES.get(name.split(".")[0])
        where = f"{module}:{statement.lineno} imports {name}"
        assert home is None or within(short(module), home), where
        assert name.split(".")[0] not in ("torch", "transformers") or short(module) not in TORCH_FREE, where


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_stand_at_the_top(module: str) -> None:
    for function in ast.walk(tree(module)):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            late = {short(name) for name, _ in imports(function) if name.startswith("tunesmith.")}
            assert late <= LATE.get(short(module), set()), f"{module}.{function.name} imports {late}"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_is_short_and_says_what_it_is_for(module: str) -> None:
    text = MODULES[module].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    assert ast.get_docstring(ast.parse(text)), f"{module} has no docstring"


PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "yaml.load", "yaml.unsafe_load", "os.system", "os.popen"}
SWITCHES = {"shell", "trust_remote_code", "allow_pickle"}


def crimes(node: ast.AST) -> Iterator[str]:
    """Yield what must never be done with data or words that others wrote; a switch must be a plain False."""
    yield from (f"import {name}" for name, _ in imports(node) if name.split(".")[0] in PICKLES)
    for found in ast.walk(node):
        switches: list[tuple[object, ast.expr]] = []
        if isinstance(found, ast.Call):
            if (name := ast.unparse(found.func)) in CALLS:
                yield name
            switches = [(keyword.arg, keyword.value) for keyword in found.keywords]
        elif isinstance(found, ast.Dict):
            switches = [(key.value, value) for key, value in zip(found.keys, found.values, strict=True) if isinstance(key, ast.Constant)]
        for key, value in switches:
            if key in SWITCHES and not (isinstance(value, ast.Constant) and value.value is False):
                yield ast.unparse(found)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_nothing_unsafe(module: str) -> None:
    assert list(crimes(tree(module))) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from pickle import loads", "torch.load('x')", "eval('1')", "exec('1')", "yaml.load(x)", "os.system('ls')",
        "subprocess.run('ls', shell=True)", "f(trust_remote_code=True)", "f(trust_remote_code=maybe)", "np.load(x, allow_pickle=True)",
        "f(**{'trust_remote_code': True})",
    ],
)  # fmt: skip
def test_the_ban_sees_what_it_bans(code: str) -> None:
    assert list(crimes(ast.parse(code)))
    assert not list(crimes(ast.parse("f(trust_remote_code=False, shell=False); g({'trust_remote_code': False})")))


def reads_environment(node: ast.AST) -> bool:
    attributes = {ast.unparse(found) for found in ast.walk(node) if isinstance(found, ast.Attribute)}
    names = {name for _, found in imports(node) if isinstance(found, ast.ImportFrom) for name in (alias.name for alias in found.names)}
    return bool(attributes & {"os.environ", "os.getenv", "os.putenv", "os.environb"} or names & {"environ", "getenv"})


def test_the_environment_is_read_in_one_place() -> None:
    assert {short(module) for module in MODULES if reads_environment(tree(module))} == ENVIRONMENT
    assert reads_environment(ast.parse("from os import getenv")) and reads_environment(ast.parse("import os\nos.environ.get('a')"))


def test_broad_excepts_stand_at_the_boundaries_only() -> None:
    """The worker around a job, an HTTP handler, and a child's last word."""
    broad = set()
    for module in MODULES:
        for found in ast.walk(tree(module)):
            caught = found.type if isinstance(found, ast.ExceptHandler) else None
            if isinstance(found, ast.ExceptHandler) and (caught is None or ast.unparse(caught) in ("Exception", "BaseException")):
                broad.add(short(module))
    assert broad <= {"worker.worker", "worker.trainer", "api.errors", "inference.server"}


def loaded_by(code: str) -> set[str]:
    heavy = ("torch", "transformers", "peft", "numpy", "matplotlib", "sqlalchemy", "fastapi", "pydantic", "rich")
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*(name for name in {heavy!r} if name in sys.modules))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(done.stdout.split())


def test_what_the_light_parts_load() -> None:
    assert loaded_by("import tunesmith") == set()
    assert loaded_by("import tunesmith.cli") <= {"rich"}  # typer brings it
    assert not loaded_by("import tunesmith.server") & {"torch", "transformers", "peft", "numpy", "matplotlib"}
    assert not loaded_by("import tunesmith.run") & {"torch", "transformers", "matplotlib"}
    assert not loaded_by("import tunesmith.worker.worker") & {"torch", "transformers", "matplotlib"}
