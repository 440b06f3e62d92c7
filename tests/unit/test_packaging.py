"""What a wheel must contain besides code; made from a copy, so that nothing is left in the tree."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_wheel_has_the_dashboard_and_the_example(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROOT / "tunesmith", source / "tunesmith", ignore=shutil.ignore_patterns("__pycache__", "*.so", ".build-*"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        str(tmp_path),
        str(source),
    ]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {"dashboard/dist/index.html", "templates/login.html", "example/train.jsonl", "example/valid.jsonl", "py.typed"}
    assert {f"tunesmith/{name}" for name in wanted} <= names
    assert {path.name for path in (ROOT / "tunesmith/dashboard/dist/assets").iterdir()} <= {Path(name).name for name in names}
    assert any(name.startswith("tunesmith/training/kernels/native/") for name in names)
    assert not any("node_modules" in name or name.startswith(("web/", "tests/")) for name in names)
