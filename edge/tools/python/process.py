"""The interpreter in its sandbox as a process: started, asked, watched, stopped between calls, ended.

In: code. Out: an `Outcome`: what was printed, the traceback, and why the process ended, if it did. Knows nothing about
tools or models. Linux only.

bubblewrap ends the sandbox when its parent dies, and takes the *thread* that started it for the parent. So a thread of
its own starts it and waits for it: a call may come from any thread, and that thread may end.
"""

from __future__ import annotations

import os
import platform
import selectors
import signal
import subprocess
import threading
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.runtime.errors import ToolError, in_words, telling_line
from edge.tools.python.frames import packed, taken
from edge.tools.python.limits import Limits
from edge.tools.python.output import Output
from edge.tools.python.sandbox import command, find_bwrap
from edge.tools.python.syscalls import filter_program
from edge.tools.python.watch import Watch, innermost

_START = 20.0  # seconds until the interpreter has to be ready
_END = 5.0  # seconds that the kernel has to end what was killed
_TICK = 0.1  # seconds between looks at threads and disk
_MOST_PRINTED = 256 << 20  # bytes of output after which a call is ended
_PIECE = 1 << 16

_Answer = tuple[dict[str, Any] | None, str | None]  # JSON, or why the process is to be ended


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one call. ended: why the process is gone, in words; its variables are gone with it."""

    printed: str
    error: str | None = None
    ended: str | None = None


class Interpreter:
    """One sandbox. Not thread-safe. Raises ToolError when it does not start."""

    def __init__(self, folder: Path | None, limits: Limits) -> None:
        self._folder, self._limits = folder, limits
        bwrap = find_bwrap()
        requests, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        self._printed, printed = os.pipe()
        rules, rules_end = os.pipe()
        self._ours = [self._requests, self._answers, self._printed]
        os.write(rules_end, filter_program(platform.machine()))  # shorter than what a pipe holds
        os.close(rules_end)
        line = command(bwrap, folder, limits, answers, rules)
        try:
            self._process = _start(line, requests, printed, (answers, rules))
        except BaseException as error:
            _close(self._ours)
            if isinstance(error, OSError):
                raise ToolError(f"the python tool's sandbox does not start: {in_words(error)}") from None
            raise
        finally:
            _close([requests, answers, printed, rules])
        self._finalizer = weakref.finalize(self, _abandon, self._process, self._ours)
        self._received = bytearray()
        self._waiting = b""
        self._calls = 0
        self._pid: int | None = None  # the interpreter's
        self._pidfd: int | None = None
        for descriptor in self._ours:
            os.set_blocking(descriptor, False)
        try:
            self._wait_until_ready()
        except BaseException:
            self.end()
            raise

    def run(self, code: str) -> Outcome:
        """Run one cell. An exception in here, Ctrl-C among them, ends the process."""
        output = Output(self._limits.output_bytes)
        try:
            self._calls += 1
            self._signal(signal.SIGCONT)
            answer, ended = self._exchange({"call": self._calls, "code": code}, output, self._limits.seconds)
            if ended is None:
                self._signal(signal.SIGSTOP)  # nothing that a cell left behind runs between calls
                self._drain(output, _PIECE * 16)
        except BaseException:
            self.end()
            raise
        if ended is not None:
            self.end(output)
        error = answer.get("error") if answer else None
        # JSON can hold half a character; a prompt cannot.
        error = error.encode("utf-8", "replace").decode() if isinstance(error, str) else None
        return Outcome(output.text(), error, ended)

    def kill(self) -> None:
        """End a call that runs in another thread, which then finds the interpreter gone."""
        _kill(self._process)

    def end(self, output: Output | None = None) -> None:
        """Kill the sandbox and all in it, and wait until nothing of it is left. Can be called again."""
        if self._finalizer.detach() is None:
            return
        _kill(self._process)
        deadline = time.monotonic() + _END
        while time.monotonic() < deadline and not self._drain(output or Output(0), _PIECE * 64):
            time.sleep(0.001)  # the pipe ends when the last process inside has gone
        _close(self._ours)

    def _wait_until_ready(self) -> None:
        said = Output(4096)
        _, ended = self._exchange(None, said, _START)
        if ended is not None:
            self.end(said)
            reason = in_words(telling_line(said.text())) if said.total else ended
            raise ToolError(
                f"the python tool's sandbox does not start here: {reason}; bubblewrap needs user namespaces: see "
                "whether the system, a container or AppArmor forbids them"
            )
        self._pid = innermost(self._process.pid)
        self._pidfd = os.pidfd_open(self._pid)
        self._ours.append(self._pidfd)

    def _signal(self, number: int) -> None:
        if self._pidfd is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def _exchange(self, request: dict[str, object] | None, output: Output, seconds: float) -> _Answer:
        """Send a request and return the answer, or why the process is to be ended."""
        self._waiting = packed(request) if request is not None else b""
        watch = Watch(self._pid, self._folder, self._limits)
        deadline = time.monotonic() + seconds
        look = time.monotonic() + _TICK
        with selectors.DefaultSelector() as selector:
            selector.register(self._answers, selectors.EVENT_READ)
            selector.register(self._printed, selectors.EVENT_READ)
            if self._waiting:
                selector.register(self._requests, selectors.EVENT_WRITE)
            while (now := time.monotonic()) < deadline:
                if now >= look:
                    look = now + _TICK
                    if (reason := watch.overrun()) is not None:
                        return None, reason
                for key, _ in selector.select(min(deadline, look) - now):
                    if (answer := self._attend(key.fd, selector, output)) is not None:
                        return answer
        return None, f"the call did not end within {seconds:g} s"

    def _attend(self, descriptor: int, selector: selectors.BaseSelector, output: Output) -> _Answer | None:
        """Read or write what one descriptor is ready for; the answer, once it is complete."""
        if descriptor == self._answers:
            return self._read_answer()
        if descriptor == self._printed:
            if self._drain(output, _PIECE * 4):
                selector.unregister(descriptor)
            return (None, f"it printed more than {_MOST_PRINTED >> 20} MiB") if output.total > _MOST_PRINTED else None
        try:
            self._waiting = self._waiting[os.write(descriptor, self._waiting[:_PIECE]) :]
        except BrokenPipeError:  # the end of the answers says the same
            self._waiting = b""
        if not self._waiting:
            selector.unregister(descriptor)
        return None

    def _read_answer(self) -> _Answer | None:
        data = os.read(self._answers, _PIECE)
        if not data:
            return None, self._last_words()
        self._received += data
        try:
            answer = taken(self._received)
        except ValueError:
            answer = {}
        if answer is None:
            return None
        return (answer, None) if answer.get("call") == self._calls else (None, "it sent what is not an answer")

    def _last_words(self) -> str:
        """Why the interpreter ended by itself, as far as bubblewrap's exit code tells."""
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(_END)
            code = 128 - code if code < 0 else code  # bubblewrap itself was killed
            if code == 128 + signal.SIGXCPU:
                return f"it used more than {self._limits.cpu_seconds:,} s of processor time"
            if code > 128:
                return f"it was ended by signal {code - 128}"
            return f"it exited with status {code}"
        return "it closed its answers"

    def _drain(self, output: Output, most: int) -> bool:
        """Read what is printed already. True: there will be no more."""
        while most > 0:
            try:
                data = os.read(self._printed, _PIECE)
            except BlockingIOError:
                return False
            if not data:
                return True
            output.add(data)
            most -= len(data)
        return False


def _start(line: list[str], requests: int, printed: int, passed: tuple[int, ...]) -> subprocess.Popen[bytes]:
    """Start the sandbox from a thread that lives as long as it does. Raises OSError."""
    started: list[subprocess.Popen[bytes] | OSError] = []
    ready, unwanted = threading.Event(), threading.Event()

    def keep() -> None:
        try:
            process = subprocess.Popen(line, stdin=requests, stdout=printed, stderr=printed, pass_fds=passed, env={})
        except OSError as error:
            started.append(error)
            ready.set()
            return
        started.append(process)
        ready.set()
        if unwanted.is_set():
            process.kill()
        process.wait()

    threading.Thread(target=keep, name="python-tool", daemon=True).start()
    try:
        ready.wait()
    except BaseException:  # Ctrl-C
        unwanted.set()
        for process in started:
            if not isinstance(process, OSError):
                _kill(process)
        raise
    if isinstance(started[0], OSError):
        raise started[0]
    return started[0]


def _abandon(process: subprocess.Popen[bytes], descriptors: list[int]) -> None:
    _kill(process)
    _close(descriptors)


def _close(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        process.kill()
