"""The folder of an updated machine: two slots, and the link that says which of them is used.

In: the folder. Out: what is in it, and the few steps that change it, each whole or not done at all after a power cut.
Knows nothing about signatures and where releases come from.

    a, b          bundles: each is whole and passed its self-test, or does not exist
    current       a link to one of the two, replaced in one step
    incoming      the next release, as long as it is fetched and tested; whatever is in it is ours
    update.json   the highest release that was ever here, the one that was refused, the one that was told

A slot is emptied only after update.json says what its number was, so that nothing earlier can be installed later.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from edge.runtime.atomic import sync_folder, write_atomically
from edge.runtime.bundle import MANIFEST
from edge.runtime.errors import BundleError, OutputError, UpdateError, in_words
from edge.runtime.files import read_file, shown_path
from edge.runtime.json_object import ObjectReader
from edge.runtime.json_reader import parse_json
from edge.runtime.locks import hold_now
from edge.runtime.manifest import MAX_BYTES, Manifest
from edge.update import release as releases
from edge.update.release import MAX_SEQUENCE, Release, read_release

NAMES = ("a", "b")
CURRENT, INCOMING, STATE = "current", "incoming", "update.json"
_NEW_LINK, _LOCK = ".current.edgeglm-new", ".update.edgeglm-lock"
_MEND = "make another folder, and install into that"
_MOST_STATE = 10_000


@dataclass(frozen=True, slots=True)
class Refused:
    """A release that is not installed again by itself."""

    sequence: int
    reason: str


@dataclass(frozen=True, slots=True)
class State:
    """What the slots themselves do not tell."""

    highest: int = -1  # release that was ever here
    refused: Refused | None = None
    told: int = -1  # release whose switch was told to the program that answers


class Slots:
    """The folder of an updated machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.incoming = folder / INCOMING

    @property
    def link(self) -> Path:
        """What servers open."""
        return self.folder / CURRENT

    def current(self) -> Path | None:
        """The slot that is used; None before the first installation. Raises OutputError for a link to elsewhere."""
        try:
            target = os.fspath(self.link.readlink())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OutputError(f"{shown_path(self.link)} is not a link, and is not replaced; {_MEND}") from error
        if target not in NAMES or not (self.folder / target).is_dir():
            raise OutputError(f"{shown_path(self.link)} leads to {shown_path(target)}, expected a slot; {_MEND}")
        return self.folder / target

    def other(self) -> Path:
        """The slot that is not used, there or not."""
        current = self.current()
        return self.folder / (NAMES[1] if current is not None and current.name == NAMES[0] else NAMES[0])

    def release(self, slot: Path | None) -> Release | None:
        """What is in a slot; None if there is nothing. Raises UpdateError."""
        return None if slot is None or not os.path.lexists(slot) else read_release(slot)

    def highest(self) -> int:
        """The highest release that was ever here; -1 if there was none."""
        here = (self.release(self.folder / name) for name in NAMES)
        return max(self.state().highest, *(-1 if one is None else one.sequence for one in here))

    def state(self) -> State:
        """Raises UpdateError for a file that we did not write."""
        path = self.folder / STATE
        if not os.path.lexists(path):
            return State()
        raw = read_file(path, UpdateError, _MEND, max_bytes=_MOST_STATE)
        read = ObjectReader(parse_json(raw, str(path), UpdateError, _MEND), str(path), UpdateError, _MEND)
        inner = read.inside("refused") if read.value("refused") is not None else None
        return State(
            read.whole("highest", -1, MAX_SEQUENCE),
            None if inner is None else Refused(inner.whole("sequence", 0, MAX_SEQUENCE), inner.text("reason")),
            read.whole("told", -1, MAX_SEQUENCE),
        )

    def write_state(self, state: State) -> None:
        """On the disk when this returns. Raises OutputError."""
        refused = (
            None if state.refused is None else {"sequence": state.refused.sequence, "reason": state.refused.reason}
        )
        text = json.dumps({"highest": state.highest, "refused": refused, "told": state.told}, indent=1) + "\n"
        write_atomically(self.folder / STATE, [text.encode()], private=False)

    def refuse(self, sequence: int, reason: str, *, used: bool) -> None:
        """Remember not to install a release again. used: it is, so that the program that answers is to be told anew."""
        state, refused = self.state(), Refused(sequence, in_words(reason, 500))
        told = -1 if used else state.told
        self.write_state(State(max(self.highest(), sequence), refused, told))

    def empty_other(self) -> Path:
        """Turn the unused slot, if there is one, into `incoming`; return that.

        Raises OutputError for what no update has put there, which stays.
        """
        slot = self.other()
        if os.path.lexists(self.incoming):
            if self.incoming.is_symlink() or not self.incoming.is_dir():
                raise OutputError(f"{shown_path(self.incoming)} is not a folder; move it away")
            if os.path.lexists(slot):
                raise OutputError(f"{shown_path(self.folder)} has two slots and {INCOMING}; move {INCOMING} away")
        elif os.path.lexists(slot):
            check_ours(slot)
            self.write_state(replace(self.state(), highest=self.highest()))
            slot.rename(self.incoming)
        else:
            self.incoming.mkdir()
        sync_folder(self.folder)
        return self.incoming

    def fill_other(self) -> Path:
        """Give `incoming`, which is whole and tested, the name of the unused slot; return it."""
        slot = self.other()
        if os.path.lexists(slot):
            raise OutputError(f"{shown_path(slot)} appeared meanwhile, and is not replaced; move it away")
        self.incoming.rename(slot)
        sync_folder(self.folder)
        return slot

    def switch(self, slot: Path) -> None:
        """Use a slot from now on."""
        self.current()  # or what is there is nothing that we may replace
        new = self.folder / _NEW_LINK
        if new.is_symlink():
            new.unlink()  # of a switch that was cut short
        new.symlink_to(slot.name)
        new.replace(self.link)
        sync_folder(self.folder)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other updates of this folder away. Raises OutputError if there is one."""
        with hold_now(self.folder / _LOCK) as free:
            if not free:
                raise OutputError(f"another update of {shown_path(self.folder)} is running; wait for it")
            yield


def manifest_in(slot: Path) -> Manifest | None:
    """The manifest of a bundle; None if there is none that can be read."""
    try:
        return Manifest.from_json(read_file(slot / MANIFEST, BundleError, _MEND, max_bytes=MAX_BYTES))
    except BundleError:
        return None


def check_ours(slot: Path) -> None:
    """Raise OutputError if a slot holds anything that its manifest does not name."""
    manifest = None if slot.is_symlink() or not slot.is_dir() else manifest_in(slot)
    if manifest is None:
        raise OutputError(f"{shown_path(slot)} is not a bundle that an update has put there; move it away")
    strangers = {one.name for one in slot.iterdir()} - {*manifest.files, MANIFEST, releases.FILE}
    if strangers:
        raise OutputError(
            f"{shown_path(slot)} holds {shown_path(min(strangers))}, which is not the bundle's, and the next release "
            "takes its place; move it away"
        )


def free_bytes(folder: Path) -> int:
    """What the disk has left for files in a folder."""
    return shutil.disk_usage(folder).free
