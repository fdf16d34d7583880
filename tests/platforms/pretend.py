"""A process that takes this system for another one, as far as that can be done: `python -m tests.platforms.pretend`.

In: the name of a platform, commands as JSON on stdin. Out: for each, its exit code and what it wrote, as JSON. What is
pretended is said to our own modules alone; numpy, psutil and the engines stay those of this system.

What it cannot pretend: Windows' files (no two names that differ in case, no renaming of what is open), its consoles and
its signals. `.github/workflows/ci.yml` runs the tests on the real ones.
"""

from __future__ import annotations

import builtins
import io
import json
import os
import sys
import threading
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

POSIX = frozenset({"fcntl", "resource", "readline", "termios", "tty", "pty", "pwd", "grp", "syslog", "posix"})
REAL = sys.platform


@dataclass(frozen=True)
class Platform:
    """What a system has, and how it writes text into a pipe."""

    name: str = REAL  # sys.platform
    code_page: str = "utf-8"
    hidden: frozenset[str] = frozenset()  # modules
    has_proc: bool = True
    has_affinity: bool = True  # and os.sysconf


PLATFORMS = {
    "here": Platform(code_page="cp1252"),
    "windows": Platform("win32", "cp1252", POSIX, has_proc=False, has_affinity=False),
    "chinese windows": Platform("win32", "gbk", POSIX, has_proc=False, has_affinity=False),
    "macos": Platform("darwin", "utf-8", frozenset({"readline"}), has_proc=False, has_affinity=False),
    "slim linux": Platform(hidden=frozenset({"psutil", "filelock", "platformdirs", "rich", "readline"})),
    "slim windows": Platform(
        "win32", "cp1252", POSIX | {"psutil", "filelock", "platformdirs", "rich"}, has_proc=False, has_affinity=False
    ),
    "latin-1 linux": Platform(code_page="latin-1"),
}


def pretended(*names: str) -> tuple[str, ...]:
    """Those platforms where they can be pretended, which takes Linux; elsewhere the real one."""
    return names if REAL == "linux" else ("here",)


def pretend(platform: Platform) -> None:
    """Make this process take its system for another, for good. Call it before anything of ours is imported."""
    _hide_modules(platform)
    if not platform.has_proc:
        sys.addaudithook(_without_proc)
    if not platform.has_affinity:
        import psutil  # noqa: F401  # asks os.sysconf when it is imported

        del os.sched_getaffinity, os.sysconf
    _pretend_name(platform.name)
    if platform.name == "win32":
        os.O_BINARY = 0  # type: ignore[attr-defined]  # Windows has it
        from tests.platforms.windows_memory import install

        install()


class _Here(threading.local):
    """What a thread is doing: while one imports a package of others, the others go on with what is pretended."""

    is_real = False


_here = _Here()


def _pretend_name(name: str) -> None:
    class Sys(types.ModuleType):
        @property
        def platform(self) -> str:
            return REAL if _here.is_real else name

    sys.__class__ = Sys


def _hide_modules(platform: Platform) -> None:
    real = builtins.__import__

    def importing(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: object = None,
        fromlist: Any = (),
        level: int = 0,
    ) -> object:
        importer, top = str((globals or {}).get("__name__", "")).split(".")[0], name.split(".", maxsplit=1)[0]
        if importer == "edge" and top in platform.hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if importer == "edge" and top == "msvcrt" and platform.name == "win32":
            return types.ModuleType(name)
        if top in ("edge", "tests") or level:
            return real(name, globals, locals, fromlist, level)  # type: ignore[arg-type]  # as they came
        before, _here.is_real = _here.is_real, True
        try:
            return real(name, globals, locals, fromlist, level)  # type: ignore[arg-type]
        finally:
            _here.is_real = before

    builtins.__import__ = importing  # type: ignore[assignment]  # with wider types


def _without_proc(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str) and arguments[0].startswith(("/proc/", "/sys/")):
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_globals.get("__name__") in ("pathlib", "io", "_io"):
            frame = frame.f_back
        if str(frame.f_globals.get("__name__")).startswith("edge."):
            raise FileNotFoundError(2, "No such file or directory", arguments[0])


class _Pipe(io.BytesIO):
    """Holds what was written after whoever wrote it has closed it."""

    def close(self) -> None:
        pass


def run(arguments: list[str], given: bytes, code_page: str) -> dict[str, object]:
    """Carry out one command line, with pipes for its standard streams."""
    from edge import cli

    streams = sys.stdin, sys.stdout, sys.stderr
    out, err = _Pipe(), _Pipe()
    sys.stdin = io.TextIOWrapper(io.BytesIO(given), code_page)
    sys.stdout, sys.stderr = io.TextIOWrapper(out, code_page), io.TextIOWrapper(err, code_page)
    try:
        code = cli.main(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
    except SystemExit as end:
        code = int(str(end.code))
    finally:
        sys.stdin, sys.stdout, sys.stderr = streams
    return {"code": code, "out": out.getvalue().hex(), "err": err.getvalue().hex()}


def main() -> None:
    platform = PLATFORMS[sys.argv[1]]
    commands = json.load(sys.stdin)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is not an answer
    pretend(platform)
    if "--scripted" in sys.argv:
        _answer_by_script()
    found = [run(command["arguments"], bytes.fromhex(command["given"]), platform.code_page) for command in commands]
    json.dump(found, answers)
    answers.close()


def _answer_by_script() -> None:
    """Let every bundle answer in three alphabets."""
    import edge.api
    from edge.runtime.engines.scripted import replies

    edge.api.load = lambda *_, **__: edge.api.scripted_llm(replies({"hi": "你好👋 café"}))


if __name__ == "__main__":
    main()
