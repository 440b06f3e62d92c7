"""What the routes are given: the services' context and the inference backend of their app."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from tunesmith.inference.backend import Backend
from tunesmith.services import Context


def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


def _backend(request: Request) -> Backend:
    backend: Backend = request.app.state.backend
    return backend


Services = Annotated[Context, Depends(_context)]
Inference = Annotated[Backend, Depends(_backend)]
