"""What the API process must not carry, and the line check of uploads, whatever pieces a file arrives in."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunesmith import services
from tunesmith.errors import InvalidRequest
from tunesmith.services import files
from tunesmith.settings import Settings

HEAVY = ("torch", "transformers", "peft", "numpy", "matplotlib", "alembic")


def test_the_api_loads_no_torch() -> None:
    code = f"import sys, tunesmith.api.app; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def context(tmp_path: Path) -> Iterator[services.Context]:
    opened = services.open(Settings(data_dir=tmp_path, cache_dir=tmp_path))
    yield opened
    opened.close()


def verdict(context: services.Context, content: bytes, piece: int) -> str:
    """Upload `content` in pieces and return the error, or nothing."""
    with files.Upload(context) as upload:
        for start in range(0, len(content), piece):
            upload.write(content[start : start + piece])
        try:
            row = upload.finish(filename="t.jsonl", purpose="fine-tune")
        except InvalidRequest as error:
            return error.message
    assert context.blobs.path(row.id).read_bytes() == content
    return ""


@pytest.mark.parametrize(
    "content",
    [b'{"a":1}\n{"b":2}\n', b'\xef\xbb\xbf{"a":1}\r\n{"b":2}\n\n', b'{"a":1}\n\n{"b":2}', b'{"a":1}\n[2]\n{"b":', b'{"a":1}\nx', b"\n\n"],
)
def test_the_verdict_does_not_depend_on_the_pieces(context: services.Context, content: bytes) -> None:
    whole = verdict(context, content, len(content))
    assert {verdict(context, content, piece) for piece in range(1, len(content))} == {whole}


def test_a_line_without_end_is_refused_without_being_held(context: services.Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.datasets, "MAX_LINE_BYTES", 1000)
    assert "Line 2 has more than 1000 bytes" in verdict(context, b'{"a":1}\n' + b"x" * 5000, 100)
    assert "Line 2 has more than 1000 bytes" in verdict(context, b'{"a":1}\n' + b"x" * 5000 + b"\n{}", 7000)
    assert verdict(context, b'{"a":"' + b"x" * 900 + b'"}\n', 100) == ""
