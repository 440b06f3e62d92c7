"""Docs and code cannot drift: what the code has is documented, what the docs name exists, generated parts are fresh."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
import typer

from tunesmith import cli
from tunesmith.api import generation
from tunesmith.domain import datasets, jobs
from tunesmith.domain.findings import CODES
from tunesmith.domain.runs import CSV_COLUMNS, MetricPoint
from tunesmith.domain.specs import HYPERPARAMETERS
from tunesmith.errors import DataError
from tunesmith.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md"), *(ROOT / "examples").glob("*/*.md")])
GENERATED = re.compile(r"<!-- generated: .*?<!-- end -->", re.DOTALL)


def generator() -> Any:
    """Return docs/generate.py as a module."""
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = generator()


def text(name: str) -> str:
    return (DOCS / name).read_text()


def missing(names: Iterable[str], page: str) -> list[str]:
    """Return the names that a page nowhere has in code marks, whatever stands beside them there."""
    said = " ".join(re.findall(r"`([^`\n]+)`", page))
    return [name for name in names if not re.search(rf"(?<![\w./-]){re.escape(name)}(?![\w./-])", said)]


def test_missing_finds_what_is_not_there() -> None:
    assert missing(["seed", "GET /v1/files", "n_steps", "lora"], "`--seed` alone, `seed`, `GET /v1/files/{id}`, `n_steps_x`") == [
        "GET /v1/files",
        "n_steps",
        "lora",
    ]


# --- what is generated ---


@pytest.mark.parametrize("page", generate.pages(), ids=lambda page: page.name)
def test_generated_parts_are_fresh(page: Path) -> None:
    assert page.read_text() == generate.pages()[page], "run `make docs`"


def test_every_part_is_used_once() -> None:
    used = [name for page in DOCS.glob("*.md") for name in re.findall(r"<!-- generated: ([\w-]+) -->", page.read_text())]
    assert sorted(used) == sorted(generate.PARTS)


def test_a_stale_part_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(generate.PARTS, "settings", lambda: "another table")
    assert generate.pages()[DOCS / "settings.md"] != text("settings.md")


# --- what the code has is documented ---


def test_every_setting() -> None:
    assert missing([f"TUNESMITH_{name.upper()}" for name in Settings.model_fields] + ["TUNESMITH_CONFIG"], text("settings.md")) == []
    assert all(field.description for field in Settings.model_fields.values())


def test_the_example_of_a_settings_file_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = re.search(r"```toml\n(.*?)```", text("settings.md"), re.DOTALL)
    assert block
    (tmp_path / "file.toml").write_text(block[1])
    monkeypatch.setenv("TUNESMITH_CONFIG", str(tmp_path / "file.toml"))
    loaded = Settings.load()
    assert loaded.model_aliases == {"gpt-4o-mini": "smollm2-135m-instruct"} and len(loaded.allowed_models) == 2


def test_every_hyperparameter_is_explained_besides_the_table() -> None:
    assert missing([h.name for h in HYPERPARAMETERS], GENERATED.sub("", text("hyperparameters.md"))) == []


def test_every_endpoint() -> None:
    rows = re.findall(r"^\| `([A-Z]+ /[^`]*)` \|", generate.endpoints(), re.MULTILINE)
    assert len(rows) > 20 and "POST /v1/fine_tuning/jobs/{job_id}/cancel" in rows
    assert missing(rows, text("api.md")) == []


@pytest.mark.parametrize("endpoint", [generation.CHAT, generation.COMPLETIONS])
def test_every_generation_parameter(endpoint: Any) -> None:
    names = {*generation.OBEYED[endpoint], *generation.IGNORED[endpoint], *generation.REFUSED[endpoint]}
    assert missing(sorted(names), text("api.md").split("## Chat completions", 1)[1]) == []


def test_every_command_and_option() -> None:
    page = text("cli.md")
    for name, command in commands().items():
        section = page.split(f"### tunesmith {name}\n", 1)[1].split("###", 1)[0]
        assert missing(sorted(options(command)), section) == []


@pytest.mark.parametrize("code", CODES)
def test_every_finding_has_a_section(code: str) -> None:
    section = next((part for part in text("diagnosis.md").split("\n### ")[1:] if part.startswith(f"`{code}`\n")), "")
    for heading in ("How it looks", "What it means", "What to do"):
        said = re.search(rf"^\*\*{heading}\.\*\* (.+)$", section, re.MULTILINE)
        assert said is not None and len(said[1]) >= 8, f"{code}: {heading}"


def test_no_section_is_of_a_finding_that_is_not() -> None:
    assert re.findall(r"^### `(\w+)`$", text("diagnosis.md"), re.MULTILINE) == list(CODES)


def test_every_metric_and_status() -> None:
    page = text("how-it-works.md")
    assert missing([field.name for field in fields(MetricPoint)], page) == []
    assert missing({*CSV_COLUMNS.values()} - {field.name for field in fields(MetricPoint)}, page) == []
    assert [status for status in get_args(jobs.Status) if status not in page] == []


def code_values(node: ast.AST) -> list[ast.expr]:
    """Return the expressions that a syntax node makes an error code of."""
    match node:
        case ast.keyword(arg="code", value=value):
            return [value]
        case ast.Dict(keys=keys, values=values):
            return [value for key, value in zip(keys, values, strict=True) if getattr(key, "value", "") == "code"]
        case ast.Assign(targets=[ast.Name(id="code")], value=value) | ast.AnnAssign(target=ast.Name(id="code"), value=ast.expr() as value):
            return [value]
        case ast.BoolOp(values=[ast.Attribute(attr="code"), *values]):  # error.code or "..."
            return values
        case ast.Call(func=ast.Name(id="_error" | "JobError"), args=args):
            return args[:2]
    return []


def error_codes(source: str) -> set[str]:
    """Return every error code that a module's source sets."""
    texts: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        for value in code_values(node):
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                texts.add(value.value)
            elif isinstance(value, ast.JoinedStr):  # f"invalid_{role}_file"
                for role in get_args(datasets.Role):
                    texts.add("".join(str(part.value) if isinstance(part, ast.Constant) else role for part in value.values))
    return {text for text in texts if re.fullmatch("[a-z]+(_[a-z]+)*", text)}


def test_every_error_code() -> None:
    codes = set().union(*(error_codes(path.read_text()) for path in (ROOT / "tunesmith").rglob("*.py")))
    assert {"model_not_found", "unknown_parameter", "invalid_validation_file", "invalid_n_examples", "out_of_memory", "non_finite"} <= codes
    assert missing(sorted(codes), text("api.md")) == []


GOOD = b'{"messages": [{"role": "user", "content": "2?"}, {"role": "assistant", "content": "4"}]}\n'


@pytest.mark.parametrize(
    "line",
    [
        b'{"text": "hello"}',
        b'{"prompt": "a", "completion": "b"}',
        b'{"input": {}, "preferred_output": []}',
        b'{"messages": [{"role": "user", "content": "2?"}, {"role": "assistant", "content": "4", "wieght": 1}]}',
        b'{"messages": [{"role": "user", "content": "2?"}, {"content": "4"}]}',
        b'{"messages": [{"role": "user", "content": "2?"}, {"role": "asistant", "content": "4"}]}',
        b'{"messages": [{"role": "user", "content": "2?"}, {"role": "assistant"}]}',
        b'{"messages": [{"role": "user", "content": "2?"}, {"role": "assistant", "content": 4}]}',
        b'{"messages": [{"role": "user", "content": "2?"}]}',
        b'{"messages": [{"role": "assistant", "content": "4", "weight": 0}]}',
        b"",
    ],
)
def test_errors_of_training_files_have_the_documented_words(line: bytes) -> None:
    with pytest.raises(DataError) as raised:
        datasets.check([GOOD, GOOD, line + b"\n", *[GOOD] * 9])
    begin = "The job failed due to an invalid training file. Invalid file format. "
    assert raised.value.message.startswith(begin)
    documented = [words.removesuffix("...`").strip("`") for words in re.findall(r"`Example 3.*?`(?= \|)", text("data-formats.md"))]
    assert any(raised.value.message.removeprefix(begin).startswith(words) for words in documented), raised.value.message


def test_too_few_examples_have_the_documented_words() -> None:
    with pytest.raises(DataError) as raised:
        datasets.check([GOOD] * 7)
    assert f"`{raised.value.message}`" in text("data-formats.md")


# --- what the docs name exists ---


def commands() -> dict[str, Any]:
    group: Any = typer.main.get_command(cli.app)
    return dict(group.commands)


def options(command: Any) -> set[str]:
    """Return the names of a command's options that are shown."""
    return {
        name for p in command.params if not getattr(p, "hidden", False) for name in (*p.opts, *p.secondary_opts) if name.startswith("--")
    }


def shell_lines(page: Path) -> list[str]:
    """Return every line of a page's shell blocks, and every code span that is a command."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    spans = re.findall(r"(?<!`)`((?:make|tunesmith|\.venv/bin/tunesmith) [^`\n]+)`(?!`)", page.read_text())
    return [re.split(r"\s#\s", line)[0].strip() for line in "\n".join([*blocks, *spans]).splitlines() if line.strip()]


def make_targets() -> list[str]:
    return re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_the_docs_exist(page: Path) -> None:
    known = commands()
    for line in shell_lines(page):
        words = [word for word in line.split() if "=" not in word]
        if words[:1] == ["make"]:
            assert set(words[1:]) <= set(make_targets()), line
        elif words and words[0].endswith("tunesmith"):
            assert words[1] in known, line
            assert {word for word in words[2:] if word.startswith("--")} <= options(known[words[1]]), line
        for word in words:
            if word.startswith(("examples/", "tests/", "benchmarks/")):
                assert (ROOT / word).exists(), line


def test_the_readme_has_the_two_commands() -> None:
    lines = shell_lines(ROOT / "README.md")
    assert lines[:2] == ["make demo", "make test"]
    assert {"demo", "test", "install", "docs"} <= set(make_targets())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            heads = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads], link


def test_the_tree_of_the_readme_is_the_house() -> None:
    tree = re.search(r"```\n(tunesmith/.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert tree
    names = {line: line.split()[0] for line in tree[1].splitlines()}
    inside = {name for line, name in names.items() if line.startswith("  ")}
    named = inside | set(re.findall(r"\b\w+\.py\b", tree[1]))
    house = {
        path.name + "/" * path.is_dir()
        for path in (ROOT / "tunesmith").iterdir()
        if path.suffix == ".py" or (path.is_dir() and any(path.glob("*.py")))
    }
    assert house <= named, "a module or room that the README does not name"
    assert inside <= house, "the README names what is not there"
    for name in set(names.values()) - inside:
        assert (ROOT / name).is_dir(), name


def test_the_licence_is_whole() -> None:
    words = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in words and "9. Accepting Warranty or Additional Liability" in words and "APPENDIX" in words
