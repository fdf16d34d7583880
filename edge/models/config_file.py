"""The files of defaults, read: a user's `config.toml`, and a bundle's `edge.toml`.

In: a path. Out: what the file says, as TOML has it; nothing for a file that is not there. Knows nothing about options,
and of keys this one alone: `models`, where the models folder is instead of its usual place.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

from edge.models.folders import config_folder, data_folder
from edge.runtime.errors import SettingsError, in_words, shown
from edge.runtime.files import read_file, shown_path
from edge.runtime.rules import FilePath, check_value

CONFIG, OF_BUNDLE = "config.toml", "edge.toml"
MODELS = "models"
MAX_BYTES = 1_000_000
_MODELS_FOLDER = "models"  # in the data folder


def config_path() -> Path | None:
    """Return where this user's file is, or would be; None for a user without a home."""
    folder = config_folder()
    return None if folder is None else folder / CONFIG


def read_config() -> dict[str, Any]:  # Any: TOML
    """Return what this user's file says. Raises SettingsError for a file that cannot be read as TOML."""
    path = config_path()
    return {} if path is None else read_toml(path)


def read_toml(path: Path) -> dict[str, Any]:  # Any: TOML
    """Return what a file says; nothing if there is none. Raises SettingsError."""
    try:
        os.stat(path)  # noqa: PTH116  # a Path that has a zero byte or is too long answers in other ways
    except (FileNotFoundError, NotADirectoryError, PermissionError):  # of a folder that hides it
        return {}
    except (OSError, ValueError):
        pass  # reading it says what is wrong
    raw = read_file(path, SettingsError, "correct it, or give --no-config", max_bytes=MAX_BYTES)
    try:
        return tomllib.loads(raw.decode("utf-8-sig").replace("\r\n", "\n"))
    except UnicodeDecodeError as error:
        raise SettingsError(f"{shown_path(path)} is not UTF-8 at byte {error.start}; save it as UTF-8") from error
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:  # ValueError: a number of 5,000 digits
        raise SettingsError(f"{shown_path(path)} is not valid TOML: {in_words(error)}; correct it") from error


def models_folder() -> Path | None:
    """Return where bundles have names; None where a user has no such folder.

    Raises SettingsError for a file of defaults that cannot be read, or that has something else than a path there.
    """
    config = read_config()
    if MODELS not in config:
        folder = data_folder()
        return None if folder is None else folder / _MODELS_FOLDER
    given, path = config[MODELS], config_path()
    assert path is not None
    try:
        folder = Path(check_value(MODELS, FilePath(), given)).expanduser()
    except (SettingsError, RuntimeError):
        raise SettingsError(f"{shown_path(path)}: {MODELS} is {shown(given)}, expected the path of a folder") from None
    return path.parent / folder  # an absolute one stays as it is
