"""A batch from its files to its file: what is checked before a model is loaded, and what is done with one.

In: the paths of requests and output, and a model. Out: the output, whole or not at all, in the order of the requests;
until then a journal beside it. Knows nothing about command lines.

    OUT                       written when all lines are done
    OUT.edgeglm-batch         the journal (`journal.py`)
    .OUT.edgeglm-batch-lock   held while a process works on OUT
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from edge.batch.answering import Outcome, answer_lines
from edge.batch.journal import Done, Journal, Totals
from edge.batch.lines import Line, Lines
from edge.batch.requests import line_id, output_line, request_id
from edge.batch.settings import BatchSettings
from edge.runtime.atomic import name_beside, write_atomically
from edge.runtime.bundle import MANIFEST
from edge.runtime.errors import BundleError, OutputError
from edge.runtime.files import real_path, sha256_of, shown_path
from edge.runtime.llm import LLM
from edge.runtime.locks import hold_now
from edge.runtime.settings import generation_settings
from edge.runtime.vision.progress import OnPicture

JOURNAL, LOCK = ".edgeglm-batch", ".edgeglm-batch-lock"
_NAMED = 3  # other models, in a summary


class Progress(NamedTuple):
    """How far a batch is."""

    done: int  # lines, those of earlier runs included
    total: int
    left_s: float | None  # None: nothing is known yet


@dataclass(frozen=True, slots=True)
class Summary:
    """What a batch came to."""

    totals: Totals
    resumed: int  # lines that earlier runs have done
    other_models: tuple[str, ...] = ()  # that lines named, at most a few of them
    nothing_to_do: bool = False  # the output was there


Show = Callable[[Progress], None]


class Batch:
    """The files of a batch. Raises PromptError for requests that cannot be run, OutputError for the output.

    force: the output may be replaced, and so may what another batch has left beside it.
    """

    def __init__(self, requests: Path, out: Path, settings: BatchSettings, *, force: bool = False) -> None:
        self.out = real_path(out)
        self._settings, self._force = settings, force
        self._stack = ExitStack()
        self._check_out(requests)
        self.journal_path = name_beside(self.out, JOURNAL)
        with ExitStack() as stack:
            self._hold(stack)
            self.lines = Lines(requests)
            stack.callback(self.lines.close)
            if os.path.lexists(self.out) and not force and not self._holds(line_id, "id"):
                raise OutputError(f"{shown_path(out)} exists; choose another file, or --force to replace it")
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def run(
        self,
        llm: LLM,
        more: Mapping[str, str],
        show: Show = lambda _progress: None,
        on_picture: OnPicture | None = None,
    ) -> Summary:
        """Answer what is not done yet and write the output.

        more: what decides the answers besides the model as it is loaded, by name. on_picture: told how far pictures
        are. Raises OutputError; what is done is then kept.
        """
        model, parts = _describe(llm)
        usual = generation_settings(llm.recommended_sampling, sampling=self._settings.sampling).sampling
        parts = {**parts, **more, "sampling": str(usual), "requests": self.lines.sha256}
        run = hashlib.sha256(json.dumps(sorted(parts.items())).encode()).hexdigest()
        there = os.path.lexists(self.out)
        ours = there and self._holds(lambda line: request_id(line, run), "response", "request_id")
        if there and not self._force:
            if not ours:
                raise OutputError(
                    f"{shown_path(self.out)} exists, and its answers are those of other settings or another model; "
                    "choose another file, or --force to replace it"
                )
            self._drop_journal(parts)
            return Summary(self._totals(), len(self.lines), nothing_to_do=True)
        journal = Journal(self.journal_path, parts, len(self.lines), anew=self._force)
        try:
            summary = self._answer(llm, journal, model, run, show, on_picture)
            if not self._force and os.path.lexists(self.out):
                raise OutputError(f"{shown_path(self.out)} has appeared meanwhile; move it away, and run this again")
            write_atomically(self.out, journal.lines())
            with suppress(OSError):
                self.out.chmod(journal.mode)
        except BaseException:
            journal.close()
            raise
        journal.remove()
        return summary

    def _answer(
        self, llm: LLM, journal: Journal, model: str, run: str, show: Show, on_picture: OnPicture | None
    ) -> Summary:
        total, before = len(self.lines), journal.totals.lines
        todo = ((index, self.lines[index]) for index in range(total) if index not in journal)
        others: dict[str, None] = {}
        started = time.monotonic()
        show(Progress(before, total, None))
        settings = self._settings
        answers = answer_lines(llm, todo, settings.concurrency, model, run, settings.sampling, on_picture)
        with closing(answers) as outcomes:
            for outcome in outcomes:
                line = output_line(outcome.line, run, outcome.status, outcome.body)
                journal.add(Done(outcome.index, outcome.status, *outcome.tokens, line))
                if outcome.model is not None and Path(outcome.model).name != model and len(others) < _NAMED:
                    others[outcome.model] = None
                done = journal.totals.lines
                show(Progress(done, total, (time.monotonic() - started) / (done - before) * (total - done)))
        return Summary(journal.totals, before, tuple(others))

    def _check_out(self, requests: Path) -> None:
        if self.out.is_dir() or (self.out.exists() and not self.out.is_file()):
            raise OutputError(f"{shown_path(self.out)} exists and is not a file; choose another path")
        if not self.out.parent.is_dir():
            raise OutputError(f"{shown_path(self.out.parent)} is not a folder; create it, or choose another path")
        with suppress(OSError):
            if self.out.samefile(requests):
                raise OutputError(f"{shown_path(self.out)} holds the requests; choose another file for the answers")

    def _hold(self, stack: ExitStack) -> None:
        """Keep other processes from working on the same output."""
        try:
            held = stack.enter_context(hold_now(name_beside(self.out, LOCK, hidden=True)))
        except OSError as error:
            raise OutputError(
                f"{shown_path(self.out)} cannot be written ({error.strerror or error}); check the folder"
            ) from error
        if not held:
            raise OutputError(f"another process is working on {shown_path(self.out)}; wait for it, or end it")

    def _holds(self, expected: Callable[[Line], str], *path: str) -> bool:
        """Whether the output has a line for each request, with what is expected at a path in it."""
        try:
            with self.out.open("rb") as file:
                for line in self.lines:
                    raw = file.readline()
                    if not raw.endswith(b"\n"):
                        return False
                    value = json.loads(raw)
                    for key in path:
                        value = value[key]
                    if value != expected(line):
                        return False
                return not file.read(1)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return False

    def _totals(self) -> Totals:
        totals = Totals()
        with self.out.open("rb") as file:
            for index, raw in enumerate(file):
                response = json.loads(raw)["response"]
                outcome = Outcome(index, self.lines[index], response["status_code"], response["body"])
                totals.add(Done(index, outcome.status, *outcome.tokens, b""))
        return totals

    def _drop_journal(self, parts: Mapping[str, str]) -> None:
        """Remove what a process has left that was ended after it wrote the output."""
        if self.journal_path.exists():
            with suppress(OutputError):
                Journal(self.journal_path, parts, len(self.lines)).remove()


def _describe(llm: LLM) -> tuple[str, dict[str, str]]:
    """Return the name of a model, and what decides its answers."""
    info = llm.engine.info
    engine = {**llm.engine.identity, "context": info.max_context, "device": info.device, "bits": info.reproducible}
    parts = {"engine settings": json.dumps({name: str(value) for name, value in sorted(engine.items())})}
    try:
        bundle = llm.bundle
    except BundleError:
        return info.name, parts
    return real_path(bundle.path).name, {**parts, "bundle": sha256_of(bundle.path / MANIFEST)}
