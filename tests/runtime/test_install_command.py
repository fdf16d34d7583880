"""The command that installs an extra names what pip was given, so that it works before the package is on an index."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge.runtime.extras import install_command


def noted(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str | None) -> str:
    """The command where pip has noted this beside the package."""
    info = folder / "site" / "edgeglm-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: edgeglm\nVersion: 0.1.0\n")
    if text is not None:
        (info / "direct_url.json").write_text(text)
    monkeypatch.syspath_prepend(folder / "site")
    return install_command("onnx")


def test_from_a_folder_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = tmp_path / "a folder é"
    checkout.mkdir()
    text = json.dumps({"url": checkout.as_uri(), "dir_info": {}})
    assert noted(tmp_path / "1", monkeypatch, text) == f'pip install "{checkout}[onnx]"'
    text = json.dumps({"url": checkout.as_uri(), "dir_info": {"editable": True}})
    assert noted(tmp_path / "2", monkeypatch, text) == f'pip install -e "{checkout}[onnx]"'
    wheel = tmp_path / "edgeglm-0.1.0-py3-none-any.whl"
    wheel.touch()
    text = json.dumps({"url": wheel.as_uri(), "archive_info": {"hashes": {}}})
    assert noted(tmp_path / "3", monkeypatch, text) == f'pip install "{wheel}[onnx]"'


@pytest.mark.parametrize(
    "text",
    [
        None,
        json.dumps({"url": "file:///no/such/folder", "dir_info": {}}),
        json.dumps({"url": "https://a.example/edgeglm.whl", "archive_info": {}}),
        json.dumps({"url": "git+https://a.example/edgeglm", "vcs_info": {}}),
        json.dumps({"url": 5}),
        json.dumps({"url": "file:///\0"}),
        "[]",
        "{",
        "{}",
    ],
)
def test_from_elsewhere(text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert noted(tmp_path, monkeypatch, text) == 'pip install "edgeglm[onnx]"'
