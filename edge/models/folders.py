"""Where this user's models, settings and state are: the platform's own folders, by platformdirs.

In: nothing but the account that runs this. Out: paths, which need not exist; None where there are none: an account
without a home, or a slim install without platformdirs, which runs bundles by path. Makes no folder and reads no file.

              Linux                           macOS                                      Windows
    data      ~/.local/share/edgeglm          ~/Library/Application Support/edgeglm      %LOCALAPPDATA%\\edgeglm
    config    ~/.config/edgeglm               as data                                    as data
    state     ~/.local/state/edgeglm          as data                                    as data
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

_APP = "edgeglm"


def data_folder() -> Path | None:
    """Return where what a user made is kept."""
    return _folder("data")


def config_folder() -> Path | None:
    """Return where a user's settings are."""
    return _folder("config")


def state_folder() -> Path | None:
    """Return where a program remembers what would not be missed."""
    return _folder("state")


def _folder(kind: Literal["data", "config", "state"]) -> Path | None:
    try:
        from platformdirs import PlatformDirs  # a slim install has none
    except ModuleNotFoundError:
        return None
    try:
        path = Path(getattr(PlatformDirs(_APP, appauthor=False), f"user_{kind}_dir"))
    except (OSError, KeyError, ValueError, RuntimeError):  # of a system that does not know this user
        return None
    return path if path.is_absolute() else None  # without a home, "~" is left as it is
