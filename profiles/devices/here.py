"""What this machine is: its processor by CPUID, GPUs and NPUs by PCI id, cores by kind, and the rows of the table.

In: what the system tells about itself. Out: a `Machine`. Linux is asked through /proc and /sys; Windows through the
registry, where a virtual machine or a policy may hide much of it, and what is hidden is not there. Measures nothing.
Nothing but Intel's devices is in the table, so that other machines match none.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge.profiles.devices.table import DeviceProfile, Kind, device_profiles
from edge.runtime.machine import physical_cores, processor_name

INTEL = "GenuineIntel"
INTEL_PCI = 0x8086
DISPLAY, ACCELERATOR = 0x03, 0x12  # classes of PCI devices: what shows pictures, and what NPUs are
By = Literal["name", "generation", "pci"]


@dataclass(frozen=True, slots=True)
class Processor:
    """What a processor says of itself."""

    vendor: str
    family: int
    model: int
    stepping: int
    brand: str  # "Intel(R) Core(TM) Ultra 7 258V"


@dataclass(frozen=True, slots=True)
class Match:
    """A row of the table that describes a device of this machine."""

    profile: DeviceProfile
    by: By  # the processor's name; its family and model, which others of the generation share; a PCI id


@dataclass(frozen=True, slots=True)
class Machine:
    """What this machine is, as far as the system tells."""

    processor: Processor | None
    pci: tuple[int, ...]  # ids of Intel's display devices and accelerators
    cores: str  # "4P+8E", or a number; empty if it is not known
    matches: Mapping[Kind, Match]

    def profile(self, kind: Kind) -> DeviceProfile | None:
        return self.matches[kind].profile if kind in self.matches else None


def this_machine(root: Path = Path("/"), system: str = sys.platform) -> Machine:
    """Ask the system. root: the folder of /proc and /sys."""
    processor = _windows_processor() if system == "win32" else _linux_processor(root)
    pci = tuple(sorted(set(_windows_pci() if system == "win32" else _linux_pci(root))))
    return Machine(processor, pci, _cores(root), matches(processor, pci))


def matches(
    processor: Processor | None, pci: Sequence[int], table: Mapping[str, DeviceProfile] | None = None
) -> dict[Kind, Match]:
    """Kind of device -> its row, for those that have one."""
    rows = list((device_profiles() if table is None else table).values())
    found: dict[Kind, Match] = {}
    if processor is not None and processor.vendor == INTEL:
        same = [row for row in rows if row.kind == "cpu" and row.cpuid == (processor.family, processor.model)]
        if same:
            named = [row for row in same if _model_word(row.name) in _words(processor.brand)]
            found["cpu"] = Match(named[0], "name") if named else Match(same[0], "generation")
    chip = found["cpu"].profile.chip if "cpu" in found else ""
    for kind in ("gpu", "npu"):
        there = [row for row in rows if row.kind == kind and set(row.pci) & set(pci)]
        there.sort(key=lambda row: (row.memory_gb is None, row.chip != chip))  # a card before what shares memory
        if there:
            found[kind] = Match(there[0], "pci")
    return found


def _model_word(name: str) -> str:
    """The word of a name that no other processor has: "258v", "i7-13700h", "n100", "8480+"."""
    return max(_words(name), key=lambda word: (any(c.isdigit() for c in word), len(word)))


def _words(text: str) -> list[str]:
    return re.sub(r"\((r|tm|c)\)", " ", text.lower()).split()


# --- Linux ------------------------------------------------------------------------------------------------------------


def _linux_processor(root: Path) -> Processor | None:
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    first = text.partition("\n\n")[0]
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
    numbers = [fields.get(name, "") for name in ("cpu family", "model", "stepping")]
    if not all(re.fullmatch(r"[0-9]{1,4}", number) for number in numbers[:2]):
        return None  # of another architecture, which has neither
    family, model = int(numbers[0]), int(numbers[1])
    stepping = int(numbers[2]) if re.fullmatch(r"[0-9]{1,4}", numbers[2]) else 0
    return Processor(fields.get("vendor_id", ""), family, model, stepping, fields.get("model name", ""))


def _linux_pci(root: Path) -> Iterator[int]:
    """Yield the ids of Intel's display devices and accelerators."""
    try:
        devices = sorted((root / "sys/bus/pci/devices").iterdir())
    except OSError:
        return
    for device in devices:
        vendor, kind, number = (_hexadecimal(device / name) for name in ("vendor", "class", "device"))
        if vendor == INTEL_PCI and kind is not None and kind >> 16 in (DISPLAY, ACCELERATOR) and number is not None:
            yield number


def _hexadecimal(path: Path) -> int | None:
    with suppress(OSError, ValueError):
        return int(path.read_text().strip(), 16)
    return None


def _cores(root: Path) -> str:
    """How many cores of each kind this process may use."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    counts = []
    for kind, letter in (("cpu_core", "P"), ("cpu_atom", "E"), ("cpu_lowpower", "LP")):
        try:
            processors = set(_listed((root / "sys/devices" / kind / "cpus").read_text()))
        except (OSError, ValueError):
            continue
        usable = processors if allowed is None else processors & allowed
        siblings = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
        cores = {_text(root / siblings.format(one)) or str(one) for one in usable}
        if cores:
            counts.append(f"{len(cores)}{letter}")
    if counts:
        return "+".join(counts)
    return str(physical_cores() or "")


def _listed(text: str) -> Iterator[int]:
    """0-3,8 -> 0, 1, 2, 3, 8. Raises ValueError."""
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), min(int(last or first), int(first) + 4096) + 1)


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text().strip()
    return ""


# --- Windows ----------------------------------------------------------------------------------------------------------


def _windows_processor() -> Processor | None:
    """From an environment variable that Windows sets: "Intel64 Family 6 Model 170 Stepping 4, GenuineIntel"."""
    found = re.search(
        r"Family (\d{1,4}) Model (\d{1,4}) Stepping (\d{1,4}), (\w+)", os.environ.get("PROCESSOR_IDENTIFIER", "")
    )
    if found is None:
        return None
    key = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
    brand = _registry_value(key, "ProcessorNameString") or processor_name()
    return Processor(found[4], int(found[1]), int(found[2]), int(found[3]), brand.strip())


def _windows_pci() -> Iterator[int]:
    """Yield the ids of all of Intel's PCI devices: the registry names them, present or once present."""
    for name in _registry_keys(r"SYSTEM\CurrentControlSet\Enum\PCI"):
        found = re.match(r"VEN_8086&DEV_([0-9A-F]{4})", name.upper())
        if found:
            yield int(found[1], 16)


def _registry_value(key: str, name: str) -> str:
    if sys.platform == "win32":
        with suppress(OSError, ImportError):
            import winreg

            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, key) as opened:
                return str(winreg.QueryValueEx(opened, name)[0])
    return ""


def _registry_keys(key: str) -> list[str]:
    names: list[str] = []
    if sys.platform == "win32":
        with suppress(OSError, ImportError):
            import winreg

            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, key) as opened:
                while True:
                    names.append(winreg.EnumKey(opened, len(names)))
    return names
