"""Conversations with pictures on a scripted engine, whose blocks hold a number for each token's id, place and row.

Its next token depends on every number before it, so an answer from what another picture left would be another answer.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.runtime.constraint import Constraint
from edge.runtime.engines.scripted import Script, noise
from edge.runtime.errors import CacheFullError, ContextLengthError, PictureError, PromptError, SettingsError
from edge.runtime.llm import LLM
from edge.runtime.messages import ImagePart, Message, TextPart
from edge.runtime.session import ChatSession
from edge.runtime.vision.progress import PictureProgress
from edge.runtime.vision.spec import TowerKind
from tests.runtime.vision.seeing import FakePictures, seeing_llm, spec_with_ids, tokenizer_with_pictures

CAT, DOG = b"a file of a cat", b"a file of a dog"
ROWS = {"eva": 18, "glm4v": 6}  # of 8 x 8 patches in squares of 2 x 2, and two ends; of 4 x 6 patches
OPTIONS: dict[str, Any] = {"max_new_tokens": 6, "temperature": 0, "logprobs": 2}
KINDS: tuple[TowerKind, ...] = ("eva", "glm4v")


def question(data: bytes, words: str = "What is it?") -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image", "data": data}, {"type": "text", "text": words}]}


@pytest.fixture(params=KINDS)
def pictures(request: pytest.FixtureRequest) -> FakePictures:
    return FakePictures(spec_with_ids(request.param))


@pytest.fixture
def llm(pictures: FakePictures) -> Iterator[LLM]:
    with seeing_llm(pictures) as found:
        yield found


def letters(held: Sequence[int]) -> int:
    """A letter that depends on every token so far: what is remembered of an answer is also what its text encodes to."""
    return 97 + zlib.crc32(np.array(held, np.int64).tobytes()) % 26


def fresh(kind: TowerKind, messages: list[Any], script: Script | None = None) -> tuple[Any, ...]:
    """What a model answers that has seen nothing before."""
    with seeing_llm(FakePictures(spec_with_ids(kind)), script) as llm:
        found = llm.chat(messages, **OPTIONS).answer()
        assert found.stats is not None
        assert found.stats.cached_tokens == 0
        return found.token_ids, found.logprobs


def answered(llm: LLM, messages: list[Any]) -> tuple[tuple[Any, ...], int]:
    """Ids with log-probabilities, and how many tokens were not computed."""
    found = llm.chat(messages, **OPTIONS).answer()
    assert found.stats is not None
    return (found.token_ids, found.logprobs), found.stats.cached_tokens


def test_two_pictures_with_the_same_words_share_nothing_behind_the_first(llm: LLM, pictures: FakePictures) -> None:
    kind = pictures.spec.kind
    cat, _ = answered(llm, [question(CAT)])
    dog, cached = answered(llm, [question(DOG)])
    text = len(llm.encode_chat([question(DOG)])) - ROWS[kind]
    assert cached <= 3 < text, "the role and, of GLM-4.1V, the token that begins a picture"
    assert cat == fresh(kind, [question(CAT)])
    assert dog == fresh(kind, [question(DOG)])
    assert cat != dog


def test_the_same_picture_again_takes_no_tower_and_no_rows(llm: LLM, pictures: FakePictures) -> None:
    kind = pictures.spec.kind
    answered(llm, [question(CAT)])
    again, cached = answered(llm, [question(CAT, "What else is there?")])
    assert len(pictures.runs) == 1
    assert cached >= ROWS[kind]
    assert again == fresh(kind, [question(CAT, "What else is there?")])


def test_what_answers_were_made_of_is_found_again_whatever_the_picture(pictures: FakePictures) -> None:
    """The memory holds ids of text alone; another picture under the same words is another conversation all the same."""
    kind = pictures.spec.kind
    with seeing_llm(pictures, letters, reproducible=False) as llm:
        first = llm.chat([question(CAT)], **OPTIONS)
        first.answer()
        later = [first.message, {"role": "user", "content": "Why?"}]
        seen, cached = answered(llm, [question(CAT), *later])
        known = len(llm.encode_chat([question(CAT)])) + len(first.message.text)
        assert cached >= known - 1, "the last token's keys are computed when something follows it"
        other, _ = answered(llm, [question(DOG), *later])
    assert seen == fresh(kind, [question(CAT), *later], letters)
    assert other == fresh(kind, [question(DOG), *later], letters)


def test_ids_of_calls_differ_with_the_picture(llm: LLM) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    answering, prompt = llm._chats.answering, llm._chats.prompts.prompt
    streams = [
        answering(prompt([question(data)], [tool]), None, llm._settings({}))[1].__closure__ for data in (CAT, CAT, DOG)
    ]
    digests = [next(c.cell_contents for c in cells or () if isinstance(c.cell_contents, str)) for cells in streams]
    assert digests[0] == digests[1] != digests[2]


def test_on_picture_is_told_before_the_answer_begins_and_can_end_it(llm: LLM, pictures: FakePictures) -> None:
    told: list[PictureProgress] = []
    stream = llm.chat([question(CAT)], on_picture=told.append, **OPTIONS)
    assert [news.done for news in told] == list(range(pictures.spec.num_layers + 1))
    stream.close()

    class Leaves(Exception):
        pass

    def leave(_news: PictureProgress) -> None:
        raise Leaves

    with pytest.raises(Leaves):
        llm.generate([question(DOG)], on_picture=leave)
    assert llm.stats.running == llm.stats.waiting == 0
    assert llm.generate([question(DOG)], **OPTIONS).answer().token_ids == fresh(pictures.spec.kind, [question(DOG)])[0]


def test_what_is_wrong_is_told_before_the_tower_runs(pictures: FakePictures) -> None:
    rows = ROWS[pictures.spec.kind]
    with seeing_llm(pictures, max_context=24 if rows == 18 else 12) as llm:
        count = len(llm.encode_chat([question(CAT)]))
        with pytest.raises(ContextLengthError, match=f"has {count} tokens, {rows} of them of pictures and the context"):
            llm.chat([question(CAT)])
    with seeing_llm(pictures, embedding_size=None) as llm, pytest.raises(PictureError, match="takes no pictures"):
        llm.chat([question(CAT)])
    with seeing_llm(pictures) as llm, pytest.raises(SettingsError):
        llm.chat([question(CAT)], constraint=Constraint.json_schema({"type": "no such type"}))
    with seeing_llm(pictures, max_prompt=5) as llm, pytest.raises(ContextLengthError, match="of them of pictures"):
        llm.chat([question(CAT)])
    assert not pictures.runs
    assert pictures.closed


def test_a_picture_that_is_pinned_takes_no_tower_where_its_rows_are_lost(llm: LLM, pictures: FakePictures) -> None:
    kind = pictures.spec.kind
    pictures.keeps = False
    begin = [{"role": "user", "content": [{"type": "image", "data": CAT}]}]
    pinned = llm.prefixes.pin(begin)
    assert pinned >= ROWS[kind]
    llm.clear_cache()
    found, cached = answered(llm, [question(CAT)])
    assert len(pictures.runs) == 1
    assert cached == pinned
    assert found == fresh(kind, [question(CAT)])


@pytest.mark.parametrize("rows_kept", [True, False])
def test_a_saved_picture_is_used_by_a_later_process(pictures: FakePictures, tmp_path: Path, rows_kept: bool) -> None:
    """Whether or not its rows are still there; another picture under the same words is computed from the first row."""
    kind, file = pictures.spec.kind, tmp_path / "kiosk.prefix"
    begin = [Message("user", (ImagePart(data=CAT),))]
    with seeing_llm(pictures) as llm:
        saved = llm.prefixes.save(begin, file)
        assert saved.num_tokens >= ROWS[kind]
    later = FakePictures(pictures.spec)
    if rows_kept:
        later.memory = pictures.memory
    with seeing_llm(later) as llm:
        used = llm.prefixes.use(file, messages=begin)
        assert (used.note, used.num_tokens) == ("", saved.num_tokens)
        cat, cached = answered(llm, [question(CAT)])
        assert cached == saved.num_tokens
        assert not later.runs, "neither to open the file nor to answer"
        assert cat == fresh(kind, [question(CAT)])
        dog, cached = answered(llm, [question(DOG)])
        assert cached < ROWS[kind]
        assert dog == fresh(kind, [question(DOG)])
        assert len(later.runs) == 1
        other = llm.prefixes.use(file, messages=[Message("user", (ImagePart(data=DOG),))])
        assert "holds something else; built anew" in other.note


def check(llm: LLM) -> None:
    llm.generate([5, 5], max_new_tokens=1).answer()
    llm._scheduler.prefixes.check_integrity()
    llm.engine.pool.check_integrity(llm._scheduler.held_blocks())


def test_what_a_prompt_without_rows_starts_from_outlives_what_is_only_kept(pictures: FakePictures) -> None:
    """Of what three answers before it leave in 12 blocks of 8 tokens, the picture's blocks are the oldest."""
    kind = pictures.spec.kind
    with seeing_llm(pictures, block_size=8, num_blocks=12, max_running=1) as llm:
        answered(llm, [question(CAT)])
        pictures.keeps, pictures.memory = False, {}
        others = [llm.generate([number] * 30, max_new_tokens=2) for number in range(3)]
        stream = llm.chat([question(CAT, "And now?")], **OPTIONS)
        for other in others:
            other.answer()
        assert stream.answer().token_ids == fresh(kind, [question(CAT, "And now?")])[0]
        assert len(pictures.runs) == 1
        del stream
        check(llm)


def test_what_a_prompt_without_rows_starts_from_gives_way_to_an_answer(pictures: FakePictures) -> None:
    """An answer that would end early for it gets the room, and the prompt fails in words; asked again, it has rows."""
    with seeing_llm(pictures, block_size=8, num_blocks=12, max_running=1) as llm:
        answered(llm, [question(CAT)])
        pictures.keeps, pictures.memory = False, {}
        long = llm.generate([7] * 30, max_new_tokens=60, ignore_stop_ids=True)
        stream = llm.chat([question(CAT, "And now?")], **OPTIONS)
        assert len(long.answer().token_ids) == 60
        with pytest.raises(CacheFullError, match="let go of the picture"):
            stream.answer()
        assert answered(llm, [question(CAT)])[0] == fresh(pictures.spec.kind, [question(CAT)])
        check(llm)


def test_rows_that_are_lost_with_the_whole_cache_are_an_error_in_words(llm: LLM, pictures: FakePictures) -> None:
    answered(llm, [question(CAT)])
    pictures.keeps, pictures.memory = False, {}
    stream = llm.chat([question(CAT, "And now?")], **OPTIONS)
    llm._runner.between_steps(lambda: llm._scheduler._start_over(list(llm._scheduler._live.values())))
    with pytest.raises(CacheFullError, match=r"had to let go of the picture.*; ask again"):
        stream.answer()
    assert answered(llm, [question(CAT, "And now?")])[0] == fresh(pictures.spec.kind, [question(CAT, "And now?")])


def test_likelihoods_of_a_prompt_need_its_rows(llm: LLM, pictures: FakePictures) -> None:
    pictures.keeps = False
    answered(llm, [question(CAT)])
    count = len(llm.encode_chat([question(CAT)]))
    found = llm.chat([question(CAT)], prompt_logprobs=0, max_new_tokens=1).answer()
    assert len(found.prompt_logprobs) == count
    assert len(pictures.runs) == 2


def test_steps_of_others_go_on_while_the_tower_runs(llm: LLM, pictures: FakePictures) -> None:
    other = llm.generate("Hello", max_new_tokens=20, ignore_stop_ids=True)
    inside, go_on = threading.Event(), threading.Event()

    def wait(_news: PictureProgress) -> None:
        inside.set()
        assert go_on.wait(30)

    thread = threading.Thread(target=lambda: llm.chat([question(CAT)], on_picture=wait, **OPTIONS).answer())
    thread.start()
    assert inside.wait(30)
    assert len(other.answer().token_ids) == 20
    go_on.set()
    thread.join(30)
    assert len(pictures.runs) == 1


def test_a_prefix_is_one_of_two_things(llm: LLM, tmp_path: Path) -> None:
    for given in ({}, {"system": "a", "messages": [question(CAT)]}):
        with pytest.raises(PromptError, match="either a system message or messages"):
            llm.prefixes.use(tmp_path / "a.prefix", **given)  # type: ignore[arg-type]


def test_a_prefix_of_messages_ends_where_a_question_may_go_on(llm: LLM, pictures: FakePictures) -> None:
    begin = llm._chats.prompts.prefix([question(CAT, "Where is")]).spliced
    whole = llm.encode_chat([question(CAT, "Where is the exit?")])
    assert whole[: len(begin.ids)] == begin.ids
    assert len(begin.ids) >= begin.end == begin.places[0].stop
    answer = Message("assistant", "There.")
    longer = llm._chats.prompts.prefix([question(CAT, "Where is it?"), answer]).spliced
    next_question = llm.encode_chat([question(CAT, "Where is it?"), answer, {"role": "user", "content": "Here?"}])
    assert next_question[: len(longer.ids)] == longer.ids
    llm.prefixes.warm([question(CAT, "Where is")])
    assert answered(llm, [question(CAT, "Where is the exit?")])[1] == len(begin.ids)
    assert len(pictures.runs) == 1


def test_a_batch_answers_what_it_can(llm: LLM) -> None:
    good, bad = llm.generate_batch([[question(CAT)], [question(b"broken")]], max_new_tokens=2)
    assert good.error is None
    assert isinstance(bad.error, PictureError)


def test_samples_of_one_prompt_run_the_tower_once(llm: LLM, pictures: FakePictures) -> None:
    pictures.keeps = False
    llm.sample([question(CAT)], 3, max_new_tokens=2, seed=1)
    assert len(pictures.runs) == 1


class TestSession:
    def test_a_conversation_goes_on_behind_its_picture(self, pictures: FakePictures, tmp_path: Path) -> None:
        file = tmp_path / "cat.png"
        file.write_bytes(CAT)
        with seeing_llm(pictures) as llm:
            session = ChatSession(llm)
            list(session.send([{"type": "image", "path": str(file)}, TextPart("What?")], **OPTIONS))  # type: ignore[list-item]
            assert session.messages[0].pictures == (ImagePart(file),)
            *_, last = session.send("Why?", **OPTIONS)
            assert last.stats is not None
            assert last.stats.cached_tokens >= ROWS[pictures.spec.kind]
            list(session.retry(**OPTIONS))
            list(session.edit([ImagePart(file), TextPart("Where?")] if pictures.spec.max_pictures == 0 else "Where?"))
            assert session.undo()
            assert session.undo()
            assert session.messages == []
            list(session.send([ImagePart(data=DOG)], **OPTIONS))
            assert len(pictures.runs) == 2
            told = [message.to_dict() for message in session.messages]
            other = ChatSession(llm)
            other.load(told)
            assert other.messages == session.messages

    def test_a_refused_picture_leaves_no_trace(self, llm: LLM) -> None:
        session = ChatSession(llm)
        with pytest.raises(PictureError):
            session.send([ImagePart(data=b"broken")])
        with pytest.raises(PictureError):
            session.send([ImagePart(data=b"broken"), TextPart("a")])
        assert session.messages == []

    def test_turns_are_dropped_with_their_pictures(self) -> None:
        pictures = FakePictures(spec_with_ids("glm4v"))
        with seeing_llm(pictures, max_context=96) as llm:
            session = ChatSession(llm, context_policy="drop-oldest")
            for number in range(4):
                list(session.send([ImagePart(data=b"%d" % number), TextPart("What is to be seen?")], max_new_tokens=4))
            assert session.dropped_messages > 0
            assert len(session.messages[0].pictures) == 1
            assert session.messages[-2].pictures == (ImagePart(data=b"3"),)


def test_a_text_model_has_no_pictures() -> None:
    tokenizer = tokenizer_with_pictures()
    from edge.runtime.engines.scripted import ScriptedEngine

    with LLM.from_engine(ScriptedEngine(noise(vocab_size=264), 264), tokenizer) as llm:
        assert llm.pictures is None
