"""What a needle test found, as Markdown and as a heat map.

In: figures of `needle`. Out: text, files. Measures nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge.profiles.needle import FOUND, MISSED, NeedleCell, NeedleResult
from edge.profiles.plot_labels import INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def to_markdown(result: NeedleResult) -> str:
    """A table of margins, with depths as rows and lengths as columns, and what it was measured with."""
    lengths, depths = _axes(result)
    by_place = {(cell.context, cell.depth): cell for cell in result.cells}
    found = sum(cell.retrieved for cell in result.cells)
    prompts = sum(cell.prompt_tokens for cell in result.cells)
    lines = [
        f"# Needle in a haystack: {result.bundle}",
        "",
        f"Recipe {result.recipe}, engine {result.engine}, keys and values in {result.kv_cache}, seed {result.seed}. "
        f'Needle: "{result.needle.sentence}" {FOUND} the greedy answer contains the number, {MISSED} it does not: '
        f"{found} of {len(result.cells)}. Next to it, how much more likely the number is than others like it, in nats.",
        "",
        "| depth | " + " | ".join(f"{length:,} tokens" for length in lengths) + " |",
        "|---:|" + "---:|" * len(lengths),
    ]
    for depth in depths:
        row = [by_place[length, depth] for length in lengths]
        lines.append(f"| {depth:g} % | " + " | ".join(_label(cell) for cell in row) + " |")
    shared = f"{prompts:,} tokens of prompts, {result.computed_tokens:,} computed: what prompts share is read once."
    lines += ["", f"{shared} {_about_the_text(result)}", ""]
    lines.append(f"{result.machine['processor']}; " + ", ".join(f"{n} {v}" for n, v in result.versions.items()) + ".")
    return "\n".join(lines) + "\n"


def heat_map(result: NeedleResult) -> Figure:
    """Margins as colour and number, depths by lengths; raises ModuleNotFoundError without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lengths, depths = _axes(result)
    by_place = {(cell.context, cell.depth): cell for cell in result.cells}
    margins = np.array([[by_place[length, depth].margin for length in lengths] for depth in depths])
    extreme = max(float(np.abs(margins).max()), 1e-3)
    figure = Figure(figsize=(2.6 + 1.0 * len(lengths), 1.9 + 0.5 * len(depths)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(margins, cmap="RdBu", vmin=-extreme, vmax=extreme, aspect="auto")
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    axes.set_yticks(range(len(depths)), [f"{depth:g} %" for depth in depths])
    axes.set_xlabel("context, tokens", color=INK)
    axes.set_ylabel("depth of the needle", color=INK)
    axes.set_title(
        f"{result.bundle}\n{result.recipe}, {result.engine}, {result.kv_cache} cache", color=INK, fontsize=10
    )
    for y, depth in enumerate(depths):
        for x, length in enumerate(lengths):
            colour = "white" if abs(margins[y, x]) > 0.6 * extreme else INK
            axes.text(x, y, _label(by_place[length, depth]), ha="center", va="center", color=colour, fontsize=9)
    bar = figure.colorbar(image, ax=axes)
    bar.set_label("margin, nats", color=INK)
    figure.supxlabel(f"{FOUND} answered  {MISSED} not", fontsize=8, color=INK)
    return figure


def _axes(result: NeedleResult) -> tuple[list[int], list[float]]:
    return sorted({cell.context for cell in result.cells}), sorted({cell.depth for cell in result.cells})


def _label(cell: NeedleCell) -> str:
    return f"{FOUND if cell.retrieved else MISSED} {cell.margin:+.1f}"


def _about_the_text(result: NeedleResult) -> str:
    if result.repeats == 1:
        return "No part of the haystack is in a prompt twice."
    return f"The text of the haystack starts again {result.repeats - 1} times in the longest."
