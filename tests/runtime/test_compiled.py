"""Models compiled ahead of time: found by everything they depend on, and never used if a byte has changed."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from edge.runtime.compiled import BLOB, RECORD, Compiled, default_folder, find, keep, records, remove_of
from edge.runtime.errors import OutputError
from edge.runtime.notices import LOGGER

KEY = {"model": "m", "versions of OpenVINO": "1", "settings": "{}"}
FIELDS = {"edgeglm": "a compiled model", "key": KEY, "sha256": "0", "size": 1, "bundle": "b"}
WRONG: list[tuple[str, object]] = [
    ("key", 1), ("key", []), ("key", {"a": 1}), ("sha256", 5), ("size", True), ("bundle", None)
]  # fmt: skip
CONTENT = bytes(range(256)) * 64


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, LOGGER)
    return caplog


def test_what_was_kept_is_found_by_its_key_alone(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    path = keep(tmp_path / "new" / "folder", KEY, CONTENT, tmp_path)
    assert find(path.parent, KEY) == CONTENT
    assert find(tmp_path, KEY) is None
    assert find(path.parent, {**KEY, "model": "another"}) is None
    assert said.messages == []  # nobody has compiled that
    for name in ("versions of OpenVINO", "settings"):
        said.clear()
        assert find(path.parent, {**KEY, name: "2"}) is None
        assert said.messages == [
            f"{path.parent} has this model compiled for other {name}; it is compiled now, and `edge compile` makes a "
            "new one"
        ]
    assert keep(path.parent, KEY, b"made anew", tmp_path) == path
    assert find(path.parent, KEY) == b"made anew"


@pytest.mark.parametrize("damage", ["flipped", "cut", "longer", "missing"])
def test_a_damaged_one_is_not_used(damage: str, tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    path = keep(tmp_path, KEY, CONTENT, tmp_path)
    flipped = CONTENT[:8000] + bytes([CONTENT[8000] ^ 1]) + CONTENT[8001:]
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"flipped": flipped, "cut": CONTENT[:-1], "longer": CONTENT + b"\0"}[damage])
    assert find(tmp_path, KEY) is None
    why = "cannot be read (No such file or directory)" if damage == "missing" else "is altered (its sha256 differs)"
    assert said.messages == [f"{path} {why}; the model is compiled now, and `edge compile` makes a new one"]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "[" * 100_000, '{"edgeglm": "a compiled model"}', '{"edgeglm": 1}', "\x00", "{}" * 3]
    + [json.dumps({**FIELDS, name: value}) for name, value in WRONG],
)  # fmt: skip
def test_a_record_that_is_not_ours_is_nothing(text: str, tmp_path: Path) -> None:
    path = keep(tmp_path, KEY, CONTENT, tmp_path)
    path.with_suffix(RECORD).write_text(text)
    assert find(tmp_path, KEY) is None
    assert list(records(tmp_path)) == []
    assert Compiled.from_json(text.encode()) is None


def test_a_record_under_the_name_of_another_key_is_not_used(tmp_path: Path) -> None:
    path = keep(tmp_path, KEY, CONTENT, tmp_path)
    other = keep(tmp_path / "other", {**KEY, "model": "another"}, CONTENT, tmp_path)
    path.with_suffix(RECORD).write_bytes(other.with_suffix(RECORD).read_bytes())
    assert find(tmp_path, KEY) is None


@pytest.mark.parametrize("suffix", [BLOB, RECORD])
def test_files_of_others_stay(suffix: str, tmp_path: Path) -> None:
    """What is in the place of a file of ours, and what lies beside it when a bundle's are removed."""
    path = keep(tmp_path / "first", KEY, CONTENT, tmp_path)
    stranger = tmp_path / f"{path.stem}{suffix}"
    stranger.write_text("somebody else's")
    with pytest.raises(OutputError, match="exists and is not ours; remove it, or name another folder"):
        keep(tmp_path, KEY, CONTENT, tmp_path)
    assert stranger.read_text() == "somebody else's"
    assert list(tmp_path.glob("*.edgeglm-new")) == []


def test_those_of_a_bundle_are_removed_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "one").mkdir()
    folder = default_folder()
    mine = keep(folder, KEY, CONTENT, tmp_path / "one")
    others = keep(folder, {**KEY, "model": "another"}, CONTENT, tmp_path / "two")
    strangers = [folder / "0123.blob", folder / "0123.json", folder / "notes.txt"]
    for stranger in strangers:
        stranger.write_text("somebody else's")
    copied = folder / f"{'0' * 32}{RECORD}"  # ours, but under a name that is not its key's
    copied.write_bytes(mine.with_suffix(RECORD).read_bytes())
    assert remove_of(tmp_path / "one") == len(CONTENT)
    assert sorted(folder.iterdir()) == sorted([others, others.with_suffix(RECORD), copied, *strangers])
    assert remove_of(tmp_path / "one") == 0
