"""Where the user's own cache is.

In: nothing. Out: a folder, which need not exist. Knows nothing about its content, all of which can be made again.
"""

from __future__ import annotations

import os
from pathlib import Path

from edge.runtime.errors import OutputError

NAME = "edgeglm"


def cache_folder() -> Path:
    """Return where the platform keeps files that can be made again. Raises OutputError for a user without a home."""
    try:
        from platformdirs import user_cache_path
    except ImportError:  # a slim install
        given = Path(os.environ.get("XDG_CACHE_HOME", ""))
        folder = (given if given.is_absolute() else _home() / ".cache") / NAME
    else:
        folder = user_cache_path(NAME, appauthor=False, opinion=False)
    if not folder.is_absolute():
        raise OutputError(f"this user has no home folder, so {folder} cannot be the cache folder; name a folder")
    return folder


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:
        return Path("~")
