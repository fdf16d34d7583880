"""What a simulated cache keeps: blocks are never lost, whatever happens in whatever order."""

from __future__ import annotations

import random

import pytest

from edge.profiles.fleet.failures import Outage
from edge.profiles.fleet.kept import Kept
from edge.profiles.fleet.workload import Ask
from edge.runtime.errors import SettingsError


def ask(conversation: int, prompt: int, system: int = 0) -> Ask:
    return Ask(conversation, conversation, system, prompt, 8, 0.0)


def read(kept: Kept, one: Ask) -> None:
    kept.begin(one)
    assert kept.grow(one, one.prompt_tokens)
    one.computed = one.prompt_tokens
    kept.note_read(one)


def test_what_was_used_least_recently_goes_first() -> None:
    kept = Kept(8, 16)
    for conversation in (1, 2):
        one = ask(conversation, 60)
        read(kept, one)
        kept.release(one)
    again = ask(1, 64)
    read(kept, again)
    assert again.prompt_tokens == 64
    kept.release(again)
    third = ask(3, 60)
    read(kept, third)  # takes the blocks of 2, as 1 was used after it
    kept.release(third)
    assert kept.count_match(ask(1, 100)) == 64
    assert kept.count_match(ask(2, 100)) == 0


def test_a_system_prompt_takes_its_blocks_once() -> None:
    kept = Kept(100, 16)
    one, other = ask(1, 70, 48), ask(2, 70, 48)
    read(kept, one)
    assert kept.free == 100 - 5
    read(kept, other)
    assert kept.free == 100 - 5 - 2  # three full blocks are shared
    assert other.shares_system
    kept.check_integrity([one, other])


@pytest.mark.parametrize("seed", range(5))
def test_no_block_is_lost_by_anything(seed: int) -> None:
    rng = random.Random(seed)
    kept, running = Kept(40, 16), list[Ask]()
    for _ in range(2000):
        chance = rng.random()
        if chance < 0.3 and len(running) < 6:
            one = ask(rng.choice([n for n in range(12) if all(n != o.conversation for o in running)]), 1, 20)
            one.prompt_tokens = rng.randint(25, 120)
            kept.begin(one)
            running.append(one)
        elif running and chance < 0.8:
            one = rng.choice(running)
            tokens = one.computed + rng.randint(1, 40)
            if kept.grow(one, tokens):
                one.computed = tokens
                if tokens >= one.prompt_tokens:
                    kept.note_read(one)
        elif running:
            kept.release(running.pop(rng.randrange(len(running))))
        kept.check_integrity(running)


def test_an_outage_takes_one_replica_at_least_and_leaves_one() -> None:
    assert len(Outage(0, 0.01, 1).replicas(10)) == 1
    assert len(Outage(0, 0.25, 1).replicas(100)) == 25
    assert len(Outage(0, 0.9, 1).replicas(2)) == 1
    assert len(Outage(0, 1.0, 1).replicas(2)) == 2


@pytest.mark.parametrize(("at_s", "share", "for_s"), [(-1, 0.1, 1), (0, 0, 1), (0, 1.5, 1), (0, 0.5, 0)])
def test_an_outage_that_cannot_be_is_refused(at_s: float, share: float, for_s: float) -> None:
    with pytest.raises(SettingsError, match="expected a share"):
        Outage(at_s, share, for_s)
