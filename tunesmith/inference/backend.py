"""Where answers come from, as the API sees it: one interface, one child process per base behind it. Loads no torch.

The child speaks vLLM's HTTP dialect on a unix socket, so that a remote vLLM can take its place. It is started by the first
request, restarted when it has died, and stopped when nobody has asked it anything for a while.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import subprocess
import tempfile
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, Protocol

import httpx
import orjson

from tunesmith import processes
from tunesmith.errors import TunesmithError, Unavailable

Endpoint = Literal["/v1/chat/completions", "/v1/completions"]

_MAX_CHILDREN = 4  # bases in memory at once
_MAX_ADAPTERS = 16  # adapters in one child's memory
_START_SECONDS = 300.0
_MAX_SOCKET_PATH = 100  # sun_path holds 108 bytes on Linux, 104 elsewhere
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # OpenMP threads that spin while they wait for one another burn the time slice the other needs: with a trainer beside it,
    # SmolLM2 on 2 cores then writes 3 tokens/s instead of 23. A thousand rounds before they sleep cost little of that, and of eight
    # prompts that come at once the first tokens are there after 135 ms instead of 240.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "1000",
}
_DONE = "data: [DONE]"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """The weights that are to answer. A full fine-tune is a base of its own, with a name no other base has."""

    base_name: str
    base_directory: Path
    adapter_name: str | None = None
    adapter_directory: Path | None = None

    @property
    def served_name(self) -> str:
        """The model name that the child knows this target by."""
        return self.adapter_name or self.base_name


@dataclass(frozen=True)
class Reply:
    """An answer: a JSON body (OpenAI's object or error envelope), or a stream of server-sent events.

    Each item of `events` is one whole event with its blank line, `[DONE]` included, ready to be sent as text/event-stream.
    Dropping the iterator, or cancelling whoever awaits it, stops the generation.
    """

    status: int
    body: dict[str, Any] | None = None
    events: AsyncIterator[str] | None = None


class Backend(Protocol):
    """Who answers chat and completion requests."""

    async def post(self, target: Target, path: Endpoint, body: Mapping[str, Any]) -> Reply:
        """Answer one request; `body` passed `requests.parse`, and its `model` is echoed in the answer as it was asked.

        Cancelling the call stops the generation.
        Raises: Unavailable when no model process can be had; TunesmithError when the target's adapter cannot be loaded.
        """

    async def close(self) -> None:
        """Stop everything that was started."""


class EmbeddedBackend:
    """The backend that comes with Tunesmith. All calls must come from one event loop, that of the main thread."""

    def __init__(self, run_directory: Path, idle_seconds: float = 600.0) -> None:
        self._idle_seconds = idle_seconds
        self._children: OrderedDict[Path, _Child] = OrderedDict()  # least recently used first
        self._lock = asyncio.Lock()
        self._sweeper: asyncio.Task[None] | None = None
        self._temporary: str | None = None
        if len(str(run_directory)) + 32 > _MAX_SOCKET_PATH:
            self._temporary = tempfile.mkdtemp(prefix="tunesmith-")
            run_directory = Path(self._temporary)
        self._run_directory = run_directory

    async def post(self, target: Target, path: Endpoint, body: Mapping[str, Any]) -> Reply:
        """Answer one request; see `Backend`. A child that dies before its first word is replaced once."""
        failure: Exception | None = None
        for _ in range(2):
            child = await self._child(target)
            try:
                return await child.post(target, path, body)
            except httpx.TransportError as error:
                failure = error
                if await child.ended():
                    await self._discard(child)
        raise Unavailable(f"The process of model {target.base_name!r} failed this request twice ({failure!r}). {child.last_words()}")

    async def close(self) -> None:
        """Stop all children."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for child in list(self._children.values()):
            await self._discard(child)
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    async def _child(self, target: Target) -> _Child:
        """Return a child that answers for the target's base, started now if need be."""
        async with self._lock:
            child = self._children.get(target.base_directory)
            if child is not None and child.process.poll() is not None:
                _log.warning("model process of %s ended with %s; starting another", target.base_name, child.process.returncode)
                await self._discard(child)
                child = None
            if child is None:
                await self._make_room()
                child = _Child.start(target, self._run_directory)
                self._children[target.base_directory] = child
            self._children.move_to_end(target.base_directory)
            child.in_flight += 1  # held while it is made ready, or the sweeper might take it
        if self._sweeper is None:
            self._sweeper = asyncio.create_task(self._sweep())
        try:
            # Shielded: who gives up waiting must not stop the start that others wait for too.
            await asyncio.shield(child.ready)
        except Unavailable:
            await self._discard(child)
            raise
        finally:
            child.done()
        return child

    async def _make_room(self) -> None:
        if len(self._children) < _MAX_CHILDREN:
            return
        idle = next((child for child in self._children.values() if child.in_flight == 0), None)
        if idle is None:
            raise Unavailable(f"{_MAX_CHILDREN} models are answering requests, which is the most at once. Try again when one is done.")
        await self._discard(idle)

    async def _discard(self, child: _Child) -> None:
        if self._children.get(child.base_directory) is child:
            del self._children[child.base_directory]
        await child.stop()

    async def _sweep(self) -> None:
        """Stop children that have been idle too long."""
        while True:
            await asyncio.sleep(min(self._idle_seconds / 4, 10))
            now = time.monotonic()
            for child in list(self._children.values()):
                if child.in_flight == 0 and now - child.last_used > self._idle_seconds:
                    await self._discard(child)


@dataclass
class _Adapter:
    """An adapter in a child's memory."""

    directory: Path
    users: int = 0


@dataclass(eq=False)
class _Child:
    """One model process and the way to it."""

    base_name: str
    base_directory: Path
    socket: Path
    process: subprocess.Popen[bytes]
    stderr: IO[bytes]
    client: httpx.AsyncClient
    ready: asyncio.Task[None] = field(init=False)
    adapters: OrderedDict[str, _Adapter] = field(default_factory=OrderedDict)
    adapters_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    in_flight: int = 0
    last_used: float = field(default_factory=time.monotonic)

    @classmethod
    def start(cls, target: Target, run_directory: Path) -> _Child:
        """Start the process; `ready` tells when it answers."""
        run_directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(prefix="model-", suffix=".sock", dir=run_directory) as unused:
            socket = Path(unused.name)
        stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        arguments = ["--socket", str(socket), "--base", str(target.base_directory), "--name", target.base_name]
        process = processes.spawn("tunesmith.inference.server", *arguments, stderr=stderr, stdout=stderr, environment=ENVIRONMENT)
        client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(socket), limits=httpx.Limits(max_connections=None, max_keepalive_connections=8)),
            base_url="http://model",
            timeout=httpx.Timeout(None, connect=5.0),
        )
        child = cls(target.base_name, target.base_directory, socket, process, stderr, client)
        child.ready = asyncio.create_task(child._wait())
        return child

    async def _wait(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise Unavailable(f"The process of model {self.base_name!r} could not start. {self.last_words()}")
            try:
                if self.socket.exists() and (await self.client.get("/health")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.05)
        raise Unavailable(f"The process of model {self.base_name!r} was not ready after {_START_SECONDS:.0f} s.")

    async def post(self, target: Target, path: Endpoint, body: Mapping[str, Any]) -> Reply:
        """Send one request. Raises: httpx.TransportError when the child dies before the first word of its answer."""
        self.in_flight += 1
        adapter = None
        try:
            adapter = await self._use(target)
            request = self.client.build_request("POST", path, json={**body, "model": target.served_name})
            response = await self.client.send(request, stream=True)
            asked = body.get("model", target.served_name)
            if response.headers.get("content-type", "").startswith("text/event-stream"):
                events = self._events(response, adapter, asked)
                self.in_flight += 1  # the stream's own hold, let go in _events
                if adapter is not None:
                    adapter.users += 1
                return Reply(response.status_code, events=_Started(await anext(events), events))
            await response.aread()
            return Reply(response.status_code, body=_renamed(_body(response), asked))
        finally:
            self.done(adapter)

    async def _events(self, response: httpx.Response, adapter: _Adapter | None, asked: str) -> AsyncGenerator[str, None]:
        """Pass the child's events on; once the first is out, a dead child ends the stream with an error event."""
        begun = False
        try:
            async for line in response.aiter_lines():
                if not line.startswith("data:"):
                    continue
                yield f"{_DONE}\n\n" if line == _DONE else _event(_renamed(orjson.loads(line[5:]), asked))
                begun = True
        except httpx.TransportError:
            if not begun:
                raise
            error = Unavailable(f"The process of model {self.base_name!r} ended in mid-answer. {self.last_words()}")
            yield _event(error.envelope())
        finally:
            self.done(adapter)
            await response.aclose()

    async def _use(self, target: Target) -> _Adapter | None:
        """Have the child load the target's adapter if it has not, and hold it there."""
        name, directory = target.adapter_name, target.adapter_directory
        if name is None or directory is None:
            return None
        async with self.adapters_lock:
            loaded = self.adapters.get(name)
            if loaded is None or loaded.directory != directory:
                if loaded is not None:
                    await self._unload(name)
                spare = next((other for other, adapter in self.adapters.items() if adapter.users == 0), None)
                if spare is not None and len(self.adapters) >= _MAX_ADAPTERS:
                    await self._unload(spare)
                response = await self.client.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(directory)})
                if response.status_code != 200:
                    raise TunesmithError(f"Model {name!r} could not be loaded: {_message(response)}")
                loaded = self.adapters[name] = _Adapter(directory)
            self.adapters.move_to_end(name)
            loaded.users += 1
            return loaded

    async def _unload(self, name: str) -> None:
        await self.client.post("/v1/unload_lora_adapter", json={"lora_name": name})
        del self.adapters[name]

    def done(self, adapter: _Adapter | None = None) -> None:
        """Let go of the child, and of the adapter that was used."""
        self.in_flight -= 1
        self.last_used = time.monotonic()
        if adapter is not None:
            adapter.users -= 1

    def last_words(self) -> str:
        """Return the last line that the process wrote."""
        descriptor = self.stderr.fileno()  # pread: the child shares the file's offset
        tail = os.pread(descriptor, 4096, max(0, os.fstat(descriptor).st_size - 4096))
        lines = tail.decode(errors="replace").strip().splitlines()
        return f"It said: {lines[-1]}" if lines else ""

    async def ended(self) -> bool:
        """Say whether the process has ended; its sockets close a moment before it is gone."""
        for _ in range(20):
            if self.process.poll() is not None:
                return True
            await asyncio.sleep(0.05)
        return False

    async def stop(self) -> None:
        """End the process and everything that belongs to it; there is no state to save."""
        self.ready.cancel()
        if self.process.poll() is None:
            processes.kill_group(self.process)
        await asyncio.to_thread(self.process.wait)
        await self.client.aclose()
        self.socket.unlink(missing_ok=True)


class _Started:
    """An iterator over a generator whose first item was taken already.

    A generator that was never started would not run its `finally` when it is dropped; this one was.
    """

    def __init__(self, first: str, rest: AsyncGenerator[str, None]) -> None:
        self._first: str | None = first
        self._rest = rest

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return await anext(self._rest)


def _event(data: Mapping[str, Any]) -> str:
    return f"data: {orjson.dumps(data).decode()}\n\n"


def _renamed(answer: dict[str, Any], asked: str) -> dict[str, Any]:
    return answer | {"model": asked} if "model" in answer else answer


def _body(response: httpx.Response) -> dict[str, Any]:
    """Return the JSON object of a response that was read; of anything else, an error envelope that quotes it."""
    try:
        body = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        body = None
    return body if isinstance(body, dict) else TunesmithError(f"The model process answered: {response.text[:200]}").envelope()


def _message(response: httpx.Response) -> str:
    error = _body(response).get("error")
    return str(error.get("message")) if isinstance(error, dict) else response.text[:200]
