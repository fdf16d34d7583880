"""Pages say what the code has: every public name, every error, every option; and what they show runs."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from inspect import signature
from pathlib import Path

import pytest

import edge
from edge import cli
from edge.export.compress import recipes
from edge.export.pipeline import export
from edge.runtime import errors
from edge.runtime.chunk import Answer, Chunk, Stats
from edge.runtime.prefixes import Prefixes
from edge.runtime.scheduler import SchedulerStats
from edge.runtime.session import ChatSession
from edge.runtime.settings import EngineOptions, GenerationOptions
from edge.runtime.stream import Stream
from tests.docs import command_line
from tests.docs.markdown import inline_code, paths, read
from tests.docs.shown import OUTPUT, ROOT, blocks

DOCS = ROOT / "docs"
API = read(DOCS / "python-api.md")
CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.EdgeError)]


def test_the_command_line_is_that_of_the_parser() -> None:
    """When it fails: python -m tests.docs.command_line"""
    assert read(command_line.PAGE) == command_line.page()


def words() -> set[str]:
    """Names in the inline code of the Python page: of `llm.stats` both, and of `Stream.close()`."""
    return {word for code in inline_code(API) for word in re.findall(r"\w+", code)}


def test_every_public_name_is_in_the_python_page() -> None:
    assert set(edge.__all__) <= words()


def public(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")}


@pytest.mark.parametrize(
    "names",
    [
        public(edge.LLM),
        public(ChatSession),
        public(Prefixes),
        public(Stream),
        public(edge.Constraint) - {"kind", "text"},
        *({field.name for field in fields(kind)} for kind in (Chunk, Answer, Stats, SchedulerStats)),
        set(GenerationOptions.__annotations__),
        set(EngineOptions.__annotations__) | {"device", "speculation", "draft", "draft_store"},
        set(signature(edge.load).parameters) - {"options"},
        set(signature(export).parameters),
    ],
    ids=min,
)
def test_every_member_is_in_the_python_page(names: set[str]) -> None:
    assert names <= words() | {word for block in blocks(API) for word in re.findall(r"\w+", block.text)}


def test_every_error_is_in_the_tree_and_has_advice() -> None:
    (drawn,) = [block.text for block in blocks(read(DOCS / "errors.md")) if block.language == OUTPUT]
    tree: list[tuple[str, int]] = []
    for line in drawn.splitlines():
        match = re.match(r"([ │├└─]*)(\w+)", line)
        assert match is not None
        tree.append((match[2], len(match[1]) // 4))
    assert sorted(tree) == sorted((kind.__name__, len(kind.__mro__) - 4) for kind in CLASSES)
    for index, (name, depth) in enumerate(tree[1:], 1):
        parent = next(above for above, level in reversed(tree[:index]) if level == depth - 1)
        assert vars(errors)[name].__base__.__name__ == parent
    advised = re.findall(r"^\| `(\w+)` \|", read(DOCS / "errors.md"), re.M)
    assert sorted(advised) == sorted(kind.__name__ for kind in CLASSES)


def test_every_module_has_its_place_in_the_architecture_page() -> None:
    """By its own path, or by that of its folder inside one of the four parts."""
    told = set(paths(read(DOCS / "architecture.md")))
    folders = tuple(path for path in told if path.endswith("/") and path.count("/") > 1)
    files = [
        file.relative_to(ROOT).as_posix()
        for part in ("edge", "export", "profiles", "runtime")
        for file in (ROOT / part).rglob("*.py")  # follows no links to the other parts
        if not file.name.startswith("__")
    ]
    assert len(files) > 100
    lost = [file for file in files if file not in told and not file.startswith(folders)]
    assert not lost, sorted(lost)


def test_exit_codes_are_those_of_the_command() -> None:
    told = [int(code) for code in re.findall(r"^\| (\d+) \|", read(DOCS / "errors.md"), re.M)]
    assert told == [0, 1, 2, cli.INTERRUPTED, cli.READER_LEFT]


def test_the_recipe_of_the_page_is_one(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table that docs/add-a-recipe.md adds, in the place where recipes are read from."""
    (table,) = [block.text for block in blocks(read(DOCS / "add-a-recipe.md")) if block.language == "toml"]
    ((name, settings),) = tomllib.loads(table).items()
    assert name not in recipes.recipes()
    monkeypatch.setitem(recipes.recipes(), name, recipes.read_table(name, settings))
    manifest = export(tiny_checkpoint, tmp_path / "out", name)
    assert manifest.recipe == name
    assert {tensor.precision for tensor in manifest.tensors.values()} >= {settings["linear"], settings["head"]}
