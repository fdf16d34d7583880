"""Waiting for a replica of a bundle counts no time while more are starting: theirs may have to be fetched first."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

pytest.importorskip("ray")

from edge.server.ray import states
from edge.server.ray.states import States

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

    from edge.server.ray.call import ReplicaState

LOOKS = 20  # more than there is time for


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> States:
    """Replicas of which one has another bundle."""
    monkeypatch.setattr(states, "EVERY_S", 0.001)
    found = States(cast("DeploymentHandle[object]", None))  # never asked
    found._known = (of_bundle("another"),)
    return found


def of_bundle(model: str) -> ReplicaState:
    return cast("ReplicaState", SimpleNamespace(model=model))


def test_one_that_comes_late_is_waited_for_while_it_may_come(told: States) -> None:
    looks = iter(range(LOOKS))

    def starting() -> bool:
        if next(looks) == LOOKS - 1:
            told._known = (*told._known, of_bundle("wanted"))
        return True

    assert told.first_of("wanted", 3 * states.EVERY_S, starting) is told.known[-1]


def test_one_that_cannot_come_any_more_is_not_waited_for(told: States) -> None:
    looks = iter([True] * LOOKS + [False] * 3)  # one more would be an error
    assert told.first_of("wanted", 2.5 * states.EVERY_S, lambda: next(looks)) is None
    assert not list(looks)
