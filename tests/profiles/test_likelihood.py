"""Log-probabilities of continuations against torch's log-softmax of one run over each whole input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edge.profiles import likelihood
from edge.profiles.likelihood import Likelihood, Query, Trunk, score
from edge.runtime.arrays import Logits
from edge.runtime.engines.engine import Engine
from edge.runtime.engines.scripted import ScriptedEngine
from edge.runtime.errors import ContextLengthError, DeviceError, PromptError
from edge.runtime.kv.pool import CacheSequence
from edge.runtime.llm import LLM
from edge.runtime.settings import EngineSettings
from tests.conftest import EXACT

RNG = np.random.default_rng(5)
NUM_TOKENS = 261  # of the tiny vocabulary, whose head has 320 rows


def ids(count: int) -> tuple[int, ...]:
    return tuple(RNG.integers(0, 256, count).tolist())


SHOTS, OTHER = ids(40), ids(33)
QUERIES = [
    *(Query(SHOTS + ids(9), ids(n)) for n in (1, 2, 7, 1)),
    *(Query((*SHOTS, 1, 2, 3), (token,)) for token in (5, 6, 7)),  # one input
    *(Query((*SHOTS, 1, 2, 3), (5, 6, n)) for n in (7, 8)),
    Query((*SHOTS, 1, 2), (3, 5, 6)),  # the same input from another place on
    Query(OTHER, SHOTS),
    Query(OTHER, ids(140)),  # more rows than one piece has
    Query((3,), (4,)),
    Query((3,), (4, 5)),
    Query((3,), (4, 5, 6, 7)),
    Query((3, 4), (5, 6)),
    Query(OTHER[:1], OTHER[1:20]),
]


@pytest.fixture(scope="module")
def runs(tiny_bundle: Path, engine: str) -> Engine:
    return LLM(tiny_bundle, replace(EXACT[engine], reproducible=engine == "onnx")).engine


def expected(engine: Engine, query: Query, num_tokens: int = NUM_TOKENS) -> Likelihood:
    """The same from one run over the whole input, in one piece."""
    whole, sequence = np.array(query.context + query.continuation), CacheSequence(engine.pool)
    rows = engine.forward(whole, sequence, np.arange(whole.size)).copy()
    sequence.free()
    logprobs = torch.log_softmax(torch.tensor(rows[:, :num_tokens]).double(), -1)[len(query.context) - 1 : -1]
    wanted = torch.tensor(query.continuation)
    total: Any = pytest.approx(logprobs.gather(1, wanted[:, None]).sum().item(), rel=1e-12)  # stands for a float
    return Likelihood(total, bool((logprobs.argmax(-1) == wanted).all()))


def greedy(engine: Engine, context: tuple[int, ...], count: int) -> tuple[int, ...]:
    found = context
    for _ in range(count):
        sequence = CacheSequence(engine.pool)
        row = engine.forward(np.array(found), sequence, np.array([len(found) - 1]))[0]
        found += (int(row[:NUM_TOKENS].argmax()),)
        sequence.free()
    return found[len(context) :]


def test_equals_one_run_over_each_input(runs: Engine) -> None:
    """Rows are equal bit by bit; the bound is for the sum of a log-softmax in float64."""
    assert score(runs, NUM_TOKENS, QUERIES) == [expected(runs, query) for query in QUERIES]


def test_default_roundings(demo_llm: LLM, demo_bundle: Path, engine: str) -> None:
    """Likelihoods with 8-bit activations, and with a 16-bit cache where the engine has one."""
    paired = EngineSettings(engine, max_context=512, reproducible=True)
    runs = demo_llm.engine if engine == "openvino" else LLM(demo_bundle, paired).engine
    queries = [QUERIES[0], QUERIES[2], *QUERIES[4:6]]
    assert score(runs, 49_152, queries) == [expected(runs, query, 49_152) for query in queries]


def test_neither_order_nor_company_nor_batch_matters(runs: Engine) -> None:
    whole = score(runs, NUM_TOKENS, QUERIES)
    order = RNG.permutation(len(QUERIES)).tolist()
    shuffled = score(runs, NUM_TOKENS, [QUERIES[i] for i in order])
    assert [shuffled[order.index(i)] for i in range(len(QUERIES))] == whole
    assert [score(runs, NUM_TOKENS, [query])[0] for query in QUERIES] == whole
    for batch in (1, 2, 5):
        assert score(runs, NUM_TOKENS, QUERIES, batch=batch) == whole


def test_greedy_flag(runs: Engine) -> None:
    best = greedy(runs, SHOTS, 4)
    other = tuple(token ^ 1 for token in best)
    continuations = [best, best[:1], (best[0], other[1]), (*best[:3], other[3]), other]
    found = score(runs, NUM_TOKENS, [Query(SHOTS, continuation) for continuation in continuations])
    assert [one.is_greedy for one in found] == [True, True, False, False, False]


def test_one_token_continuations_are_a_distribution(runs: Engine) -> None:
    found = score(runs, NUM_TOKENS, [Query(SHOTS, (token,)) for token in range(NUM_TOKENS)])
    assert sum(np.exp(one.logprob) for one in found) == pytest.approx(1, abs=1e-12)
    assert sum(one.is_greedy for one in found) == 1


def test_what_is_shared_is_computed_once(runs: Engine) -> None:
    # Each continuation beside the first asks for the last token of its context again, and its last is only predicted.
    queries = [Query(SHOTS, ids(5)) for _ in range(6)]
    with Trunk(runs) as trunk:
        score(runs, NUM_TOKENS, queries, trunk=trunk)
        assert trunk.num_computed == len(SHOTS) - 1 + 6 * 5
        score(runs, NUM_TOKENS, [Query(SHOTS, (9,)), Query(SHOTS, (10,))], trunk=trunk)
        assert trunk.num_computed == len(SHOTS) - 1 + 6 * 5 + 2


def test_every_block_is_given_back(runs: Engine) -> None:
    before = runs.pool.num_free
    score(runs, NUM_TOKENS, QUERIES)
    assert runs.pool.num_free == before
    with pytest.raises(RuntimeError):
        score(runs, NUM_TOKENS, QUERIES, progress=_stop)
    assert runs.pool.num_free == before
    runs.pool.check_integrity([])


def _stop(_count: int) -> None:
    raise RuntimeError


def test_where_branches_do_not_fit_side_by_side(tiny_bundle: Path) -> None:
    """A pool of two blocks: the trunk's own, and one more."""
    settings = replace(EXACT["openvino"], max_context=64)
    block = LLM(tiny_bundle, settings).engine.pool.memory.block_bytes
    small = LLM(tiny_bundle, replace(settings, kv_cache_bytes=2 * block)).engine
    queries = [Query(SHOTS, ids(4)) for _ in range(5)]
    assert small.pool.num_blocks == 2
    assert score(small, NUM_TOKENS, queries) == [expected(small, query) for query in queries]


def test_progress_counts_every_query(runs: Engine) -> None:
    counts: list[int] = []
    score(runs, NUM_TOKENS, QUERIES, progress=counts.append)
    assert sum(counts) == len(QUERIES)


def test_what_is_refused(runs: Engine) -> None:
    with pytest.raises(PromptError, match="query 1 has an empty"):
        score(runs, NUM_TOKENS, [Query((1,), (2,)), Query((1,), ())])
    with pytest.raises(PromptError, match="query 0 has an empty"):
        score(runs, NUM_TOKENS, [Query((), (2,))])
    room = runs.info.max_context
    assert len(score(runs, NUM_TOKENS, [Query((1,) * room, (2,))])) == 1, "the last token is only predicted"
    with pytest.raises(ContextLengthError, match=f"has {room + 1} tokens and the context holds {room}"):
        score(runs, NUM_TOKENS, [Query((1,) * room, (2, 3))])
    assert score(runs, NUM_TOKENS, []) == []


@pytest.mark.parametrize("limit", [2, 3, 8])
def test_pieces(limit: int) -> None:
    for count in range(40):
        pieces = likelihood._pieces(count, limit)
        assert sum(pieces) == count
        assert all(0 < piece <= limit for piece in pieces)
        assert 1 not in pieces or count == 1 or limit == 2


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_no_likelihood(wrong: float) -> None:
    def script(held: object) -> Logits:
        row = np.zeros(256, np.float32)
        row[7] = wrong
        return row

    with pytest.raises(DeviceError, match="logits of"):
        score(ScriptedEngine(script), NUM_TOKENS, [Query((1, 2), (3,))])
