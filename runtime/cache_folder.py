"""Where the user's own cache is.

In: nothing. Out: a folder, there or not. Knows nothing about what is kept in it: all of it can be made again.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from edge.runtime.errors import OutputError


def cache_folder() -> Path:
    """Where the platform keeps what can be made again. Raises OutputError for a user without a home."""
    try:
        if sys.platform == "win32":
            return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "edgeglm"
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "edgeglm"
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeglm"
    except RuntimeError as error:
        raise OutputError(f"this user has no home folder ({error}), so no cache folder; name a folder") from error
