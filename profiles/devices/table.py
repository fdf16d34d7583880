"""What is public about Intel's processors, GPUs and NPUs, typed; every value has its source.

In: `devices.toml`. Out: a frozen `DeviceProfile` for each device, by its name ("core-ultra-258v.gpu"). A value without
a source, a source without a page, an unknown field and a value of the wrong type are errors. Knows nothing about this
machine or about models.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Literal, get_args

from edge.runtime.errors import DeviceError, ProfileError, shown
from edge.runtime.json_object import ObjectReader

TABLE = "devices.toml"
PAGES = "pages"
ARITHMETIC = "arithmetic: "  # begins a source that is a rule and not a page
ADVICE = f"correct profiles/devices/{TABLE}"
Kind = Literal["cpu", "gpu", "npu"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_MEMORY = re.compile(r"[A-Z0-9]+-(\d{4,5})")  # its transfers in MT/s
_CORES = re.compile(r"\d+(P|E|LP)(\+\d+(E|LP))*")
_UNSOURCED = {"name", "shares", "source"}
NEAR = 3  # names in a message


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """One device. What no page was found for is None or empty."""

    key: str  # "core-ultra-258v.gpu"
    kind: Kind
    name: str
    chip: str  # the processor's name; of a card its own
    bandwidth_gbs: float  # peak
    cores: str = ""  # "4P+8E"
    memory: str = ""  # the fastest that is supported, "LPDDR5X-8533"
    also: tuple[str, ...] = ()  # slower memory that it is sold with
    memory_gb: float | None = None  # of its own
    max_memory_gb: float | None = None  # that the vendor supports
    int8_tops: float | None = None
    xmx: bool | None = None
    npu: str = ""  # what OpenVINO calls its architecture
    first_linux_driver: str = ""
    cpuid: tuple[int, ...] = ()  # family and model
    pci: tuple[int, ...] = ()  # ids of Intel's devices
    sources: Mapping[str, str] = field(default_factory=dict)  # of each value, in words; of what is shared as well

    @property
    def full_name(self) -> str:
        """With its processor: Core Ultra 7 258V: Arc 140V, 8 Xe cores (Xe2)."""
        return self.name if self.name == self.chip else f"{self.chip}: {self.name}"

    @property
    def limit_gb(self) -> float | None:
        """The most memory that it can have."""
        return self.memory_gb if self.memory_gb is not None else self.max_memory_gb


@cache
def device_profiles() -> Mapping[str, DeviceProfile]:
    """Every device of the table by its key, in the table's order."""
    return read_profiles(files("edge.profiles.devices").joinpath(TABLE).read_text(encoding="utf-8"))


def find_profile(name: str) -> DeviceProfile:
    """The device that a name means: its key, or words of which its name or key has all. Raises DeviceError.

    A chip's name alone means its GPU if it has one, else its CPU: what most would run a model on.
    """
    known = device_profiles()
    wanted = name.strip().lower()
    if wanted in known:
        return known[wanted]
    words = re.findall(r"[a-z0-9+]+", wanted)
    alike = [one for one in known.values() if words and all(word in _words(one) for word in words)]
    if len({one.chip for one in alike}) == 1:
        return min(alike, key=lambda one: ("gpu", "cpu", "npu").index(one.kind))
    if alike:
        hint = f"which of {', '.join(one.key for one in alike[: 2 * NEAR])} is meant?"
    else:
        names = {word: key for key, one in known.items() for word in (key, key.partition(".")[0], *_words(one))}
        close = dict.fromkeys(names[name] for name in get_close_matches(wanted, names, NEAR, 0.6))
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        hint += "`edge fit` without --device lists all"
    raise DeviceError(f"device {shown(name)} is not in the table; {hint}")


def _words(profile: DeviceProfile) -> set[str]:
    return set(re.findall(r"[a-z0-9+]+", f"{profile.key} {profile.full_name}".lower()))


def read_profiles(text: str) -> dict[str, DeviceProfile]:
    """What a table says. Raises ProfileError."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ProfileError(f"{TABLE}: {error}; {ADVICE}") from error
    pages = ObjectReader(data.pop(PAGES, None), f"{TABLE}: {PAGES}", ProfileError, ADVICE)
    named = {name: pages.word(name) for name in pages.names()}
    raw = {
        f"{chip}.{kind}": values
        for chip, kinds in data.items()
        for kind, values in (kinds if isinstance(kinds, dict) else {}).items()
    }
    found: dict[str, DeviceProfile] = {}
    for key, values in raw.items():
        if key.rpartition(".")[2] not in KINDS:
            raise ProfileError(f"{TABLE}: {key} is not a {', '.join(KINDS)} of a chip; {ADVICE}")
        found[key] = _profile(key, values, named, found)
    if used := set(named) - {page for values in raw.values() for page in values.get("source", {}).values()}:
        raise ProfileError(f"{TABLE}: nothing has the source {min(used)}; {ADVICE}")
    return found


def _profile(key: str, values: object, pages: Mapping[str, str], before: Mapping[str, DeviceProfile]) -> DeviceProfile:
    place = f"{TABLE}: {key}"
    read = ObjectReader(values, place, ProfileError, ADVICE)
    of_numbers = ("memory_gb", "max_memory_gb", "int8_tops", "bandwidth_gbs")
    of_words = ("cores", "memory", "npu", "first_linux_driver")
    read.has_only({*_UNSOURCED, *of_numbers, *of_words, "also", "bits", "cpuid", "pci", "xmx"})
    sources = _sources(read, key, pages)
    shared = None
    if "shares" in read:
        shared = before.get(read.word("shares"))
        if shared is None:
            raise ProfileError(f"{place} shares what is not above it; {ADVICE}")
        sources = dict(shared.sources) | sources
    numbers = {name: read.number(name, 1, 10_000) for name in of_numbers if name in read}
    words = {name: read.word(name, ".+") for name in of_words if name in read}
    if "cores" in words and not _CORES.fullmatch(words["cores"]):
        raise ProfileError(f"{place}: cores are {shown(words['cores'])}, expected like 4P+8E; {ADVICE}")
    also = read.texts("also") if "also" in read else ()
    bandwidth = numbers.pop("bandwidth_gbs", None) or (shared.bandwidth_gbs if shared else 0.0)
    if "memory" in words:
        bandwidth = peak_gbs(words["memory"], read.whole("bits", 32, 4096))
    if not bandwidth:
        raise ProfileError(f"{place} has neither memory with its bits nor bandwidth_gbs; {ADVICE}")
    for one in also:
        peak_gbs(one, 64)
    name = read.word("name", ".+")
    limit = shared.max_memory_gb if shared else None
    return DeviceProfile(
        key=key,
        kind=next(kind for kind in KINDS if key.endswith(f".{kind}")),
        name=name,
        chip=shared.chip if shared else name,
        bandwidth_gbs=bandwidth,
        cores=words.get("cores", ""),
        memory=words.get("memory", shared.memory if shared else ""),
        also=also or (shared.also if shared else ()),
        memory_gb=numbers.get("memory_gb"),
        max_memory_gb=numbers.get("max_memory_gb", limit),
        int8_tops=numbers.get("int8_tops"),
        xmx=read.flag("xmx") if "xmx" in read else None,
        npu=words.get("npu", ""),
        first_linux_driver=words.get("first_linux_driver", ""),
        cpuid=read.wholes("cpuid", 0, 0xFFFF) if "cpuid" in read else (),
        pci=read.wholes("pci", 1, 0xFFFF) if "pci" in read else (),
        sources=sources,
    )


def _sources(read: ObjectReader, key: str, pages: Mapping[str, str]) -> dict[str, str]:
    """Value -> the words of its page. Every value has one, and there is none for what is not given."""
    given = read.inside("source")
    needed, there = set(read.names()) - _UNSOURCED, set(given.names())
    if wrong := needed ^ there:
        name = min(wrong)
        what = "has no source" if name in needed else "has a source and no value"
        raise ProfileError(f"{TABLE}: {key}: {name} {what}; {ADVICE}")
    found = {}
    for name in sorted(there):
        source = given.word(name)
        if source not in pages and not source.startswith(ARITHMETIC):
            raise ProfileError(f"{TABLE}: {key}: {name} has the source {shown(source)}, which is no page; {ADVICE}")
        found[name] = pages.get(source, source)
    return found


def peak_gbs(memory: str, bits: int) -> float:
    """Peak bandwidth in GB/s: transfers a second times the width. Raises ProfileError."""
    if (match := _MEMORY.fullmatch(memory)) is None:
        raise ProfileError(f"{TABLE}: memory is {shown(memory)}, expected like LPDDR5X-8533; {ADVICE}")
    return round(int(match[1]) * 1e6 * bits / 8 / 1e9, 1)
