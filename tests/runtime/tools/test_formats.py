"""Calls as GLM-4 writes them, from its template to its answer and back; likewise for a model that knows no tools."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from edge.api import scripted_llm
from edge.runtime.chat import ChatTemplate
from edge.runtime.chunk import Answer
from edge.runtime.constraint_masks import Constraints
from edge.runtime.engines.scripted import ScriptedEngine, replies
from edge.runtime.errors import SettingsError
from edge.runtime.extras import install_command
from edge.runtime.llm import LLM
from edge.runtime.messages import Message, ToolCall
from edge.runtime.tokenizer import Tokenizer
from tests.runtime.tools.languages import LANGUAGES

BLOCK = 16  # tokens of the scripted engine's cache
ASSISTANT, USER, OBSERVATION, END = 151337, 151336, 151338, 151329
CITY = {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]}
WEATHER = {"type": "function", "function": {"name": "get_current_weather", "parameters": CITY}}
ASK = {"role": "user", "content": "北京天气?"}


class Scripted:
    """GLM-4-9B's tokenizer and template over an engine that writes what it is told."""

    def __init__(self, shared: Path) -> None:
        self.tokenizer = Tokenizer(shared / "glm4-tokenizer" / "tokenizer.json")
        self.answer: list[int] = []
        source = (shared / "chat-templates" / "glm-4-9b-chat.jinja").read_text(encoding="utf-8")
        engine = ScriptedEngine(
            self._next, self.tokenizer.num_tokens, num_blocks=4096, max_context=32768, reproducible=False
        )
        template = ChatTemplate(source, self.tokenizer.markup)
        self.llm = LLM.from_engine(engine, self.tokenizer, template=template, stop_ids=(END, USER, OBSERVATION))

    def _next(self, held: Sequence[int]) -> int:
        begin = max((i for i, token_id in enumerate(held) if token_id == ASSISTANT), default=0)
        told = len(held) - begin - 1
        return self.answer[min(told, len(self.answer) - 1)]

    def says(self, text: str, stop_id: int) -> None:
        self.answer = [*self.tokenizer.encode(text, parse_special=False), stop_id]


@pytest.fixture(scope="module")
def glm(shared: Path) -> Iterator[Scripted]:
    scripted = Scripted(shared)
    with scripted.llm:
        yield scripted


def test_the_format_is_read_off_the_template(glm: Scripted, demo_llm: LLM) -> None:
    assert glm.llm.tool_format.name == "glm-4-9b"
    assert glm.llm.tool_format.native == {"python", "simple_browser", "cogview"}
    assert (demo_llm.tool_format.name, demo_llm.tool_format.native) == ("generic", frozenset())
    of_0414 = ChatTemplate("{% if tools %}{{ tools }}{% endif %}{% for m in messages %}{{ m.metadata }}{% endfor %}")
    assert of_0414.convention.tool_format.name == "glm-4-0414"
    others = ChatTemplate("{{ tools }}{% for m in messages %}{{ m.tool_calls }}{% endfor %}")
    assert (others.convention.tool_format.name, others.convention.tool_format.calls) == ("none", False)


def test_text_begins_without_the_newline_of_the_template(glm: Scripted) -> None:
    glm.says("\n你好👋！", USER)
    answer = glm.llm.chat([ASK], tools=[WEATHER]).answer()
    assert (answer.text, answer.tool_calls, answer.finish_reason) == ("你好👋！", (), "stop")


CALLS: list[tuple[list[Any], str, ToolCall]] = [
    ([WEATHER], 'get_current_weather\n{"location": "北京"}', ToolCall("get_current_weather", '{"location": "北京"}')),
    (
        [WEATHER],
        'get_current_weather\n{"location": "a } \\" b"}',
        ToolCall("get_current_weather", '{"location": "a } \\" b"}'),
    ),
    ([{"type": "python"}], "python\nprint(1)\nx = '}'", ToolCall("python", '{"code": "print(1)\\nx = \'}\'"}')),
    (
        [{"type": "simple_browser"}],
        'simple_browser\nsearch("今天 新闻", recency_days=30)',
        ToolCall("simple_browser", '{"input": "search(\\"今天 新闻\\", recency_days=30)"}'),
    ),
    ([{"type": "cogview"}], "cogview\nA cat in the sun", ToolCall("cogview", '{"input": "A cat in the sun"}')),
]


@pytest.mark.parametrize(("tools", "written", "call"), CALLS, ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("held", [True, False])
def test_a_call_goes_out_and_comes_back(
    glm: Scripted, tools: list[Any], written: str, call: ToolCall, held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the model wrote is a call; replayed with its result, the prompt holds the same text and the same ids."""
    if not held:
        monkeypatch.setattr(Constraints, "available", False)
    glm.says(written, OBSERVATION)
    glm.llm.clear_cache()
    answer = glm.llm.chat([ASK], tools=tools).answer()
    assert (answer.finish_reason, answer.text) == ("tool_calls", "")
    (found,) = answer.tool_calls
    assert (found.name, found.arguments) == (call.name, call.arguments)
    assert found.id.startswith("call_")
    later: list[Any] = [ASK, answer.message, {"role": "tool", "tool_call_id": found.id, "content": "23°C"}]
    prompt = glm.llm.render([ASK], tools=tools)
    assert glm.llm.render(later, tools=tools) == f"{prompt}{written}<|observation|>\n23°C<|assistant|>"
    glm.says("\n23 度。", USER)
    stats = glm.llm.chat(later, tools=tools).answer().stats
    assert stats is not None
    assert stats.cached_tokens >= len(glm.tokenizer.encode(prompt + written)) - 1


def test_calls_replayed_by_others_find_the_cache_too(glm: Scripted) -> None:
    """A client may write the arguments again in its own way; the ids that were produced stay."""
    glm.llm.clear_cache()
    glm.answer = [i for c in 'get_current_weather\n{"location": "xyz"}' for i in glm.tokenizer.encode(c)] + [
        OBSERVATION
    ]
    messages = [{"role": "user", "content": "xyz?"}]
    answer = glm.llm.chat(messages, tools=[WEATHER], tool_choice="none").answer()
    assert answer.tool_calls == (), "with none, an answer is not read as a call"
    # Without a grammar, so that the odd spelling is possible.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Constraints, "available", False)
        answer = glm.llm.chat([*messages, {"role": "user", "content": "again"}], tools=[WEATHER]).answer()
    (call,) = answer.tool_calls
    replayed = {
        "role": "assistant",
        "tool_calls": [{"id": call.id, "function": {"name": call.name, "arguments": '{"location":"xyz"}'}}],
    }
    result = {"role": "tool", "tool_call_id": call.id, "content": "fog"}
    ids = glm.llm.encode_chat([*messages, {"role": "user", "content": "again"}, replayed, result], tools=[WEATHER])
    assert any(ids[i : i + len(answer.token_ids) - 1] == list(answer.token_ids[:-1]) for i in range(len(ids)))


@pytest.mark.parametrize("said", LANGUAGES)
def test_every_language_survives_template_tokenizer_cache_and_streaming(glm: Scripted, said: str) -> None:
    """Asked and answered in a language, twice: what is streamed is what was written, and the second turn is cached."""
    question, answer = {"role": "user", "content": said}, f"{said} 👩‍👩‍👧 {said[::-1]}"
    glm.says(f"\n{answer}", USER)
    chunks = list(glm.llm.chat([question], tools=[WEATHER]))
    assert "".join(chunk.text for chunk in chunks) == answer
    assert all("\ufffd" not in chunk.text for chunk in chunks)
    conversation = [question, {"role": "assistant", "content": answer}, question]
    prompt = glm.llm.encode_chat(conversation, tools=[WEATHER])
    assert glm.tokenizer.decode(prompt).count(said) == 3
    fresh = glm.tokenizer.encode_marked(glm.llm.chat_template.render_marked(conversation, tools=[WEATHER]))
    assert prompt == fresh, "the script spells as the tokenizer does"
    stats = glm.llm.chat(conversation, tools=[WEATHER]).answer().stats
    assert stats is not None
    assert stats.cached_tokens >= len(glm.llm.encode_chat(conversation[:2], tools=[WEATHER])) - 1 - BLOCK


def test_a_call_that_is_cut_says_length(glm: Scripted) -> None:
    glm.says('get_current_weather\n{"location": "北京"}', OBSERVATION)
    answer = glm.llm.chat([ASK], tools=[WEATHER], max_new_tokens=6).answer()
    assert answer.finish_reason == "length"
    assert answer.tool_calls[0].name == "get_current_weather"
    assert '{"location": "北京"}'.startswith(answer.tool_calls[0].arguments)


def test_the_choice_does_not_change_the_prompt(glm: Scripted) -> None:
    glm.says('get_current_weather\n{"location": "x"}', OBSERVATION)
    glm.llm.chat([ASK], tools=[WEATHER]).answer()
    for choice in ("none", "required", "get_current_weather"):
        stats = glm.llm.chat([ASK], tools=[WEATHER], tool_choice=choice).answer().stats
        assert stats is not None
        assert stats.cached_tokens == stats.prompt_tokens - 1


def test_n_answers_and_their_calls(glm: Scripted) -> None:
    glm.says('get_current_weather\n{"location": "x"}', OBSERVATION)
    answers = [stream.answer() for stream in glm.llm.chat_samples([ASK], 3, tools=[WEATHER])]
    assert [answer.tool_calls[0].arguments for answer in answers] == ['{"location": "x"}'] * 3


def test_without_llguidance_a_call_cannot_be_required(glm: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Constraints, "available", False)
    with pytest.raises(SettingsError, match=re.escape(install_command("grammar"))) as caught:
        glm.llm.chat([ASK], tools=[WEATHER], tool_choice="required")
    assert caught.value.param == "tool_choice"


def test_a_form_that_is_not_read_leaves_calls_as_text() -> None:
    template = ChatTemplate("{{ tools }}{% for m in messages %}{{ m.content }}{{ m.tool_calls }}{% endfor %}")
    tokenizer = scripted_llm(replies({})).tokenizer
    engine = ScriptedEngine(lambda _: 260)
    with LLM.from_engine(engine, tokenizer, template=template, stop_ids=[260]) as llm:
        assert llm.chat([ASK], tools=[WEATHER]).answer().finish_reason == "stop"
        with pytest.raises(SettingsError, match="form of its own"):
            llm.chat([ASK], tools=[WEATHER], tool_choice="required")


def asked(llm: LLM, *more: Any, **options: Any) -> Answer:
    return llm.chat(
        [{"role": "user", "content": "What is the weather in Paris?"}, *more], tools=[WEATHER], **options
    ).answer()


def test_a_model_that_knows_no_tools_can_use_them(demo_llm: LLM) -> None:
    """The demo model, held to a call; the result is told in the user's words, and nothing is computed twice."""
    first = asked(demo_llm, tool_choice="required", max_new_tokens=40)
    (call,) = first.tool_calls
    assert (first.finish_reason, call.name) == ("tool_calls", "get_current_weather")
    assert "Paris" in json.loads(call.arguments)["location"]
    result = {"role": "tool", "tool_call_id": call.id, "content": "21 degrees"}
    rendered = demo_llm.render([{"role": "user", "content": "x"}, first.message, result], tools=[WEATHER])
    assert f"get_current_weather\n{call.arguments}<|im_end|>" in rendered
    assert "user\nResult of get_current_weather:\n21 degrees<|im_end|>" in rendered
    second = asked(demo_llm, first.message, result, tool_choice="none", max_new_tokens=20)
    assert first.stats is not None
    assert second.stats is not None
    assert second.stats.cached_tokens >= first.stats.prompt_tokens + first.stats.new_tokens - 1


def test_the_callers_system_message_stays_before_the_tools(demo_llm: LLM) -> None:
    system = Message("system", "You are a guide.")
    rendered = demo_llm.render([system, Message("user", "Hi")], tools=[WEATHER])
    assert rendered.startswith("<|im_start|>system\nYou are a guide.\n\n# Tools\n")
    assert rendered.count("<|im_start|>system") == 1
    assert '"name": "get_current_weather"' in rendered
