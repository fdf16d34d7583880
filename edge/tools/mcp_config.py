"""The `mcpServers` object that other programs keep their MCP servers in, read into what to start.

In: a path, or the parsed JSON. Out: one frozen record a server. Starts nothing, and knows nothing about the protocol.
Values of `env`, and arguments, are often secrets: no message and no `repr` has one.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edge.runtime.errors import SettingsError, in_words, shown
from edge.runtime.json_reader import read_json
from edge.runtime.rules import FilePath, Whole, check_value

DEFAULT_TIMEOUT_MS = 30_000  # of a call
_LONGEST_TIMEOUT_MS = 24 * 60 * 60 * 1000
_ADVICE = 'expected JSON like {"mcpServers": {"NAME": {"command": "...", "args": ["..."]}}}'
_LOCAL = frozenset({"stdio", "local"})  # what programs call a server that they start
_REMOTE = ("url", "serverUrl", "httpUrl")
_TOOL_LISTS = ("includeTools", "excludeTools", "disabledTools")
_OWN = ("command", "args", "env", "cwd", "timeout_ms", "type", "transport", "disabled", "enabled")
_USED = frozenset((*_OWN, *_TOOL_LISTS))
_KINDS = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list"}
_VARIABLE = re.compile(r"\$\{(?:env:)?([A-Za-z_][A-Za-z0-9_]*)\}")  # all of a value of `env`
_SHORTEST_SECRET = 4  # characters; hiding every "1" would leave nothing of a message

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServerEntry:
    """One server: what to start, and how long to wait for it."""

    name: str
    command: str  # a path that can be run
    args: tuple[str, ...] = field(default=(), repr=False)
    env: Mapping[str, str] = field(default_factory=dict, repr=False)  # added to a minimal environment
    cwd: Path | None = None
    timeout_s: float = DEFAULT_TIMEOUT_MS / 1000
    included: frozenset[str] | None = None  # tools, by the server's names; None: all
    excluded: frozenset[str] = frozenset()

    def offers(self, tool: str) -> bool:
        """Whether a tool of the server's may be used."""
        return tool not in self.excluded and (self.included is None or tool in self.included)

    def without_secrets(self, text: str) -> str:
        """Return text from the server with the values of `env` replaced, as they are or escaped."""
        found: set[str] = set()
        for value in self.env.values():
            for part in (value, value.strip(), *value.splitlines()):
                found |= {part, repr(part)[1:-1], part.replace("\n", "\\n")}
        for secret in sorted(found, key=len, reverse=True):
            if len(secret) >= _SHORTEST_SECRET:
                text = text.replace(secret, "***")
        return text


def read_servers(config: str | os.PathLike[str] | Mapping[str, object]) -> tuple[ServerEntry, ...]:
    """Return the servers that are not disabled. Raises SettingsError.

    A relative `cwd` begins at the folder of the file, or at the current folder for a mapping.
    """
    base = Path.cwd()
    content: object = config
    if not isinstance(config, Mapping):
        path: Path = check_value("config", FilePath("the path of a file, or its parsed JSON"), config)
        content, base = read_json(path, SettingsError, _ADVICE), path.absolute().parent
    servers = content.get("mcpServers") if isinstance(content, Mapping) else None
    if not isinstance(servers, Mapping):
        where = "config" if isinstance(config, Mapping) else in_words(config)
        raise SettingsError(f"{where} has no object mcpServers; {_ADVICE}", param="mcpServers")
    entries = (_entry(name, entry, base) for name, entry in servers.items())
    return tuple(entry for entry in entries if entry is not None)


def _entry(name: object, entry: object, base: Path) -> ServerEntry | None:
    if not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name) > 100:
        raise SettingsError(
            f"mcpServers has the name {shown(name)}, expected 1 to 100 printable characters", param="mcpServers"
        )
    path = f"mcpServers.{name}"
    if not isinstance(entry, Mapping):
        raise _wrong(path, entry, "an object with a command")
    switched_off = _flag(path, entry, "disabled", False) or not _flag(path, entry, "enabled", True)
    if switched_off:
        logger.info("the MCP server %r is disabled", name)
        return None
    _refuse_remote(path, entry)
    if unused := sorted(in_words(key, 40) for key in entry if key not in _USED):
        logger.warning("%s: not used here: %s", path, in_words(", ".join(unused)))
    env, cwd = _environment(path, entry), _folder(path, entry, base)
    included, excluded, disabled = (_texts(path, entry, key) for key in _TOOL_LISTS)
    milliseconds = entry.get("timeout_ms")
    if milliseconds is None:
        milliseconds = DEFAULT_TIMEOUT_MS
    timeout_ms: int = check_value(f"{path}.timeout_ms", Whole(1, _LONGEST_TIMEOUT_MS), milliseconds)
    return ServerEntry(
        name=name,
        command=_command(path, entry, env, cwd),
        args=_texts(path, entry, "args") or (),
        env=env,
        cwd=cwd,
        timeout_s=timeout_ms / 1000,
        included=None if included is None else frozenset(included),
        excluded=frozenset((*(excluded or ()), *(disabled or ()))),
    )


def _refuse_remote(path: str, entry: Mapping[str, object]) -> None:
    for key in ("type", "transport"):
        if (kind := entry.get(key)) is not None and (not isinstance(kind, str) or kind not in _LOCAL):
            raise SettingsError(
                f"{path}.{key} is {shown(kind)}: only servers that are started here and speak over stdio are supported",
                param=f"{path}.{key}",
            )
    for key in _REMOTE:
        if entry.get(key) is not None:  # not shown: addresses have keys in them
            raise SettingsError(
                f"{path} has {key}: servers on a network are not supported, only those with a command to start here",
                param=f"{path}.{key}",
            )


def _command(path: str, entry: Mapping[str, object], env: Mapping[str, str], cwd: Path | None) -> str:
    """Return the path of the program, found as the system would find it for the server."""
    command = entry.get("command")
    if not isinstance(command, str) or not command.strip():
        raise _wrong(f"{path}.command", command, "the name or path of a program")
    _check_value_text(f"{path}.command", command)
    if {os.sep, os.altsep or os.sep} & {
        *command
    }:  # a path: the system takes it from the folder that the program starts in
        found = shutil.which(str((cwd or Path.cwd()) / _expanded(Path(command))))
        hint = "there is no program at this path"
    else:
        search = env.get("PATH", os.environ.get("PATH"))
        found = shutil.which(command, path=search)
        hint = "it is not on the PATH; install it, or give its path"
    if found is None:
        raise SettingsError(f"{path}.command is {shown(command)}: {hint}", param=f"{path}.command")
    return found


def _environment(path: str, entry: Mapping[str, object]) -> dict[str, str]:
    """Return the variables; a value that is all `${NAME}` or `${env:NAME}` is taken from our own environment."""
    given = entry.get("env")
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise _wrong(f"{path}.env", given, "an object of texts")
    found: dict[str, str] = {}
    for name, value in given.items():
        if not isinstance(name, str) or not name or "=" in name or not name.isprintable():
            raise SettingsError(f"{path}.env has the name {shown(name)}, expected a variable", param=f"{path}.env")
        where = f"{path}.env.{in_words(name, 60)}"
        if not isinstance(value, str):
            raise _wrong(where, value, "a text")
        _check_value_text(where, value)
        if variable := _VARIABLE.fullmatch(value):
            if variable[1] not in os.environ:
                raise SettingsError(f"{where} is ${{{variable[1]}}}, which is not set in the environment", param=where)
            found[name] = os.environ[variable[1]]
        else:
            found[name] = value
    return found


def _folder(path: str, entry: Mapping[str, object], base: Path) -> Path | None:
    given = entry.get("cwd")
    if given is None:
        return None
    where = f"{path}.cwd"
    if not isinstance(given, str):
        raise _wrong(where, given, "a path")
    folder: Path = base / _expanded(check_value(where, FilePath(), given))
    if not folder.is_dir():
        raise SettingsError(f"{where} is {shown(str(folder))}, expected a folder that exists", param=where)
    return folder


def _expanded(path: Path) -> Path:
    """Return a path with `~` resolved, where there is a home folder."""
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def _texts(path: str, entry: Mapping[str, object], key: str) -> tuple[str, ...] | None:
    """Return a list of texts, or None where there is none. Does not show what is in it."""
    given = entry.get(key)
    if given is None:
        return None
    if not isinstance(given, list | tuple):
        raise _wrong(f"{path}.{key}", given, "a list of texts")
    for i, text in enumerate(given):
        if not isinstance(text, str):
            raise _wrong(f"{path}.{key}[{i}]", text, "a text")
        _check_value_text(f"{path}.{key}[{i}]", text)
    return tuple(given)


def _flag(path: str, entry: Mapping[str, object], key: str, default: bool) -> bool:
    given = entry.get(key)
    if given is None:
        return default
    if not isinstance(given, bool):
        raise _wrong(f"{path}.{key}", given, "true or false")
    return given


def _check_value_text(where: str, text: str) -> None:
    """Raise SettingsError for what no argument or variable of a process can be, without showing it."""
    if "\0" in text:
        raise SettingsError(f"{where} has a null character in it", param=where)
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise SettingsError(f"{where} has a character in it that is not Unicode", param=where) from None


def _wrong(where: str, value: object, expected: str) -> SettingsError:
    """Return the error for a value of the wrong type, which may be a secret: it is told by its type alone."""
    if value is None or value == "":
        return SettingsError(f"{where} is missing, expected {expected}", param=where)
    kind = _KINDS.get(type(value), "an object")
    return SettingsError(f"{where} is {kind}, expected {expected}", param=where)
