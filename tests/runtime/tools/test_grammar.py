"""What an answer may be when tools are declared, over GLM-4's own tokenizer: exactly text, or a whole valid call."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from edge.runtime.constraint import Constraint
from edge.runtime.constraint_masks import Constraints
from edge.runtime.errors import PromptError, SettingsError
from edge.runtime.tokenizer import Tokenizer
from edge.runtime.tools.choice import ToolChoice, tool_choice_of
from edge.runtime.tools.format import ToolFormat
from edge.runtime.tools.glm4 import GLM4
from edge.runtime.tools.glm4_0414 import GLM4_0414
from edge.runtime.tools.grammar import ToolGrammars

STOPS = (151329, 151336, 151338)
CITY = {"type": "object", "properties": {"city": {"type": "string"}, "n": {"type": "integer"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": CITY}}
LATER = {"type": "function", "function": {"name": "get_weather_later", "parameters": CITY}}
TIME = {"type": "function", "function": {"name": "time"}}
TOOLS = (WEATHER, LATER, TIME)
CALL = 'get_weather\n{"city": "北京"}'


@pytest.fixture(scope="module")
def tokenizer(shared: Path) -> Tokenizer:
    return Tokenizer(shared / "glm4-tokenizer" / "tokenizer.json")


@pytest.fixture(scope="module")
def constraints(tokenizer: Tokenizer) -> Constraints:
    return Constraints(tokenizer, tokenizer.num_tokens, STOPS)


class Judge:
    """Tells of texts whether an answer may be them."""

    def __init__(self, tokenizer: Tokenizer, constraints: Constraints) -> None:
        self.tokenizer, self.constraints = tokenizer, constraints
        self.grammars = ToolGrammars(constraints)

    def __call__(
        self,
        text: str,
        choice: ToolChoice | None = None,
        tools: Any = TOOLS,
        form: ToolFormat = GLM4,
        otherwise: Constraint | None = None,
    ) -> str:
        """Return "whole", "begun" (it may not end here) or "refused"."""
        constraint = self.grammars.constraint(tools, form, choice or ToolChoice(), otherwise)
        return self._follow(constraint, self.tokenizer.encode(text))

    def _follow(self, constraint: Constraint, ids: list[int]) -> str:
        state = self.constraints.start(constraint)
        for token_id in ids:
            if state.finished or not state.allowed()[token_id]:
                return "refused"
            state.advance(token_id)
        if state.finished:
            return "whole"
        allowed = state.allowed()[list(STOPS)]
        assert allowed.all() == allowed.any()
        return "whole" if allowed.all() else "begun"


@pytest.fixture(scope="module")
def judge(tokenizer: Tokenizer, constraints: Constraints) -> Judge:
    return Judge(tokenizer, constraints)


AUTO = [
    ("", "whole"),
    ("\n你好！", "whole"),
    ("Sunny, I think.", "whole"),
    ("get_weather", "whole"),
    ("get_weather is a tool", "whole"),
    ("get_weather_late", "whole"),
    ("time flies\nlike an arrow", "whole"),
    ("\nget_weather\nis a tool", "whole"),
    ("get_weather\n", "begun"),
    ("get_weather\nIt rains.", "refused"),
    ('get_weather\n {"city": "x"}', "refused"),
    ('get_weather\n{"city": "x"', "begun"),
    (CALL, "whole"),
    ('get_weather\n{"city": "a } b", "n": -4}', "whole"),
    ('get_weather_later\n{"city": "東京"}', "whole"),
    ('get_weather\n{"n": 4', "refused"),  # the required key is missing, or comes too late
    ("get_weather\n{}", "refused"),
    ('get_weather\n{"city": "x", "unit": "c"}', "refused"),
    ('get_weather\n{"city": 5}', "refused"),
    ('get_weather\n{"city": "x", "n": 1.5}', "refused"),
    (f"{CALL} and more", "refused"),
    ("time\n{}", "whole"),
    ('time\n{"zone": "x"}', "refused"),
]


@pytest.mark.parametrize(("text", "verdict"), AUTO)
def test_auto_is_text_or_a_whole_valid_call(judge: Judge, text: str, verdict: str) -> None:
    assert judge(text) == verdict


@pytest.mark.parametrize(
    ("text", "choice", "verdict"),
    [
        ("", ToolChoice("required"), "begun"),
        ("Hello", ToolChoice("required"), "refused"),
        ("\n", ToolChoice("required"), "refused"),
        (CALL, ToolChoice("required"), "whole"),
        ("time\n{}", ToolChoice("required"), "whole"),
        (CALL, ToolChoice("required", "get_weather"), "whole"),
        ("time\n{}", ToolChoice("required", "get_weather"), "refused"),
        ('get_weather_later\n{"city": "x"}', ToolChoice("required", "get_weather"), "refused"),
    ],
)
def test_a_forced_choice_is_a_call(judge: Judge, text: str, choice: ToolChoice, verdict: str) -> None:
    assert judge(text, choice) == verdict


@pytest.mark.parametrize("name", ["a.b-c", "a b", "天气", "x[1]", "a/b", 'q"q', "a\\b", "(x|y)", "^$", "é~&"])
def test_any_name_can_be_called(judge: Judge, name: str) -> None:
    tools = ({"type": "function", "function": {"name": name}},)
    assert [judge(f"{name}{rest}", tools=tools) for rest in ("\n{}", "\nno", " no", "")] == [
        "whole", "refused", "whole", "whole",
    ]  # fmt: skip


def test_what_clients_send_as_schemas(judge: Judge) -> None:
    """$defs, titles, null, enum and additionalProperties, as pydantic writes them."""
    schema = {
        "title": "Arguments",
        "type": "object",
        "$defs": {"Unit": {"title": "Unit", "enum": ["c", "f"], "type": "string"}},
        "properties": {
            "unit": {"$ref": "#/$defs/Unit"},
            "days": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None, "title": "Days"},
        },
        "required": ["unit"],
        "additionalProperties": False,
    }
    tools = ({"type": "function", "function": {"name": "f", "parameters": schema, "strict": True}},)
    said = ['{"unit": "c"}', '{"unit": "c", "days": null}', '{"unit": "k"}', '{"unit": "f", "days": "x"}', '{"u": 1}']
    assert [judge(f"f\n{one}", tools=tools) for one in said] == ["whole", "whole", "refused", "refused", "refused"]


def test_names_that_a_schema_leaves_open_stay_open(judge: Judge) -> None:
    open_schema = {"type": "object", "additionalProperties": {"type": "integer"}}
    tools = ({"type": "function", "function": {"name": "f", "parameters": open_schema}},)
    assert [judge(f'f\n{{"x": {value}}}', tools=tools) for value in ("1", '"y"')] == ["whole", "refused"]


BAD = {"type": "object", "properties": {"a": {"type": "string", "not": {"const": "x"}}}}


def test_a_schema_that_cannot_be_held(judge: Judge, caplog: pytest.LogCaptureFixture) -> None:
    """It is refused where it is strict; otherwise any object is allowed, and the log says so."""
    caplog.set_level(logging.WARNING, "edge")
    tools = ({"type": "function", "function": {"name": "f", "parameters": BAD}},)
    assert [judge(f"f\n{one}", tools=tools) for one in ('{"a": "x"}', '{"b": [1]}', "[1]")] == [
        "whole", "whole", "refused",
    ]  # fmt: skip
    assert "arguments of f are held to JSON only" in caplog.text
    strict = ({"type": "function", "function": {"name": "f", "parameters": BAD, "strict": True}},)
    with pytest.raises(PromptError, match="strict") as caught:
        judge("f", tools=strict)
    assert caught.value.param == "tools[0].function.parameters"


def test_an_answer_that_must_be_json_or_a_call(judge: Judge) -> None:
    otherwise = Constraint.json_schema(
        {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    )
    verdicts = [judge(text, otherwise=otherwise) for text in ('{"ok": true}', CALL, "Hello", '{"ok": 1}')]
    assert verdicts == ["whole", "whole", "refused", "refused"]
    digits = Constraint.regex(r"[0-9]+/[0-9]+")
    assert [judge(text, otherwise=digits) for text in ("1/2", CALL, "x")] == ["whole", "whole", "refused"]
    assert judge("{}", otherwise=Constraint.json_object()) == "whole"
    with pytest.raises(SettingsError, match="cannot be combined"):
        judge("x", otherwise=Constraint.lark('start: "x"'))


ALL_TOOLS = ({"type": "python"}, {"type": "simple_browser"}, {"type": "cogview"})


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("python\nprint('}')\n\nx = 1", "whole"),
        ("python\n", "begun"),
        ('simple_browser\nsearch("茶 tea", recency_days=30)', "whole"),
        ("simple_browser\nmclick([0, 1,2])", "whole"),
        ('simple_browser\nopen_url("docs/a.md")', "whole"),
        ("simple_browser\nsearch(tea)", "refused"),
        ("cogview\nA cat, in oil", "whole"),
        ("python is a snake", "whole"),
    ],
)
def test_all_tools_are_called_with_text(judge: Judge, text: str, verdict: str) -> None:
    assert judge(text, tools=ALL_TOOLS) == verdict


def test_0414_may_write_blanks_before_the_newline(judge: Judge) -> None:
    said = ['get_weather \n{"city": "x"}', CALL, "get_weather \nIt rains."]
    assert [judge(text, form=GLM4_0414) for text in said] == ["whole", "whole", "refused"]


def test_grammars_are_kept(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second request with the same tools compiles nothing."""
    first = judge.grammars.constraint(TOOLS, GLM4, ToolChoice(), None)
    judge.constraints.start(first)
    monkeypatch.setattr(Constraints, "_checked", lambda *_: pytest.fail("compiled again"))
    again = judge.grammars.constraint(json.loads(json.dumps(TOOLS)), GLM4, ToolChoice(), None)
    assert again is first
    judge.constraints.start(again)


@pytest.mark.parametrize("value", ["", "nothing", 5, True, [], {"type": "function"}, {"name": "time"}, {"type": "x"}])
def test_choices_that_are_refused(value: Any) -> None:
    with pytest.raises(SettingsError, match="tool_choice") as caught:
        tool_choice_of(value, TOOLS)
    assert caught.value.param == "tool_choice"


@pytest.mark.parametrize(
    "value", ["time", {"type": "function", "function": {"name": "time"}}, {"type": "function", "name": "time"}]
)
def test_a_tool_can_be_named_in_every_form(value: Any) -> None:
    assert tool_choice_of(value, TOOLS) == ToolChoice("required", "time")


def test_nothing_can_be_required_of_no_tools() -> None:
    assert tool_choice_of(None, ()) == tool_choice_of("auto", ()) == ToolChoice()
    with pytest.raises(SettingsError, match="no tools are given"):
        tool_choice_of("required", ())
