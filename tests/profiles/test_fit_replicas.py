"""How many replicas serve so many clients: what the count depends on, and in which direction."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from edge.profiles.devices.table import find_profile
from edge.profiles.fit.figures import Figure
from edge.profiles.fit.places import Place, place_of
from edge.profiles.fit.predict import PROMPT, Prediction, predict
from edge.profiles.fit.replicas import ANSWER, Clients, Replicas, growths, in_memory, mean_of, replicas
from edge.profiles.fit.simulated import costs_of, simulated
from edge.profiles.fleet.step_costs import MeasuredSteps, stored
from edge.runtime.errors import SettingsError
from tests.profiles.fleet.test_step_costs import TABLE
from tests.profiles.test_fit import HERE, planned

TABLES = [table for table in stored() if table.engine == "openvino"]


def of(place: Place = HERE, recipe: str = "int4-asym-g128", layers: int = 40, context: int = 2048) -> Prediction:
    return predict(planned(recipe, layers), place, context, engines=("openvino",))


def count(one: Prediction, clients: int, tokens_s: float, tables: list[MeasuredSteps] = TABLES) -> Replicas:
    return replicas(one, Clients(clients, tokens_s), tables)


def test_the_count_is_what_the_arithmetic_says() -> None:
    """A step of B answers takes 0.1 s x growth(B), a prompt 1 s: by hand for two clients, and for three."""
    one = replace(of(), decode=Figure(10.0, 1.0, "exact"), ttft=Figure(1.0, 1.0, "exact"))
    costs = TABLE.costs()
    step = {n: 0.1 * costs.answers.ms(n, PROMPT) / costs.answers.ms(1, PROMPT) for n in (2, 3)}
    needed = {n: n / ANSWER + seconds for n, seconds in step.items()}
    between = (needed[2] + needed[3]) / 2
    found = count(one, 7, 1 / between, [TABLE])
    assert found.clients == 2
    assert (found.count, found.fewest, found.most) == (4, 4, 4)
    assert found.bound == "speed"


@pytest.mark.parametrize("clients", [1, 10, 333])
def test_more_is_needed_for_more_clients_and_for_faster_ones(clients: int) -> None:
    one = of(layers=8)
    some, more, faster = count(one, clients, 2.0), count(one, 2 * clients, 2.0), count(one, clients, 4.0)
    assert some.count is not None
    assert more.count is not None
    assert some.count <= more.count
    assert faster.count is None or some.count <= faster.count


def test_the_count_is_between_its_ends_and_serves_all() -> None:
    for tokens_s in (0.5, 1.0, 2.0, 4.0):
        found = count(of(layers=8), 50, tokens_s)
        assert found.count is not None
        assert found.fewest is not None
        assert found.fewest <= found.count
        assert found.most is None or found.count <= found.most
        assert found.count == math.ceil(50 / found.clients)


def test_a_device_too_slow_for_one_client_serves_none() -> None:
    found = count(of(), 5, 500.0)
    assert (found.count, found.fewest, found.clients) == (None, None, 0)
    assert simulated(of(), found, Clients(5, 500.0), TABLES) == ()


def test_memory_bounds_the_clients_of_a_replica() -> None:
    one = of(context=8192)
    needed = one.footprint
    room = needed.loaded + needed.activations + 3 * needed.kv + needed.kv // 2
    tight = predict(planned(), replace(HERE, room_bytes=room), 8192, engines=("openvino",))
    assert in_memory(tight) == 3
    found = count(tight, 10, 0.01)
    assert (found.clients, found.count, found.bound) == (3, 4, "memory")


def test_where_it_does_not_fit_there_are_no_replicas() -> None:
    found = count(predict(planned(), replace(HERE, room_bytes=10**9), 2048), 10, 1.0)
    assert (found.count, found.bound) == (None, "memory")


def test_what_was_never_measured_says_so() -> None:
    card = of(place_of(find_profile("arc-b580")))
    _, origin, about = growths(card, TABLES)
    assert about
    assert "no such device" in origin
    assert count(card, 10, 8.0).about
    unmeasured = of(replace(HERE, measured=False))
    assert count(unmeasured, 10, 1.0).about


def test_growth_on_a_card_is_that_of_bytes_until_operations_are_more() -> None:
    card = of(place_of(find_profile("arc-b580")))
    (growth,), _, _ = growths(card, TABLES)
    assert growth(1) == pytest.approx(1.0)
    assert growth(2) < 1.2  # weights are read once
    assert all(growth(n) <= growth(n + 1) for n in range(1, 256))


@pytest.mark.parametrize(("clients", "tokens_s"), [(0, 1.0), (3, 0.0), (3, -1.0), (3, 10_000.0)])
def test_clients_that_cannot_be_are_refused(clients: int, tokens_s: float) -> None:
    with pytest.raises(SettingsError, match="expected one client or more"):
        Clients(clients, tokens_s)


def test_simulated_steps_are_the_predicted_ones() -> None:
    one = of(layers=8)
    costs = costs_of(one, mean_of(growths(one, TABLES)[0]))
    assert costs.decode_ms(1, PROMPT) == pytest.approx(1000 / one.decode.value)
    assert one.ttft is not None
    chunks = [costs.prefill_ms(512, past) for past in (0, 512)]
    assert sum(chunks) == pytest.approx(1000 * one.ttft.value)


def test_replicas_that_were_counted_give_clients_their_speed_in_the_simulation() -> None:
    pytest.importorskip("simpy")
    wanted = Clients(12, 1.5)
    one = of(layers=8)
    counted = replicas(one, wanted, TABLES)
    runs = simulated(one, counted, wanted, TABLES)
    assert [run.rule for run in runs][:3] == ["prefix", "two-choices", "round-robin"]
    for run in runs:
        assert run.result.answered == run.result.asked > 20
    assert runs[0].result.rate.p50 > wanted.tokens_s
    assert runs[-1].lost == (1 if counted.count and counted.count > 1 else 0)
