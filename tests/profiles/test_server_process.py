"""A server in a process of its own: ready when it says so, told of when it does not, gone afterwards."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge.profiles import server_process
from edge.profiles.server_process import free_port, serve_command, started
from edge.runtime.errors import ProfileError
from tests.processes import gone, runs

SLOW = """
import http.server, sys, time
begun = time.monotonic()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if time.monotonic() > begun + 0.3 else 503)
        self.end_headers()
        self.wfile.write(b"hello")
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
PARENT = """
import sys
from edge.profiles.server_process import free_port, serve_command, started
port = free_port()
with started(serve_command(sys.argv[1], port), port) as server:
    print(server.pid, flush=True)
    sys.stdin.read()
"""


def test_a_server_is_waited_for_and_ended() -> None:
    port, begun = free_port(), time.monotonic()
    with started([sys.executable, "-c", SLOW, str(port)], port) as server:
        assert time.monotonic() - begun >= 0.3
        assert server.get("/anything") == (200, b"hello")
        assert runs(server.pid)
    assert not runs(server.pid)


def test_one_that_ends_is_an_error_with_what_it_said(tmp_path: Path) -> None:
    port = free_port()
    with pytest.raises(ProfileError, match="a sentence"), started([sys.executable, "-c", "exit('a sentence')"], port):
        pytest.fail("it is not ready")
    with pytest.raises(ProfileError, match="none"), started(serve_command(str(tmp_path / "none"), port), port):
        pytest.fail("it is not ready")


def test_one_that_is_never_ready_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    script, port = "import time; print('thinking', flush=True); time.sleep(600)", free_port()
    for seconds in (0.5, 5, 50):  # until it has said something, also where that takes long
        monkeypatch.setattr(server_process, "READY_S", seconds)
        with pytest.raises(ProfileError) as caught, started([sys.executable, "-c", script], port):
            pytest.fail("it is not ready")
        if "thinking" in str(caught.value):
            break
    assert f"not ready after {seconds:.0f} s; it said last: thinking" in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is POSIX")
def test_a_server_does_not_outlive_who_started_it(tiny_bundle: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tiny_bundle)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert runs(pid)
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    assert gone(pid)
