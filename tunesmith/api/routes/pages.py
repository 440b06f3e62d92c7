"""The few pages for people: health, login, and a plain first page until there is a dashboard."""

from __future__ import annotations

from html import escape

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse

from tunesmith.api import auth
from tunesmith.api.dependencies import Services
from tunesmith.store import jobs

_LATEST = 20
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Tunesmith</title>
<h1>Tunesmith is running</h1>
<p>Base URL for OpenAI clients: <code>{base_url}</code></p>
<h2>Latest jobs</h2>
<table><tr><th>Job<th>Status<th>Base model<th>Fine-tuned model</tr>
{rows}
</table></html>
"""

router = APIRouter(include_in_schema=False)


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """Say that the server answers; needs no key."""
    return {"status": "ok"}


@router.get("/login")
def login(request: Request, token: str = "") -> RedirectResponse:
    """Trade the one-use token of a printed link for a cookie that only this server's own pages can use."""
    session = request.app.state.access.redeem(token)
    response = RedirectResponse("/", status_code=303)
    response.set_cookie(
        auth.COOKIE, session, max_age=auth.SESSION_SECONDS, path="/", httponly=True, samesite="strict", secure=request.url.scheme == "https"
    )
    return response


@router.get("/")
def index(request: Request, context: Services) -> HTMLResponse:
    """Show that the server is up, its address for clients, and the latest jobs."""
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{escape(cell or '')}" for cell in (job.id, job.status, job.model, job.fine_tuned_model)) + "</tr>"
        for job in jobs.list_page(context.db, limit=_LATEST).items
    )
    return HTMLResponse(_PAGE.format(base_url=escape(f"{request.base_url}v1"), rows=rows or "<tr><td>none yet</tr>"))
