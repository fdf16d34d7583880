"""What one fuzzed reader is: valid inputs to begin with, and a function that must not die of any other.

In: nothing. Out: the record that every module of `targets/` makes one or more of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["bytes", "json", "text"]


@dataclass(frozen=True)
class Target:
    """A reader.

    seeds: called once with a folder of its own, gives valid inputs. read: called with each input and that folder; it
    may raise EdgeError and nothing else, and may not hang, end the process or take gigabytes.
    kind: what is changed in an input: its bytes, the values and keys of its JSON (besides its bytes), or its characters
    (besides its bytes).
    words: bytes that changes put in, which this format gives a meaning to.
    """

    name: str
    seeds: Callable[[Path], Sequence[bytes]]
    read: Callable[[bytes, Path], object]
    kind: Kind = "bytes"
    words: tuple[bytes, ...] = ()
