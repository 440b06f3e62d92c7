"""Find the Chromium that browser tests use, or install one: `python tests/browser/chromium.py`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

_NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
#: Chromium without a screen, without a sandbox inside a container's, and without calls home.
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync")  # fmt: skip


def path() -> str | None:
    """Return the system's Chromium, or None: Playwright then takes its own."""
    return next((found for name in _NAMES if (found := shutil.which(name))), None)


def install() -> None:
    """Install Chromium by apt where that is allowed, else Playwright's own."""
    apt, root = shutil.which("apt-get"), [] if os.geteuid() == 0 else ["sudo", "-n"]
    if apt and (not root or shutil.which("sudo")):
        print("==> Installing Chromium for the browser tests", flush=True)
        quiet = {"stdout": subprocess.DEVNULL, "check": False}
        package = [*root, apt, "install", "-y", "--no-install-recommends", "chromium"]
        if subprocess.run(package, **quiet).returncode == 0:
            return
        if subprocess.run([*root, apt, "update"], **quiet).returncode == 0 and subprocess.run(package, **quiet).returncode == 0:
            return
    subprocess.run([sys.executable, "-m", "playwright", "install", "--with-deps", "chromium"], check=True)


if __name__ == "__main__":
    if path() is None:
        install()
