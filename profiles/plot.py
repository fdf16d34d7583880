"""Accuracy against size and against speed, as plots with the Pareto front drawn.

In: rows. Out: matplotlib figures, and their SVG and PNG bytes: same rows and versions, same bytes. Knows nothing about
how rows were measured. Figures are made without pyplot, so no state remains in the process.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edge.profiles.plot_labels import CONFIDENCE, FONTS, FRONT, INK, LABEL_POINTS, Point, place_labels
from edge.profiles.record import DEFAULT_SETTING, Row
from edge.runtime.engines.registry import ENGINES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE_INCHES = (8.0, 5.0)
PNG_DPI = 150
KLD_FLOOR = 1e-6  # nats/token: below this a float recipe's KLD is only rounding, and a log scale has no 0
# Engines in the registry's order, and at last any other; visible on white and on black. The first engine's markers are
# filled and the others' hollow, since the points of engines often coincide.
COLOURS = ("#2f7ed8", "#d9722e", "#3a9e5f", FRONT)
MARKERS = ("o", "s", "D", "^")


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the pairs that no other beats, by rising first value: smaller is better in both.

    A pair beats another if it is nowhere worse and somewhere better, so equal pairs are both on the front.
    """
    front: list[int] = []
    best = math.inf  # second value among those with a smaller first one
    order = sorted(range(len(points)), key=lambda i: (points[i], i))
    for index in order:
        first, second = points[index]
        tied = bool(front) and points[front[-1]] == (first, second)
        if second < best or tied:
            front.append(index)
            best = second
    return front


def bytes_figure(rows: Sequence[Row]) -> Figure:
    """KLD (log) against megabytes of weights."""
    points = [_point(row, row.weight_bytes / 1e6) for row in rows]
    front = pareto_front([(point.x, point.kld) for point in points])
    return _figure(points, front, "weights, MB", "Accuracy against size")


def speed_figure(rows: Sequence[Row]) -> Figure | None:
    """KLD (log) against decoded tokens per second; None if no speed was measured."""
    points = [_point(row, row.decode_tokens_per_second) for row in rows if row.decode_tokens_per_second]
    if not points:
        return None
    front = pareto_front([(-point.x, point.kld) for point in points])
    return _figure(points, front, "decode, tokens/s", "Accuracy against speed")


def svg_bytes(figure: Figure) -> bytes:
    """The figure as an SVG file with a white background."""
    return _save(figure, "svg")


def png_bytes(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    return _save(figure, "png")


def inline_svg(svg: bytes) -> str:
    """An SVG file of ours as an element of a page: its text takes the page's colour, and it refers to no address."""
    text = svg.decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'<g id="patch_1">.*?</g>', "", text, count=1, flags=re.DOTALL)  # the white background
    return text.replace(INK, "currentColor").strip()


def _point(row: Row, x: float) -> Point:
    label = row.recipe if row.setting == DEFAULT_SETTING else f"{row.recipe}, {row.setting}"
    return Point(label, row.engine, x, max(row.accuracy.kld, KLD_FLOOR), row.accuracy.kld_stderr or 0.0)


def _figure(points: Sequence[Point], front: Sequence[int], x_label: str, title: str) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_facecolor("none")
    axes.set_yscale("log")
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel("KLD to the float checkpoint, nats/token", color=INK)
    axes.set_title(title, color=INK)
    axes.tick_params(colors=INK, which="both")
    for spine in axes.spines.values():
        spine.set_edgecolor(INK)
    axes.grid(visible=True, which="major", color=FRONT, alpha=0.25, linewidth=0.6)
    axes.plot(
        [points[i].x for i in front],
        [points[i].kld for i in front],
        color=FRONT,
        linewidth=1.2,
        linestyle="--",
        drawstyle="steps-post",  # beyond a step, more bytes or less speed buy nothing until the next
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
    place_labels(axes, points, front, [legend.get_window_extent()])
    return figure


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
