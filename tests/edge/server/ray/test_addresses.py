"""A server with replicas connects to addresses of its cluster, and to none beyond those that Ray itself asks."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import Request, urlopen

import psutil
import pytest

pytest.importorskip("ray")

STRACE = shutil.which("strace")
CONNECT = re.compile(r'sa_family=AF_INET6?, sin6?_port=htons\((\d+)\).*?"(?:::ffff:)?([0-9a-f:.]+)"')
# docs/ray.md tells of both.
OWN_ADDRESS = ("8.8.8.8", 53)  # a datagram socket that is connected to learn this machine's address, and sends nothing
CLOUD = ("169.254.169.254", 80)  # where a cloud's machine learns of itself, asked once by Ray's head
DNS = 53  # for the name that another cloud has for it


@pytest.mark.slow
@pytest.mark.skipif(STRACE is None, reason="strace is not here")
def test_nobody_beyond_the_cluster_is_asked(tiny_bundle: Path, tmp_path: Path) -> None:
    assert STRACE is not None
    seen = tmp_path / "seen"
    watch = [STRACE, "-f", "-qqq", "-e", "trace=connect,sendto", "-e", "signal=none", "-o", str(seen)]
    server = [sys.executable, "-m", "edge", "serve", str(tiny_bundle), "--no-config", "--port", "0"]
    ray = ["--ray", "--replicas", "2", "--threads", "1"]
    environment = {**os.environ, "HOME": str(tmp_path)}  # where Ray keeps its token
    with (tmp_path / "said").open("w+") as said:
        process = subprocess.Popen([*watch, *server, *ray], stdout=said, stderr=said, env=environment)
        try:
            url = ready(process, tmp_path / "said")
            body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
            told = {"content-type": "application/json"}
            asked_for = Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), told)
            with urlopen(asked_for, timeout=60) as answer:
                assert json.loads(answer.read())["usage"]["completion_tokens"] > 0
        finally:
            for child in psutil.Process(process.pid).children():
                child.send_signal(signal.SIGINT)
            process.wait(60)
    own = {address.address for one in psutil.net_if_addrs().values() for address in one}
    asked = {(address, int(port)) for port, address in CONNECT.findall(seen.read_text())}
    assert any(address in own for address, _port in asked), "connections are seen"
    beyond = {one for one in asked if one[0] not in own and one[0] not in ("127.0.0.1", "::1", "0.0.0.0")}
    names = {one for one in beyond if one[1] == DNS and one != OWN_ADDRESS}
    assert beyond - names <= {OWN_ADDRESS, CLOUD}
    assert {address for address, _port in names} <= nameservers()


def ready(process: subprocess.Popen[bytes], said: Path) -> str:
    """Return the server's address once its replicas answer."""
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline:
        assert process.poll() is None, said.read_text()
        if "ready: 2 replicas" in (text := said.read_text()):
            found = re.search(r"http://[\d.]+:\d+", text)
            assert found is not None
            return found[0]
        time.sleep(0.2)
    raise AssertionError(said.read_text())


def nameservers() -> set[str]:
    lines = Path("/etc/resolv.conf").read_text().splitlines()
    return {line.split()[1] for line in lines if line.startswith("nameserver ")}
