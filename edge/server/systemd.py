"""Telling systemd how a server is: starting, ready, alive, stopping.

In: the variables of the environment that systemd sets for a service of Type=notify, and calls. Out: datagrams. Knows
nothing about servers; whoever uses it decides what counts as alive.

NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID are the interface that systemd documents (sd_notify(3),
sd_watchdog_enabled(3)); they are not settings of ours. Without them, and on systems without such sockets, nothing is
sent. Whatever happens to the socket, the server that reports goes on.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Mapping

MAX_STATUS = 500  # characters of a status, which `systemctl status` shows on one line
PATIENCE_S = 1.0  # to send what must arrive, when systemd is behind in reading
_MICROSECONDS = 10**6

logger = logging.getLogger(__name__)


class Notifier:
    """The connection to systemd, if there is one. May be used from any thread.

    `watchdog_s` is the time between two calls of `alive` in seconds: half of what systemd allows, as its manual
    recommends. None if it does not watch this process.
    """

    def __init__(self, variables: Mapping[str, str] | None = None) -> None:
        """variables: those of this process by default."""
        variables = os.environ if variables is None else variables
        self._address = _address(variables.get("NOTIFY_SOCKET", ""))
        self.watchdog_s = None if self._address is None else _watchdog_s(variables)

    def ready(self) -> None:
        """Requests can be answered from now on."""
        self._send("READY=1\nSTATUS=ready", patience_s=PATIENCE_S)

    def status(self, text: str) -> None:
        """Show a line of text to those who ask systemd."""
        line = " ".join(text.split())
        self._send(f"STATUS={line[:MAX_STATUS]}")

    def stopping(self) -> None:
        """The end has begun, as it should."""
        self._send("STOPPING=1\nSTATUS=stopping", patience_s=PATIENCE_S)

    def alive(self) -> None:
        """Put off the restart by systemd's watchdog. To be called as long as work goes on, and not otherwise."""
        if self.watchdog_s is not None:
            self._send("WATCHDOG=1")

    def _send(self, message: str, patience_s: float = 0.0) -> None:
        """Send a datagram, or lose it: nobody waits longer than `patience_s` for a socket that is full."""
        if sys.platform == "win32" or self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | getattr(socket, "SOCK_CLOEXEC", 0)) as sender:
                sender.settimeout(patience_s)
                sender.sendto(message.encode("utf-8", "replace"), self._address)
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
            logger.info("systemd was not told %s: %s", message.partition("=")[0], error)


def _address(name: str) -> str | None:
    """Return the address of the socket: a path, or a name without a file, which "@" stands for. None for any other."""
    if sys.platform == "win32" or not hasattr(socket, "AF_UNIX"):
        return None
    if name.startswith("/"):
        return name
    return f"\0{name[1:]}" if name.startswith("@") and len(name) > 1 else None


def _watchdog_s(variables: Mapping[str, str]) -> float | None:
    """Return half of the time that a process may be silent; None if that is not said, or said to another process."""
    pid, allowed = variables.get("WATCHDOG_PID", ""), variables.get("WATCHDOG_USEC", "")
    if pid and pid != str(os.getpid()):
        return None
    if not (allowed.isascii() and allowed.isdigit() and len(allowed) < 20) or not int(allowed):
        return None
    return int(allowed) / _MICROSECONDS / 2
