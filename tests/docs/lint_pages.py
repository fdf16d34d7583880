"""The pages docs/lint.md and docs/not-verified.md, made from the rules and from what engines say they run on.

    python -m tests.docs.lint_pages

In: `edge.runtime.lint.RULES`, `ENGINES`, the numerics that are emulated. Out: the pages.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from edge.export.graph import emulated
from edge.export.graph.emulated import Numerics
from edge.runtime.engines.registry import ENGINES, EngineRecord
from edge.runtime.lint import RULES, SEVERITIES
from edge.runtime.lint.rule import EVIDENCE, Rule, Source

DOCS = Path(__file__).parents[2] / "docs"
RULES_PAGE = DOCS / "lint.md"
NOT_VERIFIED_PAGE = DOCS / "not-verified.md"
WIDTH = 120
HARDWARE = ("CPU",)  # families of devices that the tests have run on; whoever runs them on another one adds it
MADE = """\
<!-- Made by `python -m tests.docs.lint_pages`; a test holds it to the code. Change the rules and engines, not this. -->
"""
RULES_HEAD = """\
# Rules for NPUs and GPUs

`edge verify BUNDLE --device NPU` (or `GPU`) compares a bundle with what such a device is known to crash on, to compute
wrongly or to do slowly. No device is needed for that, and no weights are read: check before you copy a bundle to the
machine that has one (`--platform` and `--max-memory` say what it is). What compiles for such a device asks the same
rules first.

```sh
edge verify glm4-int4 --device NPU
edge verify glm4-int4 --device NPU --platform 3720 --max-prompt-tokens 1024
edge verify glm4-int4 --device GPU --max-memory 16GB --json
```

| severity | what happens where a rule does not hold | |
|---|---|---|
| crash | the process or the driver ends, or nothing compiles | refused; exit code 1 |
| garbage | answers are wrong, without an error | refused; exit code 1 |
| slow | it works, but badly | told |
| unknown | nobody has told | told |

Through NPUW on the CPU (`--engine openvino_npu --device CPU`), only what was seen to fail there is refused: what an
NPU's own compiler or driver gets wrong is told, and may be tried. `edge recipes` shows which recipes suit which devices
by the same rules. What of all this was never run on a device is in [not verified on hardware](not-verified.md).
"""
NOT_VERIFIED_HEAD = """\
# Not verified on hardware

Nothing of edgeglm has been run on an Intel GPU or NPU yet. This page says what stands in for one, so that nobody
takes a check for a run. If you have such a device, `edge verify BUNDLE --device GPU` (or `NPU`) is the first thing to
run, and its output is worth an issue, whatever it says.

| word | what was done |
|---|---|
| run on hardware | the tests compute on such a device |
| NPUW on the CPU | the NPU plugin's own pipeline computed on a CPU; the NPU's compiler and driver took no part |
| emulated | numpy rounds as such a device does, a stage at a time; no kernel of a device took part |
| arithmetic | sizes and limits that are known were compared |
| read | the source that is named says so, and nothing was run |
"""


def rules_page() -> str:
    """All of docs/lint.md."""
    lines = [MADE, RULES_HEAD]
    for family in dict.fromkeys(rule.family for rule in RULES.values()):
        rules = sorted(_of(family), key=lambda rule: SEVERITIES.index(rule.severity))
        lines += [f"## {family}", "", "| rule | what has to hold | otherwise |", "|---|---|---|"]
        lines += [f"| [`{rule.id}`](#{rule.id}) | {rule.title} | {rule.severity} |" for rule in rules]
        for rule in rules:
            lines += ["", *_section(rule)]
        lines.append("")
    return _text(lines)


def not_verified_page() -> str:
    """All of docs/not-verified.md."""
    lines = [MADE, NOT_VERIFIED_HEAD, "## Engines", "", "| engine | device | checked by |", "|---|---|---|"]
    lines += [f"| `{record.name}` | {device} | {how} |" for record in ENGINES.values() for device, how in _runs(record)]
    lines += ["", _wrapped(_unseen_precisions()), "", "## Numbers of 16 bits", ""]
    lines += [_wrapped("Emulated in numpy (`export/graph/emulated.py`): " + "; ".join(_numerics()) + "."), ""]
    lines += ["## Rules", "", "| rule | severity | checked by | what was seen here |", "|---|---|---|---|"]
    for evidence in EVIDENCE:
        for rule in (rule for rule in RULES.values() if rule.evidence == evidence):
            lines.append(f"| [`{rule.id}`](lint.md#{rule.id}) | {rule.severity} | {evidence} | {rule.seen} |")
    lines += ["", _wrapped(_counted())]
    return _text(lines)


def _of(family: str) -> list[Rule]:
    return [rule for rule in RULES.values() if rule.family == family]


def _section(rule: Rule) -> list[str]:
    refused = ", so it is refused" if rule.severity in ("crash", "garbage") else ""
    lines = [f"### {rule.id}", "", _wrapped(f"**{rule.title}.** Otherwise: {rule.severity}{refused}. {rule.why}"), ""]
    lines += [_item("What to do", f"{rule.advice}."), *(_item("Source", _source(source)) for source in rule.sources)]
    seen = f"{rule.seen}." if rule.seen else "nothing."
    return [*lines, _item("Checked by", f"{rule.evidence}. Seen here: {seen}")]


def _source(source: Source) -> str:
    place = source.place
    if re.match(r"(docs\.openvino\.ai|github\.com/\S+$)", place):
        place = f"<https://{place}>"
    elif ": " in place:
        repository, path = place.split(": ", 1)
        place = f"<https://{repository}>, `{path}`"
    return f"{place} ({source.when}): {source.says}"


def _runs(record: EngineRecord) -> Iterator[tuple[str, str]]:
    for family in record.families:
        if family in HARDWARE:
            yield family, "run on hardware"
        else:
            yield (
                family,
                "**not verified on hardware**"
                + (
                    f"; NPUW on the {' and '.join(record.emulated_on)}"
                    if record.emulated_on
                    else "; rules and arithmetic"
                ),
            )
    for family in record.emulated_on:
        yield family, "run: that is NPUW on the CPU"


def _unseen_precisions() -> str:
    parts = [
        f"`{record.name}` on {family} ({', '.join(record.kv_precisions)})"
        for record in ENGINES.values()
        for family in record.families
        if family not in HARDWARE
    ]
    return f"Of caches, no precision was verified on hardware for {_joined(parts)}."


def _numerics() -> list[str]:
    return [value.name for value in vars(emulated).values() if isinstance(value, Numerics)]


def _counted() -> str:
    counts = (f"{sum(rule.evidence == evidence for rule in RULES.values())} {evidence}" for evidence in EVIDENCE)
    return f"Of {len(RULES)} rules: {', '.join(counts)}. None was seen to hold or to fail on a device."


def _joined(parts: list[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]


def _item(name: str, text: str) -> str:
    return _wrapped(f"- {name}: {text}", "  ")


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _text(lines: list[str]) -> str:
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


if __name__ == "__main__":
    RULES_PAGE.write_text(rules_page(), encoding="utf-8")
    NOT_VERIFIED_PAGE.write_text(not_verified_page(), encoding="utf-8")
