"""The server as a process: it listens before the model is loaded, and ends as it should.

In: settings, and a function that opens a model. Out: a server, until a signal ends it. Knows nothing about requests.

The first signal lets nobody in any more and gives running answers `shutdown_s` to finish; then they end with an error.
The second one ends them at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from edge.runtime.errors import SettingsError
from edge.server.listener import Listener, connections_that_fit
from edge.server.protocol import ConnectionLimits, limited_protocol
from edge.server.service import Service
from edge.server.settings import ServerSettings
from edge.server.systemd import Notifier

_BACKLOG = 512
_KEEP_ALIVE_S = 75  # longer than clients keep a connection, so that none is closed while a request is on its way
_TICK_S = 0.1
_STATUS_S = 1.0  # between two looks at how far loading is
_LAST_WORDS_S = 2.0  # for answers that were cut to tell of it
_SIGNALS = [signal.SIGINT, signal.SIGTERM]

logger = logging.getLogger(__name__)


def bind(settings: ServerSettings) -> socket.socket:
    """Return a socket that listens where the settings say. Raises SettingsError if it cannot."""
    try:
        return _bound_path(Path(settings.uds)) if settings.uds is not None else _bound_port(settings)
    except (OSError, ValueError) as error:
        where = settings.uds or f"{settings.host}:{settings.port}"
        raise SettingsError(
            f"{where} cannot be listened on ({getattr(error, 'strerror', None) or error}); is another program there? "
            "Choose another --port",
            param="uds" if settings.uds else "port",
        ) from error


def url_of(bound: socket.socket) -> str:
    """Return where a socket can be reached."""
    if bound.family not in (socket.AF_INET, socket.AF_INET6):
        return f"unix:{bound.getsockname()}"
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(app: ASGIApp, service: Service, bound: socket.socket, notifier: Notifier) -> None:
    """Serve until a signal comes. Raises what loading the model raises."""
    server = ModelServer(app, service, bound, notifier)
    server.run([server.listener])
    if server.failure is not None:
        raise server.failure
    if service.state == "stopping" and not server.loaded.is_set():
        logger.info("ended while the model was loading")
        service.abandon()
        sys.stderr.flush()
        os._exit(0)  # a thread inside an engine cannot be ended in another way
    service.close()


class ModelServer(uvicorn.Server):
    """uvicorn's server with our signals, which also loads the model. Its `run` works in any thread."""

    def __init__(self, app: ASGIApp, service: Service, bound: socket.socket, notifier: Notifier) -> None:
        settings = service.settings
        limits = ConnectionLimits(
            max_connections=connections_that_fit(settings.max_connections),
            header_timeout_s=settings.header_timeout_s,
            write_timeout_s=settings.send_timeout_s,
        )
        super().__init__(
            uvicorn.Config(
                app,
                http=limited_protocol(limits),
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=int(_LAST_WORDS_S) + 1,
                backlog=_BACKLOG,
            )
        )
        self.failure: BaseException | None = None
        self.loaded = threading.Event()
        bound.listen(_BACKLOG)
        bound.setblocking(False)
        self.listener = Listener(bound)
        self._service, self._notifier = service, notifier
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._num_signals = 0

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Load, serve and end."""
        self._stop = asyncio.Event()
        self._loop = loop = asyncio.get_running_loop()
        threading.Thread(target=self._load, args=(loop,), name="edge-load", daemon=True).start()
        tasks = [loop.create_task(self._end()), loop.create_task(self._tell_systemd())]
        with self._signals(), _own_path(self._service.settings.uds):
            await self._serve(sockets)
        for task in tasks:
            task.cancel()

    def _load(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            self._service.load()
        except BaseException as error:  # it belongs to whoever called `serve`
            self.failure = error
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._exit)
        else:
            self.loaded.set()
            self._notifier.ready()

    def _exit(self) -> None:
        self.should_exit = True

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def heard(_number: int, _frame: FrameType | None) -> None:
            self.end_soon()

        before = {number: signal.signal(number, heard) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def end_soon(self) -> None:
        """Call `end` from any thread."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self.end)

    def end(self) -> None:
        """Begin to end; a second call ends at once. Called in the event loop."""
        self._num_signals += 1
        self._service.stop()
        assert self._stop is not None
        self._stop.set()

    async def _end(self) -> None:
        assert self._stop is not None
        await self._stop.wait()
        self._notifier.stopping()
        left_s = self._service.settings.shutdown_s
        while self._service.num_active and left_s > 0 and self._num_signals < 2:
            await asyncio.sleep(min(_TICK_S, left_s))
            left_s -= _TICK_S
        left_s = _LAST_WORDS_S
        while self._service.num_active and left_s > 0:
            self._service.cut()  # again and again: an answer may only just be starting
            await asyncio.sleep(_TICK_S)
            left_s -= _TICK_S
        self.should_exit = True

    async def _tell_systemd(self) -> None:
        said, pause_s = "", min(self._notifier.watchdog_s or _STATUS_S, _STATUS_S)
        while True:
            service = self._service
            if service.state == "loading" and said != (said := f"{service.stage}, {service.progress:.0%}"):
                self._notifier.status(said)
            if not service.stalled_s:
                self._notifier.alive()
            await asyncio.sleep(pause_s)


def _bound_port(settings: ServerSettings) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    bound = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":  # where it would let two servers have one port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen()  # so that a port that is taken is refused now
    except BaseException:
        bound.close()
        raise
    return bound


def _bound_path(path: Path) -> socket.socket:
    if sys.platform == "win32":
        raise ValueError("unix sockets are not used on Windows")
    _remove_unused(path)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        bound.bind(str(path))
        path.chmod(0o600)  # whoever can open it can use the server
        bound.listen()
    except BaseException:
        bound.close()
        raise
    return bound


@contextlib.contextmanager
def _own_path(path: str | None) -> Iterator[None]:
    """Remove the file of a socket at the end, unless something else has taken its place."""
    if path is None:
        yield
        return
    mine = Path(path).lstat()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            there = Path(path).lstat()
            if (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino):
                Path(path).unlink()


def _remove_unused(path: Path) -> None:
    """Remove the socket of a server that was killed; anything else stays."""
    if not path.exists() or not stat.S_ISSOCK(path.stat().st_mode):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
