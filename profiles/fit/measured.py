"""What was measured on a machine of ours with this version's engines, and what follows for speeds on CPUs.

In: `measured.json`, which `benchmarks/fit.py --store` writes. Out: `MeasuredPair` records, and the `EngineRates` that
fit them. A pair is one bundle on one engine at one length of context. Every error is that of pairs which the rates were
not fitted to. Knows nothing about devices.

    decode   = bytes read / (efficiency x measured bandwidth), where weights of 4 bits, other weights and the cache have
               an efficiency each. A constant for each block cannot be told from the cache's with these pairs
    prefill  = operations / rate, by bits of the weights
    load     = bytes / rate + a constant, first prompt included: OpenVINO repacks its weights in that
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from edge.profiles.fit.figures import factor_between, fitted_terms
from edge.runtime.errors import ProfileError
from edge.runtime.json_object import ObjectReader
from edge.runtime.json_reader import parse_json

FILE = "measured.json"
ADVICE = "run benchmarks/fit.py --store again"
LEAST = 3  # pairs of an engine that its constants can be fitted to


class Reading(NamedTuple):
    """Bytes that a token reads."""

    packed: float  # weights of 4 bits
    other: float  # wider weights
    cache: float


@dataclass(frozen=True, slots=True)
class MeasuredPair:
    """One bundle on one engine, in a fresh process."""

    model: str
    engine: str
    recipe: str
    kv_precision: str
    context_tokens: int
    bits: int  # of the blocks' weights
    weight_bytes: int  # that are read for a token, as the engine keeps them
    packed_bytes: int  # of these, weights of 4 bits
    kv_read_bytes: int  # for a token, at half of what was written after the prompt
    bandwidth_gbs: float  # of all cores, before and after it
    operations: float  # of the prompt
    load_s: float
    first_token_s: float  # what the first prompt took longer than later ones of its length
    ttft_s: float  # of a later prompt of the same length
    decode_tok_s: float
    peak_bytes: int  # that could not be dropped
    resident_bytes: int
    predicted_peak_bytes: int
    predicted_resident_bytes: int

    @property
    def reading(self) -> Reading:
        return Reading(self.packed_bytes, self.weight_bytes - self.packed_bytes, self.kv_read_bytes)

    @property
    def ready_s(self) -> float:
        """Until a prompt takes no longer than any later one."""
        return self.load_s + self.first_token_s


@dataclass(frozen=True, slots=True)
class Measured:
    """All pairs of one run."""

    machine: str
    cores: int
    bandwidth_gbs: float  # of all cores, the median over the run
    load_before: float  # of the machine: processes that ran
    date: str
    versions: dict[str, str]
    pairs: tuple[MeasuredPair, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, raw: str | bytes) -> Measured:
        """Raises ProfileError."""
        read = ObjectReader(parse_json(raw, FILE, ProfileError, ADVICE), FILE, ProfileError, ADVICE)
        return cls(
            machine=read.word("machine"),
            cores=read.whole("cores", 1, 1 << 16),
            bandwidth_gbs=read.number("bandwidth_gbs", 0.01, 1e6),
            load_before=read.number("load_before", 0, 1e6),
            date=read.word("date"),
            versions=read.words("versions"),
            pairs=read.listed("pairs", _pair),
        )


def _pair(read: ObjectReader) -> MeasuredPair:
    values: dict[str, object] = {}
    for one in fields(MeasuredPair):
        if one.type == "str":
            values[one.name] = read.word(one.name)
        elif one.type == "int":
            values[one.name] = read.whole(one.name)
        else:
            values[one.name] = read.number(one.name, 1e-9, 1e30)
    return MeasuredPair(**values)  # type: ignore[arg-type]  # checked field by field


@dataclass(frozen=True, slots=True)
class EngineRates:
    """What an engine reaches on a CPU."""

    engine: str
    packed_efficiency: float  # share of the measured bandwidth at which weights of 4 bits are read
    efficiency: float  # and other weights
    cache_efficiency: float  # and keys and values
    prefill_flops: dict[int, float]  # by bits
    load_bytes_s: float
    load_s: float

    def decode_s(self, reading: Reading, bandwidth_gbs: float) -> float:
        efficiencies = (self.packed_efficiency, self.efficiency, self.cache_efficiency)
        return sum(size / share for size, share in zip(reading, efficiencies, strict=True)) / (bandwidth_gbs * 1e9)

    def ttft_s(self, operations: float, bits: int) -> float:
        known = self.prefill_flops
        return operations / known.get(bits, statistics.median(known.values()))

    def ready_s(self, weight_bytes: float) -> float:
        return weight_bytes / self.load_bytes_s + self.load_s


def fitted(engine: str, pairs: Sequence[MeasuredPair]) -> EngineRates:
    """The rates nearest to what was measured. Raises ProfileError with too few pairs."""
    own = [pair for pair in pairs if pair.engine == engine]
    if len(own) < LEAST:
        raise ProfileError(f"{len(own)} measured pairs of {engine}, expected {LEAST} or more; {ADVICE}")
    packed, other, of_cache = fitted_terms(
        [[size / (pair.bandwidth_gbs * 1e9) for size in pair.reading] for pair in own],
        [1 / pair.decode_tok_s for pair in own],
    )
    of_loaded, constant = fitted_terms([(pair.weight_bytes, 1) for pair in own], [pair.ready_s for pair in own])
    flops: dict[int, list[float]] = {}
    for pair in own:
        flops.setdefault(pair.bits, []).append(pair.operations / pair.ttft_s)
    return EngineRates(
        engine=engine,
        packed_efficiency=1 / max(packed, 1e-3),
        efficiency=1 / max(other, 1e-3),
        cache_efficiency=1 / max(of_cache, 1e-3),
        prefill_flops={bits: statistics.median(values) for bits, values in flops.items()},
        load_bytes_s=1 / max(of_loaded, 1e-15),
        load_s=constant,
    )


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What is predicted for a pair by rates that were fitted to all others."""

    pair: MeasuredPair
    decode_tok_s: float
    ttft_s: float
    ready_s: float

    @property
    def decode_factor(self) -> float:
        return factor_between(self.decode_tok_s, self.pair.decode_tok_s)

    @property
    def decode_error(self) -> float:
        """Relative, with its sign."""
        return self.decode_tok_s / self.pair.decode_tok_s - 1

    @property
    def memory_error(self) -> float:
        return self.pair.predicted_peak_bytes / self.pair.peak_bytes - 1

    @property
    def resident_error(self) -> float:
        return self.pair.predicted_resident_bytes / self.pair.resident_bytes - 1


def left_out_of(measured: Measured) -> list[LeftOut]:
    """Every pair, predicted by the others of its engine."""
    found = []
    for pair in measured.pairs:
        others = [other for other in measured.pairs if other is not pair]
        rates = fitted(pair.engine, others)
        decode = rates.decode_s(pair.reading, pair.bandwidth_gbs)
        ttft, ready = rates.ttft_s(pair.operations, pair.bits), rates.ready_s(pair.weight_bytes)
        found.append(LeftOut(pair, 1 / decode, ttft, ready))
    return found


@cache
def stored() -> Measured:
    """What was measured last, as shipped."""
    return Measured.from_json(files("edge.profiles.fit").joinpath(FILE).read_bytes())


@cache
def stored_rates(engine: str) -> EngineRates:
    return fitted(engine, stored().pairs)


@cache
def worst(engine: str, of: Callable[[LeftOut], float]) -> float:
    """The worst factor of an engine's pairs, at least 1.01: what is printed has no more digits."""
    return max([1.01, *(of(one) for one in left_out_of(stored()) if one.pair.engine == engine)])


def decode_factor(one: LeftOut) -> float:
    return one.decode_factor


def ttft_factor(one: LeftOut) -> float:
    return factor_between(one.ttft_s, one.pair.ttft_s)


def ready_factor(one: LeftOut) -> float:
    return factor_between(one.ready_s, one.pair.ready_s)


def memory_factor(one: LeftOut) -> float:
    return factor_between(one.pair.predicted_peak_bytes, one.pair.peak_bytes)
