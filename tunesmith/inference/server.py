"""The model process: one base and its adapters over HTTP on a unix socket, in the dialect of `vllm serve --enable-lora`.

    python -m tunesmith.inference.server --socket PATH --base DIR --name NAME

One thread computes, the event loop speaks. Whoever can open the socket may ask anything; its mode is 0600.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import torch
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tunesmith import hardware, processes
from tunesmith.errors import InvalidRequest, ModelNotFound, TunesmithError
from tunesmith.inference import chat, requests
from tunesmith.inference.adapters import Adapter
from tunesmith.inference.engine import Generation
from tunesmith.inference.text import Piece
from tunesmith.inference.wire import ChatWire, CompletionWire, Wire

_KEEP_ALIVE_SECONDS = 3600  # the other end closes first, so that no request meets a connection that is being closed
_BACKLOG = 128


def main() -> None:
    """Load the base, then serve until killed or orphaned."""
    processes.die_with_parent()
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--name", required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(hardware.physical_cores())
    try:
        model = chat.load(arguments.base)
    except InvalidRequest as error:
        sys.exit(error.message)
    threading.Thread(target=_work, args=(model,), daemon=True).start()
    listener = socket.socket(socket.AF_UNIX)
    old_mask = os.umask(0o177)
    listener.bind(str(arguments.socket))
    os.umask(old_mask)
    listener.listen(_BACKLOG)
    app = create_app(model, arguments.name, arguments.base)
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", timeout_keep_alive=_KEEP_ALIVE_SECONDS)
    uvicorn.Server(config).run(sockets=[listener])


def _work(model: chat.Model) -> None:
    """Run the engine; a process whose engine is gone would answer nobody, so it ends and its parent starts another."""
    try:
        model.engine.run()
    finally:
        os._exit(1)


def create_app(model: chat.Model, name: str, base: Path) -> Starlette:
    """Return the HTTP application; somebody else must run `model.engine`."""
    server = _Server(model, name, base)
    routes = [
        Route("/health", server.health),
        Route("/v1/models", server.models),
        Route("/v1/load_lora_adapter", server.load_adapter, methods=["POST"]),
        Route("/v1/unload_lora_adapter", server.unload_adapter, methods=["POST"]),
        Route("/v1/chat/completions", server.answer, methods=["POST"]),
        Route("/v1/completions", server.answer, methods=["POST"]),
    ]
    return Starlette(routes=routes, exception_handlers={TunesmithError: _say})


async def _say(_: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, TunesmithError)
    return _json(error.envelope(), error.status)


def _json(data: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(data), status, media_type="application/json")


async def _body(request: HttpRequest) -> dict[str, Any]:
    try:
        body = orjson.loads(await request.body())
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from error
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return body


class _Server:
    """The routes and what they share."""

    def __init__(self, model: chat.Model, name: str, base: Path) -> None:
        self._model = model
        self._name = name
        self._base = base
        self._created = int(time.time())
        self._adapters: dict[str, Adapter] = {}

    async def health(self, _: HttpRequest) -> Response:
        """Say that the model is loaded."""
        return Response()

    async def models(self, _: HttpRequest) -> Response:
        """List the base and its adapters."""
        base: dict[str, Any] = {"id": self._name, "root": str(self._base), "parent": None}
        adapters = [{"id": name, "root": str(adapter.directory), "parent": self._name} for name, adapter in self._adapters.items()]
        same = {"object": "model", "created": self._created, "owned_by": "tunesmith"}
        return _json({"object": "list", "data": [{**same, **entry} for entry in (base, *adapters)]})

    async def load_adapter(self, request: HttpRequest) -> Response:
        """Load an adapter under a name; loading the same again changes nothing."""
        body = await _body(request)
        name, path = body.get("lora_name"), body.get("lora_path")
        if not isinstance(name, str) or not isinstance(path, str) or not name or not path:
            raise InvalidRequest("Both 'lora_name' and 'lora_path' must be provided, as strings.")
        known = self._adapters.get(name)
        if name == self._name or (known is not None and known.directory != Path(path)):
            raise InvalidRequest(f"The lora adapter '{name}' has already been loaded.")
        if known is None:
            self._adapters[name] = await asyncio.to_thread(self._model.engine.adapters.load, Path(path))
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def unload_adapter(self, request: HttpRequest) -> Response:
        """Forget an adapter; answers under way keep theirs to the end."""
        name = (await _body(request)).get("lora_name")
        if self._adapters.pop(str(name), None) is None:
            raise ModelNotFound(str(name))
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    async def answer(self, request: HttpRequest) -> Response:
        """Answer a chat or a legacy completion, whole or as a stream."""
        body = await _body(request)
        name = str(body.get("model") or self._name)
        if name != self._name and name not in self._adapters:
            raise ModelNotFound(name)
        asked = requests.parse(request.url.path, body)
        pieces = await _Pieces.start(self._model, asked, self._adapters.get(name))
        kind = ChatWire if isinstance(asked, requests.ChatRequest) else CompletionWire
        wire = kind(asked, name, self._model.vocabulary, pieces.num_prompt_tokens)
        if asked.stream:
            return _Stream(pieces, wire)
        collecting = asyncio.ensure_future(pieces.all())
        leaving = asyncio.ensure_future(request.receive())  # the body has been read, so all that can come is a disconnect
        try:
            await asyncio.wait({collecting, leaving}, return_when=asyncio.FIRST_COMPLETED)
            return _json(wire.whole(collecting.result())) if collecting.done() else Response(status_code=499)
        finally:
            pieces.close()
            collecting.cancel()
            leaving.cancel()


class _Pieces:
    """The pieces of one answer, carried from the computing thread to the event loop."""

    def __init__(self, num_choices: int) -> None:
        self.num_prompt_tokens = 0
        self._num_open = num_choices
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Piece | TunesmithError] = asyncio.Queue()
        self._generations: list[Generation] = []

    @classmethod
    async def start(cls, model: chat.Model, asked: chat.Request, adapter: Adapter | None) -> _Pieces:
        """Begin to answer."""
        num_prompts = len(asked.prompts) if isinstance(asked, requests.CompletionRequest) else 1
        pieces = cls(num_prompts * asked.n)
        # In a thread: rendering and tokenizing a long conversation takes long enough for others to notice.
        pieces._generations = await asyncio.to_thread(model.start, asked, pieces._hear, adapter)
        pieces.num_prompt_tokens = sum(len(generation.prompt) for generation in pieces._generations)
        return pieces

    def _hear(self, piece: Piece | TunesmithError) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process is about to end
            self._loop.call_soon_threadsafe(self._queue.put_nowait, piece)

    async def each(self) -> AsyncIterator[Piece]:
        """Yield pieces until every choice is finished. Raises: TunesmithError when the engine gave up."""
        while self._num_open:
            piece = await self._queue.get()
            if isinstance(piece, TunesmithError):
                raise piece
            self._num_open -= piece.finish is not None
            yield piece

    async def all(self) -> list[Piece]:
        """Return every piece."""
        return [piece async for piece in self.each()]

    def close(self) -> None:
        """Stop what is still being computed."""
        chat.cancel(self._generations)


class _Stream(StreamingResponse):
    """Server-sent events; when the client is gone, even before the first one, the computing stops."""

    def __init__(self, pieces: _Pieces, wire: Wire) -> None:
        super().__init__(_events(pieces, wire), media_type="text/event-stream")
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._pieces.close()


async def _events(pieces: _Pieces, wire: Wire) -> AsyncIterator[bytes]:
    try:
        async for piece in pieces.each():
            for chunk in wire.chunks(piece):
                yield _event(chunk)
    except TunesmithError as error:
        yield _event(error.envelope())
        return
    last = wire.last_chunk()
    if last is not None:
        yield _event(last)
    yield b"data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"


if __name__ == "__main__":
    main()
