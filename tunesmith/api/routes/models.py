"""/v1/models. A name may contain slashes (a Hub id), which arrive decoded."""

from __future__ import annotations

from fastapi import APIRouter

from tunesmith.api.dependencies import Services
from tunesmith.api.schemas import Deleted, Model, ModelList
from tunesmith.services import models as services

router = APIRouter(prefix="/v1/models", tags=["Models"])


@router.get("")
def list_models(context: Services) -> ModelList:
    """List the bases and the fine-tuned models."""
    return ModelList(data=[_shown(entry) for entry in services.entries(context)])


@router.get("/{model:path}")
def retrieve(model: str, context: Services) -> Model:
    """Return one model; checkpoints are found too."""
    return _shown(services.entry(context, model))


@router.delete("/{model:path}")
def delete(model: str, context: Services) -> Deleted:
    """Delete a fine-tuned model or checkpoint."""
    services.delete(context, model)
    return Deleted(id=model, object="model")


def _shown(entry: services.Entry) -> Model:
    return Model(id=entry.name, created=entry.created_at, owned_by=entry.owner)
