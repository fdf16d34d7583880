"""Where a model may run: a device of the table, or this machine's processor.

In: a `DeviceProfile`, or what this machine is. Out: a `Place`, with everything that a prediction asks of one.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge.profiles.devices.bandwidth import Bandwidth
from edge.profiles.devices.table import DeviceProfile, Kind

HERE = "here"
# Memory that a model cannot have: what a desktop takes where it shares the memory, and what a driver takes of a card.
# Rules, not measurements.
SYSTEM_BYTES, DRIVER_BYTES = 2_000_000_000, 500_000_000


@dataclass(frozen=True, slots=True)
class Place:
    """One device with its memory."""

    key: str  # "core-ultra-258v.gpu", "here"
    name: str
    kind: Kind
    bandwidth_gbs: float
    measured: bool  # here and now; else the peak by specification
    cores: str = ""
    int8_tops: float | None = None
    room_bytes: int | None = None  # for the model; None: not known
    memory_bytes: int | None = None  # that it has, or at most can have
    own_memory: bool = False  # a card's
    platform: str = ""  # of an NPU, as OpenVINO calls it


def place_of(profile: DeviceProfile, memory_bytes: int | None = None) -> Place:
    """A device of the table. memory_bytes: of the machine, where it is known; else the most that it can have."""
    own = profile.memory_gb is not None
    limit = None if profile.limit_gb is None else int(profile.limit_gb * 2**30)
    has = limit if own or memory_bytes is None else memory_bytes
    return Place(
        profile.key,
        profile.full_name,
        profile.kind,
        profile.bandwidth_gbs,
        measured=False,
        cores=profile.cores,
        int8_tops=profile.int8_tops,
        room_bytes=None if has is None else max(has - (DRIVER_BYTES if own else SYSTEM_BYTES), 0),
        memory_bytes=has,
        own_memory=own,
        platform=profile.npu,
    )


def place_here(name: str, bandwidth: Bandwidth, cores: str, total: int | None, available: int | None) -> Place:
    """This machine's processor, with what is free of its memory now."""
    return Place(
        HERE,
        name,
        "cpu",
        bandwidth.all_cores_gbs,
        measured=True,
        cores=cores,
        room_bytes=available,
        memory_bytes=total,
    )
