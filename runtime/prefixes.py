"""Prefixes that many prompts share: computed once, then pinned in memory, or saved to files for later sessions.

In: text, token ids or a `Prompt`; files. Out: keys and values in the prefix cache that later prompts start from. Knows
nothing about how they are computed, or how answers are made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from edge.runtime.engines.engine import Engine
from edge.runtime.errors import CacheFullError, SettingsError
from edge.runtime.kv.held import Held
from edge.runtime.kv.snapshot import open_snapshot, save_snapshot
from edge.runtime.kv.snapshot_format import SnapshotIdentity
from edge.runtime.prompt import Prompt
from edge.runtime.rules import FilePath, check_value
from edge.runtime.runner import Runner
from edge.runtime.scheduler import Scheduler

ATTEMPTS = 3  # to compute a prefix, as other answers may evict it before it is held

PrefixLike = str | Sequence[int] | Prompt


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
        compute: Callable[[object], Prompt],
    ) -> None:
        """compute: turns its argument into a prompt, and computes its keys and values into the cache."""
        self._engine, self._scheduler, self._runner = engine, scheduler, runner
        self._identity = identity
        self._compute = compute

    def pin(self, prefix: PrefixLike) -> int:
        """Compute a prefix and keep it in memory, never evicting it; return its number of tokens.

        Raises PromptError and ContextLengthError for a prefix that cannot be computed, CacheFullError when other
        answers leave it no room.
        """
        self._check_can_share()
        prompt, held = self._held(prefix)

        def pin() -> int:
            count = self._scheduler.prefixes.pin(prompt.cache_keys)
            self._scheduler.held.release(held)
            return count

        return self._runner.between_steps(pin)

    def unpin_all(self) -> None:
        """Allow pinned prefixes to be evicted like others."""
        self._runner.between_steps(self._scheduler.prefixes.unpin_all)

    def save(self, prefix: PrefixLike, path: str | Path, *, system: str | None = None) -> int:
        """Write the keys and values of a prefix to a file for `load`; return its number of tokens.

        For a system message: `save(llm.system_prefix(text), path, system=text)`, which also stores the text. Raises as
        `pin` does, and OutputError if the file cannot be written; an existing file stays until the new one is complete.
        """
        self._check_can_snapshot()
        target: Path = check_value("path", FilePath(), path)
        prompt, held = self._held(prefix)
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
        return len(prompt.ids)

    def load(self, path: str | Path) -> int:
        """From now on, start prompts that begin like a saved prefix from its file; return its number of tokens.

        Raises SnapshotError when the file is damaged or belongs to another model, engine or setting.
        """
        self._check_can_snapshot()
        snapshot = open_snapshot(check_value("path", FilePath(), path), self._identity)
        self._runner.between_steps(lambda: self._scheduler.add_snapshot(snapshot))
        return snapshot.num_tokens

    def _held(self, prefix: object) -> tuple[Prompt, Held]:
        """Return a prefix as a prompt, and a sequence that holds all of it, which the prefix cache keeps, too."""
        for _ in range(ATTEMPTS):
            prompt = self._compute(prefix)
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
