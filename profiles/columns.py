"""The columns of a profile's tables, wherever they are shown.

In: rows. Out: texts and numbers. Knows nothing about Markdown, pages and terminals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge.profiles.record import DEFAULT_SETTING, Row
from edge.profiles.spread import with_spread

UNKNOWN = "-"
NAME, ACCURACY, COST = "", "accuracy", "cost"


@dataclass(frozen=True, slots=True)
class Column:
    """One figure of a row, as tables show it."""

    title: str
    group: str
    text: Callable[[Row], str]
    number: Callable[[Row], float | None] | None = None  # to sort by; None: sort by the text


def _shown(value: float | None, form: str, scale: float = 1.0) -> str:
    return UNKNOWN if value is None else format(value * scale, form)


def _timed(value: float | None, spread: float | None, digits: int) -> str:
    return UNKNOWN if value is None else with_spread(value, spread, digits)


def _kld_text(row: Row) -> str:
    """The KLD with one digit more if it is small."""
    return _with_error(row.accuracy.kld, row.accuracy.kld_stderr, 5 if row.accuracy.kld < 0.02 else 4)


def _with_error(value: float, error: float | None, digits: int) -> str:
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def _same_text(row: Row) -> str:
    """Tokens in common, out of those written."""
    if row.divergence is None:
        return UNKNOWN
    return f"{_with_error(row.divergence.mean, row.divergence.stderr, 0)} of {row.divergence.new_tokens}"


def engine_and_setting(row: Row) -> str:
    """What tells a row from others of its recipe."""
    return row.engine if row.setting == DEFAULT_SETTING else f"{row.engine}, {row.setting}"


RECIPE = Column("recipe", NAME, lambda row: row.recipe)
ENGINE = Column("engine", NAME, lambda row: row.engine)
SETTING = Column("setting", NAME, lambda row: row.setting)
COLUMNS: tuple[Column, ...] = (
    RECIPE,
    ENGINE,
    SETTING,
    Column("bits per weight", COST, lambda row: f"{row.bits_per_weight:.2f}", lambda row: row.bits_per_weight),
    Column("weights, bytes", COST, lambda row: f"{row.weight_bytes:,}", lambda row: row.weight_bytes),
    Column("KLD", ACCURACY, _kld_text, lambda row: row.accuracy.kld),
    Column(
        "ppl ratio",
        ACCURACY,
        lambda row: _with_error(row.accuracy.ppl_ratio, row.accuracy.ppl_ratio_stderr, 4),
        lambda row: row.accuracy.ppl_ratio,
    ),
    Column("top-1", ACCURACY, lambda row: f"{row.accuracy.top1:.2%}", lambda row: row.accuracy.top1),
    Column(
        "same text, tokens",
        ACCURACY,
        _same_text,
        lambda row: None if row.divergence is None else row.divergence.mean,
    ),
    Column("export, s", COST, lambda row: _shown(row.export_s, ".1f"), lambda row: row.export_s),
    Column(
        "export peak, MB",
        COST,
        lambda row: _shown(row.export_peak_bytes, ",.0f", 1e-6),
        lambda row: row.export_peak_bytes,
    ),
    Column("load, s", COST, lambda row: _shown(row.load_s, ".2f"), lambda row: row.load_s),
    Column(
        "peak, MB",
        COST,
        lambda row: _shown(row.peak_anonymous_bytes, ",.0f", 1e-6),
        lambda row: row.peak_anonymous_bytes,
    ),
    Column("TTFT, ms", COST, lambda row: _timed(row.ttft_ms, row.ttft_ms_spread, 0), lambda row: row.ttft_ms),
    Column(
        "tok/s",
        COST,
        lambda row: _timed(row.decode_tokens_per_second, row.decode_spread, 1),
        lambda row: row.decode_tokens_per_second,
    ),
)
# On a terminal, the columns in the order of their weight: from the last one on, a narrow one does without.
MEGABYTES = Column("MB", COST, lambda row: f"{row.weight_bytes / 1e6:.1f}", lambda row: row.weight_bytes)
_BY_TITLE = {column.title: column for column in COLUMNS}
FOR_TERMINALS: tuple[Column, ...] = (
    RECIPE,
    Column("engine", NAME, engine_and_setting),
    _BY_TITLE["KLD"],
    MEGABYTES,
    _BY_TITLE["tok/s"],
    *(
        _BY_TITLE[title]
        for title in (
            "TTFT, ms",
            "ppl ratio",
            "bits per weight",
            "top-1",
            "same text, tokens",
            "peak, MB",
            "load, s",
            "export, s",
            "export peak, MB",
        )
    ),
)


def told_once(rows: Sequence[Row], columns: Sequence[Column] = COLUMNS) -> list[Column]:
    """The columns that say the same of every row, if there are several; never the recipe or the KLD."""
    kept = ("recipe", "KLD")
    if len(rows) < 2:
        return []
    return [c for c in columns if c.title not in kept and len({c.text(row) for row in rows}) == 1]


def same_in_all(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """A sentence for columns that a table leaves out; empty if there are none."""
    if not columns or not rows:
        return ""
    return "The same in every row: " + "; ".join(f"{c.title} {c.text(rows[0])}" for c in columns) + "."
