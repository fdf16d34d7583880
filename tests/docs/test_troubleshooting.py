"""What docs/troubleshooting.md quotes is what a user is told today."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import edge
from edge.cli import main
from tests.docs.markdown import read
from tests.docs.shown import ROOT

PAGE = read(ROOT / "docs" / "troubleshooting.md")
SAID = {
    "device 'GPU' does not exist on this machine": ("run", "BUNDLE", "hi", "--device", "GPU", "--engine", "openvino"),
    "no engine runs on it": ("run", "BUNDLE", "hi", "--device", "TPU"),
    "THUDM is here, so no hub was asked": ("inspect", "THUDM/glm-4-9b-chat"),
    "exists already; choose another folder, or give --force": ("export", "CHECKPOINT", "BUNDLE"),
    "of memory": ("run", "BUNDLE", "hi", "--max-memory", "10MB"),
    "was made for something else": ("run", "BUNDLE", "hi", "--engine", "openvino", "--prefix", "onnx.prefix"),
}


@pytest.fixture
def folder(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "BUNDLE").symlink_to(tiny_bundle)
    (tmp_path / "CHECKPOINT").symlink_to(tiny_checkpoint)
    (tmp_path / "THUDM").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("fragment", SAID, ids=str)
def test_quoted_messages_are_what_is_said(fragment: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fragment in PAGE
    if "onnx.prefix" in SAID[fragment]:
        assert main(["prefix", "build", "BUNDLE", "--raw", "Once upon a time", "onnx.prefix", "--engine", "onnx"]) == 0
    assert main(list(SAID[fragment])) == 1
    assert fragment in capsys.readouterr().err


def test_the_context_of_a_small_cache(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "the prompt has N tokens and the context holds M" in PAGE
    assert main(["run", "BUNDLE", "hi " * 60, "--kv-cache-gb", "0.00001"]) == 1
    said = capsys.readouterr().err
    assert "the prompt has " in said
    assert " tokens and the context holds " in said
    assert "--kv-cache-gb" in PAGE


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_is_told() -> None:
    assert "this model was loaded in another process" in PAGE
    llm = edge.scripted_llm(edge.noise())
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            llm.generate("a", max_new_tokens=1).text()
        except edge.DeviceError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as said:
        assert "this model was loaded in another process" in said.read()
