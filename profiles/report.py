"""A profile as pages: a Markdown table, one self-contained HTML file, and the plots.

In: a `Profile`. Out: files in a folder; same profile, same bytes. Knows nothing about measuring: everything can be made
again from `profile.json` at any time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from edge.profiles import plot
from edge.profiles.record import Profile, Row
from edge.runtime.atomic import write_atomically
from edge.runtime.errors import OutputError

MARKDOWN, HTML = "profile.md", "profile.html"
PLOTS = ("pareto_bytes", "pareto_speed")  # .svg and .png
UNKNOWN = "-"
_TITLE, _TITLE_LINE = "accuracy, size and speed", 10_000  # the end of the first line; most characters of that line
_FILES = frozenset((MARKDOWN, HTML, *(f"{name}.{kind}" for name in PLOTS for kind in ("svg", "png"))))


@dataclass(frozen=True, slots=True)
class Column:
    """One figure of a row, as tables show it."""

    title: str
    text: Callable[[Row], str]
    number: Callable[[Row], float | None] | None = None  # to sort by; None: sort by the text


def _shown(value: float | None, form: str, scale: float = 1.0) -> str:
    return UNKNOWN if value is None else format(value * scale, form)


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


COLUMNS = (
    Column("recipe", lambda row: row.recipe),
    Column("engine", lambda row: row.engine),
    Column("setting", lambda row: row.setting),
    Column("bits per weight", lambda row: f"{row.bits_per_weight:.2f}", lambda row: row.bits_per_weight),
    Column("weights, bytes", lambda row: f"{row.weight_bytes:,}", lambda row: row.weight_bytes),
    Column("KLD", _kld_text, lambda row: row.accuracy.kld),
    Column(
        "ppl ratio",
        lambda row: _with_error(row.accuracy.ppl_ratio, row.accuracy.ppl_ratio_stderr, 4),
        lambda row: row.accuracy.ppl_ratio,
    ),
    Column("top-1", lambda row: f"{row.accuracy.top1:.2%}", lambda row: row.accuracy.top1),
    Column(
        "same text, tokens",
        _same_text,
        lambda row: None if row.divergence is None else row.divergence.mean,
    ),
    Column("export, s", lambda row: _shown(row.export_s, ".1f"), lambda row: row.export_s),
    Column(
        "export peak, MB", lambda row: _shown(row.export_peak_bytes, ",.0f", 1e-6), lambda row: row.export_peak_bytes
    ),
    Column("load, s", lambda row: _shown(row.load_s, ".2f"), lambda row: row.load_s),
    Column(
        "peak, MB", lambda row: _shown(row.peak_anonymous_bytes, ",.0f", 1e-6), lambda row: row.peak_anonymous_bytes
    ),
    Column("TTFT, ms", lambda row: _shown(row.ttft_ms, ".0f"), lambda row: row.ttft_ms),
    Column("tok/s", lambda row: _shown(row.decode_tokens_per_second, ".1f"), lambda row: row.decode_tokens_per_second),
)


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
                inline[name] = plot.inline_svg(files[f"{name}.svg"])
    # The table comes first: it shows that the others are a report's.
    files = {MARKDOWN: to_markdown(profile, list(inline)).encode(), **files, HTML: to_html(profile, inline).encode()}
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
    lines = [f"# {_cell(profile.source)}: {_TITLE}", "", *markdown_table(profile)]
    lines += ["", *(f"- {_cell(fact)}" for fact in _facts(profile)), ""]
    for name in plots:
        lines += [f"![{name}]({name}.svg)", ""]
    return "\n".join(lines)


def markdown_table(profile: Profile, columns: Sequence[Column] = COLUMNS) -> list[str]:
    """The lines of the table."""
    lines = ["| " + " | ".join(column.title for column in columns) + " |"]
    lines.append("|" + "|".join("---" if column.number is None else "--:" for column in columns) + "|")
    return lines + ["| " + " | ".join(_cell(column.text(row)) for column in columns) + " |" for row in profile.rows]


def to_html(profile: Profile, plots: Mapping[str, str]) -> str:
    """One page without external links; `plots` are SVG elements."""
    heads = "".join(
        f'<th scope="col"{"" if column.number is None else " class=n"} aria-sort="none">'
        f"<button>{escape(column.title)}</button></th>"
        for column in COLUMNS
    )
    body = "\n".join("<tr>" + "".join(_html_cell(column, row) for column in COLUMNS) + "</tr>" for row in profile.rows)
    facts = "\n".join(f"<li>{escape(fact)}</li>" for fact in _facts(profile))
    figures = "\n".join(f"<figure>{svg}</figure>" for svg in plots.values())
    title = f"{escape(profile.source)}: {_TITLE}"
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n<div class=scroll><table>\n"
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>\n"
        f"<div class=plots>\n{figures}\n</div>\n<ul>\n{facts}\n</ul>\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def _html_cell(column: Column, row: Row) -> str:
    if column.number is None:
        return f"<td>{escape(column.text(row))}</td>"
    value = column.number(row)
    return f'<td class=n data-v="{"" if value is None else repr(value)}">{escape(column.text(row))}</td>'


def _facts(profile: Profile) -> list[str]:
    """What the figures were measured with, and what they mean."""
    machine, memory = profile.machine, profile.machine.get("memory_bytes")
    on = f"{machine['processor']}, {machine['cores']} cores"
    on += f", {memory / 1e9:.0f} GB" if memory else ""
    prompts = sorted({row.prompt_tokens for row in profile.rows if row.prompt_tokens})
    facts = [
        f"Text: {profile.text}; {profile.num_windows} windows of {profile.window_tokens} tokens, "
        f"sha256 {profile.windows_sha256[:16]}.",
        "KLD: mean KL divergence from the float checkpoint's distribution of the next token, nats/token. ppl ratio: "
        "perplexity over the float checkpoint's. top-1: share of tokens whose most probable next token is the float "
        "checkpoint's. same text: tokens of greedy text before it diverges from the float checkpoint's, mean over "
        "prompts. After ±: standard error, over windows or prompts; bars in plots are 95 %.",
        "Peaks: memory that the process allocated, without mapped files. export peak is that of the export.",
    ]
    if prompts:
        facts.append(
            f"TTFT: time to the first token of a prompt of {' or '.join(map(str, prompts))} tokens, median; tok/s: "
            "decoding after it. Each row is a fresh process, one at a time."
        )
    facts.append(f"Machine: {on}, {machine['system']}.")
    facts.append("Versions: " + ", ".join(f"{name} {found}" for name, found in sorted(profile.versions.items())) + ".")
    facts += [f"{note}." for note in profile.notes]
    facts += [f"Failed: {failure.name}: {failure.error}" for failure in profile.failures]
    return facts


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1f; --paper: #fff; --line: #d8d8de; --soft: #f4f4f7 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6ea; --paper: #16161a; --line: #3a3a42; --soft: #202026 } }
body { color: var(--ink); background: var(--paper); font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto;
  max-width: 84rem; padding: 0 1rem }
h1 { font-size: 1.4rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left }
.n { text-align: right }
tbody tr:hover { background: var(--soft) }
th button { all: unset; cursor: pointer; font-weight: 600 }
th button:focus-visible { outline: 2px solid }
th[aria-sort=ascending] button::after { content: " \\25b2" }
th[aria-sort=descending] button::after { content: " \\25bc" }
.plots { display: flex; flex-wrap: wrap; gap: 1rem }
figure { margin: 1rem 0; flex: 1 1 32rem; max-width: 44rem }
figure svg { width: 100%; height: auto }
"""

# A click on a heading sorts by it, a second one in reverse; what was not measured stays at the end.
_SCRIPT = """
const body = document.querySelector("tbody"), heads = [...document.querySelectorAll("th")];
heads.forEach((head, i) => head.firstChild.addEventListener("click", () => {
  const up = head.getAttribute("aria-sort") !== "ascending", sign = up ? 1 : -1;
  const key = row => row.cells[i].dataset.v;
  heads.forEach(other => other.setAttribute("aria-sort", "none"));
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  body.append(...[...body.rows].sort((a, b) => {
    if (key(a) === undefined) return sign * a.cells[i].textContent.localeCompare(b.cells[i].textContent);
    if (key(a) === "" || key(b) === "") return (key(a) === "") - (key(b) === "");
    return sign * (key(a) - key(b));
  }));
}));
"""
