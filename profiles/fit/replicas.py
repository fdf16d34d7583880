"""How many replicas a number of clients needs, each of which wants a speed: by arithmetic on what is predicted of one.

In: a `Prediction`, `Clients`, and measured step costs. Out: `Replicas`, with the fewest and the most that it may be,
given how far off the prediction and the growth may be. Knows nothing about waits, which only a simulation tells.

    a step of B answers  = a step of one x growth(B)
    B clients fit where    B x first token / answer + step(B) <= 1 / speed, and B contexts fit into memory

All clients ask all the time: a prompt of PROMPT tokens, an answer of ANSWER, and the next one. growth is what was
measured on a CPU (`profiles/fleet/steps.json`); on GPUs and NPUs nothing is known, and bytes and operations are
counted: a guess.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from edge.profiles.fit.predict import PROMPT, Prediction
from edge.profiles.fleet.step_costs import MeasuredSteps
from edge.runtime.engines.limits import MAX_RUNNING
from edge.runtime.errors import SettingsError

ANSWER = 256  # tokens
Growth = Callable[[int], float]  # answers in a step -> its time, in times of a step of one


@dataclass(frozen=True, slots=True)
class Clients:
    """Who is to be served."""

    count: int
    tokens_s: float  # that each wants, while an answer is written and its prompt is read

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 < self.tokens_s < 10_000:
            raise SettingsError(
                f"{self.count} clients of {self.tokens_s:g} tokens a second, expected one client or more, and a speed "
                "above 0 and below 10,000",
                param="clients",
            )


@dataclass(frozen=True, slots=True)
class Replicas:
    """Of one prediction. None: a replica is too slow even for one client, or does not run."""

    count: int | None
    fewest: int | None  # if all goes well
    most: int | None  # if nothing does
    clients: int  # of a replica, at the count
    bound: str  # what keeps a replica from more clients: "speed", "memory", or "requests at once"
    origin: str
    about: bool

    def to_json(self) -> dict[str, object]:
        return {
            "count": self.count,
            "fewest": self.fewest,
            "most": self.most,
            "clients_of_each": self.clients,
            "bound": self.bound,
            "origin": self.origin,
        }


def replicas(one: Prediction, wanted: Clients, tables: Iterable[MeasuredSteps]) -> Replicas:
    """How many of a prediction's device serve the clients. tables: of the engine that serves several at once."""
    many, origin, about = growths(one, tuple(tables))
    slow = one.ttft is not None and (one.ttft.about or one.decode.about)
    about = about or slow or one.decode.about
    if one.ttft is None:
        origin += "; reading prompts is not counted: nothing is known of it"
        about = True
    if not one.runs:
        return Replicas(None, None, None, 0, "memory" if one.fits is False else "speed", origin, about)
    room = in_memory(one)

    def clients(luck: int, growth: Growth) -> int:
        """Of one replica. luck: 1 where it is as fast as it may be, -1 where it is as slow."""
        most = min(room, MAX_RUNNING)
        return _most(most, lambda count: token_s(one, growth, count, luck) <= 1 / wanted.tokens_s)

    def count(served: int) -> int | None:
        return math.ceil(wanted.count / served) if served else None

    ordered = sorted(many, key=lambda growth: growth(8))
    usual = clients(0, mean_of(many))
    least, best = clients(-1, ordered[-1]), clients(1, ordered[0])
    bound = "memory" if usual == room else "requests at once" if usual == MAX_RUNNING else "speed"
    return Replicas(count(usual), count(best), count(least), usual, bound, origin, about)


def token_s(one: Prediction, growth: Growth, clients: int, luck: int = 0) -> float:
    """How long a token takes of a replica with these clients, its share of the prompts included. luck: as above."""
    decode = 1 / (one.decode.value * one.decode.factor**luck)
    read = 0.0 if one.ttft is None else one.ttft.value / one.ttft.factor**luck / ANSWER
    return clients * read + decode * growth(clients)


def mean_of(many: Sequence[Growth]) -> Growth:
    return lambda count: sum(growth(count) for growth in many) / len(many)


def growths(one: Prediction, tables: Sequence[MeasuredSteps]) -> tuple[list[Growth], str, bool]:
    """How steps grow with answers, each as likely; where that is known from, and whether it is a guess."""
    place = one.place
    if place.kind == "cpu":
        if not tables:
            return [float], "a guess: answers take turns", True
        names = " and ".join(f"{table.model} ({table.threads} threads)" for table in tables)
        origin = f"growth of steps measured on {tables[0].machine} with {names}"
        return [_measured(table) for table in tables], origin, not place.measured
    kv = one.footprint.kv * min(PROMPT / one.context_tokens, 1.0)
    read = max(one.footprint.weights, 1)

    def roofline(count: int) -> float:
        by_bytes = (read + count * kv) / (read + kv)
        if one.ttft is None:
            return by_bytes
        by_operations = count * one.ttft.value / PROMPT * one.decode.value  # a token read costs as one that is written
        return max(by_bytes, by_operations)

    return [roofline], "a guess: bytes and operations counted, batches were measured on no such device", True


def _measured(table: MeasuredSteps) -> Growth:
    costs = table.costs()
    one = costs.answers.ms(1, PROMPT)
    return lambda count: costs.answers.ms(count, PROMPT) / one


def in_memory(one: Prediction) -> int:
    """Contexts that there is room for; as many as may run where it is not known."""
    room = one.place.room_bytes
    if room is None or not one.footprint.kv:
        return MAX_RUNNING
    needed = one.footprint
    return max(int((room - needed.loaded - needed.activations) // needed.kv), 1)


def _most(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `most` that fits; 0 if not even one does."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
