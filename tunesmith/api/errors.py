"""Every error, wherever it comes from, in OpenAI's envelope. Also the headers that every response carries.

`Boundary` is the outermost layer: it names the request, and it is the one place of the API where an unexpected exception
ends. It knows no route.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import iter_route_contexts
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunesmith.domain import ids
from tunesmith.errors import InvalidRequest, TunesmithError

log = logging.getLogger(__name__)

#: Sent with every response. Nothing here is a page that others may frame, sniff, cache or embed.
_HEADERS = {
    "openai-version": "2020-10-01",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_DRAIN_SECONDS = 5.0
_MAX_SHOWN = 100

_EXPECTED = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "int_parsing": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
#: pydantic's words -> ours, which follow "Expected".
_PLAIN = {
    "^String should have": "a string of",
    "^List should have": "a list of",
    "^Dictionary should have": "an object of",
    " after validation, not .*": "",
    "^greater": "a number greater",
    "^less": "a number less",
}
_KINDS = {bool: "a boolean", int: "an integer", float: "a number", str: "a string", list: "a list", dict: "an object", type(None): "null"}


class Boundary:
    """Give each request an id, each response its headers, and each exception an envelope."""

    def __init__(self, app: ASGIApp, organization: str) -> None:
        self._app = app
        self._headers = _HEADERS | {"openai-organization": organization}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._serve(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._app(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = ids.new(ids.REQUEST)
        body, answer = _Body(receive), _Answer(send, self._headers | {"x-request-id": request_id})
        try:
            await self._app(scope, body.receive, answer.send)
        except ClientDisconnect:
            pass
        except Exception as error:
            if answer.started:
                raise
            await body.drain()
            await envelope(_told(error, request_id))(scope, receive, answer.send)


class _Answer:
    """The response as it leaves, with the headers that every one carries."""

    def __init__(self, send: Send, headers: dict[str, str]) -> None:
        self._send = send
        self._headers = headers
        self._began = time.perf_counter()
        self.started = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = MutableHeaders(scope=message)
            for name, value in self._headers.items():
                headers.setdefault(name, value)
            headers["openai-processing-ms"] = str(round(1000 * (time.perf_counter() - self._began)))
        await self._send(message)


class _Body:
    """The request's body as it arrives. An answer sent before its end would be lost in a connection reset."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._ended = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._ended = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def drain(self) -> None:
        """Read what is left and throw it away, for a bounded time."""
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                while not self._ended:
                    await self.receive()
        except TimeoutError:
            pass


def _told(error: Exception, request_id: str) -> TunesmithError:
    """Return what the client hears of `error`; what it must not hear goes to the log."""
    if isinstance(error, TunesmithError):
        if error.status >= 500:
            log.error("%s: %s: %s", request_id, type(error).__name__, error.message)
        return error
    log.error("%s failed", request_id, exc_info=error)
    return TunesmithError(f"The server had an error while processing your request. Hint: its log says more under {request_id}.")


def envelope(error: TunesmithError, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return the response that carries `error`."""
    return JSONResponse(error.envelope(), status_code=error.status, headers=headers)


def install(app: FastAPI) -> None:
    """Replace the framework's own error bodies (404, 405, 422, ...) by the envelope."""

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return envelope(*_from_http(request, error))

    async def validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return envelope(from_validation(error.errors()))

    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, validation)


def _from_http(request: Request, error: HTTPException) -> tuple[TunesmithError, dict[str, str]]:
    where, headers = f"{request.method} {request.url.path}", dict(error.headers or {})
    words = f"{error.detail} ({where})."
    if error.status_code == 404:
        words = f"Invalid URL ({where}). Hint: the base URL of OpenAI's API ends in /v1."
    elif error.status_code == 405:
        headers["Allow"] = ", ".join(_methods(request))
        words = f"Method not allowed ({where}). Accepted here: {headers['Allow']}."
    found = TunesmithError(words) if error.status_code >= 500 else InvalidRequest(words)
    found.status = error.status_code
    return found, headers


def _methods(request: Request) -> list[str]:
    """Return what this path accepts; the router itself only knows its first route's methods."""
    matching = [route for route in iter_route_contexts(request.app.routes) if route.path_regex and route.path_regex.match(request.url.path)]
    return sorted({method for route in matching for method in route.methods or ()})


def from_validation(errors: Sequence[Any]) -> InvalidRequest:
    """Return the first of pydantic's errors in OpenAI's words: `messages[0].role` as param, what came, what is accepted."""
    first = min(errors, key=lambda error: error["type"] == "extra_forbidden")
    param, kind, given = _param(first["loc"]), first["type"], first.get("input")
    if not param:
        return InvalidRequest("Expected a JSON object as the body of the request" + (", but it has none." if given is None else "."))
    if kind == "missing":
        return missing(param)
    if kind == "extra_forbidden":
        return unknown(param)
    if kind in _EXPECTED:
        got = shown(given) if first["loc"][0] in ("query", "path") else _KINDS.get(type(given), type(given).__name__)
        words = f"Invalid type for '{param}': expected {_EXPECTED[kind]}, but got {got} instead."
        return InvalidRequest(words, param=param, code="invalid_type")
    accepted = first["msg"].removeprefix("Input should be ")
    for words, plain in _PLAIN.items():
        accepted = re.sub(words, plain, accepted)
    return InvalidRequest(f"Invalid value for '{param}': {shown(given)}. Expected {accepted}.", param=param, code="invalid_value")


def missing(param: str) -> InvalidRequest:
    """Return the error of a required parameter that is not there."""
    return InvalidRequest(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")


def unknown(param: str) -> InvalidRequest:
    """Return the error of a parameter that OpenAI's API does not have."""
    return InvalidRequest(f"Unrecognized request argument supplied: {param}", param=param, code="unknown_parameter")


def shown(value: object) -> str:
    """Return `value` for a message, shortened."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."


def _param(location: Sequence[str | int]) -> str:
    text = ""
    for part in location[1:]:
        if part == "[key]":
            continue
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
