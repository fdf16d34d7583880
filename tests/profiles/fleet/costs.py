"""Step costs of tests, in round numbers."""

from __future__ import annotations

from edge.profiles.fleet.step_costs import Line, StepCosts

PLAIN = StepCosts(
    chunk=128,
    block=16,
    blocks=1024,
    answers=Line((1, 4, 16), (10.0, 13.0, 28.0), 0.002),
    tokens=Line((1, 64, 128), (10.0, 70.0, 130.0), 0.0004),
    host_step_ms=0.5,
    host_answer_ms=0.1,
    change_ms=3.0,
)
