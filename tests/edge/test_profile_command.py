"""`edge profile` as a user has it: real processes on a tiny checkpoint, killed and resumed."""

from __future__ import annotations

import importlib.util
import io
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge.cli import main
from edge.commands.tables import cell_width
from edge.export.pipeline import export
from edge.profiles.accuracy import evaluate
from edge.profiles.record import read_profile
from edge.profiles.reference_file import open_reference
from edge.runtime import extras
from edge.runtime.bundle import open_bundle
from edge.runtime.engines.choice import open_engine
from edge.runtime.settings import EngineSettings
from tests.processes import children, gone
from tests.profiles.rows import profile, row

EDGE = [sys.executable, "-m", "edge", "profile"]
OPTIONS = ["--recipes", "int8-asym", "--tokens", "128", "--window", "32", "--no-speed", "--text", __file__]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*EDGE, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def killed(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A profile that was killed when its first cell was there; the folder, and what was in that cell's file."""
    out = tmp_path_factory.mktemp("profile") / "out"
    process = subprocess.Popen([*EDGE, "run", tiny_checkpoint, out, *OPTIONS], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    with process.stderr:
        line = process.stderr.readline()
        deadline = time.monotonic() + 60
        while not (workers := children(process.pid)) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    process.wait()
    assert line.startswith("[3/4] int8-asym/openvino: KLD 0.0")
    assert workers, "the second cell was under way"
    assert all(gone(pid) for pid in workers), "a step outlived its sweep"
    (cell,) = (out / "cells").iterdir()
    assert read_profile(out).so_far == "1 of 2 settings so far"
    assert "1 of 2 settings so far" in (out / "profile.md").read_text()
    return out, cell.read_bytes()


@pytest.fixture(scope="module")
def done(killed: tuple[Path, bytes], tiny_checkpoint: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The same command again, which ends."""
    out = killed[0]
    return out, run("run", tiny_checkpoint, out, *OPTIONS, "--json", "--fail-if", "kld<1", "--fail-if", "bytes>1e9")


def test_killed_goes_on_and_measures_nothing_twice(
    killed: tuple[Path, bytes], done: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    out, first = killed
    lines = done[1].stderr.splitlines()
    assert len(lines) == 2, done[1].stderr
    assert lines[0].startswith("[2/2] int8-asym/onnx: KLD 0.0"), "the reference is read, the bundle is there, one cell"
    assert first in [path.read_bytes() for path in (out / "cells").iterdir()]
    assert len(list((out / "cells").iterdir())) == 2
    assert not (out / "bundles").exists()


def test_limits_decide_the_exit_code(done: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, process = done
    assert process.returncode == 1
    line = process.stderr.splitlines()[-1]
    assert line.startswith("edge: over the limit: int8-asym/openvino (kld 0.0")
    assert "; int8-asym/onnx (kld 0.0" in line
    assert "bytes" not in line
    assert json.loads(process.stdout) == json.loads((out / "profile.json").read_text()), (
        "results are there all the same"
    )


def test_figures_are_those_of_a_measurement_by_hand(
    done: tuple[Path, subprocess.CompletedProcess[str]], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Export, engine and reference in this process, without any of the machinery."""
    out = done[0]
    rows = {row.engine: row for row in read_profile(out).rows}
    manifest = export(tiny_checkpoint, tmp_path / "bundle", "int8-asym")
    reference = open_reference(out / "reference.npz")
    assert reference.windows.ids.shape == (4, 32)
    for engine in ("openvino", "onnx"):
        found = evaluate(open_engine(open_bundle(tmp_path / "bundle"), EngineSettings(engine)), reference)
        assert np.allclose(rows[engine].accuracy.per_window_kld, found.per_window_kld, rtol=1e-3, atol=1e-6)
        assert (rows[engine].weight_bytes, rows[engine].bits_per_weight) == (
            manifest.weight_bytes, manifest.bits_per_weight,
        )  # fmt: skip
        assert rows[engine].export_s is not None
        assert rows[engine].load_s is None


def test_report_is_made_anew(
    done: tuple[Path, subprocess.CompletedProcess[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    out = done[0]
    names = ("profile.md", "profile.html", "pareto_bytes.svg", "pareto_bytes.png")
    before = {name: (out / name).read_bytes() for name in names}
    for name in names:
        (out / name).unlink()
    assert main(["profile", "report", str(out)]) == 0
    assert {name: (out / name).read_bytes() for name in names} == before
    shown = capsys.readouterr().out
    assert "int8-asym  openvino" in shown
    assert "KLD" in shown


def test_report_and_compare_of_a_sweep_that_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unfinished = replace(profile(row("a", kld=0.3), row("b", kld=0.2)), num_cells=8)
    (tmp_path / "profile.json").write_text(unfinished.to_json())
    assert main(["profile", "report", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("3 of 8 settings so far: a sweep is still running")
    assert "3 of 8 settings so far" in (tmp_path / "profile.html").read_text()
    assert main(["profile", "compare", f"{tmp_path}:a/onnx", f"{tmp_path}:b/onnx"]) == 0
    found = capsys.readouterr()
    assert "B is better" in found.out
    assert found.err.splitlines() == [f"edge: {tmp_path}:{name}/onnx: 3 of 8 settings so far" for name in "ab"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("width", [45, 80, 100])
def test_the_table_fits_the_terminal(width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        row(f"int4-asym-g64-{name}", kld=kld, tps=tps) for name, kld, tps in (("awq", 0.3, 150.0), ("gptq", 0.2, 90.0))
    ]
    (tmp_path / "profile.json").write_text(profile(*rows).to_json())
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["profile", "report", str(tmp_path)]) == 0
    lines = screen.getvalue().splitlines()
    table = lines[[line.startswith("recipe") for line in lines].index(True) :]
    assert all(cell_width(line) <= width for line in table if str(tmp_path) not in line)
    assert "KLD" in table[0]
    assert ("tok/s" in table[0]) == (width > 45)
    assert "The same in every row: engine onnx" in lines[0]
    assert ("left out" in screen.getvalue()) == (width == 45)


def test_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "profile.json").write_text(profile(row("a", kld=0.3), row("b", kld=0.2)).to_json())
    words = ["profile", "compare", f"{tmp_path}:a/onnx", f"{tmp_path}:b/onnx"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "KLD  A 0.3, B 0.2, B - A = -0.10000" in shown
    assert "B is better" in shown
    assert main([*words, "--json"]) == 0
    (pair,) = json.loads(capsys.readouterr().out)["pairs"]
    assert (pair["a"], pair["b"], pair["kld"]["better"]) == ("a/onnx", "b/onnx", "b")
    assert pair["kld"]["mean"] == pytest.approx(-0.1)


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["--recipes", "int3"], "recipe 'int3' is unknown", 2),
        (["--engines", "tensorrt"], "engine 'tensorrt' is unknown", 2),
        (["--kv-precision", "f8"], "kv precision 'f8' is unknown, known are f32", 2),
        (["--fail-if", "kld"], "limit 'kld' does not read as METRIC OP NUMBER", 2),
        (["--fail-if", "tps<5", "--no-speed"], "--fail-if tps<5 needs speed; leave --no-speed out", 2),
        (["--text", "nowhere.txt"], "nowhere.txt cannot be read", 1),
    ],
)
def test_bad_input(
    arguments: list[str],
    message: str,
    code: int,
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["profile", "run", str(tiny_checkpoint), str(tmp_path / "out"), "--window", "32", *arguments]) == code
    found = capsys.readouterr()
    assert message in found.err
    assert (found.out, len(found.err.splitlines())) == ("", 1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words", [["run", "a"], ["compare", "a"], ["run", "a", "b", "c"], ["report", "a", "b"]], ids=" ".join
)
def test_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(words, capsys)
    assert said.startswith("edge")
    assert said.endswith(" --help\n")


@pytest.mark.parametrize("words", [[], ["glm-4-9b-chat-hf", "out"], ["out"]], ids=" ".join)
def test_a_checkpoint_without_an_action_is_told_the_action(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """As it was typed before there were actions."""
    said = refused(words, capsys)
    assert said.startswith("edge profile: ")
    assert said.endswith("; to measure a checkpoint: edge profile run CHECKPOINT OUT; see edge profile --help\n")


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line about a wrong usage."""
    with pytest.raises(SystemExit) as stopped:
        main(["profile", *words])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_a_checkpoint_may_have_the_name_of_an_action(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["profile", "run", "compare", "out"]) == 1
    assert "compare" in capsys.readouterr().err
    assert main(["profile", "report", "run"]) == 1
    assert "run" in capsys.readouterr().err


def test_missing_package_is_named(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr("edge.runtime.extras.find_spec", lambda name: None if name == "matplotlib" else real(name))
    assert main(["profile", "run", str(tiny_checkpoint), str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == f"edge: matplotlib is not installed; {extras.install_command('profile')}\n"
