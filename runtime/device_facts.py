"""What this machine, its packages, its drivers and a device say of themselves, for a report that others read.

In: a device's name. Out: JSON. Knows nothing about bundles; whoever writes it takes private words out.
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edge.runtime.errors import in_words, telling_line
from edge.runtime.files import real_path
from edge.runtime.machine import available_bytes, logical_processors, physical_cores, processor_name, total_bytes

_PACKAGES = ("edgeglm", "openvino", "openvino-genai", "onnxruntime", "numpy", "tokenizers")
# Drivers of GPUs and NPUs, as Debian's and Intel's repositories name their packages.
_DRIVERS = re.compile(
    r"intel-opencl-icd|intel-level-zero-\w+|libze\d?-?\S*|libigc\d*|intel-(?:igc|driver-compiler)\S*|ocl-icd\S*"
)
_PRIVATE = re.compile(r"PATH|DIR|FILE|UUID|LUID|CALLBACK|KEY$")  # places, what tells one chip from another, secrets
_LONGEST = 300  # characters of a property
_INTEL = "0x8086"


def machine_facts(root: Path = Path("/")) -> dict[str, Any]:  # JSON
    """Return system, processor, memory, packages and drivers. root: the folder of /sys and /var."""
    return {
        "system": platform.system(),
        "release": platform.release(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "processor": processor_name(),
        "cores": physical_cores(),
        "logical_processors": logical_processors(),
        "memory_bytes": total_bytes(),
        "memory_free_bytes": available_bytes(),
        "packages": {name: number for name in _PACKAGES if (number := _version(name)) is not None},
        "drivers": dict(_driver_packages(root)) if sys.platform != "win32" else dict(_windows_drivers()),
        "kernel_drivers": list(_kernel_drivers(root)),
    }


def device_facts(device: str) -> dict[str, Any]:  # JSON
    """Return what OpenVINO says of its devices, and every readable property of one. Raises nothing."""
    found: dict[str, Any] = {"name": device, "here": [], "properties": {}}
    if find_spec("openvino") is None:
        return found | {"error": "openvino is not installed"}
    try:
        from edge.runtime.engines.openvino_core import make_core

        core = make_core()
        found["here"] = list(core.available_devices)
        found["properties"] = dict(_properties(core, device))
    except Exception as error:  # whatever a plugin raises is what the report is for
        found["error"] = said(error)
    return found


def said(error: BaseException) -> str:
    """Return an error as a report has it: its class, and its telling line."""
    return f"{type(error).__name__}: {in_words(telling_line(error, last=True), 2000)}"


def _properties(core: Any, device: str) -> Iterator[tuple[str, str]]:
    for name in sorted(core.get_property(device, "SUPPORTED_PROPERTIES")):
        if _PRIVATE.search(name) or name == "SUPPORTED_PROPERTIES":
            continue
        try:
            value = in_words(core.get_property(device, name), _LONGEST)
        except Exception as error:  # the bindings raise TypeError, too, for types that they do not know
            value = f"({said(error)})"
        yield name, value


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _driver_packages(root: Path) -> Iterator[tuple[str, str]]:
    """Yield packages of drivers that Debian's list of installed packages has, with their versions."""
    try:
        text = (root / "var/lib/dpkg/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for record in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in record.splitlines() if ": " in line and not line.startswith(" "))
        name = fields.get("Package", "")
        if _DRIVERS.fullmatch(name) and fields.get("Status", "").endswith(" installed"):
            yield name, fields.get("Version", "?")


def _kernel_drivers(root: Path) -> Iterator[dict[str, str]]:
    """Yield Intel's display and acceleration devices of Linux, with the kernel's driver for each."""
    for kind, pattern in (("drm", "card[0-9]*"), ("accel", "accel[0-9]*")):
        for entry in sorted((root / "sys/class" / kind).glob(pattern)):
            device = entry / "device"
            try:
                vendor = (device / "vendor").read_text().strip()
                number = (device / "device").read_text().strip()
                driver = real_path(device / "driver").name if (device / "driver").exists() else "none"
            except OSError:  # an output of a card, or a device that is not PCI
                continue
            if vendor == _INTEL:
                yield {"kind": kind, "pci": f"{vendor}:{number}", "driver": driver}


def _windows_drivers() -> Iterator[tuple[str, str]]:
    """Yield display adapters and neural processors of Windows, with the versions of their drivers."""
    if sys.platform != "win32":
        return
    import winreg

    kinds = ("{4d36e968-e325-11ce-bfc1-08002be10318}", "{f01a9d53-3ff6-48d2-9f97-c8a7004be10c}")
    for kind in kinds:
        path = rf"SYSTEM\CurrentControlSet\Control\Class\{kind}"
        for number in range(16):
            try:
                with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, rf"{path}\{number:04d}") as key:
                    yield winreg.QueryValueEx(key, "DriverDesc")[0], winreg.QueryValueEx(key, "DriverVersion")[0]
            except OSError:
                continue
