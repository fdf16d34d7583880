"""Whatever the pieces in which an answer arrives, its reasoning is found in it, and no half of a tag is ever shown."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.api import scripted_llm
from edge.runtime.chat import ChatTemplate
from edge.runtime.chunk import Chunk
from edge.runtime.engines.scripted import (
    ASSISTANT,
    END,
    STOP_IDS,
    TEMPLATE,
    ScriptedEngine,
    replies,
    tokenizer_json,
)
from edge.runtime.llm import LLM
from edge.runtime.messages import Message
from edge.runtime.session import ChatSession
from edge.runtime.thinking import ThinkingForm, ThinkingSplitter
from edge.runtime.tokenizer import Tokenizer

TAGS = ("<think>", "</think>", "<answer>", "</answer>", "<|begin_of_box|>", "<|end_of_box|>")
FORM = ThinkingForm.of(lambda tag: 1 if tag in TAGS else None)
OPENED = TEMPLATE.replace("<|assistant|>{% endif %}", "<|assistant|><think>{% endif %}")
HI = {"role": "user", "content": "Hi"}


def split(pieces: Iterable[str], form: ThinkingForm = FORM) -> tuple[str, str]:
    splitter = ThinkingSplitter(form)
    found = [*map(splitter.push, pieces), splitter.finish()]
    return "".join(one.reasoning for one in found), "".join(one.text for one in found)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("<think>a b</think>c", ("a b", "c")),
        (" \n<think>\na\n\nb\n</think>\n\nc\n", ("a\n\nb", "c\n")),
        ("<think></think>c", ("", "c")),
        ("<think>\n</think>", ("", "")),
        ("<think>a", ("a", "")),
        ("<think>a </thi", ("a </thi", "")),
        ("<think>a<think>b</think>c</think>", ("a<think>b", "c</think>")),
        ("<think>a</think><answer> 42 </answer>", ("a", "42 ")),
        ("<think>a</think> <answer>\nIt is <|begin_of_box|>42<|end_of_box|>.</answer>", ("a", "It is 42.")),
        ("<think>a</think><|begin_of_box|> 42<|end_of_box|>", ("a", "42")),
        ("<think>a</think>x <answer>y</answer>", ("a", "x <answer>y</answer>")),
        ("<|begin_of_box|>42<|end_of_box|>", ("", "42")),
        ("c <think>a</think>", ("", "c <think>a</think>")),
        ("<thinking>a</thinking>", ("", "<thinking>a</thinking>")),
        ("< think>a", ("", "< think>a")),
        ("<Think>a</Think>", ("", "<Think>a</Think>")),
        (" <thin", ("", " <thin")),
        ("<think>a</ think></thinks></think>c", ("a</ think></thinks>", "c")),
        ("\n", ("", "\n")),
        ("<think>a</think>\n", ("a", "")),
        ("<think>a</think><", ("a", "<")),
        ("", ("", "")),
    ],
)
def test_what_is_thought_and_what_is_answered(written: str, expected: tuple[str, str]) -> None:
    assert split([written]) == expected
    assert split(written) == expected, "character by character"


@given(st.data(), st.lists(st.sampled_from([*TAGS, "<", "</", "think>", "|", "a", " ", "\n", "🙂"]), max_size=10))
@settings(max_examples=300, deadline=None)
def test_the_pieces_make_no_difference(data: Any, parts: list[str]) -> None:
    written = "".join(parts)
    ends = sorted(data.draw(st.lists(st.integers(0, len(written)), max_size=6)))
    pieces = [written[a:b] for a, b in zip([0, *ends], [*ends, len(written)], strict=True)]
    form = data.draw(st.sampled_from([FORM, ThinkingForm(), ThinkingForm(begun=True), ThinkingForm(looks=True)]))
    assert split(pieces, form) == split([written], form)


def test_a_prompt_may_have_begun_the_thinking() -> None:
    begun = ThinkingForm(looks=True, begun=True)
    assert split(["\na</th", "ink>\n\nc"], begun) == ("a", "c")
    assert split("a", begun) == ("a", "")


def test_other_models_may_write_the_tags() -> None:
    other = ThinkingForm.of(lambda _: None)
    assert other == ThinkingForm()
    assert split(["<think>a", "</think>b<|begin_of_box|>"], other) == ("", "<think>a</think>b<|begin_of_box|>")


# --- In a conversation ------------------------------------------------------------------------------------------------


def thinker(
    answer: str | Sequence[str], *, special: bool = False, template: str = TEMPLATE, tags: Sequence[str] = TAGS
) -> LLM:
    """A scripted model with these answers in turn, whose tokenizer has tags as tokens. special: as special ones."""
    definition = json.loads(tokenizer_json())
    like = definition["added_tokens"][0]
    for i, tag in enumerate(tags, len(definition["added_tokens"])):
        definition["added_tokens"].append({**like, "id": 256 + i, "content": tag, "special": special})
    tokenizer = Tokenizer.from_text(json.dumps(definition))
    answers = [[*tokenizer.encode(one), END] for one in ([answer] if isinstance(answer, str) else answer)]

    def next_id(held: Sequence[int]) -> int:
        begin = max(i for i, key in enumerate(held) if key == ASSISTANT)
        ids = answers[sum(key == ASSISTANT for key in held) - 1]
        done = len(held) - begin - 1 - (template == OPENED)
        return ids[min(done, len(ids) - 1)]

    engine = ScriptedEngine(next_id, tokenizer.num_tokens)
    return LLM.from_engine(engine, tokenizer, template=ChatTemplate(template, tokenizer.markup), stop_ids=STOP_IDS)


WRITTEN = "<think>\nA greeting: 🙂.\n</think>\n<answer>\n<|begin_of_box|>Hello<|end_of_box|></answer>"


@pytest.mark.parametrize("special", [False, True])
def test_a_stream_and_a_whole_answer_tell_the_two_apart(special: bool) -> None:
    with thinker(WRITTEN, special=special) as llm:
        chunks = list(llm.chat([HI]))
        whole = llm.chat([HI]).answer()
        later = asyncio.run(_read(llm))
    for found in (chunks, later):
        assert "".join(chunk.reasoning for chunk in found) == whole.reasoning == "A greeting: 🙂."
        assert "".join(chunk.text for chunk in found) == whole.text == "Hello"
        assert found[-1].finish_reason == whole.finish_reason == "stop"
    assert whole.message == Message("assistant", "Hello")
    assert whole.token_ids == tuple(i for chunk in chunks for i in chunk.token_ids), "tokens of both"
    last_thought = max(i for i, chunk in enumerate(chunks) if chunk.reasoning)
    assert last_thought < min(i for i, chunk in enumerate(chunks) if chunk.text)


async def _read(llm: LLM) -> list[Chunk]:
    return [chunk async for chunk in llm.chat([HI])]


def test_a_model_without_the_tag_has_no_reasoning() -> None:
    with thinker(WRITTEN, tags=()) as llm:
        answer = llm.chat([HI]).answer()
    assert (answer.reasoning, answer.text) == ("", WRITTEN)


def test_text_that_is_not_a_conversation_is_left_alone() -> None:
    with thinker(WRITTEN) as llm:
        assert llm.generate([ASSISTANT]).answer().text == WRITTEN


@pytest.mark.parametrize("limit", range(1, 12))
def test_an_answer_may_end_within_its_thinking(limit: int) -> None:
    with thinker("<think>0123456789ab</think>Hello") as llm:
        answer = llm.chat([HI], max_new_tokens=limit).answer()
    assert (answer.reasoning, answer.text) == ("0123456789ab"[: limit - 1], "")
    assert answer.finish_reason == "length"
    assert answer.message == Message("assistant", "")


def test_a_stop_text_counts_in_both() -> None:
    with thinker("<think>one two</think>three four") as llm:
        thought = llm.chat([HI], stop=["two"]).answer()
        said = llm.chat([HI], stop=["four"]).answer()
    assert (thought.reasoning, thought.text, thought.finish_reason) == ("one", "", "stop")
    assert (said.reasoning, said.text, said.finish_reason) == ("one two", "three ", "stop")


def test_a_template_may_have_begun_it() -> None:
    with thinker("A greeting.\n</think>\n\nHello", template=OPENED) as llm:
        answer = llm.chat([HI]).answer()
    assert (answer.reasoning, answer.text) == ("A greeting.", "Hello")


def test_what_somebody_typed_begins_nothing() -> None:
    bare = "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"
    with scripted_llm(replies({}, otherwise="Hello")) as llm:
        other = LLM.from_engine(llm.engine, llm.tokenizer, template=ChatTemplate(bare, llm.tokenizer.markup))
        prompt = other._chats.prompts.prompt([{"role": "user", "content": "<think>"}])
        assert prompt.text.endswith("<think>")
        assert not other._chats._thinking_of(prompt, forced=False).begun
        opened = ChatTemplate(OPENED, llm.tokenizer.markup)
        other = LLM.from_engine(llm.engine, llm.tokenizer, template=opened)
        prompt = other._chats.prompts.prompt([HI])
        assert other._chats._thinking_of(prompt, forced=False).begun
        assert not other._chats._thinking_of(prompt, forced=True).begun, "its first token is the answer's"


def test_the_next_turn_reads_the_answer_again_and_nothing_before_it() -> None:
    """Its keys and values were computed behind the thinking, which is no part of the conversation any more."""
    with thinker(["<think>Well.</think>Hello", "<think>Hm.</think>Fine"]) as llm:
        session = ChatSession(llm)
        assert "".join(chunk.text for chunk in session.send("Hi")) == "Hello"
        assert session.messages == [Message("user", "Hi"), Message("assistant", "Hello")]
        first = llm.encode_chat([HI])
        chunks = list(session.send("How are you?"))
        stats = chunks[-1].stats
        assert stats is not None
        assert stats.cached_tokens == len(first)
        assert stats.prompt_tokens == len(first) + len("Hello|How are you?|")
        assert "".join(chunk.reasoning for chunk in chunks) == "Hm."


def test_a_call_of_a_tool_may_follow() -> None:
    tool = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
    glm = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.metadata }}\n{% for t in m.tools or [] %}{{ t }}{% endfor %}"
        "{{ m.content }}{% endfor %}<|assistant|>"
    )
    with thinker("<think>The clock.</think>\nnow\n{}", template=glm) as llm:
        answer = llm.chat([HI], tools=[tool]).answer()
    assert (answer.reasoning, answer.text, answer.finish_reason) == ("The clock.", "", "tool_calls")
    assert [(call.name, call.arguments) for call in answer.tool_calls] == [("now", "{}")]
