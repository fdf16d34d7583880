"""The two services of a kiosk as units of systemd: the server, and the browser on the screen.

In: the settings, and what a server like this one takes of memory. Out: the text of each unit. Knows nothing about where
it is written.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from edge.kiosk.quoting import unit_command, unit_text
from edge.kiosk.settings import BROWSER_SCRIPT, README, SERVER_UNIT, KioskSettings

WATCHDOG_S = 60  # without a sign of life, after which the server is started again
START_S = 900  # to read the weights from a slow disk
CACHE = "edge-kiosk"  # the one folder that the server may write in, below /var/cache
_HOMES = ("/home", "/root", "/run/user")
_TEMPORARY = ("/tmp", "/var/tmp")  # what a service may have of its own, instead of everybody's

_SERVER = """\
# Written by `edge kiosk init`; {readme} says how it is installed.
[Unit]
Description=Answers for the kiosk, by {bundle}
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart={command}
User={user}
Restart=always
RestartSec=2
TimeoutStartSec={start}
TimeoutStopSec=30
# The server reports as long as its engine moves. A process that hangs would leave gigabytes of core.
WatchdogSec={watchdog}
LimitCORE=0

# {memory}
{limit}

# Everything is read-only but this folder, where the server notes which files of the bundle it has read.
ProtectSystem=strict
CacheDirectory={cache}
Environment=XDG_CACHE_HOME=/var/cache/{cache}
ProtectHome={homes}
PrivateTmp={temporary}
UMask=0077

# No network but the machine's own.
IPAddressDeny=any
IPAddressAllow=localhost
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6

{devices}
NoNewPrivileges=yes
CapabilityBoundingSet=
LockPersonality=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"""

_BROWSER = """\
# Written by `edge kiosk init`; {readme} says how it is installed.
[Unit]
Description=The page of the kiosk on the first screen
Wants={server}
After={server} systemd-user-sessions.service systemd-logind.service getty@tty1.service
Conflicts=getty@tty1.service
StartLimitIntervalSec=0

[Service]
ExecStart={command}
User={user}
# A session on a seat, which gives the compositor screen and input devices.
PAMName=login
TTYPath=/dev/tty1
StandardInput=tty
StandardOutput=journal
TTYReset=yes
TTYVHangup=yes
TTYVTDisallocate=yes
Restart=always
RestartSec=2

ProtectSystem=full
PrivateTmp=yes
IPAddressDeny=any
IPAddressAllow=localhost

[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True, slots=True)
class Memory:
    """What a server takes."""

    taken_bytes: int  # at most, by a process that computed the prefix
    cache_bytes: int  # of the KV cache, when it is full


def server_unit(settings: KioskSettings, memory: Memory | None = None) -> str:
    """Return the unit of the server. memory: what it takes, for the limit that it proposes."""
    paths = (settings.bundle, settings.folder, settings.python)
    graphics = "# The GPU is a device of the group `render`.\nDeviceAllow=char-drm rw\nSupplementaryGroups=render"
    return _SERVER.format(
        readme=README,
        bundle=unit_text(settings.bundle.name),
        command=unit_command(settings.serve),
        user=settings.user,
        start=START_S,
        watchdog=WATCHDOG_S,
        memory=_memory(memory),
        limit=f"#MemoryMax={_limit(memory)}",
        cache=CACHE,
        homes="read-only" if _within(paths, _HOMES) else "yes",
        temporary="no" if _within(paths, _TEMPORARY) else "yes",
        devices=graphics if settings.needs_graphics else "PrivateDevices=yes",
    )


def browser_unit(settings: KioskSettings) -> str:
    """Return the unit of the browser: Chromium as the only program of the compositor cage."""
    words = ("/usr/bin/cage", "-d", "--", "/bin/sh", str(settings.folder / BROWSER_SCRIPT))
    return _BROWSER.format(readme=README, server=SERVER_UNIT, command=unit_command(words), user=settings.browser_user)


def _memory(memory: Memory | None) -> str:
    reason = "A limit of memory keeps the rest of the machine alive"
    if memory is None:
        return f"{reason}; see what the server takes before you set one."
    return (
        f"{reason}. Computing the prefix took {memory.taken_bytes / 1e9:.1f} GB at most,\n"
        f"# and answers may fill a KV cache of {memory.cache_bytes / 1e9:.1f} GB; this is a quarter more:"
    )


def _limit(memory: Memory | None) -> str:
    return "4G" if memory is None else f"{math.ceil((memory.taken_bytes + memory.cache_bytes) * 1.25 / 2**20)}M"


def _within(paths: tuple[Path, ...], folders: tuple[str, ...]) -> bool:
    return any(path.is_relative_to(folder) for path in paths for folder in folders)
