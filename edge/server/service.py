"""A model's life as a service: loading, ready, stopping; who may use it, and how busy it is.

In: a function that opens a model. Out: the model, for requests that are let in. Knows nothing about HTTP.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Literal, TypeVar

import edge
from edge.runtime.llm import LLM
from edge.runtime.settings import Sampling, generation_settings
from edge.runtime.stream import Stream
from edge.server.bodies import Bodies
from edge.server.errors import RETRY_S
from edge.server.looking import Looking, Start
from edge.server.metrics import Metrics
from edge.server.settings import MAX_PICTURE_BYTES, MAX_TEXT_BYTES, ServerSettings
from edge.wire.errors import NOT_FOUND, TOO_MANY, UNAVAILABLE, RequestError

T = TypeVar("T")
State = Literal["loading", "ready", "stopping"]
Stage = Callable[[str, float], None]  # what is being done, and which share of loading is done
THREADS = 4  # that read bodies, render and encode; all else runs in the event loop
_REMEMBERED = 64  # ends of answers, to tell the queue's speed
_MAX_RETRY_S = 120


class Service:
    """One model. `load` and `close` run in a thread of their own, the rest in the event loop."""

    def __init__(self, open_model: Callable[[Stage], LLM], settings: ServerSettings) -> None:
        """open_model: loads and warms up, and tells how far it is."""
        self.settings = settings
        self.created = int(time.time())
        self.stage, self.progress = "starting", 0.0
        self.threads = ThreadPoolExecutor(THREADS, "edge-requests")
        self.bodies = Bodies(max(settings.max_held_bytes, settings.max_body_bytes or 0))
        self.num_active = 0  # requests that were let in
        self.fingerprint = ""
        self._open_model = open_model
        self._llm: LLM | None = None
        self._stopping = False
        self._lock = threading.Lock()
        self._starting = 0  # requests that were let in and are not in the model's queue yet
        self._streams: set[Stream] = set()
        self._eyes = ThreadPoolExecutor(1, "edge-pictures")
        self._looking: set[Looking] = set()
        self._ends: deque[float] = deque(maxlen=_REMEMBERED)

    @property
    def state(self) -> State:
        """What it is doing."""
        return "stopping" if self._stopping else "loading" if self._llm is None else "ready"

    @property
    def llm(self) -> LLM:
        """The model. Raises RequestError while it is loading, and when the server ends."""
        if self._stopping:
            raise _shutting_down()
        if self._llm is None:
            raise RequestError(
                f"the model is loading ({self.stage}, {self.progress:.0%}); try again soon",
                code="loading",
                status=UNAVAILABLE,
                retry_after_s=RETRY_S,
            )
        return self._llm

    @property
    def sampling(self) -> Sampling:
        """Of an answer whose request does not say. Raises RequestError as `llm` does."""
        return generation_settings(self.llm.recommended_sampling, sampling=self.settings.sampling).sampling

    @property
    def max_body_bytes(self) -> int:
        """The longest body that is read: also while it is not known what the model takes."""
        given = self.settings.max_body_bytes
        if given is not None:
            return given
        return MAX_TEXT_BYTES if self._llm is not None and self._llm.pictures is None else MAX_PICTURE_BYTES

    @property
    def stalled_s(self) -> float:
        """For how long the engine has been in one step, if that is longer than any step takes; else 0."""
        if self._llm is None:
            return 0.0
        step_s = self._llm.stats.step_s
        return step_s if step_s > self.settings.stall_s else 0.0

    def load(self) -> None:
        """Load the model. Raises what that raises."""
        llm = self._open_model(self._at)
        self.fingerprint = fingerprint_of(llm)
        with self._lock:
            self._llm = llm

    def stop(self) -> None:
        """Let nobody in any more."""
        self._stopping = True

    def abandon(self) -> None:
        """End what would outlive this process, which ends while a model is being loaded."""

    def close(self) -> None:
        """Free the model. Raises OutputError if its draft store cannot be written."""
        self._stopping = True
        for threads in (self.threads, self._eyes):
            threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            if self._llm is not None:
                self._llm.close()

    @contextmanager
    def admitted(self) -> Generator[LLM]:
        """Let a request in, for as long as it is being answered. Raises RequestError if there is no room."""
        llm = self.llm
        self.check_room(llm)
        self.num_active += 1
        try:
            yield llm
        finally:
            self.num_active -= 1
            self._ends.append(time.monotonic())

    @contextmanager
    def running(self, streams: Sequence[Stream]) -> Generator[None]:
        """Close streams at the end, which `cut` may bring about."""
        self._streams.update(streams)
        try:
            yield
        finally:
            for stream in streams:
                self._streams.discard(stream)
                stream.close()

    def cut(self) -> None:
        """End all answers, wherever they are."""
        for stream in list(self._streams):
            stream.close()
        for looking in list(self._looking):
            looking.end(_shutting_down())

    @contextmanager
    def starting(self) -> Generator[None]:
        """Count a request that is on its way into the model's queue."""
        self._starting += 1
        try:
            yield
        finally:
            self._starting -= 1

    @contextmanager
    def looking(self, start: Start, metrics: Metrics) -> Generator[Looking]:
        """Start a request in the thread that looks at pictures; it counts as one that waits until it has streams."""
        looking = Looking(start, self._eyes.submit, metrics)
        self._looking.add(looking)
        try:
            yield looking
        finally:
            self._looking.discard(looking)
            looking.end()

    def check_model(self, name: str | None) -> None:
        """Raise RequestError for a model that this server does not have."""
        names = self.settings.names
        if name is not None and name not in names and not self.settings.any_model:
            raise self.no_model(name)

    def no_model(self, name: str) -> RequestError:
        """Return the error for a name that no model here has."""
        return RequestError(
            f"the model {name[:200]!r} does not exist; this server has {self.settings.names[0]!r}",
            code="model_not_found",
            param="model",
            status=NOT_FOUND,
        )

    def in_thread(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Call a function in one of the threads for requests."""
        return asyncio.get_running_loop().run_in_executor(self.threads, function)

    def check_room(self, llm: LLM) -> None:
        """Raise RequestError if as many requests wait already as may."""
        waiting = llm.stats.waiting + self._starting + sum(looking.is_waiting for looking in self._looking)
        if waiting >= self.settings.max_waiting:
            raise self.queue_full(waiting)

    def queue_full(self, waiting: int) -> RequestError:
        """Return the error for a request that finds so many waiting."""
        return RequestError(
            f"{waiting} requests are waiting already; try again later",
            code="queue_full",
            status=TOO_MANY,
            retry_after_s=self._seconds_for(waiting),
        )

    def for_reading(self, llm: LLM, *, whole: bool) -> LLM:  # noqa: ARG002  # as others need it
        """Return the model for an answer that is told at its end, or as it comes."""
        return llm

    def _seconds_for(self, waiting: int) -> int:
        """Return how long the queue will take at the speed of its last answers."""
        if len(self._ends) < 2:
            return RETRY_S
        each = (time.monotonic() - self._ends[0]) / (len(self._ends) - 1)
        return min(max(math.ceil(waiting * each / 2), 1), _MAX_RETRY_S)  # half of it leaves room for many

    def _at(self, stage: str, progress: float) -> None:
        self.stage, self.progress = stage, progress


def _shutting_down() -> RequestError:
    return RequestError("this server is shutting down", code="shutting_down", status=UNAVAILABLE, retry_after_s=RETRY_S)


def fingerprint_of(llm: LLM) -> str:
    """Return a hash of everything that decides an answer, besides the request."""
    parts = [edge.__version__, llm.engine.info.name, *(f"{k}={v}" for k, v in sorted(llm.engine.identity.items()))]
    try:
        parts.append(llm.bundle.manifest.model_sha256)
    except edge.BundleError:  # made from an engine
        parts.append(repr(llm))
    return f"fp_{hashlib.sha256(repr(parts).encode()).hexdigest()[:10]}"
