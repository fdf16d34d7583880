"""How the replicas are: asked for all the time, told as one model's state and as figures of each.

In: a handle to the replicas. Out: what they said last. Knows nothing about requests.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from edge.runtime.kv.prefix import PrefixStats
from edge.runtime.scheduler import SchedulerStats
from edge.server.ray.call import ReplicaState

EVERY_S = 1.0
_ANSWER_S = 5.0  # for one that computes; longer than that is told as before

logger = logging.getLogger(__name__)


class States:
    """What the replicas said last. `follow` runs in the event loop of the calls; all else may be called anywhere."""

    def __init__(self, handle: DeploymentHandle[object]) -> None:
        self._handle = handle
        self._known: tuple[ReplicaState, ...] = ()
        self._told = threading.Event()

    @property
    def known(self) -> tuple[ReplicaState, ...]:
        """The replicas that answered last, by name."""
        return self._known

    def first_of(self, model: str, timeout_s: float, starting: Callable[[], bool]) -> ReplicaState | None:
        """Return a replica of a bundle, waiting for one; None if there is none in time.

        starting: whether more replicas may come. Their bundle may have to be fetched, so that time does not count.
        """
        left = timeout_s
        while left > 0:
            for state in self._known:
                if state.model == model:
                    return state
            self._told.wait(EVERY_S)
            self._told.clear()
            if not starting():
                left -= EVERY_S
        return None

    async def follow(self) -> None:
        """Ask all replicas again and again, until cancelled."""
        while True:
            await self._ask()
            self._told.set()
            await asyncio.sleep(EVERY_S)

    def stats(self) -> SchedulerStats:
        """Return the states of all as that of one model."""
        return together([state.stats for state in self._known])

    def families(self) -> Iterator[Metric]:
        """Yield figures of each replica for Prometheus."""
        states = self._known
        yield GaugeMetricFamily("edge_replicas", "Replicas that answer.", len(states))
        for name, text, value in _GAUGES:
            yield _labelled(GaugeMetricFamily(f"edge_replica_{name}", text, labels=_LABELS), states, value)
        for name, text, value in _COUNTERS:
            yield _labelled(CounterMetricFamily(f"edge_replica_{name}", text, labels=_LABELS), states, value)

    async def _ask(self) -> None:
        try:
            answers = await self._handle.broadcast("state").results_async(timeout_s=_ANSWER_S, return_exceptions=True)
        except (RayError, RayServeException) as error:  # none is there
            logger.debug("no replica tells how it is: %s", error)
            self._known = ()
        except TimeoutError:  # one that computes; what it said before is the best that is known
            return
        else:
            found = [answer for answer in answers if isinstance(answer, ReplicaState)]
            self._known = tuple(sorted(found, key=lambda state: state.replica))


_LABELS = ["replica", "node"]
_Value = Callable[[ReplicaState], float]
_GAUGES: list[tuple[str, str, _Value]] = [
    ("requests_running", "Requests whose tokens are being computed.", lambda it: it.stats.running),
    ("requests_waiting", "Requests that wait for room.", lambda it: it.stats.waiting),
    ("kv_cache_tokens", "Tokens that the KV cache has memory for.", lambda it: it.stats.tokens),
    ("kv_cache_free_tokens", "Those in free blocks.", lambda it: it.stats.free_tokens),
    ("kv_cache_kept_tokens", "Tokens of finished requests that are kept.", lambda it: it.stats.prefixes.tokens),
    ("step_seconds", "For how long the running step has been running.", lambda it: it.stats.step_s),
    ("resident_memory_bytes", "Memory of the process.", lambda it: it.rss_bytes or 0),
]
_COUNTERS: list[tuple[str, str, _Value]] = [
    ("answers", "Answers that ended.", lambda it: it.answered),
    ("prompt_tokens", "Tokens of prompts, cached ones included.", lambda it: it.prompt_tokens),
    ("prompt_tokens_cached", "Prompt tokens that were not computed.", lambda it: it.cached_tokens),
    ("generation_tokens", "Tokens of answers.", lambda it: it.new_tokens),
    ("num_preemptions", "How often a request gave its room to an older one.", lambda it: it.stats.preemptions),
    ("prefix_cache_queries", "Tokens that were looked up.", lambda it: it.stats.prefixes.lookup_tokens),
    ("prefix_cache_hits", "Those of them that it had.", lambda it: it.stats.prefixes.hit_tokens),
]


def _labelled(
    family: GaugeMetricFamily | CounterMetricFamily, states: Sequence[ReplicaState], value: _Value
) -> GaugeMetricFamily | CounterMetricFamily:
    for state in states:
        family.add_metric([state.replica, state.node], value(state))
    return family


def together(stats: Sequence[SchedulerStats]) -> SchedulerStats:
    """Return the figures of several schedulers as one's: sums, and the shortest of their running steps.

    So a model counts as stalled when all of its replicas do.
    """
    prefixes = [one.prefixes for one in stats]
    return SchedulerStats(
        running=sum(one.running for one in stats),
        waiting=sum(one.waiting for one in stats),
        preemptions=sum(one.preemptions for one in stats),
        tokens=sum(one.tokens for one in stats),
        free_tokens=sum(one.free_tokens for one in stats),
        prefixes=PrefixStats(
            lookups=sum(one.lookups for one in prefixes),
            lookup_tokens=sum(one.lookup_tokens for one in prefixes),
            hit_tokens=sum(one.hit_tokens for one in prefixes),
            evicted_blocks=sum(one.evicted_blocks for one in prefixes),
            tokens=sum(one.tokens for one in prefixes),
            blocks=sum(one.blocks for one in prefixes),
            pinned_blocks=sum(one.pinned_blocks for one in prefixes),
        ),
        step_s=min((one.step_s for one in stats), default=0.0),
    )
