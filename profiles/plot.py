"""Accuracy against size and against speed, as plots with the Pareto front drawn.

In: rows. Out: matplotlib figures, and their SVG and PNG bytes: same rows and versions, same bytes. Knows nothing about
how rows were measured. Figures are made without pyplot, so no state remains in the process.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edge.profiles.front import size_front, speed_front
from edge.profiles.plot_labels import CONFIDENCE, FONTS, FRONT, INK, LABEL_POINTS, Point, place_labels
from edge.profiles.record import DEFAULT_SETTING, Row
from edge.runtime.engines.registry import ENGINES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE_INCHES = (8.0, 5.0)
PNG_DPI = 150
KLD_FLOOR = 1e-6  # nats/token: below this a float recipe's KLD is only rounding, and a log scale has no 0
FEW_DECADES = 30.0  # ratio of KLDs up to which ticks between powers of ten have labels
HALO = 190  # area of what marks a point on the front, square points
# Engines in the registry's order, and at last any other; visible on white and on black. The first engine's markers are
# filled and the others' hollow, since the points of engines often coincide.
COLOURS = ("#2f7ed8", "#d9722e", "#3a9e5f", FRONT)
MARKERS = ("o", "s", "D", "^")


def bytes_figure(rows: Sequence[Row]) -> Figure:
    """KLD (log) against megabytes of weights."""
    points = [_point(row, row.weight_bytes / 1e6, 0.0) for row in rows]
    return _figure(points, size_front(rows), 1, "weights, MB", "Accuracy against size")


def speed_figure(rows: Sequence[Row]) -> Figure | None:
    """KLD (log) against decoded tokens per second; None if no speed was measured."""
    timed = [row for row in rows if row.decode_tokens_per_second]
    if not timed:
        return None
    points = [_point(row, row.decode_tokens_per_second or 0.0, row.decode_spread or 0.0) for row in timed]
    return _figure(points, speed_front(timed), -1, "decode, tokens/s", "Accuracy against speed")


def svg_bytes(figure: Figure) -> bytes:
    """The figure as an SVG file with a white background."""
    return _save(figure, "svg")


def png_bytes(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    return _save(figure, "png")


def inline_svg(svg: bytes, title: str) -> str:
    """An SVG file of ours as an image in a page: its text takes the page's colour, and it refers to no address."""
    text = svg.decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'<g id="patch_1">.*?</g>', "", text, count=1, flags=re.DOTALL)  # the white background
    text = text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
    return text.replace(INK, "currentColor").strip()


def _point(row: Row, x: float, x_error: float) -> Point:
    label = row.recipe if row.setting == DEFAULT_SETTING else f"{row.recipe}, {row.setting}"
    return Point(label, row.engine, x, max(row.accuracy.kld, KLD_FLOOR), row.accuracy.kld_stderr or 0.0, x_error)


def _stairs(points: Sequence[Point], front: Sequence[int], way: int) -> list[int]:
    """Indices of the front's points that a line of steps goes through: from the best x on, each with a lower KLD.

    The others are on the front because errors do not tell them from these. way: 1 if less of x is better, or -1.
    """
    found: list[int] = []
    for index in sorted(front, key=lambda i: (way * points[i].x, points[i].kld, i)):
        if not found or points[index].kld < points[found[-1]].kld:
            found.append(index)
    return found


def _figure(points: Sequence[Point], front: Sequence[int], way: int, x_label: str, title: str) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_facecolor("none")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:g}"))  # exponents would be tiny
    klds = [point.kld for point in points]
    few = max(klds) < FEW_DECADES * min(klds)
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _place: _minor_label(value) if few else ""))
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel("KLD to the float checkpoint, nats/token", color=INK)
    axes.set_title(title, color=INK)
    axes.tick_params(colors=INK, which="both")
    for spine in axes.spines.values():
        spine.set_edgecolor(INK)
    axes.grid(visible=True, which="major", color=FRONT, alpha=0.25, linewidth=0.6)
    stairs = _stairs(points, front, way)
    axes.plot(
        [points[i].x for i in stairs],
        [points[i].kld for i in stairs],
        color=FRONT,
        linewidth=1.2,
        linestyle="--",
        drawstyle="steps-post",  # beyond a step, more bytes or less speed buy nothing until the next
        zorder=1,
    )
    axes.scatter(
        [points[i].x for i in front],
        [points[i].kld for i in front],
        s=HALO,
        color=FRONT,
        alpha=0.35,
        linewidths=0,
        zorder=1,
        label="Pareto front",
    )
    for engine in sorted({point.engine for point in points}):
        chosen = [point for point in points if point.engine == engine]
        bars = [
            # A log scale cannot reach below 0: a bar that would ends at a hundredth of the value.
            [min(CONFIDENCE * point.kld_error, 0.99 * point.kld) for point in chosen],
            [CONFIDENCE * point.kld_error for point in chosen],
        ]
        axes.errorbar(
            [point.x for point in chosen],
            [point.kld for point in chosen],
            yerr=bars,
            xerr=[point.x_error for point in chosen] if any(point.x_error for point in chosen) else None,
            fmt=MARKERS[_style(engine)],
            color=COLOURS[_style(engine)],
            markersize=5 if _style(engine) == 0 else 7,
            markerfacecolor=None if _style(engine) == 0 else "none",
            elinewidth=1,
            capsize=2.5,
            label=engine,
        )
    axes.margins(0.16, 0.12)
    legend = axes.legend(frameon=False, labelcolor=INK, prop={"family": FONTS, "size": LABEL_POINTS})
    for text in (axes.title, axes.xaxis.label, axes.yaxis.label, *axes.get_xticklabels(), *axes.get_yticklabels()):
        text.set_fontfamily(FONTS)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # what follows counts pixels, which must stay
    place_labels(axes, points, stairs, [legend.get_window_extent()])
    return figure


def _minor_label(value: float) -> str:
    """The text of a tick between powers of ten, which two of them get."""
    text = f"{value:.0e}"
    return f"{value:g}" if text[0] in "25" else ""


def _save(figure: Figure, kind: str) -> bytes:
    from matplotlib import rc_context

    buffer = io.BytesIO()
    # By default names in an SVG are random and its date is today's. Text stays text.
    with rc_context({"svg.hashsalt": "edgeglm", "svg.fonttype": "none"}):
        metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        figure.savefig(buffer, format=kind, dpi=PNG_DPI, facecolor="white", metadata=metadata)
    return buffer.getvalue()


def _style(engine: str) -> int:
    """Index of an engine's colour and marker."""
    place = list(ENGINES).index(engine) if engine in ENGINES else len(COLOURS)
    return min(place, len(COLOURS) - 1)
