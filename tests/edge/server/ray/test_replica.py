"""A replica with a full queue refuses all but what was let in; a router keeps together what belongs so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from types import SimpleNamespace

import pytest

import edge

pytest.importorskip("ray")

import ray
from ray import serve

from edge.runtime.rendezvous import Homes
from edge.runtime.settings import GenerationSettings
from edge.server.ray import replica as replicas
from edge.server.ray.bundles import BundleSource
from edge.server.ray.call import Accepted, Call, Piece, Refused
from edge.server.ray.replica import Replica
from edge.server.ray.router import in_order
from tests.edge.server.live import slow

MAX_WAITING = 2
CALL = Call((65, 66), 0, GenerationSettings(max_new_tokens=400), "m", 7)


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch) -> Iterator[Replica]:
    """One whose engine computes one answer at a time, slowly."""
    context = SimpleNamespace(replica_id=SimpleNamespace(unique_id="r"))
    monkeypatch.setattr(serve, "get_replica_context", lambda: context)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setattr(replicas, "sha256_of_manifest", lambda _folder: "m")
    llm = edge.scripted_llm(slow(0.01), max_sequences=1)
    yield Replica(BundleSource("nowhere"), lambda _bundle, _threads: llm, 1, MAX_WAITING, 60.0)
    llm.close()


def test_a_full_queue_refuses_all_but_what_was_let_in(replica: Replica) -> None:
    async def run() -> None:
        held: list[AsyncGenerator[Piece]] = []

        async def first_of(call: Call) -> Piece:
            held.append(pieces := replica.answer(call))
            return await anext(pieces)

        assert await first_of(CALL) == Accepted("r")
        reading = asyncio.ensure_future(anext(held[0]))  # only what is read is computed
        while not replica._llm.stats.running:
            await asyncio.sleep(0.001)
        for _ in range(MAX_WAITING):
            assert await first_of(CALL) == Accepted("r")
        assert await first_of(CALL) == Refused("r", "full", MAX_WAITING)
        let_in = Call(CALL.ids, 0, CALL.settings, "m", 7, let_in=True)
        assert await first_of(let_in) == Accepted("r")
        assert await first_of(Call(CALL.ids, 0, CALL.settings, "another", 7)) == Refused("r", "other model")
        await reading
        for pieces in held:
            await pieces.aclose()

    asyncio.run(run())


def ordered(call: Call, loads: list[int]) -> str:
    names = ["a", "b", "c"]
    return "".join(names[index] for index in in_order(call, names, loads, Homes()))


def test_a_conversation_has_an_order_of_replicas_of_its_own() -> None:
    orders = {ordered(Call((), 0, CALL.settings, "m", key), [0, 0, 0]) for key in range(200)}
    assert len(orders) == 6
    first, *others = list(ordered(CALL, [0, 0, 0]))
    loads = [100 if name == first else 0 for name in "abc"]
    assert ordered(CALL, loads) == "".join([*others, first])


def test_what_refused_comes_last_and_what_has_the_prompt_first() -> None:
    first, second, third = list(ordered(CALL, [0, 0, 0]))
    avoiding = Call((), 0, CALL.settings, "m", 7, avoid=frozenset({first}))
    assert ordered(avoiding, [0, 0, 0]) == second + third + first
    assert ordered(Call((), 0, CALL.settings, "m", 7, at=third), [9, 9, 9]) == third + first + second


def test_without_a_key_the_least_loaded_comes_first() -> None:
    free = Call((), 0, CALL.settings, "m", None)
    assert ordered(free, [2, 0, 1]) == "bca"
    assert {ordered(free, [1, 0, 0])[0] for _ in range(100)} == {"b", "c"}
