"""What clients ask for: conversations of turns, each of which begins with all that came before it.

In: a `Workload`, a seed. Out: `Conversation` records in a fixed order, the same for the same seed, and `Ask`, the life
of one request. Knows nothing about replicas, so that a real server can be asked for the same.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Literal

from edge.runtime.errors import SettingsError
from edge.runtime.rendezvous import digest

_OF_A_CLIENT = 32  # bits of a conversation's number
Outcome = Literal["", "answered", "refused", "broken"]


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens, each number from low to high equally often."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high:
            raise SettingsError(
                f"lengths are {self.low} to {self.high}, expected two counts from 1, the lower one first"
            )

    @property
    def mean(self) -> float:
        return (self.low + self.high) / 2

    def drawn(self, rng: random.Random) -> int:
        return rng.randint(self.low, self.high)


@dataclass(frozen=True, slots=True)
class Workload:
    """Either clients, each of which begins a conversation a pause after its last one, or a rate at which they come."""

    clients: int = 0
    conversations_s: float = 0.0  # a second, in the mean, independent of each other
    turns: int = 1
    think_s: float = 0.0  # between an answer and the next turn, in the mean, exponential
    system_tokens: int = 0  # at the beginning of every conversation, the same in all
    user: Lengths = Lengths(32, 96)
    answer: Lengths = Lengths(32, 96)

    def __post_init__(self) -> None:
        if (self.clients > 0) == (self.conversations_s > 0):
            raise SettingsError("expected either a number of clients or a rate of conversations, and not both")
        if self.turns < 1 or self.think_s < 0 or self.system_tokens < 0:
            raise SettingsError("expected one turn or more, and no negative time or number of tokens")


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and the length of its answer."""

    user_tokens: int
    answer_tokens: int
    think_s: float  # before it is asked; before the first: none


@dataclass(frozen=True, slots=True)
class Conversation:
    """What one client asks, one turn after the other."""

    number: int
    gap_s: float  # after the one before it began, where they come at a rate
    pause_s: float  # of its client before it
    turns: tuple[Turn, ...]

    @property
    def key(self) -> int:
        """The digest of what its requests have in common."""
        return digest(b"conversation %d" % self.number)


def conversations(workload: Workload, seed: int, client: int = 0) -> Iterator[Conversation]:
    """What a client asks, without end; where conversations come at a rate, all of them are the first client's."""
    rng = random.Random(f"{seed} {client}")
    for number in count(client << _OF_A_CLIENT):
        gap = rng.expovariate(workload.conversations_s) if workload.conversations_s else 0.0
        turns = tuple(
            Turn(
                workload.user.drawn(rng),
                workload.answer.drawn(rng),
                rng.expovariate(1 / workload.think_s) if workload.think_s and turn else 0.0,
            )
            for turn in range(workload.turns)
        )
        pause = rng.expovariate(1 / workload.think_s) if workload.think_s else 0.0
        yield Conversation(number, gap, pause, turns)


@dataclass(slots=True, eq=False)
class Ask:
    """One request, and what became of it. Times in seconds; None: not yet, or never."""

    conversation: int
    key: int
    system_tokens: int
    prompt_tokens: int  # all of them, earlier turns included
    answer_tokens: int
    arrived_s: float
    earlier_tokens: int = 0  # of the prompt: what an earlier turn had, its answer included
    began_s: float | None = None  # the first step that read a token of it
    first_s: float | None = None  # its first token
    ended_s: float | None = None
    cached_tokens: int = 0  # of its prompt, at its first replica
    outcome: Outcome = ""
    replica: int = -1
    moved: int = 0  # times that it was run elsewhere
    # Its state at a replica: tokens computed, answered since it came there, passed over, blocks of its own.
    computed: int = 0
    produced: int = 0
    skipped: int = 0
    overtaken: int = 0
    blocks: int = 0
    shares_system: bool = False
    order: int = -1

    @property
    def length(self) -> int:
        """Tokens of prompt and answer so far."""
        return self.prompt_tokens + self.produced

    @property
    def longest(self) -> int:
        """Tokens that it has in the end."""
        return self.prompt_tokens + self.answer_tokens

    @property
    def missing(self) -> int:
        return self.length - self.computed
