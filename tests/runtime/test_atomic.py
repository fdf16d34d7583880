"""A file is written whole or not at all, whoever else writes it and whatever fails."""

from __future__ import annotations

import errno
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.runtime.atomic import write_atomically
from edge.runtime.errors import OutputError

posix = pytest.mark.skipif(sys.platform == "win32", reason="no flock, modes or limits")


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that is there, alone in its folder."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    return path


def test_parts_follow_each_other(path: Path) -> None:
    parts: list[bytes | memoryview] = [b"one ", memoryview(b"two "), b"", bytes(2_000_000), b"."]
    write_atomically(path, iter(parts))
    assert path.read_bytes() == b"one two " + bytes(2_000_000) + b"."
    assert names(path.parent) == ["file"]


@posix
def test_only_the_owner_reads_it(path: Path) -> None:
    path.chmod(0o644)
    write_atomically(path, [b"new"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_link_is_followed(path: Path) -> None:
    link = path.parent / "link"
    link.symlink_to(path)
    write_atomically(link, [b"new"])
    assert link.is_symlink()
    assert path.read_bytes() == b"new"


def test_parts_that_fail_leave_the_old_file(path: Path) -> None:
    def parts() -> Iterator[bytes]:
        yield b"new"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, parts())
    assert path.read_bytes() == b"old"
    assert names(path.parent) == ["file"]


@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.replace"])
def test_a_full_disk_leaves_the_old_file_and_says_how_much_is_missing(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(call, full)
    with pytest.raises(
        OutputError, match=r"file cannot be written \(No space left.*: 2,003 bytes are needed, [\d,]+ free"
    ):
        write_atomically(path, [b"new", bytes(2000)])
    assert path.read_bytes() == b"old"
    assert names(path.parent) == ["file"]


FILL = """
import resource, signal, sys
from pathlib import Path
from edge.runtime.errors import OutputError
from edge.runtime.atomic import write_atomically
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
try:
    write_atomically(Path(sys.argv[1]), (bytes(1_000_000) for _ in range(7)))
except OutputError as error:
    print(error)
"""


@posix
def test_a_file_that_cannot_grow_leaves_the_old_one(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FILL, str(path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert re.search(r"File too large: 7,000,000 bytes are needed", done.stdout), done
    assert path.read_bytes() == b"old"
    assert names(path.parent) == ["file"]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"missing/file cannot be written \(No such file or directory\)"):
        write_atomically(tmp_path / "missing" / "file", [b"new"])
    assert names(tmp_path) == []


def test_a_file_is_no_folder(path: Path) -> None:
    with pytest.raises(OutputError, match=r"file/new cannot be written \(Not a directory\)"):
        write_atomically(path / "new", [b"new"])


@posix
def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        with pytest.raises(OutputError, match=f"{name} exists and is not a file"):
            write_atomically(tmp_path / name, [b"new"])
    assert names(tmp_path) == ["folder", "pipe"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(path: Path) -> None:
    path.parent.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="Permission denied"):
            write_atomically(path, [b"new"])
    finally:
        path.parent.chmod(0o700)
    assert path.read_bytes() == b"old"


@posix
def test_a_folder_that_cannot_be_synced_is_no_failure(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync, synced = os.fsync, []

    def only_files(descriptor: int) -> None:
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        synced.append(folder)
        if folder:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    write_atomically(path, [b"new"])
    assert path.read_bytes() == b"new"
    assert synced == [False, True]


KILLED = """
import sys, time
from pathlib import Path
from edge.runtime.atomic import write_atomically
def parts():
    yield bytes(3_000_000)
    print("writing", flush=True)
    time.sleep(60)
write_atomically(Path(sys.argv[1]), parts())
"""


@posix
def test_what_a_killed_process_left_is_removed_and_what_one_is_writing_is_not(path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        assert names(path.parent) == ["file", "file.edgeglm-new"]
        write_atomically(path, [b"new"])
        assert (path.parent / "file.edgeglm-new").stat().st_size >= 2_000_000  # it still writes
        assert path.read_bytes() == b"new"
        writer.send_signal(signal.SIGKILL)
    assert names(path.parent) == ["file", "file.edgeglm-new"]
    write_atomically(path, [b"newer"])
    assert path.read_bytes() == b"newer"
    assert names(path.parent) == ["file"]


@posix
def test_a_link_in_the_way_is_let_alone(path: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "file.edgeglm-new").symlink_to(tmp_path / "precious")
    write_atomically(path, [b"new"])
    assert path.read_bytes() == b"new"
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert names(tmp_path) == ["file", "file.edgeglm-new", "precious"]


@pytest.mark.parametrize("name", ["file.new", "file.2.new", "file.tmp", ".file.swp", "file~"])
def test_files_of_others_beside_it_stay(name: str, path: Path) -> None:
    (path.parent / name).write_bytes(b"precious")
    write_atomically(path, [b"new"])
    assert (path.parent / name).read_bytes() == b"precious"
    assert names(path.parent) == sorted(["file", name])


@pytest.mark.parametrize("length", [243, 244, 254, 255])
def test_names_as_long_as_names_can_be(length: int, tmp_path: Path) -> None:
    for content in (b"old", b"new"):
        write_atomically(tmp_path / ("n" * length), [content])
        assert (tmp_path / ("n" * length)).read_bytes() == content
    assert len(list(tmp_path.iterdir())) == 1


WRITE = """
import sys
from pathlib import Path
from edge.runtime.atomic import write_atomically
print("ready", flush=True)
sys.stdin.readline()
for i in range(60):
    letter = sys.argv[2].encode()
    write_atomically(Path(sys.argv[1]), (letter * 20_000 for _ in range(20)))
"""


@posix
def test_several_processes_write_one_path_and_readers_see_whole_files(path: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITE, str(path), letter], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for letter in "abc"
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.close()
    whole = {b"old", *(letter * 400_000 for letter in (b"a", b"b", b"c"))}
    seen = set()
    while any(writer.poll() is None for writer in writers):
        content = path.read_bytes()
        assert content in whole
        seen.add(content[:1])
    assert {writer.returncode for writer in writers} == {0}
    assert len(seen) > 1
    assert path.read_bytes() in whole - {b"old"}
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.close()
    assert names(path.parent) == ["file"]


@pytest.mark.skipif(sys.platform == "win32", reason="modes of POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_who_may_read(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        for name in ("new", "old"):
            write_atomically(tmp_path / name, [b"x"], private=True)
        assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}
        for name in ("shared", "old"):  # whatever mode the file had that is replaced
            write_atomically(tmp_path / name, [b"x"], private=False)
            assert (tmp_path / name).stat().st_mode & 0o777 == 0o666 & ~umask
    finally:
        os.umask(before)
