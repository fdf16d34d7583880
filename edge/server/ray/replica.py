"""One replica: an engine of its own in a process of its own, which answers calls.

In: calls. Out: pieces of answers. Knows nothing about HTTP, conversations, or the other replicas.

It is ready once its model is loaded, its prefixes are open and it is warm: Serve sends it nothing before.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack

import ray
from ray import serve

from edge.runtime.chunk import Chunk, joined
from edge.runtime.cores import own_processors
from edge.runtime.errors import DeviceError, EdgeError
from edge.runtime.llm import LLM
from edge.runtime.machine import rss_bytes
from edge.runtime.prompt import Prompt
from edge.runtime.settings import GENERATION_NAMES, GenerationOptions, GenerationSettings
from edge.runtime.stream import Stream
from edge.server.ray.bundles import BundleSource, sha256_of_manifest
from edge.server.ray.call import Accepted, Call, Failed, Piece, Refused, ReplicaState

STREAM_PAUSE_S = 0.02  # between two pieces of a stream
WHOLE_PAUSE_S = 0.5  # of an answer that is read whole: how much of it is lost with a replica

Opening = Callable[[str, int], LLM]  # loads the bundle of a folder on so many processors, opens prefixes and warms up

logger = logging.getLogger(__name__)


class Replica:
    """A Serve deployment's class; Serve makes one in each replica's process."""

    def __init__(
        self, source: BundleSource, opening: Opening, processors: int, max_waiting: int, stall_s: float
    ) -> None:
        self._name = serve.get_replica_context().replica_id.unique_id
        self._node = str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
        self._max_waiting, self._stall_s = max_waiting, stall_s
        folder = source.here()
        self._processors = ExitStack()
        self._processors.enter_context(own_processors(processors))  # before the engine makes threads
        self._llm = opening(str(folder), processors)
        self._model = sha256_of_manifest(folder)
        self._starting = 0  # calls on their way into the queue
        self._answered = self._prompt_tokens = self._cached_tokens = self._new_tokens = 0

    async def answer(self, call: Call) -> AsyncGenerator[Piece]:
        """Yield whether it is accepted, then the answer."""
        waiting = self._llm.stats.waiting + self._starting
        if call.model != self._model:
            yield Refused(self._name, "other model")
            return
        if waiting >= self._max_waiting and not call.let_in:
            yield Refused(self._name, "full", waiting)
            return
        self._starting += 1
        try:  # compiling a grammar takes a while
            stream = await asyncio.to_thread(self._submitted, call)
        except EdgeError as error:
            yield Failed(error)
            return
        finally:
            self._starting -= 1
        with stream:
            yield Accepted(self._name)
            async for piece in pieces_of(stream, call):
                if isinstance(piece, Chunk) and (stats := piece.stats) is not None:
                    self._answered += 1
                    self._prompt_tokens += stats.prompt_tokens
                    self._cached_tokens += stats.cached_tokens
                    self._new_tokens += stats.new_tokens - call.num_answered
                yield piece

    async def state(self) -> ReplicaState:
        """Return how it is."""
        llm, pool = self._llm, self._llm.engine.pool
        return ReplicaState(
            replica=self._name,
            node=self._node,
            model=self._model,
            info=llm.engine.info,
            identity=dict(llm.engine.identity),
            stats=llm.stats,
            num_blocks=pool.num_blocks,
            num_free_blocks=pool.num_free,
            rss_bytes=rss_bytes(),
            answered=self._answered,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            new_tokens=self._new_tokens,
        )

    async def forget(self) -> None:
        """Drop what is kept of finished answers."""
        await asyncio.to_thread(self._llm.clear_cache)

    def check_health(self) -> None:
        """Raise DeviceError if the engine hangs: Serve then starts another replica in place of this one."""
        if (step_s := self._llm.stats.step_s) > self._stall_s:
            raise DeviceError(f"the engine has been in one step for {step_s:.0f} s")

    def __del__(self) -> None:
        """Free the model; Serve calls this once the last answer has ended."""
        if hasattr(self, "_llm"):
            self._llm.close()
            self._processors.close()

    def _submitted(self, call: Call) -> Stream:
        prompt = Prompt(call.ids, num_answered=call.num_answered)
        return self._llm.generate(prompt, **options_of(call.settings))


async def pieces_of(stream: Stream, call: Call) -> AsyncGenerator[Chunk | Failed]:
    """Yield an answer in no more pieces than its reader has use for: each costs more than a token's bookkeeping."""
    kept: list[Chunk] = []
    told_at = -math.inf
    try:
        async for chunk in stream:
            kept.append(chunk)
            if call.is_whole and chunk.finish_reason is None and time.monotonic() < told_at + WHOLE_PAUSE_S:
                continue
            yield joined(kept)
            kept, told_at = [], time.monotonic()
            if not call.is_whole and chunk.finish_reason is None:
                await asyncio.sleep(STREAM_PAUSE_S)
    except EdgeError as error:
        if kept:
            yield joined(kept)
        yield Failed(error)


def options_of(settings: GenerationSettings) -> GenerationOptions:
    """Return settings as keywords of `LLM.generate`."""
    options: dict[str, object] = {name: getattr(settings, name) for name in GENERATION_NAMES}
    return {**options, "sampling": settings.sampling}  # type: ignore[typeddict-item]  # the same names
