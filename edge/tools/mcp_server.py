"""One MCP server, from the start of its process to its end.

In: an entry of the configuration. Out: the tools that the server lists, and the text of calls. Everything here runs in
one event loop; knows nothing about threads, or how a model sees a tool. The `mcp` package starts the process in a
session of its own, ends it with all its children, and speaks the protocol.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from mcp import Client, MCPError, StdioServerParameters, stdio_client
from mcp.types import CONNECTION_CLOSED, Implementation
from pydantic import ValidationError

import edge
from edge.runtime.errors import ToolError, in_words
from edge.tools.mcp_config import ServerEntry
from edge.tools.mcp_words import result_text

if TYPE_CHECKING:
    from mcp.types import CallToolResult
    from mcp.types import Tool as ServerTool

MOST_TOOLS = 10_000  # of a server
_KEPT = 1 << 16  # bytes of stderr
_SHOWN = 300  # characters of it in a message
_LAST_WORDS_S = 0.5  # for what a server writes while it ends

# prctl(PR_SET_PDEATHSIG, SIGKILL), which stays across exec; the parent may be gone before that.
_TIED = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
try:
    os.execv(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"could not be started: {error.strerror}")
"""

logger = logging.getLogger(__name__)
_ours: ContextVar[bool] = ContextVar("_ours", default=False)  # whether a task belongs to a server of this module


class Server:
    """A server that runs as long as `run` does. Failures are ToolErrors that name it, without the values of `env`."""

    def __init__(self, entry: ServerEntry) -> None:
        self.entry = entry
        self.started: asyncio.Future[list[ServerTool] | ToolError] = asyncio.get_running_loop().create_future()
        self._client: Client | None = None
        self._limit: asyncio.Timeout | None = None
        self._stop = asyncio.Event()
        self._calls: set[asyncio.Task[CallToolResult]] = set()
        self._stderr = _ErrorOutput()
        self._junk: str | None = None  # the first line on stdout that is not a message

    async def run(self, start_s: float) -> None:
        """Start the server, set `started`, and end it when `stop` is called."""
        _ours.set(True)
        for name in ("mcp.client.stdio", "mcp.client.session", "mcp.shared.jsonrpc_dispatcher"):
            logging.getLogger(name).addFilter(_without_tracebacks)
        self._limit = asyncio.timeout(start_s)
        try:
            async with AsyncExitStack() as stack:
                async with self._limit:
                    client = await stack.enter_async_context(self._new_client())
                    tools = await _listed(client)
                self._client = client
                self.started.set_result(tools)
                await self._stop.wait()
        except Exception as error:  # a group of them from the package's tasks, or what a server made it raise
            problem = await self._why_not_started(_first(error), start_s)
            if self.started.done():
                logger.warning("%s", problem)
            else:
                self.started.set_result(problem)
        finally:
            self._client = None
            self._stderr.close()

    def stop(self) -> None:
        """Let `run` end, also while it starts the server."""
        self._stop.set()
        if self._limit is None:
            return
        # A cancelled task could skip the package's own ending of the process; a time limit only acts before that.
        with suppress(RuntimeError):
            self._limit.reschedule(asyncio.get_running_loop().time())

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> str:  # Any: JSON
        """Return what a tool brings as text. Raises ToolError, in words for the model."""
        if self._client is None:
            raise self._ended("has ended")
        try:
            result = await self._result(self._client, tool, arguments)
        except MCPError as error:
            if error.code == CONNECTION_CLOSED and error.message == "Connection closed":
                await asyncio.to_thread(self._stderr.wait, _LAST_WORDS_S)
                raise self._ended("has ended") from None
            raise ToolError(self.entry.without_secrets(error.message)) from None
        except ValidationError as error:
            raise ToolError(f"the result is not one of the protocol's: {self._invalid(error)}") from None
        except ToolError:
            raise
        except Exception as error:  # such as a result that does not follow the tool's own schema
            raise ToolError(self.entry.without_secrets(in_words(_first(error), 2000))) from None
        text = result_text(result)
        if result.is_error:
            raise ToolError(self.entry.without_secrets(text) or "the tool failed and does not say why")
        return text

    async def _result(self, client: Client, tool: str, arguments: Mapping[str, Any]) -> CallToolResult:
        """Return what a call brings. Raises ToolError after the time limit, and what the package raises."""
        seconds = self.entry.timeout_s
        call = asyncio.create_task(client.call_tool(tool, dict(arguments)))
        call.add_done_callback(lambda task: task.cancelled() or task.exception())  # it may be nobody's by then
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        try:
            # Not the package's own limit: that leaves out the time in which a server does not read the request.
            await asyncio.wait({call}, timeout=seconds)
            if call.done():
                return call.result()
        finally:
            call.cancel()  # takes seconds to tell the server, if that does not read; nobody waits for it
        raise ToolError(
            f"no answer from the MCP server {self.entry.name!r} within {seconds:g} s (timeout_ms in its entry)"
        )

    def _new_client(self) -> Client:
        return Client(
            self._transport(),
            cache=None,
            client_info=Implementation(name="edgeglm", version=edge.__version__),
            message_handler=self._on_message,
        )

    @asynccontextmanager
    async def _transport(self) -> AsyncIterator[Any]:  # Any: the package's pair of streams has no public name
        entry = self.entry
        command, *args = _tied([entry.command, *entry.args])
        parameters = StdioServerParameters(
            command=command,
            args=args,
            env=dict(entry.env),
            cwd=entry.cwd,
            encoding_error_handler="replace",  # "strict" would end the connection at one wrong byte
        )
        async with stdio_client(parameters, errlog=self._stderr.sink) as streams:
            self._stderr.close()  # the server has its own end
            yield streams

    async def _on_message(self, message: object) -> None:
        """Note a line on stdout that is not a message; the package skips it."""
        if not isinstance(message, Exception) or self._junk is not None:
            return
        line = message.errors()[0].get("input") if isinstance(message, ValidationError) else ""
        self._junk = in_words(self.entry.without_secrets(str(line)), 80)
        logger.warning(
            "the MCP server %r writes lines to stdout that are not messages, which are skipped; the first is %r",
            self.entry.name,
            self._junk,
        )

    async def _why_not_started(self, error: BaseException, start_s: float) -> ToolError:
        await asyncio.to_thread(self._stderr.wait, _LAST_WORDS_S)
        if self._limit is not None and self._limit.expired():
            return self._ended(f"did not answer within {start_s:g} s")
        if isinstance(error, MCPError) and error.code == CONNECTION_CLOSED:
            return self._ended("ended before it answered")
        if isinstance(error, OSError):
            return self._ended(f"could not be started: {in_words(error.strerror)}")
        if isinstance(error, ValidationError):
            return self._ended(f"does not follow the protocol: {self._invalid(error)}")
        return self._ended(f"refused: {in_words(self.entry.without_secrets(str(error)))}")

    def _ended(self, what: str) -> ToolError:
        """Return an error with the last lines of stderr, and with what is wrong on stdout."""
        told = f"the MCP server {self.entry.name!r} {what}"
        if self._junk is not None:
            told += f"; it wrote {self._junk!r} to stdout, which is not a message"
        last = " ".join(in_words(self.entry.without_secrets(self._stderr.text()), _KEPT).split())
        if last:
            told += f"; its stderr ends in: {last if len(last) <= _SHOWN else '…' + last[-_SHOWN:]}"
        return ToolError(told)

    def _invalid(self, error: ValidationError) -> str:
        """Return where a message is wrong, and why; not what is there."""
        found = error.errors(include_input=False, include_url=False)[0]
        return in_words(self.entry.without_secrets(f"{'.'.join(map(str, found['loc']))}: {found['msg']}"))


def _tied(command: list[str]) -> list[str]:
    """Return a command whose process does not outlive this one, even if it ignores the end of its stdin."""
    if sys.platform != "linux" or not os.access(command[0], os.X_OK):
        return command
    return [sys.executable, "-I", "-S", "-c", _TIED, str(os.getpid()), *command]


async def _listed(client: Client) -> list[ServerTool]:
    """Return the tools of all pages. Raises ToolError for a list without an end."""
    found: list[ServerTool] = []
    if client.server_capabilities.tools is None:
        return found
    cursors: set[str] = set()
    cursor: str | None = None
    while True:
        page = await client.list_tools(cursor=cursor)
        found += page.tools
        cursor = page.next_cursor
        if not cursor:
            return found
        if cursor in cursors or len(found) > MOST_TOOLS:
            raise ToolError(f"its list of tools does not end after {len(found):,}")
        cursors.add(cursor)


def _first(error: BaseException) -> BaseException:
    """Return the first error in a group of groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _without_tracebacks(record: logging.LogRecord) -> bool:
    """Drop or shorten what the package logs of our servers: a traceback for every line that is not a message."""
    if not _ours.get():
        return True
    record.exc_info = None
    return not str(record.msg).startswith("Failed to parse")


class _ErrorOutput:
    """The end of what a server writes to stderr. A thread reads, so that a flood of it never holds the server up."""

    def __init__(self) -> None:
        reading, writing = os.pipe()
        self.sink = os.fdopen(writing, "w")
        self._tail = b""
        self._thread = threading.Thread(target=self._read, args=(reading,), name="edge-mcp-stderr", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close our own writing end; reading goes on until the server has closed its own."""
        self.sink.close()

    def wait(self, seconds: float) -> None:
        """Wait until everything is read."""
        self._thread.join(seconds)

    def text(self) -> str:
        return self._tail.decode("utf-8", "replace")

    def _read(self, reading: int) -> None:
        with os.fdopen(reading, "rb", buffering=0) as pipe:
            while chunk := pipe.read(_KEPT):
                self._tail = (self._tail + chunk)[-_KEPT:]
