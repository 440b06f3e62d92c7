"""Reports on training files, and rows as a model sees them. Children in `tunesmith.reports` look; here they are led and heard."""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from tunesmith import processes
from tunesmith.domain.findings import Finding, ordered
from tunesmith.errors import InvalidRequest, TunesmithError, Unavailable
from tunesmith.services import Context, bases, estimates, rows
from tunesmith.services import jobs as job_services
from tunesmith.services import models as model_services
from tunesmith.store import bases as base_store
from tunesmith.store import files
from tunesmith.training import defaults

#: Seconds after which a child is ended.
LIMIT_SECONDS = 120.0
#: Children at once, of all clients.
_MOST_CHILDREN = 12
_MAX_LINE = 64 * 2**20
_ENVIRONMENT = processes.COMPUTE_ENVIRONMENT | {"TRANSFORMERS_VERBOSITY": "error"}

_children: set[subprocess.Popen[bytes]] = set()


@dataclass(frozen=True)
class Order:
    """What is to be looked into, checked. `max_length` None: the model's own."""

    training: Path
    validation: Path | None
    model: str | None
    max_length: int | None


def order(
    context: Context, file_id: str, *, model: str | None = None, validation_file: str | None = None, max_length: int | None = None
) -> Order:
    """Check what is asked.

    Raises: FileNotFound; ModelNotFound; InvalidRequest for a file of another purpose, or a `max_length` that the model does not have.
    """
    files.get(context.db, file_id)
    job_services.check_file(context, file_id, "file_id")
    job_services.check_file(context, validation_file, "validation_file")
    if model is not None:
        model = model_services.canonical(context, model)
        known = estimates.facts(context, model)
        if known and max_length is not None:
            _length(known[0].max_length, max_length)
    validation = context.blobs.path(validation_file) if validation_file else None
    return Order(context.blobs.path(file_id), validation, model, max_length)


async def report(context: Context, order: Order) -> AsyncGenerator[dict[str, Any], None]:
    """Yield what is known so far, again and again; closing the generator ends the children."""
    began = time.monotonic()
    told = _Told(order.model is not None)
    heard: asyncio.Queue[tuple[str, Mapping[str, Any] | None]] = asyncio.Queue()
    children = {"check": _check(order)} | ({"tokens": _tokens(context, order)} if order.model else {})
    listening = {name: asyncio.create_task(_listen(name, child, heard)) for name, child in children.items()}
    try:
        while listening:
            name, found = await heard.get()
            if found is None:
                await listening.pop(name)
            told.hear(name, found or {})
            if told.is_bad:
                break
            if told.is_checked and found:
                yield told.report(began, done=False)
    finally:
        for task in listening.values():
            task.cancel()
        await asyncio.gather(*listening.values(), return_exceptions=True)
    yield told.report(began, done=True)


async def rendered(context: Context, order: Order, offset: int, limit: int) -> dict[str, Any]:
    """Return `limit` rows after the first `offset` as the model sees them, and how many there are.

    Raises: InvalidRequest where the model cannot tokenize; Unavailable when it takes too long.
    """
    assert order.model is not None
    base, max_length = await _base(context, order.model, order.max_length)
    with order.training.open("rb") as file:
        start, total = await asyncio.to_thread(rows.find, file, offset)
    last = min(offset + limit, total)
    task = {"training": str(order.training), "start": start, "first": offset + 1, "last": last, "base": base, "max_length": max_length}
    async with aclosing(_child("rendered", task)) as child:
        data = [row async for found in child for row in found["data"]]
    return {"data": data, "total": total, "max_length": max_length}


class _Told:
    """What the children have said so far, put together."""

    def __init__(self, wants_tokens: bool) -> None:
        self._wants_tokens = wants_tokens
        self._said: dict[str, dict[str, Any]] = {"check": {}, "tokens": {}}
        self._notes: list[str] = []

    def hear(self, name: str, found: Mapping[str, Any]) -> None:
        """Take what a child said; what it says again replaces what it said before, but for notes."""
        rest = dict(found)
        self._notes += [rest.pop("note")] if "note" in rest else []
        self._said[name] |= rest

    @property
    def is_checked(self) -> bool:
        """Whether every line was checked."""
        return "errors" in self._said["check"]

    @property
    def is_bad(self) -> bool:
        """Whether lines are wrong, so that nothing else can be said."""
        return bool(self._said["check"].get("num_errors"))

    def report(self, began: float, *, done: bool) -> dict[str, Any]:
        """Return the report as it is now."""
        check, tokens = self._said["check"], self._said["tokens"] if not self.is_bad else {}
        figures, findings = tokens.get("tokens"), check.get("findings")
        if findings is not None:
            both = [Finding.from_dict(found) for found in (*findings, *tokens.get("findings", ()))]
            findings = [finding.to_dict() for finding in ordered(both)]
        is_whole = figures["of_rows"] == figures["rows"] if figures else not self._wants_tokens
        return {
            "stage": "exact" if is_whole and findings is not None else "sample" if figures else "errors",
            "done": done, "seconds": time.monotonic() - began, "format": check.get("format"), "rows": check.get("rows", 0),
            "validation_rows": check.get("validation_rows"), "errors": check.get("errors", []) + tokens.get("errors", []),
            "num_errors": check.get("num_errors", 0) + tokens.get("num_errors", 0), "tokens": figures, "findings": findings,
            "notes": [] if self.is_bad else self._notes,
        }  # fmt: skip


async def _listen(
    name: str, child: AsyncGenerator[dict[str, Any], None], heard: asyncio.Queue[tuple[str, Mapping[str, Any] | None]]
) -> None:
    """Pass on what a child says, and None when it has ended."""
    try:
        async with aclosing(child):
            async for found in child:
                heard.put_nowait((name, found))
    except TunesmithError as error:
        heard.put_nowait((name, {"note": error.message}))
    finally:
        heard.put_nowait((name, None))


def _check(order: Order) -> AsyncGenerator[dict[str, Any], None]:
    return _child("check", {"training": str(order.training), "validation": order.validation and str(order.validation)})


async def _tokens(context: Context, order: Order) -> AsyncGenerator[dict[str, Any], None]:
    assert order.model is not None
    base, max_length = await _base(context, order.model, order.max_length)
    async with aclosing(_child("tokens", {"training": str(order.training), "base": base, "max_length": max_length})) as child:
        async for found in child:
            yield found


async def _base(context: Context, model: str, max_length: int | None) -> tuple[str, int]:
    """Return the directory of a model's base, obtained now if need be, and where rows are cut."""
    start = await asyncio.to_thread(bases.start, context, model)
    facts = base_store.facts(start.base)
    return str(start.base), defaults.max_length(facts) if max_length is None else _length(facts.max_length, max_length)


def _length(longest: int, asked: int) -> int:
    if asked > longest:
        raise InvalidRequest(f"max_length {asked} is over the model's context of {longest} tokens.", param="max_length")
    return asked


async def _child(module: str, task: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
    """Run a child and yield what it says, line by line; closing the generator kills it.

    Raises: InvalidRequest with what it cannot do; Unavailable when it dies, takes too long, or there are too many.
    """
    if len(_children) >= _MOST_CHILDREN:
        raise Unavailable(f"{_MOST_CHILDREN} looks into files are under way, the most at once. Try again when one is done.")
    loop, reader = asyncio.get_running_loop(), asyncio.StreamReader(limit=_MAX_LINE)
    deadline = loop.time() + LIMIT_SECONDS
    with tempfile.TemporaryFile() as stderr:
        command = f"tunesmith.reports.{module}", orjson.dumps(task).decode()
        child = processes.spawn(*command, stdout=subprocess.PIPE, stderr=stderr, environment=_ENVIRONMENT)
        _children.add(child)
        pipe: asyncio.ReadTransport | None = None
        try:
            pipe, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), child.stdout)
            while line := await asyncio.wait_for(reader.readline(), deadline - loop.time()):
                found = orjson.loads(line)
                if "error" in found:
                    raise InvalidRequest(found["error"])
                yield found
            await asyncio.to_thread(child.wait)
        except TimeoutError:
            raise Unavailable(f"The look into the file was ended after {LIMIT_SECONDS:.0f} s.") from None
        finally:
            # Nothing is awaited here: whoever was cancelled once may be again, at each await.
            _children.discard(child)
            processes.kill_group(child)
            if pipe is not None:
                pipe.close()
            if child.returncode is None:
                threading.Thread(target=child.wait, daemon=True).start()
        if child.returncode:
            stderr.seek(0)
            last = stderr.read()[-4096:].decode(errors="replace").strip().splitlines()[-1:]
            raise Unavailable(f"The process that looked into the file ended with status {child.returncode}. {' '.join(last)}".strip())
