"""What clients would see of the replicas that were counted for them: waits and speeds, by simulation.

In: a `Prediction`, its `Replicas`, `Clients`. Out: a `Seen` for each rule of routing, and for a lost replica. The step
costs are the predicted ones, with the growth that was measured. Needs simpy, of the extra `plan`. Prints nothing.

Clients hold conversations of four turns without a pause, whose prompts have PROMPT tokens and whose answers ANSWER in
the mean, as they were counted for; but what a turn repeats may be in the cache of the replica that it is sent to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from edge.profiles.fit.predict import CHUNKS, PROMPT, Prediction
from edge.profiles.fit.replicas import ANSWER, Clients, Growth, Replicas, growths, in_memory, mean_of, token_s
from edge.profiles.fleet.failures import Outage
from edge.profiles.fleet.result import Result
from edge.profiles.fleet.routing import Rule
from edge.profiles.fleet.simulation import Plan, simulate
from edge.profiles.fleet.step_costs import Line, MeasuredSteps, StepCosts
from edge.profiles.fleet.workload import Lengths, Workload
from edge.runtime.errors import SettingsError

TURNS = 4
QUESTION = (PROMPT * 2 - (TURNS - 1) * ANSWER) // (TURNS + 1)  # so that prompts have PROMPT tokens in the mean
RULES: tuple[Rule, ...] = ("prefix", "two-choices", "round-robin")
ANSWERS = 6  # of each client, that are counted; two before them are not
BLOCK = 32  # tokens
MOST_CLIENTS = 20_000  # whose simulation takes minutes
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class Seen:
    """One simulation."""

    rule: Rule
    lost: int  # replicas, for a sixth of the time
    replicas: int
    result: Result

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def simulated(
    one: Prediction, counted: Replicas, wanted: Clients, tables: Sequence[MeasuredSteps], seed: int = 0
) -> tuple[Seen, ...]:
    """By each rule, then with a lost replica; nothing where no replica serves. Raises SettingsError."""
    if counted.count is None:
        return ()
    if wanted.count > MOST_CLIENTS:
        raise SettingsError(
            f"{wanted.count:,} clients, of which at most {MOST_CLIENTS:,} are simulated", param="clients"
        )
    growth = mean_of(growths(one, tables)[0])
    # A fast replica answers far more in the time that was asked for.
    span = ANSWER * min(1 / wanted.tokens_s, token_s(one, growth, math.ceil(wanted.count / counted.count)))
    plan = Plan(
        costs_of(one, growth),
        Workload(
            clients=wanted.count,
            turns=TURNS,
            user=Lengths(QUESTION // 2, QUESTION * 3 // 2),
            answer=Lengths(ANSWER // 2, ANSWER * 3 // 2),
        ),
        counted.count,
        seconds=ANSWERS * span,
        warm_s=2 * span,
        seed=seed,
    )
    found = [_seen(plan, rule, None) for rule in RULES]
    if counted.count > 1:
        found.append(_seen(plan, "prefix", Outage(plan.warm_s + span, 1 / counted.count, span)))
    return tuple(found)


def _seen(plan: Plan, rule: Rule, outage: Outage | None) -> Seen:
    lost = 0 if outage is None else len(outage.replicas(plan.replicas))
    run = simulate(replace(plan, rule=rule, outage=outage))
    return Seen(rule, lost, plan.replicas, run.result)


def costs_of(one: Prediction, growth: Growth) -> StepCosts:
    """The steps of a predicted device: contexts have the length that speeds are told for."""
    decode = 1000 / one.decode.value
    token = 0.0 if one.ttft is None else 1000 * one.ttft.value / PROMPT
    base = tuple(decode * growth(count) for count in _COUNTS)
    blocks = in_memory(one) * one.context_tokens // BLOCK
    chunk = CHUNKS[one.engine]
    return StepCosts(
        chunk, BLOCK, max(blocks, 1), Line(_COUNTS, base, 0.0), Line((1, chunk), (token, chunk * token), 0.0)
    )
