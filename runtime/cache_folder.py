"""Where the user's own cache is.

In: nothing. Out: a folder, which need not exist. Knows nothing about its content, all of which can be made again.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from edge.runtime.errors import OutputError


def cache_folder() -> Path:
    """Return where the platform keeps files that can be made again. Raises OutputError for a user without a home."""
    try:
        if sys.platform == "win32":
            return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "edgeglm"
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "edgeglm"
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeglm"
    except RuntimeError as error:
        raise OutputError(f"this user has no home folder ({error}), and so no cache folder; name a folder") from error
