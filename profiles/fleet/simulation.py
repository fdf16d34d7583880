"""A fleet under load: clients hold conversations with replicas that a router chooses, and some of them are lost.

In: step costs, a workload, a number of replicas, a rule. Out: the requests with their times, and a `Result`. The same
seed gives the same times to the last bit. Needs simpy, of the extra `plan`.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge.profiles.fleet.failures import Outage
from edge.profiles.fleet.replica import Replica
from edge.profiles.fleet.result import Result, result_of
from edge.profiles.fleet.routing import Router, Rule
from edge.profiles.fleet.step_costs import StepCosts
from edge.profiles.fleet.workload import Ask, Conversation, Workload, conversations
from edge.runtime.extras import missing_packages_named
from edge.runtime.rendezvous import LEAST, SLACK
from edge.runtime.settings import MAX_WAITING

if TYPE_CHECKING:
    from simpy import Environment, Event

MOST_MOVES = 1  # a request whose replica is lost before its first token is run elsewhere once


@dataclass(frozen=True, slots=True)
class Plan:
    """What is simulated."""

    costs: StepCosts
    workload: Workload
    replicas: int
    rule: Rule = "prefix"
    seconds: float = 60.0  # in which requests are counted, by their arrival
    warm_s: float = 0.0  # before it
    seed: int = 0
    per_machine: int = 1  # replicas that slow each other down, as it was measured
    max_waiting: int = MAX_WAITING
    slack: float = SLACK  # of the rule `prefix`, as in runtime/rendezvous.py
    least: int = LEAST
    outage: Outage | None = None
    every_step: bool = False  # an event for each step: slower, and the same

    @property
    def until_s(self) -> float:
        return self.warm_s + self.seconds


@dataclass(frozen=True, slots=True)
class Run:
    """What came of it."""

    asks: tuple[Ask, ...]  # all of them, in the order of their arrival, each at its end
    result: Result  # of those that arrived in the window
    busy: float  # share of the time until the last request ended in which replicas computed
    in_system: float  # requests that waited, were read or answered, in the mean of that time
    ended_s: float


class Fleet:
    """The replicas, and what a client sees of them."""

    def __init__(self, env: Environment, plan: Plan) -> None:
        self._env, self._plan = env, plan
        self._router = Router(plan.rule, plan.replicas, plan.seed, plan.slack, plan.least)
        self._loads = np.zeros(plan.replicas, np.int64)
        self._total = 0
        self.asks: list[Ask] = []
        self.area = 0.0  # of the number of requests in the system, over time
        self._since = 0.0
        self._ends: dict[int, Event] = {}
        self.replicas: list[Replica] = []
        for start in range(0, plan.replicas, plan.per_machine):
            machine: list[Replica] = []
            for _ in range(min(plan.per_machine, plan.replicas - start)):
                replica = Replica(
                    env,
                    plan.costs,
                    self._ended,
                    max_waiting=plan.max_waiting,
                    beside=machine,
                    every_step=plan.every_step or plan.per_machine > 1,
                )
                machine.append(replica)
                self.replicas.append(replica)
        if plan.outage is not None:
            env.process(self._fail(plan.outage))

    def ask(self, ask: Ask) -> Event:
        """Send a request; what is returned happens when it has ended, however that is."""
        self.asks.append(ask)
        event = self._ends[id(ask)] = self._env.event()
        self._send(ask)
        return event

    def _send(self, ask: Ask) -> None:
        chosen = self._router.choose(ask.key, self._loads, self._total)
        if not self.replicas[chosen].submit(ask):
            chosen = self._router.least(self._loads)
            if not self.replicas[chosen].submit(ask):
                ask.outcome, ask.ended_s = "refused", self._env.now
                self._ends.pop(id(ask)).succeed()
                return
        ask.replica = chosen
        self._count(chosen, 1)

    def _ended(self, ask: Ask) -> None:
        self._count(ask.replica, -1)
        self._ends.pop(id(ask)).succeed()

    def _count(self, replica: int, change: int) -> None:
        now = self._env.now
        self.area += self._total * (now - self._since)
        self._since = now
        self._loads[replica] += change
        self._total += change

    def _fail(self, outage: Outage) -> Generator[Event, object, None]:
        lost = outage.replicas(self._plan.replicas)
        yield self._env.timeout(outage.at_s)
        self._router.lose(lost)
        orphans = [ask for index in lost for ask in self.replicas[index].lose()]
        for ask in orphans:
            self._count(ask.replica, -1)
        for ask in orphans:
            begun = ask.first_s is not None
            if self._router.alive and (outage.resumes if begun else ask.moved < MOST_MOVES):
                ask.moved += 1
                ask.computed = ask.blocks = ask.skipped = ask.overtaken = 0
                ask.shares_system = False
                self._send(ask)
            else:
                ask.outcome, ask.ended_s = "broken", self._env.now
                self._ends.pop(id(ask)).succeed()
        yield self._env.timeout(outage.for_s)
        for index in lost:
            self.replicas[index].come_back()
        self._router.come_back(lost)


def simulate(plan: Plan) -> Run:
    """Run it until every request has ended. Raises MissingPackageError without simpy."""
    with missing_packages_named("plan"):
        import simpy
    env = simpy.Environment()
    fleet = Fleet(env, plan)
    if plan.workload.clients:
        for client in range(plan.workload.clients):
            env.process(_client(env, fleet, plan, client))
    else:
        env.process(_arrivals(env, fleet, plan))
    env.run()
    counted = [ask for ask in fleet.asks if plan.warm_s <= ask.arrived_s < plan.until_s]
    ended = max((ask.ended_s or 0.0 for ask in fleet.asks), default=0.0)
    busy = sum(replica.busy_s for replica in fleet.replicas)
    return Run(
        tuple(fleet.asks),
        result_of(counted, plan.seconds),
        busy / (ended * plan.replicas) if ended else 0.0,
        fleet.area / ended if ended else 0.0,
        ended,
    )


def _client(env: Environment, fleet: Fleet, plan: Plan, client: int) -> Generator[Event, object, None]:
    """One conversation after the other."""
    for conversation in conversations(plan.workload, plan.seed, client):
        yield env.timeout(conversation.pause_s)
        if env.now >= plan.until_s:
            return
        yield from _talk(env, fleet, plan, conversation)


def _arrivals(env: Environment, fleet: Fleet, plan: Plan) -> Generator[Event, object, None]:
    for conversation in conversations(plan.workload, plan.seed):
        yield env.timeout(conversation.gap_s)
        if env.now >= plan.until_s:
            return
        env.process(_talk(env, fleet, plan, conversation))


def _talk(env: Environment, fleet: Fleet, plan: Plan, conversation: Conversation) -> Generator[Event, object, None]:
    """Its turns, until one has no whole answer, or time is up."""
    earlier = plan.workload.system_tokens
    before = 0  # of these, what an earlier turn had
    for turn in conversation.turns:
        if turn.think_s:
            yield env.timeout(turn.think_s)
        if env.now >= plan.until_s:
            return
        ask = Ask(
            conversation.number,
            conversation.key,
            plan.workload.system_tokens,
            earlier + turn.user_tokens,
            turn.answer_tokens,
            env.now,
            earlier_tokens=before,
        )
        yield fleet.ask(ask)
        if ask.outcome != "answered":
            return
        earlier = before = ask.prompt_tokens + ask.produced
