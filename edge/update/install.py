"""A release installed: checked, fetched, tested, and used from one moment on; or not at all.

In: the folder of the slots, a source, trusted keys, and how a bundle is tested. Out: what was done. Whatever ends this,
a power cut included, `current` is a whole bundle that passed its self-test, and the same command goes on afterwards.

    signature -> number -> manifest -> room on the disk -> files -> self-test -> switch -> the program that answers

Until the files, nothing on the disk is changed; until the switch, nothing that is used.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edge.models.in_use import users_of
from edge.runtime.bundle import MANIFEST
from edge.runtime.errors import EdgeError, OutputError, UpdateError
from edge.runtime.files import shown_path
from edge.runtime.manifest import MAX_BYTES, Manifest
from edge.update import release as releases
from edge.update.fetch import Fetched, Told, check_room, fetch
from edge.update.release import Release, check_release
from edge.update.slots import Slots
from edge.update.source import Source

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

BY_HAND = "it was rolled back by hand"


@dataclass(frozen=True, slots=True)
class Installed:
    """What an installation did."""

    sequence: int
    changed: bool  # whether another bundle is used now
    fetched_bytes: int = 0
    here_bytes: int = 0  # of files that were here already


@dataclass(frozen=True, slots=True)
class Steps:
    """What is done with a bundle by others. Both raise EdgeError."""

    self_test: Callable[[Path], None]
    tell: Callable[[], None] | None = None  # the program that answers that `current` is another bundle


def install(
    folder: Path,
    source: Source,
    keys: Sequence[Ed25519PublicKey],
    steps: Steps,
    *,
    retry: bool = False,
    told: Told = lambda _name, _size, _how: None,
) -> Installed:
    """Install what the source has, unless it is used already.

    retry: also a release that failed here before. Raises UpdateError, BundleError and OutputError.
    """
    _check_system()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        slots = Slots(folder)
        with slots.held():
            _settle(slots, steps.tell)  # what an earlier run was kept from
            return _install(slots, source, keys, steps, retry, told)
    except OSError as error:
        raise OutputError(
            f"{shown_path(error.filename or folder)}: {error.strerror or error}; check the folder"
        ) from error


def roll_back(folder: Path, tell: Callable[[], None] | None = None) -> int:
    """Use the bundle before this one again; return its number. Raises UpdateError and OutputError."""
    _check_system()
    slots = Slots(folder)
    try:
        with slots.held():
            now, before = slots.release(slots.current()), slots.release(slots.other())
            if now is None or before is None or before.sequence > now.sequence:
                later = "" if before is None else f" but the later release {before.sequence}"
                raise UpdateError(f"{shown_path(folder)} has no other bundle to go back to{later}")
            slots.refuse(now.sequence, BY_HAND, used=True)
            slots.switch(slots.other())
            _tell(slots, tell)
            return before.sequence
    except OSError as error:
        raise OutputError(
            f"{shown_path(error.filename or folder)}: {error.strerror or error}; check the folder"
        ) from error


def _check_system() -> None:
    if sys.platform == "win32":
        raise OutputError(
            "bundles are updated by links that replace each other in one step, which Windows does not have; sign them "
            "here, and install them on Linux"
        )


def _install(
    slots: Slots,
    source: Source,
    keys: Sequence[Ed25519PublicKey],
    steps: Steps,
    retry: bool,
    told: Told,
) -> Installed:
    raw = source.read(releases.FILE, releases.MAX_BYTES)
    where = f"{source}: {releases.FILE}"
    release = check_release(raw, keys, where)
    _check_sequence(slots, release, where, retry)
    if slots.release(slots.current()) == release:
        _settle(slots, steps.tell)  # told again, if it failed before
        return Installed(release.sequence, changed=False)
    done = Fetched()
    if slots.release(slots.other()) != release:
        done = _bring(slots, source, release, raw, told)
        _test(slots, release, steps)
        slots.fill_other()
    slots.switch(slots.other())
    _settle(slots, steps.tell)
    return Installed(release.sequence, True, done.fetched, done.here)


def _check_sequence(slots: Slots, release: Release, where: str, retry: bool) -> None:
    """Refuse what is earlier than what was here, and what failed. Raises UpdateError."""
    highest, state = slots.highest(), slots.state()
    if release.sequence < highest:
        raise UpdateError(
            f"{where} is of the release {release.sequence}, and {highest} was here already: an earlier one is never "
            "installed; sign the bundle again with a higher number"
        )
    for slot in (slots.current(), slots.other()):
        here = slots.release(slot)
        if here is not None and here.sequence == release.sequence and here != release:
            raise UpdateError(
                f"{where}: another bundle was signed with the number {here.sequence}; sign it with a higher"
            )
    if state.refused is not None and state.refused.sequence == release.sequence:
        if not retry:
            raise UpdateError(
                f"{where}: the release {release.sequence} is not installed again: {state.refused.reason}; publish a "
                "later one, or give --retry"
            )
        slots.write_state(replace(state, refused=None))


def _bring(slots: Slots, source: Source, release: Release, raw: bytes, told: Told) -> Fetched:
    """Make `incoming` the release's bundle."""
    content = source.read(MANIFEST, MAX_BYTES)
    if hashlib.sha256(content).hexdigest() != release.manifest_sha256:
        raise UpdateError(f"{source}: {MANIFEST} is not the one that was signed; publish the release again")
    manifest = Manifest.from_json(content)
    slot, current = slots.other(), slots.current()
    emptied = slots.incoming if os.path.lexists(slots.incoming) else slot
    check_room(slots.folder, manifest, current, emptied)
    if users := users_of(slot) if slot.is_dir() else []:
        name = ", ".join(f"{name} ({pid})" for pid, name in users[:3])
        raise OutputError(
            f"{shown_path(slot)}, which the next release takes, is in use by {name}; start that again first"
        )
    small = {MANIFEST: content, releases.FILE: raw}
    return fetch(source, manifest, small, current, slots.empty_other(), told)


def _test(slots: Slots, release: Release, steps: Steps) -> None:
    """Raises what the self-test raises; the release is refused then."""
    try:
        steps.self_test(slots.incoming)
    except EdgeError as error:
        slots.refuse(release.sequence, str(error), used=False)
        raise


def _settle(slots: Slots, tell: Callable[[], None] | None) -> None:
    """Tell the program that answers which bundle is used now; where that fails, use the one before again.

    Raises what telling raises.
    """
    now, before = slots.release(slots.current()), slots.release(slots.other())
    if now is None:
        return
    earlier = before is not None and before.sequence < now.sequence
    refused = slots.state().refused
    if earlier and refused is not None and refused.sequence == now.sequence:  # a way back that was cut short
        slots.switch(slots.other())
        _tell(slots, tell)
        return
    try:
        _tell(slots, tell)
    except EdgeError as error:
        slots.refuse(now.sequence, str(error), used=True)
        if earlier:
            slots.switch(slots.other())
            _tell(slots, tell)
        raise


def _tell(slots: Slots, tell: Callable[[], None] | None) -> None:
    """Tell the program that answers, unless it knows. Raises what that raises."""
    now = slots.release(slots.current())
    if tell is None or now is None or slots.state().told == now.sequence:
        return
    tell()
    slots.write_state(replace(slots.state(), told=now.sequence))
