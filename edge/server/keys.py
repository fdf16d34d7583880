"""Keys that clients have to show.

In: a file, or texts. Out: whether a header has one of them. Knows nothing about requests.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from pathlib import Path

from edge.runtime.errors import PromptError, SettingsError
from edge.runtime.files import read_file
from edge.runtime.unicode import decode_text

LEAST = 8  # characters: a shorter one could be tried out


def read_keys(path: Path) -> tuple[str, ...]:
    """Return the keys of a file, one a line; empty lines and those that begin with # are left out.

    Raises SettingsError, which quotes none of them.
    """
    raw = read_file(path, SettingsError, "give a text file with one key a line")
    try:
        lines = decode_text(raw, str(path)).splitlines()
    except PromptError:
        raise SettingsError(f"{path} is not UTF-8 text; give a text file with one key a line") from None
    found = tuple(key for line in lines if (key := line.strip()) and not key.startswith("#"))
    if not found:
        raise SettingsError(f"{path} has no key; write one a line")
    return found


def check_keys(keys: Sequence[str]) -> None:
    """Raise SettingsError for a key that protects nothing, or that no header can hold."""
    for number, key in enumerate(keys, 1):
        if len(key) < LEAST or not key.isascii() or not key.isprintable() or " " in key:
            raise SettingsError(
                f"key {number} cannot be used: expected at least {LEAST} printable ASCII characters without blanks"
            )


class Keys:
    """Keys, of which only hashes are kept."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._hashes = [_hash(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def accept(self, authorization: bytes | None, api_key: bytes | None) -> bool:
        """Say whether one of two headers has a key. It takes as long for every wrong one."""
        given = api_key or b""
        if authorization is not None:
            scheme, _, rest = authorization.partition(b" ")
            given = rest.strip() if scheme.lower() == b"bearer" else b""
        mine = _hash(given)
        return bool(sum([hmac.compare_digest(mine, one) for one in self._hashes]))


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
