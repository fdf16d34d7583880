"""Laws that every queue obeys, held against the simulation: whoever breaks one has lost or made up time or requests."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest

from edge.profiles.fleet.failures import Outage
from edge.profiles.fleet.routing import RULES
from edge.profiles.fleet.simulation import Plan, Run, simulate
from edge.profiles.fleet.step_costs import Line, StepCosts
from edge.profiles.fleet.workload import Lengths, Workload
from tests.profiles.fleet.costs import PLAIN

pytest.importorskip("simpy")

TALKS = Workload(conversations_s=3.0, turns=3, think_s=1.0, system_tokens=60)
PLAN = Plan(PLAIN, TALKS, 4, seconds=20.0)
SERVICE_S = 0.1
# One prompt is one step of SERVICE_S, and its only token comes with it: a server that takes the same time for each.
ONE_AT_A_TIME = StepCosts(64, 16, 10_000, Line((1,), (1.0,), 0.0), Line((64,), (1000 * SERVICE_S,), 0.0))


def times(run: Run) -> list[tuple[float | None, ...]]:
    return [(ask.arrived_s, ask.began_s, ask.first_s, ask.ended_s) for ask in run.asks]


@pytest.mark.parametrize("rule", RULES)
def test_every_request_ends_once_with_all_of_its_tokens(rule: str) -> None:
    run = simulate(replace(PLAN, rule=rule))  # type: ignore[arg-type]  # one of RULES
    assert len(run.asks) > 100
    for ask in run.asks:
        assert ask.outcome == "answered"
        assert ask.produced == ask.answer_tokens
        assert ask.began_s is not None
        assert ask.first_s is not None
        assert ask.ended_s is not None
        assert ask.arrived_s <= ask.began_s < ask.first_s <= ask.ended_s
    assert run.result.answered == run.result.asked == len(run.asks)


def test_the_same_seed_gives_the_same_times_and_another_one_others() -> None:
    assert times(simulate(PLAN)) == times(simulate(PLAN))
    assert times(simulate(PLAN)) != times(simulate(replace(PLAN, seed=1)))


def test_steps_that_are_alike_taken_as_one_event_change_no_time() -> None:
    fast, slow = simulate(PLAN), simulate(replace(PLAN, every_step=True))
    for one, other in zip(times(fast), times(slow), strict=True):
        assert one == pytest.approx(other, abs=1e-9)  # sums of the same numbers in another order
    assert fast.result.hits == slow.result.hits


def test_requests_in_the_system_are_their_rate_times_their_time_there() -> None:
    """Little's law, exact from an empty system to an empty one; the left side is counted as time passes."""
    run = simulate(PLAN)
    there = sum(ask.ended_s - ask.arrived_s for ask in run.asks if ask.ended_s is not None)
    assert run.in_system == pytest.approx(there / run.ended_s, rel=1e-9)


@pytest.mark.parametrize("load", [0.4, 0.7])
def test_one_at_a_time_waits_are_those_of_the_formula(load: float) -> None:
    """Poisson arrivals, equal service (M/D/1): the mean wait is load / (1 - load) x service / 2, in any order."""
    work = Workload(conversations_s=load / SERVICE_S, user=Lengths(64, 64), answer=Lengths(1, 1))
    means = []
    for seed in range(12):
        plan = Plan(ONE_AT_A_TIME, work, 1, seconds=200.0, warm_s=20.0, seed=seed, max_waiting=10_000)
        run = simulate(plan)
        means.append(run.result.ttft_s.mean - SERVICE_S)
        assert run.busy == pytest.approx(len(run.asks) * SERVICE_S / run.ended_s, rel=1e-6)
    error = statistics.stdev(means) / len(means) ** 0.5  # of the mean over runs that know nothing of each other
    assert statistics.fmean(means) == pytest.approx(load / (1 - load) * SERVICE_S / 2, abs=4 * error)


def test_clients_that_wait_for_their_answers_divide_the_time_among_them() -> None:
    """The law of closed systems: clients = rate x (time in the system + pause). Both ends of a run are cut off."""
    work = Workload(clients=12, think_s=0.5, user=Lengths(64, 64), answer=Lengths(1, 1))
    run = simulate(Plan(ONE_AT_A_TIME, work, 1, seconds=400.0, warm_s=20.0))
    rate, there = run.result.answered / run.result.seconds, run.result.ttft_s.mean
    assert run.busy > 0.99
    assert rate * (there + 0.5) == pytest.approx(12, rel=0.03)  # ± 12 of 4,000 requests at the ends, pauses 1/60 each
    assert rate == pytest.approx(1 / SERVICE_S, rel=0.01)  # never idle


def test_a_full_queue_refuses_and_takes_again_later() -> None:
    work = Workload(conversations_s=30.0, user=Lengths(64, 64), answer=Lengths(1, 1))
    costs = replace(ONE_AT_A_TIME, blocks=16)  # three at once: the rest waits
    run = simulate(Plan(costs, work, 2, "least", seconds=30.0, max_waiting=5))
    assert run.result.refused > 0
    assert run.result.answered + run.result.refused == run.result.asked
    last = [ask.outcome for ask in run.asks[-100:]]
    assert "answered" in last
    assert "refused" in last


# --- Rules of routing -------------------------------------------------------------------------------------------------


def test_turns_find_their_prefix_where_they_are_routed_by_it_and_mostly_not_otherwise() -> None:
    hits = {rule: simulate(replace(PLAN, replicas=8, rule=rule)).result.turn_hits for rule in RULES}
    assert hits["prefix"] > 0.95
    assert max(hits["round-robin"], hits["two-choices"]) < 0.7 < hits["prefix"]  # a conversation's own replica: 1 in 8


def test_a_replica_beside_a_busy_one_is_slower_by_what_was_measured() -> None:
    costs = replace(ONE_AT_A_TIME, beside=((1, 1.5),))
    work = Workload(clients=2, user=Lengths(64, 64), answer=Lengths(1, 1))
    alone = simulate(Plan(ONE_AT_A_TIME, work, 2, "round-robin", seconds=20.0, per_machine=2))
    beside = simulate(Plan(costs, work, 2, "round-robin", seconds=20.0, per_machine=2))
    assert alone.result.answered / beside.result.answered == pytest.approx(1.5, rel=0.02)


# --- Lost racks -------------------------------------------------------------------------------------------------------


def test_no_request_is_lost_with_a_rack_whose_answers_go_on_elsewhere() -> None:
    plan = replace(PLAN, replicas=8, outage=Outage(8.0, 0.25, 5.0))
    run = simulate(plan)
    assert run.result.answered == run.result.asked
    assert run.result.moved > 0
    for ask in run.asks:
        assert ask.produced == ask.answer_tokens
    back = {ask.replica for ask in run.asks if ask.arrived_s > 13.0}
    gone = {ask.replica for ask in run.asks if 8.0 <= ask.arrived_s < 13.0}
    assert not gone & {0, 1}
    assert back & {0, 1}


def test_answers_that_had_begun_are_broken_where_they_do_not_go_on_and_no_others() -> None:
    run = simulate(replace(PLAN, replicas=8, outage=Outage(8.0, 0.25, 5.0, resumes=False)))
    assert run.result.broken > 0
    assert run.result.answered + run.result.broken == run.result.asked
    for ask in run.asks:
        if ask.outcome == "broken":
            assert ask.first_s is not None
            assert ask.first_s <= 8.0 == ask.ended_s


def test_before_an_outage_it_changes_nothing() -> None:
    calm = simulate(replace(PLAN, replicas=8))
    lost = simulate(replace(PLAN, replicas=8, outage=Outage(8.0, 0.25, 5.0)))
    before = [ask.ended_s for ask in calm.asks if ask.ended_s is not None and ask.ended_s < 8.0]
    assert before == [ask.ended_s for ask in lost.asks if ask.ended_s is not None and ask.ended_s < 8.0]
    assert len(before) > 30
