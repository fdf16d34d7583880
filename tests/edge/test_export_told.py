"""What `edge export` says before, while and after it works, and what it keeps when it is stopped.

Processes are interrupted for real; the slow tests beside the pipeline's (tests/export/test_endings.py) do so at random
moments and on a disk that is full.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edge.cli import main
from edge.commands.export_told import next_command
from edge.export.compress.recipes import DEFAULT
from edge.export.output import told_kept
from edge.runtime.bundle import open_bundle

START = re.compile(
    r"edge: [\d.]+ million parameters to (at most )?[\d.]+ kB of weights; takes about \d+ s, [\d.]+ MB of memory "
    r"\([\d.]+ GB free\) and [\d.]+ MB of disk \([\d.]+ GB free\)"
)
# A child that gets a signal when block 0 of 3 is done. It imports nothing that has threads, as `edge` does not.
STOPPED = """
import os, signal, sys
from edge.export.journal import Journal
add = Journal.add
def stopping(self, step):
    add(self, step)
    if len(self.steps) == 2:
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
Journal.add = stopping
from edge.cli import main
sys.exit(main(sys.argv[2:]))
"""


def stop(number: signal.Signals, checkpoint: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", STOPPED, number.name, "export", str(checkpoint), str(out), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_before_and_after(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line of what it takes, one of the checks, one of what was made, one of what comes next; nothing else."""
    out = tmp_path / "out"
    assert main(["export", str(tiny_checkpoint), str(out)]) == 0
    said = capsys.readouterr()
    (start,) = said.err.splitlines()
    assert START.fullmatch(start), start
    checked, made, following = said.out.splitlines()
    assert re.fullmatch(
        r"  5 checks passed: the model is as exact as its rounded weights allow; (block \d|embedding|head) least so, "
        r"with \d\.\d times the usual effect of rounding \(8 would fail\)",
        checked,
    )
    manifest = open_bundle(out).manifest
    assert manifest.recipe == DEFAULT
    worst = max(manifest.checks, key=lambda check: check.error / check.expected)
    assert f"{worst.stage} least so, with {worst.error / worst.expected:.1f} times" in checked
    assert made.startswith(f"{out}: {DEFAULT}, ")
    assert following == f"next: edge chat {out}"


def test_everything_is_told_to_those_who_ask(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["export", str(tiny_checkpoint), str(out), "--verbose", "--recipe", "int8-asym"]) == 0
    lines = capsys.readouterr().out.splitlines()
    stages = ["embedding", "block 0", "block 1", "block 2", "head"]
    assert [line[2:12].strip() for line in lines if "rounding explains" in line] == stages
    assert any("golden KLD" in line for line in lines)
    assert main(["export", str(tiny_checkpoint), str(out), "--force", "--json", "--recipe", "fp32"]) == 0
    told = json.loads(capsys.readouterr().out)
    manifest = open_bundle(out).manifest
    assert (told["bundle"], told["name"], told["recipe"]) == (str(out), str(out), "fp32")
    assert (told["weight_bytes"], told["parameters"]) == (manifest.weight_bytes, manifest.spec.num_parameters)
    assert [check["stage"] for check in told["checks"]] == stages
    assert told["next"] == f"edge chat {out}"
    assert main(["export", str(tiny_checkpoint), str(tmp_path / "other"), "--dry-run", "--json"]) == 0
    forecast = json.loads(capsys.readouterr().out)
    assert forecast["recipe"] == DEFAULT
    assert forecast["least_bytes"] == forecast["most_bytes"] < forecast["bundle_bytes"] <= forecast["peak_bytes"]
    assert forecast["weights"].keys() == manifest.tensors.keys()
    assert not (tmp_path / "other").exists()


def test_float_weights_are_not_said_to_be_rounded(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(tiny_checkpoint), str(tmp_path / "out"), "--recipe", "fp32"]) == 0
    assert "  5 checks passed: what was written computes what the checkpoint does\n" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_export_can_be_paused(
    number: signal.Signals, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is done is kept and used, which both processes say; with --fresh it is not."""
    out, work = tmp_path / "out", tmp_path / ".out.partial"
    done = stop(number, tiny_checkpoint, out)
    assert done.returncode == (130 if number == signal.SIGINT else -number)
    start, stopped, *last = done.stderr.splitlines()
    assert START.fullmatch(start)
    ended = "" if number == signal.SIGINT else f"ended by {number.name}; "
    kept = re.escape(f"what is done is kept in {work}: the same command resumes there, --fresh starts anew")
    assert re.fullmatch(rf"edge: {ended}stopped after block [012] of 3; {kept}", stopped), stopped
    assert last == (["edge: interrupted"] if number == signal.SIGINT else [])
    if number == signal.SIGTERM:
        assert main(["export", str(tiny_checkpoint), str(out), "--fresh"]) == 0
        assert "resuming" not in capsys.readouterr().err
    else:
        assert main(["export", str(tiny_checkpoint), str(out)]) == 0
        _, resumed = capsys.readouterr().err.splitlines()
        assert re.fullmatch(
            r"edge: resuming after block [012] of 3: [\d.]+ kB of weights are there; --fresh starts anew", resumed
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    open_bundle(out).check_hashes()


def test_strangers_in_a_work_folder_stay(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Something else at the name of a work folder."""
    work = tmp_path / ".out.partial"
    work.mkdir()
    (work / "thesis.txt").write_text("years of work")
    assert main(["export", str(tiny_checkpoint), str(tmp_path / "out"), "--fresh"]) == 1
    assert (work / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    "journal", ["", "{}", "[]", '{"facts": {}, "steps": []}', '{"facts": {"blocks": "x"}, "steps": [1]}']
)
def test_a_damaged_journal_tells_less(journal: str, tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "journal.json").write_text(journal)
    assert told_kept(tmp_path).startswith("what is done is kept in ")
    told = {"facts": {"blocks": "30"}, "steps": [{}] * 8}
    (tmp_path / "journal" / "journal.json").write_text(json.dumps(told))
    assert told_kept(tmp_path).startswith("stopped after block 7 of 30; what is done is kept in ")


@pytest.mark.parametrize(
    ("called", "template", "expected"),
    [
        ("glm4-int4", True, "edge chat glm4-int4"),
        ("C:\\models\\glm 4", True, 'edge chat "C:\\models\\glm 4"'),
        ("-x", True, "edge chat ./-x"),
        ("模型", True, "edge chat 模型"),
        ("base", False, 'edge run base "Once upon a time" --raw'),
    ],
)
def test_what_comes_next(called: str, template: bool, expected: str, tmp_path: Path) -> None:
    if template:
        (tmp_path / "chat_template.jinja").touch()
    assert next_command(tmp_path, called) == expected
