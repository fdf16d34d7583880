"""The script that shows a kiosk's page in Chromium.

In: the settings. Out: a script for any POSIX shell. Knows nothing about sessions and screens: whoever starts it
has one.
"""

from __future__ import annotations

from edge.kiosk.quoting import shell_command
from edge.kiosk.settings import KioskSettings

# Nothing is remembered, nothing is looked up elsewhere, and no gesture leaves the page.
FLAGS = (
    "--kiosk",
    "--incognito",
    "--noerrdialogs",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-pinch",
    "--overscroll-history-navigation=0",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-features=Translate,MediaRouter,OptimizationHints,AutofillServerCommunication",
    "--password-store=basic",
    "--ozone-platform-hint=auto",
)

_SCRIPT = """\
#!/bin/sh
# Written by `edge kiosk init`: the page of the kiosk in Chromium, with a profile that is thrown away.
set -eu
profile=$(mktemp -d)
trap 'rm -rf "$profile"' EXIT
trap 'exit 0' HUP INT TERM

# A page that cannot be reached at first would stay an error page.
until {asked} 2>/dev/null; do
    sleep 1
done
{command} "--user-data-dir=$profile"
"""


def browser_script(settings: KioskSettings) -> str:
    """Return the script."""
    ask = f'import socket; socket.create_connection(("{settings.host}", {settings.port}), 2).close()'
    return _SCRIPT.format(
        asked=shell_command(("python3", "-c", ask)),
        command=shell_command(("chromium", *FLAGS, f"--app={settings.url}")),
    )
