"""The machine and the versions that figures belong to.

In: nothing. Out: plain values for JSON, which the system is asked for at every call.
"""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TypedDict

from edge.runtime.machine import physical_cores, processor_name

VERSIONED = ("edgeglm", "openvino", "onnxruntime", "nncf", "numpy", "tokenizers")


class MachineRecord(TypedDict):
    """What figures were measured on."""

    processor: str
    cores: int  # that the process may use
    memory_bytes: int | None  # None where the system does not tell
    system: str


def machine_record() -> MachineRecord:
    return {
        "processor": processor_name(),
        "cores": physical_cores(),
        "memory_bytes": _memory_bytes(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions_record() -> dict[str, str]:
    """Python and the installed packages that figures depend on."""
    return {"python": platform.python_version(), **{name: found for name in VERSIONED if (found := _installed(name))}}


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows
        return None


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
