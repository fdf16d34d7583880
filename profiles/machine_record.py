"""The machine and the versions that figures belong to.

In: nothing, or JSON. Out: plain values for JSON, which the system is asked for at every call, and records of them that
have been checked.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Self, TypedDict

from edge.profiles.typed_json import read_fields
from edge.runtime.errors import ProfileError
from edge.runtime.machine import logical_processors, physical_cores, processor_name, total_bytes

VERSIONED = ("edgeglm", "openvino", "onnxruntime", "nncf", "numpy", "tokenizers")


class MachineRecord(TypedDict):
    """What figures were measured on."""

    processor: str
    cores: int  # that the process may use, or all processors where cores are not known
    memory_bytes: int | None  # None where the system does not tell
    system: str


@dataclass(frozen=True, slots=True)
class Place:
    """A node of a cluster, where something was measured."""

    node: str  # its name
    machine: MachineRecord | None = None  # None: like the one that the sweep ran on

    def to_json(self) -> dict[str, object]:
        return {"node": self.node, "machine": self.machine}

    @classmethod
    def from_json(cls, data: object, what: str, advice: str) -> Self:
        """Raises ProfileError for something else than `to_json` gave."""
        values = read_fields(cls, data, what, ProfileError, advice, elsewhere=frozenset(("machine",)))
        if values["machine"] is not None:
            values["machine"] = read_machine(values["machine"], f"the machine of {what}", advice)
        return cls(**values)


@dataclass(frozen=True, slots=True)
class _Machine:
    """The fields of a MachineRecord."""

    processor: str
    cores: int
    memory_bytes: int | None
    system: str


def read_machine(data: object, what: str, advice: str) -> MachineRecord:
    """A record from parsed JSON. Raises ProfileError."""
    found: MachineRecord = read_fields(_Machine, data, what, ProfileError, advice)  # type: ignore[assignment]
    return found


def described(machine: MachineRecord) -> str:
    """In words."""
    memory = f", {machine['memory_bytes'] / 1e9:.0f} GB" if machine["memory_bytes"] else ""
    return f"{machine['processor']}, {machine['cores']} cores{memory}, {machine['system']}"


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
