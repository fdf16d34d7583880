"""Golden rows in a bundle: what a device is judged by, as few numbers as do for that.

In: logits of the golden tokens, or the bytes of self_test.npz and the size of the vocabulary. Out: for each token the
largest logits and what all others weigh together, how far from them other numerics are, and KL divergences. Nothing in
the file is trusted before it is checked. Knows nothing about engines.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge.runtime.array_files import UnexpectedArray, read_array
from edge.runtime.arrays import Logits
from edge.runtime.errors import EXPORT_AGAIN, BundleError, shown, telling_line

TOP = 64  # logits of a row that are kept one by one
MAX_TOKENS = 1024  # of a golden text; export uses a few
# Numerics whose divergence was computed at export; what they are is in export/emulation.py.
NOISES = ("f16", "bf16", "int8", "kv8")
LEAST = 1e-300  # weight of everything else beside the largest logit, so that its logarithm is a number

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TopLogits:
    """Rows of logits, as distributions over their largest ones and everything else."""

    ids: npt.NDArray[np.int64]  # (rows, K), of the largest logits
    logits: Logits  # (rows, K)
    rest: Logits  # (rows,): log of the sum of exp over all other logits

    def __getitem__(self, rows: slice) -> TopLogits:
        return TopLogits(self.ids[rows], self.logits[rows], self.rest[rows])

    def kl_divergences(self, logits: Logits) -> Doubles:
        """KL(these || others) of each row, in nats, for logits (rows, vocab); NaN where one of them is not finite."""
        found = np.take_along_axis(logits, self.ids, -1)
        p = _log_probabilities(self.logits, self.rest)
        q = _log_probabilities(found, _rest(logits, self.ids))
        divergences: Doubles = np.sum(np.exp(p) * (p - q), axis=-1)
        return divergences


@dataclass(frozen=True)
class GoldenRows:
    """What any device can be checked against."""

    ids: npt.NDArray[np.int64]  # (T,)
    top: TopLogits  # T rows, of the compressed weights in float32
    divergences: Mapping[str, Doubles]  # numerics -> (T,) KL divergence of each row, as they were emulated at export


def top_logits(logits: Logits, count: int = TOP) -> TopLogits:
    """The largest logits of rows (rows, vocab), and the rest."""
    count = min(count, logits.shape[-1] - 1)
    ids = np.argpartition(-logits, count - 1, axis=-1)[:, :count]
    ids = np.take_along_axis(ids, np.argsort(-np.take_along_axis(logits, ids, -1), axis=-1, kind="stable"), -1)
    rest = _rest(logits, ids).astype(np.float32)
    return TopLogits(ids.astype(np.int64), np.take_along_axis(logits, ids, -1).astype(np.float32), rest)


def read_golden_rows(raw: bytes, vocab_size: int) -> GoldenRows:
    """Read tokens and finite logits of this vocabulary. Raises BundleError for anything else."""
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            names = set(archive.namelist())
            ids = read_array(archive, "ids", np.int64, MAX_TOKENS)
            top_ids = read_array(archive, "top_ids", np.int64, MAX_TOKENS * TOP)
            top = read_array(archive, "top_logits", np.float32, MAX_TOKENS * TOP)
            rest = read_array(archive, "rest", np.float32, MAX_TOKENS)
            divergences = {
                noise: read_array(archive, f"kld_{noise}", np.float32, MAX_TOKENS).astype(np.float64)
                for noise in NOISES
                if f"kld_{noise}.npy" in names
            }
    except UnexpectedArray as error:
        raise _refusal(str(error)) from error
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds for invalid bytes
        raise _refusal(f"cannot be read as arrays ({shown(telling_line(error))})") from error
    for each, name in ((ids, "ids"), (top_ids, "top_ids")):
        if each.size == 0 or each.min() < 0 or each.max() >= vocab_size:
            raise _refusal(f"holds {name} that are not ids below {vocab_size}")
    tokens = ids.shape[:1]
    shapes = {each.shape for each in (ids, rest, *divergences.values())}
    if shapes != {tokens} or top.ndim != 2 or top.shape[:1] != tokens or top.shape != top_ids.shape:
        raise _refusal("holds arrays that do not fit together")
    if not all(np.isfinite(each).all() for each in (top, rest)):
        raise _refusal("holds logits that are not finite")
    if not all(np.isfinite(each).all() and (each >= 0).all() for each in divergences.values()):
        raise _refusal("holds divergences that are not finite, or below zero")
    if (np.sort(top_ids)[:, 1:] == np.sort(top_ids)[:, :-1]).any():
        raise _refusal("holds a token twice in one row")
    return GoldenRows(ids, TopLogits(top_ids, top, rest), divergences)


def _rest(logits: Logits, ids: npt.NDArray[np.int64]) -> Doubles:
    """The log of the sum of exp over all logits of a row but those of its ids."""
    highest = logits.max(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        weights = np.exp(logits - highest, dtype=np.float64)
    np.put_along_axis(weights, ids, 0.0, -1)
    total: Doubles = np.log(np.maximum(weights.sum(axis=-1), LEAST)) + highest[:, 0]
    return total


def _log_probabilities(logits: Logits, rest: npt.NDArray[np.floating]) -> Doubles:
    """(rows, K) and (rows,) -> (rows, K + 1): the logarithms of a distribution."""
    whole = np.concatenate([logits, rest[:, None]], axis=-1, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        whole -= whole.max(axis=-1, keepdims=True)
        log_probabilities: Doubles = whole - np.log(np.exp(whole).sum(axis=-1, keepdims=True))
    return log_probabilities


def _refusal(problem: str) -> BundleError:
    return BundleError(f"self_test.npz {problem}; {EXPORT_AGAIN}")
