"""`edge kiosk init` from end to end: what it writes, and that a server that systemd would start answers from it."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import sys
from pathlib import Path

import pytest

from edge import cli
from edge.kiosk import settings as names
from edge.runtime.kv.snapshot_format import read_header
from edge.server.page_config import read_page_config
from tests.edge.kiosk.service import check_service
from tests.edge.server.live import free_port

SYSTEM = "You are the guide of a museum. Speak of paintings, and of nothing else.\n"
ME = pwd.getpwuid(os.getuid()).pw_name
USER = "nobody" if ME == "root" else ME


@pytest.fixture
def system_file(tmp_path: Path) -> Path:
    file = tmp_path / "guide.txt"
    file.write_bytes(SYSTEM.replace("\n", "\r\n").encode("utf-8-sig"))  # as Notepad writes it
    return file


def init(folder: Path, bundle: Path, system_file: Path, *more: str) -> list[str]:
    given = ["--bundle", str(bundle), "--system-file", str(system_file), "--user", USER]
    return ["kiosk", "init", str(folder), *given, *more]


def test_all_files_are_written_and_agree(
    tiny_bundle: Path, system_file: Path, tmp_path: Path, engine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "the kiosk"
    page = [
        "--title",
        "博物馆",
        "--suggestion",
        "Where?",
        "--suggestion",
        "Who?",
        "--language",
        "zh",
        "--language",
        "en",
    ]
    chosen = ["--engine", engine, "--reproducible", "--max-context", "128", "--kv-cache-gb", "0.2", "--threads", "1"]
    assert cli.main([*init(folder, tiny_bundle, system_file, *page, *chosen), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    files = {names.PREFIX, names.PAGE, names.SYSTEM, names.SERVER_UNIT, names.BROWSER_UNIT, names.BROWSER_SCRIPT}
    assert set(shown["files"]) == {path.name for path in folder.iterdir()} == {*files, names.README}
    assert (folder / names.SYSTEM).read_text() == SYSTEM
    config = read_page_config(folder / names.PAGE)
    assert (config.title, config.suggestions, config.languages) == ("博物馆", ("Where?", "Who?"), ("zh", "en"))
    assert (config.system, config.kiosk, config.idle_seconds) == (SYSTEM, True, 90)
    header = read_header(folder / names.PREFIX)
    assert (header.system, header.num_tokens, header.bytes) == (SYSTEM, shown["tokens"], shown["bytes"])
    assert header.identity.layout["engine"] == engine
    assert shown["serve"][0] == sys.executable, "not where the link of an environment leads"
    given = cli.build_parser().parse_args(shown["serve"][4:])
    assert (given.engine, given.reproducible, given.max_context, given.threads) == (engine, True, 128, 1)
    assert given.kv_cache_bytes == 200_000_000
    assert shown["url"] == "http://127.0.0.1:8000/?kiosk=1"
    assert f"User={USER}\n" in (folder / names.SERVER_UNIT).read_text()
    assert (folder / names.PREFIX).owner() == USER
    assert cli.main(init(folder, tiny_bundle, system_file)) == 1
    assert "and nothing in it is replaced; name a new or an empty folder" in capsys.readouterr().err


def test_a_link_to_the_bundle_stays_one(tiny_bundle: Path, system_file: Path, tmp_path: Path) -> None:
    """Updates let it lead to another bundle. Links on the way to it are no part of that."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "current").symlink_to(tiny_bundle)
    (tmp_path / "way").symlink_to("real")
    assert cli.main(init(tmp_path / "kiosk", tmp_path / "way" / "current", system_file, "--max-context", "128")) == 0
    unit = (tmp_path / "kiosk" / names.SERVER_UNIT).read_text()
    assert f'"{tmp_path}/real/current"' in unit
    assert str(tiny_bundle) not in unit


def test_what_is_left_to_do_is_said(
    tiny_bundle: Path, system_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(init(tmp_path / "kiosk", tiny_bundle, system_file)) == 0
    said = capsys.readouterr().out
    assert re.search(r"system message of \d+ tokens, [\d.]+ .?B, computed in", said)
    assert str(tmp_path / "kiosk" / names.README) in said


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            ["--user", "no-such-user-here"],
            "--user is 'no-such-user-here', whom this system does not know; make one with",
        ),
        (["--user", "root"], "--user is 'root', expected the name of a user without the rights of root"),
        (["--browser-user", USER], f"--browser-user is {USER}, which the server runs as"),
        (["--title", "a\nb"], "--title is 'a\\nb', which has a line end"),
        (["--suggestion", ""], "--suggestion is a list whose entry 1 is ''"),
        (["--language", "English, please"], "--language is a list whose entry 1 is 'English, please'"),
        (["--idle-seconds", "5"], "--idle-warning-seconds is 20 and --idle-seconds 5, expected fewer"),
        (["--port", "70000"], "--port is 70000, expected a whole number from 1 to 65535"),
        (["--bundle", "/no/such/bundle"], "/no/such/bundle"),
        (["--system-file", "/no/such/file"], "/no/such/file cannot be read"),
        (["--max-context", "8"], "context"),  # the system message does not fit
    ],
)
def test_what_is_wrong_is_said_and_leaves_nothing(
    changed: list[str],
    said: str,
    tiny_bundle: Path,
    system_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "no-such-user-here" in changed and os.getuid():
        said = said.partition(";")[0]
    refused = changed[0] in ("--bundle", "--system-file", "--max-context")  # by what is there, and not by the options
    assert cli.main(init(tmp_path / "kiosk", tiny_bundle, system_file, *changed)) == (1 if refused else 2)
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [system_file.name]


def test_an_empty_system_message(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    assert cli.main(init(tmp_path / "kiosk", tiny_bundle, tmp_path / "empty.txt")) == 1
    assert "is empty; write the system message into it" in capsys.readouterr().err


def test_a_user_cannot_give_files_away(
    tiny_bundle: Path,
    system_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: pwd.getpwnam("daemon").pw_uid)
    assert cli.main(init(tmp_path / "kiosk", tiny_bundle, system_file, "--user", "nobody")) == 2
    assert "run this as nobody or as root" in capsys.readouterr().err


def test_the_service_answers_from_the_prefix(
    tiny_bundle: Path, system_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, port = tmp_path / 'the "kiosk" 100%', free_port()
    assert cli.main(init(folder, tiny_bundle, system_file, "--port", str(port))) == 0
    check_service(folder, port, tmp_path)


@pytest.mark.slow
def test_the_service_needs_no_disk_to_write_to(
    demo_bundle: Path, system_file: Path, tmp_path: Path, engine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As ProtectSystem=strict has it: everything is read-only but the folder of the cache."""
    bubblewrap = shutil.which("bwrap")
    if bubblewrap is None:
        pytest.skip("bubblewrap is not installed (apt-get install bubblewrap)")
    folder, port, cache = tmp_path / "kiosk", free_port(), tmp_path / "cache"
    cache.mkdir()
    assert cli.main(init(folder, demo_bundle, system_file, "--port", str(port), "--engine", engine)) == 0
    walls = ("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/run", "--die-with-parent")
    own = ("--bind", str(cache), str(cache), "--setenv", "XDG_CACHE_HOME", str(cache), "--setenv", "HOME", "/nowhere")
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    check_service(folder, port, tmp_path, (bubblewrap, *walls, *own, "--"))
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert [path.name for path in cache.iterdir()] in ([], ["edgeglm"])
