"""Building the C++ kernels: it needs no torch, says what it did, and never leaves half a library; and they were built here."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith.training.kernels import build, cpu


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Build into an empty folder, for a processor that has what is needed."""
    monkeypatch.setattr(build, "HERE", tmp_path)
    monkeypatch.setattr(build, "processor_flags", lambda: build.NEEDED)
    return tmp_path


def reason() -> str:
    loaded = cpu._library.__wrapped__()
    assert isinstance(loaded, str)
    return loaded


@pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")
@pytest.mark.skipif(not build.processor_flags() >= build.NEEDED, reason="no AVX-512")
def test_they_were_built_here() -> None:
    """Where they can be built, every other test of them must have run."""
    assert cpu.available()[0], f"{cpu.available()[1]} (or: make install)"


def test_building_needs_no_torch() -> None:
    code = "import sys, tunesmith.training.kernels.build; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_without_a_compiler(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(elsewhere))
    monkeypatch.setenv("CXX", "c++ -m64")
    said = build.build()
    assert "there is no C++ compiler" in said and build.COMMAND in said and "\n" not in said
    assert reason() == f"no compiler was there at install; `{build.COMMAND}` makes them"


def test_a_compiler_that_fails_leaves_nothing(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = elsewhere / "fails"
    fake.write_text("#!/bin/sh\necho 'x.cpp:1: error: this is not C++' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    assert "error: this is not C++" in build.build()
    assert sorted(elsewhere.iterdir()) == [fake]


def test_a_library_that_does_not_load(elsewhere: Path) -> None:
    build.library().write_bytes(b"not a library")
    assert reason().startswith("they do not load")


def test_a_processor_without_avx512(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "processor_flags", lambda: frozenset({"sse2", "avx2"}))
    assert "this processor has no AVX-512" in build.build()
    assert reason() == "this processor has no AVX-512"


def test_built_for_another_processor_or_from_other_sources(elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = build.library()
    library.touch()
    monkeypatch.setattr(build, "processor_flags", lambda: build.NEEDED | {"ibpb"})
    assert build.library() == library
    monkeypatch.setattr(build, "processor_flags", lambda: build.NEEDED | {"avx512_bf16"})
    assert reason().startswith("they were built for another processor")
    native = tmp_path / "native"
    shutil.copytree(build.NATIVE, native)
    (native / "simd.h").write_text("// changed\n")
    monkeypatch.setattr(build, "NATIVE", native)
    assert reason().startswith("they were built from other sources")
