"""What a request may be before anything parses it: addressed to us, not compressed, not too large, plain strict JSON.

Upload routes stream; everything else is read whole here, up to a small limit, and handed on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import orjson
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunesmith.errors import InvalidRequest, PayloadTooLarge, PermissionDenied
from tunesmith.settings import Settings

MAX_DEPTH = 64
#: What a multipart body may have around the file itself: boundaries, part headers, the other fields.
MULTIPART_OVERHEAD = 64 * 1024
_IDLE_SECONDS = 30.0
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_EVERYWHERE = ("0.0.0.0", "::", "")


class Address:
    """Refuse what is addressed to another host (DNS rebinding) or cannot be read as sent."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._hosts = {name.lower() for name in (*_LOOPBACK, settings.host, *settings.allowed_hosts)} - set(_EVERYWHERE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            self._check_host(headers.get("host", ""))
            if "\0" in scope["path"] or b"%00" in scope["query_string"]:
                raise InvalidRequest("The URL contains a NUL character; none is accepted.")
            encoding = headers.get("content-encoding", "identity")
            if encoding.lower() != "identity":
                raise InvalidRequest(f"Content-Encoding {encoding!r} is not accepted. Hint: send the body uncompressed.")
        await self._app(scope, receive, send)

    def _check_host(self, host: str) -> None:
        name = host.partition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
        if name.lower() not in self._hosts:
            raise PermissionDenied(
                f"This server does not answer to the host name {name!r}. Accepted: loopback's names and those of its settings. "
                "Hint: add it to the setting allowed_hosts (TUNESMITH_ALLOWED_HOSTS)."
            )


class Body:
    """Read a body whole, up to the limit, and let only strict JSON pass. Uploads and forms are left to their route."""

    def __init__(self, app: ASGIApp, settings: Settings, uploads: Collection[str], forms: Collection[str]) -> None:
        """`uploads` are the paths whose POST body is a stream that the route itself reads and limits, `forms` those whose is no JSON."""
        self._app = app
        self._uploads = uploads
        self._forms = forms
        self._max_body = settings.max_body_bytes
        self._max_upload = settings.max_file_bytes + MULTIPART_OVERHEAD

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            receive = _impatient(receive)
            if scope["method"] == "POST" and scope["path"] in self._uploads:
                _check_length(headers, self._max_upload)
            else:
                _check_length(headers, self._max_body)
                body = await _read(receive, self._max_body)
                if body and scope["path"] not in self._forms:
                    check_json(body, headers.get("content-type", ""))
                receive = _replay(body, receive)
        await self._app(scope, receive, send)


def check_json(body: bytes, content_type: str) -> None:
    """Check that `body` is strict JSON that both databases can hold.

    Raises: InvalidRequest for another content type, NaN or infinities, lone surrogates, NUL characters, or nesting
    deeper than MAX_DEPTH.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind != "application/json":
        raise InvalidRequest(f"Content-Type {kind!r} is not accepted here; expected 'application/json'.")
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(
            f"We could not parse the JSON body of your request: {error}. NaN, infinities and lone surrogates are not JSON."
        ) from error
    level, depth = [value], 0
    while level:
        containers = [item for item in level if isinstance(item, (dict, list))]
        depth += 1
        if containers and depth > MAX_DEPTH:
            raise InvalidRequest(f"The JSON body is nested more than {MAX_DEPTH} levels deep; at most {MAX_DEPTH} are accepted.")
        if any(isinstance(item, str) and "\0" in item for item in level):
            raise InvalidRequest("The JSON body has a string with a NUL character (\\u0000); none is accepted.")
        level = [child for item in containers for child in ((*item.keys(), *item.values()) if isinstance(item, dict) else item)]


def _check_length(headers: Headers, limit: int) -> None:
    length = headers.get("content-length", "0")
    if length.isdigit() and int(length) > limit:
        raise PayloadTooLarge(f"The request body has {length} bytes; at most {limit} are accepted.")


async def _read(receive: Receive, limit: int) -> bytes:
    chunks, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > limit:
            raise PayloadTooLarge(f"The request body has more than {limit} bytes; at most {limit} are accepted.")
        if not message.get("more_body", False):
            return b"".join(chunks)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives `body` first; what follows (a disconnect) comes from the connection."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed


def _impatient(receive: Receive) -> Receive:
    """Return a `receive` that gives up when a body stops arriving."""
    ended = False

    async def timed() -> Message:
        nonlocal ended
        if ended:
            return await receive()
        try:
            async with asyncio.timeout(_IDLE_SECONDS):
                message = await receive()
        except TimeoutError as error:
            raise InvalidRequest(f"The request body stopped arriving for {_IDLE_SECONDS:.0f} seconds.") from error
        ended = not message.get("more_body", False)
        return message

    return timed
