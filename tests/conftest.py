"""Fixtures every test may use: the real small model, made once and kept in the cache directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.services import bases
from tunesmith.settings import Settings


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Return the directory of SmolLM2-135M-Instruct, converted from its wheel when it is not in the cache yet."""
    return bases.ready(Settings.load(), "smollm2-135m-instruct").directory
