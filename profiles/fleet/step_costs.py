"""What a step of an engine costs, as it was measured: the only thing that the simulation knows about speed.

In: `steps.json`, which `benchmarks/fleet_steps.py --store` writes. Out: `MeasuredSteps` with every cell, its spread and
its runs, and the `StepCosts` that follow. Knows nothing about replicas or requests.

    decode of n answers   base(n) + slope x tokens that all of them have behind them
                          and a constant where the step before it was of another kind
    reading n tokens      base(n) + slope x n x tokens behind them
    serving, beside it    a constant a step, one an answer in it, and one a request

base is what was measured, and on the line between two counts that were measured.
"""

from __future__ import annotations

import json
import statistics
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.resources import files

import numpy as np

from edge.runtime.errors import ProfileError, shown
from edge.runtime.json_object import ObjectReader
from edge.runtime.json_reader import parse_json

FILE = "steps.json"
ADVICE = "run benchmarks/fleet_steps.py --store again"
_MOST = 1 << 20


@dataclass(frozen=True, slots=True)
class Cell:
    """One thing that was run several times."""

    count: int  # answers in a decode step, or tokens of a prompt that are read at once
    past: int  # tokens that each has behind it
    ms: float  # the median
    low: float
    high: float
    runs: int


@dataclass(frozen=True, slots=True)
class Gap:
    """The time between two tokens of an answer, over HTTP, while this many clients ask all the time."""

    clients: int
    servers: int  # on the same machine, each asked by so many clients
    past: int  # tokens behind an answer, in the mean
    ms: float
    low: float
    high: float
    runs: int


@dataclass(frozen=True, slots=True)
class MeasuredSteps:
    """One bundle on one engine."""

    model: str
    recipe: str
    engine: str
    threads: int
    machine: str
    date: str
    command: str
    versions: Mapping[str, str]
    chunk: int  # tokens of prompts that a step reads at most
    block: int  # tokens
    blocks: int  # of the KV cache, as it is by default
    decode: tuple[Cell, ...]  # one after the other
    first: tuple[Cell, ...]  # the same, each after a step of another number of answers
    prefill: tuple[Cell, ...]
    gaps: tuple[Gap, ...]  # none: what serving adds was not measured, and is left out
    request_ms: float  # from sending a request to its first step, and from its first token to its reader

    @property
    def name(self) -> str:
        return f"{self.model}, {self.engine}, {self.threads} thread{'s' if self.threads > 1 else ''}"

    def costs(self) -> StepCosts:
        """What follows for steps between those that were measured."""
        answers, tokens = _line(self.decode), _line(self.prefill)
        alone = [gap for gap in self.gaps if gap.servers == 1]
        host_step, host_answer = _beside_engine(alone, answers)
        by_clients = {gap.clients: gap.ms for gap in alone}
        beside = {
            gap.clients: gap.ms / by_clients[gap.clients]
            for gap in self.gaps
            if gap.servers == 2 and gap.clients in by_clients
        }
        return StepCosts(
            self.chunk,
            self.block,
            self.blocks,
            answers,
            tokens,
            host_step,
            host_answer,
            max(statistics.median(cell.ms - answers.ms(cell.count, cell.past) for cell in self.first), 0.0),
            self.request_ms,
            tuple(sorted(beside.items())),
        )


@dataclass(frozen=True, slots=True)
class Line:
    """Milliseconds by a count, with a slope for what is behind it."""

    counts: tuple[int, ...]
    base: tuple[float, ...]
    slope: float  # ms for a unit of the count and a token behind it

    def at(self, count: int) -> float:
        """With nothing behind it. Beyond the last count that was measured, on as between the last two."""
        counts, base = self.counts, self.base
        if len(counts) == 1:
            return base[0] * count / counts[0]
        right = min(max(bisect_right(counts, count), 1), len(counts) - 1)
        a, b = counts[right - 1], counts[right]
        return max(base[right - 1] + (base[right] - base[right - 1]) * (count - a) / (b - a), 0.0)

    def ms(self, count: int, past: float) -> float:
        return self.at(count) + self.slope * count * past

    def times(self, factor: float) -> Line:
        return Line(self.counts, tuple(base * factor for base in self.base), self.slope * factor)


@dataclass(frozen=True, slots=True)
class StepCosts:
    """Milliseconds of a step on one replica."""

    chunk: int
    block: int
    blocks: int
    answers: Line
    tokens: Line
    host_step_ms: float = 0.0
    host_answer_ms: float = 0.0
    change_ms: float = 0.0  # of a decode step that follows one of another kind
    request_ms: float = 0.0
    beside: tuple[tuple[int, float], ...] = ()  # answers -> how much longer a step takes beside a busy replica

    def decode_ms(self, answers: int, behind: int) -> float:
        """One token of each of several answers, serving included. behind: tokens of all of them together."""
        return (
            self.answers.at(answers) + self.answers.slope * behind + self.host_step_ms + self.host_answer_ms * answers
        )

    def decodes_ms(self, answers: int, behind: int, steps: int) -> float:
        """So many steps, one after the other, in each of which every answer grows by a token."""
        grown = self.answers.slope * answers * steps * (steps - 1) / 2
        return steps * self.decode_ms(answers, behind) + grown

    def prefill_ms(self, tokens: int, behind: int) -> float:
        """Tokens of one prompt, read at once after those that are behind them."""
        return self.tokens.ms(tokens, behind)

    def times(self, decode: float, prefill: float) -> StepCosts:
        """The same on a machine that takes so many times as long."""
        return replace(
            self,
            answers=self.answers.times(decode),
            tokens=self.tokens.times(prefill),
            host_step_ms=self.host_step_ms * decode,
            host_answer_ms=self.host_answer_ms * decode,
            change_ms=self.change_ms * decode,
        )

    def slowed(self, answers: int) -> float:
        """How much longer a step takes while another replica of the same machine has one, too; 1 if not measured."""
        if not self.beside:
            return 1.0
        counts, factors = zip(*self.beside, strict=True)
        return float(np.interp(max(answers, 1), counts, factors))


def _line(cells: Sequence[Cell]) -> Line:
    """The bases and the slope that are nearest to all cells, relative to each."""
    counts = sorted({cell.count for cell in cells})
    terms = np.zeros((len(cells), len(counts) + 1))
    for row, cell in enumerate(cells):
        terms[row, counts.index(cell.count)] = 1 / cell.ms
        terms[row, -1] = cell.count * cell.past / cell.ms
    if not terms[:, -1].any() or len(cells) <= len(counts):
        terms = terms[:, :-1]
    scale = np.maximum(np.abs(terms).max(axis=0), 1e-300)
    found = np.linalg.lstsq(terms / scale, np.ones(len(cells)), rcond=None)[0] / scale
    slope = max(float(found[-1]), 0.0) if len(found) > len(counts) else 0.0
    return Line(tuple(counts), tuple(float(value) for value in found[: len(counts)]), slope)


def _beside_engine(gaps: Sequence[Gap], answers: Line) -> tuple[float, float]:
    """What serving adds: ms a step and ms an answer in it, neither below 0, nearest to all gaps, relative to each."""
    if not gaps:
        return 0.0, 0.0
    rows = np.array([(1 / gap.ms, gap.clients / gap.ms) for gap in gaps])
    wanted = np.array([(gap.ms - answers.ms(gap.clients, gap.past)) / gap.ms for gap in gaps])
    both = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    if (both >= 0).all():
        return float(both[0]), float(both[1])
    single = [max(float(rows[:, i] @ wanted / (rows[:, i] @ rows[:, i])), 0.0) for i in range(2)]
    errors = [float(np.square(rows[:, i] * single[i] - wanted).sum()) for i in range(2)]
    return (single[0], 0.0) if errors[0] < errors[1] else (0.0, single[1])


# --- The file ---------------------------------------------------------------------------------------------------------


def to_json(tables: Sequence[MeasuredSteps]) -> str:
    return json.dumps({"tables": [asdict(table) for table in tables]}, indent=1, sort_keys=True) + "\n"


def from_json(raw: str | bytes) -> tuple[MeasuredSteps, ...]:
    """Raises ProfileError."""
    read = ObjectReader(parse_json(raw, FILE, ProfileError, ADVICE), FILE, ProfileError, ADVICE)
    read.has_only({"tables"})
    return read.listed("tables", _table)


def _table(read: ObjectReader) -> MeasuredSteps:
    read.has_only(set(MeasuredSteps.__dataclass_fields__))
    found = MeasuredSteps(
        **{name: read.word(name) for name in ("model", "recipe", "engine", "machine", "date", "command")},
        threads=read.whole("threads", 1, 1 << 16),
        versions=read.words("versions"),
        chunk=read.whole("chunk", 1, _MOST),
        block=read.whole("block", 1, _MOST),
        blocks=read.whole("blocks", 1, 1 << 40),
        decode=read.listed("decode", _cell),
        first=read.listed("first", _cell),
        prefill=read.listed("prefill", _cell),
        gaps=read.listed("gaps", _gap),
        request_ms=read.number("request_ms", 0, 1e6),
    )
    for cells, what in ((found.decode, "decode"), (found.first, "first"), (found.prefill, "prefill")):
        if not cells:
            raise ProfileError(f"{FILE}: {found.name}: {what} has no cells, expected one or more; {ADVICE}")
    return found


def _cell(read: ObjectReader) -> Cell:
    read.has_only(set(Cell.__dataclass_fields__))
    return Cell(read.whole("count", 1, _MOST), read.whole("past", 0, _MOST), *_spread(read))


def _gap(read: ObjectReader) -> Gap:
    read.has_only(set(Gap.__dataclass_fields__))
    clients, servers = read.whole("clients", 1, _MOST), read.whole("servers", 1, _MOST)
    return Gap(clients, servers, read.whole("past", 0, _MOST), *_spread(read))


def _spread(read: ObjectReader) -> tuple[float, float, float, int]:
    ms, low, high = (read.number(name, 1e-6, 1e9) for name in ("ms", "low", "high"))
    if not low <= ms <= high:
        raise ProfileError(f"{FILE}: {ms} ms is not between its own {low} and {high}; {ADVICE}")
    return ms, low, high, read.whole("runs", 1, _MOST)


@cache
def stored() -> tuple[MeasuredSteps, ...]:
    """What was measured last, as shipped."""
    return from_json(files("edge.profiles.fleet").joinpath(FILE).read_bytes())


def find_table(tables: Sequence[MeasuredSteps], name: str) -> MeasuredSteps:
    """The only table whose name has all of these words. Raises ProfileError."""
    found = [table for table in tables if all(word in table.name for word in name.split())]
    if len(found) != 1:
        there = "; ".join(table.name for table in tables)
        raise ProfileError(f"{shown(name)} is the name of {len(found)} tables, expected one of: {there}")
    return found[0]
