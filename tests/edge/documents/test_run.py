"""`edge run --file` as a user has it: real processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from make_pdf import make_pdf

from edge.documents import Document, prompt_with
from edge.runtime.llm import LLM


def run(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge", "run", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def report(tmp_path: Path) -> Path:
    (tmp_path / "report.pdf").write_bytes(make_pdf(["The first page.", "第二页。", None]))
    return tmp_path / "report.pdf"


def test_the_prompt_is_the_official_layout(tiny_bundle: Path, report: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("# Notes\n")
    few = ("--max-new-tokens", "4", "--temperature", "0", "--json")
    done = run(tiny_bundle, "Why?", "--file", report, "--file", tmp_path / "notes.md", "--system", "Be brief.", *few)
    assert done.returncode == 0, done.stderr
    documents = [Document("report.pdf", "The first page.\n\n第二页。"), Document("notes.md", "# Notes\n")]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": prompt_with(documents, "Why?")},
    ]
    with LLM(tiny_bundle) as llm:
        expected = llm.chat(messages, max_new_tokens=4, temperature=0).answer()
    answer = json.loads(done.stdout)
    assert answer["token_ids"] == list(expected.token_ids)
    assert expected.stats is not None
    assert answer["prompt_tokens"] == expected.stats.prompt_tokens
    lines = done.stderr.splitlines()
    assert lines[0].startswith("report.pdf: 3 pages, ")
    assert lines[1].startswith("edge: report.pdf: 1 of 3 pages without text that can be read (3); ")
    assert lines[2].startswith("notes.md: ")
    assert len(lines) == 3


def test_what_cannot_be_read_is_said_before_a_model_is_loaded(report: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"\0")
    (tmp_path / "no-bundle").mkdir()
    for name, said in (
        ("nothing.pdf", "cannot be read (No such file or directory); give a file of txt, md, html, pdf or docx"),
        ("", "is not an ordinary file; give a file of txt, md, html, pdf or docx"),
    ):
        done = run(tmp_path / "no-bundle", "Why?", "--file", report, "--file", tmp_path / name)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("edge: ")
        assert done.stderr.endswith(f"{said}\n")
        assert done.stderr.count("\n") == 1
    assert run(tmp_path / "no-bundle", "Why?", "--file=").returncode == 2


def test_raw_prompts_have_no_place_for_documents(tiny_bundle: Path, report: Path) -> None:
    done = run(tiny_bundle, "Why?", "--raw", "--file", report)
    assert (done.returncode, done.stderr) == (
        2,
        "edge: --file needs the chat template, which --raw leaves out; give one of the two\n",
    )


def test_a_document_that_does_not_fit(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "long.pdf").write_bytes(make_pdf(["Words and more words. " * 20] * 1000))
    done = run(tiny_bundle, "Why?", "--file", tmp_path / "long.pdf")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("edge: long.pdf does not fit: ")
    assert " of its 1,000 pages read, and " in done.stderr
    assert done.stderr.count("\n") == 1
