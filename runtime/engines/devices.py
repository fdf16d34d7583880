"""Which device of this machine a name means.

In: what a caller wrote, and the names of the devices that there are. Out: a name that an engine takes. Knows no engine.
"""

from __future__ import annotations

from collections.abc import Sequence

from edge.runtime.errors import DeviceError, shown
from edge.runtime.machine import family_of


def device_here(wanted: str, here: Sequence[str]) -> str:
    """Return a device's name: "CPU" for "cpu" and, where there is one, for "CPU.0". Raises DeviceError."""
    name, family = wanted.upper(), family_of(wanted)
    if name in here:
        return name
    if name == f"{family}.0" and family in here:
        return family
    if name == family and any(family_of(other) == family for other in here):
        return name  # the first of several
    raise DeviceError(f"device {shown(wanted)} does not exist on this machine; devices here: {', '.join(here)}")
