"""Where the bundle is that every node opens: a path that all of them have.

In: a path. Out: a folder on this node. Knows nothing about models.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class BundleSource:
    """A bundle as a cluster's nodes find it."""

    path: str

    def here(self) -> Path:
        """Return the bundle's folder on this node."""
        return Path(self.path)
