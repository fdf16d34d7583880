"""What an engine gave at its first good load on this machine, to be compared bit by bit at later loads.

In: what the result depends on, the versions of what computes it, and a row of logits. Out: the row that was kept, and
whether it is the same. The list is in the user's cache folder; it holds hashes, versions, and a few logits of a text
that comes with the package. Knows nothing about bundles or engines.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from edge.runtime.arrays import Logits
from edge.runtime.cache_lines import CacheLines
from edge.runtime.errors import OutputError
from edge.runtime.golden_rows import TopLogits, top_logits
from edge.runtime.json_object import ObjectReader
from edge.runtime.json_reader import parse_json

FILE = "first-results"
MOST = 100  # bundles, engines and settings to remember; the oldest are forgotten
LIST = CacheLines(FILE, re.compile(r"[0-9a-f]{64} \{[\x20-\x7e]*\}"), MOST, line_bytes=10_000)
_ADVICE = "remove the list"


@dataclass(frozen=True, slots=True)
class FirstResult:
    """One row of logits."""

    versions: Mapping[str, str]  # of whatever computes: engine, driver
    sha256: str  # of the whole row
    ids: tuple[int, ...]  # of its largest logits
    logits: tuple[float, ...]
    rest: float  # log of the sum of exp over all others

    def kl_divergence(self, row: Logits) -> float:
        """KL(this row || another), nats, for logits (vocab,); NaN where the ids are not of this vocabulary."""
        if max(self.ids) >= row.size:
            return float("nan")
        top = TopLogits(
            np.array([self.ids], np.int64), np.array([self.logits], np.float32), np.array([self.rest], np.float32)
        )
        return float(top.kl_divergences(row[None])[0])


def result_of(row: Logits, versions: Mapping[str, str]) -> FirstResult:
    """The result to keep of a row (vocab,)."""
    top = top_logits(row[None])
    return FirstResult(
        versions, digest_of(row), tuple(top.ids[0].tolist()), tuple(top.logits[0].tolist()), float(top.rest[0])
    )


def digest_of(row: Logits) -> str:
    """A hash of every bit of a row."""
    return hashlib.sha256(np.ascontiguousarray(row, np.float32).tobytes()).hexdigest()


def key_of(depends_on: Mapping[str, object]) -> str:
    """A hash of everything that a result depends on besides versions. Values are JSON."""
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()


def find(key: str) -> FirstResult | None:
    """Return what was kept under a key, if anything was."""
    for line in reversed(LIST.read()):
        if line.startswith(key):
            try:
                return _read(line.removeprefix(f"{key} "))
            except OutputError:
                return None  # another version's, or damaged: it is made again
    return None


def keep(key: str, result: FirstResult) -> None:
    """Keep a result instead of what was kept under this key; do nothing where nothing can be written."""
    text = json.dumps(asdict(result), separators=(",", ":"))
    LIST.add(f"{key} {text}", lambda other: other.startswith(key))


def _read(text: str) -> FirstResult:
    """Raises OutputError."""
    read = ObjectReader(parse_json(text, FILE, OutputError, _ADVICE), FILE, OutputError, _ADVICE)
    logits = read.value("logits")
    if not isinstance(logits, list) or not all(isinstance(logit, float) and np.isfinite(logit) for logit in logits):
        raise OutputError(f"{FILE}: logits are not numbers; {_ADVICE}")
    result = FirstResult(
        versions=read.words("versions"),
        sha256=read.word("sha256", "[0-9a-f]{64}", "64 hexadecimal digits"),
        ids=read.wholes("ids", 0, 1 << 40),
        logits=tuple(logits),
        rest=read.number("rest"),
    )
    if not 0 < len(result.ids) == len(result.logits):
        raise OutputError(f"{FILE}: ids and logits do not fit together; {_ADVICE}")
    return result
