"""Files of text as editors and shells of Windows write them are read rightly, or refused in one line."""

from __future__ import annotations

import codecs
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import edge.api
from edge import cli
from edge.models.config_file import read_toml
from edge.runtime.engines.scripted import noise
from edge.runtime.errors import SettingsError
from edge.server.keys import read_keys
from tests.edge.batch.jobs import line, message

TALK = json.dumps([{"role": "user", "content": "café 你好"}], ensure_ascii=False)
REQUEST = json.dumps(line("é", message("hé")), ensure_ascii=False) + "\n"
WRITTEN: dict[str, Callable[[str], bytes]] = {
    "with a mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "with line ends of Windows": lambda text: text.replace("\n", "\r\n").encode(),
    "by PowerShell": lambda text: text.replace("\n", "\r\n").encode("utf-16"),
    "big-endian": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    "latin-1": lambda text: text.encode("latin-1", "replace"),
}
READ = {"with a mark", "with line ends of Windows"}  # by everything
MARKED = READ | {"by PowerShell", "big-endian"}
# What names a file -> its text, and how it may be written.
FILES: dict[str, tuple[list[str], str, set[str]]] = {
    "--messages": (["run", "BUNDLE", "--messages", "FILE", "--max-new-tokens", "2"], TALK, MARKED),
    "--file": (["run", "BUNDLE", "hi", "--file", "FILE", "--max-new-tokens", "2"], "café\nolé\n", MARKED),
    "--system-file": (["run", "BUNDLE", "hi", "--system-file", "FILE", "--max-new-tokens", "2"], "Café.\n", MARKED),
    "--json-schema": (
        ["run", "BUNDLE", "hi", "--json-schema", "FILE", "--max-new-tokens", "40"],
        '{"enum":\n["é"]}',
        MARKED,
    ),
    "-": (["run", "BUNDLE", "-", "--max-new-tokens", "2"], "café\nolé", MARKED),
    "--load": (["chat", "BUNDLE", "--load", "FILE"], TALK, READ),
    "batch": (["batch", "BUNDLE", "FILE", "OUT"], REQUEST, READ),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("written", WRITTEN)
def test_it_is_read_or_refused_in_one_line(
    name: str, written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words, text, read = FILES[name]
    file, data = tmp_path / "file.txt", WRITTEN[written](text)
    file.write_bytes(data)
    given = {"BUNDLE": str(tmp_path), "FILE": str(file), "OUT": str(tmp_path / "out")}
    monkeypatch.setattr(
        edge.api, "load", lambda *_, **__: edge.api.scripted_llm(noise(), num_blocks=64, max_context=512)
    )
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data if name == "-" else b"")))
    code = cli.main([given.get(word, word) for word in words])
    said = capfd.readouterr().err
    assert "Traceback" not in said
    if written in read:
        assert code == 0, said
    elif (name, written) == ("batch", "latin-1"):  # one line of many may be wrong, which is its answer
        assert "it is not UTF-8 at byte" in (tmp_path / "out").read_text("utf-8")
    else:
        assert code in (1, 2), "refused"
        assert said.startswith("edge: ")
        assert said.count("\n") == 1
        assert "UTF-" in said


@pytest.mark.parametrize("written", sorted(MARKED))
def test_keys_are_read(written: str, tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(WRITTEN[written]("# of the office\nfirst-key\n\nsecond-key\n"))
    assert read_keys(tmp_path / "keys") == ("first-key", "second-key")


@pytest.mark.parametrize("written", WRITTEN)
def test_defaults_are_read_or_refused_in_one_line(written: str, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(WRITTEN[written]('[run]\nsystem = "Café"\n'))
    if written in READ:
        assert read_toml(file) == {"run": {"system": "Café"}}
    else:
        with pytest.raises(SettingsError, match=r"config\.toml is not UTF-8 at byte \d+; save it as UTF-8"):
            read_toml(file)
