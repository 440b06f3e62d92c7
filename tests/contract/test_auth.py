"""Nobody without the key gets anything, on any route that exists or does not; a browser may trade a link for a cookie."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi.routing import iter_route_contexts

from tunesmith.api import auth
from tunesmith.errors import InvalidRequest

from . import serving
from .serving import KEY, Parrot, Serving

PUBLIC = {("GET", "/healthz"), ("GET", "/login"), ("POST", "/login")}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    deployment = serving.settings(tmp_path_factory.mktemp("auth"), allowed_hosts=("tunes.example",))
    with serving.serve(deployment, Parrot()) as running:
        yield running


@pytest.fixture
def anyone(server: Serving) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url) as client:
        yield client


def routes(server: Serving) -> list[tuple[str, str]]:
    found = iter_route_contexts(server.app.routes)
    return sorted((method, route.path or "") for route in found for method in route.methods or ())


def test_every_route_but_health_and_login_needs_the_key(server: Serving, anyone: httpx.Client) -> None:
    known = routes(server)
    assert len(known) > 20 and set(known) >= PUBLIC and auth.PUBLIC == PUBLIC
    for method, path in known:
        if (method, path) in PUBLIC:
            continue
        for headers in ({}, {"authorization": "Bearer wrong"}, {"cookie": f"{auth.COOKIE}=9999999999.{'0' * 64}"}):
            response = anyone.request(method, path.replace("{", "").replace("}", ""), headers=headers)
            assert response.status_code == 401, (method, path, headers)
            assert method == "HEAD" or response.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    "path", ["/", "/nothing", "/v1/nothing", "/docs", "/openapi.json", "/healthz/", "//healthz", "/healthz/../v1/files"]
)
def test_other_paths_need_it_too(anyone: httpx.Client, path: str) -> None:
    assert anyone.get(path).status_code == 401


def test_what_is_public(anyone: httpx.Client) -> None:
    assert anyone.get("/healthz").json() == {"status": "ok"}
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "HEAD"):
        assert anyone.request(method, "/healthz").status_code == 401


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("Bearer sk-abcdefghijklmnopqrstuvwxyz", "Incorrect API key provided: sk-***wxyz."),
        ("Bearer short", "Incorrect API key provided: *****."),
        (f"Bearer {KEY}x", "Incorrect API key provided"),
        (f"Bearer {KEY[:-1]}", "Incorrect API key provided"),
        (f"Basic {KEY}", "not 'Bearer YOUR_KEY'"),
        (KEY, "not 'Bearer YOUR_KEY'"),
    ],
)
def test_wrong_keys(anyone: httpx.Client, header: str, words: str) -> None:
    response = anyone.get("/v1/models", headers={"authorization": header})
    assert response.status_code == 401 and words in response.json()["error"]["message"]
    assert anyone.get("/v1/models", headers={"authorization": f"bearer {KEY}"}).status_code == 200


def test_no_key_at_all(anyone: httpx.Client) -> None:
    message = anyone.get("/v1/models").json()["error"]["message"]
    assert message.startswith(
        "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth"
    )


def test_a_body_is_not_read_for_strangers(anyone: httpx.Client) -> None:
    """The answer also arrives whole, though it is given before the body has ended."""
    for _ in range(3):
        assert anyone.post("/v1/files", files={"file": b"x" * 5_000_000}).status_code == 401
        assert anyone.post("/v1/chat/completions", content=b"{not json").status_code == 401


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "localhost.evil", "[::2]:80", "0.0.0.0"])
def test_other_hosts_are_refused_even_with_the_key(server: Serving, host: str) -> None:
    with server.http(headers={"host": host}) as http:
        for path in ("/v1/models", "/healthz"):
            response = http.get(path)
            assert response.status_code == 403 and "allowed_hosts" in response.json()["error"]["message"]


@pytest.mark.parametrize("host", ["localhost", "LocalHost:99", "[::1]:8321", "127.0.0.1", "tunes.example:443"])
def test_our_own_hosts(server: Serving, host: str) -> None:
    with server.http(headers={"host": host}) as http:
        assert http.get("/v1/models").status_code == 200


def test_a_login_link_works_once(server: Serving, anyone: httpx.Client) -> None:
    token = server.app.state.access.mint_login()
    assert anyone.get("/login", params={"token": "guess"}).status_code == 401
    first = anyone.get("/login", params={"token": token})
    assert (first.status_code, first.headers["location"]) == (303, "/")
    flags = {part.strip().lower() for part in first.headers["set-cookie"].split(";")[1:]}
    assert {"httponly", "samesite=strict", "path=/"} <= flags and not any(flag.startswith("domain") for flag in flags)
    assert anyone.get("/v1/models").status_code == 200
    with httpx.Client(base_url=server.url) as second:
        assert second.get("/login", params={"token": token}).status_code == 401
        assert second.get("/").status_code == 401


def test_a_cookie_changes_things_only_from_our_own_pages(server: Serving, anyone: httpx.Client) -> None:
    anyone.get("/login", params={"token": server.app.state.access.mint_login()})
    assert anyone.get("/v1/models").status_code == 200
    url = "/v1/fine_tuning/jobs/123/cancel"
    for headers in (
        {},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "same-site"},
        {"origin": "http://127.0.0.1:1"},
    ):
        assert anyone.post(url, headers=headers).status_code == 403
    for headers in ({"origin": server.url}, {"sec-fetch-site": "same-origin"}):
        assert anyone.post(url, headers=headers).status_code == 404
    assert anyone.post(url, headers={"authorization": f"Bearer {KEY}"}).status_code == 404


def test_sessions_cannot_be_made_up_or_prolonged(monkeypatch: pytest.MonkeyPatch) -> None:
    access = auth.Access(auth.Key(b"k" * 32), b"s" * 32)
    session = access.redeem(access.mint_login())
    expires, _, signature = session.partition(".")
    assert access.accepts_session(session)
    for other in (auth.Access(auth.Key(b"k" * 32), b"t" * 32), auth.Access(auth.Key(b"l" * 32), b"s" * 32)):
        assert not other.accepts_session(session)
    for forged in ("", ".", expires, f"{int(expires) + 1}.{signature}", f"{expires}.{'0' * 64}", f"{expires}.é"):
        assert not access.accepts_session(forged)
    monkeypatch.setattr(auth.time, "time", lambda: int(expires) + 1)
    assert not access.accepts_session(session)


def test_only_the_newest_login_links_are_good() -> None:
    access = auth.Access(auth.Key(b"k" * 32), b"s" * 32)
    tokens = [access.mint_login() for _ in range(17)]
    with pytest.raises(auth.AuthenticationFailed):
        access.redeem(tokens[0])
    assert access.accepts_session(access.redeem(tokens[1]))


def test_a_session_outlives_the_server(tmp_path: Path) -> None:
    deployment = serving.settings(tmp_path)
    cookies = {}
    for life in range(2):
        with serving.serve(deployment, Parrot()) as running, httpx.Client(base_url=running.url, cookies=cookies) as browser:
            if life == 0:
                browser.post("/login", data={"key": KEY})
            assert browser.get("/v1/models").status_code == 200
            cookies = dict(browser.cookies)
    assert (deployment.data_dir / "session_secret").stat().st_mode & 0o777 == 0o600


def test_a_browser_is_sent_to_log_in_and_back(server: Serving, anyone: httpx.Client) -> None:
    asked = anyone.get("/jobs/ftjob-1?x=epoch&log=1", headers={"accept": "text/html,*/*"})
    assert (asked.status_code, asked.headers["location"]) == (303, "/login?next=%2Fjobs%2Fftjob-1%3Fx%3Depoch%26log%3D1")
    form = anyone.get(asked.headers["location"])
    assert form.status_code == 200 and 'value="/jobs/ftjob-1?x=epoch&amp;log=1"' in form.text
    policy = form.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "script-src 'self'" in policy
    assert anyone.post("/v1/files", headers={"accept": "text/html"}).status_code == 401
    done = anyone.post("/login", data={"key": KEY, "next": "/jobs/ftjob-1?x=epoch&log=1"})
    assert (done.status_code, done.headers["location"]) == (303, "/jobs/ftjob-1?x=epoch&log=1")
    assert anyone.get("/v1/models").status_code == 200


@pytest.mark.parametrize("next", ["//evil.example", "/\\evil.example", "https://evil.example", "javascript:alert(1)", "", "/a\nb"])
def test_logging_in_leads_nowhere_else(anyone: httpx.Client, next: str) -> None:
    assert anyone.post("/login", data={"key": KEY, "next": next}).headers["location"] == "/"


@pytest.mark.parametrize("body", [b"key=wrong", b"", b"key=", b"\xff\xfe", b"a=1&b=2&c=3", b"key=%00"])
def test_a_wrong_key_opens_nothing(anyone: httpx.Client, body: bytes) -> None:
    answer = anyone.post("/login", content=body, headers={"content-type": "application/x-www-form-urlencoded"})
    assert answer.status_code == 401 and "not the server&#x27;s API key" in answer.text and "set-cookie" not in answer.headers
    answer = anyone.get("/login", params={"token": "<script>", "next": '"><script>'}, headers={"accept": "text/html"})
    assert answer.status_code == 401 and "used before" in answer.text and "<script>" not in answer.text


def test_a_key_is_made_once_and_only_its_digest_kept(tmp_path: Path) -> None:
    deployment = serving.settings(tmp_path, api_key=None)
    first, second = auth.load_or_make_key(deployment), auth.load_or_make_key(deployment)
    assert first.plain and len(first.plain) > 40 and second.plain is None and first.digest == second.digest
    path = deployment.data_dir / "api_key.sha256"
    assert path.stat().st_mode & 0o777 == 0o600 and deployment.data_dir.stat().st_mode & 0o777 == 0o700
    assert path.read_text().strip() == hashlib.sha256(first.plain.encode()).hexdigest()
    assert auth.Access(second, b"s" * 32).accepts_key(first.plain.encode()) and first.plain not in repr(first)


def test_servers_that_start_together_agree_on_the_key(tmp_path: Path) -> None:
    deployment = serving.settings(tmp_path, api_key=None)
    keys: list[auth.Key] = []
    threads = [threading.Thread(target=lambda: keys.append(auth.load_or_make_key(deployment))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({key.digest for key in keys}) == 1 and sum(key.plain is not None for key in keys) == 1
    assert [path.name for path in deployment.data_dir.iterdir()] == ["api_key.sha256"]


def test_bad_keys_in_the_deployment(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="blank"):
        auth.load_or_make_key(serving.settings(tmp_path, api_key=" "))
    deployment = serving.settings(tmp_path, api_key=None)
    auth.load_or_make_key(deployment)
    (deployment.data_dir / "api_key.sha256").write_text("")
    with pytest.raises(InvalidRequest, match="damaged"):
        auth.load_or_make_key(deployment)
