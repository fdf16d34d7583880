"""/metrics: Prometheus' own parser reads them, they count what happened, and nothing of users is in them."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from edge.api import scripted_llm
from edge.runtime.chunk import Stats
from edge.runtime.engines.scripted import noise
from edge.runtime.llm import LLM
from edge.server.metrics import OUTCOMES, Metrics, Outcome

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
CHAT = "/v1/chat/completions"


def read(metrics: Metrics) -> Samples:
    """Every sample once, by name and labels."""
    found: Samples = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        assert family.name.startswith("edge_")
        assert family.documentation.endswith(".")
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found
            found[key] = sample.value
    return found


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return read(metrics)[f"edge_{name}", tuple(sorted(labels.items()))]


def test_before_anything_happened() -> None:
    metrics = Metrics()
    assert value(metrics, "prompt_tokens_total") == 0
    assert value(metrics, "model_ready") == 0
    assert value(metrics, "time_to_first_token_seconds_count") == 0
    assert value(metrics, "resident_memory_bytes") > 1e6
    assert not any(name.startswith("edge_num_requests") for name, _ in read(metrics)), "no model yet"
    assert "_created" not in metrics.text().decode()


def test_requests() -> None:
    metrics = Metrics()
    for outcome in ("ok", "ok", "error", "cancelled"):
        metrics.started(CHAT)
        metrics.ended(CHAT, outcome)
    metrics.started(CHAT)
    metrics.disconnected()
    found = {o: value(metrics, "requests_total", endpoint=CHAT, outcome=o) for o in OUTCOMES}
    assert found == {"ok": 2, "error": 1, "refused": 0, "cancelled": 1}
    assert value(metrics, "requests_in_progress", endpoint=CHAT) == 1
    assert value(metrics, "client_disconnects_total") == 1


def test_tokens() -> None:
    metrics = Metrics()
    for _ in range(2):
        metrics.answered(Stats(100, 60, 7, 1.0, 1.0, drafted_tokens=5, accepted_tokens=3))
    names = ("prompt", "generation", "prompt_tokens_cached")
    found = [value(metrics, f"{n}_total" if "_" in n else f"{n}_tokens_total") for n in names]
    assert found == [200, 14, 120]
    assert value(metrics, "spec_decode_num_draft_tokens_total") == 10
    assert value(metrics, "spec_decode_num_accepted_tokens_total") == 6


@given(times=st.lists(st.floats(0, 1000), max_size=30))
def test_buckets_hold_what_is_not_above_their_bounds(times: list[float]) -> None:
    metrics = Metrics()
    for seconds in times:
        metrics.first_token(seconds)
        metrics.gap(seconds)
    for name in ("time_to_first_token_seconds", "inter_token_latency_seconds"):
        found = read(metrics)
        buckets = {dict(labels)["le"]: v for (n, labels), v in found.items() if n == f"edge_{name}_bucket"}
        assert len(buckets) > 10
        for bound, count in buckets.items():
            assert count == sum(seconds <= float(bound) for seconds in times)
        assert found[f"edge_{name}_count", ()] == len(times) == buckets["+Inf"]
        assert found[f"edge_{name}_sum", ()] == pytest.approx(sum(times))


def test_a_model() -> None:
    """What it tells is read when the text is asked for."""
    llm: LLM | None = None
    metrics = Metrics()
    metrics.watch(lambda: llm)
    assert value(metrics, "model_ready") == 0
    llm = scripted_llm(noise(), block_size=16, num_blocks=20)
    assert value(metrics, "model_ready") == 1
    llm.prefixes.pin([1] * 20)
    streams = [llm.generate([i] * 40, ignore_stop_ids=True) for i in range(4)]
    for stream in streams:
        next(stream)
    assert value(metrics, "num_requests_running") == 4
    assert value(metrics, "kv_cache_tokens") == 320
    blocks = {state: value(metrics, "kv_cache_blocks", state=state) for state in ("used", "free", "pinned")}
    assert blocks["used"] + blocks["free"] == 20
    assert blocks["pinned"] == llm.cache_stats.pinned_blocks > 0
    assert value(metrics, "kv_cache_free_tokens") == blocks["free"] * 16
    assert value(metrics, "kv_cache_usage_perc") == pytest.approx(blocks["used"] / 20)
    late = llm.generate([9] * 250, max_new_tokens=1)
    llm._scheduler.sweep()
    assert value(metrics, "num_requests_waiting") == 1
    for stream in streams:
        stream.answer()
    assert late.answer().finish_reason == "length"
    assert value(metrics, "num_preemptions_total") == llm.stats.preemptions > 0
    assert value(metrics, "num_requests_running") == value(metrics, "num_requests_waiting") == 0
    assert value(metrics, "prefix_cache_queries_total") == llm.cache_stats.lookup_tokens > 0
    assert value(metrics, "prefix_cache_hits_total") == llm.cache_stats.hit_tokens
    assert value(metrics, "step_seconds") >= 0


def test_the_page_names_all_of_them() -> None:
    metrics = Metrics()
    metrics.watch(lambda: scripted_llm(noise()))
    metrics.started(CHAT)
    page = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`(edge_\w+)`", page))
    names = {name for name, _ in read(metrics)}
    assert told == {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}


def test_each_has_its_own_registry() -> None:
    """Two servers in one process do not add up, and nothing is left in the library's own."""
    one, other = Metrics(), Metrics()
    one.disconnected()
    assert (value(one, "client_disconnects_total"), value(other, "client_disconnects_total")) == (1, 0)
    assert not any(family.name.startswith("edge") for family in REGISTRY.collect())


@given(
    events=st.lists(
        st.tuples(st.sampled_from([CHAT, "/v1/completions"]), st.sampled_from(OUTCOMES), st.booleans()), max_size=20
    )
)
def test_what_began_has_ended_or_is_in_progress(events: list[tuple[str, Outcome, bool]]) -> None:
    metrics = Metrics()
    for endpoint, outcome, is_over in events:
        metrics.started(endpoint)
        if is_over:
            metrics.ended(endpoint, outcome)
    found = read(metrics)
    ended = sum(v for (name, _), v in found.items() if name == "edge_requests_total")
    going = sum(v for (name, _), v in found.items() if name == "edge_requests_in_progress")
    assert ended + going == len(events)
    assert ended == sum(is_over for *_, is_over in events)


def test_events_are_cheap() -> None:
    metrics, stats = Metrics(), Stats(1, 0, 1, 1.0, 1.0)
    begun = time.thread_time()
    for _ in range(1000):
        metrics.started(CHAT)
        metrics.gap(0.02)
        metrics.answered(stats)
        metrics.ended(CHAT, "ok")
    assert time.thread_time() - begun < 1, "a millisecond each, a hundred times what it takes"
