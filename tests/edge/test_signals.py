"""What a signal leaves when it ends a command: everything that was learned, one line, and the exit code of shells."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest

from edge.commands.signals import Ended, ending_by_signals
from edge.runtime.speculation.saver import ANSWERS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "edge", *map(str, arguments)]


def started(*arguments: str | Path, **more: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **more.pop("env", {})},  # type: ignore[dict-item]
    )


def chat(bundle: Path, *more: str | Path) -> subprocess.Popen[str]:
    return started("chat", bundle, "--engine", "onnx", "--max-new-tokens", "3", *more)


def ask(process: subprocess.Popen[str], number: int) -> None:
    """One question and its answer."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"question {number}\n")
    process.stdin.flush()
    assert process.stdout.readline()


def num_ids(store: Path) -> int:
    """Ids and separators in a store."""
    return int.from_bytes(store.read_bytes()[44:52], "little") - 64


def test_what_was_answered_is_in_the_store(tiny_bundle: Path, tmp_path: Path) -> None:
    store = tmp_path / "drafts"
    sizes = []
    for number in (signal.SIGTERM, signal.SIGHUP):
        with chat(tiny_bundle, "--speculate", "--draft-store", store) as process:
            for i in range(2):
                ask(process, 10 * number + i)
            process.send_signal(number)
            assert process.wait(PATIENCE_S) == 128 + number
            assert process.stderr is not None
            assert process.stderr.read().splitlines()[-1] == f"edge: ended by {number.name}"
        sizes.append(num_ids(store))
    assert 0 < sizes[0] < sizes[1]


@pytest.mark.slow
def test_a_killed_chat_loses_its_last_few_answers_alone(tiny_bundle: Path, tmp_path: Path) -> None:
    store = tmp_path / "drafts"
    with chat(tiny_bundle, "--speculate", "--draft-store", store) as process:
        for i in range(ANSWERS):
            ask(process, i)
        give_up = time.monotonic() + PATIENCE_S
        while num_ids(store) <= 0:
            assert time.monotonic() < give_up
            time.sleep(0.02)
        ask(process, ANSWERS)
        process.kill()
        process.wait(PATIENCE_S)
    with chat(tiny_bundle, "--speculate", "--draft-store", store) as process:
        ask(process, 0)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 143


@pytest.mark.slow
def test_a_batch_says_what_is_kept(tiny_bundle: Path, tmp_path: Path) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 60}
    lines = [{"custom_id": str(i), "method": "POST", "url": "/v1/chat/completions", "body": body} for i in range(5000)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "out.jsonl"
    with started("batch", tiny_bundle, tmp_path / "in.jsonl", out, "--engine", "onnx") as process:
        journal = tmp_path / "out.jsonl.edgeglm-batch"
        give_up = time.monotonic() + PATIENCE_S
        while not journal.exists() or journal.read_bytes().count(b"\n") < 5:
            assert time.monotonic() < give_up
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 143
        assert process.stderr is not None
        said = process.stderr.read().splitlines()
    assert said[-2:] == [
        f"edge: what is done is kept in {journal}; the same command resumes there",
        "edge: ended by SIGTERM",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl.edgeglm-batch"]


def test_a_terminal_is_as_it_was(tiny_bundle: Path, tmp_path: Path) -> None:
    """The line editor has switched echo off, and has to switch it on again."""
    mine, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    process = subprocess.Popen(
        command("chat", tiny_bundle, "--engine", "onnx", "--no-history"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "HOME": str(tmp_path)},
    )
    shown = b""
    give_up = time.monotonic() + PATIENCE_S
    while b"/help lists commands" not in shown or termios.tcgetattr(theirs) == before:
        assert time.monotonic() < give_up, shown
        if select.select([mine], [], [], 0.1)[0]:
            shown += os.read(mine, 4096)
    process.send_signal(signal.SIGTERM)
    while process.poll() is None:
        assert time.monotonic() < give_up, shown
        if select.select([mine], [], [], 0.1)[0]:
            shown += os.read(mine, 4096)
    while select.select([mine], [], [], 0)[0]:
        shown += os.read(mine, 4096)
    assert process.returncode == 143
    assert termios.tcgetattr(theirs) == before
    assert b"edge: ended by SIGTERM" in shown
    assert b"Traceback" not in shown
    os.close(mine)
    os.close(theirs)


def test_the_second_signal_does_not_cut_closing_short() -> None:
    closed = []

    def end() -> None:
        with ending_by_signals():
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                signal.raise_signal(signal.SIGTERM)
                signal.raise_signal(signal.SIGHUP)
                closed.append(True)

    with pytest.raises(Ended, match="143") as caught:
        end()
    assert closed
    assert (caught.value.exit_code, caught.value.name) == (143, "SIGTERM")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_signal_that_another_thread_took_ends_waiting_for_a_pipe() -> None:
    """As one that comes between the last look for signals and the system's waiting."""
    reading, writing = os.pipe()
    leave = threading.Event()
    other = threading.Thread(target=leave.wait, args=(PATIENCE_S,))
    other.start()
    late = threading.Timer(0.5, lambda: signal.pthread_kill(other.ident or 0, signal.SIGTERM))
    given_up: list[int] = []
    give_up = threading.Timer(PATIENCE_S, lambda: given_up.append(os.write(writing, b"given up")))

    def wait() -> None:
        with ending_by_signals():
            late.start()  # here: outside, the signal would end this process
            os.read(reading, 8)

    give_up.start()
    try:
        with pytest.raises(Ended, match="143"):
            wait()
    finally:
        leave.set()
        give_up.cancel()
        for thread in (late, give_up, other):
            thread.join()
        os.close(reading)
        os.close(writing)
    assert not given_up
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_nothing_of_it_is_left() -> None:
    def reminders() -> int:
        return sum(thread.name == "signals" for thread in threading.enumerate())

    num_times = 50
    num_open = len([*Path("/dev/fd").iterdir()])
    for _ in range(num_times):
        with ending_by_signals():
            assert reminders() == 1
    assert reminders() == 0
    assert len([*Path("/dev/fd").iterdir()]) < num_open + num_times
    assert signal.set_wakeup_fd(-1) == -1


def test_handlers_of_others_are_not_reminded() -> None:
    """The server has its own in between, which ends at once when it hears a second signal."""
    told = []
    with ending_by_signals():
        mine = signal.signal(signal.SIGTERM, lambda number, _frame: told.append(number))
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.5)
        signal.signal(signal.SIGTERM, mine)
    assert told == [signal.SIGTERM]


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """As nohup has it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending_by_signals():
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
