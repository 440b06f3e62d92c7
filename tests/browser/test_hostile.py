"""Text that would like to be a script, wherever a stranger's text is shown: none runs, none breaks the CSP, each is shown as it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tunesmith.domain.jobs import Event, JobError
from tunesmith.services import Context, files
from tunesmith.store import jobs

from ..contract import serving
from ..contract.serving import BASE, Parrot, Serving
from . import seeded
from .conftest import Deploy, OpenPage

_RUN = "window.ran=1"
_VECTORS = (
    f"<script>{_RUN}</script>", f"<ScRiPt>{_RUN}</sCrIpT>", f'"><script>{_RUN}</script>', f"'><script>{_RUN}</script>",
    f"</textarea><script>{_RUN}</script>", f"</title><script>{_RUN}</script>", f"</style><script>{_RUN}</script>",
    f"</script><script>{_RUN}</script>", f"--><script>{_RUN}</script>", f"]]><script>{_RUN}</script>",
    f"<img src=x onerror={_RUN}>", f'<img src="x" onerror="{_RUN}"', f"<svg onload={_RUN}>", f"<svg><script>{_RUN}</script></svg>",
    f"<svg><animate onbegin={_RUN} attributeName=x>", f"<body onload={_RUN}>", f"<details open ontoggle={_RUN}>",
    f"<video><source onerror={_RUN}>", f"<audio src=x onerror={_RUN}>", f"<input autofocus onfocus={_RUN}>",
    f"<select autofocus onfocus={_RUN}>", f"<marquee onstart={_RUN}>", "<iframe srcdoc='<script>parent.ran=1</script>'>",
    f"<iframe src=javascript:{_RUN}>", f"<object data=javascript:{_RUN}>", f"<embed src=javascript:{_RUN}>",
    f"<a href=javascript:{_RUN}>x</a>", f"javascript:{_RUN}", f"data:text/html,<script>{_RUN}</script>",
    f"<math href=javascript:{_RUN}>x</math>", "<base href=//evil.example>", "<link rel=stylesheet href=//evil.example>",
    "<style>@import '//evil.example'</style>", "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<form action=//evil.example><button>x", "{{constructor.constructor('" + _RUN + "')()}}", "${" + _RUN + "}", "#{" + _RUN + "}",
    f"<x contenteditable onblur={_RUN}>", f"<template><script>{_RUN}</script></template>", f"`-{_RUN}-`",
)  # fmt: skip
_DISGUISES = (
    lambda text: text,
    lambda text: text.upper().replace("WINDOW.RAN", "window.ran"),
    lambda text: text.replace("<", "&lt;&#60;<"),
    lambda text: "\u202e" + text.replace(" ", "\u00a0"),
    lambda text: text.replace("<", "<\u200b") + text,
    lambda text: text.replace(" ", "/").replace("<", "<\t"),
)
PAYLOADS = [disguise(vector) for disguise in _DISGUISES for vector in _VECTORS]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, deploy: Deploy) -> Iterator[tuple[Serving, str, str]]:
    """A server where every name, row, event and error is a payload; the id of a failed job with all its events, and of a file of rows."""
    assert len(set(PAYLOADS)) >= 200
    with serving.serve(deploy(tmp_path_factory.mktemp("hostile")), Parrot()) as server:
        context = server.context
        rows = [{"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text}]} for text in PAYLOADS]
        for text in PAYLOADS:
            training_file = _upload(context, text + ".jsonl", rows[:12])
            seeded.create(context, training_file=training_file, suffix=_suffix(text), metadata={"note": text[:512]})
        while True:
            try:
                job = serving.validate(context)
            except AssertionError:
                break
            jobs.request_cancel(context.db, job.id)
        rows_file = _upload(context, PAYLOADS[0], rows)
        job = seeded.run(context, seeded.curve(30, 30), training_file=rows_file, validation_file=rows_file, suffix=_suffix(PAYLOADS[0]))
        jobs.record(context.db, job.id, job.fence, events=[Event(text, f"x:{n}", level="warn") for n, text in enumerate(PAYLOADS)])
        error = JobError("non_finite", PAYLOADS[12] + PAYLOADS[0])
        jobs.move(context.db, job.id, job.fence, "failed", events=[Event(error.message, "failed", level="error")], error=error)
        yield server, job.id, rows_file


def _upload(context: Context, filename: str, rows: list[Any]) -> str:
    with files.Upload(context) as incoming:
        incoming.write("".join(json.dumps(row) + "\n" for row in rows).encode())
        return incoming.finish(filename=filename, purpose="fine-tune").id


def _suffix(text: str) -> str:
    return text.replace(":", "").replace("/", "")[:64]


def settled(page: Page) -> None:
    """Give whatever would run the time to run, and see that nothing did."""
    page.wait_for_load_state("load")
    page.wait_for_timeout(500)
    assert page.evaluate("window.ran") is None
    assert page.evaluate("document.querySelectorAll('script:not([src]), iframe, object, embed, base').length") == 0
    assert page.url.startswith("http://127.0.0.1")


def test_lists(open_page: OpenPage, hostile: tuple[Serving, str, str]) -> None:
    server, _, _ = hostile
    for path, more in (("/", 5), ("/files", 5), ("/models", 0), ("/compare", 0), ("/jobs/new", 0), ("/try", 0)):
        page = open_page(server.url, path)
        expect(page.locator("h1")).to_be_visible()
        for _ in range(more):
            page.wait_for_timeout(300)
            button = page.get_by_role("button", name="Load more")
            if button.count():
                button.click()
        settled(page)
        if more:
            shown = page.text_content("body") or ""
            missing = [text for text in PAYLOADS if (_suffix(text) if path == "/" else _name(text)) not in shown]
            assert not missing, (path, len(missing), missing[:3])
        page.close()


def _name(text: str) -> str:
    """Return what an upload keeps of a file's name."""
    last = (text + ".jsonl").replace("\\", "/").rpartition("/")[2]
    return "".join(character for character in last if character.isprintable())


def test_a_job_and_all_it_says(open_page: OpenPage, hostile: tuple[Serving, str, str]) -> None:
    server, job_id, _ = hostile
    page = open_page(server.url, f"/jobs/{job_id}")
    expect(page.locator("h1")).to_be_visible()
    page.wait_for_timeout(500)
    for _ in range(3):
        button = page.get_by_role("button", name="older", exact=False)
        if button.count():
            button.first.click()
            page.wait_for_timeout(300)
    settled(page)
    shown = page.text_content("body") or ""
    assert PAYLOADS[12] + PAYLOADS[0] in shown
    missing = [text for text in PAYLOADS if text not in shown]
    assert not missing, (len(missing), missing[:3])


@pytest.mark.parametrize(
    "path",
    ["/compare?jobs={job}", "/jobs/new?from={job}", "/jobs/new?training_file={file}&validation_file={file}", "/try?file={file}&line=1"],
)
def test_screens_that_show_its_parts(open_page: OpenPage, hostile: tuple[Serving, str, str], path: str) -> None:
    server, job_id, rows_file = hostile
    page = open_page(server.url, path.format(job=job_id, file=rows_file))
    expect(page.locator("h1")).to_be_visible()
    page.wait_for_timeout(1500)
    settled(page)


def test_addresses(open_page: OpenPage, hostile: tuple[Serving, str, str]) -> None:
    server, _, _ = hostile
    page = open_page(server.url, "/", expect=("404", "400"))
    for text in PAYLOADS[::20]:
        for path in ("/?q=", "/?status=", "/try?models=", "/compare?jobs=", "/jobs/new?model=", "/models?q=", "/files?q="):
            page.goto(path + page.evaluate("text => encodeURIComponent(text)", text), wait_until="commit")
        settled(page)


def test_what_a_model_says(open_page: OpenPage, hostile: tuple[Serving, str, str], tmp_path: Path) -> None:
    """The parrot says each prompt again."""
    server, _, _ = hostile
    page = open_page(server.url, f"/try?models={BASE}")
    prompt = page.get_by_label("Prompt", exact=False).or_(page.get_by_label("Message", exact=False)).first
    for start in range(0, len(PAYLOADS), 40):
        prompt.fill("\n".join(PAYLOADS[start : start + 40]))
        page.keyboard.press("Control+Enter")
        page.wait_for_timeout(700)
    settled(page)
    assert "onerror=" in (page.text_content("main") or "")
