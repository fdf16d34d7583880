"""One walk over a model, a stage at a time: the embedding, every decoder block, the head; or over a picture tower.

In: the stages in their order, and a journal. Out: the stages that are left, in their order, and what each of them
needs of the one before it. When a stage is finished, its record is in the journal, and the states that the next one
continues from (hidden states, mostly) are in files beside it, known by their digests: a walk that was ended continues
where it was, and one whose files were altered begins anew. Knows nothing about what is done at a stage.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from edge.export.journal import Journal
from edge.export.tensors import Float32Array
from edge.runtime.files import sha256_of


class Named(Protocol):
    """A part of a model that is computed as a whole."""

    @property
    def index(self) -> int:
        """Its place in the walk."""

    @property
    def name(self) -> str:
        """What it is called in the journal, and to users."""


S = TypeVar("S", bound=Named)


@dataclass(frozen=True)
class Batches:
    """An array that is made and written a part at a time."""

    shape: tuple[int, ...]
    parts: Iterable[Float32Array]  # one after the other along the first axis


class Walk(Generic[S]):
    """The stages of a model and how far they are done. Without a journal nothing is kept on the disk."""

    def __init__(self, stages: tuple[S, ...], journal: Journal | None) -> None:
        self.stages = stages
        self._journal = journal
        if journal is not None and not self._holds():
            journal.forget_steps()

    @property
    def records(self) -> list[Mapping[str, Any]]:  # Any: JSON, as it was given to `finish`
        """What was recorded of the stages that are done."""
        return [step["record"] for step in self._steps]

    @property
    def remaining(self) -> tuple[S, ...]:
        """The stages that are left to do."""
        return self.stages[len(self._steps) :]

    def begin_anew(self) -> None:
        """Forget what is done."""
        if self._journal is not None:
            self._journal.forget_steps()

    def states(self, name: str) -> Float32Array:
        """States of this name after the last stage that is done, mapped from their file. None is done: an error."""
        mapped: Float32Array = np.load(self._path(name, len(self._steps)), mmap_mode="r", allow_pickle=False)
        return mapped

    def finish(self, stage: S, record: Mapping[str, object], **states: Float32Array | Batches) -> None:
        """A stage is done: write what the next one continues from, then record it. Raises OSError.

        Parts of a `Batches` are made meanwhile, and may be made of the states of the stage before.
        """
        if self._journal is None:
            return
        steps = self._journal.steps
        assert stage.index == len(steps), "stages are done in their order"
        digests = {name: _write(self._path(name, len(steps) + 1), array) for name, array in states.items()}
        old = [self._path(name, len(steps)) for name in (steps[-1]["states"] if steps else ())]
        self._journal.add({"stage": stage.name, "states": digests, "record": dict(record)})
        for path in old:
            path.unlink(missing_ok=True)

    @property
    def _steps(self) -> list[Mapping[str, Any]]:
        return [] if self._journal is None else self._journal.steps

    def _holds(self) -> bool:
        """Whether the journal tells of these stages, and the states after the last one are as it says."""
        steps = self._steps
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            if [step["stage"] for step in steps] != [stage.name for stage in self.stages[: len(steps)]]:
                return False
            states = steps[-1]["states"] if steps else {}
            return all(sha256_of(self._path(name, len(steps))) == sha256 for name, sha256 in states.items())
        return False

    def _path(self, name: str, stages_done: int) -> Path:
        assert self._journal is not None
        return self._journal.folder / f"{name}-{stages_done}.npy"


def _write(path: Path, array: Float32Array | Batches) -> str:
    """Write an .npy file without a copy of the array; returns the sha256 of the file."""
    batches = Batches(array.shape, [array]) if isinstance(array, np.ndarray) else array
    header = io.BytesIO()
    form = {"descr": "<f4", "fortran_order": False, "shape": batches.shape}
    np.lib.format.write_array_header_1_0(header, form)
    digest = hashlib.sha256(header.getvalue())
    with path.open("wb") as file:  # not a writable map: on a full disk that ends the process
        file.write(header.getvalue())
        for part in batches.parts:
            rows = np.ascontiguousarray(part, "<f4").data.cast("B")
            digest.update(rows)
            file.write(rows)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()
