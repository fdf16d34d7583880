"""Tools of MCP servers: processes on this machine that a model may call.

In: the `mcpServers` JSON that other programs read. Out: a list of tools for as long as a `with` block lasts, whose end
is the end of the processes. All servers share one thread with an event loop. Needs the extra `mcp`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from edge.runtime.errors import PromptError, ToolError, in_words
from edge.runtime.extras import missing_packages_named
from edge.runtime.rules import Number, check_value
from edge.tools.mcp_config import ServerEntry, read_servers
from edge.tools.mcp_words import declaration, tool_name
from edge.tools.tool import Tool

if TYPE_CHECKING:
    from mcp.types import Tool as ServerTool

    from edge.tools.mcp_server import Server

START_S = 60.0  # the first start may download the server, as with npx and uvx
_ENDING_S = 15.0  # the package closes stdin, asks after 2 s and kills after 4 s

T = TypeVar("T")

logger = logging.getLogger(__name__)


@contextmanager
def mcp_tools(
    config: str | os.PathLike[str] | Mapping[str, object], *, start_seconds: float = START_S
) -> Iterator[list[Tool]]:
    """Start the servers of a configuration, give their tools as `server_tool`, and end them with the `with` block.

    config: the path of a JSON file with an object `mcpServers`, or its content. start_seconds: how long a server may
    take until it has listed its tools. Raises SettingsError for a wrong configuration, MissingPackageError, and
    ToolError for a server that does not start. A call raises ToolError, whose message is for the model.
    """
    seconds: float = check_value("start_seconds", Number(0, 3600, above=True), start_seconds)
    entries = read_servers(config)
    if not entries:
        yield []
        return
    with missing_packages_named():
        import edge.tools.mcp_server  # noqa: F401
    servers = _Servers()
    try:
        yield servers.start(entries, seconds)
    finally:
        servers.close()


class _Servers:
    """Servers in a thread of their own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._closed = False
        self._running: dict[Server, asyncio.Task[None]] = {}
        self._thread = threading.Thread(target=self._run, name="edge-mcp", daemon=True)
        self._thread.start()

    def start(self, entries: Sequence[ServerEntry], seconds: float) -> list[Tool]:
        """Start all servers at the same time and return their tools. Raises ToolError for the first that fails."""
        tools: list[Tool] = []
        names: set[str] = set()
        for server, listed in self._result(self._start(entries, seconds)):
            for one in listed:
                if server.entry.offers(one.name) and (tool := self._tool(server, one, names)) is not None:
                    tools.append(tool)
        return tools

    def close(self) -> None:
        """End all servers, and calls that are still under way."""
        with self._lock:
            self._closed = True
            ending = asyncio.run_coroutine_threadsafe(self._end(), self._loop)
        try:
            ending.result(_ENDING_S)
        except TimeoutError:
            logger.warning("an MCP server did not end within %g s", _ENDING_S)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(1)

    def _run(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    def _result(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what a coroutine of the thread returns. An interrupt ends it."""
        with self._lock:
            if self._closed:
                work.close()
                raise ToolError("the MCP servers were closed")
            future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except CancelledError:
            raise ToolError("the MCP servers were closed during the call") from None
        except BaseException:
            future.cancel()
            raise

    async def _start(self, entries: Sequence[ServerEntry], seconds: float) -> list[tuple[Server, list[ServerTool]]]:
        from edge.tools.mcp_server import Server

        for entry in entries:
            server = Server(entry)
            self._running[server] = asyncio.create_task(server.run(seconds))
        for next_started in asyncio.as_completed([server.started for server in self._running]):
            if isinstance(failed := await next_started, ToolError):
                raise failed
        return [(server, found) for server in self._running if isinstance(found := server.started.result(), list)]

    async def _end(self) -> None:
        for server in self._running:
            server.stop()
        if self._running:
            await asyncio.wait(self._running.values())
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def _tool(self, server: Server, listed: ServerTool, names: set[str]) -> Tool | None:
        """Return a tool, or None for one that no model could be told of."""
        name = tool_name(server.entry.name, listed.name, names)

        def run(arguments: Mapping[str, Any]) -> str:
            return self._result(server.call(listed.name, arguments))

        try:
            tool = Tool(declaration=declaration(name, listed), run=run)
        except PromptError as error:  # such as a schema that is nested too deep
            logger.warning("the tool %s is left out: %s", name, in_words(server.entry.without_secrets(str(error))))
            return None
        names.add(name)
        return tool
