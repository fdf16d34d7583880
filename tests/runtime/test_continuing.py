"""Answers that continue the last message: the prompt ends where its text does, and only what is new is answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.api import scripted_llm
from edge.runtime.chat import ChatTemplate
from edge.runtime.engines.scripted import SPECIAL, TEMPLATE, replies, tokenizer_json
from edge.runtime.errors import PromptError, SettingsError
from edge.runtime.llm import LLM
from edge.runtime.markup import ESCAPE, GUARD, MARK, mark_text, mark_token
from edge.runtime.messages import Message
from edge.runtime.tokenizer import Tokenizer
from tests.runtime.test_chat_shapes import SHAPES

HELLO = {"role": "user", "content": "Hello"}
TOKENIZER = Tokenizer.from_text(tokenizer_json())
WEATHER: dict[str, Any] = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
NAMES: dict[str, str | list[str]] = {"bos_token": "<s>", "eos_token": "</s>"}


def begun(text: str) -> list[dict[str, str]]:
    return [HELLO, {"role": "assistant", "content": text}]


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if "tojson(indent" not in SHAPES[shape]])
def test_public_templates(shape: str) -> None:
    """As transformers has it, and what a rendered conversation is up to the end of the text."""
    from transformers.utils.chat_template_utils import render_jinja_template

    template = ChatTemplate(SHAPES[shape], named_tokens=NAMES)
    for text in ("Well", "The answer\nis 7", "Hello", "a </s> b"):
        found = template.render(begun(text), continue_final_message=True)
        whole = template.render(begun(text), add_generation_prompt=False)
        assert found == whole[: whole.rindex(text) + len(text)]
        theirs, _ = render_jinja_template(
            [begun(text)], chat_template=SHAPES[shape], continue_final_message=True, **NAMES
        )
        assert [found] == theirs


@pytest.mark.parametrize(("content", "end"), [("m.content", "x \n "), ("m.content | trim", "x")])
@pytest.mark.parametrize("after", ["", " ", "</s>", "\n"])
def test_blanks_at_the_end_are_the_templates_choice(content: str, end: str, after: str) -> None:
    template = ChatTemplate("{% for m in messages %}[{{ " + content + " }}" + after + "{% endfor %}")
    assert template.render(begun("x \n "), continue_final_message=True).endswith(f"[{end}")


TEXTS = st.lists(
    st.sampled_from(
        [*SPECIAL, "<|us", "er|>", GUARD, ESCAPE, MARK, f"{ESCAPE}.", "\u2002\u2003", " ", "Hello", "ü", "|>"]
    )
    | st.text(max_size=3),
    max_size=6,
).map("".join)


@given(text=TEXTS)
def test_ids_are_those_of_the_conversation_cut_after_the_text(text: str) -> None:
    llm = scripted_llm(replies({}))
    template = ChatTemplate(TEMPLATE + "{{ '<|endoftext|>' }}", TOKENIZER.markup)
    whole = template.render_marked(begun(text), add_generation_prompt=False)
    assert whole.endswith(mark_text(text) + mark_token(SPECIAL[-1]))
    found = llm.encode_chat(begun(text), continue_final_message=True)
    expected = [257, *b"Hello", 258, *text.encode()]
    assert found == expected
    assert TOKENIZER.encode_marked(whole)[:-1] == expected


def test_glm4(shared: Path) -> None:
    """Its texts begin after a newline, and a tag of the next turn does not follow."""
    folder = next(path for path in shared.rglob("glm-4-9b-chat.jinja")).parent
    tokenizer = Tokenizer(shared / "glm4-tokenizer" / "tokenizer.json")
    template = ChatTemplate((folder / "glm-4-9b-chat.jinja").read_text(encoding="utf-8"), tokenizer.markup)
    found = template.render_marked(begun("Sure, <|user|> is"), continue_final_message=True)
    ids = tokenizer.encode_marked(found)
    start = tokenizer.encode("[gMASK]<sop><|user|>\nHello<|assistant|>")
    assert ids == [*start, *tokenizer.encode("\nSure, <|user|> is", parse_special=False)]
    assert template.render(begun(""), continue_final_message=True).endswith("Hello<|assistant|>\n")


ANSWER = "Grüße 😀, and a good day to you"


@pytest.fixture
def llm() -> LLM:
    return scripted_llm(replies({"Hello": ANSWER}))


def test_a_cut_answer_goes_on_where_it_ended(llm: LLM) -> None:
    """What was cut off plus what follows is the answer without a limit; nothing is computed twice."""
    for limit in range(1, len(ANSWER.encode())):
        cut = llm.chat([HELLO], max_new_tokens=limit).answer()
        if "\ufffd" in cut.text:  # half a character
            continue
        rest = llm.chat(begun(cut.text), continue_final_message=True).answer()
        assert cut.text + rest.text == ANSWER
        assert rest.finish_reason == "stop"
        assert rest.stats is not None
        assert rest.stats.cached_tokens >= len("|Hello|") + limit - 1
        assert rest.message == Message("assistant", rest.text)
        stream = llm.chat(begun(cut.text), continue_final_message=True)
        assert "".join(chunk.text for chunk in stream) == rest.text


def test_the_next_turn_starts_from_the_ids_of_both_parts() -> None:
    """Ids as they were produced: with a tokenizer of merges, text alone would give others."""
    llm = scripted_llm(replies({}), reproducible=False)  # otherwise, nothing is remembered
    prompts = llm._chats.prompts
    prompt = prompts.prompt(begun("Hel"), continue_final_message=True)
    odd = [*b"lo ", *b"you"]
    prompts.remember(prompt, "lo you", odd, Message("assistant", "lo you"))
    assert len(prompt.memory) == 1
    turns = [*begun("Hello you"), {"role": "user", "content": "More"}]
    assert llm.encode_chat(turns)[: len(prompt.ids) + len(odd)] == [*prompt.ids, *odd]
    trimming = LLM.from_engine(
        llm.engine, llm.tokenizer, template=ChatTemplate(TEMPLATE.replace("content", "content|trim"), TOKENIZER.markup)
    )
    prompt = trimming._chats.prompts.prompt(begun("Hel "), continue_final_message=True)
    trimming._chats.prompts.remember(prompt, "lo", [*b"lo"], Message("assistant", "lo"))
    assert len(prompt.memory) == 0, "the template writes the two parts with a blank between them, and they had none"


def test_white_space_and_names_of_tools_at_its_beginning_are_text() -> None:
    llm = scripted_llm(replies({"Hello": "I call weather\n{}"}))
    for text in ("I call", "I call "):
        answer = llm.chat(begun(text), tools=[WEATHER], continue_final_message=True).answer()
        assert (text + answer.text, answer.tool_calls) == ("I call weather\n{}", ())


def test_what_cannot_be_continued(llm: LLM) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    refused: list[tuple[Any, str]] = [
        ([HELLO], "messages[0].role"),
        ([HELLO, {"role": "assistant", "content": "x", "tool_calls": [call]}], "messages[1].tool_calls"),
        ([HELLO, {"role": "system", "content": "x"}], "messages[1].role"),
    ]
    for messages, param in refused:
        for method in (llm.chat, llm.render, llm.encode_chat):
            with pytest.raises(PromptError) as found:
                method(messages, continue_final_message=True)
            assert found.value.param == param
    with pytest.raises(SettingsError, match="tool_choice demands a call"):
        llm.chat(begun("x"), tools=[WEATHER], tool_choice="required", continue_final_message=True)
    silent = ChatTemplate("{{ messages[0].content }}")
    with pytest.raises(PromptError, match="does not write the last message's text"):
        silent.render(begun("x"), continue_final_message=True)
