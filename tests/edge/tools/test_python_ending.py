"""The sandbox ends with what made it: by close, by Ctrl-C, by the death of the program; and with nothing else."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edge import ToolError
from edge.tools.python import Limits, python_tool
from edge.tools.tool import Tool
from tests.edge.tools.sandboxed import ROOT, all_end, descendants, needs_sandbox, pidfds
from tests.processes import gone

pytestmark = needs_sandbox
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
SCRIPT = """
import signal, sys
from edge.tools.python import python_tool
signal.signal(signal.SIGINT, signal.default_int_handler)
tool = python_tool()
tool.run({"code": "x = 1"})
print("ready", flush=True)
try:
    tool.run({"code": sys.argv[1]})
except KeyboardInterrupt:
    print("interrupted", flush=True)
    print(tool.run({"code": "x"}), flush=True)
    print(tool.run({"code": "'again'"}), flush=True)
"""
THREADS = (
    "import threading\nfor _ in range(3):\n    threading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()\n"
)


def run(tool: Tool, code: str) -> str:
    return str(tool.run({"code": code}))


@contextmanager
def program(code: str) -> Iterator[subprocess.Popen[str]]:
    """A process whose interpreter has been asked to run some code."""
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, code],
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as started:
        try:
            assert started.stdout is not None
            assert started.stdout.readline() == "ready\n"
            yield started
        finally:
            started.kill()


def wait_until_it_computes(pid: int) -> None:
    """Between calls nothing runs in the interpreter, which is the last descendant of a process."""
    interpreter = descendants(pid)[-1]
    before, give_up = sum(map(int, processor_time(interpreter))), time.monotonic() + 60
    while sum(map(int, processor_time(interpreter))) < before + 5:
        assert time.monotonic() < give_up
        time.sleep(0.01)


@pytest.mark.parametrize(
    "code", ["while True:\n    pass", "import time\ntime.sleep(1000)", THREADS + "while True:\n    pass"]
)
def test_nothing_outlives_a_program_that_is_killed(code: str) -> None:
    with program(code) as started:
        watched = pidfds(started.pid, 3)  # bubblewrap, its process 1 inside, the interpreter
        time.sleep(0.1)
        started.kill()
        started.communicate()
    assert all_end(watched)


def test_nothing_outlives_a_program_that_ends_without_closing() -> None:
    script = (
        "import os\nfrom edge.tools.python import python_tool\nfrom tests.edge.tools.sandboxed import descendants\n"
        f"tool = python_tool()\nprint(tool.run({{'code': {THREADS!r} + '1'}}))\nprint(*descendants(os.getpid()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True, env=ENVIRONMENT
    )
    answer, pids = done.stdout.splitlines()
    assert answer == "1"
    assert len(pids.split()) == 3
    assert all(gone(int(pid)) for pid in pids.split())


def test_ctrl_c_ends_the_call_and_the_next_one_says_so() -> None:
    with program("while True:\n    pass") as started:
        watched = pidfds(started.pid, 3)
        wait_until_it_computes(started.pid)
        started.send_signal(signal.SIGINT)
        printed, _ = started.communicate(timeout=60)
    lines = printed.splitlines()
    assert lines[:2] == ["interrupted", "[The interpreter was started again: variables of earlier calls are gone.]"]
    assert lines[-2:] == ["NameError: name 'x' is not defined", "'again'"]
    assert all_end(watched)
    assert started.returncode == 0


def test_a_terminal_cannot_interrupt_it() -> None:
    """Ctrl-C goes to the group in the foreground: the sandbox is in a session of its own."""
    tool = python_tool()
    run(tool, "1")
    interpreter = descendants(os.getpid())[-1]
    assert os.getsid(interpreter) != os.getsid(0)
    tool.close()


def test_the_thread_that_started_it_may_end() -> None:
    """The kernel tells bubblewrap of the death of its parent's thread, not of its process."""
    tool, found = python_tool(), list[str]()
    for code in ("x = 5", "x + 1"):
        thread = threading.Thread(target=lambda code=code: found.append(run(tool, code)))
        thread.start()
        thread.join()
        time.sleep(0.1)
    assert found == ["(no output)", "6"]
    tool.close()


def test_calls_from_several_threads_take_turns() -> None:
    tool, found = python_tool(), list[str]()
    run(tool, "n = 0")
    code = "import time\nm = n\ntime.sleep(0.01)\nn = m + 1"
    threads = [threading.Thread(target=lambda: found.append(run(tool, code))) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert run(tool, "n") == "10"
    tool.close()


def test_nothing_runs_between_calls() -> None:
    tool = python_tool()
    run(
        tool,
        "count = 0\ndef work():\n    global count\n    while True:\n        count += 1\n" + THREADS.splitlines()[0],
    )
    run(tool, "threading.Thread(target=work, daemon=True).start()")
    run(tool, "import time\ntime.sleep(0.05)")
    interpreter = descendants(os.getpid())[-1]
    before = processor_time(interpreter)
    time.sleep(0.3)
    assert processor_time(interpreter) == before
    assert int(run(tool, "time.sleep(0.05)\ncount")) > 0
    tool.close()


def processor_time(pid: int) -> tuple[str, ...]:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return tuple(fields[11:13])  # ticks in the program and in the kernel


def test_close_ends_it_and_can_be_repeated() -> None:
    before = descendants(os.getpid())
    tool = python_tool()
    run(tool, "1")
    watched = pidfds(os.getpid(), 3, before)
    tool.close()
    assert all_end(watched)
    tool.close()
    with pytest.raises(ToolError, match="was closed"):
        run(tool, "1")


def test_close_ends_a_call_that_runs() -> None:
    tool, found = python_tool(), list[str]()
    run(tool, "1")
    thread = threading.Thread(
        target=lambda: found.append(run(tool, "print('so far', flush=True)\nwhile True:\n    pass"))
    )
    thread.start()
    wait_until_it_computes(os.getpid())
    tool.close()
    thread.join(30)
    assert found[0].startswith("so far\n[The interpreter is gone: it was ended by signal 9.")


def test_a_tool_that_nobody_holds_is_ended() -> None:
    before = descendants(os.getpid())
    tool = python_tool()
    run(tool, "1")
    watched = pidfds(os.getpid(), 3, before)
    del tool
    gc.collect()
    assert all_end(watched)


def test_descriptors_and_threads_are_given_back() -> None:
    gc.collect()  # what earlier tests left
    before, threads = len(os.listdir("/proc/self/fd")), threading.active_count()  # noqa: PTH208
    tool = python_tool(limits=Limits(seconds=0.1))
    for _ in range(5):
        assert "did not end" in run(tool, "while True:\n    pass")
    tool.close()
    deadline = time.monotonic() + 20
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= threads
    assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208
