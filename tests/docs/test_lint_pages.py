"""The pages about rules say what the rules say, and claim no run on a device that was not there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

import pytest

from edge.runtime.engines.registry import ENGINES
from edge.runtime.lint import RULES
from tests.docs import lint_pages
from tests.docs.markdown import read

T = TypeVar("T")


def without(entries: Mapping[str, T], name: str) -> dict[str, T]:
    return {other: entry for other, entry in entries.items() if other != name}


def test_the_rules_are_those_of_the_code() -> None:
    """When it fails: python -m tests.docs.lint_pages"""
    assert read(lint_pages.RULES_PAGE) == lint_pages.rules_page()


def test_what_is_not_verified_is_made_of_rules_and_engines() -> None:
    """When it fails: python -m tests.docs.lint_pages"""
    assert read(lint_pages.NOT_VERIFIED_PAGE) == lint_pages.not_verified_page()


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_has_a_section_and_a_row(rule: str) -> None:
    page = lint_pages.rules_page()
    assert f"### {rule}\n" in page
    assert f"[`{rule}`](#{rule})" in page
    assert f"[`{rule}`](lint.md#{rule})" in lint_pages.not_verified_page()


def test_only_a_cpu_was_run_on() -> None:
    """A device that no test can reach is never said to have run anything."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*) \|$", lint_pages.not_verified_page(), re.MULTILINE)
    expected = {
        (name, family) for name, record in ENGINES.items() for family in (*record.families, *record.emulated_on)
    }
    assert {(engine, device) for engine, device, _ in rows} == expected
    for engine, device, how in rows:
        assert ("not verified on hardware" in how) == (device != "CPU"), (engine, device)


def test_a_new_rule_or_engine_changes_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    before = lint_pages.rules_page(), lint_pages.not_verified_page()
    # Other dictionaries, since taking an entry out and putting it back would change the order.
    monkeypatch.setattr(lint_pages, "RULES", without(RULES, "npu-symmetric"))
    assert lint_pages.rules_page() != before[0]
    assert lint_pages.not_verified_page() != before[1]
    monkeypatch.undo()
    monkeypatch.setattr(lint_pages, "ENGINES", without(ENGINES, "openvino"))
    assert lint_pages.not_verified_page() != before[1]
