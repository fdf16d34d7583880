"""Pictures in a chat: they wait for the next message, stay with it, and never cost somebody the conversation."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path

import pytest

from edge.runtime.engines.scripted import END, Script
from edge.runtime.errors import PictureError, PromptError
from edge.runtime.llm import LLM
from edge.runtime.messages import ImagePart, Message, TextPart
from edge.runtime.session import ChatSession
from edge.runtime.settings import generation_settings
from edge.runtime.vision.progress import PictureProgress
from edge.terminal.answering import Answering
from edge.terminal.chat import Chat
from edge.terminal.completing import completed
from edge.terminal.conversation_file import read_conversation
from edge.terminal.looking import Looking, looking_text
from edge.terminal.pictures import BLIND
from edge.terminal.status_line import StatusLine
from tests.edge.chat.test_chat import Lines, read_documents, same
from tests.runtime.vision.seeing import FakePictures, seeing_llm, spec_with_ids

JPEG = b"\xff\xd8\xff a file"
Shown = pytest.CaptureFixture[str]


def always_yes() -> Script:
    """A letter and the end, in turn: behind a picture, blocks do not tell what they hold."""
    ids = itertools.cycle([ord("Y"), END])
    return lambda _: next(ids)


@pytest.fixture
def cat(tmp_path: Path) -> Path:
    path = tmp_path / "cat.png"
    path.write_bytes(b"a cat")
    return path


@pytest.fixture
def pictures() -> FakePictures:
    return FakePictures(spec_with_ids("glm4v"))


@pytest.fixture
def llm(pictures: FakePictures) -> Iterator[LLM]:
    with seeing_llm(pictures, always_yes()) as model:
        yield model


def chat(
    llm: LLM,
    reader: Lines,
    *,
    first: Sequence[ImagePart] = (),
    save: Path | None = None,
    load: Sequence[Message] = (),
) -> tuple[ChatSession, int]:
    session = ChatSession(llm)
    answering = Answering(session, generation_settings(), same)
    made = Chat(session, reader, answering, options={}, read_documents=read_documents, pictures=first, save=save)
    if load:
        made.load(load)
    return session, made.run()


def question(path: Path, words: str) -> Message:
    return Message("user", (ImagePart(path), TextPart(words)))


def test_a_picture_goes_with_the_next_message(llm: LLM, pictures: FakePictures, cat: Path, capsys: Shown) -> None:
    session, code = chat(llm, Lines(f"/image {cat}", "What is it?", "Sure?"))
    out, error = capsys.readouterr()
    assert (code, out) == (0, "Y\nY\n")
    assert error == "cat.png: 24 x 16, 6 tokens\n(it goes with your next message)\n"
    answer = Message("assistant", "Y")
    assert session.messages == [question(cat, "What is it?"), answer, Message("user", "Sure?"), answer]
    assert len(pictures.runs) == 1


def test_documents_and_pictures_wait_together(llm: LLM, cat: Path, capsys: Shown) -> None:
    session, _ = chat(llm, Lines(f"/image {cat}", "/file b.txt", f"/image '{cat}'", "/undo", "/undo", "Hm?", "/undo"))
    assert capsys.readouterr().err.splitlines()[-3:] == [
        "(cat.png is not sent)",
        "(b.txt is not sent)",
        "(forgotten; 0 questions left)",
    ]
    assert session.messages == []


def test_other_words_keep_the_picture(llm: LLM, pictures: FakePictures, cat: Path, capsys: Shown) -> None:
    session, _ = chat(llm, Lines("What is it?", "/edit Which animal?", "/retry"), first=[ImagePart(cat)])
    assert capsys.readouterr().out == "Y\n" * 3
    assert session.messages == [question(cat, "Which animal?"), Message("assistant", "Y")]
    assert len(pictures.runs) == 1


def test_a_saved_conversation_keeps_the_path(
    llm: LLM, pictures: FakePictures, cat: Path, tmp_path: Path, capsys: Shown
) -> None:
    saved = tmp_path / "saved.json"
    session, _ = chat(llm, Lines(f"/image {cat}", "What is it?"), save=saved)
    loaded = read_conversation(saved)
    assert list(loaded) == session.messages
    again, _ = chat(llm, Lines("/edit And now?"), load=loaded)
    assert again.messages == [question(cat, "And now?"), Message("assistant", "Y")]
    capsys.readouterr()
    cat.unlink()
    pictures.open = _missing  # type: ignore[method-assign,assignment]
    chat(llm, Lines("Still there?"), load=loaded)
    out, error = capsys.readouterr()
    assert out == ""
    assert f"edge: {cat} is gone; put it back, or /undo the message that has it\n" in error
    assert json.loads(saved.read_text())[0]["content"][0] == {"type": "image", "path": str(cat)}


def test_a_path_is_whole_wherever_one_is(llm: LLM, cat: Path, monkeypatch: pytest.MonkeyPatch, capsys: Shown) -> None:
    monkeypatch.chdir(cat.parent)
    session, _ = chat(llm, Lines("/image cat.png", "What is it?"))
    assert session.messages[0] == question(cat, "What is it?")
    assert capsys.readouterr().out == "Y\n"


@pytest.mark.parametrize(("content", "said"), [(None, "none.png"), (b"broken", "this is no picture")])
def test_what_is_no_picture_is_refused_at_once(
    content: bytes | None, said: str, llm: LLM, tmp_path: Path, capsys: Shown, pictures: FakePictures
) -> None:
    path = tmp_path / "none.png"
    if content is None:
        pictures.open = _missing  # type: ignore[method-assign,assignment]
    else:
        path.write_bytes(content)
    session, _ = chat(llm, Lines(f"/image {path}", "Hello"))
    out, error = capsys.readouterr()
    assert out == "Y\n"
    assert said in error
    assert session.messages[0] == Message("user", "Hello")


def _missing(part: ImagePart) -> None:
    raise PictureError(f"{part.path} cannot be read")


def test_a_model_takes_so_many_pictures_and_no_more(cat: Path, capsys: Shown) -> None:
    with seeing_llm(FakePictures(spec_with_ids("eva")), always_yes()) as llm:
        session, _ = chat(llm, Lines(f"/image {cat}", f"/image {cat}", "What is it?", f"/image {cat}"))
    refused = "edge: this model takes one picture in a conversation; /undo or /reset makes room for another"
    assert capsys.readouterr().err.splitlines().count(refused) == 2
    assert session.messages[0] == question(cat, "What is it?")


def test_a_model_of_text_says_so(cat: Path, capsys: Shown) -> None:
    from edge.api import scripted_llm

    with scripted_llm(always_yes()) as llm:
        chat(llm, Lines(f"/image {cat}"))
    assert capsys.readouterr().err == f"edge: {BLIND}\n"


def test_ctrl_c_while_a_picture_is_looked_at_keeps_all(
    llm: LLM, pictures: FakePictures, cat: Path, capsys: Shown
) -> None:
    """The conversation, and the picture that waits."""
    rows, times = pictures.rows, iter([True, False])

    def interrupted(picture: object, on_progress: object = None) -> object:
        if next(times):
            raise KeyboardInterrupt
        return rows(picture, on_progress)  # type: ignore[arg-type]

    pictures.rows = interrupted  # type: ignore[method-assign,assignment]
    session, code = chat(llm, Lines("Hello", f"/image {cat}", "What is it?", "Which animal?"))
    out, error = capsys.readouterr()
    assert (code, out) == (0, "Y\nY\n")
    assert error.endswith("\n(stopped)\n(what you added goes with your next message)\n")
    answer = Message("assistant", "Y")
    assert session.messages == [Message("user", "Hello"), answer, question(cat, "Which animal?"), answer]


def test_tab_completes_paths(cat: Path) -> None:
    assert completed(f"/image {cat.parent}/c") == (f"{cat.parent}/c", [str(cat)])
    assert "/image " in completed("/im")[1]


@pytest.mark.parametrize(
    ("progress", "told"),
    [
        (PictureProgress(0, 63, None), "looking at cat.png ..."),
        (PictureProgress(12, 63, 240.4), "looking at cat.png: layer 12 of 63, about 4 min left"),
        (PictureProgress(60, 63, 12.4), "looking at cat.png: layer 60 of 63, about 12 s left"),
        (PictureProgress(60, 63, None), "looking at cat.png: layer 60 of 63"),
    ],
)
def test_how_far_a_picture_is(progress: PictureProgress, told: str) -> None:
    assert looking_text("cat.png", progress) == told


def test_where_nothing_is_drawn_a_line_comes_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    error = StringIO()
    monkeypatch.setattr("sys.stderr", error)
    times = iter(range(0, 100_000, 25))
    looking = Looking(["a.png", "b.png"], StatusLine(same), lambda: next(times))
    looking(PictureProgress(3, 3, 0.0, kept=True))
    for done in range(4):
        looking(PictureProgress(done, 3, 100.0))
    assert error.getvalue() == "edge: looking at b.png: layer 2 of 3, about 2 min left\n"
    for _ in range(2):
        looking(PictureProgress(0, 3, None))
    assert error.getvalue().splitlines()[1:] == ["edge: looking at a picture ..."], "one that nobody named"


def test_pictures_of_other_programs_are_read_and_written(llm: LLM, tmp_path: Path, capsys: Shown) -> None:
    """OpenAI's data URLs; no other URL, and no mixture that would name files in the name of somebody else."""
    url = f"data:image/jpeg;base64,{base64.b64encode(JPEG).decode()}"
    parts = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": url}}]
    (tmp_path / "in.json").write_text(json.dumps([{"role": "user", "content": parts}]))
    loaded = read_conversation(tmp_path / "in.json")
    assert loaded == (Message("user", (TextPart("What?"), ImagePart(data=JPEG))),)
    session, _ = chat(llm, Lines("/retry"), load=loaded, save=tmp_path / "out.json")
    assert capsys.readouterr().out == "Y\n"
    assert list(read_conversation(tmp_path / "out.json")) == session.messages
    assert json.loads((tmp_path / "out.json").read_text())[0]["content"] == parts
    for other in ("https://example.org/a.png", "file:///etc/passwd", "data:image/png,abc"):
        parts = [parts[0], {"type": "image_url", "image_url": {"url": other}}]
        (tmp_path / "in.json").write_text(json.dumps([{"role": "user", "content": parts}]))
        with pytest.raises(PromptError, match=r"in\.json: messages\[0\]\.content\[1\]\.image_url"):
            read_conversation(tmp_path / "in.json")
