"""The text files of a kiosk: systemd, a shell and the page's reader understand them as they are meant."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.cli import build_parser
from edge.kiosk import settings as names
from edge.kiosk.browser import FLAGS, browser_script
from edge.kiosk.files import texts
from edge.kiosk.settings import KioskSettings
from edge.kiosk.units import WATCHDOG_S, Memory, browser_unit, server_unit
from edge.runtime.errors import SettingsError
from edge.server.page_config import PageConfig, read_page_config
from tests.edge.kiosk.systemd import commands, exposure, verified

pytestmark = pytest.mark.skipif(os.name != "posix", reason="a kiosk is a Linux machine")

PYTHON = Path("/usr/bin/env")  # a program that every machine has
MEMORY = Memory(taken_bytes=1 << 30, cache_bytes=2 << 30)
ENGINE = ("--engine", "onnx", "--max-context", "2048")
HARD = '100% "it\'s" $HOME é 博物馆'


def kiosk(**changed: object) -> KioskSettings:
    values: dict[str, object] = {
        "bundle": Path("/srv/glm4-int4"),
        "folder": Path("/srv/kiosk"),
        "python": PYTHON,
        "user": "edge-kiosk",
        "engine_options": ENGINE,
    }
    return KioskSettings(**{**values, **changed})  # type: ignore[arg-type]  # each test gives values of its own


def values(unit: str) -> dict[str, str]:
    """Settings of a unit; each has one value here."""
    found = re.findall(r"^(\w+)=(.*)$", unit, re.M)
    assert len({name for name, _ in found}) == len(found)
    return dict(found)


def test_systemd_has_nothing_against_the_units() -> None:
    for case in (kiosk(), kiosk(needs_graphics=True), kiosk(bundle=Path(f"/srv/{HARD}"), folder=Path(f"/opt/{HARD}"))):
        units = {names.SERVER_UNIT: server_unit(case, MEMORY), names.BROWSER_UNIT: browser_unit(case)}
        said = verified(units)
        if shutil.which("cage") is None:
            said = [line for line in said if "Command /usr/bin/cage is not executable" not in line]
        assert said == []


paths = st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda name: name not in (".", "..")
)


@settings(max_examples=3)
@given(bundle=paths, folder=paths)
def test_systemd_runs_the_commands_that_are_meant(bundle: str, folder: str) -> None:
    case = kiosk(bundle=Path("/srv") / bundle, folder=Path("/opt") / folder)
    units = {"server.service": server_unit(case), "browser.service": browser_unit(case)}
    # Of what a machine has to have for them to be loaded, a bare one has only systemd.
    units = {name: re.sub(r"^(Wants|After|Conflicts)=.*$", "", text, flags=re.M) for name, text in units.items()}
    found = commands(units)
    assert tuple(found["server.service"]) == case.serve
    script = str(case.folder / names.BROWSER_SCRIPT)
    assert found["browser.service"] == ["/usr/bin/cage", "-d", "--", "/bin/sh", script]


def test_the_server_is_watched_and_locked_in() -> None:
    found = values(server_unit(kiosk(), MEMORY))
    assert found["Type"] == "notify"
    assert found["WatchdogSec"] == str(WATCHDOG_S)
    assert found["Restart"] == "always"
    assert found["ProtectSystem"] == "strict"
    assert (found["IPAddressDeny"], found["IPAddressAllow"]) == ("any", "localhost")
    assert found["NoNewPrivileges"] == found["PrivateTmp"] == found["PrivateDevices"] == found["ProtectHome"] == "yes"
    assert found["User"] == "edge-kiosk"
    assert exposure(names.SERVER_UNIT, server_unit(kiosk())) < 2, "of 10; a service without any settings has 9.6"
    assert "#MemoryMax=3840M" in server_unit(kiosk(), MEMORY), "for the operator to decide"


@pytest.mark.parametrize("where", ["bundle", "folder", "python"])
def test_what_the_server_reads_is_not_hidden_from_it(where: str) -> None:
    for place, setting, value in (
        ("/home/me/x", "ProtectHome", "read-only"),
        ("/root/x", "ProtectHome", "read-only"),
        ("/tmp/x", "PrivateTmp", "no"),
        ("/var/tmp/x", "PrivateTmp", "no"),
        ("/homes/x", "ProtectHome", "yes"),
    ):
        assert values(server_unit(kiosk(**{where: Path(place)})))[setting] == value, place


def test_a_gpu_is_a_device_that_the_server_may_open() -> None:
    found = values(server_unit(kiosk(needs_graphics=True)))
    assert "PrivateDevices" not in found
    assert (found["DeviceAllow"], found["SupplementaryGroups"]) == ("char-drm rw", "render")


def test_the_command_of_the_server_parses() -> None:
    case = kiosk(host="::1", port=9000)
    assert case.serve[:4] == (str(PYTHON), "-P", "-m", "edge")
    given = build_parser().parse_args(case.serve[4:])
    assert (given.verb, given.bundle, given.host, given.port) == ("serve", "/srv/glm4-int4", "::1", 9000)
    assert given.prefix == ["/srv/kiosk/kiosk.prefix"]
    assert str(given.page_config) == "/srv/kiosk/page.json"
    assert (given.engine, given.max_context) == ("onnx", 2048)


def test_the_page_is_what_the_server_reads(tmp_path: Path) -> None:
    page = PageConfig(title=HARD, suggestions=("Where?",), idle_seconds=60, system="Be kind.\n", kiosk=True)
    written = texts(kiosk(), page, "Be kind.\n")
    (tmp_path / names.PAGE).write_text(written[names.PAGE], encoding="utf-8")
    assert read_page_config(tmp_path / names.PAGE) == page
    assert written[names.SYSTEM] == "Be kind.\n"


def test_the_readme_has_commands_that_a_shell_reads() -> None:
    case = kiosk(bundle=Path(f"/srv/{HARD}"), folder=Path(f"/opt/{HARD}"))
    readme = texts(case, PageConfig(), "x")[names.README]
    lines = [shlex.split(line) for line in readme.splitlines() if line.startswith("    ")]
    assert ["install", "-m", "644", f"/opt/{HARD}/{names.SERVER_UNIT}", "/etc/systemd/system/"] in lines
    assert ["install", "-m", "644", f"/opt/{HARD}/{names.BROWSER_UNIT}", "/etc/systemd/system/"] in lines
    (again,) = [line for line in lines if "prefix" in line]
    assert again[:4] == ["runuser", "-u", "edge-kiosk", "--"]
    given = build_parser().parse_args(again[again.index("edge") + 1 :])
    assert (given.bundle, given.out) == (f"/srv/{HARD}", f"/opt/{HARD}/{names.PREFIX}")
    assert given.system_file == f"/opt/{HARD}/{names.SYSTEM}"
    assert (given.engine, given.max_context) == ("onnx", 2048)
    for name in (names.PREFIX, names.PAGE, names.SYSTEM, names.SERVER_UNIT, names.BROWSER_UNIT, names.BROWSER_SCRIPT):
        assert re.search(rf"^  {re.escape(name)} ", readme, re.M), name


@pytest.fixture
def page() -> HTTPServer:
    """A server that remembers what it was asked for."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>kiosk</title>")

        def log_message(self, *_: object) -> None:
            pass

    asked: list[str] = []
    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.asked = asked  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def run_script(folder: Path, port: int, chromium: str) -> subprocess.Popen[str]:
    """The script, with a `chromium` of our own first on the path."""
    (folder / "bin").mkdir()
    (folder / "tmp").mkdir(exist_ok=True)
    (folder / "bin" / "chromium").write_text(chromium)
    (folder / "bin" / "chromium").chmod(0o755)
    (folder / names.BROWSER_SCRIPT).write_text(browser_script(kiosk(port=port)))
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    return subprocess.Popen(
        ["/bin/sh", str(folder / names.BROWSER_SCRIPT)],
        env={**os.environ, "PATH": path, "TMPDIR": str(folder / "tmp")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_the_browser_waits_for_the_server_and_leaves_nothing(tmp_path: Path, page: HTTPServer) -> None:
    record = tmp_path / "record"
    script = (
        f'#!/bin/sh\nfor word in "$@"; do echo "$word" >> "{record}"; done\ncd "{tmp_path}/tmp"/* && touch history\n'
    )
    try:
        done = run_script(tmp_path, page.server_port, script)
        said, _ = done.communicate(timeout=60)
        assert done.returncode == 0, said
    finally:
        page.shutdown()
        page.server_close()
    *flags, url, profile = record.read_text().splitlines()
    assert tuple(flags) == FLAGS
    assert url == f"--app=http://127.0.0.1:{page.server_port}/?kiosk=1"
    assert profile.startswith(f"--user-data-dir={tmp_path / 'tmp'}/")
    assert list((tmp_path / "tmp").iterdir()) == [], "the visitor's traces are gone"
    record.unlink()
    shutil.rmtree(tmp_path / "bin")
    waiting = run_script(tmp_path, page.server_port, script)  # nobody listens any more
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(1.5)
    waiting.terminate()
    waiting.communicate(timeout=60)
    assert not record.exists(), "no page is better than an error page"
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.slow
def test_chromium_takes_the_command_and_asks_for_the_page(page: HTTPServer) -> None:
    """Without a screen. In a folder with a short name: it opens a socket in its profile."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed (apt-get install chromium)")
    asked: list[str] = page.asked  # type: ignore[attr-defined]
    try:
        with tempfile.TemporaryDirectory(prefix="edge-") as folder:
            enough = Path(folder) / "enough"
            # Ended when the page was asked for, as one that is shut by its visitor.
            script = (
                f'#!/bin/sh\ntimeout 100 "{chromium}" --headless=new --no-sandbox --disable-gpu "$@" & browser=$!\n'
                f'while kill -0 $browser && [ ! -e "{enough}" ]; do sleep 0.1; done\n'
                "kill $browser; wait $browser\n"
            )
            done = run_script(Path(folder), page.server_port, script)
            while "/?kiosk=1" not in asked and done.poll() is None:
                time.sleep(0.05)
            enough.touch()
            said, _ = done.communicate(timeout=120)
        assert "/?kiosk=1" in asked, said
    finally:
        page.shutdown()
        page.server_close()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"user": "root"}, "user is 'root', expected the name of a user without the rights of root"),
        ({"user": "a b"}, "user is 'a b', expected the name of a user"),
        ({"user": None}, "user is missing, expected"),
        ({"user": "kiosk"}, "browser_user is kiosk, which the server runs as; give the browser"),
        ({"browser_user": "a\nb"}, "browser_user is 'a\\nb', expected"),
        ({"host": "0.0.0.0"}, "host is '0.0.0.0', expected 127.0.0.1, localhost or ::1"),
        ({"port": 0}, "port is 0, expected a whole number from 1 to 65535"),
        ({"port": "8080"}, "port is '8080', expected"),
        ({"bundle": Path("x")}, "bundle is 'x', expected an absolute path"),
        ({"folder": None}, "folder is None, expected an absolute path"),
        ({"bundle": Path("/srv/\udce9")}, "which is not UTF-8, as a unit of systemd has to be; rename it"),
    ],
)
def test_settings_that_no_service_can_have(changed: dict[str, object], said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        kiosk(**changed)
    assert said in str(caught.value)


def test_addresses() -> None:
    assert kiosk().url == "http://127.0.0.1:8000/?kiosk=1"
    assert kiosk(host="::1", port=1).url == "http://[::1]:1/?kiosk=1"
    assert json.loads(texts(kiosk(), PageConfig(kiosk=True), "x")[names.PAGE]) == {"kiosk": True}
