"""A server in a process of its own: started, waited for until it is ready, and ended.

In: a command. Out: its address and process id while it runs; an error with what the process said when it does not
become ready. Knows nothing about which server that is: it only has to answer GET /health with 200 when it is ready.
"""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from edge.profiles.http_load import Address
from edge.runtime.errors import ProfileError, telling_line

HOST = "127.0.0.1"
READY_S = 600.0  # a large model takes this long on a slow disk
STOP_S = 20.0
KEY_VARIABLE = "EDGE_API_KEY"  # of `edge serve`; a server that is measured on this machine needs none
_POLL_S = 0.05

# The server ends with the process that started it: its standard input is a pipe from there.
_WATCHED = """
import os, signal, sys, threading
def end_with_stdin():
    while os.read(0, 1 << 16):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=end_with_stdin, daemon=True).start()
from edge.cli import main
sys.exit(main(sys.argv[1:]))
"""


@dataclass(frozen=True, slots=True)
class Server:
    """One that runs."""

    address: Address
    pid: int

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body. Raises OSError and http.client.HTTPException if no answer comes."""
        return get(self.address, path)


def serve_command(bundle: str, port: int, *options: str) -> list[str]:
    """`edge serve` in this Python."""
    # -P: what the folder holds in which this runs is not imported
    command = [sys.executable, "-P", "-c", _WATCHED, "serve", bundle, "--no-config"]  # what is measured is said here
    return [*command, "--host", HOST, "--port", str(port), *options]


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])


@contextmanager
def started(command: Sequence[str], port: int) -> Iterator[Server]:
    """Run a server for as long as the block. Raises ProfileError if it does not become ready."""
    with tempfile.TemporaryFile() as log:
        environment = {name: value for name, value in os.environ.items() if name != KEY_VARIABLE}
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=environment
        )
        try:
            _wait_until_ready(process, (HOST, port), log)
            yield Server((HOST, port), process.pid)
        finally:
            process.terminate()  # does nothing if it has ended
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def get(address: Address, path: str) -> tuple[int, bytes]:
    """Status and body. Raises OSError and http.client.HTTPException if no answer comes."""
    connection = http.client.HTTPConnection(*address, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _wait_until_ready(process: subprocess.Popen[bytes], address: Address, log: IO[bytes]) -> None:
    until = time.monotonic() + READY_S
    while time.monotonic() < until:
        if process.poll() is not None:
            raise ProfileError(_said(log) or f"the server ended with {process.returncode} and said nothing")
        try:
            if get(address, "/health")[0] == http.client.OK:
                return
        except (OSError, http.client.HTTPException):
            pass  # not yet
        time.sleep(_POLL_S)
    raise ProfileError(f"the server was not ready after {READY_S:.0f} s; it said last: {_said(log) or 'nothing'}")


def _said(log: IO[bytes]) -> str:
    """The last line that tells something."""
    log.seek(0)
    said = log.read().decode(errors="replace")
    return telling_line(said, last=True) if said.strip() else ""
