"""How likely given continuations are, with everything that they share computed once.

In: an engine, and pairs of token ids: a context and what may follow it. Out: the log-probability of each continuation,
and whether greedy decoding would have written it. Knows nothing about text.

Inputs are taken in the order of their ids, so one sequence in the KV cache can serve them all: it is cut back to what
the next input shares with the last one, and computes the rest. Shared contexts, few-shot examples and beginnings of any
length are thus computed once. No piece is a single token, because single-token kernels round differently from those for
several: with 16- and 32-bit caches the rows are bit for bit those of one run over the whole input, on OpenVINO always
and on ONNX Runtime with `reproducible`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np

from edge.runtime.arrays import Ids, Logits
from edge.runtime.engines.engine import Engine, Step
from edge.runtime.errors import CacheFullError, ContextLengthError, PromptError, SettingsError
from edge.runtime.kv.pool import CacheSequence
from edge.runtime.kv.prefix import common_prefix
from edge.runtime.logprobs import token_logprob
from edge.runtime.sampling import check_finite

LOGITS_ROWS = 128  # at once: 78 MB with a vocabulary of 151,552
BATCH = 16  # continuations in one run of an engine that can batch them


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked for: the log-probability of `continuation` after `context`, both at least one token id."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    @property
    def input(self) -> tuple[int, ...]:
        """What the model must see: the last id is only predicted. A single id is doubled; its first row is the same."""
        seen = self.context + self.continuation[:-1]
        return seen if len(seen) > 1 else seen * 2


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How likely a continuation is."""

    logprob: float  # nats, summed over its tokens
    is_greedy: bool  # whether each of its tokens is the most likely one there


class Trunk:
    """One sequence in the KV cache that moves from one run of ids to another, keeping what they have in common."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._sequence = CacheSequence(engine.pool)
        self.ids: list[int] = []  # whose keys and values it holds
        self.num_computed = 0  # tokens so far

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sequence.free()

    def seek(self, ids: Sequence[int]) -> None:
        """Hold exactly these ids. Raises CacheFullError and DeviceError."""
        wanted = list(ids)
        kept = common_prefix(self.ids, wanted)
        if kept == len(wanted) - 1:
            kept = max(kept - 1, 0)  # otherwise one token would be computed alone
        self._trim(kept)
        for piece in _pieces(len(wanted) - kept, self._engine.info.prefill_chunk):
            self._forward(wanted[len(self.ids) : len(self.ids) + piece], np.array([piece - 1], np.int64))

    def extend(self, ids: Sequence[int]) -> Iterator[Logits]:
        """Add ids; yields a row of logits (vocab,) for each, valid until the next. Raises as `seek` does."""
        done = 0
        for piece in _pieces(len(ids), LOGITS_ROWS):
            yield from self._forward(list(ids[done : done + piece]), np.arange(piece, dtype=np.int64))
            done += piece

    def branch(self, branches: Sequence[Sequence[int]]) -> list[Logits]:
        """Logits (n, vocab) of each id of every branch, all of which begin here, in one run of the engine.

        The trunk stays where it is. Raises CacheFullError, changing nothing, if they do not fit side by side.
        """
        forks: list[CacheSequence] = []
        try:
            for _ in branches:
                forks.append(self._sequence.fork())
            steps = [Step(fork, np.array(ids, np.int64)) for fork, ids in zip(forks, branches, strict=True)]
            rows = self._engine.decode(steps)
        finally:
            for fork in forks:
                fork.free()
        self.num_computed += sum(len(ids) for ids in branches)
        _check_finite(rows)
        return rows

    def _forward(self, ids: list[int], rows: Ids) -> Logits:
        logits = self._engine.forward(np.array(ids, np.int64), self._sequence, rows)
        self.ids += ids
        self.num_computed += len(ids)
        _check_finite([logits])
        return logits

    def _trim(self, count: int) -> None:
        self._sequence.trim(count)
        del self.ids[count:]


def _check_finite(found: Sequence[Logits]) -> None:
    """Raises DeviceError: a likelihood of NaN would look like any other figure."""
    for rows in found:
        for row in rows:
            check_finite(row)


def score(
    engine: Engine,
    num_tokens: int,
    queries: Sequence[Query],
    *,
    batch: int = BATCH,
    trunk: Trunk | None = None,
    progress: Callable[[int], None] = lambda _count: None,
) -> list[Likelihood]:
    """The likelihood of every query, in their order.

    num_tokens: of the vocabulary; rows of the head beyond it are padding and are ignored. batch: how many continuations
    of one context may share a run of the engine, if it computes several at once and need not keep them apart
    (`reproducible`). trunk: the one to start from; it is left at what was computed last. progress: told how many more
    queries are done. Raises PromptError for an empty context or continuation, ContextLengthError and DeviceError.
    """
    if engine.info.logits_rows == "last":
        raise SettingsError(
            f"the {engine.info.name} engine gives the logits of a prompt's last token only; use another engine",
            param="engine",
        )
    inputs = _grouped(engine, queries)
    order = sorted(inputs)
    found: dict[int, Likelihood] = {}
    with Trunk(engine) if trunk is None else _Borrowed(trunk) as path:
        at = 0
        while at < len(order):
            group = _side_by_side(order[at:], inputs, batch if _can_batch(engine) else 1)
            for ids, rows in zip(group, _rows(path, group, inputs[group[0]].start), strict=True):
                asked = inputs[ids]
                found.update(asked.likelihoods(rows, num_tokens))
                progress(len(asked.queries))
            at += len(group)
    return [found[index] for index in range(len(queries))]


class _Input:
    """One run of ids with everything that is asked about it."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.queries: dict[int, Query] = {}  # by their index among those asked
        self.start = length  # of the first row that is needed

    def add(self, index: int, query: Query) -> None:
        self.queries[index] = query
        start = min(self.start, len(query.context) - 1, self.length - 2)
        self.start = start if start > 1 else 0  # two rows at least, after two tokens or none

    def likelihoods(self, rows: Iterator[Logits] | Logits, num_tokens: int) -> dict[int, Likelihood]:
        """The likelihood of each query, given the rows of the ids from `start` on."""
        sums = dict.fromkeys(self.queries, 0.0)
        greedy = dict.fromkeys(self.queries, True)
        for position, row in enumerate(rows, start=self.start + 1):  # of the id that the row predicts
            known = row[:num_tokens]
            best = int(known.argmax())
            for index, query in self.queries.items():
                place = position - len(query.context)
                if 0 <= place < len(query.continuation):
                    token_id = query.continuation[place]
                    sums[index] += token_logprob(known, token_id, 0).logprob
                    greedy[index] &= token_id == best
        return {index: Likelihood(sums[index], greedy[index]) for index in self.queries}


class _Borrowed:
    """A trunk that the caller frees."""

    def __init__(self, trunk: Trunk) -> None:
        self._trunk = trunk

    def __enter__(self) -> Trunk:
        return self._trunk

    def __exit__(self, *_: object) -> None: ...


def _grouped(engine: Engine, queries: Sequence[Query]) -> dict[tuple[int, ...], _Input]:
    inputs: dict[tuple[int, ...], _Input] = {}
    for index, query in enumerate(queries):
        if not query.context or not query.continuation:
            raise PromptError(f"query {index} has an empty context or continuation; give at least one token id of each")
        ids = query.input
        if len(ids) > engine.info.max_context:
            raise ContextLengthError(
                f"query {index} has {len(ids)} tokens and the context holds {engine.info.max_context}; cut its "
                "context, or load with a larger max_context or KV cache"
            )
        inputs.setdefault(ids, _Input(len(ids))).add(index, query)
    return inputs


def _can_batch(engine: Engine) -> bool:
    """Whether an engine takes several sequences with several new tokens each, and need not give the bits of one."""
    return engine.info.ragged and not engine.info.reproducible


def _side_by_side(
    order: Sequence[tuple[int, ...]], inputs: dict[tuple[int, ...], _Input], batch: int
) -> list[tuple[int, ...]]:
    """The first inputs that branch at the same place and that fit into one run."""
    first = order[0]
    head, rows = first[: inputs[first].start], len(first) - inputs[first].start
    group = [first]
    for ids in order[1:batch]:
        start = inputs[ids].start
        rows += len(ids) - start
        if ids[:start] != head or rows > LOGITS_ROWS:
            break
        group.append(ids)
    return group


def _rows(trunk: Trunk, group: Sequence[tuple[int, ...]], start: int) -> Iterator[Iterator[Logits] | Logits]:
    """The rows of each input of a group, from `start` on."""
    trunk.seek(group[0][:start])
    if len(group) > 1:
        try:
            yield from trunk.branch([ids[start:] for ids in group])
            return
        except CacheFullError:  # not enough room for all of them at once
            pass
    for ids in group:
        trunk.seek(ids[:start])
        yield trunk.extend(ids[start:])


def _pieces(count: int, limit: int) -> list[int]:
    """`count` tokens in pieces of up to `limit`, none of which is a single token unless `count` is 1."""
    pieces = [limit] * (count // limit) + ([count % limit] if count % limit else [])
    if len(pieces) > 1 and pieces[-1] == 1:
        pieces[-2:] = [limit - 1, 2]
    return pieces
