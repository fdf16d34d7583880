"""Counts and times of what the server does, for /metrics.

In: events of requests, and a way to the model. Out: text in Prometheus' format. Knows nothing about HTTP or requests'
contents: no label comes from a user.

What vLLM measures, too, has vLLM's name with `edge_` in front of it, so that a dashboard needs one change.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Literal

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from edge.runtime.chunk import Stats
from edge.runtime.llm import LLM
from edge.runtime.machine import rss_bytes

Outcome = Literal["ok", "error", "refused", "cancelled"]
OUTCOMES: tuple[Outcome, ...] = ("ok", "error", "refused", "cancelled")

logger = logging.getLogger(__name__)

# Seconds. A kiosk's first token takes 10 ms to some minutes; later ones 1 ms to some seconds.
_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)
_GAPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """Every method is cheap, and called in the event loop."""

    def __init__(self) -> None:
        self._model: Callable[[], LLM | None] = lambda: None
        self._begun = time.monotonic()
        self._running: Counter[str] = Counter()  # by endpoint
        self._ended: Counter[tuple[str, Outcome]] = Counter()
        self._first, self._gaps = _Histogram(_FIRST), _Histogram(_GAPS)
        self._disconnects = 0
        self._looking = 0
        self._pictures: Counter[bool] = Counter()  # by whether they were kept
        self._picture_s = 0.0
        self._prompt = self._cached = self._generated = self._drafted = self._accepted = 0  # tokens
        self._prefixes: Counter[bool] = Counter()  # answers by whether they began with all of a loaded prefix
        self._known: set[Path] = set()  # prefixes that a request was most like
        self._registry = CollectorRegistry()
        self._registry.register(_Collected(self._families))

    def watch(self, model: Callable[[], LLM | None]) -> None:
        """Say where to find the model, whose state is read each time that the text is asked for; None: not now."""
        self._model = model

    def also(self, families: Callable[[], Iterable[Metric]]) -> None:
        """Tell of more, which is asked for each time that the text is."""
        self._registry.register(_Collected(families))

    def started(self, endpoint: str) -> None:
        """Count a request. endpoint: a path of the server's own table."""
        self._running[endpoint] += 1

    def first_token(self, seconds: float) -> None:
        """Record the time from a request to its first token."""
        self._first.observe(seconds)

    def gap(self, seconds: float) -> None:
        """Record the time between two tokens of an answer."""
        self._gaps.observe(seconds)

    def answered(self, stats: Stats) -> None:
        """Count the tokens of an answer that ended."""
        self._prompt += stats.prompt_tokens
        self._cached += stats.cached_tokens
        self._generated += stats.new_tokens
        self._drafted += stats.drafted_tokens
        self._accepted += stats.accepted_tokens
        if (match := stats.prefix) is not None:
            self._prefixes[match.whole] += 1
            if match.path not in self._known:
                self._known.add(match.path)
                if not match.whole:
                    logger.info("%s", match.told)

    def looking(self, change: int) -> None:
        """Count pictures that the model looks at right now."""
        self._looking += change

    def picture_seen(self, seconds: float) -> None:
        """Count a picture that the model has looked at."""
        self._pictures[False] += 1
        self._picture_s += seconds

    def picture_kept(self) -> None:
        """Count a picture that the model did not have to look at again."""
        self._pictures[True] += 1

    def disconnected(self) -> None:
        """Count a client that left."""
        self._disconnects += 1

    def ended(self, endpoint: str, outcome: Outcome) -> None:
        """Count the end of a request."""
        self._running[endpoint] -= 1
        self._ended[endpoint, outcome] += 1

    def text(self) -> bytes:
        """Return all of it in Prometheus' format."""
        return generate_latest(self._registry)

    def _families(self) -> Iterator[Metric]:
        yield self._requests()
        running = GaugeMetricFamily(
            "edge_requests_in_progress", "Requests that are being answered.", labels=["endpoint"]
        )
        for endpoint, count in sorted(self._running.items()):
            running.add_metric([endpoint], count)
        yield running
        yield CounterMetricFamily(
            "edge_client_disconnects", "Clients that left before their answer.", self._disconnects
        )
        yield CounterMetricFamily("edge_prompt_tokens", "Tokens of prompts, cached ones included.", self._prompt)
        yield CounterMetricFamily("edge_prompt_tokens_cached", "Prompt tokens that were not computed.", self._cached)
        yield CounterMetricFamily("edge_generation_tokens", "Tokens of answers.", self._generated)
        yield CounterMetricFamily("edge_spec_decode_num_draft_tokens", "Tokens drafted by speculation.", self._drafted)
        yield CounterMetricFamily("edge_spec_decode_num_accepted_tokens", "Right ones of them.", self._accepted)
        yield self._saved_prefixes()
        pictures = CounterMetricFamily(
            "edge_pictures", "Pictures of requests, by whether they were looked at before.", labels=["kept"]
        )
        for kept in (True, False):
            pictures.add_metric(["yes" if kept else "no"], self._pictures[kept])
        yield pictures
        yield CounterMetricFamily("edge_picture_seconds", "Time in which pictures were looked at.", self._picture_s)
        yield GaugeMetricFamily("edge_pictures_running", "Pictures that are being looked at.", self._looking)
        yield self._first.family("edge_time_to_first_token_seconds", "From a request to its first token.")
        yield self._gaps.family("edge_inter_token_latency_seconds", "Between two tokens of an answer.")
        yield GaugeMetricFamily("edge_resident_memory_bytes", "Memory of the process.", rss_bytes())
        yield GaugeMetricFamily("edge_uptime_seconds", "Since the server started.", time.monotonic() - self._begun)
        llm = self._model()
        yield GaugeMetricFamily(
            "edge_model_ready", "1 if requests are answered, 0 while loading.", int(llm is not None)
        )
        if llm is not None:
            yield from _state_of(llm)

    def _requests(self) -> Metric:
        found = CounterMetricFamily("edge_requests", "Requests that ended.", labels=["endpoint", "outcome"])
        for endpoint in sorted(self._running):
            for outcome in OUTCOMES:  # also those of 0: a rate needs a beginning
                found.add_metric([endpoint, outcome], self._ended[endpoint, outcome])
        return found

    def _saved_prefixes(self) -> Metric:
        found = CounterMetricFamily(
            "edge_saved_prefix_answers", "Answers by whether a saved prefix was used whole.", labels=["used"]
        )
        for whole in (True, False):
            found.add_metric(["whole" if whole else "partly"], self._prefixes[whole])
        return found


class _Histogram:
    """Counts of times in buckets."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds  # seconds, the highest of each bucket
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def family(self, name: str, text: str) -> Metric:
        names = [*map(str, self._bounds), "+Inf"]
        return HistogramMetricFamily(name, text, list(zip(names, accumulate(self._counts), strict=True)), self._sum)


class _Collected(Collector):
    """What a registry asks for its families."""

    def __init__(self, families: Callable[[], Iterable[Metric]]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families()


def _state_of(llm: LLM) -> Iterator[Metric]:
    """Yield what a model tells of itself right now."""
    stats, pool = llm.stats, llm.engine.pool
    prefixes = stats.prefixes
    used = 1 - stats.free_tokens / stats.tokens if stats.tokens else 0.0
    gauges: list[tuple[str, str, float]] = [
        ("num_requests_running", "Requests whose tokens are being computed.", stats.running),
        ("num_requests_waiting", "Requests that wait for room.", stats.waiting),
        ("kv_cache_usage_perc", "Share of the KV cache that is not free; 1 is all of it.", used),
        ("kv_cache_tokens", "Tokens that the KV cache has memory for.", stats.tokens),
        ("kv_cache_free_tokens", "Those in free blocks.", stats.free_tokens),
        ("kv_cache_kept_tokens", "Tokens of finished requests that later ones may start from.", prefixes.tokens),
        ("step_seconds", "For how long the running step has been running; 0 if none is.", stats.step_s),
    ]
    yield from (GaugeMetricFamily(f"edge_{name}", text, value) for name, text, value in gauges)
    blocks = GaugeMetricFamily("edge_kv_cache_blocks", "Blocks of the KV cache.", labels=["state"])
    free = pool.num_free
    blocks.add_metric(["used"], pool.num_blocks - free)
    blocks.add_metric(["free"], free)
    blocks.add_metric(["kept"], prefixes.blocks)
    blocks.add_metric(["pinned"], prefixes.pinned_blocks)
    yield blocks
    counters = [
        ("num_preemptions", "How often a request gave its room to an older one.", stats.preemptions),
        ("prefix_cache_queries", "Tokens that were looked up in the prefix cache.", prefixes.lookup_tokens),
        ("prefix_cache_hits", "Those of them that it had.", prefixes.hit_tokens),
        ("prefix_cache_evicted_blocks", "Blocks that it gave up for others.", prefixes.evicted_blocks),
    ]
    yield from (CounterMetricFamily(f"edge_{name}", text, value) for name, text, value in counters)
