"""`edge update` as it is typed: keys, a release, an installation with the real self-test, and the way back."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from edge import cli
from edge.runtime.bundle import open_bundle
from edge.runtime.errors import SettingsError, UpdateError
from edge.update.processes import self_test, tell, words_of
from edge.update.status import status_of
from tests.edge.update.shop import Machine, Shop
from tests.forging import forge_file


def said(capsys: pytest.CaptureFixture[str], *words: str | Path, code: int = 0) -> str:
    assert cli.main(["update", *map(str, words)]) == code
    captured = capsys.readouterr()
    return captured.err if code else captured.out


def test_from_a_key_to_a_bundle_that_is_used(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, folder, key = tmp_path / "made", tmp_path / "kiosk", tmp_path / "release.key"
    shutil.copytree(tiny_bundle, made)
    assert "keep it secret" in said(capsys, "key", key)
    assert "release 7, signed" in said(capsys, "sign", made, "--key", key, "--sequence", "7")
    command = ("install", folder, made, "--key", f"{key}.pub")
    shown = said(capsys, *command, "--then", f"{sys.executable} -c pass")
    assert shown.index("openvino_model.bin") < shown.index("self-test: every sha256")
    assert f"{folder}: release 7 is used now" in shown
    assert f"{folder}: release 7 is used already\n" == said(capsys, *command)
    assert json.loads(said(capsys, *command, "--json")) == {
        "sequence": 7,
        "changed": False,
        "fetched_bytes": 0,
        "here_bytes": 0,
    }
    assert said(capsys, "status", folder) == f"{folder}: release 7 is used, in slot a\n"
    assert json.loads(said(capsys, "status", folder, "--json"))["current"] == 7
    assert "has no other bundle" in said(capsys, "rollback", folder, code=1)


def test_a_bundle_that_computes_something_else_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    """Whole and signed, with weights that are none: every sha256 is right, and the golden logits are not."""
    made = tmp_path / "made"
    shutil.copytree(tiny_bundle, made)
    weights = bytearray((made / "openvino_model.bin").read_bytes())
    half = slice(len(weights) // 4, len(weights) // 2)
    weights[half] = bytes(byte ^ 0x15 for byte in weights[half])
    forge_file(made, "openvino_model.bin", bytes(weights))
    open_bundle(made).check_hashes()
    with pytest.raises(UpdateError, match=r"the self-test of the release failed with status 1: .*(logits|self-test)"):
        self_test(made, "CPU")


def test_an_engine_that_crashes_fails_the_self_test(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    crash = tmp_path / "python"
    crash.write_text("#!/bin/sh\necho 'edge: about to' >&2\nkill -SEGV $$\n")
    crash.chmod(0o755)
    monkeypatch.setattr("edge.update.processes.sys.executable", str(crash))
    with pytest.raises(UpdateError, match="failed with signal 11: about to"):
        self_test(tmp_path, "CPU")


def test_what_the_command_says_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    tell(words_of(f"{sys.executable} -c \"import sys; print('out'); print('err', file=sys.stderr)\""))
    assert capsys.readouterr() == ("", "err\n")
    with pytest.raises(UpdateError, match=r"failed after the switch with status 3: it said nothing"):
        tell([sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(UpdateError, match="failed after the switch: No such file or directory"):
        tell(["/no/such/program"])
    for wrong, words in (("'", "expected a command"), ("  ", "is empty")):
        with pytest.raises(SettingsError, match=words):
            words_of(wrong)


def test_a_wrong_command_is_told_before_anything_is_done(
    tmp_path: Path, shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    made = shop.release(1)
    told = said(capsys, "install", tmp_path / "x", made, "--key", shop.public, "--then", "'", code=2)
    assert told.startswith("edge: --then is")
    assert not (tmp_path / "x").exists()


def test_status_tells_what_was_refused(shop: Shop, machine: Machine) -> None:
    machine.install(shop.release(1))
    machine.fails.add(2)
    with pytest.raises(UpdateError):
        machine.install(shop.release(2))
    lines = status_of(machine.folder).lines()
    assert lines[0].endswith("release 1 is used, in slot a")
    assert "release 2 was refused: the self-test" in lines[1]
    assert lines[2].endswith("of the next release are here")
    machine.install(shop.release(3))
    assert status_of(machine.folder).lines()[1] == "  release 1 is there to go back to"
