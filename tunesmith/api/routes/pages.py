"""The pages for people: the dashboard's files, logging in, and health. What the dashboard shows comes from the other routes."""

from __future__ import annotations

import base64
import hashlib
import mimetypes
from html import escape
from pathlib import Path
from string import Template
from urllib.parse import parse_qs, quote

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response

from tunesmith.api import auth
from tunesmith.errors import AuthenticationFailed, NotFound, Unavailable

#: Where `make dashboard` and the wheel put it.
DIST = Path(__file__).parents[2] / "dashboard" / "dist"
LOGIN_PATH = "/login"
_LONGEST_NAME = 100
_NOT_BUILT = "The dashboard is not built. Hint: run `make dashboard` (or `python web/build.py`) in the source tree; a wheel contains it."
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'{style}; img-src 'self' data: blob:; connect-src 'self'; font-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_LOGIN = (Path(__file__).parents[2] / "templates" / "login.html").read_text()
#: The page's own style, by its digest: nothing else inline is obeyed.
_STYLE_DIGEST = base64.b64encode(hashlib.sha256(_LOGIN.partition("<style>")[2].partition("</style>")[0].encode()).digest()).decode()

router = APIRouter(include_in_schema=False)


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """Say that the server answers; needs no key."""
    return {"status": "ok"}


@router.get(LOGIN_PATH)
def login(request: Request, token: str = "", next: str = "/") -> Response:
    """Trade the one-use token of a printed link for a cookie that only this server's own pages can use; without one, ask for the key."""
    if not token:
        return _ask(next)
    try:
        return _logged_in(request, request.app.state.access.redeem(token), next)
    except AuthenticationFailed as error:
        if "text/html" not in request.headers.get("accept", ""):
            raise
        return _ask(next, error.message)


@router.post(LOGIN_PATH)
async def log_in(request: Request) -> Response:
    """Trade the API key for the cookie."""
    try:
        form = parse_qs((await request.body()).decode(), max_num_fields=2)
    except ValueError:
        form = {}
    access: auth.Access = request.app.state.access
    next = form.get("next", ["/"])[0]
    if not access.accepts_key(form.get("key", [""])[0].encode()):
        return _ask(
            next, "This is not the server's API key. It was printed where the server first started, unless TUNESMITH_API_KEY set it."
        )
    return _logged_in(request, access.open_session(), next)


def _logged_in(request: Request, session: str, next: str) -> Response:
    # Only a path of ours: "//host" and "/\\host" would lead elsewhere.
    ours = next.startswith("/") and not next.startswith(("//", "/\\")) and next.isprintable()
    response = RedirectResponse(next if ours else "/", status_code=303)
    response.set_cookie(
        auth.COOKIE, session, max_age=auth.SESSION_SECONDS, path="/", httponly=True, samesite="strict", secure=request.url.scheme == "https"
    )
    return response


def _ask(next: str, problem: str = "") -> HTMLResponse:
    page = Template(_LOGIN).substitute(problem=escape(problem), next=escape(next))
    policy = _POLICY.format(style=f" 'sha256-{_STYLE_DIGEST}'")
    return HTMLResponse(page, status_code=401 if problem else 200, headers={"content-security-policy": policy})


@router.get("/assets/{name}")
def asset(name: str, request: Request) -> FileResponse:
    """Return a file of the dashboard; its name changes with what is in it."""
    path = DIST / "assets" / name
    packed = path.with_name(f"{name}.gz")
    if len(name) > _LONGEST_NAME or not path.is_file() or path.parent != DIST / "assets":
        raise NotFound(f"There is no asset {name[:_LONGEST_NAME]!r}. Hint: reload the page; the server was updated.")
    headers = {"cache-control": "private, max-age=31536000, immutable", "vary": "accept-encoding"}
    if packed.is_file() and "gzip" in request.headers.get("accept-encoding", ""):
        return FileResponse(packed, headers=headers | {"content-encoding": "gzip"}, media_type=mimetypes.guess_type(name)[0])
    return FileResponse(path, headers=headers)


@router.get("/icon.svg")
@router.get("/theme.js")
def plain_file(request: Request) -> FileResponse:
    """Return a file of the dashboard that keeps its name."""
    path = DIST / request.url.path.removeprefix("/")
    if not path.is_file():
        raise NotFound(f"There is no {path.name}. {_NOT_BUILT}")
    return FileResponse(path, headers={"cache-control": "no-cache"})


@router.get("/")
@router.get("/compare")
@router.get("/try")
@router.get("/models")
@router.get("/files")
@router.get("/jobs/new")
def dashboard() -> FileResponse:
    """Return the dashboard, whichever of its views is asked for."""
    if not (DIST / "index.html").is_file():
        raise Unavailable(_NOT_BUILT)
    policy = {"content-security-policy": _POLICY.format(style=""), "cache-control": "no-cache"}
    return FileResponse(DIST / "index.html", headers=policy)


@router.get("/jobs/{job_id}")
def job_page(job_id: str) -> FileResponse:
    """Return the dashboard; the browser is told to ask for the job's figures at once, which is what takes longest."""
    response = dashboard()
    response.headers["link"] = f"</api/jobs/{quote(job_id, safe='')}/metrics?max_points=4000>; rel=preload; as=fetch; crossorigin"
    return response
