"""Prefixes that many prompts share: computed once, then pinned in memory, or saved to files for later sessions.

In: text, token ids, a `Prompt`, or messages; files. Out: keys and values in the prefix cache that later prompts start
from. Knows nothing about how they are computed, or how answers are made.

A program that has to start whatever happened to its file calls `use`, which builds the file where it does not fit.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from edge.runtime.engines.engine import Engine
from edge.runtime.errors import CacheFullError, OutputError, PromptError, SettingsError, SnapshotError
from edge.runtime.files import shown_path
from edge.runtime.kv.held import Held
from edge.runtime.kv.snapshot import Snapshot, open_snapshot, save_snapshot
from edge.runtime.kv.snapshot_format import SnapshotIdentity, read_header
from edge.runtime.messages import MessageLike
from edge.runtime.notices import notice
from edge.runtime.prompt import Prompt
from edge.runtime.prompt_like import PromptLike
from edge.runtime.rules import FilePath, check_value
from edge.runtime.runner import Runner
from edge.runtime.saved_prefix import MISSING, SavedPrefix, made_for, reason_of
from edge.runtime.scheduler import Scheduler
from edge.runtime.unicode import check_text
from edge.runtime.vision.progress import OnPicture

ATTEMPTS = 3  # to compute a prefix, as other answers may evict it before it is held


class Prefixes:
    """The prefixes of one model, as `llm.prefixes`. May be used from any thread.

    Every method raises ClosedError after the model was closed, and SettingsError if the engine does not support it.
    """

    def __init__(
        self,
        engine: Engine,
        scheduler: Scheduler,
        runner: Runner,
        identity: SnapshotIdentity,
        compute: Callable[[object, OnPicture | None], Prompt],
        beginning: Callable[[Sequence[MessageLike]], Prompt],
    ) -> None:
        """compute: turns its argument into a prompt, and computes its keys and values into the cache. beginning: gives
        what conversations begin with that begin with some messages, without the rows of pictures."""
        self._engine, self._scheduler, self._runner = engine, scheduler, runner
        self._identity = identity
        self._compute, self._beginning = compute, beginning

    def pin(self, prefix: PromptLike, *, on_picture: OnPicture | None = None) -> int:
        """Compute a prefix and keep it in memory, never evicting it; return its number of tokens.

        Messages stand for what every conversation begins with that begins with them; the last one may go on, if it is a
        question. on_picture: told how far their pictures are. Raises PromptError and ContextLengthError for a prefix
        that cannot be computed, CacheFullError when other answers leave it no room.
        """
        self._check_can_share()
        prompt, held = self._held(prefix, on_picture)

        def pin() -> int:
            count = self._scheduler.prefixes.pin(prompt.cache_keys)
            self._scheduler.held.release(held)
            return count

        return self._runner.between_steps(pin)

    def warm(self, prefix: PromptLike, *, on_picture: OnPicture | None = None) -> None:
        """Compute a prefix and keep it as long as the engine can: pinned, or else until another prompt is read.

        Raises as `pin` does.
        """
        info = self._engine.info
        if info.can_fork and info.can_trim:
            self.pin(prefix, on_picture=on_picture)
        else:
            self._compute(prefix, on_picture)

    def unpin_all(self) -> None:
        """Allow pinned prefixes to be evicted like others."""
        self._runner.between_steps(self._scheduler.prefixes.unpin_all)

    def save(
        self,
        prefix: PromptLike,
        path: str | Path,
        *,
        system: str | None = None,
        on_picture: OnPicture | None = None,
    ) -> SavedPrefix:
        """Write the keys and values of a prefix to a file for `load`.

        For a system message: `save(llm.system_prefix(text), path, system=text)`, which also stores the text. Messages
        as in `pin`. Raises as `pin` does, and OutputError if the file cannot be written; an existing file stays until
        the new one is complete.
        """
        self._check_can_snapshot()
        target: Path = check_value("path", FilePath(), path)
        prompt, held = self._held(prefix, on_picture)
        self._write(target, prompt, held, system)
        return SavedPrefix(target, len(prompt.ids), system)

    def load(self, path: str | Path) -> SavedPrefix:
        """From now on, start prompts that begin like a saved prefix from its file.

        Raises SnapshotError when the file is damaged or belongs to another model, engine or setting.
        """
        self._check_can_snapshot()
        target: Path = check_value("path", FilePath(), path)
        snapshot = open_snapshot(target, self._identity)
        self._add(target, snapshot.keys, snapshot)
        return SavedPrefix(target, snapshot.num_tokens, snapshot.system)

    def use(
        self,
        path: str | Path,
        *,
        system: str | None = None,
        messages: Sequence[MessageLike] | None = None,
        on_picture: OnPicture | None = None,
    ) -> SavedPrefix:
        """Start conversations with this system message from a file, which is built if it is missing or does not fit.

        messages: what the conversations begin with instead, such as a picture, as in `pin`. A file that is damaged,
        holds something else, or belongs to another model, engine, version or setting is replaced at once by a whole new
        one. Where it cannot be written, the prefix is computed and kept in the memory of this process. The result's
        `note` says which of these happened, as does the logger "edge.notices". Raises as `pin` does.
        """
        self._check_can_snapshot()
        target: Path = check_value("path", FilePath(), path)
        if (system is None) == (messages is None):
            raise PromptError("a prefix to use is either a system message or messages; give one of the two")
        if system is not None:
            if not check_text(system, "system").strip():
                raise PromptError("the system message is empty; give some text", param="system")
            messages = [{"role": "system", "content": system}]
        assert messages is not None
        prefix = self._beginning(messages)
        found = self._fitting(target, prefix, system)
        if isinstance(found, Snapshot):
            self._add(target, found.keys, found)
            return SavedPrefix(target, len(prefix.ids), system)
        return self._build(target, messages, system, found, on_picture)

    def _build(
        self,
        target: Path,
        messages: Sequence[MessageLike],
        system: str | None,
        reason: str,
        on_picture: OnPicture | None,
    ) -> SavedPrefix:
        """Compute a prefix and write its file, or else pin it. reason: what was wrong with the file that was there."""
        started = time.perf_counter()
        prefix, held = self._held(messages, on_picture)
        failed, snapshot = "", None
        try:
            self._write(target, prefix, held, system)
            snapshot = open_snapshot(target, self._identity)
        except (OutputError, SnapshotError) as error:  # SnapshotError: it has been replaced since
            failed = reason_of(error, target)
        if snapshot is None:
            self.pin(messages, on_picture=on_picture)
        self._add(target, prefix.cache_keys, snapshot)
        seconds = f"{time.perf_counter() - started:.1f} s"
        verb = "built" if reason == MISSING else "built anew"
        what = f"{verb} in {seconds}" if snapshot is not None else f"computed in {seconds}, for this process alone"
        because = "" if failed in ("", reason) else f", since it {failed}"
        note = f"{shown_path(target)} {reason}; {what}{because}"
        notice(note, usual=snapshot is not None)
        return SavedPrefix(target, len(prefix.ids), system, note, snapshot is not None)

    def _fitting(self, path: Path, prefix: Prompt, system: str | None) -> Snapshot | str:
        """Return the file if it holds this prefix for this model, else what is wrong with it."""
        if not os.path.lexists(path):
            return MISSING
        try:
            if reason := made_for(read_header(path).identity, self._identity):
                return reason
            snapshot = open_snapshot(path, self._identity)
        except SnapshotError as error:
            return reason_of(error, path)
        if snapshot.keys == prefix.cache_keys:
            return snapshot
        same = snapshot.system == system
        snapshot.close()
        if system is None:
            return "holds something else"
        return "has its system message in other tokens" if same else "holds another system message"

    def _write(self, target: Path, prompt: Prompt, held: Held, system: str | None) -> None:
        """Write a prefix that is held, and let go of it. Raises OutputError."""
        pool = self._engine.pool

        def save() -> None:
            save_snapshot(target, prompt.cache_keys, held.sequence, pool, self._identity, system)

        try:
            if pool.counts_tokens:  # slots can move during a step
                self._runner.between_steps(save)
            else:  # steps may run meanwhile, since none writes into the blocks of this sequence
                save()
        finally:
            self._runner.between_steps(partial(self._scheduler.held.release, held))

    def _add(self, path: Path, keys: list[int], snapshot: Snapshot | None) -> None:
        self._runner.between_steps(lambda: self._scheduler.loaded.add(path, keys, snapshot))

    def _held(self, prefix: object, on_picture: OnPicture | None) -> tuple[Prompt, Held]:
        """Return a prefix as a prompt, and a sequence that holds all of it, which the prefix cache keeps, too."""
        for _ in range(ATTEMPTS):
            prompt = self._compute(prefix, on_picture)
            if (held := self._runner.between_steps(partial(self._hold, prompt))) is not None:
                return prompt, held
        raise CacheFullError(
            f"other answers leave no room in the KV cache for a prefix of {len(prompt.ids)} tokens; wait for them, or "
            "load with a larger kv_cache_bytes"
        )

    def _hold(self, prompt: Prompt) -> Held | None:
        keys, prefixes = prompt.cache_keys, self._scheduler.prefixes
        sequence = prefixes.match(keys, len(keys))
        whole = sequence.num_tokens == len(keys)
        prefixes.insert(keys, sequence, whole=True)  # match may have taken its last block
        if whole:
            return self._scheduler.held.hold(sequence)
        sequence.free()
        return None

    def _check_can_share(self) -> None:
        self._runner.check_open()
        info = self._engine.info
        if not (info.can_fork and info.can_trim):
            raise SettingsError(f"the {info.name} engine cannot start several prompts from one prefix")

    def _check_can_snapshot(self) -> None:
        self._check_can_share()
        if not self._engine.info.can_snapshot:
            raise SettingsError(f"the {self._engine.info.name} engine has no keys and values to write or read")


def open_prefixes(prefixes: Prefixes, paths: Sequence[str | Path], system: str | None) -> None:
    """Open prefix files; with a system message, the first one is its file, which is built where it does not fit.

    Raises SnapshotError and what `use` raises.
    """
    for number, path in enumerate(paths):
        if number == 0 and system is not None:
            prefixes.use(path, system=system)
        else:
            prefixes.load(path)
