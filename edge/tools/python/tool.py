"""The python tool: a stateful interpreter in a sandbox as something that a model may call.

In: a folder, limits, and calls with `{"code": ...}`. Out: text for the model. Knows nothing about loops or templates.
Nothing of a model runs in this process.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from edge.runtime.errors import SettingsError, ToolError, shown
from edge.runtime.files import real_path
from edge.runtime.rules import FilePath, check_value
from edge.tools.python.limits import Limits
from edge.tools.python.process import Interpreter, Outcome
from edge.tools.python.sandbox import find_bwrap
from edge.tools.tool import Tool

_DESCRIPTION = (
    "Runs Python code in a stateful interpreter and returns what it prints and the value of its last expression. "
    "Variables persist between calls. Files persist in /mnt/data, the working folder. A call ends after {seconds:g} "
    "seconds. There is no internet access, and no other process can be started."
)
_NOTHING = "(no output)"
_LOST = "[The interpreter was started again: variables of earlier calls are gone.]"


def python_tool(folder: str | PathLike[str] | None = None, limits: Limits | None = None) -> Tool:
    """Return the tool. Raises SettingsError, and ToolError where there can be no sandbox.

    folder: becomes /mnt/data, readable and writable; None: one in memory that goes when the interpreter ends. The
    interpreter starts with the first call and ends with `close`.
    """
    if limits is not None and not isinstance(limits, Limits):
        raise SettingsError(f"limits is {shown(limits)}, expected a Limits", param="limits")
    limits = limits or Limits()
    checked = None if folder is None else _checked_folder(folder)
    find_bwrap()
    session = _Session(checked, limits)
    parameters = {
        "type": "object",
        "properties": {"code": {"type": "string", "description": "Python code"}},
        "required": ["code"],
        "additionalProperties": False,
    }
    function = {
        "name": "python",
        "description": _DESCRIPTION.format(seconds=limits.seconds),
        "parameters": parameters,
    }
    return Tool(
        declaration={"type": "function", "function": function},
        run=session.run,
        native={"type": "python"},
        close=session.close,
    )


def _checked_folder(folder: str | PathLike[str]) -> Path:
    path: Path = check_value("folder", FilePath(), folder)
    if not path.is_dir():
        raise SettingsError(f"folder is {shown(str(path))}, expected a folder that exists", param="folder")
    path, home = real_path(path), real_path(Path("~").expanduser())
    if path == Path(path.anchor) or path == home or path in home.parents:
        raise SettingsError(
            f"folder is {shown(str(path))}, which holds more than a model should change; give a folder inside it",
            param="folder",
        )
    return path


class _Session:
    """The interpreter behind one tool, started when it is needed. One call at a time; others wait."""

    def __init__(self, folder: Path | None, limits: Limits) -> None:
        self._folder, self._limits = folder, limits
        self._lock = threading.Lock()
        self._interpreter: Interpreter | None = None
        self._lost = False  # variables, without the model having been told
        self._closed = False

    def run(self, arguments: Mapping[str, Any]) -> str:
        """Run code and return the text for the model. Raises ToolError."""
        code = arguments.get("code")
        if not isinstance(code, str) or len(arguments) != 1:
            raise ToolError('expected {"code": "..."} with Python code as text')
        with self._lock:
            if self._closed:
                raise ToolError("the python tool was closed; make another one")
            told = [_LOST] if self._lost else []
            if self._interpreter is None:
                self._interpreter = Interpreter(self._folder, self._limits)
                self._lost = False
            try:
                outcome = self._interpreter.run(code)
            except BaseException:  # Ctrl-C: the process has been ended
                self._interpreter, self._lost = None, True
                raise
            if outcome.ended is not None:
                self._interpreter = None
            return "\n".join([*told, *self._told(outcome)])

    def close(self) -> None:
        """End the interpreter, and a call that is running with it."""
        self._closed = True
        running = self._interpreter
        if running is not None:
            running.kill()
        with self._lock:
            if self._interpreter is not None:
                self._interpreter.end()
                self._interpreter = None

    def _told(self, outcome: Outcome) -> list[str]:
        parts = [part for part in (outcome.printed.rstrip("\n"), outcome.error) if part]
        if outcome.ended is not None:
            files = "all files" if self._folder is None else "files in /tmp"
            parts.append(
                f"[The interpreter is gone: {outcome.ended}. All variables and {files} are gone; the next call "
                "starts a new one.]"
            )
        return parts or [_NOTHING]
