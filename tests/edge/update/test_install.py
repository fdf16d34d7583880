"""A release is installed whole or not at all, and never an earlier one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edge.runtime.bundle import MANIFEST, open_bundle
from edge.runtime.errors import BundleError, EdgeError, OutputError, UpdateError
from edge.runtime.locks import hold_now
from edge.update import fetch, slots
from edge.update.install import roll_back
from edge.update.keys import make_pair
from edge.update.release import FILE, sign_bundle
from edge.update.status import status_of
from tests.edge.update.shop import CHANGED, Machine, Shop
from tests.forging import forge_manifest

LARGE = "golden.npz"


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def everything(folder: Path) -> dict[str, str]:
    """Every name below a folder with what it is; a lock that is not held is nothing."""
    return {
        path.relative_to(folder).as_posix(): os.fspath(path.readlink())
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else ""
        for path in folder.rglob("*")
    }


# --- What is installed


def test_releases_follow_each_other(shop: Shop, machine: Machine) -> None:
    for number in (1, 2, 3):
        made = shop.release(number)
        done = machine.install(made)
        assert (done.sequence, done.changed, machine.current()) == (number, True, number)
        assert files(machine.slots.link) == files(made)
        assert machine.tested == ["incoming"] * number, "before the switch"
    assert {path.name for path in machine.folder.iterdir()} == {"a", "b", "current", "update.json"}
    assert os.fspath(machine.slots.link.readlink()) == "a"


def test_the_same_release_again_is_nothing(shop: Shop, machine: Machine) -> None:
    made = shop.release(1)
    machine.install(made)
    before = everything(machine.folder)
    assert machine.install(made) == type(machine.install(made))(1, changed=False)
    assert everything(machine.folder) == before
    assert machine.tested == ["incoming"]


def test_only_what_is_not_here_is_fetched(shop: Shop, machine: Machine) -> None:
    machine.install(shop.release(1))
    second = shop.release(2)
    for path in second.iterdir():
        if path.name not in (CHANGED, MANIFEST, FILE):
            path.unlink()
    done = machine.install(second)
    assert done.fetched_bytes == (second / CHANGED).stat().st_size
    assert machine.current() == 2
    weights = [machine.folder / name / LARGE for name in "ab"]
    assert weights[0].samefile(weights[1]), "it takes its place on the disk once"


def test_a_damaged_file_of_the_present_bundle_is_fetched(shop: Shop, machine: Machine) -> None:
    machine.install(shop.release(1))
    weights = machine.slots.link / LARGE
    content = bytearray(weights.read_bytes())
    content[7] ^= 1
    weights.write_bytes(content)
    done = machine.install(shop.release(2))
    assert done.fetched_bytes == len(content) + len('{"release": 2}')
    assert machine.current() == 2


def test_without_links_files_are_copied(shop: Shop, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(1, "no links here")

    machine.install(shop.release(1))
    monkeypatch.setattr("edge.update.fetch.os.link", no_links)
    assert machine.install(shop.release(2)).fetched_bytes == len('{"release": 2}')
    assert machine.current() == 2


def test_a_release_may_skip_some(shop: Shop, machine: Machine) -> None:
    machine.install(shop.release(1))
    machine.install(shop.release(20261130034309))
    assert machine.current() == 20261130034309


def test_a_file_url_is_a_folder(shop: Shop, machine: Machine) -> None:
    machine.install(shop.release(1).as_uri())
    assert machine.current() == 1


# --- What is refused


def refused(machine: Machine, source: Path, words: str, error: type[EdgeError] = UpdateError) -> None:
    """And nothing is changed, on the disk or in what is used."""
    before = everything(machine.folder) if machine.folder.exists() else {}
    with pytest.raises(error, match=words):
        machine.install(source)
    assert everything(machine.folder) == before


@pytest.mark.parametrize("installed", [False, True])
def test_another_key_is_refused(installed: bool, shop: Shop, machine: Machine, tmp_path: Path) -> None:
    if installed:
        machine.install(shop.release(1))
    made = shop.release(2)
    make_pair(tmp_path / "stranger")
    sign_bundle(made, [tmp_path / "stranger"], 2)
    refused(machine, made, "not signed by a key that is trusted here")


def test_an_unsigned_bundle_is_refused(shop: Shop, machine: Machine) -> None:
    refused(machine, shop.bundle, r"release\.json cannot be read .* a release with `edge update sign`")


def test_an_earlier_release_is_refused(shop: Shop, machine: Machine) -> None:
    first, second = shop.release(1), shop.release(2)
    machine.install(second)
    refused(machine, first, r"release 1, and 2 was here already: an earlier one is never")


def test_an_earlier_release_stays_refused_after_a_way_back(shop: Shop, machine: Machine) -> None:
    """Neither the way back nor an emptied slot makes room for what lies between."""
    for number in (1, 3):
        machine.install(shop.release(number))
    roll_back(machine.folder)
    between = shop.release(2)
    refused(machine, between, "3 was here already")
    fourth = shop.release(4)
    (fourth / CHANGED).unlink()
    with pytest.raises(UpdateError, match="cannot be read"):
        machine.install(fourth)
    assert not (machine.folder / "b").exists(), "its files have made room"
    assert machine.current() == 1
    refused(machine, between, "3 was here already")


def test_two_bundles_of_one_number_are_refused(shop: Shop, machine: Machine) -> None:
    machine.install(shop.release(1))
    other = Shop(shop.folder / "other", shop.bundle, shop.private)
    refused(machine, other.release(1, b'{"release": 7}'), "another bundle was signed with the number 1")


def test_another_manifest_than_the_signed_one_is_refused(shop: Shop, machine: Machine) -> None:
    machine.install(shop.release(1))
    made = shop.release(2)
    forge_manifest(made, lambda data: data.update(recipe="of a stranger"))
    refused(machine, made, "manifest.json is not the one that was signed")


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "a/b", "..", "a\\b"])
def test_names_that_lead_elsewhere_are_refused(
    name: str, shop: Shop, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even from somebody who signs."""
    made = shop.release(2)
    forge_manifest(made, lambda data: data["files"].update({name: data["files"][CHANGED]}))
    monkeypatch.setattr("edge.update.release.open_bundle", lambda _: type("", (), {"check_hashes": lambda _: None})())
    sign_bundle(made, [shop.private], 2)
    refused(machine, made, "outside the bundle", BundleError)


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "altered": (lambda path: path.write_bytes(b'{"release": 8}'), "another sha256 than the manifest says"),
    "cut": (lambda path: os.truncate(path, 3), "has 3 bytes, the manifest says"),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b" "), "bytes, the manifest says"),
    "missing": (lambda path: path.unlink(), "cannot be read"),
    "a pipe": (lambda path: _replaced(path, os.mkfifo), "not an ordinary file"),
    "a folder": (lambda path: _replaced(path, Path.mkdir), "not an ordinary file"),
}


def _replaced(path: Path, make: Callable[[Path], None]) -> None:
    path.unlink()
    make(path)


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_file_leaves_the_present_bundle(wrong: str, shop: Shop, machine: Machine) -> None:
    """And once it is right, the same command goes on."""
    machine.install(shop.release(1))
    made = shop.release(2)
    right = (made / CHANGED).read_bytes()
    change, words = WRONG[wrong]
    change(made / CHANGED)
    for _ in range(2):
        with pytest.raises(UpdateError, match=words):
            machine.install(made)
        assert machine.current() == 1
        assert machine.tested == ["incoming"]
    if (made / CHANGED).is_dir():
        (made / CHANGED).rmdir()
    else:
        (made / CHANGED).unlink(missing_ok=True)
    (made / CHANGED).write_bytes(right)
    machine.install(made)
    assert machine.current() == 2


@pytest.mark.parametrize("name", [FILE, MANIFEST])
def test_a_pipe_that_would_block_for_ever_is_refused(name: str, shop: Shop, machine: Machine) -> None:
    made = shop.release(1)
    (made / name).unlink()
    os.mkfifo(made / name)
    refused(machine, made, "not an ordinary file")


@pytest.mark.parametrize(("name", "most"), [(FILE, 64_000), (MANIFEST, 16_000_000)])
def test_an_endless_file_is_refused(name: str, most: int, shop: Shop, machine: Machine) -> None:
    made = shop.release(1)
    os.truncate(made / name, most + 1)
    refused(machine, made, f"expected at most {most:,}")


def test_more_files_than_the_manifest_names_are_not_fetched(shop: Shop, machine: Machine) -> None:
    made = shop.release(1)
    (made / "edge.toml").write_text("[serve]\nhost = '0.0.0.0'\n")
    (made / "more").mkdir()
    machine.install(made)
    assert set(files(machine.slots.link)) == {*open_bundle(made).manifest.files, MANIFEST, FILE}


def test_a_full_disk_is_told_before_anything_is_removed(
    shop: Shop, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        machine.install(shop.release(number))
    third = shop.release(3, b'{"release":  3}')
    made_room = sum(path.stat().st_size for path in (machine.folder / "a").iterdir() if path.stat().st_nlink == 1)
    needed = fetch.MARGIN_BYTES + (third / CHANGED).stat().st_size - made_room
    monkeypatch.setattr(fetch, "free_bytes", lambda _: needed - 1)
    refused(machine, third, r"the release needs 16.0 MB of the disk, 16.0 MB are free; make room", OutputError)
    monkeypatch.setattr(fetch, "free_bytes", lambda _: needed)
    machine.install(third)
    assert machine.current() == 3


def test_a_disk_that_fills_up_meanwhile(shop: Shop, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.install(shop.release(1))
    second = shop.release(2)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "incoming/x")

    with monkeypatch.context() as patch:
        patch.setattr("edge.update.fetch.os.fsync", full)
        with pytest.raises(OutputError, match=r"No space left on device: .* are free\); mend that"):
            machine.install(second)
    assert machine.current() == 1
    machine.install(second)
    assert machine.current() == 2


def test_two_updates_at_once_are_refused(shop: Shop, machine: Machine) -> None:
    machine.install(shop.release(1))
    with hold_now(machine.folder / slots._LOCK) as held:
        assert held
        with pytest.raises(OutputError, match="another update of"):
            machine.install(shop.release(2))


def test_a_slot_in_use_does_not_make_room(shop: Shop, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2):
        machine.install(shop.release(number))
    monkeypatch.setattr("edge.update.install.users_of", lambda _: [(7, "edge")])
    refused(machine, shop.release(3), r"/a, which the next release takes, is in use by edge \(7\)", OutputError)


# --- Files of others


def test_files_of_others_stay(shop: Shop, machine: Machine) -> None:
    """In the folder, in a slot, and in the place of every name that we use."""
    for number in (1, 2):
        machine.install(shop.release(number))
    (machine.folder / "notes.txt").write_text("mine")
    third = shop.release(3)
    (machine.folder / "a" / "edge.toml").write_text("mine")
    refused(machine, third, "holds edge.toml, which is not the bundle's", OutputError)
    (machine.folder / "a" / "edge.toml").unlink()
    machine.install(third)
    assert (machine.folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["a", "current", "incoming"])
@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_in_our_place_stays(name: str, kind: str, shop: Shop, machine: Machine, tmp_path: Path) -> None:
    if (name, kind) == ("incoming", "folder"):
        pytest.skip("all that is in it is ours")
    machine.folder.mkdir()
    place = machine.folder / name
    (tmp_path / "elsewhere").mkdir()
    if kind == "folder":
        place.mkdir()
        (place / "mine").write_text("mine")
    elif kind == "file":
        place.write_text("mine")
    else:
        place.symlink_to(tmp_path / "elsewhere")
    refused(machine, shop.release(1), name, EdgeError)


def test_a_file_in_place_of_the_new_link_stays(shop: Shop, machine: Machine) -> None:
    machine.folder.mkdir()
    (machine.folder / slots._NEW_LINK).write_text("mine")
    with pytest.raises(OutputError, match="File exists"):
        machine.install(shop.release(1))
    assert (machine.folder / slots._NEW_LINK).read_text() == "mine"


def test_what_appears_in_place_of_a_slot_stays(shop: Shop, machine: Machine) -> None:
    def appears(bundle: Path) -> None:
        (machine.folder / "a").mkdir()
        (machine.folder / "a" / "mine").write_text("mine")

    machine.self_test = appears  # type: ignore[method-assign]
    with pytest.raises(OutputError, match="appeared meanwhile"):
        machine.install(shop.release(1))
    assert (machine.folder / "a" / "mine").read_text() == "mine"


def test_what_is_in_the_work_folder_is_ours(shop: Shop, machine: Machine) -> None:
    (machine.folder / "incoming" / "more").mkdir(parents=True)
    (machine.folder / "incoming" / "more" / "left").write_text("x")
    (machine.folder / "incoming" / CHANGED).symlink_to("more")
    machine.install(shop.release(1))
    assert machine.current() == 1


# --- Self-test, and the way back


def test_a_release_that_fails_its_self_test_is_never_used(shop: Shop, machine: Machine) -> None:
    machine.install(shop.release(1))
    machine.fails.add(2)
    second = shop.release(2)
    with pytest.raises(UpdateError, match="the self-test of the release failed"):
        machine.install(second)
    assert machine.current() == 1
    assert status_of(machine.folder).refused == slots.Refused(
        2, "the self-test of the release failed with status 1: golden logits"
    )
    refused(machine, second, r"release 2 is not installed again: the self-test .* golden logits; publish a later one")
    assert machine.tested == ["incoming"] * 2
    machine.install(shop.release(3))
    assert machine.current() == 3


def test_a_refused_release_can_be_tried_again(shop: Shop, machine: Machine) -> None:
    """With nothing to fetch: all of it is here."""
    machine.install(shop.release(1))
    machine.fails.add(2)
    second = shop.release(2)
    with pytest.raises(UpdateError):
        machine.install(second)
    machine.fails.clear()
    assert machine.install(second, retry=True).fetched_bytes == 0
    assert machine.current() == 2
    assert status_of(machine.folder).refused is None


def test_a_first_release_that_fails_leaves_no_bundle(shop: Shop, machine: Machine) -> None:
    machine.fails.add(1)
    with pytest.raises(UpdateError):
        machine.install(shop.release(1))
    assert machine.slots.current() is None
    with pytest.raises(UpdateError, match="nothing is installed there"):
        status_of(machine.folder)


def test_the_server_is_told_once(shop: Shop, machine: Machine) -> None:
    for number in (1, 2):
        made = shop.release(number)
        machine.install(made, tells=True)
        machine.install(made, tells=True)
    assert machine.told == [1, 2]


def test_a_server_that_does_not_start_with_it_gets_the_bundle_before(shop: Shop, machine: Machine) -> None:
    machine.install(shop.release(1), tells=True)
    machine.server_fails.add(2)
    second = shop.release(2)
    with pytest.raises(UpdateError, match="the command 'systemctl' failed"):
        machine.install(second, tells=True)
    assert machine.current() == 1
    assert machine.told == [1, 1]
    refused(machine, second, "release 2 is not installed again")
    machine.server_fails.clear()
    machine.install(second, retry=True, tells=True)
    assert (machine.current(), machine.told) == (2, [1, 1, 2])


def test_back_by_hand_and_forward_again(shop: Shop, machine: Machine) -> None:
    first, second = shop.release(1), shop.release(2)
    machine.install(first)
    with pytest.raises(UpdateError, match="no other bundle to go back to"):
        roll_back(machine.folder)
    machine.install(second)
    assert roll_back(machine.folder) == 1
    assert machine.current() == 1
    with pytest.raises(UpdateError, match="but the later release 2"):
        roll_back(machine.folder)
    refused(machine, second, "it was rolled back by hand")
    assert machine.install(second, retry=True).fetched_bytes == 0
    assert machine.current() == 2
    roll_back(machine.folder)
    machine.install(shop.release(3))
    assert machine.current() == 3


# --- An end at any moment


class Ended(BaseException):
    """As if the process had been killed."""


STEPS = ("rename", "replace", "unlink", "symlink_to", "mkdir")


@contextmanager
def ending(before: int) -> Iterator[list[str]]:
    """End at a step that changes what is on the disk, before it is done. Yields the steps that were reached."""
    seen: list[str] = []

    def counted(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def step(*arguments: object, **keywords: object) -> object:
            if slots._LOCK in str(arguments[0]):  # a process that ends lets go of it
                return real(*arguments, **keywords)
            if len(seen) == before:
                raise Ended(name)
            seen.append(name)
            return real(*arguments, **keywords)

        return step

    with pytest.MonkeyPatch.context() as patch:
        for name in STEPS:
            patch.setattr(Path, name, counted(name, getattr(Path, name)))
        for name in ("link", "fsync"):
            patch.setattr(os, name, counted(name, getattr(os, name)))
        yield seen


@pytest.mark.parametrize(
    "way",
    [
        pytest.param("first", marks=pytest.mark.slow),
        "second",
        pytest.param("third", marks=pytest.mark.slow),
        pytest.param("after a refusal", marks=pytest.mark.slow),
        "back",
        "server fails",
    ],
)
def test_an_end_at_any_step_leaves_a_whole_bundle_and_the_command_goes_on(way: str, shop: Shop, tmp_path: Path) -> None:
    releases = {number: shop.release(number) for number in (1, 2, 3)}
    prepared = Machine(tmp_path / "prepared", shop)
    ways: dict[str, tuple[int, set[int | None]]] = {
        "first": (1, {None, 1}),
        "second": (2, {1, 2}),
        "third": (3, {2, 3}),
        "after a refusal": (3, {1, 3}),
        "back": (1, {2, 1}),
        "server fails": (1, {1, 2}),
    }
    goal, allowed = ways[way]
    for number in {"first": (), "second": (1,), "after a refusal": (1,), "server fails": (1,)}.get(way, (1, 2)):
        prepared.install(releases[number], tells=True)
    if way == "after a refusal":
        prepared.fails.add(2)
        with pytest.raises(UpdateError):
            prepared.install(releases[2], tells=True)
    prepared.folder.mkdir(exist_ok=True)
    ends = 0
    while True:
        machine = Machine(tmp_path / f"end-{ends}", shop)
        shutil.copytree(prepared.folder, machine.folder, symlinks=True)
        if way == "server fails":
            machine.server_fails.add(2)

        def act(machine: Machine = machine) -> None:
            if way == "back":
                roll_back(machine.folder, machine.tell)
            elif way == "server fails":
                with pytest.raises(UpdateError):
                    machine.install(releases[2], tells=True)
            else:
                machine.install(releases[goal], tells=True)

        with ending(ends) as seen:
            try:
                act()
                break
            except Ended:
                pass
        used = None if machine.slots.current() is None else machine.current()
        assert used in allowed, (ends, seen)
        if way == "back":
            with pytest.raises(UpdateError) if used == 1 else _nothing():
                act()
        elif way == "server fails":
            _ends_refused(machine, releases[2])
        else:
            act()
        assert machine.current() == goal, (ends, seen)
        if way != "back":
            assert machine.told[-1:] == [goal]
        usual = {
            "a",
            "b",
            "current",
            "update.json",
            "incoming",
            *(["update.json.edgeglm-new"] if way == "back" else []),
        }
        leftovers = {path.name for path in machine.folder.iterdir()} - usual
        assert not leftovers, (ends, seen)
        shutil.rmtree(machine.folder)
        ends += 1
    assert ends > (5 if way == "back" else 8), "steps that end is tried before"


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _ends_refused(machine: Machine, release: Path) -> None:
    with pytest.raises(UpdateError):
        machine.install(release, tells=True)
    machine.server_fails.clear()
    with pytest.raises(UpdateError, match="not installed again"):
        machine.install(release, tells=True)


def test_what_was_half_fetched_is_used(shop: Shop, machine: Machine) -> None:
    made = shop.release(1)
    manifest = open_bundle(made).manifest
    name = LARGE
    record = manifest.files[name]
    machine.slots.incoming.mkdir(parents=True)
    part = machine.slots.incoming / f"{record.sha256}.part"
    part.write_bytes((made / name).read_bytes()[:500])
    done = machine.install(made)
    assert done.fetched_bytes == sum(one.size for one in manifest.files.values()) - 500
    assert machine.current() == 1


@pytest.mark.parametrize("left", [bytes(500), b"\1" * 10_000_000])
def test_what_a_power_cut_left_of_a_file_is_fetched_anew(left: bytes, shop: Shop, machine: Machine) -> None:
    """Zeros, or more than the file should have."""
    made = shop.release(1)
    record = open_bundle(made).manifest.files[LARGE]
    machine.slots.incoming.mkdir(parents=True)
    (machine.slots.incoming / f"{record.sha256}.part").write_bytes(left)
    machine.install(made)
    assert machine.current() == 1


def test_a_file_in_the_place_of_what_is_remembered_is_told(shop: Shop, machine: Machine) -> None:
    machine.install(shop.release(1))
    (machine.folder / slots.STATE).write_text(json.dumps({"highest": "x"}))
    refused(machine, shop.release(2), "update.json")


def test_windows_is_told_what_it_lacks(shop: Shop, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    made = shop.release(1)
    monkeypatch.setattr("sys.platform", "win32")
    with pytest.raises(OutputError, match="which Windows does not have"):
        machine.install(made)
