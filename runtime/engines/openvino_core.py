"""OpenVINO, kept away from the stack on which signals of the main thread are handled.

OpenVINO's CPU plugin gives the thread that loads it an alternate signal stack, and unmaps it when the plugin goes, even
if the thread still uses it (SigAltStackSetup in openvino src/plugins/intel_cpu/src/plugin.cpp, 2026.4). Python's
handler of Ctrl-C then runs on memory that is unmapped or in use elsewhere: a crash, or wrong results. So plugins are
loaded in threads that end, and their stacks with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import openvino as ov

from edge.runtime.errors import DeviceError, EdgeError, telling_line
from edge.runtime.terminal_text import on_one_line

P = ParamSpec("P")
R = TypeVar("R")


def make_core() -> ov.Core:
    """Return a core that has already loaded its CPU plugin. Raises DeviceError."""
    try:
        return in_own_thread(_make_core)
    except RuntimeError as error:  # from OpenVINO, or because the system refuses a thread
        raise DeviceError(
            f"OpenVINO does not start: {telling_line(error)}; free some memory, or install openvino again"
        ) from error


def openvino_devices() -> list[tuple[str, str]]:
    """Return name and full name of all devices that OpenVINO finds on this machine. Raises DeviceError."""
    core = make_core()
    return [(name, str(core.get_property(name, "FULL_DEVICE_NAME")).strip()) for name in core.available_devices]


@contextmanager
def openvino_told(failure: str, advice: str = "") -> Iterator[None]:
    """Turn what OpenVINO raises into a DeviceError that begins with `failure` and ends with what to do."""
    try:
        yield
    except EdgeError:
        raise
    except Exception as error:  # RuntimeError, and what bindings raise for bytes that are not text
        reason = on_one_line(telling_line(error, last=True))
        raise DeviceError(f"{failure}: {reason}{advice and f'; {advice}'}") from error


def in_own_thread(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function that may make cores of its own; Ctrl-C takes effect after it has ended."""
    with ThreadPoolExecutor(1, "openvino") as thread:
        return thread.submit(function, *args, **kwargs).result()


def _make_core() -> ov.Core:
    core = ov.Core()
    core.get_property("CPU", "FULL_DEVICE_NAME")  # loads the plugin
    return core
