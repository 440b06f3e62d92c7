"""A job as it goes, seen in a browser: no step is lost, none drawn twice, whatever happens to the page, the network and the server."""

from __future__ import annotations

import csv
import dataclasses
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tunesmith.domain.jobs import Job
from tunesmith.services import Context
from tunesmith.store import jobs, queue, records

from ..contract import serving
from ..contract.serving import Parrot, Serving
from . import seeded
from .conftest import OpenPage

TOTAL = 100_000


@dataclasses.dataclass
class Trainer:
    """Says a step of a running job every few milliseconds, as a worker does."""

    context: Context
    job: Job
    step: int = 1
    stopping: threading.Event = dataclasses.field(default_factory=threading.Event)

    def train(self) -> None:
        """Go on until it is stopped."""
        points = seeded.curve(3_000, TOTAL)
        while not self.stopping.wait(0.02):
            jobs.record(self.context.db, self.job.id, self.job.fence, points=[points[self.step]], events=[points[self.step].event()])
            self.step += 1


@contextmanager
def training(server: Serving) -> Iterator[Trainer]:
    """A running job that grows."""
    trainer = Trainer(server.context, seeded.run(server.context, seeded.curve(0, TOTAL), suffix="live", validation_file=None))
    thread = threading.Thread(target=trainer.train)
    thread.start()
    try:
        yield trainer
    finally:
        trainer.stopping.set()
        thread.join()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Serving]:
    with serving.serve(serving.settings(tmp_path), Parrot()) as running:
        yield running


def drawn(page: Page) -> list[int]:
    """Return the steps that the page has drawn."""
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV").click()
    with open(download.value.path()) as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def step_shown(page: Page) -> int:
    """Return how far the page says the job is, -1 before it knows."""
    digits = re.sub(r"[^0-9]", "", page.locator("dl.figures dd").nth(2).inner_text().partition("/")[0])
    return int(digits) if digits else -1


def wait_for_step(page: Page, trainer: Trainer, more: int = 20) -> None:
    """Wait until the page shows steps made from now on."""
    wanted, deadline = trainer.step + more, time.monotonic() + 30
    while step_shown(page) < wanted:
        assert time.monotonic() < deadline, f"the page stands still at step {step_shown(page)} of {trainer.step}"
        page.wait_for_timeout(50)


def all_there(page: Page, trainer: Trainer) -> None:
    """Stop the job and see that the page drew each step once."""
    trainer.stopping.set()
    page.wait_for_timeout(1_000)
    steps = [row.data["step"] for row in records.metrics_after(trainer.context.db, trainer.job.id, limit=100_000)]
    assert drawn(page) == steps == list(range(len(steps))) and len(steps) > 40


def test_charts_move_and_a_reload_loses_nothing(open_page: OpenPage, server: Serving) -> None:
    with training(server) as trainer:
        page = open_page(server.url, f"/jobs/{trainer.job.id}")
        expect(page.locator("canvas")).to_have_count(2)
        before = page.locator("canvas").first.screenshot()
        wait_for_step(page, trainer)
        assert page.locator("canvas").first.screenshot() != before
        page.reload()
        wait_for_step(page, trainer)
        all_there(page, trainer)


def test_the_figures_are_asked_for_once(open_page: OpenPage, server: Serving) -> None:
    """The page's header has the browser ask for them before the script does; the script must then want the same."""
    job = seeded.run(server.context, seeded.curve(30, 240))
    page = open_page(server.url)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/metrics" in request.url else None)
    page.goto(f"/jobs/{job.id}")
    expect(page.locator("canvas")).to_have_count(2)
    assert len(asked) == 1


def test_a_cut_connection_loses_nothing(open_page: OpenPage, server: Serving) -> None:
    with training(server) as trainer:
        page = open_page(server.url, f"/jobs/{trainer.job.id}", expect=("ERR_INTERNET_DISCONNECTED", "ERR_NETWORK"))
        wait_for_step(page, trainer)
        for _ in range(2):
            page.context.set_offline(True)
            page.wait_for_timeout(1_500)
            page.context.set_offline(False)
            wait_for_step(page, trainer)
        all_there(page, trainer)


def test_a_restart_of_the_server_loses_nothing(open_page: OpenPage, tmp_path: Path) -> None:
    deployment = serving.settings(tmp_path)
    with serving.serve(deployment, Parrot()) as server:
        port = int(server.url.rpartition(":")[2])
        trainer = Trainer(server.context, seeded.run(server.context, seeded.curve(0, TOTAL), suffix="live", validation_file=None))
        page = open_page(
            server.url,
            f"/jobs/{trainer.job.id}",
            expect=("ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_EMPTY_RESPONSE"),
        )
        expect(page.get_by_text("live", exact=True)).to_be_visible()
    for _ in range(2):
        page.wait_for_timeout(700)
        with serving.serve(deployment, Parrot(), port=port) as server:
            trainer = dataclasses.replace(trainer, context=server.context, stopping=threading.Event())
            thread = threading.Thread(target=trainer.train)
            thread.start()
            wait_for_step(page, trainer, 40)
            trainer.stopping.set()
            thread.join()
            all_there(page, trainer)
        expect(page.locator(".connection")).to_have_text("reconnecting")


def test_the_verdict_appears_and_the_end(open_page: OpenPage, server: Serving) -> None:
    job = seeded.run(server.context, seeded.curve(30, 240, overfits=True), suffix="soon")
    page = open_page(server.url, f"/jobs/{job.id}")
    expect(page.locator("h1")).to_contain_text("Running")
    points = seeded.curve(240, 240, overfits=True)[31:]
    jobs.record(server.context.db, job.id, job.fence, points=points, events=[point.event() for point in points])
    serving.diagnose(server.context, job)
    expect(page.get_by_text("Overfitting:").first).to_be_visible()
    page.get_by_role("link", name="Overfitting", exact=False).or_(page.get_by_role("button", name="Overfitting", exact=False)).first.click()
    expect(page).to_have_url(re.compile("finding=overfitting"))
    serving.diagnose(server.context, job, final=True)
    serving.finish(server.context, job, (80, 160, 240))
    expect(page.locator("h1")).to_contain_text("Succeeded")
    expect(page.get_by_role("link", name="Try", exact=True).first).to_be_visible()


def test_pause_resume_cancel(open_page: OpenPage, server: Serving) -> None:
    job = seeded.run(server.context, seeded.curve(30, 240), suffix="steered")
    page = open_page(server.url, f"/jobs/{job.id}")
    page.get_by_role("button", name="Pause", exact=True).click()
    expect(page.get_by_text("Pausing at the next checkpoint.")).to_be_visible()
    assert jobs.get(server.context.db, job.id).request == "pause"
    queue.release(server.context.db, job.id, job.fence)
    expect(page.locator("h1")).to_contain_text("Paused")
    page.get_by_role("button", name="Resume", exact=True).click()
    expect(page.locator("h1")).to_contain_text("Queued")
    page.get_by_role("button", name="Cancel", exact=True).click()
    dialog = page.get_by_role("dialog")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    assert jobs.get(server.context.db, job.id).status == "queued"
    page.get_by_role("button", name="Cancel", exact=True).click()
    dialog.get_by_role("button", name="Cancel the job").click()
    expect(page.locator("h1")).to_contain_text("Cancelled")
    assert jobs.get(server.context.db, job.id).status == "cancelled"
