"""Ctrl-C after OpenVINO has come and gone: its CPU plugin leaves the loading thread a signal stack that is unmapped."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

# Makes and drops engines in both orders, then interrupts itself; prints what the main thread's signal stack is.
SCRIPT = """
import ctypes, gc, os, signal, sys, time
from edge.export.pipeline import export
from edge.runtime.settings import EngineSettings
from edge.runtime.engines.openvino_core import openvino_devices
from edge.runtime.llm import LLM

class Stack(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

def stack():
    found = Stack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found))
    return found.base, found.size

before = stack()
export(sys.argv[1], sys.argv[2], "int8-asym")
openvino_devices()
first = LLM(sys.argv[2], EngineSettings("openvino"))
second = LLM(sys.argv[2], EngineSettings("openvino"))
del first
del second
gc.collect()
print("kept" if stack() == before else "changed", flush=True)
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="signal stacks of Linux")
def test_the_main_thread_keeps_its_signal_stack(tiny_checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tiny_checkpoint), str(tmp_path / "bundle")]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert done.stdout.split() == ["kept", "interrupted"], done.stderr
    assert done.returncode == 0
