"""The machine and the versions that figures belong to.

In: nothing. Out: plain values for JSON, which the system is asked for at every call.
"""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TypedDict

from edge.runtime.machine import logical_processors, physical_cores, processor_name, total_bytes

VERSIONED = ("edgeglm", "openvino", "onnxruntime", "nncf", "numpy", "tokenizers")


class MachineRecord(TypedDict):
    """What figures were measured on."""

    processor: str
    cores: int  # that the process may use, or all processors where cores are not known
    memory_bytes: int | None  # None where the system does not tell
    system: str


def machine_record() -> MachineRecord:
    return {
        "processor": processor_name(),
        "cores": physical_cores() or logical_processors(),
        "memory_bytes": total_bytes(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions_record() -> dict[str, str]:
    """Python and the installed packages that figures depend on."""
    return {"python": platform.python_version(), **{name: found for name in VERSIONED if (found := _installed(name))}}


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
