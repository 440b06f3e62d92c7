"""/v1/chat/completions and /v1/completions: find the model, hand the request to the backend, pass its answer on."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Body, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.requests import ClientDisconnect

from tunesmith.api import generation
from tunesmith.api.dependencies import Inference, Services
from tunesmith.inference.backend import Backend, Endpoint, Target
from tunesmith.services import Context
from tunesmith.services import models as services

router = APIRouter(tags=["Generation"])
Parameters = Annotated[dict[str, Any], Body()]
Answer = TypeVar("Answer")


@router.post(generation.CHAT)
async def chat(body: Parameters, request: Request, context: Services, backend: Inference) -> Response:
    """Continue a conversation."""
    return await _answer(generation.CHAT, body, request, context, backend)


@router.post(generation.COMPLETIONS)
async def complete(body: Parameters, request: Request, context: Services, backend: Inference) -> Response:
    """Continue a text; chat models do so without their template."""
    return await _answer(generation.COMPLETIONS, body, request, context, backend)


async def _answer(endpoint: Endpoint, body: dict[str, Any], request: Request, context: Context, backend: Backend) -> Response:
    checked = generation.check(endpoint, body)
    model = await run_in_threadpool(services.resolve, context, checked["model"])
    target = Target(
        model.base_name, model.base_directory,
        model.name if model.adapter_directory else None, model.adapter_directory,
    )  # fmt: skip
    reply = await while_connected(request, backend.post(target, endpoint, checked))
    if reply.events is not None:
        return StreamingResponse(reply.events, status_code=reply.status, media_type="text/event-stream")
    return JSONResponse(reply.body, status_code=reply.status)


async def while_connected(request: Request, answer: Coroutine[Any, Any, Answer]) -> Answer:
    """Await `answer`, and cancel it when the client hangs up: nobody would read what is still being made."""
    answering, leaving = asyncio.create_task(answer), asyncio.create_task(_hang_up(request))
    try:
        await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise ClientDisconnect
        return answering.result()
    finally:
        answering.cancel()
        leaving.cancel()


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
