"""Documents hold together: links and anchors lead somewhere, paths exist, and the site has every page and builds."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.docs.markdown import github_anchors, links, mkdocs_anchors, paths, read
from tests.docs.shown import ROOT

REPOSITORY = "https://github.com/edgeglm/edgeglm/blob/main/"  # what a page of the site calls files outside docs/
PAGES = sorted((ROOT / "docs").glob("*.md"))
OUTSIDE = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")]
DOCUMENTS = [*OUTSIDE, *PAGES]
CONFIG = ROOT / "mkdocs.yml"


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def broken(page: Path, link: str) -> str | None:
    """What is wrong with one link, None where nothing is."""
    target, _, anchor = unquote(link).partition("#")
    if target.startswith(REPOSITORY):
        file, in_site = ROOT / target.removeprefix(REPOSITORY), False
    elif re.match(r"[a-z]+:", target):
        return None  # another's
    else:
        file = (page.parent / target).resolve() if target else page
        in_site = page in PAGES
        if in_site and not file.is_relative_to(ROOT / "docs"):
            return f"{link}: a page of the site can link to pages of docs/ alone; write {REPOSITORY}..."
    if not file.exists():
        return f"{link}: {name(file) if file.is_relative_to(ROOT) else file} does not exist"
    if not anchor:
        return None
    if file.suffix != ".md":
        return f"{link}: an anchor in a file that is not a page"
    known = github_anchors(read(file))
    if file in PAGES:  # they are read on GitHub and on the site
        known &= mkdocs_anchors(read(file))
    return None if anchor in known else f"{link}: {name(file)} has no heading of this name; it has {sorted(known)}"


@pytest.mark.parametrize("page", DOCUMENTS, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    found = [wrong for link in links(read(page)) if (wrong := broken(page, link))]
    assert not found, "\n".join(found)


def test_what_is_broken_is_found(tmp_path: Path) -> None:
    """The test above, held to pages that are wrong."""
    page = ROOT / "docs" / "index.md"
    assert broken(page, "architecture.md") is None
    assert broken(page, "no-such-page.md") is not None
    assert broken(page, "architecture.md#no-such-heading") is not None
    assert broken(page, "../README.md") is not None
    assert broken(page, f"{REPOSITORY}README.md") is None
    assert broken(page, f"{REPOSITORY}REDME.md") is not None
    assert broken(ROOT / "README.md", "docs/index.md") is None
    text = "## A `name`, and (more)\n\n## Same\n\n## Same\n\n```\n## not one\n```\n\n[a](b.md#c) `[x](y)` [d][e]"
    assert github_anchors(text) == {"a-name-and-more", "same", "same-1"}
    assert mkdocs_anchors(text) == {"a-name-and-more", "same", "same_1"}
    assert links(text) == ["b.md#c"]
    assert paths("`edge/{api,cli}.py`, and `tests/<name>.py`; runtime/not_code.py") == [
        "edge/api.py",
        "edge/cli.py",
        "tests/",
    ]


@pytest.mark.parametrize("page", DOCUMENTS, ids=name)
def test_paths_exist(page: Path) -> None:
    """Files and folders that a document names in code are there, under that name."""
    missing = [path for path in dict.fromkeys(paths(read(page))) if not _exists(path)]
    assert not missing, "\n".join(missing)


def _exists(path: str) -> bool:
    return any(ROOT.glob(path)) if "*" in path else (ROOT / path).exists()


def test_every_page_is_in_the_navigation_once() -> None:
    listed = re.findall(r"[\w-]+\.md", CONFIG.read_text(encoding="utf-8").partition("\nnav:\n")[2])
    assert sorted(listed) == [page.name for page in PAGES]


def test_the_site_needs_nothing_of_others() -> None:
    """No fonts, scripts or analytics from anywhere: what is read offline is whole."""
    text = CONFIG.read_text(encoding="utf-8")
    assert re.search(r"^  font: false$", text, re.M)
    assert set(re.findall(r"https?://[^\s'\"]+", text)) == {"https://github.com/edgeglm/edgeglm"}


@pytest.mark.skipif(
    importlib.util.find_spec("material") is None,
    reason='mkdocs-material is not installed: pip install -e ".[docs]"',
)
def test_the_site_builds(tmp_path: Path) -> None:
    """With every warning an error, and without the network: sockets that are opened to elsewhere fail."""
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "NO_MKDOCS_2_WARNING": "1"}
    ask = [sys.executable, "-c", "import socket; socket.create_connection(('127.0.0.1', 9))"]
    asked = subprocess.run(ask, env=environment, capture_output=True, text=True, check=False)
    assert "the network was used" in asked.stderr
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for page in PAGES:
        built = tmp_path / "site" / f"{page.stem}.html"
        text = built.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe)[^>]* src="https?:|<link[^>]* href="https?:', text)
        assert loaded == [], page
        assert 'data-md-component="source"' not in text, "a script would ask api.github.com for stars"


NO_NETWORK = """
import socket

def refuse(*arguments):
    raise OSError("the network was used")

socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = refuse
"""
