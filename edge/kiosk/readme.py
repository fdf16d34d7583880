"""The steps that are left for the operator of a kiosk, as a text in its folder.

In: the settings. Out: the text. Every indented line is a command as it is
typed. Knows nothing about the other files but their names.
"""

from __future__ import annotations

from edge.kiosk import settings as names
from edge.kiosk.quoting import shell_command
from edge.kiosk.settings import KioskSettings

_TEXT = """\
A kiosk, written by `edge kiosk init`

  {prefix:<28}the beginning of every conversation, computed
  {page:<28}title, greeting, suggestions, languages and idle times of the page
  {system:<28}the system message, as it is in both; the server computes it where {prefix} does not fit
  {server:<28}the server: {url}
  {browser:<28}Chromium on the first screen, in the compositor cage
  {script:<28}the command of the browser, to be tried by hand in any session

All commands are for root.

1. Start the server, now and whenever the machine starts. {user} has to be able to read the bundle and this folder.

    install -m 644 {server_path} /etc/systemd/system/
    systemctl daemon-reload
    systemctl enable --now edge-kiosk.service

   When it is ready, the last command returns. What it says, and how it is:

    systemctl status edge-kiosk.service
    journalctl -u edge-kiosk.service -e

2. Show the page. The browser has a user of its own, without a password and without a shell.

    apt-get install -y --no-install-recommends cage chromium dbus libpam-systemd libgl1-mesa-dri
    apt-get install -y --no-install-recommends fonts-noto-core fonts-noto-cjk
    useradd --create-home --shell /usr/sbin/nologin {browser_user}
    install -m 644 {browser_path} /etc/systemd/system/
    systemctl daemon-reload
    systemctl enable --now edge-kiosk-browser.service

3. Pull the plug, and see whether it comes back.

After a change of {page}, restart the server. For another system message, make another folder: it is in the prefix, too.
After an update of the engine or a change of the bundle, the server computes the prefix at each of its starts, and says
so in the journal, since it may not write here. This does it once and for all:

    {again}
    systemctl restart edge-kiosk.service

Every word of {page} can be read by every visitor, the system message included.
"""


def readme(settings: KioskSettings) -> str:
    """Return the text."""
    folder = settings.folder
    edge = (str(settings.python), "-P", "-m", "edge")
    build = ("runuser", "-u", settings.user, "--", *edge, "prefix", "build", "--no-config")
    text = ("--system-file", str(folder / names.SYSTEM))
    return _TEXT.format(
        prefix=names.PREFIX,
        page=names.PAGE,
        system=names.SYSTEM,
        server=names.SERVER_UNIT,
        browser=names.BROWSER_UNIT,
        script=names.BROWSER_SCRIPT,
        url=settings.url,
        user=settings.user,
        browser_user=settings.browser_user,
        server_path=shell_command((str(folder / names.SERVER_UNIT),)),
        browser_path=shell_command((str(folder / names.BROWSER_UNIT),)),
        again=shell_command(
            (*build, str(settings.bundle), str(folder / names.PREFIX), *text, *settings.engine_options)
        ),
    )
