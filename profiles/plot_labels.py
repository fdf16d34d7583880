"""Labels of the points in a plot, each where it covers nothing and seems to belong to no other point.

In: axes whose size in pixels is final, points, the front, and what is covered already. Out: labels on the axes. Knows
nothing about what the points mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

CONFIDENCE = 1.96  # standard errors, for bars of 95 %
INK, FRONT = "#1b1b1f", "#8a8a94"  # text and axes, whose colour a page may replace by its own; the front
FONTS = ["DejaVu Sans"]  # included in matplotlib, so that labels have the same size everywhere
LABEL_POINTS = 8
NEAR_PIXELS = 24.0  # points with the same label that are nearer to each other share it
FRAME_PIXELS = 8.0  # between a label and the frame
WIDER = 1.06  # by which a label may be wider where it is drawn than where it is measured: hints, and other fonts
CLEAR_PIXELS = 4.0  # by which a label must be nearer to its own point than to another's
LINE_STEPS = 16  # places at which a line is looked at
LINED_POINTS = 20.0  # a line leads to labels farther away than this
# How bad places are, in square pixels of covered things: each pixel outside, a label that seems to be another point's,
# and each point of distance.
OUTSIDE, MISREAD, PER_POINT = 20.0, 800.0, 1.0
UNREAD = 20.0  # for each pixel that is another label's
# Where a label may be, in points from its point: near places first, then those that need a line.
_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
_DISTANCES = (8, 14, 26, 38, 52, 70, 90)


@dataclass(frozen=True, slots=True)
class Point:
    """One row as the plots see it."""

    label: str
    engine: str
    x: float
    kld: float  # at least KLD_FLOOR
    kld_error: float  # standard error
    x_error: float  # on both sides


def place_labels(axes: Axes, points: Sequence[Point], front: Sequence[int], taken: list[Bbox]) -> None:
    """Write each label where it covers no point, bar, line, frame or label, or else at the least bad place."""
    from matplotlib.transforms import Bbox

    spots = [(float(x), float(y)) for x, y in axes.transData.transform([(point.x, point.kld) for point in points])]
    for point, (x, y) in zip(points, spots, strict=True):
        bar = CONFIDENCE * point.kld_error
        low, high = (
            axes.transData.transform((point.x, max(end, point.kld / 100)))[1]
            for end in (point.kld - bar, point.kld + bar)
        )
        taken.append(Bbox([[x - 5, min(low, y - 5)], [x + 5, max(high, y + 5)]]))
        left, right = (
            axes.transData.transform((end, point.kld))[0] for end in (point.x - point.x_error, point.x + point.x_error)
        )
        taken.append(Bbox([[min(left, x - 5), y - 3], [max(right, x + 5), y + 3]]))
    taken += [Bbox([[x - 2, y - 2], [x + 2, y + 2]]) for x, y in _along([spots[i] for i in front])]
    labels = list[Bbox]()
    named: dict[str, list[tuple[float, float]]] = {}
    for index in sorted(range(len(points)), key=lambda i: (-spots[i][1], spots[i][0], i)):
        label, spot = points[index].label, spots[index]
        if any(math.dist(spot, other) < NEAR_PIXELS for other in named.get(label, [])):
            continue
        named.setdefault(label, []).append(spot)
        others = [spots[i] for i in range(len(points)) if points[i].label != label]
        label_box, line = _place_label(axes, points[index], spot, others, taken, labels)
        labels.append(label_box)
        taken += line


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
    labels: Sequence[Bbox],
) -> tuple[Bbox, list[Bbox]]:
    """Write one label at the best of its places; returns what it covers, and what its line does.

    others: where other labels' points are.
    """
    from matplotlib.transforms import Bbox

    inside, scale = axes.get_window_extent().padded(-FRAME_PIXELS), axes.figure.dpi / 72
    label = _annotate(axes, point, (0, 0), (1, 1))
    width, height = label.get_window_extent().size
    width *= WIDER
    label.remove()

    def box_at(distance: int, way: tuple[int, int]) -> Bbox:
        x, y = (
            at + scale * distance * step - size * (1 - step) / 2
            for at, step, size in zip(spot, way, (width, height), strict=True)
        )
        return Bbox.from_bounds(x, y, width, height)

    def line_at(distance: int, way: tuple[int, int]) -> list[Bbox]:
        """Places along the line to a label, from where it leaves the point; none where there is no line."""
        if distance <= LINED_POINTS:
            return []
        shares = [step / LINE_STEPS for step in range(LINE_STEPS // 4, LINE_STEPS)]
        ends = [[at + share * scale * distance * step for at, step in zip(spot, way, strict=True)] for share in shares]
        return [Bbox([[x - 2, y - 2], [x + 2, y + 2]]) for x, y in ends]

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
        crossed = sum(_overlap(part, other) for part in line_at(*place) for other in (*taken, *labels))
        unread = sum(_overlap(box, other) for other in labels)
        return covered + crossed + UNREAD * unread + OUTSIDE * outside + MISREAD * misread + PER_POINT * place[0]

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
    return box_at(distance, way), line_at(distance, way)


def _annotate(axes: Axes, point: Point, offset: tuple[int, int], way: tuple[int, int]) -> Annotation:
    """A label, offset from its point by points to the right and up, on the side that `way` (-1, 0 or 1 each) says."""
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
