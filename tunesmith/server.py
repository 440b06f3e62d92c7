"""`tunesmith serve`: the API in this process, one worker in another, started again whenever it dies."""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable

import uvicorn

from tunesmith import processes
from tunesmith.api.app import create_app
from tunesmith.errors import InvalidRequest
from tunesmith.settings import Settings

_log = logging.getLogger(__name__)

#: A worker checkpoints and gives its job back before it ends.
_WORKER_STOP_SECONDS = 35.0
#: Pauses between restarts of a worker that dies at once.
_SHORTEST_RESTART, _LONGEST_RESTART = 0.5, 30.0


def run(settings: Settings, *, with_parent: bool = False) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises: InvalidRequest when the address cannot be listened on.
    """
    if with_parent:
        processes.die_with_parent(signal.SIGTERM)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for talkative in ("httpx", "alembic"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    listener = _listen(settings)
    app = create_app(settings)
    _greet(settings, listener.getsockname()[1], app.state.key.plain, app.state.access.mint_login())
    workers = WorkerSupervisor(settings)
    workers.start()
    # uvicorn raises the signal that ended it once more; the worker must be awaited first.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    try:
        config = uvicorn.Config(
            app, http="h11", log_level="warning", server_header=False, access_log=False,
            timeout_graceful_shutdown=5, h11_max_incomplete_event_size=32_768,
        )  # fmt: skip
        _Server(config, app.state.live.end).run(sockets=[listener])
    finally:
        workers.stop()


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        why = str(error.strerror or error).partition(" (while")[0]  # Python adds the address, which is said already
        words = f"Cannot listen on {settings.host} port {settings.port}: {why}. Hint: --port 0 takes a free one."
        raise InvalidRequest(words, param="port") from error


def _greet(settings: Settings, port: int, new_key: str | None, login: str) -> None:
    """Say where the server is, on stderr; a key made just now is shown this once."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{port}"
    lines = [f"Tunesmith serves the OpenAI API at {url}/v1", f"  browser:  {url}/login?token={login}", f"  data:     {settings.data_dir}"]
    if new_key:
        lines.insert(1, f"  API key:  {new_key}   (made just now and shown only once; TUNESMITH_API_KEY sets another)")
    print("\n".join(lines), file=sys.stderr, flush=True)


class _Server(uvicorn.Server):
    """Ends the streams first: they would be open for ever."""

    def __init__(self, config: uvicorn.Config, end_streams: Callable[[], None]) -> None:
        super().__init__(config)
        self._end_streams = end_streams

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._end_streams()
        await super().shutdown(sockets)


class WorkerSupervisor:
    """Keeps one worker process alive. Its thread starts the worker, which dies with it."""

    def __init__(self, settings: Settings) -> None:
        self._environment = settings.environment() | processes.download_environment()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="worker-supervisor")

    def start(self) -> None:
        """Start the worker and watch it."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the worker to checkpoint and end; kill it when it takes too long."""
        self._stopping.set()
        self._thread.join()

    def _keep(self) -> None:
        pause = _SHORTEST_RESTART
        while not self._stopping.is_set():
            worker = processes.spawn("tunesmith.worker", environment=self._environment)
            while worker.poll() is None and not self._stopping.wait(0.2):
                pass
            if self._stopping.is_set():
                self._end(worker)
                return
            _log.warning("the worker ended with status %s; starting another", worker.returncode)
            self._stopping.wait(pause)
            pause = min(pause * 2, _LONGEST_RESTART)

    def _end(self, worker: subprocess.Popen[bytes]) -> None:
        worker.terminate()
        try:
            worker.wait(_WORKER_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            processes.kill_group(worker)
            worker.wait()
