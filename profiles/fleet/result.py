"""What a simulated fleet did: waits, speeds, cache hits, and what was lost.

In: the requests of a window of time, and what replicas counted. Out: a `Result`. The same figures can be made of
requests to a real server. Knows nothing about simulations.

    wait      from a request to the first step that reads it
    TTFT      from a request to its first token
    rate      tokens a second of an answer, after its first
    hits      share of all prompt tokens that were in the cache; of later turns: of the tokens that an earlier turn had
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from edge.profiles.fleet.workload import Ask
from edge.profiles.serving import percentile


@dataclass(frozen=True, slots=True)
class Spread:
    """Of many values; all 0 for none."""

    mean: float
    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if not values:
            return cls(0.0, 0.0, 0.0, 0.0)
        mean = sum(values) / len(values)
        return cls(mean, *(percentile(values, percent) for percent in (50, 95, 99)))


@dataclass(frozen=True, slots=True)
class Result:
    """Of one run."""

    asked: int
    answered: int
    refused: int  # every queue that was tried was full
    broken: int  # lost with their replica
    moved: int  # of those that were answered: begun anew or continued elsewhere
    seconds: float
    tokens: int
    tokens_s: float
    wait_s: Spread
    ttft_s: Spread
    rate: Spread
    slow_rate: float  # that 95 % of all answers have or exceed
    hits: float
    turn_hits: float

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def result_of(asks: Iterable[Ask], seconds: float) -> Result:
    """The figures of all requests of a window, `seconds` long, each of which has ended."""
    every = list(asks)
    done = [ask for ask in every if ask.outcome == "answered" and ask.first_s is not None and ask.ended_s is not None]
    rates = [
        (ask.produced - 1) / (ask.ended_s - ask.first_s)
        for ask in done
        if ask.first_s is not None and ask.ended_s is not None and ask.ended_s > ask.first_s
    ]
    tokens = sum(ask.produced for ask in done)
    prompts, earlier = sum(ask.prompt_tokens for ask in done), sum(ask.earlier_tokens for ask in done)
    of_earlier = sum(min(ask.cached_tokens, ask.earlier_tokens) for ask in done)
    return Result(
        asked=len(every),
        answered=len(done),
        refused=sum(ask.outcome == "refused" for ask in every),
        broken=sum(ask.outcome == "broken" for ask in every),
        moved=sum(ask.moved > 0 for ask in done),
        seconds=seconds,
        tokens=tokens,
        tokens_s=tokens / seconds,
        wait_s=Spread.of([ask.began_s - ask.arrived_s for ask in done if ask.began_s is not None]),
        ttft_s=Spread.of([ask.first_s - ask.arrived_s for ask in done if ask.first_s is not None]),
        rate=Spread.of(rates),
        slow_rate=percentile(rates, 5) if rates else 0.0,
        hits=sum(ask.cached_tokens for ask in done) / prompts if prompts else 0.0,
        turn_hits=of_earlier / earlier if earlier else 0.0,
    )
