"""Limits on what a profile may show: `kld>0.05` fails every row whose KLD is above that.

In: text like "metric op number", and rows. Out: which rows break which limits. Knows nothing about where rows come
from.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from edge.profiles.record import Row
from edge.runtime.errors import SettingsError, shown

METRICS: dict[str, Callable[[Row], float | None]] = {
    "kld": lambda row: row.accuracy.kld,
    "ppl": lambda row: row.accuracy.ppl,
    "ppl_ratio": lambda row: row.accuracy.ppl_ratio,
    "top1": lambda row: row.accuracy.top1,
    "bytes": lambda row: row.weight_bytes,
    "bpw": lambda row: row.bits_per_weight,
    "ttft_ms": lambda row: row.ttft_ms,
    "tps": lambda row: row.decode_tokens_per_second,
}
SPEED_METRICS = ("ttft_ms", "tps")  # missing in rows that were measured without speed
OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_LIMIT = re.compile(r"\s*([a-z0-9_]+)\s*(<=|>=|<|>)\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)\s*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Limit:
    """A condition; a row fails if it is true of the row."""

    metric: str
    operator: str
    value: float

    def __str__(self) -> str:
        return f"{self.metric}{self.operator}{self.value:g}"

    def fails(self, row: Row) -> bool:
        """Whether the row breaks this limit; NaN always does, and what was not measured never."""
        found = METRICS[self.metric](row)
        return found is not None and (math.isnan(found) or OPERATORS[self.operator](found, self.value))


def parse_limit(text: str) -> Limit:
    """Parse `metric op number`, with blanks anywhere between. Raises SettingsError."""
    match = _LIMIT.fullmatch(text)
    if match is None or match[1] not in METRICS or not math.isfinite(float(match[3])):
        raise SettingsError(
            f"limit {shown(text)} does not read as METRIC OP NUMBER, like kld>0.05; metrics are {', '.join(METRICS)}, "
            f"operators {' '.join(OPERATORS)}"
        )
    return Limit(match[1], match[2], float(match[3]))


def describe_failures(limits: Iterable[Limit], rows: Sequence[Row]) -> str:
    """One line that names every failing row and why it fails; empty if none does."""
    broken = [
        f"{row.name} ({limit.metric} {METRICS[limit.metric](row):g}, fails if {limit})"
        for limit in limits
        for row in rows
        if limit.fails(row)
    ]
    return "; ".join(broken)
