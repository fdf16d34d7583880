"""The grammar of an answer that may call tools: free text, or a name, a newline and arguments that follow a schema.

In: declared tools, their format, the choice, and what the answer must match if it is not a call. Out: a `Constraint`,
kept for each set of tools. Knows nothing about tokens.

Which of the two an answer is shows from its first token on: text is anything that does not begin with the name of a
tool and a newline (a complement in llguidance's variant of Lark, docs/syntax.md of guidance-ai/llguidance). A schema
that llguidance cannot follow is refused if its tool is `strict`; otherwise any JSON object is allowed in its place.
"""

from __future__ import annotations

import json
import logging
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from edge.runtime.constraint import Constraint
from edge.runtime.constraint_masks import LAYOUT, Constraints
from edge.runtime.errors import PromptError, SettingsError
from edge.runtime.tools.choice import ToolChoice, tool_name
from edge.runtime.tools.declared import GLM_TOOLS, JsonObject
from edge.runtime.tools.format import ToolFormat

_KEPT = 64  # sets of tools
# A schema with one of these at its top may mean to allow more names than its `properties`.
_OPEN = (
    "additionalProperties", "patternProperties", "unevaluatedProperties", "propertyNames", "$ref", "$dynamicRef",
    "allOf", "anyOf", "oneOf", "if", "dependentSchemas",
)  # fmt: skip
_NO_ARGUMENTS = {"type": "object", "properties": {}}
_TEXT = "/(?s:.+)/"
_BROWSER = (
    r'/search\("([^"\\\n]|\\.)+", *recency_days *= *[0-9]+\)/'
    r" | /mclick\(\[[0-9]+(, *[0-9]+)*\]\)/"
    r' | /open_url\("[^"\s]+"\)/'
)
_RAW = {"python": _TEXT, "simple_browser": f"({_BROWSER})", "cogview": _TEXT}

logger = logging.getLogger(__name__)


class ToolGrammars:
    """Makes constraints for sets of tools, and keeps them."""

    def __init__(self, constraints: Constraints) -> None:
        self._constraints = constraints
        self._kept: OrderedDict[str, Constraint] = OrderedDict()

    @property
    def available(self) -> bool:
        """Whether answers can be held to a grammar: llguidance is installed, and the model has an id to stop with."""
        return self._constraints.available

    def constraint(
        self, tools: Sequence[JsonObject], form: ToolFormat, choice: ToolChoice, otherwise: Constraint | None
    ) -> Constraint:
        """Return what an answer must match; `otherwise` is for one that is not a call.

        Raises SettingsError for what cannot be combined with a call, PromptError for a strict schema that cannot be
        held.
        """
        instead = None if otherwise is None else [otherwise.kind, otherwise.text]
        key = json.dumps([list(tools), form.name, choice.kind, choice.name, instead])
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        found = Constraint.lark(self._grammar(tools, form, choice, otherwise))
        self._constraints.start(found)
        self._kept[key] = found
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return found

    def _grammar(
        self, tools: Sequence[JsonObject], form: ToolFormat, choice: ToolChoice, otherwise: Constraint | None
    ) -> str:
        blanks = " *" if form.pads_names else ""
        calls = [
            f"/{_literal(tool_name(tool))}{blanks}\\n/ {self._arguments(tool, f'tools[{i}]')}"
            for i, tool in enumerate(tools)
            if choice.name in (None, tool_name(tool))
        ]
        rules = [f"call: {calls[0]}", *(f"    | {call}" for call in calls[1:])]
        if choice.is_forced:
            return "\n".join(["start: call", *rules])
        if otherwise is not None:
            return "\n".join([f"start: call | {_answer(otherwise)}", *rules])
        names = "|".join(_literal(tool_name(tool)) for tool in tools)
        return "\n".join(
            ["start: call | TEXT", f"TEXT: /(?s:.*)/ & ~/({names}){blanks}\\n(?s:.*)/", *rules],
        )

    def _arguments(self, tool: JsonObject, path: str) -> str:
        """Return what may come after the name of a tool and its newline."""
        if tool["type"] in GLM_TOOLS:
            return _RAW[tool["type"]]
        function = tool["function"]
        try:
            held = _embedded(self._constraints.prepared(argument_schema(function)))
            self._constraints.start(Constraint.lark(f"start: {held}"))
        except SettingsError as error:
            if function.get("strict"):
                raise PromptError(
                    f"{path}.function.parameters cannot be held to, as strict demands: {error}",
                    param=f"{path}.function.parameters",
                ) from error
            logger.warning("arguments of %s are held to JSON only: %s", function["name"], error)
            return _embedded({"type": "object"})
        return held


def argument_schema(function: Mapping[str, Any]) -> dict[str, Any]:  # Any: JSON
    """Return the schema of a function's arguments: no other names than its properties, unless it says so itself.

    Raises SettingsError if it describes something else than an object.
    """
    schema: dict[str, Any] = deepcopy(dict(function.get("parameters") or _NO_ARGUMENTS))
    if schema.setdefault("type", "object") != "object":
        raise SettingsError(f"the schema's type is {schema['type']!r}, expected 'object'")
    if "properties" in schema and not any(key in schema for key in _OPEN):
        schema["additionalProperties"] = False
    return schema


def _embedded(schema: Mapping[str, Any]) -> str:
    return "%json " + json.dumps({"x-guidance": LAYOUT, **schema}, ensure_ascii=False)


def _answer(constraint: Constraint) -> str:
    """Return a constraint as an alternative of a rule. Raises SettingsError for a grammar, whose names may clash."""
    if constraint.kind == "json":
        return _embedded({"type": "object"})
    if constraint.kind == "json_schema":
        return _embedded(json.loads(constraint.text))
    if constraint.kind == "regex":
        return "/" + re.sub(r"(?<!\\)((?:\\\\)*)/", r"\1\\/", constraint.text).replace("\n", "\\n") + "/"
    raise SettingsError(
        "a grammar for the answer cannot be combined with tools that it may call; give one of the two, or tool_choice "
        "none",
        param="constraint",
    )


def _literal(name: str) -> str:
    return re.sub(r"([^\w\s])|(\s)", lambda found: f"\\{found[1]}" if found[1] else f"[{found[2]}]", name)
