"""A profile as pages: a Markdown table, one self-contained HTML file, and the plots.

In: a `Profile`. Out: files in a folder; same profile, same bytes. Knows nothing about measuring: everything can be made
again from `profile.json` at any time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from edge.profiles import plot
from edge.profiles.columns import COLUMNS, Column
from edge.profiles.front import size_front, speed_front
from edge.profiles.machine_record import described
from edge.profiles.page import to_html
from edge.profiles.record import PARTS, Profile
from edge.profiles.spread import MEANING, is_noisy, noise_warning
from edge.runtime.atomic import write_atomically
from edge.runtime.errors import OutputError

MARKDOWN, HTML = "profile.md", "profile.html"
PLOTS = {"pareto_bytes": "accuracy against size", "pareto_speed": "accuracy against speed"}  # .svg and .png
_TITLE, _TITLE_LINE = "accuracy, size and speed", 10_000  # the end of the first line; most characters of that line
_FILES = frozenset((MARKDOWN, HTML, *(f"{name}.{kind}" for name in PLOTS for kind in ("svg", "png"))))


def write_report(profile: Profile, out: Path) -> list[Path]:
    """Write table, page and plots into a folder, replacing those of an earlier report; returns what was written.

    Raises OutputError, also where one of the files exists and is not a report's.
    """
    check_folder(out)
    files: dict[str, bytes] = {}
    inline: dict[str, str] = {}
    if profile.rows:
        figures = (plot.bytes_figure(profile.rows), plot.speed_figure(profile.rows))
        for name, figure in zip(PLOTS, figures, strict=True):
            if figure is not None:
                files[f"{name}.svg"] = plot.svg_bytes(figure)
                files[f"{name}.png"] = plot.png_bytes(figure)
                inline[PLOTS[name]] = plot.inline_svg(files[f"{name}.svg"], PLOTS[name])
    # The table comes first: it shows that the others are a report's.
    drawn = [name for name, title in PLOTS.items() if title in inline]
    page = to_html(profile, f"{profile.source}: {_TITLE}", inline, warnings(profile), facts(profile))
    files = {MARKDOWN: to_markdown(profile, drawn).encode(), **files, HTML: page.encode()}
    for name in _FILES - files.keys():
        (out / name).unlink(missing_ok=True)  # of an earlier report
    for name, data in files.items():
        write_atomically(out / name, [data], private=False)
    return [out / name for name in files]


def check_folder(out: Path) -> None:
    """Raises OutputError where a report would replace files that are not those of an earlier one."""
    found = sorted(name for name in _FILES if os.path.lexists(out / name))
    if found and not _is_report(out / MARKDOWN):
        raise OutputError(
            f"{out} holds {', '.join(found)} but no {MARKDOWN} of an earlier report, so they are not a report's; move "
            "them away, or use another folder"
        )


def _is_report(table: Path) -> bool:
    try:
        with table.open(encoding="utf-8", errors="replace") as file:
            return re.fullmatch(rf"# .*: {_TITLE}\n", file.readline(_TITLE_LINE)) is not None
    except OSError:
        return False


def to_markdown(profile: Profile, plots: list[str]) -> str:
    """The table with everything needed to read it; `plots` are names of SVG files next to it."""
    lines = [f"# {_cell(profile.source)}: {_TITLE}", ""]
    lines += [line for warning in warnings(profile) for line in (_cell(warning), "")]
    lines += [*markdown_table(profile), "", *(f"- {_cell(fact)}" for fact in facts(profile)), ""]
    for name in plots:
        lines += [f"![{name}]({name}.svg)", ""]
    return "\n".join(lines)


def markdown_table(profile: Profile, columns: Sequence[Column] = COLUMNS) -> list[str]:
    """The lines of the table."""
    lines = ["| " + " | ".join(column.title for column in columns) + " |"]
    lines.append("|" + "|".join("---" if column.number is None else "--:" for column in columns) + "|")
    return lines + ["| " + " | ".join(_cell(column.text(row)) for column in columns) + " |" for row in profile.rows]


def facts(profile: Profile) -> list[str]:
    """What the figures were measured with, and what they mean."""
    alone = "alone on its machine" if any(row.places for row in profile.rows) else "one at a time"
    prompts = sorted({row.prompt_tokens for row in profile.rows if row.prompt_tokens})
    found = [
        f"Text: {profile.text}; {profile.num_windows} windows of {profile.window_tokens} tokens, "
        f"sha256 {profile.windows_sha256[:16]}.",
        "KLD: mean KL divergence from the float checkpoint's distribution of the next token, nats/token. ppl ratio: "
        "perplexity over the float checkpoint's. top-1: share of tokens whose most probable next token is the float "
        "checkpoint's. same text: tokens of greedy text before it diverges from the float checkpoint's, mean over "
        "prompts. After ±: standard error, over windows or prompts; bars in plots are 95 %.",
        *_fronts(profile),
        "Peaks: memory that the process allocated, without mapped files. export peak is that of the export.",
    ]
    if prompts:
        found.append(
            f"TTFT: time to the first token of a prompt of {' or '.join(map(str, prompts))} tokens; tok/s: decoding "
            f"after it. Both: {MEANING}. Each row is a fresh process, {alone}."
        )
    found += spread_unknown(profile)
    found.append(f"Machine: {described(profile.machine)}.")
    found += nodes(profile)
    found.append("Versions: " + ", ".join(f"{name} {found}" for name, found in sorted(profile.versions.items())) + ".")
    found += [f"{note}." for note in profile.notes]
    found += [f"Failed: {failure.name}: {failure.error}" for failure in profile.failures]
    return found


def front_names(profile: Profile) -> dict[str, list[str]]:
    """The names of the rows on each front."""
    rows = profile.rows
    fronts = {"size": size_front(rows), "speed": speed_front(rows)}
    return {name: [rows[i].name for i in front] for name, front in fronts.items() if front}


def warnings(profile: Profile) -> list[str]:
    """What a reader has to know before any figure: that rows are missing, and which speeds are not to be relied on."""
    found = [f"{profile.so_far}: a sweep is still running, or was interrupted."] if profile.so_far else []
    noisy = []
    for row in profile.rows:
        speeds = {
            "TTFT": (row.ttft_ms, row.ttft_ms_spread),
            "tok/s": (row.decode_tokens_per_second, row.decode_spread),
        }
        apart_too_far = [
            name for name, (value, apart) in speeds.items() if value is not None and is_noisy(value, apart)
        ]
        if apart_too_far:
            noisy.append(f"{' and '.join(apart_too_far)} of {row.name}")
    return [*found, *([unlike] if (unlike := _unlike(profile)) else []), *([noise_warning(noisy)] if noisy else [])]


def spread_unknown(profile: Profile) -> list[str]:
    """A sentence on speeds whose repeats were not kept, as in profiles of an earlier schema version."""
    timed = [row for row in profile.rows if row.decode_tokens_per_second is not None]
    unknown = [row.name for row in timed if row.decode_spread is None]
    if not unknown:
        return []
    which = "these speeds" if len(unknown) == len(timed) else f"the speeds of {', '.join(unknown)}"
    return [f"The spread of {which} was not recorded; the front takes them as they are."]


def nodes(profile: Profile) -> list[str]:
    """Which node of a cluster measured what, a line each; none if no cluster took part."""
    found: dict[str, dict[str, list[str]]] = {}
    for row in profile.rows:
        for part, place in row.places.items():
            node = place.node + ("" if place.machine is None else f" ({described(place.machine)})")
            names = found.setdefault(node, {}).setdefault(part, [])
            name = row.recipe if part == "export" else row.name
            if name not in names:
                names.append(name)
    return [
        f"Node {node}: " + "; ".join(f"{part} of {', '.join(parts[part])}" for part in PARTS if part in parts) + "."
        for node, parts in sorted(found.items())
    ]


def _unlike(profile: Profile) -> str:
    """A warning where speeds are those of machines that differ."""
    timed = [row.places.get("speed") for row in profile.rows if row.ttft_ms is not None]
    kinds = {described(profile.machine if place is None or place.machine is None else place.machine) for place in timed}
    if len(kinds) < 2:
        return ""
    return f"Speeds were measured on different machines, and do not compare: {'; '.join(sorted(kinds))}."


def _fronts(profile: Profile) -> list[str]:
    names = front_names(profile)
    if not names:
        return []
    listed = "; ".join(f"by {figure}: {', '.join(found)}" for figure, found in names.items())
    return [
        f"On the front {listed}. No other row is clearly better in one figure and as good in the other: KLDs differ by "
        "what chance gives once in 370 times (paired over windows), speeds by more than both spreads."
    ]


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
