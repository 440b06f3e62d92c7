"""The dashboard's files: what a browser is sent, and what is said where they are missing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tunesmith.api.routes import pages

from . import serving
from .serving import Parrot, Serving


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving.serve(serving.settings(tmp_path_factory.mktemp("pages")), Parrot()) as running:
        yield running


@pytest.fixture
def http(server: Serving) -> Iterator[httpx.Client]:
    with server.http() as client:
        yield client


def test_every_view_is_the_same_page_under_a_strict_policy(http: httpx.Client) -> None:
    whole = (pages.DIST / "index.html").read_text()
    for path in ("/", "/jobs/new", "/jobs/ftjob-1?x=epoch", "/compare?jobs=a,b", "/try", "/models", "/files"):
        page = http.get(path)
        assert page.status_code == 200 and page.text == whole and page.headers["content-type"].startswith("text/html")
        policy = dict(rule.split(" ", 1) for rule in page.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert page.headers["cache-control"] == "no-cache" and page.headers["x-content-type-options"] == "nosniff"
    assert "</api/jobs/%22%3E/metrics" in http.get("/jobs/%22%3E").headers["link"]


def test_assets_are_sent_packed_and_kept_for_good(http: httpx.Client) -> None:
    names = re.findall(r'(?:src|href)="(/[^"]+)"', (pages.DIST / "index.html").read_text())
    assert len(names) >= 3
    for name in names:
        for coding in ("gzip", "identity"):
            answer = http.get(name, headers={"accept-encoding": coding})
            assert answer.status_code == 200 and answer.content == (pages.DIST / name[1:]).read_bytes()
            if name.startswith("/assets/"):
                assert answer.headers.get("content-encoding", "identity") == coding and "immutable" in answer.headers["cache-control"]
                assert answer.headers["content-type"].split(";")[0] in ("text/javascript", "text/css")


@pytest.mark.parametrize(
    "path",
    [
        "/assets/none.js",
        "/assets/..%2findex.html",
        "/assets/%2e%2e%2f%2e%2e%2f__init__.py",
        "/assets/",
        "/icon.png",
        f"/assets/{'x' * 5000}",
    ],
)
def test_other_files_are_not_there(http: httpx.Client, path: str) -> None:
    assert http.get(path).status_code == 404


def test_without_the_dashboard_the_api_serves_and_says_how_to_build_it(
    http: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "DIST", tmp_path)
    for path in ("/", "/jobs/ftjob-1", "/icon.svg"):
        answer = http.get(path)
        assert answer.status_code in (404, 503) and "make dashboard" in answer.json()["error"]["message"]
    assert http.get("/v1/models").status_code == 200
