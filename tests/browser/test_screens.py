"""Every screen, in every state it can be in: nothing for axe to find, nothing wider than the window, no error in the console."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from ..contract.serving import BASE, Serving
from . import seeded
from .conftest import OpenPage, Theme, overflow, violations

#: Path, with names of `seeded.Jobs` to be filled in, and the words of its first heading.
SCREENS = {
    "jobs": ("/", "Jobs"),
    "jobs-none": ("/?q=nothing-is-called-so", "Jobs"),
    "new": ("/jobs/new", "New job"),
    "new-file": ("/jobs/new?training_file={training_file}&model=" + BASE, "New job"),
    "new-from": ("/jobs/new?from={overfit}", "New job"),
    "job-succeeded": ("/jobs/{succeeded}", "support"),
    "job-overfit": ("/jobs/{overfit}?finding=overfitting&x=epoch&log=1", seeded.LONG),
    "job-running": ("/jobs/{running}", "running"),
    "job-paused": ("/jobs/{paused}", "paused"),
    "job-failed": ("/jobs/{failed}", "failed"),
    "job-cancelled": ("/jobs/{cancelled}", "cancelled"),
    "job-queued": ("/jobs/{queued}", "queued-1"),
    "job-validating": ("/jobs/{validating}", ""),
    "job-unknown": ("/jobs/ftjob-no", ""),
    "compare": ("/compare?jobs={succeeded},{overfit},{running}", "Compare"),
    "compare-none": ("/compare", "Compare"),
    "try": ("/try?models={tuned},tiny-llama", "Try"),
    "models": ("/models", "Models"),
    "files": ("/files", "Files"),
}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", SCREENS)
def test_a_screen(open_page: OpenPage, seeded_server: tuple[Serving, seeded.Jobs], name: str, theme: Theme) -> None:
    server, made = seeded_server
    path, heading = SCREENS[name]
    page = open_page(server.url, path.format(**made.__dict__), theme=theme, expect=("404",) if name == "job-unknown" else ())
    expect(page.locator("h1")).to_contain_text(heading)
    page.wait_for_load_state("load")
    page.wait_for_timeout(600)  # charts, reports and pictures of rows come after the first paint
    assert violations(page) == []
    for width in (380, 2560):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(100)
        assert overflow(page) <= 0, f"at {width} pixels"
    if theme == "light":
        page.set_viewport_size({"width": 380, "height": 900})
        assert violations(page) == [], "narrow"


def test_an_empty_server_shows_how_to_begin(open_page: OpenPage, empty_server: Serving) -> None:
    page = open_page(empty_server.url)
    expect(page.get_by_text("client.fine_tuning.jobs.create")).to_be_visible()
    expect(page.get_by_role("button", name="Try the example")).to_be_visible()
    assert violations(page) == []
    for path in ("/compare", "/try", "/models", "/files", "/jobs/new"):
        page.goto(path)
        expect(page.locator("h1")).to_be_visible()
        page.wait_for_timeout(300)
        assert violations(page) == [], path


def test_a_path_that_is_no_screen(open_page: OpenPage, empty_server: Serving) -> None:
    page = open_page(empty_server.url, "/nothing/here", expect=("404",))
    assert "error" in (page.text_content("body") or "").lower()
