"""OpenVINO, kept away from the stack that signals of the main thread are handled on.

OpenVINO's CPU plugin gives the thread that loads it an alternate signal stack, and unmaps it when the plugin goes,
whether or not the thread still has it (SigAltStackSetup in openvino src/plugins/intel_cpu/src/plugin.cpp, 2026.4).
Ctrl-C is then handled, by Python's handler, on memory that is gone or another's: a crash, or wrong results. So plugins
are loaded in threads that end, and with them their stacks.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import openvino as ov

from edge.runtime.errors import DeviceError, telling_line

P = ParamSpec("P")
R = TypeVar("R")


def make_core() -> ov.Core:
    """A core that has its CPU plugin already. Raises DeviceError."""
    try:
        return in_own_thread(_make_core)
    except RuntimeError as error:  # of OpenVINO, or of a thread that the system refuses
        raise DeviceError(
            f"OpenVINO does not start: {telling_line(error)}; free some memory, or install openvino again"
        ) from error


def openvino_devices() -> list[tuple[str, str]]:
    """All devices that OpenVINO finds on this machine: name and full name. Raises DeviceError."""
    core = make_core()
    return [(name, str(core.get_property(name, "FULL_DEVICE_NAME")).strip()) for name in core.available_devices]


def in_own_thread(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call what may make cores of its own; Ctrl-C takes effect when it has ended."""
    with ThreadPoolExecutor(1, "openvino") as thread:
        return thread.submit(function, *args, **kwargs).result()


def _make_core() -> ov.Core:
    core = ov.Core()
    core.get_property("CPU", "FULL_DEVICE_NAME")  # loads the plugin
    return core
