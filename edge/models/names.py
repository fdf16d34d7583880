"""Names of bundles: what may be one, and a sensible one for an export that was given none.

In: words of a command line, the source and settings of an export. Out: names. Asks no file system, but knows what the
file systems of all platforms refuse: a models folder may be copied from one to another.
"""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import PurePath

from edge.runtime.errors import SettingsError, shown

LONGEST = 100  # bytes of a name; what an export puts beside it is longer
_REFUSED = '<>:"|?*'  # by Windows
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])(\..*)?", re.IGNORECASE)  # of Windows
# What GGUF files have at their ends: how they were compressed, which the bundle is not.
_COMPRESSION = re.compile(r"[-._](i?q\d+(_\w+)?|[fb]f?16|f32|fp16|fp32)$", re.IGNORECASE)
_HUB_PREFIX = "hf:"


def is_word(text: str) -> bool:
    """Whether a text could be meant as a name: it is neither a path of several parts, nor a drive, nor a dot."""
    separate = any(separator in text for separator in "/\\")
    return bool(text) and not separate and text not in (".", "..") and not os.path.splitdrive(text)[0]


def check_name(text: str) -> str:
    """Return a name for a new bundle, in the one form that Unicode has for it. Raises SettingsError."""
    name = unicodedata.normalize("NFC", text)
    wrong = _why_not(name)
    if wrong is not None:
        raise SettingsError(f"{shown(text)} cannot be the name of a bundle: {wrong}; choose another, or give a path")
    return name


def key_of(name: str) -> str:
    """Return what two names that one file system could confuse have in common."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def name_for(source: str, precision: str, adapter: str | None = None) -> str:
    """Return a name for the export of a source: its own last part, a LoRA's, and the precision, in small letters."""
    own = source.removeprefix(_HUB_PREFIX).partition("@")[0].replace("\\", "/").rstrip("/").rpartition("/")[2]
    if own.lower().endswith(".gguf"):
        own = _COMPRESSION.sub("", re.sub(r"-\d{5}-of-\d{5}$", "", own[: -len(".gguf")]))
    parts = [own or "model", *([PurePath(adapter).name] if adapter else []), precision]
    name = re.sub(r"[^\w.]+", "-", unicodedata.normalize("NFC", "-".join(parts)).lower()).strip("-._")
    cut = name.encode()[-LONGEST:].decode(errors="ignore").strip("-._")
    return cut if _why_not(cut) is None else f"model-{precision}"


def _why_not(name: str) -> str | None:  # noqa: PLR0911  # one reason after the other
    if not name.isprintable() or any("\ud800" <= letter <= "\udfff" for letter in name):
        return "it has a character that cannot be shown"
    if name[:1] in ("", ".", "-", "~"):
        return "it begins with one of . - ~" if name else "it is empty"
    if name.strip() != name or name.endswith("."):
        return "it begins or ends with a space, or ends with a dot"
    if found := sorted({*name} & {*_REFUSED, "/", "\\"}):
        return f"it has one of {' '.join(found)}"
    if _DEVICES.fullmatch(name):
        return "Windows has a device of that name"
    if len(name.encode()) > LONGEST:
        return f"it has more than {LONGEST} bytes"
    return None
