"""Units of updates are read by systemd's own parser, and their command by ours."""

from __future__ import annotations

import configparser
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from edge.cli import build_parser

FOLDER = Path(__file__).parents[2] / "deploy" / "systemd"
ANALYZE = shutil.which("systemd-analyze")
SH = shutil.which("sh")


def unit(name: str) -> configparser.ConfigParser:
    found = configparser.ConfigParser(interpolation=None, delimiters="=", comment_prefixes="#")
    found.optionxform = str  # type: ignore[assignment, method-assign]  # as its documentation has it
    found.read(FOLDER / name, encoding="utf-8")
    return found


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not here")
@pytest.mark.parametrize("name", ["edge-update.service", "edge-update.timer"])
def test_systemd_reads_it(name: str) -> None:
    assert ANALYZE is not None
    told = subprocess.run([ANALYZE, "verify", str(FOLDER / name)], capture_output=True, text=True, check=False).stderr
    lines = [line for line in told.splitlines() if "edge-update" in line]
    assert [line for line in lines if "/opt/edge/bin/edge is not executable" not in line] == []


def test_the_command_parses() -> None:
    program, *words = shlex.split(unit("edge-update.service")["Service"]["ExecStart"])
    assert program == "/opt/edge/bin/edge"
    given = build_parser().parse_args(words)
    assert (given.verb, given.action, given.keys) == ("update", "install", ["/etc/edge/release.key.pub"])
    assert given.dir.startswith(unit("edge-update.service")["Service"]["ReadWritePaths"])
    assert given.then == "/srv/kiosk/after-update.sh"


@pytest.mark.skipif(SH is None, reason="no shell is here")
def test_the_script_is_one_for_any_shell() -> None:
    assert SH is not None
    script = FOLDER / "after-update.sh"
    subprocess.run([SH, "-n", str(script)], check=True)
    assert script.stat().st_mode & 0o111
    text = script.read_text(encoding="utf-8").replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if line.startswith('"$edge" prefix build')]
    given = build_parser().parse_args(shlex.split(line)[1:])
    assert (given.verb, given.action, given.engine) == ("prefix", "build", "onnx")
    assert "systemctl restart edge-kiosk.service" in text
