"""Where an export may put a bundle, and that nothing which it did not make is ever removed for it.

Bundles here are a few small files and a manifest that names them; what is in them does not matter to the code under
test. An end at any moment is tried at every call by which files are moved or removed.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edge.export.output import work_folder
from edge.runtime.errors import OutputError, TensorError

OLD = {"openvino_model.bin": "old weights", "tokenizer.json": "old words", "only-old.onnx": "old graph"}
NEW = {"openvino_model.bin": "new weights", "tokenizer.json": "new words", "model.onnx": "new graph"}
MOVES = ("link", "rename", "replace", "unlink", "rmdir", "mkdir", "remove")  # of os, which pathlib calls as well


def make_bundle(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    manifest = {"schema_version": 2, "source_sha256": files["tokenizer.json"], "files": {name: {} for name in files}}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def export(out: Path, files: dict[str, str] = NEW, force: bool = True, meanwhile: Callable[[], object] = int) -> None:
    with work_folder(out, force, "key") as work:
        make_bundle(work.folder, files)
        work.journal.add({"done": "all"})
        meanwhile()


def contents(folder: Path) -> dict[str, str]:
    """Files below a folder and what is in them."""
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def whole(folder: Path, files: dict[str, str]) -> bool:
    """Whether a folder holds this bundle, whatever else is in it."""
    found = contents(folder)
    return "manifest.json" in found and files.items() <= found.items() and files["tokenizer.json"] in str(found)


def own(folder: Path) -> dict[str, str]:
    """Without the work folder."""
    return {name: text for name, text in contents(folder).items() if not name.startswith(".")}


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here is about a loss of power, and a shared disk takes a second for a few hundred of them."""
    monkeypatch.setattr(os, "fsync", int)


# What may stand at OUT.


def test_a_new_folder(tmp_path: Path) -> None:
    export(tmp_path / "deep" / "out", force=False)
    assert own(tmp_path / "deep" / "out").keys() == {*NEW, "manifest.json"}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


@pytest.mark.parametrize("given", ["out", "out/", "./out", "link", "link/", "sub/../out"])
def test_an_empty_folder_needs_no_force_and_stays_the_same_folder(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("out", "sub"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    before = (tmp_path / "out").stat().st_ino
    export(Path(given), force=False)
    assert contents(tmp_path / "out").keys() == {*NEW, "manifest.json"}
    assert (tmp_path / "out").stat().st_ino == before
    assert (tmp_path / "link").is_symlink()


def test_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_bundle(tmp_path / "here", OLD)
    monkeypatch.chdir(tmp_path / "here")
    export(Path())
    assert contents(Path().absolute()).keys() == {*NEW, "manifest.json"}  # still the folder that a shell is in
    assert whole(tmp_path / "here", NEW)


def test_the_folder_above_a_bundle_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_bundle(tmp_path / "here", OLD)
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(OutputError, match=r"holds 'here' and is not a bundle"):
        export(Path(".."))
    assert whole(tmp_path / "here", OLD)


def refusal(out: Path, force: bool = True) -> str:
    """What an export says before it begins."""
    with pytest.raises(OutputError) as found:
        export(out, force=force, meanwhile=lambda: pytest.fail("it began"))
    assert "\n" not in str(found.value)
    return str(found.value)


def test_places_that_cannot_take_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    (tmp_path / "dangling").symlink_to(tmp_path / "usb" / "glm4")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    assert "is a file" in refusal(tmp_path / "file")
    assert "is a file" in refusal(tmp_path / "pipe")
    assert "(Not a directory)" in refusal(tmp_path / "file" / "out")
    for out in (tmp_path / "dangling", tmp_path / "dangling" / "out"):
        assert "which does not exist; mount its disk" in refusal(out)
    assert "is a link to" in refusal(tmp_path / "loop")
    assert "(File name too long)" in refusal(tmp_path / ("n" * 256))
    assert "(File name too long)" in refusal(tmp_path.joinpath(*(["n" * 200] * 30)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "file", "loop", "pipe"]


@pytest.mark.parametrize("name", ["n" * 255, "語" * 85, "n" * 250, "a b\n c"])
def test_a_name_as_long_as_names_can_be(name: str, tmp_path: Path) -> None:
    export(tmp_path / name, force=False)
    export(tmp_path / name, OLD)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert whole(tmp_path / name, OLD)


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name, text in {"manifest.json": '{"name": "a web page"}', "config.json": "{}"}.items():
        (out / name).write_text(text)
    for content in ('{"name": "a web page"}', "no JSON", '{"files": [], "schema_version": 2, "source_sha256": ""}'):
        (out / "manifest.json").write_text(content)
        assert "yourself" in refusal(out)
        assert own(out) == {"manifest.json": content, "config.json": "{}"}
    (tmp_path / "precious").write_text("years of work")
    for name in ("../precious", str(tmp_path / "precious"), "..", ".", "", "a\0b", "sub/file"):
        outside = {"schema_version": 2, "source_sha256": "", "files": {name: {}}}
        (out / "manifest.json").write_text(json.dumps(outside))
        assert "which is not a file in the folder" in refusal(out)
    assert (tmp_path / "precious").exists()


@pytest.mark.parametrize("refused", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_a_disk_without_locks(refused: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another file system keeps the lock then, so that two exports to one place still meet."""
    flock = fcntl.flock

    def only_elsewhere(descriptor: int, operation: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().is_relative_to(tmp_path):
            raise OSError(refused, os.strerror(refused))
        flock(descriptor, operation)

    def second() -> None:
        with pytest.raises(OutputError, match="is being written by another export"):
            export(tmp_path / "out", OLD)

    monkeypatch.setattr(fcntl, "flock", only_elsewhere)
    monkeypatch.setattr("tempfile.tempdir", None)
    export(tmp_path / "out", meanwhile=second)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# What appears or changes at OUT while an export runs.


def put_folder(out: Path) -> None:
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")


def put_file(out: Path) -> None:
    out.write_text("years of work")


def put_link(out: Path) -> None:
    out.with_name("elsewhere").mkdir()
    out.symlink_to(out.with_name("elsewhere"))


def put_bundle(out: Path) -> None:
    make_bundle(out, OLD)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("put", [put_folder, put_file, put_link, put_bundle])
def test_what_appears_meanwhile_stays(put: Callable[[Path], None], force: bool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(OutputError, match=r"appeared while the export ran.*kept as (.*)/\.out\.partial/bundle: move"):
        export(out, force=force, meanwhile=lambda: put(out))
    assert whole(tmp_path / ".out.partial" / "bundle", NEW)
    before = contents(out) if out.is_dir() else out.read_text()
    out.rename(tmp_path / "moved")
    assert before == (contents(tmp_path / "moved") if (tmp_path / "moved").is_dir() else "years of work")
    with work_folder(out, False, "key") as work:
        assert work.journal.steps == [{"done": "all"}]
    assert whole(out, NEW)


def test_an_empty_folder_that_appears_is_no_hindrance(tmp_path: Path) -> None:
    export(tmp_path / "out", force=False, meanwhile=(tmp_path / "out").mkdir)
    assert whole(tmp_path / "out", NEW)


@pytest.mark.parametrize("name", ["thesis.txt", "manifest.json", "model.onnx"])
def test_what_appears_in_an_empty_folder_stays(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(OutputError, match=r"kept as .*/out/\.export\.partial/bundle"):
        export(out, force=False, meanwhile=lambda: (out / name).write_text("years of work"))
    assert own(out) == {name: "years of work"}
    (out / name).unlink()
    with work_folder(out, False, "key") as work:
        assert work.journal.steps == [{"done": "all"}]
    assert contents(out).keys() == {*NEW, "manifest.json"}


def test_another_folder_at_the_place_of_the_bundle_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_bundle(out, OLD)

    def change() -> None:
        out.rename(tmp_path / "moved")
        put_folder(out)

    with pytest.raises(OutputError, match="was removed while the export worked in it"):  # it went along
        export(out, meanwhile=change)
    assert own(out) == {"thesis.txt": "years of work"}
    assert whole(tmp_path / "moved", OLD)


def test_another_bundle_at_the_place_of_the_bundle_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_bundle(out, OLD)
    other = OLD | {"tokenizer.json": "other words"}
    with pytest.raises(OutputError, match="changed while the export ran"):
        export(out, meanwhile=lambda: make_bundle(out, other))
    assert whole(out, other)


# --force: the old bundle goes last, and only what its manifest names.


def test_files_that_the_manifest_does_not_name_stay(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_bundle(out, OLD)
    (out / "kiosk.prefix").write_text("my prefix")
    (out / "cache").mkdir()
    (out / "cache" / "drafts").write_text("my drafts")
    export(out)
    assert contents(out).keys() == {*NEW, "manifest.json", "kiosk.prefix", "cache/drafts"}
    assert (out / "kiosk.prefix").read_text() == "my prefix"
    assert whole(out, NEW)


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "chat_template.jinja", "openvino_detokenizer.xml"])
def test_a_stranger_where_the_new_bundle_needs_a_file_is_refused(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_bundle(out, OLD)
    (out / name).write_text("mine")
    assert f"holds '{name}'" in refusal(out)
    assert own(out) == {**contents(out), name: "mine"}
    assert whole(out, OLD)


def test_a_folder_where_the_bundle_has_a_file_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_bundle(out, OLD)
    (out / "tokenizer.json").unlink()
    put_folder(out / "tokenizer.json")
    assert "holds 'tokenizer.json'" in refusal(out)
    assert own(out)["tokenizer.json/thesis.txt"] == "years of work"


class Ended(BaseException):
    """Raised where an interrupt would be."""


def count_moves(monkeypatch: pytest.MonkeyPatch, end_at: int, after: bool) -> list[int]:
    """Have the n-th move or removal raise, before or after it is done; counts all of them."""
    calls = [0]

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            calls[0] += 1
            if calls[0] == end_at and not after:
                raise Ended
            result = function(*args, **options)
            if calls[0] == end_at and after:
                raise Ended
            return result

        return call

    for name in MOVES:
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    return calls


def moves_of_a_replacement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str = "counted") -> int:
    with monkeypatch.context() as patch:
        make_bundle(tmp_path / out, OLD)
        calls = count_moves(patch, 0, False)
        export(tmp_path / out)
    return calls[0]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("there", [False, True], ids=["empty", "bundle"])
def test_an_interrupt_at_any_move(there: bool, after: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old bundle or the new one is whole, or the folder is empty as it was; strangers stay where they were."""
    moves, seen = moves_of_a_replacement(tmp_path, monkeypatch), set()
    assert moves > 15
    for end_at in range(1, moves + 1):
        out = tmp_path / f"out{end_at}{after}"
        out.mkdir()
        if there:
            make_bundle(out, OLD)
            (out / "kiosk.prefix").write_text("my prefix")
        with monkeypatch.context() as patch:
            count_moves(patch, end_at, after)
            try:
                export(out, force=there)
            except Ended:
                seen.add("ended")
            except OutputError as error:  # the work folder's own file could not be made
                seen.add(str(error))
        if there:
            assert (out / "kiosk.prefix").read_text() == "my prefix"
            assert whole(out, OLD) or whole(out, NEW)
        else:
            assert not own(out) or whole(out, NEW)
        if not whole(out, NEW):
            export(out, force=there)
        assert own(out).keys() - {"kiosk.prefix"} == {*NEW, "manifest.json"}
    assert "ended" in seen


KILLED = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.export.test_output import MOVES, export
for number in range(1, int(sys.argv[3]) + 1):
    if os.fork() == 0:
        calls = 0
        def dying(function):
            def call(*args, **options):
                global calls
                calls += 1
                if calls == number and sys.argv[4] == "before":
                    os._exit(0)
                result = function(*args, **options)
                if calls == number:
                    os._exit(0)
                return result
            return call
        for name in MOVES:
            setattr(os, name, dying(getattr(os, name)))
        os.fsync = int  # nothing here is about a loss of power
        export(Path(sys.argv[2]) / f"out{number}")
        os._exit(0)
    os.wait()
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("there", [False, True], ids=["empty", "bundle"])
def test_a_kill_at_any_move_is_repaired(
    there: bool, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves = moves_of_a_replacement(tmp_path, monkeypatch)
    outs = [tmp_path / f"out{number}" for number in range(1, moves + 1)]
    for out in outs:
        out.mkdir()
        if there:
            make_bundle(out, OLD)
            (out / "kiosk.prefix").write_text("my prefix")
    root = Path(__file__).parents[2]
    arguments = [str(root), str(tmp_path), str(moves), when]
    subprocess.run([sys.executable, "-c", KILLED, *arguments], check=True, timeout=60)
    broken = 0
    for out in outs:
        before = contents(out)
        broken += "manifest.json" not in before
        if there:
            texts = list(before.values())
            assert all(text in texts for text in OLD.values()) or whole(out, NEW)
            assert before["kiosk.prefix"] == "my prefix"
        with pytest.raises(TensorError), work_folder(out, True, "another key"):  # it repairs, and comes to nothing
            raise TensorError("the input is wrong")
        if there:
            assert whole(out, OLD) or whole(out, NEW)
            assert not [name for name in contents(out) if name.startswith(".")]
        export(out, force=True)
        assert own(out).keys() - {"kiosk.prefix"} == {*NEW, "manifest.json"}
    assert broken > 3  # moments between two moves were among them


def test_an_interrupt_while_an_interrupt_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old bundle is found and brought back by the next export, whatever that one comes to."""
    seen = 0
    for end_at in range(12, 20):
        out = tmp_path / f"out{end_at}"
        make_bundle(out, OLD)
        with monkeypatch.context() as patch:
            calls = count_moves(patch, end_at, True)
            patch.setattr("edge.export.destination._restore", lambda *_: (_ for _ in ()).throw(Ended))
            with pytest.raises(Ended) as found:
                export(out)
            assert calls[0] >= end_at
        seen += not (out / "manifest.json").exists()
        assert set(OLD.values()) <= set(contents(out).values())
        assert "is kept in" in found.value.__notes__[0]
        with pytest.raises(TensorError), work_folder(out, True, "another key"):
            raise TensorError("the input is wrong")
        assert whole(out, OLD)
        assert own(out).keys() == {*OLD, "manifest.json"}
    assert seen > 3


# What an error keeps.


def test_an_error_of_the_input_keeps_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        raise TensorError("NaN")

    with pytest.raises(TensorError):
        export(tmp_path / "out", meanwhile=fail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), SystemExit(3), RuntimeError("of a library")])
def test_an_error_that_may_pass_keeps_the_work(error: BaseException, tmp_path: Path) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as found:
        export(tmp_path / "out", meanwhile=fail)
    note = f"what is done is kept in {tmp_path}/.out.partial: the same command resumes there"
    assert found.value.__notes__[0].startswith(note)
    with work_folder(tmp_path / "out", False, "key") as work:
        assert work.journal.steps == [{"done": "all"}]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EACCES])
def test_what_the_system_refuses_is_one_line_and_keeps_the_work(code: int, tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError(code, os.strerror(code), str(tmp_path / "file"))

    with pytest.raises(OutputError, match=os.strerror(code)) as found:
        export(tmp_path / "out", meanwhile=fail)
    assert "the same command resumes there" in str(found.value)
    assert ("the disk is full" in str(found.value)) == (code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
    assert (tmp_path / ".out.partial").is_dir()


def test_nothing_done_keeps_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), work_folder(tmp_path / "out", False, "key"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_work_folder_that_is_removed_is_one_line(tmp_path: Path) -> None:
    def remove() -> None:
        subprocess.run(["rm", "-r", str(tmp_path / ".out.partial")], check=True)

    with pytest.raises(OutputError, match="was removed while the export worked in it"):
        export(tmp_path / "out", meanwhile=remove)
    assert list(tmp_path.iterdir()) == []


def test_work_from_before_there_was_the_folder_is_gone_on_with(tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / "out", meanwhile=interrupt)
    (tmp_path / "out").mkdir()
    with work_folder(tmp_path / "out", False, "key") as work:
        assert work.journal.steps == [{"done": "all"}]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_something_else_in_place_of_the_work_folder_stays(kind: str, tmp_path: Path) -> None:
    partial = tmp_path / ".out.partial"
    match kind:
        case "file":
            put_file(partial)
        case "link":
            put_folder(tmp_path / "elsewhere")
            partial.symlink_to(tmp_path / "elsewhere")
        case "folder":
            put_folder(partial)
    before = contents(tmp_path)
    assert "is in the way" in refusal(tmp_path / "out")
    assert contents(tmp_path) == before


# Mounts. They need a name space of their own, so root.


def mounted(script: str, folder: Path) -> list[str]:
    """Lines that a shell script prints in which mounts are possible and disappear; $EXPORT OUT makes a bundle."""
    root = Path(__file__).parents[2]
    make = (
        f"{sys.executable} -c \"import sys; sys.path.insert(0, '{root}'); from pathlib import Path; "
        'from tests.export.test_output import export; export(Path(sys.argv[1]), force=sys.argv[2:] != [])"'
    )
    probe = subprocess.run(
        ["unshare", "-m", "mount", "-t", "tmpfs", "none", str(folder)], capture_output=True, check=False
    )
    if probe.returncode:
        pytest.skip("no mounts without root")
    script = f'set -e; cd {folder}; export_to() {{ {make} "$@" 2>&1 | tail -1; }}\n{script}'
    command = ["unshare", "-m", "bash", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


BUNDLE = sorted([*NEW, "manifest.json"])


@pytest.mark.parametrize("mount", ["mount --bind disk out", "mount -t tmpfs none out"], ids=["bound", "a disk"])
def test_a_mount_point(mount: str, tmp_path: Path) -> None:
    found = mounted(f"mkdir disk out; {mount}; export_to out; export_to out force; ls -A out; echo; ls -A .", tmp_path)
    assert found == [*BUNDLE, "", "disk", "out"]


def test_a_mount_point_below_a_folder_that_is_read_only(tmp_path: Path) -> None:
    script = "mkdir -p ro/out disk; mount --bind ro ro; mount --bind disk ro/out; mount -o remount,bind,ro ro; "
    assert mounted(script + "export_to ro/out; ls -A ro/out", tmp_path) == BUNDLE
    (refused,) = mounted(
        "mkdir other; mount --bind other other; mount -o remount,bind,ro other; export_to other/o", tmp_path
    )
    assert "(Read-only file system); choose another folder" in refused
    (refused,) = mounted("mount --bind other other; mount -o remount,bind,ro other; export_to other", tmp_path)
    assert "(Read-only file system); choose another folder" in refused


def test_a_disk_is_mounted_at_out_while_the_export_runs(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    script = f"""
cat > run.py <<'END'
import subprocess, sys
sys.path.insert(0, '{root}')
from pathlib import Path
from tests.export.test_output import export
export(Path("out"), meanwhile=lambda: subprocess.run("mkdir out; mount -t tmpfs none out", shell=True, check=True))
END
{sys.executable} run.py 2>&1 | tail -1
ls -A .out.partial/bundle
"""
    said, *files = mounted(script, tmp_path)
    assert "OutputError: out cannot be put in place (Device or resource busy); the finished bundle is kept as" in said
    assert files == BUNDLE
