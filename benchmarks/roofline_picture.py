"""The picture of roofline.py: milliseconds of a decode step by model size, context and sequences.

In: measured points. Out: a matplotlib figure; same points and versions, same bytes. Solid lines were measured, dashed
ones are what reading the same bytes takes at the median of the bandwidths that were measured beside the points: on
machines that share their memory with others, the highest one is a moment of the host's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from edge.profiles.plot import COLOURS, MARKERS
from edge.profiles.plot_labels import FONTS, FRONT, INK, LABEL_POINTS
from edge.profiles.spread import median
from edge.runtime.engines.registry import ENGINES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE_INCHES = (11.0, 4.6)
LOWEST_BAR = 0.5  # of a point's height, on axes without a zero
Point = dict[str, Any]  # JSON


def picture(points: Sequence[Point]) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    sizes, contexts, sequences = figure.subplots(1, 3, sharey=True)
    least = min(point["context"] for point in points)
    one = [point for point in points if point["sequences"] == 1]
    machine_gbs = median([point["machine_gbs"] for point in points])
    shortest = [point for point in points if point["context"] == least]
    panel(sizes, [p for p in one if p["context"] == least], lambda p: p["weight_bytes"] / 1e9, "engine", machine_gbs)
    panel(contexts, one, lambda p: p["context"], "bundle", machine_gbs)
    panel(sequences, shortest, lambda p: p["sequences"], "bundle", machine_gbs)
    sizes.set_xlabel(f"weights that a step reads, GB (context of {least:,})", color=INK)
    contexts.set_xlabel("context of one sequence, tokens", color=INK)
    sequences.set_xlabel(f"sequences at once (context of {least:,} each)", color=INK)
    sizes.set_ylabel("a decode step, ms", color=INK)
    named: dict[str, Any] = {}
    for axes in (sizes, contexts, sequences):
        named |= {label: line for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    sizes.legend(named.values(), named, frameon=False, labelcolor=INK, prop={"family": FONTS, "size": LABEL_POINTS})
    for axes in (sizes, contexts, sequences):
        for text in (axes.xaxis.label, axes.yaxis.label, *axes.get_xticklabels(), *axes.get_yticklabels()):
            text.set_fontfamily(FONTS)
    return figure


def panel(
    axes: Axes, points: Sequence[Point], x_of: Callable[[Point], float], line_of: str, machine_gbs: float
) -> None:
    """One line for each engine, and for each bundle unless these are on the x axis, with its roofline."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:,g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.tick_params(colors=INK, which="both")
    axes.grid(visible=True, which="major", color=FRONT, alpha=0.25, linewidth=0.6)
    for spine in axes.spines.values():
        spine.set_edgecolor(INK)
    if line_of == "bundle":
        axes.set_xticks(sorted({x_of(point) for point in points}))
    labelled: set[str] = set()
    for key in dict.fromkeys((point["engine"], point[line_of]) for point in points):
        line = sorted((p for p in points if (p["engine"], p[line_of]) == key), key=x_of)
        engine, x = line[0]["engine"], [x_of(point) for point in line]
        style = min(list(ENGINES).index(engine), len(COLOURS) - 1) if engine in ENGINES else len(COLOURS) - 1
        step = [point["step_ms"] for point in line]
        axes.errorbar(
            x,
            step,
            yerr=[
                # A spread is the distance of the farthest repeat, usually a slow one, and may exceed the point itself.
                [min(point["step_ms_spread"], LOWEST_BAR * point["step_ms"]) for point in line],
                [point["step_ms_spread"] for point in line],
            ],
            color=COLOURS[style],
            marker=MARKERS[style],
            markersize=4,
            linewidth=1.2,
            elinewidth=0.8,
            label=engine,
        )
        axes.plot(
            x,
            [(p["weight_bytes"] + p["cache_bytes"]) / machine_gbs / 1e6 for p in line],
            color=COLOURS[style],
            linewidth=1,
            linestyle="--",
            label=f"{engine}: its bytes at {machine_gbs:.0f} GB/s",
        )
        if line_of == "bundle" and line[0]["bundle"] not in labelled:
            labelled.add(line[0]["bundle"])
            axes.annotate(
                line[0]["bundle"],
                (x[0], step[0]),
                textcoords="offset points",
                xytext=(2, 5),
                color=INK,
                fontsize=LABEL_POINTS,
                fontfamily=FONTS,
            )
