"""What people do, from the first page to an answer, on the real server with the real small model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tunesmith.domain import example
from tunesmith.services import files

from ..acceptance.deployment import KEY, Deployment, serving
from ..contract.serving import Serving
from . import seeded
from .conftest import OpenPage, violations

MINUTES = 60_000


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Iterator[Deployment]:
    with serving(tmp_path_factory.mktemp("stories") / "data") as running:
        yield running


def some_rows(source: str, path: Path, count: int) -> Path:
    path.write_text("".join((example.FOLDER / source).open().readlines()[:count]))
    return path


def test_from_a_file_to_an_answer(open_page: OpenPage, deployment: Deployment, tmp_path: Path) -> None:
    train, valid = some_rows("train.jsonl", tmp_path / "tickets.jsonl", 48), some_rows("valid.jsonl", tmp_path / "held-out.jsonl", 8)
    page = open_page(deployment.url, key=KEY, expect=("400",))
    page.get_by_role("link", name="New job").first.click()
    expect(page.locator("h1")).to_have_text("New job")
    page.get_by_label("Model", exact=True).select_option("smollm2-135m-instruct")
    page.get_by_label("as training file").set_input_files(train)
    expect(page.get_by_label("Training file", exact=True)).to_contain_text("tickets.jsonl")
    page.get_by_text("File", exact=True).click()
    page.get_by_label("as validation file").set_input_files(valid)
    expect(page.get_by_label("Validation file", exact=True)).to_contain_text("held-out.jsonl")
    # The report counts every row's tokens; the preview marks those that are learnt.
    expect(page.get_by_text("48 training, 8 validation")).to_be_visible()
    expect(page.get_by_text("Exact: all 48 rows")).to_be_visible(timeout=30_000)
    expect(page.locator("mark").first).to_be_visible(timeout=30_000)
    page.get_by_text("More", exact=True).click()
    page.get_by_label("n_steps", exact=True).fill("0")
    expect(page.get_by_text("Invalid value for", exact=False).first).to_be_visible()
    page.get_by_label("n_steps", exact=True).fill("9")
    page.get_by_label("eval_interval", exact=True).fill("3")
    page.get_by_label("batch_size", exact=True).fill("4")
    page.get_by_label("Suffix").fill("story")
    expect(page.get_by_text('"n_steps": 9').first).to_be_visible()
    page.get_by_role("button", name="Create job").click()
    # The job: curves come, then a verdict.
    expect(page).to_have_url(re.compile("/jobs/ftjob-"), timeout=20_000)
    job_id = page.url.rpartition("/")[2].partition("?")[0]
    expect(page.locator("canvas")).to_have_count(2, timeout=2 * MINUTES)
    expect(page.locator("dl.figures")).to_contain_text("/ 9", timeout=2 * MINUTES)
    expect(page.locator("h1")).to_contain_text("Succeeded", timeout=4 * MINUTES)
    expect(page.locator("dl.figures")).to_contain_text("9 / 9")
    verdict = deployment.client.get(f"{deployment.url}/api/jobs/{job_id}/diagnosis", cast_to=dict)["verdict"]
    expect(page.get_by_text(verdict[:60]).first).to_be_visible()
    # Base and tuned side by side.
    page.get_by_role("link", name="Try", exact=True).first.click()
    tuned = deployment.job(job_id).fine_tuned_model
    answers = [page.get_by_role("article", name=name, exact=True) for name in ("smollm2-135m-instruct", tuned)]
    page.get_by_label("Max tokens").fill("8")
    page.get_by_label("User message").fill("Where is 20417?")
    page.keyboard.press("Control+Enter")
    for answer in answers:
        expect(answer).to_contain_text(re.compile(r"tokens/s"), timeout=MINUTES)
        expect(answer.get_by_role("group", name="Answer of")).not_to_be_empty()
    assert violations(page) == []
    page.reload()
    expect(page.get_by_label("User message")).to_have_value("Where is 20417?")
    # A row of the validation file with what was expected.
    page.get_by_label("Take a row of").select_option(
        label=page.get_by_label("Take a row of").locator("option", has_text="held-out").inner_text()
    )
    expected = json.loads(valid.read_text().splitlines()[0])["messages"][-1]["content"]
    expect(page.get_by_text(expected[:40]).first).to_be_visible()
    # And back: the list knows it.
    page.get_by_role("link", name="Jobs", exact=True).click()
    expect(page.get_by_role("row").filter(has_text="story")).to_contain_text("Succeeded")


def test_files_that_are_no_good(open_page: OpenPage, deployment: Deployment, tmp_path: Path) -> None:
    page = open_page(deployment.url, "/jobs/new", key=KEY, expect=("400",))
    torn = tmp_path / "torn.jsonl"
    torn.write_text('{"messages": []}\n{"messages": [\n')
    page.get_by_label("as training file").set_input_files(torn)
    expect(page.get_by_text("Line 2 is not valid JSON", exact=False)).to_be_visible()
    rows = (example.FOLDER / "train.jsonl").read_text().splitlines()[:20]
    rows[6], rows[11] = '{"messages": [{"role": "user", "content": "no answer"}]}', '{"messages": [{"role": "wizard", "content": "x"}]}'
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text("\n".join(rows) + "\n")
    page.get_by_label("as training file").set_input_files(wrong)
    report = page.get_by_role("region", name="Data report").or_(page.locator("section, div").filter(has_text="Data report")).first
    expect(report).to_contain_text("wizard", timeout=20_000)
    expect(report).to_contain_text("7")
    expect(page.get_by_text(re.compile(r"\b12\b")).first).to_be_visible()
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    page.get_by_label("as training file").set_input_files(empty)
    expect(page.get_by_text("is empty", exact=False)).to_be_visible()


def test_logging_in(open_page: OpenPage, empty_server: Serving) -> None:
    page = open_page(empty_server.url, "/jobs/new?suffix=kept", key=None, expect=("401", "Refused to apply style"))
    expect(page.locator("h1")).to_have_text("Log in to Tunesmith")
    assert violations(page) == []
    page.get_by_label("API key").fill("sk-wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("not the server's API key")
    page.get_by_label("API key").fill(empty_server.key)
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("New job")
    assert page.url.endswith("/jobs/new?suffix=kept")
    page = open_page(empty_server.url, "/login?token=guessed", key=None)
    expect(page.get_by_role("alert")).to_contain_text("not valid or was used before")
    page.goto(f"/login?token={empty_server.app.state.access.mint_login()}")
    expect(page.locator("h1")).to_have_text("Jobs")
    # A session that ends sends the open page to log in, and back to where it was.
    page.goto("/models")
    expect(page.get_by_role("row").first).to_be_visible()
    page.context.clear_cookies()
    page.get_by_role("link", name="Try", exact=True).first.click()
    expect(page.locator("h1")).to_have_text("Log in to Tunesmith")
    assert "next=%2Ftry" in page.url


def test_comparing_runs(open_page: OpenPage, seeded_server: tuple[Serving, seeded.Jobs]) -> None:
    server, made = seeded_server
    page = open_page(server.url)
    for name in ("Compare support", f"Compare {seeded.LONG}"):
        page.get_by_label(name, exact=True).check()
    page.get_by_role("link", name="Compare", exact=False).or_(page.get_by_role("button", name="Compare", exact=False)).last.click()
    expect(page).to_have_url(re.compile("/compare"))
    expect(page.locator("canvas")).to_have_count(2)
    expect(page.get_by_role("row").filter(has_text="n_epochs").first).to_contain_text("9")
    assert page.get_by_role("row").filter(has_text="lora_alpha").count() == 0, "only what differs"
    for job_id in (made.succeeded, made.overfit):
        assert job_id in page.url
    page.get_by_text("Tokens", exact=True).first.click()
    expect(page).to_have_url(re.compile("x=tokens"))
    page.reload()
    expect(page.locator("canvas")).to_have_count(2)


def test_models_and_files_are_deleted_knowingly(open_page: OpenPage, empty_server: Serving) -> None:
    made = seeded.fill(empty_server.context)
    page = open_page(empty_server.url, "/models", expect=("400",))
    row = page.get_by_role("row").filter(has_text=made.tuned).first
    row.get_by_role("button", name="Delete", exact=False).click()
    expect(page.get_by_role("dialog")).to_contain_text(made.tuned)
    page.get_by_role("dialog").get_by_role("button", name="Delete", exact=False).click()
    expect(page.get_by_role("row").filter(has_text=re.compile(re.escape(made.tuned) + r"(?!\S)"))).to_have_count(0)
    page.goto("/files")
    row = page.get_by_role("row").filter(has_text=made.training_file).first
    row.get_by_role("button", name="Delete", exact=False).click()
    dialog = page.get_by_role("dialog")
    for job_id in made.all().values():
        expect(dialog).to_contain_text(job_id)
    dialog.get_by_role("button", name="Delete", exact=False).click()
    expect(dialog).to_contain_text("is needed by job")


def test_try_survives_rows_of_any_shape(open_page: OpenPage, empty_server: Serving) -> None:
    rows = [
        '{"messages": [null]}',
        '{"messages": [{"role": "assistant", "content": [null]}]}',
        '{"messages": [{"role": "assistant", "tool_calls": "abc"}]}',
    ]
    with files.Upload(empty_server.context) as incoming:
        incoming.write(("\n".join([*rows, '{"messages": [{"role": "user", "content": "good"}]}']) + "\n").encode())
        file_id = incoming.finish(filename="odd.jsonl", purpose="fine-tune").id
    for line in range(1, len(rows) + 1):
        page = open_page(empty_server.url, f"/try?file={file_id}&line={line}")
        expect(page.get_by_text(f"Line {line} is neither", exact=False)).to_be_visible()
        page.get_by_label("Line", exact=True).fill("4")
        expect(page.get_by_label("User message")).to_have_value("good")
        page.close()


def test_a_dialog_gives_the_focus_back(open_page: OpenPage, seeded_server: tuple[Serving, seeded.Jobs]) -> None:
    server, _ = seeded_server
    page = open_page(server.url, "/files")
    button = page.get_by_role("button", name="Delete train.jsonl").first
    button.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(button).to_be_focused()
