"""`tunesmith chat` and `tunesmith models`: find a model by name or folder and talk to it in this process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import services
from tunesmith.errors import ModelNotFound
from tunesmith.run import Run
from tunesmith.services import bases as base_service
from tunesmith.settings import Settings
from tunesmith.store import bases, models

if TYPE_CHECKING:
    from tunesmith.inference import chat


def open_model(name: str, settings: Settings) -> chat.Model:
    """Load a run folder, a base, or a fine-tuned model or checkpoint of the data directory.

    Raises: ModelNotFound, InvalidRequest.
    """
    base, adapter = _directories(name, settings)
    from tunesmith.inference import chat  # noqa: PLC0415 - torch

    return chat.load(base, adapter)


def _directories(name: str, settings: Settings) -> tuple[Path, Path | None]:
    """Return the directories of a model's base and adapter."""
    if (Path(name) / "spec.json").is_file():
        return Run(name, settings).model_directories()
    try:
        bases.describe(name, settings.cache_dir, settings.allowed_models)
    except ModelNotFound:
        if not name.startswith("ft:"):
            raise
        context = services.open(settings)
        try:
            start = base_service.start(context, name)
        finally:
            context.close()
        return start.base, start.adapter
    return base_service.ready(settings, name).directory, None


def talk(model: chat.Model, message: str | None, system: str | None, sampling: dict[str, Any]) -> None:
    """Answer one message, or hold a conversation until the input ends."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    if message is not None:
        _answer(model, [*messages, {"role": "user", "content": message}], sampling)
        return
    if sys.stdin.isatty():
        print("Ctrl-D ends the conversation.", file=sys.stderr)
    while (said := _read()) is not None:
        messages.append({"role": "user", "content": said})
        messages.append({"role": "assistant", "content": _answer(model, messages, sampling)})


def list_models(settings: Settings) -> list[dict[str, Any]]:
    """Return the bases that may be used and the models and checkpoints made from them."""
    rows: list[dict[str, Any]] = []
    for name in bases.names(settings.allowed_models):
        base = bases.describe(name, settings.cache_dir, settings.allowed_models)
        rows.append({"name": name, "kind": "base", "state": "ready" if base.ready else "fetched when first used"})
    if settings.database_url or (settings.data_dir / "tunesmith.db").exists():
        context = services.open(settings)
        try:
            for row in models.list(context.db):
                kind = "checkpoint" if row.is_checkpoint else "fine-tuned"
                rows.append({"name": row.name, "kind": kind, "state": f"step {row.step} of {row.job_id}, from {row.base}"})
        finally:
            context.close()
    return rows


def _read() -> str | None:
    try:
        return input("> " if sys.stdin.isatty() else "")
    except EOFError:
        return None


def _answer(model: chat.Model, messages: list[dict[str, Any]], sampling: dict[str, Any]) -> str:
    pieces = []
    for piece in model.stream(messages, **sampling):
        pieces.append(piece)
        print(piece, end="", flush=True)
    print()
    return "".join(pieces)
