"""`edge rm`: a bundle's own files go, and nothing else does."""

from __future__ import annotations

import io
import json
import mmap
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edge import cli
from edge.models.in_use import users_of
from edge.models.removal import check_removable, remove
from edge.runtime.errors import BundleError, OutputError
from edge.runtime.locks import hold_now

Put = Callable[[str], Path]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell who uses a file")


def test_a_bundle_goes_as_a_whole(put: Put) -> None:
    folder = put("glm4")
    size = sum(path.stat().st_size for path in folder.iterdir())
    removed = remove(folder)
    assert (removed.bytes, removed.kept) == (size, ())
    assert not folder.exists()
    assert folder.parent.is_dir()


def test_files_of_others_stay(put: Put, capsys: pytest.CaptureFixture[str]) -> None:
    folder = put("glm4")
    (folder / "kiosk.prefix").write_bytes(b"mine")
    (folder / "notes").mkdir()
    (folder / "notes" / "a.txt").write_text("mine")
    (folder / "edge.toml").write_text("temperature = 0.7\n")
    assert cli.main(["rm", "glm4", "--yes"]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["edge.toml", "kiosk.prefix", "notes"]
    assert (folder / "notes" / "a.txt").read_text() == "mine"
    shown = capsys.readouterr().out
    assert shown.startswith("removed glm4: ")
    assert f"  {folder} stays, with what is not the bundle's: edge.toml, kiosk.prefix, notes\n" in shown


def test_links_are_not_followed(put: Put, models: Path, tmp_path: Path, tiny_bundle: Path) -> None:
    """A link in place of a file goes, and what it leads to stays; a link in place of the folder is refused."""
    folder, elsewhere = put("glm4"), tmp_path / "elsewhere"
    name = "tokenizer.json"
    (folder / name).rename(elsewhere)
    (folder / name).symlink_to(elsewhere)
    remove(folder)
    assert elsewhere.is_file()
    (models / "linked").symlink_to(tiny_bundle)
    with pytest.raises(OutputError, match=r"is a link to .*; remove the link yourself"):
        remove(models / "linked")
    assert (tiny_bundle / "manifest.json").is_file()


@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd", "..", "a/b"])
def test_a_manifest_that_names_files_elsewhere_is_refused(name: str, put: Put) -> None:
    folder = put("glm4")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"size": 1, "sha256": "0" * 64}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(OutputError, match="which is not a file in the folder"):
        remove(folder)
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize("content", ["", "{}", '{"files": {}}', "[]"])
def test_what_is_not_a_bundle_is_refused(content: str, models: Path) -> None:
    (models / "mine").mkdir()
    (models / "mine" / "manifest.json").write_text(content)
    with pytest.raises(OutputError):
        remove(models / "mine")
    assert (models / "mine" / "manifest.json").read_text() == content
    (models / "notes").mkdir()
    with pytest.raises(BundleError, match="is not a bundle"):
        check_removable(models / "notes")


def test_one_that_is_being_written_is_refused(put: Put) -> None:
    folder = put("glm4")
    program = f"""
import sys
from pathlib import Path
from edge.export.destination import find_destination
from edge.runtime.locks import hold_now
with hold_now(find_destination(Path({str(folder)!r})).lock):
    print("held", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match=r"is in use by python|an export is writing"):
            remove(folder)
        other.communicate()
    with hold_now(folder.with_name("lock")):
        remove(folder)


@LINUX
@pytest.mark.parametrize("how", ["open", "mapped"])
def test_one_that_is_in_use_is_refused(how: str, put: Put, capsys: pytest.CaptureFixture[str]) -> None:
    folder = put("a b\u00e9")
    program = f"""
import mmap, os, sys
descriptor = os.open({str(folder / "openvino_model.bin")!r}, os.O_RDONLY)
if {how!r} == "mapped":
    kept = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
    os.close(descriptor)
print("held", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert [pid for pid, _ in users_of(folder)] == [other.pid]
        assert cli.main(["rm", "a b\u00e9", "--yes"]) == 1
        assert re.search(rf"is in use by python[\d.]* \({other.pid}\); end it first", capsys.readouterr().err)
        other.communicate()
    assert users_of(folder) == []
    with (folder / "openvino_model.bin").open("rb") as own, mmap.mmap(own.fileno(), 0, access=mmap.ACCESS_READ):
        assert users_of(folder) == []  # of others
    remove(folder)


def test_it_asks_where_it_can(put: Put, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = put("one"), put("two")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for answer in ("", "\n", "n\n", "no\n", "what\n"):
        monkeypatch.setattr("sys.stdin", Terminal(answer))
        assert cli.main(["rm", "one", "two"]) == 1
        said = capsys.readouterr().err
        assert said.startswith("remove one (")
        assert said.endswith("? [y/N] edge: nothing was removed\n")
    assert one.is_dir()
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert cli.main(["rm", "one"]) == 2
    assert "nobody can be asked here; give --yes" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", Terminal("Yes\n"))
    assert cli.main(["rm", "one", str(two), "one"]) == 0
    assert not one.exists()
    assert not two.exists()


def test_nothing_goes_when_one_of_them_cannot(put: Put) -> None:
    one = put("one")
    assert cli.main(["rm", "one", "nothing", "--yes"]) == 1
    assert cli.main(["rm", "one", ".", "--yes"]) == 1
    assert (one / "manifest.json").is_file()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(put: Put) -> None:
    folder = put("glm4")
    folder.chmod(0o500)
    with pytest.raises(OutputError, match="cannot be removed"):
        remove(folder)
    folder.chmod(0o700)
