"""Accuracy against size and against speed, as plots with the Pareto front drawn.

In: rows. Out: matplotlib figures, and their SVG and PNG bytes: same rows and versions, same bytes. Knows nothing about
how rows were measured. Figures are made without pyplot, so nothing is left behind in the process.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING

from edge.profiles.record import DEFAULT_SETTING, Row
from edge.runtime.engines.registry import ENGINES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

SIZE_INCHES = (8.0, 5.0)
PNG_DPI = 150
KLD_FLOOR = 1e-6  # nats/token: what a float recipe is below is rounding, and a log scale has no 0
CONFIDENCE = 1.96  # standard errors, for bars of 95 %
INK, FRONT = "#1b1b1f", "#8a8a94"  # text and axes, which a page may replace by its own colour; the front
# Of engines in the registry's order, and of any other: seen on white and on black. The first engine's markers are
# filled and the others' hollow, since engines often lie on one another.
COLOURS = ("#2f7ed8", "#d9722e", "#3a9e5f", FRONT)
MARKERS = ("o", "s", "D", "^")
FONTS = ["DejaVu Sans"]  # comes with matplotlib, so that labels have the same size everywhere
LABEL_POINTS = 8
NEAR_PIXELS = 24.0  # points of one label that are nearer share it
CLEAR_PIXELS = 4.0  # that a label is nearer to its own point than to another's
LINED_POINTS = 20.0  # from where on a line leads to the label
# How bad places are, in square pixels of covered things: each pixel outside, a label that seems to be another point's,
# and each point of distance.
OUTSIDE, MISREAD, PER_POINT = 20.0, 800.0, 1.0
# Where a label may stand, points from its point: near places first, then those that take a line.
_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
_DISTANCES = (8, 14, 26, 38, 52, 70)


@dataclass(frozen=True, slots=True)
class Point:
    """One row as the plots see it."""

    label: str
    engine: str
    x: float
    kld: float  # at least KLD_FLOOR
    kld_error: float  # standard error


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the pairs that no other beats, by rising first value: smaller is better in both.

    A pair beats another where it is nowhere worse and somewhere better, so equal pairs stand side by side.
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
    """KLD (log) against decoded tokens per second; None where no speed was measured."""
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
    """An SVG file of ours as an element of a page: its text takes the page's colour, and it names no address."""
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
            # A log scale has no room below 0: what would reach there ends at a hundredth of the value.
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
    _place_labels(axes, points, front, [legend.get_window_extent()])
    return figure


def _place_labels(axes: Axes, points: Sequence[Point], front: Sequence[int], taken: list[Bbox]) -> None:
    """Write each label where it covers no point, bar, line, frame or label; else at the least bad place."""
    from matplotlib.transforms import Bbox

    spots = [(float(x), float(y)) for x, y in axes.transData.transform([(point.x, point.kld) for point in points])]
    for point, (x, y) in zip(points, spots, strict=True):
        bar = CONFIDENCE * point.kld_error
        low, high = (
            axes.transData.transform((point.x, max(end, point.kld / 100)))[1]
            for end in (point.kld - bar, point.kld + bar)
        )
        taken.append(Bbox([[x - 5, min(low, y - 5)], [x + 5, max(high, y + 5)]]))
    taken += [Bbox([[x - 2, y - 2], [x + 2, y + 2]]) for x, y in _along([spots[i] for i in front])]
    named: dict[str, list[tuple[float, float]]] = {}
    for index in sorted(range(len(points)), key=lambda i: (-spots[i][1], spots[i][0], i)):
        label, spot = points[index].label, spots[index]
        if any(math.dist(spot, other) < NEAR_PIXELS for other in named.get(label, [])):
            continue
        named.setdefault(label, []).append(spot)
        others = [spots[i] for i in range(len(points)) if points[i].label != label]
        taken.append(_place_label(axes, points[index], spot, others, taken))


def _along(corners: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Places along the steps of the front, a few pixels apart."""
    for (x, y), (next_x, next_y) in pairwise(corners):
        steps = int(max(abs(next_x - x), abs(next_y - y)) / 4) + 1
        for step in range(steps):
            share = step / steps
            yield x + share * (next_x - x), y
            yield next_x, y + share * (next_y - y)


def _place_label(
    axes: Axes,
    point: Point,
    spot: tuple[float, float],
    others: Sequence[tuple[float, float]],
    taken: Sequence[Bbox],
) -> Bbox:
    """Write one label at the best of its places; returns what it covers. `others`: where other labels' points are."""
    from matplotlib.transforms import Bbox

    inside, scale = axes.get_window_extent().padded(-3), axes.figure.dpi / 72
    label = _annotate(axes, point, (0, 0), (1, 1))
    width, height = label.get_window_extent().size
    label.remove()

    def box_at(distance: int, way: tuple[int, int]) -> Bbox:
        x, y = (
            at + scale * distance * step - size * (1 - step) / 2
            for at, step, size in zip(spot, way, (width, height), strict=True)
        )
        return Bbox.from_bounds(x, y, width, height)

    def badness(place: tuple[int, tuple[int, int]]) -> float:
        box = box_at(*place)
        lined = place[0] > LINED_POINTS
        if lined:
            end = [at + scale * place[0] * step for at, step in zip(spot, place[1], strict=True)]
            misread = any(_gap_to_line(other, spot, (end[0], end[1])) < 2 * CLEAR_PIXELS for other in others)
        else:
            misread = any(_gap(box, other) < _gap(box, spot) + CLEAR_PIXELS for other in others)
        outside = float(width * height) - _overlap(box, inside)
        covered = sum(_overlap(box, other) for other in taken)
        return covered + OUTSIDE * outside + MISREAD * misread + PER_POINT * place[0]

    distance, way = min(product(_DISTANCES, _DIRECTIONS), key=badness)
    offset = (distance * way[0], distance * way[1])
    if distance > LINED_POINTS:
        axes.annotate(
            "",
            (point.x, point.kld),
            xytext=offset,
            textcoords="offset points",
            arrowprops={"arrowstyle": "-", "color": FRONT, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3},
        )
    _annotate(axes, point, offset, way)
    return box_at(distance, way)


def _annotate(axes: Axes, point: Point, offset: tuple[int, int], way: tuple[int, int]) -> Annotation:
    """A label so many points right of its point and above it, on the side that `way` (-1, 0 or 1 in each) says."""
    return axes.annotate(
        point.label,
        (point.x, point.kld),
        xytext=offset,
        textcoords="offset points",
        ha={1: "left", 0: "center", -1: "right"}[way[0]],
        va={1: "bottom", 0: "center", -1: "top"}[way[1]],
        color=INK,
        fontsize=LABEL_POINTS,
        fontfamily=FONTS,
    )


def _gap(box: Bbox, spot: tuple[float, float]) -> float:
    """Pixels between a box and a place."""
    x, y = spot
    return math.hypot(max(box.x0 - x, x - box.x1, 0.0), max(box.y0 - y, y - box.y1, 0.0))


def _gap_to_line(spot: tuple[float, float], start: tuple[float, float], end: tuple[float, float]) -> float:
    """Pixels between a place and a line that is not empty."""
    x, y = end[0] - start[0], end[1] - start[1]
    share = ((spot[0] - start[0]) * x + (spot[1] - start[1]) * y) / (x * x + y * y)
    share = min(max(share, 0.0), 1.0)
    return math.dist(spot, (start[0] + share * x, start[1] + share * y))


def _overlap(a: Bbox, b: Bbox) -> float:
    """Shared area, square pixels."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return float(width * height) if width > 0 and height > 0 else 0.0


def _save(figure: Figure, kind: str) -> bytes:
    from matplotlib import rc_context

    buffer = io.BytesIO()
    # Names in an SVG are random and its date is today's, unless they are told; text stays text.
    with rc_context({"svg.hashsalt": "edgeglm", "svg.fonttype": "none"}):
        metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        figure.savefig(buffer, format=kind, dpi=PNG_DPI, facecolor="white", metadata=metadata)
    return buffer.getvalue()


def _style(engine: str) -> int:
    """Index of an engine's colour and marker."""
    place = list(ENGINES).index(engine) if engine in ENGINES else len(COLOURS)
    return min(place, len(COLOURS) - 1)
