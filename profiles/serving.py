"""How fast a server answers several clients at once, with the definitions that every figure of serving here uses.

In: the address of a server that speaks OpenAI's protocol, prompts. Out: `Served` for each number of clients. Prompts
are token ids, answers greedy, stop ids ignored, so that servers of one model are asked for the same work.

    tok/s     tokens of all answers, from the first request to the last token: reading prompts is part of it
    TTFT      from a request to its first token
    gap       between two tokens of one answer that follow each other; of all answers together
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from edge.profiles.http_load import Address, Post, Reply, run_clients
from edge.runtime.errors import ProfileError, shown
from edge.runtime.json_reader import parse_json

Task = tuple[Sequence[int], int]  # a prompt, and the length of its answer

PATH = "/v1/completions"
OK = 200
_DONE = b"[DONE]"


@dataclass(frozen=True, slots=True)
class Spoken:
    """One answer: when it was asked for, and when its tokens came."""

    sent_at: float
    token_times: tuple[float, ...]  # of events with text or ids: mostly one for each token
    tokens: int  # as the server counts them


@dataclass(frozen=True, slots=True)
class Served:
    """What a number of clients got."""

    clients: int
    tokens: int
    tokens_per_second: float
    ttft_ms_p50: float
    ttft_ms_p99: float
    gap_ms_p50: float
    gap_ms_p99: float


def completion(prompt: Sequence[int], new_tokens: int, *, ids: bool = False) -> Post:
    """A request for exactly this many tokens, as a stream. ids: those of `edge serve`, so that each is seen."""
    body: dict[str, object] = {
        "prompt": list(prompt),
        "max_tokens": new_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        **({"return_token_ids": True} if ids else {}),
    }
    return Post(PATH, json.dumps(body).encode())


def measure_clients(address: Address, clients: Sequence[Sequence[Task]], *, ids: bool = False) -> Served:
    """Each client asks for its tasks one after the other. Raises ProfileError for an answer that was not asked for."""
    posts = [[completion(prompt, new_tokens, ids=ids) for prompt, new_tokens in tasks] for tasks in clients]
    answers = []
    for replies, tasks in zip(run_clients(address, posts), clients, strict=True):
        for reply, (_, new_tokens) in zip(replies, tasks, strict=True):
            answers.append(answer := spoken(reply))
            if answer.tokens != new_tokens:
                raise ProfileError(f"an answer has {answer.tokens} tokens, {new_tokens} were asked for")
    return summed_up(len(clients), answers)


def spoken(reply: Reply) -> Spoken:
    """Raises ProfileError for anything but a whole stream with usage and tokens."""
    if reply.status != OK or not reply.complete:
        told = reply.body.decode(errors="replace")
        raise ProfileError(f"the server answered {reply.status}, {shown(told)}; expected a stream to its end")
    times, tokens = list[float](), 0
    for event in reply.events:
        if event.data == _DONE:
            continue
        message = parse_json(event.data, "an event", ProfileError, "look at the server's log")
        match message:
            case {"error": error}:
                raise ProfileError(f"the server ended a stream with {shown(error)}")
            case {"choices": [{"token_ids": [_, *_] as ids}, *_]}:
                times += [event.at] * len(ids)  # tokens that come while an event is written are one event
            case {"choices": [{"text": str(text)} | {"delta": {"content": str(text)}}, *_]} if text:
                times.append(event.at)
        match message:
            case {"usage": {"completion_tokens": int(counted)}}:
                tokens = counted
    if not times or not tokens:
        raise ProfileError(f"a stream of {len(reply.events)} events has no text or ids, or no usage")
    return Spoken(reply.sent_at, tuple(times), tokens)


def summed_up(clients: int, answers: Sequence[Spoken]) -> Served:
    """The figures of one run, given all of its answers."""
    tokens = sum(answer.tokens for answer in answers)
    seconds = max(answer.token_times[-1] for answer in answers) - min(answer.sent_at for answer in answers)
    first = [1000 * (answer.token_times[0] - answer.sent_at) for answer in answers]
    gaps = [1000 * (b - a) for answer in answers for a, b in pairwise(answer.token_times)] or [0.0]
    return Served(
        clients,
        tokens,
        round(tokens / seconds, 2),
        round(statistics.median(first), 2),
        round(percentile(first, 99), 2),
        round(statistics.median(gaps), 2),
        round(percentile(gaps, 99), 2),
    )


def percentile(values: Iterable[float], percent: float) -> float:
    """The smallest value that this share of all does not exceed; of few values that is the largest."""
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * percent / 100) - 1, 0)]
