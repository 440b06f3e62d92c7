"""A real Chromium on a real server. Each page that a test opens must end without a script error and without a breach of the CSP."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tunesmith.settings import Settings

from ..contract import serving
from ..contract.serving import KEY, Parrot, Serving
from . import chromium, seeded

AXE = Path(__file__).parents[2] / "web" / "node_modules" / "axe-core" / "axe.min.js"
#: Reported by the browser itself, wherever it happens.
_LISTEN = "addEventListener('securitypolicyviolation', e => console.error('CSP: ' + e.violatedDirective + ' ' + e.blockedURI), true)"

Theme = Literal["light", "dark"]
OpenPage = Callable[..., Page]


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """A browser that ends with these tests: its event loop runs for as long as it does, and others' async tests need their own."""
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium.path(), args=list(chromium.ARGUMENTS))
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Open pages of a server, logged in; `expect` are the words of console errors that the test provokes."""
    contexts, problems, expected = [], [], []

    def note(text: str) -> None:
        if not any(words in text for words in expected):
            problems.append(text)

    def make(
        url: str, path: str = "/", *, theme: Theme = "light", width: int = 1280, key: str | None = KEY, expect: tuple[str, ...] = ()
    ) -> Page:
        expected.extend(expect)
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme, base_url=url, reduced_motion="reduce")
        contexts.append(context)
        context.add_init_script(_LISTEN)
        page = context.new_page()
        page.on("console", lambda message: note(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: note(str(error)))
        page.on(
            "request",
            lambda request: note(f"left the origin: {request.url}") if not request.url.startswith((url, "data:", "blob:")) else None,
        )
        page.set_default_timeout(20_000)
        if key is not None:
            assert context.request.post("/login", form={"key": key}, max_redirects=0).status == 303
        page.goto(path)
        return page

    yield make
    for context in contexts:
        context.close()
    assert problems == []


Deploy = Callable[[Path], Settings]


@pytest.fixture(scope="session")
def deploy(tiny: Path) -> Deploy:
    """Make the settings of a deployment whose base has a tokenizer, so that rows can be shown as it sees them."""

    def make(directory: Path) -> Settings:
        made = serving.settings(directory)
        for path in tiny.glob("*token*"):
            shutil.copy(path, Path(made.allowed_models[0]))
        return made

    return make


@pytest.fixture(scope="session")
def seeded_server(tmp_path_factory: pytest.TempPathFactory, deploy: Deploy) -> Iterator[tuple[Serving, seeded.Jobs]]:
    """A server with a job in each state, for tests that change nothing."""
    with serving.serve(deploy(tmp_path_factory.mktemp("seeded")), Parrot()) as server:
        yield server, seeded.fill(server.context)


@pytest.fixture
def empty_server(tmp_path: Path, deploy: Deploy) -> Iterator[Serving]:
    """A server that nobody has used yet."""
    with serving.serve(deploy(tmp_path), Parrot()) as server:
        yield server


def violations(page: Page) -> list[str]:
    """Return what axe finds wrong with the page, as one line each."""
    session = page.context.new_cdp_session(page)
    session.send("Runtime.evaluate", {"expression": AXE.read_text()})  # not by a script element, which the CSP forbids
    found: list[dict[str, Any]] = page.evaluate("axe.run().then(result => result.violations)")
    return [f"{one['id']}: {node['html'][:200]} {node['failureSummary']}" for one in found for node in one["nodes"]]


def overflow(page: Page) -> int:
    """Return by how many pixels the page is wider than its window."""
    return int(page.evaluate("document.documentElement.scrollWidth - innerWidth"))
