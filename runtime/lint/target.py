"""What a bundle is checked for: a device, what is known about it, and how it is to be set up.

In: a device's name, settings, and what OpenVINO says of the device where it is there. Out: a `Target`. Knows no rules.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

from edge.runtime.engines.openvino_npu_lengths import CHUNK, MAX_PROMPT, MAX_RESPONSE, Lengths, lengths
from edge.runtime.engines.openvino_npu_properties import is_exact
from edge.runtime.errors import DeviceError, in_words, telling_line
from edge.runtime.machine import available_bytes, family_of
from edge.runtime.settings import CachePrecision, EngineSettings, Precision

if TYPE_CHECKING:
    import openvino as ov

LONGEST = 1 << 20  # tokens of a context, where nothing limits it
_FOLDERS = re.compile(r'"[^"]*[/\\]([^"/\\]+)"')  # of a library that does not load


@dataclass(frozen=True, slots=True)
class Target:
    """A device to compile for. None is what is not known; a rule that needs it then finds nothing."""

    device: str  # "NPU", "GPU.1"
    platform: str | None = None  # "3720" (NPU), "v20.4.4" (GPU): OpenVINO's DEVICE_ARCHITECTURE
    driver: str | None = None  # its version
    openvino: str | None = None  # the version of the package; None: it is not installed
    max_prompt: int = MAX_PROMPT  # tokens
    max_response: int = MAX_RESPONSE  # tokens that are kept free for an answer
    chunk: int = CHUNK  # tokens of a prompt that are computed together
    memory_bytes: int | None = None  # that the model may take
    emulated: bool = False  # the NPU's pipeline on the CPU (NPUW_DEVICES=CPU): nothing is compiled for hardware
    name: str | None = None  # of the device: "Intel(R) Arc(TM) 140V GPU (16GB)"
    kv_precision: CachePrecision | None = None  # None: the engine's choice
    inference_precision: Precision | None = None
    plugin_problem: str | None = None  # why OpenVINO's plugin cannot be used; None: it can, or nobody has looked
    found: bool = False  # whether the device is on this machine

    @property
    def family(self) -> str:
        return family_of(self.device)

    @property
    def capacity(self) -> int:
        """Tokens whose keys and values have to fit; an NPU takes memory for all of them at once."""
        return self.max_prompt + self.max_response - 1


def target_here(
    device: str, settings: EngineSettings | None = None, *, emulated: bool = False, core: ov.Core | None = None
) -> Target:
    """Return the target that a device of this machine is, with what OpenVINO says of it.

    A device that is not here has neither platform nor driver: rules that need them find nothing. Its memory is what
    the settings allow (max_memory_bytes), if they say so. emulated: NPUW on the
    CPU. What is wrong with OpenVINO or its plugin is in `plugin_problem`, for a rule to tell. Raises SettingsError for
    lengths that no NPU can be compiled for.
    """
    usual = EngineSettings() if settings is None else settings
    sizes = _lengths(family_of(device), usual)
    about = _Properties() if emulated else _asked(device.upper(), core)
    room = about.memory_bytes if about.found else available_bytes() if emulated else None
    return Target(
        device=device.upper(),
        platform=about.platform,
        driver=about.driver,
        openvino=openvino_version(),
        max_prompt=sizes.prompt,
        max_response=sizes.response,
        chunk=sizes.chunk,
        memory_bytes=min((size for size in (room, usual.max_memory_bytes) if size), default=None),
        emulated=emulated,
        name=about.name,
        kv_precision=usual.kv_precision,
        inference_precision=usual.inference_precision,
        plugin_problem=about.problem,
        found=about.found,
    )


def openvino_version() -> str | None:
    """Return the version of the installed package without importing it; None if there is none."""
    try:
        return version("openvino")
    except PackageNotFoundError:
        return None


def numbers_of(text: str) -> tuple[int, ...]:
    """Return the numbers of a version in order, for comparisons: "32.0.100.4512" -> (32, 0, 100, 4512)."""
    return tuple(int(part) for part in re.findall(r"\d+", text)[:4])


def _lengths(family: str, settings: EngineSettings) -> Lengths:
    if family == "NPU":
        return lengths(settings, settings.max_context or LONGEST, whole=is_exact(settings))
    context = settings.max_context or MAX_PROMPT + MAX_RESPONSE
    return Lengths(max(context - MAX_RESPONSE, 1), min(MAX_RESPONSE, context), CHUNK)


class _Properties(NamedTuple):
    """What OpenVINO says of a device."""

    found: bool = False
    platform: str | None = None
    driver: str | None = None
    name: str | None = None
    memory_bytes: int | None = None
    problem: str | None = None


def _asked(device: str, core: ov.Core | None) -> _Properties:
    if core is None and find_spec("openvino") is None:
        return _Properties(problem="openvino is not installed")
    try:
        core = _core() if core is None else core
        core.get_versions(family_of(device))  # loads the plugin, with the libraries that it needs
    except (DeviceError, RuntimeError) as error:
        return _Properties(problem=in_words(_FOLDERS.sub(r"\1", telling_line(error, last=True))))
    here = core.available_devices
    if device not in here and not any(family_of(name) == device for name in here):
        return _Properties(problem="its plugin loads and finds no such device")
    family = family_of(device)
    driver = {"NPU": "NPU_DRIVER_VERSION"}.get(family, "")
    memory = {"NPU": "NPU_DEVICE_TOTAL_MEM_SIZE", "GPU": "GPU_DEVICE_TOTAL_MEM_SIZE"}.get(family, "")
    size = _property(core, device, memory)
    room = available_bytes()
    known = [number for number in (int(size) if size and size.isdigit() else None, room) if number]
    return _Properties(
        True,
        _property(core, device, "DEVICE_ARCHITECTURE"),
        _property(core, device, driver),
        _property(core, device, "FULL_DEVICE_NAME"),
        min(known, default=None),
    )


def _property(core: ov.Core, device: str, name: str) -> str | None:
    """A property as text; None where the plugin does not have it."""
    try:
        return str(core.get_property(device, name)).strip() or None if name else None
    except RuntimeError:
        return None


@cache
def _core() -> ov.Core:
    from edge.runtime.engines.openvino_core import make_core

    return make_core()
