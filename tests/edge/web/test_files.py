"""The files of the page: what is vendored is what npm has, nothing points elsewhere, and it stays small."""

from __future__ import annotations

import hashlib
import json
import re

import pytest

from tests.edge.web.fake_server import WEB

VENDOR = WEB / "vendor"
LOADED = sorted(path for path in WEB.rglob("*") if path.suffix in (".html", ".js", ".css", ".svg"))
OWN = [path for path in LOADED if path.parent == WEB]
MODULES = [path for path in OWN if path.suffix == ".js"]
MOST_BYTES = 170_000  # of what a browser loads
INDEX = (WEB / "index.html").read_text(encoding="utf-8")


def test_what_is_vendored_is_listed_with_its_hash() -> None:
    listed = json.loads((VENDOR / "VERSIONS.json").read_text(encoding="utf-8"))
    assert {path.name for path in VENDOR.iterdir()} == {*listed, "VERSIONS.json"}
    for name, facts in listed.items():
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == facts["sha256"], name
        assert facts["version"].encode() in (VENDOR / f"{name.split('.')[0]}.{_code(name)}").read_bytes()[:200]


def _code(name: str) -> str:
    return "esm.js" if name.startswith("marked") else "min.js"


def test_the_page_is_small() -> None:
    assert sum(path.stat().st_size for path in LOADED) < MOST_BYTES


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_nothing_points_to_another_host(path: object) -> None:
    text = str(getattr(path, "read_text")(encoding="utf-8"))  # noqa: B009
    found = set(re.findall(r"(?:https?:)?//[\w.-]+\.[a-z]{2,}", text)) - {"http://www.w3.org"}
    assert not found


def test_the_page_has_nothing_that_its_policy_forbids() -> None:
    assert not re.findall(r"<style|\sstyle=|\son\w+=|javascript:|<form|<base", INDEX)
    assert re.findall(r"<script[^>]*>", INDEX) == ['<script type="module" src="web/main.js">']
    assert re.search(r"<script[^>]*></script>", INDEX)


def test_addresses_are_relative() -> None:
    """The server may be below a path of a proxy."""
    assert not re.findall(r'(?:href|src)="/', INDEX)
    for path in MODULES:
        assert not re.findall(r'(?:getJson|request|streamed|fetch)\(["`]/', path.read_text(encoding="utf-8")), path.name


def test_every_element_that_a_module_wants_is_in_the_page() -> None:
    ids = re.findall(r'\sid="([^"]+)"', INDEX)
    assert len(ids) == len(set(ids))
    wanted = {name for path in MODULES for name in re.findall(r'\$\("([^"]+)"\)', path.read_text(encoding="utf-8"))}
    assert wanted
    assert wanted <= set(ids)


def test_no_module_makes_elements_of_text() -> None:
    """Nothing but DOMPurify reads markup, so Trusted Types need no policy but its own."""
    sinks = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\(|new Function|srcdoc|setHTML"
    for path in MODULES:
        assert not re.findall(sinks, path.read_text(encoding="utf-8")), path.name
