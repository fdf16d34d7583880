"""`edge export --dry-run` tells what the export would do, refuses what it would refuse, and writes nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edge.cli import main
from edge.commands.export_dry_run import duration
from edge.commands.weight_rows import alike

# Every call by which Python opens a file to write, makes, renames or removes something is told to this hook.
AUDITED = """
import os, sys
writes = []
def hook(event, args):
    if event == "open" and isinstance(args[0], (str, bytes, os.PathLike)):
        flags = args[2] if isinstance(args[2], int) else 0
        if (args[1] and set(args[1]) & set("wax+")) or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            if os.fsdecode(args[0]) != os.devnull:
                writes.append((event, os.fsdecode(args[0])))
    elif event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate"):
        writes.append((event, str(args[0])))
sys.addaudithook(hook)
from edge.cli import main
code = main(sys.argv[1:])
assert not writes, writes
sys.exit(code)
"""


def listing(folder: Path) -> list[tuple[str, int, int]]:
    """Every path below a folder with its size and time of change."""
    return [(str(p), p.lstat().st_size, p.lstat().st_mtime_ns) for p in sorted(folder.rglob("*"))]


def audited(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-B", "-c", AUDITED, *map(str, arguments)]
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)


@pytest.mark.parametrize("options", [["--recipe", "int4-asym-g128-awq-gptq"], ["--max-kld", "0.5"]])
def test_nothing_is_written(options: list[str], tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Not at OUT, whose parent cannot be written, not beside it, and nowhere else that Python is asked to write."""
    parent = tmp_path / "read-only"
    parent.mkdir()
    parent.chmod(0o555)
    before = listing(tmp_path), listing(tiny_checkpoint)
    done = audited("export", tiny_checkpoint, parent / "out", "--dry-run", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (listing(tmp_path), listing(tiny_checkpoint)) == before
    assert f"{parent / 'out'}: nothing was written" in done.stdout
    assert re.search(r"time: about \d", done.stdout)


def test_the_hook_hears_what_an_export_writes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    done = audited("export", tiny_checkpoint, tmp_path / "out", "--recipe", "fp32", cwd=tmp_path)
    assert done.returncode == 1
    assert "AssertionError" in done.stderr
    assert "manifest.json" in done.stderr


def test_what_it_tells_is_what_the_export_makes(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["export", str(tiny_checkpoint), str(out), "--recipe", "int4-asym-g128"]
    assert main([*arguments, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert not out.exists()
    assert main(arguments) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    total = f"{manifest['weight_bytes']:,} bytes of weights, {manifest['bits_per_weight']:.2f} bits per weight"
    assert f"int4-asym-g128: {total}" in told
    rows = [re.split(r"\s{2,}", line) for line in told.splitlines()]
    sizes = {row[0]: row for row in rows}
    shape = " x ".join(map(str, manifest["tensors"]["layers.0.attn.qkv.weight"]["shape"]))
    assert sizes["layers.0-2.attn.qkv.weight"][1:4] == ["3", shape, "int4-asym-g64"]
    capsys.readouterr()
    assert main(["inspect", str(out)]) == 0
    shown = capsys.readouterr().out
    for name in ("layers.0-2.attn.qkv.weight", "layers.0-2.mlp.down.weight", "embed.weight", "norm.weight"):
        assert name in sizes
        assert any(line.startswith(f"{name} ") for line in shown.splitlines())


def test_it_refuses_what_the_export_refuses(
    tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = str(tiny_checkpoint), str(tmp_path / "out")
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "letter.txt").touch()
    usage = ("recipe 'int5' is unknown", "the smallest that this model can be is", "--dry-run cannot tell the weights")
    for arguments, message in [
        ([source, str(tiny_bundle)], "exists already; choose another folder, or give --force"),
        ([source, str(tmp_path / "strange")], "holds 'letter.txt' and is not a bundle"),
        ([str(tmp_path / "none"), out], "no such path"),
        (["hf:no-org/no-model", out], "no-org/no-model"),
        ([source, out, "--recipe", "int5"], "recipe 'int5' is unknown"),
        ([source, out, "--max-bytes", "5000"], "the smallest that this model can be is"),
        ([source, out, "--frontend", "optimum"], "--dry-run cannot tell the weights"),
    ]:
        assert main(["export", *arguments, "--dry-run"]) == (2 if message in usage else 1), arguments
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1, error
    assert main(["export", source, str(tiny_bundle), "--force", "--dry-run"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["strange"]


@pytest.mark.parametrize("value", ["", "0", "yes", "a\nb", "\udce9", "x" * 5000])
def test_the_option_takes_no_value(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["export", "source", "out", f"--dry-run={value}"])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("edge")
    assert "--dry-run" in error


def test_layers_that_are_alike_are_one_row() -> None:
    said = {f"layers.{layer}.mlp.down.weight": "a" if layer != 3 else "b" for layer in range(12)} | {"norm.weight": "a"}
    rows = {name: (len(names), what) for name, names, what in alike(said)}
    assert rows == {
        "layers.0-2,4-11.mlp.down.weight": (11, "a"),
        "layers.3.mlp.down.weight": (1, "b"),
        "norm.weight": (1, "a"),
    }


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (99, "99 s"), (100, "2 min"), (5399, "90 min"), (5400, "1.5 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
