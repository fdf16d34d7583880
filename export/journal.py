"""What is done of a long piece of work, on the disk, so that the next process continues where this one was ended.

In: a folder, and a key that says what is being made. Out: the steps that were recorded under the same key, none where
the record is not there, cut off or altered; and single results of long measurements, in files of their own that outlast
a change of what is made of them. Knows nothing about what a step is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from edge.runtime.atomic import write_durably
from edge.runtime.errors import OutputError
from edge.runtime.json_reader import read_json_object

T = TypeVar("T")

NAME = "journal.json"
FORMAT = 2  # of what its makers record


class Journal:
    """A list of steps, each a JSON object, and facts by name. On the disk before `add` and `note` return.

    Where nothing is recorded under the key, opening it empties the folder, or makes it.

    Its `folder` also takes what a step needs of the one before it; nothing else may be there.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self._path = folder / NAME
        self._key = f"{FORMAT} {key}"
        self.steps: list[Mapping[str, Any]] = []  # JSON, as their maker wrote them
        self.facts: dict[str, str] = {}
        self._read()
        if self.empty:
            self.clear()

    @property
    def empty(self) -> bool:
        """Whether nothing is recorded."""
        return not self.steps and not self.facts

    def add(self, step: Mapping[str, object]) -> None:
        """Record one more step. Raises OSError."""
        self.steps.append(step)
        self._write()

    def note(self, name: str, fact: str) -> None:
        """Record a fact. Raises OSError."""
        self.facts[name] = fact
        self._write()

    def clear(self) -> None:
        """Begin anew: nothing recorded, and an empty folder."""
        self.steps, self.facts = [], {}
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def forget_steps(self) -> None:
        """Begin anew with the same facts."""
        facts = self.facts
        self.clear()
        self.facts = facts
        self._write()

    def _write(self) -> None:
        record = [self._key, self.facts, self.steps]
        data = {"key": self._key, "facts": self.facts, "steps": self.steps, "sha256": _digest(record)}
        write_durably(self._path, json.dumps(data).encode())

    def _read(self) -> None:
        try:
            data = read_json_object(self._path, OutputError, "start anew")
            record = [data["key"], data["facts"], data["steps"]]
            if data["key"] == self._key and data["sha256"] == _digest(record):
                self.facts, self.steps = dict(data["facts"]), list(data["steps"])
        except (OutputError, KeyError, TypeError, ValueError):
            pass  # not there, cut off, or of another version: nothing is done


def _digest(record: object) -> str:
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()


def keep(path: Path, key: str, result: Mapping[str, object]) -> None:
    """Write a result. Raises OSError."""
    write_durably(path, json.dumps({"key": key, **result}).encode())


def read_kept(path: Path, key: str, made: Callable[[Mapping[str, Any]], T]) -> T | None:  # Any: JSON
    """What an earlier export had measured, as `made` makes it of JSON; None where that cannot be used."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, OutputError):
        found = read_json_object(path, OutputError, "it is measured anew")
        if found["key"] == key:
            return made(found)
    return None
