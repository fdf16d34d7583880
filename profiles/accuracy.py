"""How far a bundle on an engine, with its settings, is from the float checkpoint.

In: a loaded engine and a `Reference`. Out: an `Accuracy`: KL divergence, perplexity and agreement, all with error bars,
and the difference between two of them. Windows run in small chunks one after the other, as a dialogue does, so that the
engine's rounding of activations and of the KV cache is included. Knows nothing about checkpoints, recipes or files.

Errors are standard errors of means over windows, whose tokens depend on each other: sqrt(var / n) of the n window
means, with n - 1 degrees of freedom. One window has none (None).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.profiles.kept_rows import Rows, log_sum_exp
from edge.profiles.reference_file import Reference
from edge.profiles.settings import CHUNK, EXACT_CACHE_CHUNK
from edge.profiles.student import standard_error
from edge.profiles.typed_json import read_fields
from edge.runtime.engines.engine import Engine, Step
from edge.runtime.errors import CalibrationError, ContextLengthError, SettingsError, shown
from edge.runtime.kv.pool import CacheSequence

Float64Array = npt.NDArray[np.float64]

AT_ONCE = 8  # windows in one step, where an engine takes several sequences of several tokens each in one pass
QUARTERS = 4
FORMAT = 1  # of to_json


@dataclass(frozen=True, slots=True)
class Part:
    """Figures of a part of the text. KLD in nats/token."""

    name: str  # a language, or "quarter 1" of the scored rows of each window
    tokens: int
    kld: float
    kld_stderr: float | None
    ppl_ratio: float
    top1: float


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Figures of one bundle on one engine. p: the float model's distribution of the next token, q: the bundle's."""

    reference_key: str  # equal keys: same checkpoint, windows and scored rows
    engine: str
    chunk: int  # tokens
    tokens: int  # rows scored
    windows: int
    kld: float  # KL(p || q), nats/token, mean
    kld_stderr: float | None
    kld_storage_stderr: float  # the part of kld_stderr that arises because the reference keeps only samples of tails
    kld_median: float  # of single tokens
    kld_p99: float  # of single tokens
    ppl: float  # of the text to the bundle
    reference_ppl: float  # of the text to the float model
    ppl_ratio: float  # ppl / reference_ppl
    ppl_ratio_stderr: float | None  # delta method: ppl_ratio times the error of the mean log-ratio
    top1: float  # share of tokens whose most probable next token is that of the float model
    top5: float  # share of tokens where the float model's most probable one is among the bundle's five most probable
    probability_change: float  # mean of q - p of the token that follows in the text
    probability_change_rms: float
    languages: tuple[Part, ...]
    quarters: tuple[Part, ...]  # of the rows of each window, in order: errors may grow with the context
    per_window_kld: tuple[float, ...]  # means, for paired comparison
    per_window_log_ratio: tuple[float, ...]  # mean log(p / q) of the token that follows in the text

    def to_json(self) -> dict[str, object]:
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, data: object) -> Accuracy:
        """Raises CalibrationError for anything that `to_json` did not give."""
        what, advice = "a record of an accuracy", "measure again"
        if isinstance(data, dict):
            data = dict(data)
            if (found := data.pop("format", None)) != FORMAT:
                raise CalibrationError(f"an accuracy of format {shown(found)}, expected {FORMAT}; {advice}")
        values = read_fields(cls, data, what, CalibrationError, advice, elsewhere=frozenset(("languages", "quarters")))
        for name in ("languages", "quarters"):
            if not isinstance(values[name], list | tuple):
                raise CalibrationError(f"{name} of {what} is {shown(values[name])}, expected a list; {advice}")
            parts = [read_fields(Part, part, f"{name} of {what}", CalibrationError, advice) for part in values[name]]
            values[name] = tuple([Part(**part) for part in parts])
        if not len(values["per_window_kld"]) == len(values["per_window_log_ratio"]) == values["windows"]:
            raise CalibrationError(f"{what} does not have one figure for each of its windows; {advice}")
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Difference:
    """By how much b exceeds a, on the same tokens."""

    mean: float
    stderr: float
    z: float  # mean / stderr
    p: float  # two-sided, of Student's t: how likely chance alone gives as much if the two do not differ


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two accuracies on the same windows: paired, so that what makes a window hard for both cancels."""

    kld: Difference  # nats/token
    log_ppl: Difference  # of the perplexities' logarithms


def evaluate(
    engine: Engine,
    reference: Reference,
    *,
    chunk: int | None = None,
    at_once: int | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Accuracy:
    """Run the reference's windows through an engine. progress: windows done, windows in all.

    chunk: tokens of a window in one step; 1 is decoding; None: few if the cache rounds. at_once: windows in one step,
    as far as the KV pool has room; None: what is fastest on the engine. Sequences are freed, even after an error.
    Raises ContextLengthError for windows longer than the context, CalibrationError for a bundle with another
    vocabulary.
    """
    if chunk is None:
        chunk = EXACT_CACHE_CHUNK if engine.info.kv_precision == "f32" else CHUNK
    if engine.info.logits_rows == "last":
        raise SettingsError(
            f"the {engine.info.name} engine gives the logits of a prompt's last token only, so that it cannot be "
            "measured by text; measure on another engine",
            param="engine",
        )
    if chunk < 1:
        raise CalibrationError(f"chunk is {chunk} tokens, expected 1 or more")
    windows, length = reference.windows.count, reference.windows.length
    if length > engine.info.max_context:
        raise ContextLengthError(
            f"windows of {length} tokens exceed the context of {engine.info.max_context}; measure with shorter windows"
        )
    room = engine.pool.num_free // engine.pool.blocks_for(length)
    size = max(min(at_once or (AT_ONCE if engine.info.ragged else 1), room), 1)
    scores = np.zeros((len(_SCORES), windows, reference.scored))
    for first in range(0, windows, size):
        several = range(first, min(first + size, windows))
        for window, rows, found in _run(engine, reference, several, chunk):
            scores[:, window, rows] = found
        progress(several.stop, windows)
    return _summary(engine.info.name, chunk, reference, dict(zip(_SCORES, scores, strict=True)))


def compare(a: Accuracy, b: Accuracy) -> Comparison:
    """By how much b exceeds a. Raises CalibrationError when they were not measured against the same reference."""
    if a.reference_key != b.reference_key or (a.windows != b.windows and min(a.windows, b.windows) > 1):
        raise CalibrationError(
            "these were measured with different checkpoints, texts or windows, so their tokens cannot be paired; "
            "measure both with one reference"
        )
    if min(a.windows, b.windows) < 2:
        raise CalibrationError("one window says nothing about chance; measure with two or more")
    return Comparison(
        _difference(a.per_window_kld, b.per_window_kld), _difference(a.per_window_log_ratio, b.per_window_log_ratio)
    )


# What is computed of each row, in this order.
_SCORES = ("kld", "variance", "logprob", "log_ratio", "change", "top1", "top5")


def _run(engine: Engine, reference: Reference, windows: range, chunk: int) -> Iterator[tuple[int, slice, Float64Array]]:
    """For some rows of a window at a time: window, rows of the reference, scores (S, r)."""
    first_scored, length = reference.settings.first_scored, reference.windows.length
    sequences = [CacheSequence(engine.pool) for _ in windows]
    try:
        for start in range(0, length - 1, chunk):  # nothing follows the last token
            stop = min(start + chunk, length - 1)
            steps = [
                Step(sequence, reference.windows.ids[window, start:stop])
                for window, sequence in zip(windows, sequences, strict=True)
            ]
            skipped = min(max(first_scored - start, 0), stop - start)  # rows of this chunk that are only context
            rows = slice(max(start - first_scored, 0), max(stop - first_scored, 0))
            for window, logits in zip(windows, engine.decode(steps), strict=True):
                if logits.shape[1] != reference.vocab_size:
                    raise CalibrationError(
                        f"the bundle has a vocabulary of {logits.shape[1]}, the reference {reference.vocab_size}; "
                        "they are from different checkpoints; measure a bundle with a reference of its own checkpoint"
                    )
                if skipped < stop - start:
                    following = reference.windows.ids[window, start + skipped + 1 : stop + 1]
                    yield window, rows, score(logits[skipped:], following, reference.rows[window, rows])
    finally:
        for sequence in sequences:
            sequence.free()


def score(logits: npt.NDArray[np.float32], following: npt.NDArray[np.int64], kept: Rows) -> Float64Array:
    """Scores of rows of logits, compared with what the reference keeps of the same rows.

    logits: (R, vocab). following: (R,) the text's own next tokens. Returns (S, R) in the order of _SCORES: the KL
    divergence and the variance of its estimate; log q, log p - log q and q - p of the next token; whether the most
    probable token is the reference's, and whether the reference's is among the five most probable.
    """
    log_total = log_sum_exp(logits)
    top = _logprobs(logits, kept.top_ids, log_total)
    p_top = kept.top_logprobs.astype(np.float64)
    kld = np.sum(np.exp(p_top) * (p_top - top), axis=1)
    variance = np.zeros_like(kld)
    if samples := kept.sample_ids.shape[1]:
        excess = kept.sample_logprobs - _logprobs(logits, kept.sample_ids, log_total)
        kld += kept.tail * excess.mean(axis=1)
        variance = np.square(kept.tail, dtype=np.float64) * excess.var(axis=1) / samples
    best = kept.top_ids[:, :1]
    of_best = np.take_along_axis(logits, best.astype(np.int64), 1)
    logprob = _logprobs(logits, following[:, None], log_total)[:, 0]
    p_next = kept.next_logprobs.astype(np.float64)
    return np.stack(
        [
            kld,
            variance,
            logprob,
            p_next - logprob,
            np.exp(logprob) - np.exp(p_next),
            logits.argmax(axis=1) == best[:, 0],
            np.count_nonzero(logits > of_best, axis=1) < 5,  # ties count as among the five
        ]
    )


def _logprobs(logits: npt.NDArray[np.float32], ids: npt.NDArray[Any], log_total: Float64Array) -> Float64Array:
    found: Float64Array = np.take_along_axis(logits, ids.astype(np.int64), 1) - log_total[:, None]
    return found


def _summary(engine: str, chunk: int, reference: Reference, scores: dict[str, Float64Array]) -> Accuracy:
    """Figures from scores, (n, R) each."""
    kld, log_ratio = scores["kld"], scores["log_ratio"]
    if not np.isfinite(kld).all():
        raise CalibrationError("the bundle gives NaN or infinity on this text; verify it (edge verify)")
    by_language = {
        language: [i for i, other in enumerate(reference.windows.languages) if other == language]
        for language in dict.fromkeys(reference.windows.languages)
    }
    quarters = np.array_split(np.arange(reference.scored), QUARTERS)
    ratio, ratio_stderr = math.exp(log_ratio.mean()), standard_error(log_ratio.mean(axis=1))
    return Accuracy(
        reference_key=reference.key,
        engine=engine,
        chunk=chunk,
        tokens=kld.size,
        windows=len(kld),
        kld=float(kld.mean()),
        kld_stderr=standard_error(kld.mean(axis=1)),
        kld_storage_stderr=math.sqrt(scores["variance"].sum()) / kld.size,
        kld_median=float(np.median(kld)),
        kld_p99=float(np.quantile(kld, 0.99)),
        ppl=math.exp(-scores["logprob"].mean()),
        reference_ppl=reference.ppl,
        ppl_ratio=ratio,
        ppl_ratio_stderr=None if ratio_stderr is None else ratio * ratio_stderr,
        top1=float(scores["top1"].mean()),
        top5=float(scores["top5"].mean()),
        probability_change=float(scores["change"].mean()),
        probability_change_rms=math.sqrt(np.square(scores["change"]).mean()),
        languages=tuple(_part(name, scores, np.s_[windows]) for name, windows in by_language.items()),
        quarters=tuple(
            _part(f"quarter {i + 1}", scores, np.s_[:, rows]) for i, rows in enumerate(quarters) if rows.size
        ),
        per_window_kld=tuple(kld.mean(axis=1).tolist()),
        per_window_log_ratio=tuple(log_ratio.mean(axis=1).tolist()),
    )


def _part(name: str, scores: dict[str, Float64Array], place: Any) -> Part:
    kld = scores["kld"][place]
    ratio = math.exp(scores["log_ratio"][place].mean())
    return Part(
        name, kld.size, float(kld.mean()), standard_error(kld.mean(axis=1)), ratio, float(scores["top1"][place].mean())
    )


def _difference(a: Sequence[float], b: Sequence[float]) -> Difference:
    from scipy.special import stdtr  # imported here: a profile made elsewhere is read and drawn without scipy

    differences = np.array(b) - np.array(a)
    mean, stderr = float(differences.mean()), standard_error(differences)
    assert stderr is not None, "two windows at least"
    z = mean / stderr if stderr else math.copysign(math.inf, mean) if mean else 0.0
    return Difference(mean, stderr, z, 2 * float(stdtr(differences.size - 1, -abs(z))))
