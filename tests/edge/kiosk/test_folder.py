"""The folder of a kiosk is made whole or not at all, and takes nothing of anybody else's."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

import pytest

from edge.kiosk.folder import check_place, write_folder
from edge.runtime.errors import OutputError

TEXTS = {"page.json": "{}\n", "README.txt": "é\n"}
ALL = {"page.json": b"{}\n", "README.txt": "é\n".encode(), "computed": b"keys"}


def compute(path: Path) -> None:
    path.write_bytes(b"keys")
    path.chmod(0o600)


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file below, by its path; a folder is None."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")
    }


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_is_made(exists: bool, tmp_path: Path) -> None:
    folder = tmp_path / "kiosk"
    if exists:
        folder.mkdir(mode=0o755)
        before = folder.stat().st_ino
    place = check_place(folder)
    before_umask = os.umask(0o077)
    try:
        write_folder(place, TEXTS, "computed", compute)
    finally:
        os.umask(before_umask)
    assert contents(tmp_path) == {"kiosk": None, **{f"kiosk/{name}": content for name, content in ALL.items()}}
    assert not exists or folder.stat().st_ino == before, "it may be a mount point"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o644}
    with pytest.raises(OutputError, match=r"holds 'README.txt' and 2 more, and nothing in it is replaced"):
        check_place(folder)


def test_a_mount_point_and_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk" / "lost+found").mkdir(parents=True)
    (tmp_path / "link").symlink_to("disk")
    place = check_place(tmp_path / "link")
    assert place == tmp_path / "disk"
    write_folder(place, TEXTS, "computed", compute)
    assert contents(tmp_path / "disk") == {**ALL, "lost+found": None}


def test_files_of_others_stay(tmp_path: Path) -> None:
    """Whatever they are, and whenever they come."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "page.json").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    before = contents(tmp_path)
    for name, said in (
        ("photos", "holds 'page.json', and nothing in it is replaced"),
        ("file", "exists and is not a folder"),
        ("loop", "is a link that leads to itself"),
        ("none/kiosk", "no such folder to make 'kiosk' in"),
        ("file/kiosk", "no such folder to make 'kiosk' in"),
    ):
        with pytest.raises(OutputError) as caught:
            check_place(tmp_path / name)
        assert said in str(caught.value)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("name", ["page.json", "other.txt"])
def test_what_appears_meanwhile_stays(exists: bool, name: str, tmp_path: Path) -> None:
    place = tmp_path / "kiosk"
    if exists:
        place.mkdir()

    def meanwhile(path: Path) -> None:
        compute(path)
        place.mkdir(exist_ok=True)
        (place / name).write_text("mine")

    with pytest.raises(OutputError, match=r"appeared meanwhile|nothing in it is replaced"):
        write_folder(place, TEXTS, "computed", meanwhile)
    assert contents(tmp_path) == {"kiosk": None, f"kiosk/{name}": b"mine"}


def test_what_appears_at_the_last_moment_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look and the names: no name is taken from a file that has it, and the others are given back."""
    link = os.link

    def late(source: Path, target: Path) -> None:
        if target.name == "README.txt":
            target.write_text("mine")
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    (tmp_path / "kiosk").mkdir()
    with pytest.raises(OutputError, match="appeared meanwhile"):
        write_folder(tmp_path / "kiosk", TEXTS, "computed", compute)
    assert contents(tmp_path) == {"kiosk": None, "kiosk/README.txt": b"mine"}


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OutputError("full"), OSError(28, "No space left on device")])
def test_nothing_is_left_of_what_failed(exists: bool, error: BaseException, tmp_path: Path) -> None:
    place = tmp_path / "kiosk"
    if exists:
        place.mkdir()
    before = contents(tmp_path)

    def fails(path: Path) -> None:
        compute(path)
        raise error

    expected = OutputError if isinstance(error, OSError) else error if isinstance(error, type) else type(error)
    with pytest.raises(expected):
        write_folder(place, TEXTS, "computed", fails)
    assert contents(tmp_path) == before


def test_all_of_it_is_given_to_its_owner(tmp_path: Path) -> None:
    if os.getuid():
        pytest.skip("only root gives files away")
    write_folder(tmp_path / "kiosk", TEXTS, "computed", compute, "nobody")
    nobody = pwd.getpwnam("nobody").pw_uid
    assert {path.stat().st_uid for path in (tmp_path / "kiosk", *(tmp_path / "kiosk").iterdir())} == {nobody}
