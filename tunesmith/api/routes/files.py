"""/v1/files."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse

from tunesmith.api import errors, multipart
from tunesmith.api.dependencies import Services
from tunesmith.api.limits import MULTIPART_OVERHEAD
from tunesmith.api.schemas import Deleted, File, FileList
from tunesmith.errors import InvalidRequest
from tunesmith.services import files as services
from tunesmith.store import files

UPLOAD_PATH = "/v1/files"
_FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]")

router = APIRouter(tags=["Files"])


@router.post(UPLOAD_PATH, response_model_exclude_none=True)
async def create(request: Request, context: Services) -> File:
    """Upload a file; it is checked and hashed while it arrives."""
    upload = await run_in_threadpool(services.Upload, context)
    with upload:
        form = await multipart.read(request, "file", upload.write, context.settings.max_file_bytes + MULTIPART_OVERHEAD)
        _check_names(form)
        row = await run_in_threadpool(
            upload.finish, filename=form.filename or "upload", purpose=form.fields["purpose"], expires_after=_expiry(form.fields)
        )
    return File.of(row)


@router.get("/v1/files", response_model_exclude_none=True)
def list_files(
    context: Services,
    purpose: str | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
) -> FileList:
    """List files, newest first unless `order` says otherwise."""
    page = files.list_page(context.db, purpose=purpose, after=after, limit=limit, order=order)
    data = [File.of(row) for row in page.items]
    return FileList(data=data, first_id=data[0].id if data else "", last_id=data[-1].id if data else "", has_more=page.has_more)


@router.get("/v1/files/{file_id}", response_model_exclude_none=True)
def retrieve(file_id: str, context: Services) -> File:
    """Return what is known of one file."""
    return File.of(files.get(context.db, file_id))


@router.delete("/v1/files/{file_id}")
def delete(file_id: str, context: Services) -> Deleted:
    """Delete a file that no unfinished job needs."""
    services.delete(context, file_id)
    return Deleted(id=file_id, object="file")


@router.get("/v1/files/{file_id}/content", response_class=FileResponse)
def content(file_id: str, request: Request, context: Services) -> FileResponse:
    """Return a file's bytes, always as a download: whatever they are, a browser must not show them."""
    row = files.get(context.db, file_id)
    context.blobs.open(row.id).close()
    # Whole, as at OpenAI: a Range header is ignored.
    request.scope["headers"] = [(name, value) for name, value in request.scope["headers"] if name not in (b"range", b"if-range")]
    return FileResponse(context.blobs.path(row.id), media_type="application/octet-stream", filename=row.filename)


def _check_names(form: multipart.Form) -> None:
    for name in form.fields:
        if name not in _FIELDS:
            raise errors.unknown(name)
    for name, present in (("file", form.filename is not None), ("purpose", "purpose" in form.fields)):
        if not present:
            raise errors.missing(name)


def _expiry(fields: dict[str, str]) -> int | None:
    if not any(name.startswith("expires_after") for name in fields):
        return None
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]", "")
    if anchor != "created_at":
        words = f"Invalid value for 'expires_after[anchor]': {anchor!r}. Expected 'created_at'."
        raise InvalidRequest(words, param="expires_after[anchor]")
    low, high = services.EXPIRY_SECONDS
    if not (seconds.isascii() and seconds.isdigit() and low <= int(seconds[:12]) <= high):
        words = f"Invalid value for 'expires_after[seconds]': {seconds[:40]!r}. Expected an integer from {low} to {high}."
        raise InvalidRequest(words, param="expires_after[seconds]")
    return int(seconds)
