"""Clients that ask a server many things at once, some of whom leave early, and what became of every answer.

In: a server's address, questions with the answer that each gets when it is asked alone. Out: an `Outcome`. Answers are
sampled with a seed: a server that gives the same bits whatever else it computes gives each question its one answer.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from edge.profiles.http_load import Address, Post, Reply, ask, run_clients

PATH = "/v1/chat/completions"
OK, BUSY = 200, 429
LEAVING = 0.25  # of all requests
LEAVING_BEFORE = 0.25  # of those, before the first token maybe
RETRY_S = 0.5
SUBJECTS = ("the sea", "old bridges", "rain in spring", "a museum at night", "bread", "the history of clocks",
            "mountains", "how bees live", "trains", "the moon", "a small harbour", "paper")  # fmt: skip
ASKED = ("Tell me about {}.", "Write three sentences about {}.", "What do you like about {}?", "Name facts about {}.")

Said = tuple[str, str]  # text and finish reason


@dataclass(frozen=True, slots=True)
class Question:
    """A body, without `stream`."""

    body: dict[str, Any]

    def post(self, *, stream: bool, leave_after: int | None = None, leave_after_s: float | None = None) -> Post:
        return Post(PATH, json.dumps({**self.body, "stream": stream}).encode(), leave_after, leave_after_s)


@dataclass(slots=True)
class Outcome:
    """What became of all requests."""

    requests: int = 0
    same: int = 0  # whole answers that equal the single run
    different: list[str] = field(default_factory=list)  # what was expected and what came
    lost: list[str] = field(default_factory=list)  # no answer, or one without an end
    failed: Counter[int] = field(default_factory=Counter)  # by status
    left: int = 0  # hung up, as they had been told to
    busy: int = 0  # refused with 429, and asked again
    events: int = 0  # of streams, mostly one for each token
    seconds: float = 0.0

    @property
    def right(self) -> bool:
        return bool(self.same) and not (self.different or self.lost or self.failed)


def questions(count: int, *, max_tokens: bool, seed: int = 0) -> list[Question]:
    """Different ones; with max_tokens each has a limit of its own, otherwise the end of the context is the limit."""
    rng, made = random.Random(seed), []
    for number in range(count):
        text = rng.choice(ASKED).format(rng.choice(SUBJECTS))
        body: dict[str, Any] = {"messages": [{"role": "user", "content": text}], "temperature": 0.8, "seed": number}
        made.append(Question({**body, "max_tokens": rng.randint(8, 96)} if max_tokens else body))
    return made


def single_runs(address: Address, asked: Sequence[Question]) -> list[Said]:
    """Each answer when nobody else asks. Raises RuntimeError when one fails."""
    [replies] = run_clients(address, [[question.post(stream=False) for question in asked]])
    for reply in replies:
        if reply.status != OK:
            raise RuntimeError(f"alone, a question was answered {reply.status}: {reply.body.decode(errors='replace')}")
    return [said(reply) for reply in replies]


def run_crowd(
    address: Address,
    asked: Sequence[Question],
    expected: Sequence[Said],
    *,
    clients: int,
    seconds: float,
    seed: int = 0,
) -> Outcome:
    """Ask for this long, then wait for what has been asked; every client asks one thing after the other."""
    outcome = Outcome()

    async def one(rng: random.Random) -> None:
        while time.perf_counter() < until:
            number = rng.randrange(len(asked))
            reply = await ask(address, posted(asked[number], rng))
            judge(outcome, reply, expected[number])
            if reply.status == BUSY:
                await asyncio.sleep(RETRY_S)

    async def every() -> None:
        await asyncio.gather(*(one(random.Random(f"{seed} {client}")) for client in range(clients)))

    started = time.perf_counter()
    until = started + seconds
    asyncio.run(every())
    outcome.seconds = time.perf_counter() - started
    return outcome


def posted(question: Question, rng: random.Random) -> Post:
    """As a stream or whole, and with how much patience."""
    if rng.random() < LEAVING:
        if rng.random() < LEAVING_BEFORE:
            return question.post(stream=rng.random() < 0.5, leave_after_s=rng.uniform(0.02, 1.0))
        return question.post(stream=True, leave_after=rng.randint(1, 20))
    return question.post(stream=rng.random() < 0.75)


def judge(outcome: Outcome, reply: Reply, expected: Said) -> None:
    """Count one reply."""
    outcome.requests += 1
    outcome.events += len(reply.events)
    if reply.status == BUSY:
        outcome.busy += 1
    elif reply.left:
        outcome.left += 1
    elif reply.status not in (0, OK):
        outcome.failed[reply.status] += 1
    elif not reply.complete or (reply.events and reply.events[-1].data != b"[DONE]"):
        outcome.lost.append(f"{len(reply.body)} bytes, ending in {reply.body[-200:]!r}")
    elif (found := said(reply)) == expected:
        outcome.same += 1
    else:
        outcome.different.append(f"expected {expected}, found {found}")


def said(reply: Reply) -> Said:
    """Text and finish reason of the first choice."""
    if not reply.events:
        [choice] = json.loads(reply.body)["choices"]
        return choice["message"]["content"], choice["finish_reason"]
    text, reason = "", ""
    for event in reply.events:
        if event.data != b"[DONE]":
            for choice in json.loads(event.data).get("choices", ()):
                text += choice["delta"].get("content") or ""
                reason = choice["finish_reason"] or reason
    return text, reason
