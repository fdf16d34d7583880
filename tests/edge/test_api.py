"""The Python face."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import edge
from edge.runtime.errors import EdgeError, SettingsError


def test_every_public_name_is_there() -> None:
    for name in edge.__all__:
        assert getattr(edge, name) is not None
    assert dir(edge) == sorted(edge.__all__)
    with pytest.raises(AttributeError, match="no attribute 'exprot'"):
        edge.exprot  # noqa: B018


def test_readme_example(tiny_checkpoint: Path, tmp_path: Path) -> None:
    edge.export(tiny_checkpoint, tmp_path / "out", recipe="int8-sym")
    llm = edge.load(tmp_path / "out", device="CPU")
    messages = [{"role": "user", "content": "Hello"}]
    chunks = list(llm.chat(messages, max_new_tokens=4))
    assert all(isinstance(chunk, edge.Chunk) for chunk in chunks)
    assert llm.generate("Hello", max_new_tokens=4).text() is not None


@pytest.mark.parametrize("first", ["edge.export", "edge.export.pipeline", "edge.runtime"])
def test_export_is_callable_whatever_was_imported_first(first: str) -> None:
    script = f"import {first}, edge; from edge.export import pipeline; assert callable(edge.export); pipeline.export"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0


def test_unknown_engine_setting() -> None:
    """Said before anything is opened."""
    message = (
        r"unknown setting 'n_threads', did you mean 'threads'\? Known are device, "
    )
    with pytest.raises(SettingsError, match=message):
        edge.load("no bundle", n_threads=2)  # type: ignore[call-arg]  # what it refuses


def test_all_errors_are_drawn_in_the_tree() -> None:
    from edge.runtime import errors

    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, EdgeError)]
    assert len(classes) > 10
    for cls in classes:
        assert cls.__name__ in (errors.__doc__ or "")
