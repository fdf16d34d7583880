"""The service of a kiosk as systemd starts it: the command that systemd reads, with a socket in the place of systemd's.

In: a kiosk's folder. Out: nothing; what is not as it should be fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edge.kiosk import settings as names
from edge.runtime.kv.snapshot_format import read_header
from tests.edge.kiosk.systemd import commands
from tests.processes import children

ROOT = Path(__file__).parents[3]


def check_service(
    folder: Path,
    port: int,
    tmp_path: Path,
    wrap: tuple[str, ...] = (),
    meanwhile: Callable[[], None] | None = None,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Start what the unit says, ask it as the page does, and end it as systemd would.

    wrap: a program that runs it. meanwhile: what else to do while it runs.
    """
    unit = re.sub("^User=.*$", "", (folder / names.SERVER_UNIT).read_text(), flags=re.M)
    words = [*wrap, *commands({names.SERVER_UNIT: unit})[names.SERVER_UNIT]]
    url, address = f"http://127.0.0.1:{port}", str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(address)
        notify.settimeout(60)
        variables = {**(environment or own_environment()), "NOTIFY_SOCKET": address, "WATCHDOG_USEC": "600000"}
        with _started(words, notify, variables) as process:
            assert _asked(f"{url}/health")
            page = _asked(f"{url}/page-config.json")
            assert (page["kiosk"], page["system"]) == (True, (folder / names.SYSTEM).read_text())
            messages = [{"role": "system", "content": page["system"]}, {"role": "user", "content": "hi"}]
            usage = _asked(f"{url}/v1/chat/completions", {"messages": messages, "max_tokens": 2})["usage"]
            tokens = read_header(folder / names.PREFIX).num_tokens
            assert usage["prompt_tokens_details"]["cached_tokens"] >= tokens, "nothing of the prefix was computed"
            while "WATCHDOG=1" not in _heard(notify):
                pass
            if meanwhile is not None:
                meanwhile()
            os.kill(_child_of(process.pid) if wrap else process.pid, signal.SIGTERM)
            while "STOPPING=1" not in _heard(notify):
                pass
            assert process.wait(30) == 0


def own_environment() -> dict[str, str]:
    """That of this process, with our code: asked for late, since fixtures set variables."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@contextlib.contextmanager
def _started(
    words: list[str], notify: socket.socket, variables: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has said that it is ready; it is killed at the end if it still runs."""
    with subprocess.Popen(words, env=variables, cwd="/", stderr=subprocess.PIPE) as process:
        try:
            while "READY=1" not in _heard(notify):
                pass
            yield process
        finally:
            process.kill()


def _heard(notify: socket.socket) -> list[str]:
    return notify.recv(4096).decode().splitlines()


def _child_of(pid: int) -> int:
    """The one process that a sandbox runs."""
    (child,) = children(pid)
    return child


def _asked(url: str, body: object = None) -> Any:  # Any: JSON
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)
