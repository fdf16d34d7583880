"""What the name of a checkpoint means: a path, or a model on a hub.

In: the name as a user gave it. Out: a hub id, or none. Asks the file system and never the network, so that a mistyped
path is not sent anywhere. Knows nothing about checkpoints or hubs.

A name is a hub id only if it says so (`hf:org/name`), or if it reads as one and resembles nothing local: no file or
folder is named like its first part, and no path is one that it may be a misspelling of.
"""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from pathlib import Path

from edge.runtime.errors import CheckpointError, shown

PREFIX = "hf:"
EXAMPLE = "THUDM/glm-4-9b-chat"
_NAME = r"\w+(?:[-.]\w+)*"  # the hub allows neither "--" nor "..", and no punctuation at either end
_PART = r"\w[\w.-]*"
HUB_ID = re.compile(
    rf"(?P<repo>{_NAME}/{_NAME})(?:/(?P<file>(?:{_PART}/)*{_PART}\.gguf))?(?:@(?P<revision>{_PART}(?:/{_PART})*))?",
    re.ASCII,
)
_ALIKE = 0.75  # of difflib: one or two letters of a name


def is_hub_id(source: str) -> bool:
    """Whether `source` reads as a hub id. Many relative paths do as well."""
    match = HUB_ID.fullmatch(source)
    if match is None or match["repo"].endswith(".git"):  # the hub allows no such name
        return False
    # `models/x.gguf` is a mistyped path; a repository of that name would not be meant.
    return match["file"] is not None or not match["repo"].endswith(".gguf")


def meant_hub_id(source: str) -> str | None:
    """The hub id that a name means if it is not a path; None if it is not a hub id either.

    Raises CheckpointError where it may be a mistyped path, and where what follows `hf:` is not a hub id.
    """
    if source.startswith(PREFIX):
        if not is_hub_id(name := source.removeprefix(PREFIX)):
            raise CheckpointError(f"{shown(source)}: not a hub id; expected {PREFIX}org/name, like {PREFIX}{EXAMPLE}")
        return name
    if not is_hub_id(source):
        return None
    first = source.split("/", 1)[0]
    if os.path.lexists(first):
        raise CheckpointError(
            f"{source}: no such path. {first} is here, so no hub was asked; check the spelling, or give "
            f"{PREFIX}{source} for the model on the hub"
        )
    if (alike := _path_alike(source)) is not None:
        raise CheckpointError(
            f"{source}: no such path, and no hub was asked; did you mean {alike}? Give {PREFIX}{source} for the model "
            "on the hub"
        )
    return source


def _path_alike(source: str) -> str | None:
    """An existing path whose parts each differ from those of `source` in a letter or two."""
    found = Path()
    for part in source.split("/"):
        try:
            alike = get_close_matches(part, [path.name for path in found.iterdir()], 1, _ALIKE)
        except OSError:  # a file, or a folder that may not be read
            return None
        if not alike:
            return None
        found /= alike[0]
    return str(found)
