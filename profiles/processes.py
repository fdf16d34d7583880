"""One step of a sweep or of `edge bench` in a process of its own, with the time and memory it took.

In: a task, as JSON. Out: its result, with seconds and peaks of memory. A step that fails is an error with what the
process said; no step outlives this process. Knows nothing about what the tasks are: `worker.py` does them.

The worker gets its task as one line on stdin, which then stays open: when it ends, so does the worker. It answers on
stdout with lines of JSON: {"phase": ..., "done": ..., "total": ...}, and at last {"result": ...} or {"error": ...}.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import IO, TYPE_CHECKING, Any

from edge.runtime.errors import ProfileError, shown, telling_line
from edge.runtime.json_reader import parse_json

if TYPE_CHECKING:
    import psutil

SAMPLE_S = 0.02
FIND_CHILDREN_EVERY = 10  # samples: listing all processes takes long
WORKER = "edge.profiles.worker"

Tell = Callable[[str, int, int], None]  # phase, done, total


@dataclass(slots=True)
class Peak:
    """The most memory that a process and its children had at once, bytes, among samples."""

    anonymous_bytes: int = 0  # allocated: what the system cannot drop
    rss_bytes: int = 0  # with mapped files


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a step, and the time and memory it took."""

    result: dict[str, Any]  # JSON, as a task of profiles/worker.py gives it
    seconds: float
    peaks: Mapping[str, Peak]  # by phase, "" before the first

    def peak_up_to(self, phase: str) -> Peak | None:
        """The peak of a phase and all phases before it; None if unknown."""
        names = list(self.peaks)
        chosen = [self.peaks[name] for name in names[: names.index(phase) + 1]] if phase in names else []
        if not any(peak.rss_bytes for peak in chosen):
            return None
        return Peak(max(peak.anonymous_bytes for peak in chosen), max(peak.rss_bytes for peak in chosen))


def run_step(task: Mapping[str, object], tell: Tell = lambda _phase, _done, _total: None) -> Outcome:
    """Run one task to its end. Raises ProfileError with the reason when it fails."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
        assert process.stdin is not None
        assert process.stdout is not None
        watch = _Watch(process.pid)
        try:
            watch.start()
            process.stdin.write(json.dumps(task) + "\n")
            process.stdin.flush()
            answer = _listen(process.stdout, watch, tell)
            process.wait()
            seconds = time.perf_counter() - started
        except BrokenPipeError:
            process.wait()
            answer, seconds = {}, 0.0
        finally:
            process.kill()  # does nothing if it has ended
            process.stdin.close()
            process.stdout.close()
            process.wait()
            watch.stop()
        if "result" in answer:
            return Outcome(answer["result"], seconds, watch.peaks)
        if "error" in answer:
            raise ProfileError(answer["error"])
        raise ProfileError(_complaint(log) or f"the process ended with {process.returncode} and said nothing")


def _listen(lines: IO[str], watch: _Watch, tell: Tell) -> dict[str, Any]:
    """Pass on progress until the answer comes; {} if none does."""
    answer: dict[str, Any] = {}
    for line in lines:
        message = parse_json(line, "what the process said", ProfileError, "run it again", infinite=True)
        match message:
            case {"phase": str(phase), "done": int(done), "total": int(total)}:
                watch.enter(phase)
                tell(phase, done, total)
            case {"result": dict()} | {"error": str()}:
                answer = message
            case _:
                raise ProfileError(f"the process said {shown(message)}, which is not a message; run it again")
    return answer


def _complaint(log: IO[bytes]) -> str:
    """The last line of what a process said; empty if it said nothing."""
    log.seek(0)
    said = log.read().decode(errors="replace")
    return telling_line(said, last=True) if said.strip() else ""


@dataclass
class _Watch:
    """Samples the memory of a process and its children, if there is psutil."""

    root: int
    peaks: dict[str, Peak] = field(default_factory=lambda: {"": Peak()})
    _phase: str = ""
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        if find_spec("psutil") is None:
            return
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def enter(self, phase: str) -> None:
        """What is sampled from now on belongs to this phase."""
        self.peaks.setdefault(phase, Peak())
        self._phase = phase

    def stop(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        members, samples = _family(self.root), 0
        while not self._ended.wait(SAMPLE_S):
            peak, sizes = self.peaks[self._phase], [_sizes(member) for member in members]
            peak.anonymous_bytes = max(peak.anonymous_bytes, sum(anonymous for anonymous, _ in sizes))
            peak.rss_bytes = max(peak.rss_bytes, sum(rss for _, rss in sizes))
            if samples % FIND_CHILDREN_EVERY == 0:
                members = _family(self.root)
            samples += 1


def _family(root: int) -> list[psutil.Process]:
    """The process and its children, as long as it runs."""
    import psutil

    with contextlib.suppress(psutil.Error):
        process = psutil.Process(root)
        return [process, *process.children(recursive=True)]
    return []


def _sizes(process: psutil.Process) -> tuple[int, int]:
    """Bytes that are allocated, and all that are resident; 0 for a process that has ended.

    Linux tells which resident pages belong to files and to memory that is shared; Windows, which are this process's
    alone. macOS tells other processes only that they are resident, so files are counted there.
    """
    import psutil

    try:
        memory = process.memory_info()
    except psutil.Error:
        return 0, 0
    if sys.platform == "linux":
        return memory.rss - memory.shared, memory.rss
    return getattr(memory, "private", memory.rss), memory.rss
