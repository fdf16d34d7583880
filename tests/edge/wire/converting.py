"""What tests of converted protocols share: answers in pieces, conversations in three forms, and bodies of any shape."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from hypothesis import strategies as st

from edge.runtime.chat import ChatTemplate
from edge.runtime.chunk import CallPiece, Chunk, FinishReason, Stats, StoppedBy
from edge.runtime.engines.scripted import STOP_IDS, TEMPLATE, ScriptedEngine, noise
from edge.runtime.engines.scripted import tokenizer_json as scripted_tokenizer
from edge.runtime.llm import LLM
from edge.runtime.tokenizer import Tokenizer

Body = dict[str, Any]
TEMPLATES = {
    "generic": TEMPLATE,
    "openai": (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% for call in m.tool_calls or [] %}"
        "[{{ call.id }} {{ call.function.name }} {{ call.function.arguments }}]{% endfor %}{{ m.tool_call_id }}"
        "{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
    "glm": (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.metadata }}\n{% for tool in m.tools or [] %}{{ tool | tojson }}"
        "{% endfor %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
}
PARAMETERS: Body = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL: Body = {
    "type": "function",
    "function": {"name": "weather", "description": "Tells the weather", "parameters": PARAMETERS},
}


@cache
def model(template: str) -> LLM:
    """A model that is only asked for prompts."""
    tokenizer = Tokenizer.from_text(scripted_tokenizer())
    engine = ScriptedEngine(noise(), max_context=4096)
    return LLM.from_engine(
        engine, tokenizer, template=ChatTemplate(TEMPLATES[template], tokenizer.markup), stop_ids=STOP_IDS
    )


@dataclass(frozen=True)
class Turn:
    """A question and what followed it, in no form yet."""

    question: tuple[str, ...]  # its parts
    said: str | None  # beside the calls
    calls: tuple[tuple[str, Body], ...]  # id and arguments
    results: tuple[str, ...]
    answer: str


TEXTS = st.text(st.sampled_from('ab <|>{}"\\\n北é😀'), min_size=1, max_size=8)
ARGUMENTS = st.dictionaries(st.sampled_from(["city", "北"]), TEXTS | st.integers() | st.booleans(), max_size=2)


@st.composite
def conversations(draw: st.DrawFn) -> list[Turn]:
    turns = list[Turn]()
    for number in range(draw(st.integers(1, 3))):
        arguments = draw(st.lists(ARGUMENTS, max_size=2))
        calls = tuple((f"call_{number}_{i}", found) for i, found in enumerate(arguments))
        turns.append(
            Turn(
                tuple(draw(st.lists(TEXTS, min_size=1, max_size=2))),
                draw(st.none() | TEXTS) if calls else None,
                calls,
                tuple(draw(TEXTS) for _ in calls),
                draw(TEXTS),
            )
        )
    return turns


def written(arguments: Body) -> str:
    return json.dumps(arguments, ensure_ascii=False)


def as_chat(system: str | None, turns: Sequence[Turn], question: str) -> list[Body]:
    messages: list[Body] = [] if system is None else [{"role": "system", "content": system}]
    for turn in turns:
        messages.append({"role": "user", "content": [{"type": "text", "text": part} for part in turn.question]})
        if turn.calls:
            calls = [
                {"id": id_, "type": "function", "function": {"name": "weather", "arguments": written(arguments)}}
                for id_, arguments in turn.calls
            ]
            messages.append({"role": "assistant", "content": turn.said, "tool_calls": calls})
            messages += [
                {"role": "tool", "tool_call_id": id_, "content": result}
                for (id_, _), result in zip(turn.calls, turn.results, strict=True)
            ]
        messages.append({"role": "assistant", "content": turn.answer})
    return [*messages, {"role": "user", "content": question}]


@st.composite
def answers_in_pieces(draw: st.DrawFn) -> list[Chunk]:
    """An answer as a stream gives it: thoughts, text, then calls, each in any pieces; the end may come alone."""
    chunks = [Chunk("", reasoning=text) for text in draw(st.lists(st.just("") | TEXTS, max_size=2))]
    chunks += [Chunk(text) for text in draw(st.lists(st.just("") | TEXTS, max_size=4))]
    for index in range(draw(st.integers(0, 2))):
        name = CallPiece(index, f"call_{index}", "weather")
        text = written(draw(ARGUMENTS))
        text = text[: draw(st.integers(0, len(text)) | st.just(len(text)))]
        cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=3)))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        calls = [name, *(CallPiece(index, name.id, "", piece) for piece in pieces)]
        while calls:
            count = draw(st.integers(1, len(calls)))
            chunks.append(Chunk("", calls=tuple(calls[:count])))
            calls = calls[count:]
    has_calls = any(chunk.calls for chunk in chunks)
    reasons: list[FinishReason] = ["length", "deadline", "tool_calls" if has_calls else "stop"]
    reason = draw(st.sampled_from(reasons))
    stopped = draw(st.sampled_from([StoppedBy(260), StoppedBy(text="END"), StoppedBy()])) if reason == "stop" else None
    stats = Stats(draw(st.integers(3, 9)), draw(st.integers(0, 3)), draw(st.integers(1, 9)), 1.0, 1.0)
    last = Chunk("", finish_reason=reason, stopped_by=stopped, stats=stats, token_ids=(1,))
    together = draw(st.booleans())
    if chunks and together:
        ended = chunks.pop()
        last = replace(ended, token_ids=(1,), finish_reason=reason, stopped_by=stopped, stats=stats)
    return [*chunks, last]


def strings_in(value: object) -> Iterator[str]:
    """All texts of a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from strings_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings_in(item)


_SCALARS = st.none() | st.booleans() | st.integers(-3, 9) | st.floats(allow_nan=False, allow_infinity=False)
_WORDS = st.sampled_from([
    "", "auto", "text", "user", "assistant", "tool", "message", "function", "function_call", "function_call_output",
    "reasoning", "input_text", "input_image", "output_text", "image", "tool_use", "tool_result", "any", "call_1", "{}",
    "json_schema", "object", "weather",
])  # fmt: skip
_KEYS = st.sampled_from([
    "type", "role", "content", "text", "name", "arguments", "call_id", "output", "id", "input", "tool_use_id", "format",
    "schema", "parameters", "input_schema", "x",
])  # fmt: skip
JSON = st.recursive(
    _SCALARS | _WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=10,
)
ITEMS = st.lists(st.dictionaries(_KEYS, JSON, max_size=5), max_size=3) | JSON
