"""What a word for a checkpoint means: a path is never sent to a hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.export.checkpoint import hub
from edge.export.checkpoint.checkpoint import open_checkpoint
from edge.export.checkpoint.sources import meant_hub_id
from edge.runtime.errors import CheckpointError


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a bundle in build/ and a file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "build" / "demo-bundle").mkdir(parents=True)
    (tmp_path / "notes").write_text("")
    return tmp_path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a hub was asked for."""
    found: list[str] = []

    def refuse(source: str) -> Path:
        found.append(source)
        raise CheckpointError("asked")

    monkeypatch.setattr(hub, "download", refuse)
    return found


@pytest.mark.parametrize(
    "path",
    [
        "build/demo-bundel",
        "build/x",
        "build/x/y.gguf",
        "notes/x",
        "buidl/demo-bundle",
        "build/demo_bundle",
        "build/x@1",
    ],
)
def test_paths_with_a_slip(here: Path, asked: list[str], path: str) -> None:
    with pytest.raises(CheckpointError, match=f"{path}: no such path.* no hub was asked.*hf:{path} for the model on"):
        open_checkpoint(path)
    assert asked == []


def test_what_was_meant(here: Path) -> None:
    with pytest.raises(CheckpointError, match="did you mean build/demo-bundle"):
        meant_hub_id("buidl/demo-bundle")


@pytest.mark.parametrize(
    "path",
    ["./org/name", "../org/name", "/org/name", "~/name", "org\\name", "org/name/", "org/name/x", "org/x.gguf", "name"],
)
def test_what_only_a_path_looks_like(here: Path, asked: list[str], path: str) -> None:
    with pytest.raises(CheckpointError, match="no such path; expected"):
        open_checkpoint(path)
    assert asked == []


@pytest.mark.parametrize("name", ["THUDM/glm-4-9b-chat", "org/name@v2", "org/name/sub/Q4.gguf"])
def test_hub_ids(here: Path, asked: list[str], name: str) -> None:
    for word in (name, f"hf:{name}"):
        with pytest.raises(CheckpointError, match="asked"):
            open_checkpoint(word)
    assert asked == [name, name]


def test_a_hub_id_with_the_name_of_a_folder(here: Path, asked: list[str]) -> None:
    with pytest.raises(CheckpointError, match="asked"):
        open_checkpoint("hf:build/demo-bundel")
    assert asked == ["build/demo-bundel"]


@pytest.mark.parametrize(
    "word", ["hf:", "hf:name", "hf:./org/name", "hf:org/name/x", "hf:https://example.org/a", "hf:\0"]
)
def test_a_prefix_before_something_else(here: Path, asked: list[str], word: str) -> None:
    with pytest.raises(CheckpointError, match=r"expected hf:org/name|not a path that can be read"):
        open_checkpoint(word)
    assert asked == []


@pytest.mark.parametrize("path", ["x" * 300, "x/" * 3000, "a\0b"], ids=["name", "path", "zero"])
def test_paths_that_no_file_system_takes(path: str) -> None:
    with pytest.raises(CheckpointError, match="not a path that can be read") as error:
        open_checkpoint(path)
    assert len(str(error.value)) < 250
