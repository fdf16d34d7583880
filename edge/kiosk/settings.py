"""What is decided about a kiosk before its files are written.

In: values of the command line. Out: a checked record. Knows nothing about files and formats.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path

from edge.runtime.errors import SettingsError, shown
from edge.runtime.rules import FilePath, Flag, OneOf, Refusal, Settings, Texts, Whole, setting
from edge.server.settings import ServerSettings

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PORT = next(spec.default for spec in fields(ServerSettings) if spec.name == "port")
BROWSER_USER = "kiosk"
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,30}")  # as systemd takes them


@dataclass(frozen=True, slots=True)
class UserName:
    """The name of a user of a Linux system, other than its owner."""

    expected: str = "the name of a user without the rights of root, of letters, digits, - and _"

    def take(self, value: object) -> str:
        if not isinstance(value, str) or not _USER.fullmatch(value) or value == "root":
            raise Refusal
        return value


@dataclass(frozen=True, slots=True)
class KioskSettings(Settings):
    """How the server and the browser of a kiosk are started. Raises SettingsError.

    All paths are absolute: services have no folder of their own to start from.
    """

    bundle: Path = setting(None, FilePath(), "bundle that answers")
    folder: Path = setting(None, FilePath(), "folder of the kiosk")
    python: Path = setting(None, FilePath(), "interpreter that has edgeglm")
    user: str = setting(None, UserName(), "user that the server runs as")
    browser_user: str = setting(BROWSER_USER, UserName(), "user that the browser runs as")
    host: str = setting(LOOPBACK[0], OneOf(LOOPBACK), "address that the server listens on")
    port: int = setting(PORT, Whole(1, 65535), "port that the server listens on")
    engine_options: tuple[str, ...] = setting((), Texts(), "options of `edge serve` for engine and memory")
    needs_graphics: bool = setting(False, Flag(), "whether the server computes on a GPU")

    def check_together(self) -> None:
        for name in ("bundle", "folder", "python"):
            path: Path | None = getattr(self, name)
            if path is None or not path.is_absolute():
                raise SettingsError(f"{name} is {shown(path and str(path))}, expected an absolute path", param=name)
            try:
                str(path).encode()
            except UnicodeEncodeError:
                raise SettingsError(
                    f"{name} is {shown(str(path))}, which is not UTF-8, as a unit of systemd has to be; rename it",
                    param=name,
                ) from None
        if self.user is None:
            raise SettingsError(f"user is missing, expected {UserName().expected}", param="user")
        if self.user == self.browser_user:
            raise SettingsError(
                f"browser_user is {self.user}, which the server runs as; give the browser a user of its own",
                param="browser_user",
            )

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}/?kiosk=1"

    @property
    def serve(self) -> tuple[str, ...]:
        """The command of the server."""
        return (
            *(str(self.python), "-P", "-m", "edge", "serve", "--no-config", str(self.bundle)),
            *("--system-file", str(self.folder / SYSTEM), "--prefix", str(self.folder / PREFIX)),
            *("--page-config", str(self.folder / PAGE)),
            *("--host", self.host, "--port", str(self.port), *self.engine_options),
        )


# The files of a kiosk's folder.
PREFIX, PAGE, SYSTEM = "kiosk.prefix", "page.json", "system.txt"
SERVER_UNIT, BROWSER_UNIT = "edge-kiosk.service", "edge-kiosk-browser.service"
BROWSER_SCRIPT, README = "kiosk-browser.sh", "README.txt"
