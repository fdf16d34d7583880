"""`edge batch` as a user has it: what it prints, and what a signal leaves."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge import api, cli
from edge.batch.batch import JOURNAL
from edge.commands import batch as command
from edge.runtime.engines.scripted import noise
from tests.edge.batch.jobs import COMPLETIONS, Body, line, many, message, write

ROOT = Path(__file__).parents[3]
BUNDLE = str(Path(__file__).parent)  # any folder: what is loaded is a scripted model


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.load", lambda *_, **__: api.scripted_llm(noise()), raising=False)


@pytest.mark.usefixtures("scripted")
def test_what_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    requests: list[Body | bytes] = [
        line("a", message("x", model="gpt-4o-mini")),
        line("b", message("x", model="some/where/scripted")),
        line("c", {"messages": []}),
    ]
    given = [str(write(tmp_path / "in.jsonl", requests)), str(tmp_path / "out.jsonl")]
    assert cli.main(["batch", BUNDLE, *given]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(f"{given[1]}: 3 lines, ")
    assert shown.err.splitlines() == [
        f"edge: requests name 'gpt-4o-mini'; {BUNDLE} has answered them",
        "edge: 1 of 3 lines have an error; look for a status_code other than 200",
    ]
    assert cli.main(["batch", BUNDLE, *given]) == 0
    assert capsys.readouterr().out == f"{given[1]} is complete; there is nothing to do\n"
    assert cli.main(["batch", BUNDLE, *given, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert cli.main(["batch", BUNDLE, *given, "--json", "--force"]) == 0
    anew = json.loads(capsys.readouterr().out)
    assert (again.pop("resumed"), anew.pop("resumed")) == (3, 0)
    for found in (again, anew):
        assert found.pop("seconds") >= 0 <= found.pop("load_s")
    assert again == anew
    assert (again["out"], again["lines"], again["failed"]) == (given[1], 3, 1)


@pytest.mark.usefixtures("scripted")
def test_a_log_gets_a_line_now_and_then(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "SAY_EVERY_S", 0)
    given = [str(write(tmp_path / "in.jsonl", [line("a"), line("b")])), str(tmp_path / "out.jsonl")]
    assert cli.main(["batch", BUNDLE, *given]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "edge: 0/2 lines", "edge: 1/2 lines, 0 s left", "edge: 2/2 lines, 0 s left"
    ]  # fmt: skip


def test_what_is_refused_before_a_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"{}")))
    requests, out = str(write(tmp_path / "in.jsonl", [line("a")])), str(tmp_path / "out.jsonl")
    for arguments, code, said in (
        (["-", out], 1, "save them to a file first"),
        ([requests, requests], 1, "holds the requests"),
        ([requests, out, "--concurrency", "0"], 2, "--concurrency is 0, expected a whole number from 1 to 256"),
        ([requests, str(tmp_path)], 1, "is not a file"),
        ([str(write(tmp_path / "two.jsonl", [line("a"), line("a")])), out], 1, "lines 1 and 2 have the same custom_id"),
    ):
        assert cli.main(["batch", BUNDLE, *arguments]) == code
        assert said in capsys.readouterr().err


def test_ctrl_c_says_what_is_kept(tiny_bundle: Path, tmp_path: Path) -> None:
    requests = write(tmp_path / "in.jsonl", [line(f"{i}", message(f"Hello {i}", max_tokens=60)) for i in range(3000)])
    out = tmp_path / "out.jsonl"
    journal = tmp_path / f"out.jsonl{JOURNAL}"
    arguments = [sys.executable, "-m", "edge", "batch", str(tiny_bundle), str(requests), str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (journal.exists() and journal.stat().st_size > 1000):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == cli.INTERRUPTED
    assert said.splitlines() == [
        f"edge: what is done is kept in {journal}; the same command resumes there", "edge: interrupted"
    ]  # fmt: skip
    assert not out.exists()


def test_requests_of_every_kind_on_a_real_engine(tiny_bundle: Path, engine: str, tmp_path: Path) -> None:
    scored: Body = {"prompt": "The cat sat", "max_tokens": 0, "echo": True, "logprobs": 1}
    requests = write(tmp_path / "in.jsonl", [*many(30), line("scored", scored, COMPLETIONS)])
    for name, number in (("one", "1"), ("two", "20")):
        arguments = ["--engine", engine, "--reproducible", "--concurrency", number, "--json"]
        assert cli.main(["batch", str(tiny_bundle), str(requests), str(tmp_path / name), *arguments]) == 0
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    (choice,) = json.loads((tmp_path / "one").read_text().splitlines()[-1])["response"]["body"]["choices"]
    first, *rest = choice["logprobs"]["token_logprobs"]
    assert (choice["text"], first) == ("The cat sat", None)
    assert rest
    assert max(rest) < 0
