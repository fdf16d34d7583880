"""`edge serve` as a command: what it refuses before it listens, how it says where it is, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edge.api import scripted_llm
from edge.cli import build_parser, main
from edge.runtime.engines.scripted import replies
from edge.runtime.errors import EdgeError
from tests.edge.server.live import Live, free_port, process, served, until

HELLO = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    assert main(["serve", *arguments]) == code
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_other_machines_need_a_key(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for host in ("0.0.0.0", "192.0.2.1", "::"):
        line = refused(capsys, str(tiny_bundle), "--host", host)
        assert host in line
        assert "--api-key-file" in line


@pytest.mark.parametrize(
    ("text", "expected"), [("", "has no key"), ("# a comment\n\n", "has no key"), ("short", "key 1 cannot be used")]
)
def test_keys_that_protect_nothing(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, expected: str
) -> None:
    (tmp_path / "keys").write_text(text)
    line = refused(capsys, str(tiny_bundle), "--api-key-file", str(tmp_path / "keys"))
    assert expected in line
    assert "short" not in line.replace("shorter", "")


def test_a_port_that_is_taken(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        line = refused(capsys, str(tiny_bundle), "--port", str(taken.getsockname()[1]), code=1)
    assert "cannot be listened on" in line


@pytest.mark.parametrize("option", ["--system-file", "--draft-from"])
def test_a_text_that_is_missing_is_told_before_weights_are_read(
    option: str, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edge.commands import serve

    loads: list[object] = []
    monkeypatch.setattr("edge.api.load", lambda bundle, **_options: loads.append(bundle))
    args = build_parser().parse_args(["serve", str(tiny_bundle), option, str(tmp_path / "missing.txt")])
    with pytest.raises(EdgeError, match=r"missing\.txt"):
        serve.loaded(args, lambda _what, _share: None)
    assert not loads


def test_a_bundle_that_cannot_be_loaded_ends_the_server(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edge", "serve", str(tmp_path), "--port", str(free_port())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("edge: ")
    assert "Traceback" not in done.stderr


def test_it_says_where_it_is_answers_and_ends_with_0(tiny_bundle: Path, tmp_path: Path) -> None:
    keys, said = tmp_path / "keys", tmp_path / "said"
    keys.write_text("# mine\nkey-one-123\nkey-two-123\n")
    with process(tiny_bundle, "--api-key-file", str(keys), "--alias", "a,b", said=said) as live:
        assert live.post("/v1/chat/completions", HELLO).status == 401
        for key in ("key-one-123", "key-two-123"):
            reply = live.post("/v1/chat/completions", HELLO, Authorization=f"Bearer {key}")
            assert reply.json["model"] == "a"
        assert live.get("/v1/models", **{"x-api-key": "key-one-123"}).json["data"][1]["id"] == "b"
        assert live.process is not None
        live.process.send_signal(signal.SIGTERM)
        assert live.process.wait(60) == 0
    told = said.read_text()
    assert f"serving a at {live.url}" in told
    assert "ready: " in told
    assert "key-" not in told


def test_a_key_can_come_from_the_environment(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_API_KEY", "key-from-environment")
    with process(tiny_bundle) as live:
        assert live.post("/v1/chat/completions", HELLO).status == 401
        assert live.post("/v1/chat/completions", HELLO, Authorization="Bearer key-from-environment").status == 200


def test_a_unix_socket_is_private_replaces_a_dead_one_and_goes_with_its_server(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    command = [sys.executable, "-m", "edge", "serve", str(tiny_bundle), "--uds", str(path)]
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:

        def asked() -> bytes:
            try:
                with socket.socket(socket.AF_UNIX) as client:
                    client.settimeout(5)
                    client.connect(str(path))
                    client.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
                    return b"".join(iter(lambda: client.recv(4096), b""))
            except OSError:
                return b""

        until(lambda: b"200 OK" in asked(), 60)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 0
    assert not path.exists()


def test_a_file_where_the_socket_should_be_stays(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine"
    path.write_text("mine")
    assert "cannot be listened on" in refused(capsys, str(tiny_bundle), "--uds", str(path), code=1)
    assert path.read_text() == "mine"


def test_what_takes_the_place_of_the_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with served(scripted_llm(replies({})), uds=str(path)):
        path.unlink()
        path.write_text("mine")
    assert path.read_text() == "mine"


def stream(live: Live) -> tuple[socket.socket, bytes]:
    body: dict[str, Any] = {"prompt": "x", "stream": True, "ignore_eos": True}
    connection = live.begin("/v1/completions", body)
    told = b""
    while b"data: " not in told:
        told += connection.recv(4096)
    return connection, told


@pytest.mark.slow
@pytest.mark.parametrize("signals", [1, 2])
def test_sigterm_cuts_a_long_answer_with_an_error(demo_bundle: Path, signals: int) -> None:
    seconds = "0.3" if signals == 1 else "60"
    with process(demo_bundle, "--shutdown-seconds", seconds) as live:
        connection, told = stream(live)
        assert live.process is not None
        started = time.monotonic()
        for _ in range(signals):
            live.process.send_signal(signal.SIGTERM)
            time.sleep(0.1)
        told += b"".join(iter(lambda: connection.recv(1 << 16), b""))
        assert live.process.wait(60) == 0
        assert time.monotonic() - started < 55
        connection.close()
    events = [line[6:] for line in told.decode().splitlines() if line.startswith("data: ")]
    assert json.loads(events[-1])["error"]["code"] == "shutting_down"


def test_sigterm_while_loading_ends_at_once(demo_bundle: Path) -> None:
    with process(demo_bundle, ready=False) as live:
        assert live.process is not None

        def listens() -> bool:
            try:
                return live.get("/health").status in (200, 503)
            except OSError:
                return False

        until(listens, 60)
        os.kill(live.process.pid, signal.SIGTERM)
        assert live.process.wait(60) == 0
