"""Documents beside a question: what fits, what is said, and that an answer drafts from it."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from make_pdf import SIMPLE, make_pdf

import edge
from edge.commands.documents import add_documents, check_documents, read_documents, read_paths
from edge.documents import prompt_with
from edge.documents.room import ANSWER_TOKENS, Room, distinct
from edge.runtime.engines.scripted import END, Script
from edge.runtime.errors import ContextLengthError

PAGE = "\n".join(["Forty characters are in each of these ln."] * 10)


def llm_of(context: int = 4096) -> edge.LLM:
    return edge.scripted_llm(edge.replies({}), max_context=context)


def arguments(*files: Path, max_new_tokens: int | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_documents(parser)
    words = [word for file in files for word in ("--file", str(file))]
    return argparse.Namespace(**vars(parser.parse_args(words)), max_new_tokens=max_new_tokens)


def test_what_is_said_of_documents_that_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("x" * 1000)
    (tmp_path / "b.pdf").write_bytes(make_pdf(["One", None, "Two"]))
    documents = read_documents(arguments(tmp_path / "a.txt", tmp_path / "b.pdf"), llm_of(), "Why?")
    assert [document.text for document in documents] == ["x" * 1000, "One\n\nTwo"]
    tokens = [len(f"[File Name]\n{d.name}\n[File Content]\n{d.text}") for d in documents]  # bytes
    assert capsys.readouterr().err.splitlines() == [
        f"a.txt: {tokens[0]:,} of 4,096 tokens",
        f"b.pdf: 3 pages, {tokens[1] + 2:,} of 4,096 tokens",
        "edge: b.pdf: 1 of 3 pages without text that can be read (2); pictures and scans are not read",
    ]


def test_what_was_counted_is_what_is_asked(tmp_path: Path) -> None:
    """Where a token is a byte, to the token: the prompt that just fits is answered, and a byte more is refused."""
    path, small = tmp_path / "a.txt", tmp_path / "small.txt"
    small.write_text("small")
    question, context = "What is it?", 2000
    system = {"role": "system", "content": "Be brief."}

    def prompt_tokens(size: int) -> int:
        path.write_text("x" * size)
        documents = read_documents(arguments(small, path), llm_of(context), question, [system])
        message = {"role": "user", "content": prompt_with(documents, question)}
        return len(llm_of(context).encode_chat([system, message]))

    size = 1000
    size += context - ANSWER_TOKENS - prompt_tokens(size)
    assert prompt_tokens(size) == context - ANSWER_TOKENS
    with pytest.raises(ContextLengthError):
        prompt_tokens(size + 1)


def test_a_long_pdf_is_refused_after_the_pages_that_fill_the_context(tmp_path: Path) -> None:
    (tmp_path / "long.pdf").write_bytes(make_pdf([PAGE] * 3000, SIMPLE))
    with pytest.raises(ContextLengthError) as found:
        read_documents(arguments(tmp_path / "long.pdf"), llm_of(), "Why?")
    free = 4096 - ANSWER_TOKENS - len(llm_of().encode_chat([{"role": "user", "content": prompt_with([], "Why?")}])) - 68
    pages = free // (len(PAGE) + 2) + 1
    said = str(found.value)
    assert said.startswith("long.pdf does not fit: ")
    assert f"tokens with {pages} of its 3,000 pages read, and " in said
    assert said.endswith(
        "of the 4,096 tokens of context are free beside the rest of the prompt and an answer; give a shorter document "
        "or a part of it"
    )


def test_documents_share_the_room(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_text(name * 1500)
    assert len(read_paths([str(tmp_path / "a"), str(tmp_path / "b")], llm_of())) == 2
    with pytest.raises(ContextLengthError, match=r"^c does not fit: "):
        read_paths([str(tmp_path / name) for name in "abc"], llm_of())
    with pytest.raises(ContextLengthError, match=r"^b does not fit: "):
        read_paths([str(tmp_path / "b")], llm_of(), taken=3000)


@pytest.mark.parametrize(("longest", "kept"), [(None, ANSWER_TOKENS), (10, 10), (100_000, 1024)])
def test_an_answer_keeps_its_room(longest: int | None, kept: int, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x" * (4096 - kept - 100 - len("[File Name]\na\n[File Content]\n")))
    room = Room(llm_of(), 100, longest)
    room.read(tmp_path / "a")
    assert room.taken == 4096 - kept
    with pytest.raises(ContextLengthError):
        Room(llm_of(), 101, longest).read(tmp_path / "a")


def test_a_document_given_twice_is_read_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "link.txt").symlink_to("a.txt")
    documents = read_documents(
        arguments(tmp_path / "a.txt", tmp_path / "link.txt", tmp_path / "." / "a.txt"), llm_of(), "Why?"
    )
    assert [document.name for document in documents] == ["a.txt"]
    assert capsys.readouterr().err.splitlines()[1:] == ["edge: 2 files given more than once, read once"]


def test_documents_of_one_name_are_told_apart(tmp_path: Path) -> None:
    names = ["a.txt", "one/a.txt", "two/a.txt", "x/deep/b.txt", "y/deep/b.txt", "c.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    found = list(distinct([tmp_path / name for name in names]).values())
    assert found == [f"{tmp_path.name}/a.txt", "one/a.txt", "two/a.txt", "x/deep/b.txt", "y/deep/b.txt", "c.txt"]
    assert list(distinct([Path("loop\0")]).values()) == ["loop\ufffd"]


def copying(text: str) -> Script:
    """A script that answers everything with this text."""
    return edge.replies({}, text)


def test_an_answer_drafts_from_the_document(tmp_path: Path) -> None:
    """Next to all of a quotation is drafted, and taken; of a text that is not in the document, next to nothing."""
    quoted = "The pump must be switched off before the valve of the second tank is opened, whatever the gauge says."
    (tmp_path / "manual.pdf").write_bytes(make_pdf(["Some words before it.", quoted.replace(". ", ".\n"), "After."]))
    other = "Zebras jog quietly over my six frozen vineyards; but hawks glide down, puzzling the expert keeper Jim Q."

    def answered(answer: str, *files: Path) -> edge.Stats:
        llm = edge.scripted_llm(copying(answer), speculation=edge.SpeculationSettings())
        documents = read_documents(arguments(*files), llm, "Quote it.")
        message = {"role": "user", "content": prompt_with(documents, "Quote it.")}
        found = llm.chat([message]).answer()
        assert found.text == answer
        assert found.stats is not None
        return found.stats

    with_it = answered(quoted, tmp_path / "manual.pdf")
    assert with_it.accepted_tokens > 0.7 * len(quoted)
    assert answered(quoted).accepted_tokens < 0.2 * len(quoted)
    assert answered(other, tmp_path / "manual.pdf").accepted_tokens < 0.2 * len(other)


def test_a_draft_store_keeps_the_document(tmp_path: Path) -> None:
    """A later process that is not given the document drafts from it all the same."""
    quoted = "The pump must be switched off before the valve of the second tank is opened, whatever the gauge says."
    (tmp_path / "manual.txt").write_text(f"Words before it. {quoted} Words after it.")
    store = tmp_path / "drafts"

    def opened(text: str) -> edge.LLM:
        scripted = edge.ScriptedEngine(copying(text))
        made = llm_of()
        return edge.LLM.from_engine(
            scripted, made.tokenizer, template=made.template, stop_ids=[END],
            speculation=edge.SpeculationSettings(), draft_store=store,
        )  # fmt: skip

    given = arguments(tmp_path / "manual.txt")
    given.draft_store = str(store)
    with opened("Something else.") as llm:
        read_documents(given, llm, "Why?")
    with opened(quoted) as llm:
        stats = llm.chat([{"role": "user", "content": "Quote it."}]).answer().stats
    assert stats is not None
    assert stats.accepted_tokens > 0.7 * len(quoted)


def test_what_is_expected_of_documents_is_of_their_size(tmp_path: Path) -> None:
    """For the choice of an engine, before there is a tokenizer."""
    (tmp_path / "a.txt").write_text("word " * 4000)
    (tmp_path / "b.pdf").write_bytes(make_pdf([PAGE] * 7))
    assert check_documents(arguments()) == 0
    assert check_documents(arguments(tmp_path / "a.txt")) == 5000
    assert check_documents(arguments(tmp_path / "a.txt", tmp_path / "b.pdf")) == 8500
