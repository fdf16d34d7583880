"""A system message and a prefix file on the command line: the file is used, or built, and a line says which.

Engines are real ones, on a tiny model.
"""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest

import edge
from edge import cli
from edge.runtime.saved_prefix import read_prefix

SYSTEM = "You are the guide of a museum."
Shown = pytest.CaptureFixture[str]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "guide.txt").write_text(SYSTEM)
    (tmp_path / "pirate.txt").write_text("You are a pirate.")
    return tmp_path


def run(capsys: Shown, bundle: Path, *more: str) -> tuple[dict[str, object], str]:
    """What `edge run` answers, and what it says."""
    assert cli.main(["run", str(bundle), "hi", "--json", "--max-new-tokens", "6", *more]) == 0
    out, err = capsys.readouterr()
    return json.loads(out), err


USE = ("--system-file", "guide.txt", "--prefix", "kiosk.prefix")


def test_built_and_then_used_and_built_anew(tiny_bundle: Path, place: Path, engine: str, capsys: Shown) -> None:
    chosen = ("--engine", engine)
    plain, said = run(capsys, tiny_bundle, *chosen, "--system", SYSTEM)
    assert (said, plain["prefix_tokens"]) == ("", 0)
    first, said = run(capsys, tiny_bundle, *chosen, *USE)
    assert re.fullmatch(r"edge: kiosk\.prefix was missing; built in \d+\.\d s\n", said)
    second, said = run(capsys, tiny_bundle, *USE)
    assert said == ""
    assert second["engine"] == engine, "the file decides what auto is"
    for answer in (first, second):
        assert answer["token_ids"] == plain["token_ids"]
        tokens = read_prefix(place / "kiosk.prefix").num_tokens
        assert (answer["prefix_tokens"], answer["cached_tokens"]) == (tokens, tokens)
    _, said = run(capsys, tiny_bundle, "--system-file", "pirate.txt", "--prefix", "kiosk.prefix")
    assert re.fullmatch(r"edge: kiosk\.prefix holds another system message; built anew in \d+\.\d s\n", said)
    _, said = run(capsys, tiny_bundle, *chosen, *USE, "--speculate")
    assert "reproducible is False, expected True" in said
    assert re.search(r"; built anew in \d+\.\d s\n$", said)
    if engine == "onnx":  # no file is needed to choose an engine, or to start
        (place / "kiosk.prefix").write_bytes(b"")
        _, said = run(capsys, tiny_bundle, *USE, "--log-level", "info")
        assert said.count("built anew in") == 1
        assert cli.main(["run", str(tiny_bundle), "hi", "--prefix", "kiosk.prefix", "--engine", "onnx"]) == 1
        assert "or name its system message, too (--system-file)" in capsys.readouterr().err


def test_a_file_of_an_engine_that_is_not_there_decides_nothing(tiny_bundle: Path, place: Path, capsys: Shown) -> None:
    with edge.scripted_llm(edge.replies({"hi": "hello"})) as llm:
        llm.prefixes.save(llm.system_prefix(SYSTEM), place / "kiosk.prefix", system=SYSTEM)
    answer, said = run(capsys, tiny_bundle, *USE)
    assert answer["engine"] in ("onnx", "openvino")
    assert re.search(r"engine is scripted, expected .*; built anew in \d+\.\d s\n$", said)
    assert cli.main(["run", str(tiny_bundle), "hi", "--system-file", "guide.txt", "--prefix", "guide.txt"]) == 0
    assert re.match(
        r"edge: guide\.txt is not a prefix file; computed in \d+\.\d s, for this process alone, since it exists and is "
        r"not a prefix file\n$",
        capsys.readouterr().err,
    )
    assert (place / "guide.txt").read_text() == SYSTEM


def test_a_prefix_that_is_not_used_whole_is_said(
    tiny_bundle: Path, place: Path, capsys: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(capsys, tiny_bundle, *USE)
    conversation = [{"role": "system", "content": "You are a pirate."}]
    (place / "pirate.json").write_text(json.dumps(conversation))
    (place / "raw").mkdir()
    part = r"edge: the prompt has \d+ of the \d+ tokens of kiosk\.prefix in common, and the rest was computed; .*\n"
    asked = ["run", str(tiny_bundle), "hi", "--prefix", "kiosk.prefix", "--messages", "pirate.json"]
    for more in ([], ["--json"]):
        assert cli.main([*asked, "--max-new-tokens", "2", *more]) == 0
        assert re.fullmatch(part, capsys.readouterr().err)
    assert cli.main(["prefix", "build", str(tiny_bundle), "raw/kiosk.prefix", "--raw", "Once upon a time"]) == 0
    capsys.readouterr()
    for name, times in ("kiosk.prefix", 0), ("raw/kiosk.prefix", 1):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello\nand more\n")))
        assert cli.main(["chat", str(tiny_bundle), "--prefix", name, "--max-new-tokens", "2", "--no-history"]) == 0
        said = capsys.readouterr().err.replace("raw/", "")
        assert len(re.findall(part, said)) == times, "once, and not for each answer"


def test_requests_of_a_batch_start_from_it(
    tiny_bundle: Path, place: Path, capsys: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[edge.LLM] = []
    load = edge.load

    def loading(*given: object, **chosen: object) -> edge.LLM:
        loaded.append(load(*given, **chosen))  # type: ignore[arg-type]
        return loaded[-1]

    monkeypatch.setattr(edge, "load", loading, raising=False)
    body = {"messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "hi"}], "max_tokens": 4}
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    (place / "in.jsonl").write_text(json.dumps(line) + "\n")
    for said in ("edge: kiosk.prefix was missing; built in ", ""):
        assert cli.main(["batch", str(tiny_bundle), "in.jsonl", "out.jsonl", "--force", *USE]) == 0
        assert capsys.readouterr().err.startswith(said)
        assert loaded[-1].cache_stats.hit_tokens >= read_prefix(place / "kiosk.prefix").num_tokens


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--raw", "--system-file", "guide.txt"], "--system-file needs the chat template, which --raw leaves out"),
        (["--system", "x", "--system-file", "guide.txt"], "not allowed with argument --system"),
        (["--system-file", "empty.txt"], "empty.txt is empty; write the system message into it"),
        (["--system-file", "none.txt"], "none.txt cannot be read"),
        (["--messages", "pirate.json", "--system-file", "guide.txt"], "has a system message of its own"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_loaded(
    given: list[str], said: str, place: Path, capsys: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "empty.txt").write_text(" \n")
    (place / "pirate.json").write_text('[{"role": "system", "content": "You are a pirate."}]')
    monkeypatch.setattr("edge.api.load", lambda *_, **__: pytest.fail("loaded"))
    (place / "bundle").mkdir()
    try:
        code = cli.main(["run", "bundle", "hi", *given])
    except SystemExit as ended:
        code = int(str(ended.code))
    assert code in (1, 2)
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_show_tells_the_system_message(tiny_bundle: Path, place: Path, capsys: Shown) -> None:
    assert cli.main(["prefix", "build", str(tiny_bundle), "a.prefix", "--system", "You are kind.\nAlways."]) == 0
    assert cli.main(["prefix", "build", str(tiny_bundle), "b.prefix", "--raw", "Once upon a time"]) == 0
    capsys.readouterr()
    assert cli.main(["prefix", "show", "a.prefix"]) == 0
    assert capsys.readouterr().out.endswith("  system message:\n    You are kind.\n    Always.\n")
    assert cli.main(["prefix", "show", "b.prefix"]) == 0
    assert capsys.readouterr().out.endswith("  no system message: a text, or messages with a picture\n")
    assert (read_prefix(place / "a.prefix").system, read_prefix("b.prefix").system) == ("You are kind.\nAlways.", None)
