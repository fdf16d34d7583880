"""Saving a draft store every few answers, so that a killed process or a power cut loses no more than these.

In: a store, and news that something was added to it. Out: its file, written by a thread of its own; what was written
then takes the place of what was in memory. Knows nothing about what is stored.
"""

from __future__ import annotations

import os
import threading
import time

from edge.runtime.errors import EdgeError
from edge.runtime.notices import notice
from edge.runtime.speculation.store import DraftStore
from edge.runtime.speculation.suffix_array import StoredIds, SuffixArray

ANSWERS = 8  # after which the store is saved
SECONDS = 60.0  # after which fewer are saved, and a save that failed is tried again
_REST = 20.0  # times as long as a save took, the next one waits: a large store takes seconds of computing


class Saver:
    """Saves one store. `added` and `close` are called where the store is used; it is not for several threads."""

    def __init__(self, store: DraftStore) -> None:
        self._store = store
        self._lock = threading.Lock()  # for everything below
        self._saving = threading.Lock()  # held while the file is being written
        self._timer: threading.Timer | None = None
        self._due = 0.0  # when it will save
        self._next = 0.0  # when it may save again
        self._unsaved = 0
        self._written: tuple[SuffixArray, list[StoredIds]] | None = None  # what the store has not adopted yet
        self._failed = self._closed = False
        self._pid = os.getpid()

    def added(self) -> None:
        """Take note that something was added to the store."""
        self._adopt()
        with self._lock:
            self._unsaved += 1
            self._schedule()

    def close(self) -> None:
        """Save nothing more, and wait for a save that has begun."""
        if os.getpid() != self._pid:  # a fork, whose locks nobody releases
            return
        with self._lock:
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()
        with self._saving:
            pass
        self._adopt()

    def _adopt(self) -> None:
        with self._lock:
            written, self._written = self._written, None
        if written is not None:
            self._store.adopt(*written)

    def _schedule(self) -> None:
        """Start a timer, unless one runs that is early enough."""
        now = time.monotonic()
        due = max(now + (0.0 if self._unsaved >= ANSWERS else SECONDS), self._next)
        if self._closed or (self._timer is not None and self._due <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._due, self._timer = due, threading.Timer(due - now, self._save)
        self._timer.daemon = True
        self._timer.name = "edge-drafts"
        self._timer.start()

    def _save(self) -> None:
        with self._saving:
            with self._lock:
                if self._timer is threading.current_thread():
                    self._timer = None
                if self._closed:
                    return
                self._unsaved = 0
            began, pending = time.monotonic(), self._store.pending()
            try:
                saved = self._store.merge(pending)
            except (EdgeError, MemoryError) as error:
                self._tell(error)
                wait, written = SECONDS, None
            else:
                self._failed, written = False, (saved, pending)
                wait = _REST * (time.monotonic() - began)
            with self._lock:
                self._next = time.monotonic() + wait
                self._written = written or self._written

    def _tell(self, error: Exception) -> None:
        """Say that a save failed, once until one succeeds; it is tried again after the next answer."""
        if not self._failed:
            notice(f"drafts are not saved for now: {error}")
        self._failed = True
