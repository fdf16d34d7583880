"""What systemd hears, over a real socket; and that a server does not notice what is wrong with it."""

from __future__ import annotations

import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.server import systemd
from edge.server.systemd import MAX_STATUS, PATIENCE_S, Notifier

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="sockets of Unix are what is tested")


@pytest.fixture(params=["path", "name"])
def heard(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """The value of NOTIFY_SOCKET, and the socket that listens there."""
    if request.param == "name" and sys.platform != "linux":
        pytest.skip("sockets without a file are Linux's")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        name = str(tmp_path / "notify") if request.param == "path" else f"@edge-test-{secrets.token_hex(8)}"
        listener.bind(f"\0{name[1:]}" if name.startswith("@") else name)
        listener.settimeout(60)
        yield name, listener


def lines(listener: socket.socket) -> list[str]:
    return listener.recv(4096).decode().splitlines()


def silent(listener: socket.socket) -> bool:
    listener.setblocking(False)
    try:
        listener.recv(4096)
    except BlockingIOError:
        return True
    return False


def test_a_life(heard: tuple[str, socket.socket]) -> None:
    name, listener = heard
    notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())})
    assert notifier.watchdog_s == 1.5
    notifier.status("loading: 40 %")
    assert lines(listener) == ["STATUS=loading: 40 %"]
    notifier.ready()
    assert "READY=1" in lines(listener)
    notifier.alive()
    assert lines(listener) == ["WATCHDOG=1"]
    notifier.stopping()
    assert "STOPPING=1" in lines(listener)
    assert silent(listener)


def test_the_variables_are_those_of_the_process(
    heard: tuple[str, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, listener = heard
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    notifier = Notifier()
    notifier.ready()
    assert "READY=1" in lines(listener)
    notifier.alive()
    assert notifier.watchdog_s is None
    assert silent(listener), "nobody watches"


def test_a_status_is_one_line_and_nothing_else(heard: tuple[str, socket.socket]) -> None:
    """A line end in it would be another message: READY=1 before anything is ready."""
    name, listener = heard
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.status("half\nREADY=1\r\x0b\u2028way \udce9")
    assert listener.recv(4096) == b"STATUS=half READY=1 way ?"
    notifier.status("é" * 10_000)
    assert listener.recv(65536).decode() == "STATUS=" + "é" * MAX_STATUS


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "60000000"}, 30.0),  # without a process id, whoever reads it is meant
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": ""}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "1e6"}, None),
        ({"WATCHDOG_USEC": "²"}, None),
        ({"WATCHDOG_USEC": "9" * 5000}, None),
        ({"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "x"}, None),
    ],
)
def test_how_long_the_watchdog_waits(variables: dict[str, str], expected: float | None) -> None:
    assert Notifier({"NOTIFY_SOCKET": "/run/somewhere", **variables}).watchdog_s == expected
    assert Notifier(variables).watchdog_s is None, "there is nobody to tell"


def use(notifier: Notifier) -> None:
    notifier.status("loading")
    notifier.ready()
    notifier.alive()
    notifier.stopping()


@pytest.mark.parametrize(
    "name",
    [
        "", "@", "relative", "vsock:2:1234", "/no/such/socket", "@nobody-listens", "/" + "x" * 4000, "/a\0b", "/\udce9",
        "@" + "x" * 300, "/dev/null", "/",
    ],
)  # fmt: skip
def test_a_socket_that_is_not_there_harms_nobody(name: str) -> None:
    use(Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "1000000"}))


def test_a_socket_that_vanishes_harms_nobody(tmp_path: Path) -> None:
    place = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(place))
        notifier = Notifier({"NOTIFY_SOCKET": str(place), "WATCHDOG_USEC": "1000000"})
        notifier.ready()
        assert "READY=1" in lines(listener)
    use(notifier)
    place.unlink()
    use(notifier)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:  # systemd was restarted
        listener.bind(str(place))
        notifier.alive()
        assert lines(listener) == ["WATCHDOG=1"]


def test_nobody_waits_for_a_full_socket(heard: tuple[str, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    """What may be lost takes no time; what must arrive waits, and arrives when there is room."""
    name, listener = heard
    notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "1000000"})
    started = time.monotonic()
    for _ in range(3000):  # Linux queues 10 to 512
        notifier.alive()
    assert time.monotonic() - started < 20 * PATIENCE_S, "each would have waited"
    monkeypatch.setattr(systemd, "PATIENCE_S", 60.0)  # also where this reader is behind
    sender = threading.Thread(target=notifier.ready)
    sender.start()
    found: list[str] = []
    while "READY=1" not in found:
        found += lines(listener)
    sender.join()


def test_many_threads_send_whole_messages(heard: tuple[str, socket.socket]) -> None:
    name, listener = heard
    notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "1000000"})
    threads = [threading.Thread(target=notifier.status, args=(f"{index} " * 50,)) for index in range(8)]
    found = []
    for thread in threads:
        thread.start()
        found += lines(listener)
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(f"STATUS={' '.join([str(index)] * 50)}" for index in range(8))
