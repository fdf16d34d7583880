"""A real terminal for tests: tmux, whose keys are typed and whose screen is read."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

SECONDS = 60.0
NONE: Mapping[str, str] = {}


class Terminal:
    """A program in a terminal of its own. Ends with the block it is opened in."""

    def __init__(
        self,
        command: Sequence[str],
        home: Path,
        changes: Mapping[str, str] = NONE,
        *,
        columns: int = 80,
        rows: int = 24,
    ) -> None:
        """home: for what is cached. changes: variables of the environment; an empty one is removed."""
        self._name = f"edgeglm-{uuid.uuid4().hex[:12]}"
        words = [
            "env",
            *(f"{name}={value}" for name, value in _environment({"XDG_CACHE_HOME": str(home), **changes}).items()),
        ]
        # A shell that Ctrl-C reaches too would end after the program.
        line = f"trap : INT; {shlex.join([*words, *command])}; echo EXIT $?; sleep 1000"
        size = ("-x", str(columns), "-y", str(rows))
        self._tmux("-f", "/dev/null", "new-session", "-d", *size, "env", "-i", "sh", "-c", line)

    def _tmux(self, *arguments: str) -> str:
        command = ["tmux", "-u", "-L", self._name, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def keys(self, *names: str) -> None:
        """Press keys by tmux's names, like Enter, M-Enter, C-c and Left."""
        self._tmux("send-keys", "-t", "0", *names)

    def enter(self, text: str) -> None:
        """Type text, without the Enter key."""
        self._tmux("send-keys", "-t", "0", "-l", "--", text)

    def paste(self, text: str) -> None:
        """Paste text as terminals do, between marks where the program has asked for them."""
        self._tmux("set-buffer", "--", text)
        self._tmux("paste-buffer", "-p", "-r", "-t", "0")

    def screen(self) -> list[str]:
        """The lines of the screen and of what has scrolled away, without empty ones at the end."""
        lines = [line.rstrip() for line in self._tmux("capture-pane", "-p", "-S", "-", "-t", "0").splitlines()]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    def wait_for(self, text: str, count: int = 1, seconds: float = SECONDS) -> list[str]:
        """The screen once a text is on it so many times."""
        return self.wait_until(lambda lines: "\n".join(lines).count(text) >= count, seconds)

    def wait_until(self, fits: Callable[[list[str]], bool], seconds: float = SECONDS) -> list[str]:
        """The screen once a condition holds."""
        deadline = time.monotonic() + seconds
        while True:
            lines = self.screen()
            if fits(lines):
                return lines
            assert time.monotonic() < deadline, lines
            time.sleep(0.05)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        subprocess.run(["tmux", "-L", self._name, "kill-server"], capture_output=True, timeout=SECONDS, check=False)


def _environment(changes: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("TMUX", "NO_COLOR", "COLUMNS", "LINES")}
    given = {**kept, "TERM": "screen-256color", "LC_ALL": "C.UTF-8", **changes}
    return {name: value for name, value in given.items() if value}
