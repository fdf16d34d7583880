"""Figures that a page repeats from a table are those of the table.

In: README.md, its table of needs, and the tables that it cites. What profiles/results measured has a test of its own
(tests/benchmarks/test_results.py).
"""

from __future__ import annotations

import re

from tests.docs.shown import ROOT


def row(page: str, label: str) -> list[str]:
    """The cells of the one row of a page's tables that begins with a label."""
    text = (ROOT / page).read_text(encoding="utf-8")
    (found,) = re.findall(rf"^\| {re.escape(label)} \|(.*)\|$", text, re.MULTILINE)
    return [cell.strip() for cell in found.split("|")]


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]


def test_what_an_export_needs() -> None:
    seconds, memory = (
        row("docs/export.md", label)[0]
        for label in ("wall time, s (ours with the check of every block)", "peak anonymous memory, GB")
    )
    assert numbers(row("README.md", "to export")[0]) == [float(seconds), float(memory)]


def test_what_a_run_needs() -> None:
    onnx, openvino, *_ = row("README.md", "peak anonymous memory, GB")
    assert numbers(row("README.md", "RAM to run")[0]) == [float(onnx), float(openvino)]


def test_what_fits_on_the_disk() -> None:
    (written, *_) = row("docs/export.md", "written to disk, GB")
    installs = [
        round(float(row("docs/engines-and-devices.md", f"`edgeglm[{extra}]`")[0]) / 1000, 1)
        for extra in ("export", "onnx", "openvino")
    ]
    benchmarks = (ROOT / "docs" / "benchmarking.md").read_text(encoding="utf-8")
    (checkpoint,) = re.findall(r"A 9B model takes ([\d.]+) GB", benchmarks)
    assert numbers(row("README.md", "disk")[0]) == [float(written), *installs, float(checkpoint)]


def test_how_much_better_recipes_are() -> None:
    """Shares of the loss of rounding to nearest, from the measured table of the same page."""
    measured = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8").partition("<!-- begin")[2]
    kld = {
        name: float(value)
        for name, value in re.findall(r"^\| (\S+) \| openvino \| [^|]+ \| [^|]+ \| ([\d.]+) ±", measured, re.MULTILINE)
    }
    nearest = kld["int4-asym-g64"]
    rotated = row("docs/recipes.md", "the most accurate 4 bits of GLM-4-9B")[1]
    scaled = row("docs/recipes.md", "the same for GLM-4-0414, or for a model whose head is tied")[1]
    assert numbers(rotated)[0] == round(kld["int4-asym-g64-rot-gptq"] / nearest, 2)
    assert numbers(scaled)[0] == round(kld["int4-asym-g64-awq-gptq"] / nearest, 2)
    eight_bits = row("docs/recipes.md", "next to no loss")[1]
    assert numbers(eight_bits)[0] == round(kld["int8-asym"], 4)
