"""What is said when a signal ends a command that had work to keep."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edge.commands.ending import telling_what_is_kept

# Both threads wait where no handler of Python runs.
SCRIPT = """
import sys, threading, time
from pathlib import Path
from edge.commands.ending import telling_what_is_kept
out = Path(sys.argv[1])
with telling_what_is_kept(out):
    thread = threading.Thread(target=time.sleep, args=(60,))
    thread.start()
    print("working", flush=True)
    thread.join()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("kept", [False, True])
def test_a_signal_ends_the_process_as_ever_and_says_what_is_kept(
    number: signal.Signals, kept: bool, tmp_path: Path
) -> None:
    if kept:
        (tmp_path / ".out.partial").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "out")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        process.send_signal(number)
        said = process.communicate(timeout=30)[1]
    assert process.returncode == -number
    where = f"; what is done is kept in {tmp_path}/.out.partial: the same command resumes there, --fresh starts anew"
    assert said == f"edge: ended by {number.name}{where if kept else ''}\n"


def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    """As `nohup` leaves it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with telling_what_is_kept(tmp_path / "out"):
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_nothing_of_it_stays(tmp_path: Path) -> None:
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with telling_what_is_kept(tmp_path / "out"):
        assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == blocked


def test_the_notes_of_an_interrupt_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    interrupt = KeyboardInterrupt()
    interrupt.add_note("the work is kept")
    with pytest.raises(KeyboardInterrupt), telling_what_is_kept(tmp_path / "out"):
        raise interrupt
    assert capsys.readouterr().err == "edge: the work is kept\n"
