"""/api/files and /api/models: what is kept here, who uses it, and the weights to take away."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator
from typing import Annotated, BinaryIO

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from tunesmith.api import shown
from tunesmith.api.dependencies import Services
from tunesmith.api.views import FileOverviewList, ModelOverviewList
from tunesmith.services import models
from tunesmith.store import files, overviews

router = APIRouter(prefix="/api", tags=["Library"])
_PIECE = 2**20
#: Smaller archives stay in memory until they are sent.
_IN_MEMORY = 2**25


@router.get("/files")
def list_files(
    context: Services,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    purpose: str | None = None,
    q: Annotated[str, Query(max_length=200)] = "",
) -> FileOverviewList:
    """List files with the jobs that name them, newest first; `q` is looked for in ids and names."""
    page = files.list_page(context.db, purpose=purpose, after=after, limit=limit, words=q)
    users = overviews.users(context.db, [row.id for row in page.items])
    return FileOverviewList(data=[shown.file(row, users) for row in page.items], has_more=page.has_more)


@router.get("/models")
def list_models(context: Services) -> ModelOverviewList:
    """List bases, fine-tuned models and their checkpoints with where each comes from."""
    found = models.described(context)
    users = overviews.users(context.db, [one.name for one in found])
    return ModelOverviewList(data=[shown.model(context, one, users) for one in found])


@router.get("/models/{model:path}/adapter", response_class=StreamingResponse)
def download(model: str, context: Services) -> StreamingResponse:
    """Return a fine-tuned model's own weights as a zip: for LoRA a PEFT adapter, else the whole model."""
    paths = models.weight_files(context, model)
    archive = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115 (closed when it has been sent)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as zipped:
        for path in paths:
            zipped.write(path, path.name)
    size = archive.tell()
    archive.seek(0)
    name = model.replace(":", "-").replace('"', "") + ".zip"
    headers = {"content-disposition": f'attachment; filename="{name}"', "content-length": str(size)}
    return StreamingResponse(_pieces(archive), media_type="application/zip", headers=headers)


def _pieces(file: BinaryIO | tempfile.SpooledTemporaryFile[bytes]) -> Iterator[bytes]:
    with file:
        while piece := file.read(_PIECE):
            yield piece
