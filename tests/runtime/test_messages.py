"""Messages as clients send them, and the prompts that GLM-4's template makes of them, written out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.runtime.chat import ChatTemplate
from edge.runtime.errors import PromptError
from edge.runtime.messages import Message, TextPart, ToolCall, messages_from

# What glm-4-9b-chat's template writes before the tools; the last line of each function's description.
TOOLS_BLOCK = (
    "<|system|>\n你是一个名为 ChatGLM 的人工智能助手。你是基于智谱AI训练的语言模型 GLM-4 模型开发的，"
    "你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n# 可用工具"
)
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
WEATHER_BLOCK = (
    '\n## weather\n\n{\n    "name": "weather",\n    "parameters": {\n        "type": "object"\n    }\n}\n'
    "在调用上述函数时，请使用 Json 格式表示调用的参数。"
)
USER = {"role": "user", "content": "北京天气?"}


def call(name: str, arguments: str, call_id: str = "call_1") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def calling(*calls: dict[str, Any], content: Any = None) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": list(calls)}


def result(content: Any, call_id: str = "call_1") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def text(*parts: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": part} for part in parts]


# name -> (messages, tools, what follows [gMASK]<sop> up to the generation prompt)
CONVERSATIONS: dict[str, tuple[list[Any], list[Any], str]] = {
    "content in parts": ([{"role": "user", "content": text("Hel", "lo")}], [], "<|user|>\nHello"),
    "parts of other clients": (
        [
            {"role": "user", "content": [{"type": "input_text", "text": "a", "cache_control": {"type": "ephemeral"}}]},
            {"role": "assistant", "content": [{"type": "output_text", "text": "b", "annotations": []}]},
            USER,
        ],
        [],
        "<|user|>\na<|assistant|>\nb<|user|>\n北京天气?",
    ),
    "no parts": ([{"role": "system", "content": []}, USER], [], "<|user|>\n北京天气?"),
    "developer": ([{"role": "developer", "content": "Brief."}, USER], [], "<|system|>\nBrief.<|user|>\n北京天气?"),
    "system null": ([{"role": "system", "content": None}, USER], [], "<|user|>\n北京天气?"),
    "name": ([{"role": "user", "name": "Bob", "content": "Hi"}], [], "<|user|>\nHi"),
    "an answer as it was replied": (
        [
            USER,
            {"role": "assistant", "content": "23°C", "refusal": None, "audio": None, "annotations": [],
             "function_call": None, "tool_calls": None},
            {"role": "user", "content": "Thanks"},
        ],
        [],
        "<|user|>\n北京天气?<|assistant|>\n23°C<|user|>\nThanks",
    ),
    "refusal": (
        [USER, {"role": "assistant", "content": None, "refusal": "I won't."}, {"role": "user", "content": "Why?"}],
        [],
        "<|user|>\n北京天气?<|assistant|>\nI won't.<|user|>\nWhy?",
    ),
    "an answer of several lines": (
        [USER, {"role": "assistant", "content": "one\n{two}\n\nthree"}, {"role": "user", "content": "\n x "}],
        [],
        "<|user|>\n北京天气?<|assistant|>\none\n{two}\n\nthree<|user|>\n\n x ",
    ),
    "tools without a system message": ([USER], [WEATHER], TOOLS_BLOCK + WEATHER_BLOCK + "<|user|>\n北京天气?"),
    "tools beside a system message": (
        [{"role": "system", "content": "Be brief."}, USER],
        [WEATHER],
        TOOLS_BLOCK + WEATHER_BLOCK + "<|system|>\nBe brief.<|user|>\n北京天气?",
    ),
    "tools beside a developer message in parts": (
        [{"role": "developer", "content": text("Be ", "brief.")}, USER],
        [WEATHER],
        TOOLS_BLOCK + WEATHER_BLOCK + "<|system|>\nBe brief.<|user|>\n北京天气?",
    ),
    "one round": (
        [USER, calling(call("weather", '{"city":"\\u5317\\u4eac"}')), result("23°C")],
        [WEATHER],
        TOOLS_BLOCK + WEATHER_BLOCK + '<|user|>\n北京天气?<|assistant|>weather\n{"city": "北京"}<|observation|>\n23°C',
    ),
    "two rounds": (
        [
            USER,
            calling(call("weather", '{"city": "北京"}', "a")),
            result("23°C", "a"),
            calling(call("weather", '{"city": "上海", "days": [1, 2.5]}', "b"), content=""),
            result(text("25", "°C"), "b"),
            {"role": "assistant", "content": "北京 23°C，上海 25°C。"},
            {"role": "user", "content": "谢谢"},
        ],
        [],
        '<|user|>\n北京天气?<|assistant|>weather\n{"city": "北京"}<|observation|>\n23°C'
        '<|assistant|>weather\n{"city": "上海", "days": [1, 2.5]}<|observation|>\n25°C'
        "<|assistant|>\n北京 23°C，上海 25°C。<|user|>\n谢谢",
    ),
    "text beside a call": (
        [USER, calling(call("weather", "{}"), content="Let me look.\nOne moment."), result("23°C")],
        [],
        "<|user|>\n北京天气?<|assistant|>\nLet me look.\nOne moment.<|assistant|>weather\n{}<|observation|>\n23°C",
    ),
    "several calls and results": (
        [
            USER,
            calling(call("weather", '{"city":"A"}', "a"), call("clock", "", "b")),
            result("23°C", "a"),
            result("12:00", "b"),
        ],
        [],
        '<|user|>\n北京天气?<|assistant|>weather\n{"city": "A"}<|assistant|>clock\n{}'
        "<|observation|>\n23°C<|observation|>\n12:00",
    ),
    "a result without text": (
        [USER, calling(call("weather", "{}")), result(None)],
        [],
        "<|user|>\n北京天气?<|assistant|>weather\n{}<|observation|>\n",
    ),
    "broken arguments stay as they are": (
        [
            USER,
            calling(call("weather", '{"city": "北'), call("weather", '{"a":1,"a":2}'), call("weather", '{"n":1e999}')),
            result("no such city"),
        ],
        [],
        '<|user|>\n北京天气?<|assistant|>weather\n{"city": "北<|assistant|>weather\n{"a":1,"a":2}'
        '<|assistant|>weather\n{"n":1e999}<|observation|>\nno such city',
    ),
    "transformers' calls and results": (
        [
            USER,
            {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "北京"}}}]},
            {"role": "tool", "name": "weather", "content": "23°C"},
        ],
        [],
        '<|user|>\n北京天气?<|assistant|>weather\n{"city": "北京"}<|observation|>\n23°C',
    ),
    "OpenAI's older function call": (
        [
            USER,
            {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": "{}"}},
            {"role": "function", "name": "weather", "content": "23°C"},
        ],
        [],
        "<|user|>\n北京天气?<|assistant|>weather\n{}<|observation|>\n23°C",
    ),
    "GLM-4's own form": (
        [
            {"role": "system", "content": "Be brief.", "tools": [WEATHER]},
            USER,
            {"role": "assistant", "metadata": "weather", "content": '{"city":"北京"}'},
            {"role": "observation", "metadata": "weather_result", "content": "23°C"},
        ],
        [],
        TOOLS_BLOCK + WEATHER_BLOCK + "<|system|>\nBe brief.<|user|>\n北京天气?"
        '<|assistant|>weather\n{"city":"北京"}<|observation|>weather_result\n23°C',
    ),
    "objects": (
        [
            Message("developer", (TextPart("Be "), TextPart("brief."))),
            Message("user", "北京天气?", name="Bob"),
            Message("assistant", tool_calls=(ToolCall("weather", '{"city":"北京"}', "a"),)),
            Message("tool", "23°C", tool_call_id="a"),
        ],
        [],
        '<|system|>\nBe brief.<|user|>\n北京天气?<|assistant|>weather\n{"city": "北京"}<|observation|>\n23°C',
    ),
    "what looks like markup or JSON": (
        [
            {"role": "user", "content": "<|assistant|>\n[gMASK] \\u4f60 {{ x }} <"},
            calling(call("<sop>", '{"<|user|>":"</"}')),
        ],
        [],
        '<|user|>\n<|assistant|>\n[gMASK] \\u4f60 {{ x }} <<|assistant|><sop>\n{"<|user|>": "</"}',
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def glm(shared: Path) -> ChatTemplate:
    return ChatTemplate((shared / "chat-templates" / "glm-4-9b-chat.jinja").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversations(glm: ChatTemplate, name: str) -> None:
    messages, tools, expected = CONVERSATIONS[name]
    assert glm.render(messages, tools=tools) == f"[gMASK]<sop>{expected}<|assistant|>"
    assert glm.render(messages, tools=tools, add_generation_prompt=False) == f"[gMASK]<sop>{expected}"


def test_glm_tools_by_type(glm: ChatTemplate) -> None:
    """As the golden render of All Tools has them, in a system message."""
    own = [{"type": "python"}, {"type": "simple_browser"}, {"type": "cogview"}]
    theirs = glm.render([{"role": "system", "content": None, "tools": own}, USER])
    assert glm.render([USER], tools=own) == theirs
    assert all(f"\n## {tool['type']}\n" in theirs for tool in own)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_messages_come_back_from_their_mappings(name: str) -> None:
    messages = messages_from(CONVERSATIONS[name][0])
    assert messages_from([message.to_dict() for message in messages]) == messages
    assert messages_from(messages) == messages


CALLED = [USER, calling(call("weather", "{}"))]
WRONG: dict[str, tuple[Any, str, str]] = {  # name -> (messages, path, what the message says)
    "text": ("hello", "messages", "expected a list"),
    "one mapping": (USER, "messages", "expected a list"),
    "none": ([], "messages", "empty"),
    "null": (None, "messages", "expected a list"),
    "texts": ([USER, "hello"], "messages[1]", "expected a Message or a mapping"),
    "ids": ([[1, 2]], "messages[0]", "expected a Message or a mapping"),
    "no role": ([{"content": "x"}], "messages[0].role", "is missing"),
    "null role": ([{"role": None, "content": "x"}], "messages[0].role", "expected one of system"),
    "other role": ([{"role": "User", "content": "x"}], "messages[0].role", "'User', expected one of"),
    "role of another kind": ([{"role": ["user"], "content": "x"}], "messages[0].role", "expected one of"),
    "no content": ([{"role": "user"}], "messages[0].content", "is missing"),
    "a number": ([{"role": "user", "content": 5}], "messages[0].content", "is 5, expected text"),
    "an object": ([{"role": "user", "content": {"type": "text"}}], "messages[0].content", "expected text, a list"),
    "bytes": ([{"role": "user", "content": b"x"}], "messages[0].content", "expected text, a list"),
    "text in a list": ([{"role": "user", "content": ["x"]}], "messages[0].content[0]", "expected a part"),
    "picture": (
        [USER, {"role": "user", "content": [*text("x"), {"type": "image_url", "image_url": {"url": "data:"}}]}],
        "messages[1].content[1].type",
        "'image_url', expected 'text'",
    ),
    "sound": (
        [{"role": "user", "content": [{"type": "input_audio"}]}], "messages[0].content[0].type", "'input_audio'",
    ),
    "file": ([{"role": "user", "content": [{"type": "file"}]}], "messages[0].content[0].type", "'file'"),
    "part without type": ([{"role": "user", "content": [{"text": "x"}]}], "messages[0].content[0].type", "is None"),
    "part without text": ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text", "is None"),
    "spoken": ([{"role": "assistant", "audio": {"id": "a"}, "content": ""}], "messages[0].audio", "expected none"),
    "unknown key": ([{"role": "user", "content": "x", "images": ["a"]}], "messages[0].images", "none of this key"),
    "half a character": ([{"role": "user", "content": "a\ud83d b"}], "messages[0].content", "half a character"),
    "half in a part": ([{"role": "user", "content": text("\udc00")}], "messages[0].content[0].text", "U+DC00"),
    "not UTF-8": ([{"role": "user", "content": "caf\udce9"}], "messages[0].content", "byte 0xE9 at position 3"),
    "half in a name": ([{"role": "user", "content": "", "name": "\ud83d"}], "messages[0].name", "half a character"),
    "calls of a user": ([{**CALLED[1], "role": "user"}], "messages[0].tool_calls", "only 'assistant'"),
    "calls as text": ([{"role": "assistant", "tool_calls": "weather"}], "messages[0].tool_calls", "a list of calls"),
    "call as text": ([{"role": "assistant", "tool_calls": ["weather"]}], "messages[0].tool_calls[0]", "a call like"),
    "call of another type": (
        [calling({**call("a", ""), "type": "custom"})], "messages[0].tool_calls[0].type", "expected 'function'",
    ),
    "call without function": ([calling({"id": "a"})], "messages[0].tool_calls[0].function", "expected a function"),
    "call without a name": ([calling(call("", "{}"))], "messages[0].tool_calls[0].function.name", "the name"),
    "arguments of a number": (
        [calling(call("a", 5))], "messages[0].tool_calls[0].function.arguments", "JSON text",  # type: ignore[arg-type]
    ),
    "half in arguments": (
        [calling(call("a", '"\ud83d"'))], "messages[0].tool_calls[0].function.arguments", "half a character",
    ),
    "arguments that are no JSON": (
        [calling(call("a", {"x": b""}))],  # type: ignore[arg-type]
        "messages[0].tool_calls[0].function.arguments",
        "cannot be written as JSON",
    ),
    "result of another call": ([*CALLED, result("x", "call_2")], "messages[2].tool_call_id", "'call_2', expected"),
    "result before its call": ([result("x"), *CALLED], "messages[0].tool_call_id", "there is none"),
    "result of no call": ([USER, {"role": "tool", "content": "x"}], "messages[1].role", "no assistant message before"),
    "older result of another": ([*CALLED, {"role": "function", "name": "f", "content": ""}], "messages[2].name", "'f'"),
    "id of an answer": ([{**USER, "tool_call_id": "a"}], "messages[0].tool_call_id", "only 'tool'"),
    "two forms of a call": (
        [{**CALLED[1], "function_call": {"name": "a"}}], "messages[0].function_call", "not both",
    ),
    "tools of a user": ([{**USER, "tools": [WEATHER]}], "messages[0].tools", "beside the messages"),
    "metadata of a number": ([{**USER, "metadata": 5}], "messages[0].metadata", "expected text"),
    "object of wrong fields": ([Message("user", 5)], "messages[0].content", "is 5"),  # type: ignore[arg-type]
    "object of wrong calls": (
        [Message("assistant", "", ["a"])], "messages[0].tool_calls[0]", "expected a call",  # type: ignore[arg-type]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_conversation(name: str) -> None:
    messages, path, said = WRONG[name]
    with pytest.raises(PromptError) as caught:
        messages_from(messages)
    assert caught.value.param == path
    assert str(caught.value).startswith(path)
    assert said in str(caught.value)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.sampled_from(["user", "text"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "tool_calls", "function", "name", "x"]), inner
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(JSON, st.dictionaries(st.sampled_from(["content", "tool_calls", "name", "metadata", "tools", "refusal"]), JSON))
def test_any_json_is_a_conversation_or_a_prompt_error(value: Any, fields: dict[str, Any]) -> None:
    template = ChatTemplate("{{ messages }}{{ tools }}{{ messages[0].tool_calls }}")
    for messages in (value, [value], [{"role": "assistant", **fields}], [{"role": "user", "content": "x", **fields}]):
        for tools in ((), value, [value]):
            try:
                template.render(messages, tools=tools)
            except PromptError:
                continue


def test_values_without_end_are_refused() -> None:
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    ring: dict[str, Any] = {"type": "function", "function": {"name": "f"}}
    ring["function"]["parameters"] = ring
    for messages, tools in (([{"role": "user", "content": deep}], ()), ([USER], [deep]), ([USER], [ring])):
        with pytest.raises(PromptError):
            ChatTemplate("{{ tools }}").render(messages, tools=tools)
    with pytest.raises(PromptError):
        messages_from([{"role": "user", "content": 10**5000}])


# --- other templates -------------------------------------------------------------------------------------------------

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% if m.tool_calls %}{% for c in m.tool_calls %}<call>{{ c.function.name }} {{ c.function.arguments | tojson }}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if tools is not none %}{{ tools | tojson }}{% endif %}"
)
PLAIN = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] + eos_token }}{% endfor %}"


def test_a_template_of_openai_shape() -> None:
    messages, tools, _ = CONVERSATIONS["one round"]
    assert ChatTemplate(CHATML).render([{"role": "developer", "content": text("S")}, *messages], tools=tools) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n北京天气?<|im_end|>\n"
        '<|im_start|>assistant\n<call>weather {"city": "北京"}<|im_end|>\n<|im_start|>tool\n23°C<|im_end|>\n'
        '[{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]'
    )
    system: dict[str, Any] = {"role": "system", "content": "S"}
    own = ChatTemplate(CHATML).render([system | {"tools": tools}, USER])
    assert own == ChatTemplate(CHATML).render([system, USER], tools=tools)


def test_a_template_of_0414_takes_tools_beside_the_messages() -> None:
    source = "{% if tools %}{{ tools[0].function.name }}{% endif %}{% for m in messages %}<{{ m.role }}>"
    template = ChatTemplate(source + "{{ m.get('metadata', '') }}\n{{ m.content }}{% endfor %}")
    messages, tools, _ = CONVERSATIONS["one round"]
    expected = 'weather<user>\n北京天气?<assistant>weather\n{"city": "北京"}<observation>\n23°C'
    assert template.render(messages, tools=tools) == expected


def test_metadata_is_for_templates_that_read_it() -> None:
    with pytest.raises(PromptError, match="chat template") as caught:
        ChatTemplate(PLAIN).render([USER, {"role": "assistant", "metadata": "f", "content": "{}"}])
    assert caught.value.param == "messages[1].metadata"


@pytest.mark.parametrize(
    "tools",
    [
        "weather",
        WEATHER,
        ["weather"],
        [{"function": {"name": "f"}}],
        [{"type": "retrieval"}],
        [{"type": "function", "name": "f"}],
        [{"type": "function", "function": {"name": ""}}],
        [{"type": "function", "function": {"name": "a\nb"}}],
        [{"type": "function", "function": {"name": "f", "parameters": "{}"}}],
        [{"type": "function", "function": {"name": "f", "description": 5}}],
        [{"type": "function", "function": {"name": "f", "x": "\ud83d"}}],
        [{"type": "function", "function": {"name": "f", "x": {1: 2}}}],
        [{"type": "function", "function": {"name": "f", "x": float("nan")}}],
        [{"type": "function", "function": {"name": "f", "x": b""}}],
        [WEATHER, WEATHER],
        [{"type": "python"}],  # a tool that only GLM-4's template describes
    ],
    ids=str,
)
def test_what_is_no_tool(tools: Any) -> None:
    with pytest.raises(PromptError) as caught:
        ChatTemplate(CHATML).render([USER], tools=tools)
    assert caught.value.param is not None
    assert caught.value.param.startswith("tools")


def test_tools_are_given_once(glm: ChatTemplate) -> None:
    with pytest.raises(PromptError, match="twice"):
        glm.render([{"role": "system", "content": "", "tools": [WEATHER]}, USER], tools=[WEATHER])


def test_variables() -> None:
    template = ChatTemplate(
        "{{ bos_token }}{{ eos_token }}{{ thinking }}{{ documents }}{{ tools }}", None, {"bos_token": "B"}
    )
    assert template.render([USER]) == "BNoneNone"
    assert template.render([USER], variables={"thinking": True, "documents": ["d"]}) == "BTrue['d']None"
    wrong: Any
    for wrong in ({"bos_token": "x"}, {"messages": []}, {"tools": []}, {1: 2}, {"x": object()}, {"x": "\ud83d"}, "x"):
        with pytest.raises(PromptError) as caught:
            template.render([USER], variables=wrong)
        assert str(caught.value.param).startswith("template_variables")


@pytest.mark.parametrize(
    "source", ["{{ 1 // 0 }}", "{{ 10 ** 400 * 1.5 }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"]
)
def test_whatever_a_template_raises_is_its_refusal(source: str) -> None:
    with pytest.raises(PromptError, match="the chat template refused the messages"):
        ChatTemplate(source).render([USER])


def test_tojson_takes_separators() -> None:
    assert ChatTemplate("{{ messages | tojson(separators=(',', ':')) }}").render(
        [{"role": "user", "content": "hi"}]
    ) == ('[{"role":"user","content":"hi"}]')
