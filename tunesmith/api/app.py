"""Put the API together: layers, routes, and what lives as long as the server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from tunesmith import services
from tunesmith.api import auth, errors, limits
from tunesmith.api.live import Live
from tunesmith.api.routes import chat, data, files, jobs, library, models, pages, runs
from tunesmith.inference.backend import Backend, EmbeddedBackend
from tunesmith.services.curves import Curves
from tunesmith.settings import Settings

#: Paths whose POST body is streamed.
_UPLOADS = frozenset({files.UPLOAD_PATH})


def create_app(settings: Settings, backend: Backend | None = None) -> FastAPI:
    """Return the ASGI app of one deployment.

    `app.state.key` is the API key (its `plain` is set only when it was made just now) and `app.state.access.mint_login()`
    makes the token of a login link, `/login?token=...`. Serve it by one process, in one event loop.
    """
    context = services.open(settings)
    key = auth.load_or_make_key(settings)
    access = auth.Access(key, auth.load_or_make_secret(settings))
    backend = backend or EmbeddedBackend(settings.data_dir / "run", settings.model_idle_seconds)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await backend.close()
        context.close()

    app = FastAPI(title="Tunesmith", lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.context, app.state.backend, app.state.key, app.state.access = context, backend, key, access
    app.state.live, app.state.curves = Live(context), Curves(context.db)
    for module in (files, jobs, models, chat, library, runs, data, pages):
        app.include_router(module.router)
    errors.install(app)
    # The layer added last is the outermost: a request meets Boundary, then Guard, then Limits, then a route.
    app.add_middleware(limits.Body, settings=settings, uploads=_UPLOADS, forms={pages.LOGIN_PATH})
    app.add_middleware(auth.Guard, access=access)
    app.add_middleware(limits.Address, settings=settings)
    app.add_middleware(errors.Boundary, organization=settings.organization)
    return app
