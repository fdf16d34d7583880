"""Takes out of a text what tells whose machine it is from: paths, and the names of user and machine.

In: a text or JSON. Out: the same without them. Knows nothing about what the text is about; what it cannot know is a
private word that is none of these, such as a model's name: whoever makes a report leaves those out.
"""

from __future__ import annotations

import getpass
import platform
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from edge.runtime.files import real_path

Json = str | int | float | bool | None | Sequence["Json"] | Mapping[str, "Json"]

# An absolute path, of which the last part is kept: "executor_pa.cpp:2938" says where a library failed.
_PATH = re.compile(r"""(?<![\w.-])(?:[A-Za-z]:[\\/]|[\\/]{1,2}|~[\\/])(?:[^\\/\s"'<>|*?]+[\\/]+)+""")
# Where names of users are, which may have blanks.
_HOMES = re.compile(r"""(?:[A-Za-z]:)?[\\/]+(?:Users|home)[\\/]+[^\\/"'<>|*?\n]+(?=[\\/])""", re.IGNORECASE)
_COMMON = ("root", "user", "admin", "administrator", "localhost", "runner")  # names that are nobody's
_SHORTEST = 3  # characters of a name: shorter ones would be found everywhere


class Scrubber:
    """Replaces private words. More may be named than the system tells, such as the path of a bundle."""

    def __init__(self, places: Mapping[str, str], names: Mapping[str, str] | None = None) -> None:
        """places: paths and what they are called instead; names: likewise, of users and machines; None: this one's."""
        self._places = sorted(_spellings(places), key=lambda pair: -len(pair[0]))  # the longest first
        known = _names_here() if names is None else names
        self._names = [
            (re.compile(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", re.IGNORECASE), called)
            for name, called in known.items()
            if len(name) >= _SHORTEST and name.lower() not in _COMMON
        ]

    def text(self, value: str) -> str:
        for place, called in self._places:
            value = value.replace(place, called)
        value = _PATH.sub("…/", _HOMES.sub("/~", value))
        for pattern, called in self._names:
            value = pattern.sub(called, value)
        return value

    def json(self, value: Json) -> Json:
        """Return JSON with every text in it scrubbed. Keys are names that the program gave."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {key: self.json(each) for key, each in value.items()}
        if isinstance(value, Sequence):
            return [self.json(each) for each in value]
        return value


def _spellings(places: Mapping[str, str]) -> list[tuple[str, str]]:
    """Each path as it is given, absolute and real, with both kinds of slashes, and as Python quotes it."""
    found: dict[str, str] = {}
    for place, called in {**places, str(Path.home()): "~"}.items():
        for path in (place, str(Path(place).absolute()), str(real_path(Path(place)))):
            for spelling in (path, path.replace("\\", "/"), path.replace("\\", "\\\\")):
                if len(spelling) >= _SHORTEST:
                    found.setdefault(spelling, called)
    return list(found.items())


def _names_here() -> dict[str, str]:
    found = {platform.node(): "<machine>", platform.node().split(".")[0]: "<machine>", Path.home().name: "<user>"}
    with suppress(OSError, KeyError, ImportError):  # a user without a name, as in a container
        found[getpass.getuser()] = "<user>"
    return found
