"""What commands do to a conversation, over a scripted model."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import pytest

import edge
from edge.documents import Document
from edge.runtime.errors import DocumentError
from edge.runtime.llm import LLM
from edge.runtime.session import ChatSession
from edge.runtime.settings import generation_settings
from edge.terminal.answering import Answering
from edge.terminal.chat import Chat
from edge.terminal.conversation_file import read_conversation

Shown = pytest.CaptureFixture[str]
REPLIES = {"Hello": "Hello to you", "Who?": "Me.", "So?": "So.", "def f():\n    pass": "A function."}


class Lines:
    """A reader of given lines. defaults: what was offered to be edited; questions: what was asked."""

    def __init__(self, *lines: str, is_terminal: bool = True, says: bool = False) -> None:
        self.lines = deque(lines)
        self.is_terminal = self.edits = is_terminal
        self.says = says
        self.defaults: list[str] = []
        self.questions: list[str] = []

    def read(self, default: str = "") -> str:
        if default:
            self.defaults.append(default)
        if not self.lines:
            raise EOFError
        return self.lines.popleft()

    def confirmed(self, question: str) -> bool:
        self.questions.append(question)
        return self.says

    def put(self, line: str | None) -> None:
        raise AssertionError(line)


@pytest.fixture
def llm() -> Iterator[LLM]:
    with edge.scripted_llm(edge.replies(REPLIES, otherwise="?")) as model:
        yield model


def read_documents(path: str, taken: int) -> Sequence[Document]:
    if "slow" in path:
        raise KeyboardInterrupt
    if "none" in path:
        raise DocumentError(f"{path}: no such file; give a document")
    return [Document(Path(path).name, f"text of {path}, {taken} taken")]


def same(stream: TextIO) -> TextIO:
    return stream


def chat(
    llm: LLM, reader: Lines, *, save: Path | None = None, own: Sequence[Path] = (), **options: object
) -> tuple[ChatSession, int]:
    session = ChatSession(llm, options.pop("system", None), context_policy=options.pop("policy", "error"))  # type: ignore[arg-type]
    answering = Answering(session, generation_settings(**options), same)  # type: ignore[arg-type]
    made = Chat(session, reader, answering, options=options, read_documents=read_documents, save=save, own=own)
    return session, made.run()


def contents(session: ChatSession) -> list[str]:
    return [message.text for message in session.messages]


def test_messages_are_answered(llm: LLM, capsys: Shown) -> None:
    session, code = chat(llm, Lines("Hello", "", "  ", "def f():\n    pass", "/exit", "Who?"))
    assert (code, capsys.readouterr()) == (0, ("Hello to you\nA function.\n", ""))
    assert contents(session) == ["Hello", "Hello to you", "def f():\n    pass", "A function."]


def test_retry_edit_undo_and_reset(llm: LLM, capsys: Shown) -> None:
    lines = Lines("Hello", "Who?", "/retry", "/edit So?", "/undo", "/undo", "/undo", "Who?", "/reset", "/retry")
    session, code = chat(llm, lines, system="Be brief.")
    out, error = capsys.readouterr()
    assert out == "Hello to you\nMe.\nMe.\nSo.\nMe.\n"
    assert error.splitlines() == [
        "(forgotten; 1 question left)",
        "(forgotten; 0 questions left)",
        "edge: there is nothing to undo",
        "edge: the conversation has no question yet; send one first",
    ]
    assert (code, contents(session)) == (0, ["Be brief."])


def test_editing_begins_with_the_last_message(llm: LLM, capsys: Shown) -> None:
    lines = Lines("def f():\n    pass", "/edit", "So?", "/edit", "")
    session, _ = chat(llm, lines)
    assert lines.defaults == ["def f():\n    pass", "So?"]
    assert contents(session) == ["So?", "So."]
    assert capsys.readouterr().err == "(nothing is changed)\n"


def test_a_reader_that_cannot_edit_needs_the_text(llm: LLM, capsys: Shown) -> None:
    assert chat(llm, Lines("Hello", "/edit", is_terminal=False))[1] == 1
    assert capsys.readouterr().err == "edge: /edit needs the new message after it\n"


def test_the_system_message(llm: LLM, capsys: Shown) -> None:
    lines = Lines("/system", "/system Be brief.\nAnd kind.", "Hello", "/system", "/system Be long.")
    session, _ = chat(llm, lines)
    assert contents(session) == ["Be long.", "Hello", "Hello to you"]
    assert capsys.readouterr().out == "no system message\nHello to you\nBe brief.\nAnd kind.\n"


def test_documents_go_with_the_next_message(llm: LLM, capsys: Shown) -> None:
    lines = Lines("Hello", "/file a b.txt", "/file none", "/file 'c.txt'", "/undo", "Who?", "So?")
    session, code = chat(llm, lines)
    taken = len(llm.encode_chat([{"role": "user", "content": "Hello"}])) + len("Hello to you") + 1
    question = contents(session)[2]
    assert question.startswith(f"[File Name]\na b.txt\n[File Content]\ntext of a b.txt, {taken} taken")
    assert question.endswith("\n1 files uploaded.\nWho?")
    assert contents(session)[4:] == ["So?", "So."]
    error = capsys.readouterr().err
    assert "edge: none: no such file; give a document\n" in error
    assert "(c.txt is not sent)" in error
    assert code == 0


def test_ctrl_c_anywhere_ends_what_is_done_and_not_the_chat(llm: LLM, capsys: Shown) -> None:
    session, code = chat(llm, Lines("Hello", "/file slow", "Who?"))
    assert contents(session) == ["Hello", "Hello to you", "Who?", "Me."]
    assert (code, capsys.readouterr().err) == (0, "(stopped)\n")
    with pytest.raises(KeyboardInterrupt):
        chat(llm, Lines("/file slow", is_terminal=False))


def test_an_edited_message_keeps_its_documents(llm: LLM) -> None:
    session, _ = chat(llm, Lines("/file a.txt", "Who?", "/edit So?"))
    assert len(session.messages) == 2
    assert contents(session)[0].endswith("1 files uploaded.\nSo?")


def test_a_conversation_is_saved_and_continued(llm: LLM, tmp_path: Path, capsys: Shown) -> None:
    path = tmp_path / "my chat.json"
    session, _ = chat(
        llm, Lines("/save x.json", "Hello", f"/save {path}", "Who?", f'/save "{path}"'), system="Be brief."
    )
    assert read_conversation(path) == tuple(session.messages)
    again, _ = chat(llm, Lines("So?", f"/load {path}", "So?", f"/save {path}"))
    assert contents(again) == ["Be brief.", "Hello", "Hello to you", "Who?", "Me.", "So?", "So."]
    assert read_conversation(path) == tuple(again.messages)
    assert [value["role"] for value in json.loads(path.read_text())][:2] == ["system", "user"]
    assert "there is nothing to save" in capsys.readouterr().err


def test_another_conversation_is_asked_for(llm: LLM, tmp_path: Path, capsys: Shown) -> None:
    path = tmp_path / "a.json"
    chat(llm, Lines("Hello", f"/save {path}"))
    before = path.read_bytes()
    no = Lines("Who?", f"/save {path}")
    chat(llm, no)
    assert no.questions == [f"{path} is a saved conversation; write over it?"]
    assert path.read_bytes() == before
    assert chat(llm, Lines("Who?", f"/save {path}", is_terminal=False))[1] == 1
    assert path.read_bytes() == before
    yes = Lines("Who?", f"/save {path}", f"/save {path}", says=True)
    session, _ = chat(llm, yes)
    assert len(yes.questions) == 1
    assert read_conversation(path) == tuple(session.messages)


@pytest.mark.parametrize("says", [True, False])
def test_files_of_others_stay(llm: LLM, tmp_path: Path, capsys: Shown, says: bool) -> None:
    """Whatever somebody says, and whoever names it."""
    path = tmp_path / "notes"
    path.write_bytes(b"precious")
    chat(llm, Lines("Hello", f"/save {path}", f"/load {path}", says=says))
    chat(llm, Lines("Hello", says=says), save=path, own=[path])
    assert path.read_bytes() == b"precious"
    assert capsys.readouterr().err.count("exists and is not a saved conversation; choose another name") == 2


def test_saving_after_each_answer(llm: LLM, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    lines = Lines("Hello", "Who?")
    seen: list[int] = []
    read = lines.read

    def counting(default: str = "") -> str:
        seen.append(len(read_conversation(path)) if path.exists() else 0)
        return read(default)

    lines.read = counting  # type: ignore[method-assign]
    chat(llm, lines, save=path)
    assert seen == [0, 2, 4]


@pytest.mark.parametrize("content", [b"{}", b"[", b'[{"role": "user"}]', b"\xff"])
def test_an_odd_file_leaves_the_conversation_as_it_is(llm: LLM, tmp_path: Path, content: bytes, capsys: Shown) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    session, code = chat(llm, Lines("Hello", f"/load {path}", "/load none.json", "Who?", is_terminal=False))
    assert contents(session) == ["Hello", "Hello to you", "Who?", "Me."]
    error = capsys.readouterr().err.splitlines()
    assert (code, len(error)) == (1, 2)
    assert all(line.startswith("edge: ") for line in error)


def test_a_question_that_waits_in_a_file_is_answered(llm: LLM, tmp_path: Path, capsys: Shown) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"role": "user", "content": "Who?"}]')
    session, _ = chat(llm, Lines(f"/load {path}", "/retry"))
    assert contents(session) == ["Who?", "Me."]
    assert "/retry gives one" in capsys.readouterr().err


def test_why_an_answer_was_cut(llm: LLM, capsys: Shown) -> None:
    chat(llm, Lines("Hello"), max_new_tokens=5)
    assert capsys.readouterr() == ("Hello\n", "(cut at 5 tokens; --max-new-tokens allows more)\n")
    chat(llm, Lines("Hello"), deadline_s=1e-9)
    assert "(cut after 1e-09 s; --deadline gives it longer)" in capsys.readouterr().err
    with edge.scripted_llm(edge.replies({}, otherwise="word " * 99), max_context=64) as small:
        chat(small, Lines("Hello"))
        assert capsys.readouterr().err == "(cut: the context is full; /reset or /undo makes room)\n"
        chat(small, Lines("Hello"), policy="drop-oldest")
        assert capsys.readouterr().err == "(cut: the context is full)\n"


def test_a_full_context_is_refused_with_a_way_on(capsys: Shown) -> None:
    with edge.scripted_llm(edge.replies({}, otherwise="ok"), max_context=64) as small:
        long = "x" * 40
        session, code = chat(small, Lines(long, long, "/undo", "Who?", is_terminal=False))
        assert contents(session) == ["Who?", "ok"]
        assert code == 1
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("edge:")]
        assert line.endswith("; or /reset or /undo, or --context-policy drop-oldest")


def test_what_was_dropped_is_said(capsys: Shown) -> None:
    with edge.scripted_llm(edge.replies({}, otherwise="ok"), max_context=64) as small:
        session, code = chat(
            small, Lines("first " * 5, "second", "third " * 4, is_terminal=False), policy="drop-oldest"
        )
    assert code == 0
    said = capsys.readouterr().err
    assert said.startswith("edge: the context was full: the oldest ")
    assert "'first first first first first'" in said
    assert session.dropped_messages == int(said.split("the oldest ")[1].split()[0])


def test_figures(llm: LLM, capsys: Shown) -> None:
    session, _ = chat(llm, Lines("/stats", "Hello", "/stats", "Who?", "/stats", "/undo", "/stats", "/reset", "/stats"))
    lines = [line for line in capsys.readouterr().out.splitlines() if "from the cache" in line or "no answer" in line]
    assert lines[0] == lines[-1] == "no answer yet"
    counted = [int(line.rsplit(",", 1)[1].split()[0]) for line in lines[1:-1]]
    assert counted[0] < counted[1]
    # The stop id that ended the first answer belongs to what follows it.
    assert abs(counted[2] - counted[0]) <= 1
    assert session.num_turns == 0


def test_help_and_stop(llm: LLM, capsys: Shown) -> None:
    assert chat(llm, Lines("/help", "/?", "/stop", "/bye", "Hello"))[1] == 0
    out, error = capsys.readouterr()
    assert out.count("/system [TEXT]") == 2
    assert "Ctrl-C" in error


@pytest.mark.parametrize("is_terminal", [True, False])
def test_exit_codes(llm: LLM, capsys: Shown, is_terminal: bool) -> None:
    """A pipe's tells whether all went well; somebody at a terminal has seen it."""
    assert chat(llm, Lines("Hello", is_terminal=is_terminal))[1] == 0
    for line in ("/dance", "x" * 5000, "/load none.json", "/save", "/tools of mine"):
        assert chat(llm, Lines(line, "Hello", is_terminal=is_terminal))[1] == int(not is_terminal), line
    assert capsys.readouterr().out.count("Hello to you") == 6
