"""What is in the folder of an updated machine, told without changing it.

In: the folder. Out: a `Status`. Reads no large file: `edge verify` says whether a bundle is whole.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge.runtime.errors import UpdateError
from edge.runtime.files import bytes_in, shown_path
from edge.runtime.sizes import human_bytes
from edge.update.slots import Refused, Slots


@dataclass(frozen=True, slots=True)
class Status:
    """Numbers of releases; None where there is none."""

    folder: str
    slot: str  # that is used
    current: int
    other: int | None
    refused: Refused | None
    incoming_bytes: int  # of a release that is not whole or not tested yet

    def to_json(self) -> dict[str, Any]:  # Any: JSON
        return asdict(self)

    def lines(self) -> list[str]:
        """The same for people."""
        found = [f"{shown_path(self.folder)}: release {self.current} is used, in slot {self.slot}"]
        if self.other is not None:
            way = "there to go back to" if self.other < self.current else "in the other slot"
            found.append(f"  release {self.other} is {way}")
        if self.refused is not None:
            found.append(f"  release {self.refused.sequence} was refused: {self.refused.reason}")
        if self.incoming_bytes:
            found.append(f"  {human_bytes(self.incoming_bytes)} of the next release are here")
        return found


def status_of(folder: Path) -> Status:
    """Raises UpdateError for a folder that nothing was installed into, and OutputError for one of something else."""
    slots = Slots(folder)
    slot = slots.current()
    current, other = slots.release(slot), slots.release(slots.other())
    if slot is None or current is None:
        raise UpdateError(f"{shown_path(folder)}: nothing is installed there; `edge update install` does that")
    return Status(
        str(folder),
        slot.name,
        current.sequence,
        None if other is None else other.sequence,
        slots.state().refused,
        bytes_in(slots.incoming),
    )
