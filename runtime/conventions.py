"""In which form a chat template reads messages: GLM-4's, or the one that OpenAI and transformers share.

In: a template's syntax tree, then checked messages and tools. Out: the mappings that the template reads. Knows nothing
about rendering or tokens. Content that a template would silently omit is a PromptError here.

The form is inferred from what the template reads, since nothing else in a bundle tells it. GLM-4's templates read
`metadata` of a message and not `tool_calls`: a call is an assistant message with the function's name as metadata and
the arguments as content, and a result has the role `observation`. For tools, glm-4-9b-chat's template reads
`item['tools']` of a system message; GLM-4-0414's and nearly all others read the variable `tools`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from jinja2 import meta, nodes

from edge.runtime.errors import PromptError
from edge.runtime.messages import Message, ToolCall
from edge.runtime.tools.declared import GLM_TOOLS, JsonObject

_RESULTS = ("tool", "function", "observation")


@dataclass(frozen=True, slots=True)
class Convention:
    """The form of messages and tools that a template reads."""

    calls: Literal["metadata", "tool_calls", "none"]
    tools: Literal["message", "variable", "none"]
    words: frozenset[str]  # texts that it compares with or looks up, including names of fields

    @classmethod
    def of(cls, template: nodes.Template) -> Convention:
        """Infer it from a template as jinja2 parses it."""
        constants = (node.value for node in template.find_all(nodes.Const) if isinstance(node.value, str))
        words = frozenset([*constants, *(node.attr for node in template.find_all(nodes.Getattr))])
        calls: Literal["metadata", "tool_calls", "none"] = "none"
        if "tool_calls" in words:
            calls = "tool_calls"
        elif "metadata" in words:
            calls = "metadata"
        if calls == "metadata" and "tools" in words:
            return cls(calls, "message", words)
        return cls(calls, "variable" if "tools" in meta.find_undeclared_variables(template) else "none", words)

    def adapt(
        self, messages: Sequence[Message], tools: Sequence[JsonObject]
    ) -> tuple[list[JsonObject], list[JsonObject] | None]:
        """Return the template's `messages` and `tools`. Raises PromptError for anything that it does not support."""
        inside = [i for i, message in enumerate(messages) if message.tools]
        if inside and tools:
            raise PromptError(
                f"tools are given twice, beside the messages and in messages[{inside[0]}]; give them once",
                param=f"messages[{inside[0]}].tools",
            )
        if inside and self.tools != "message":
            if len(inside) > 1:
                raise PromptError(
                    f"messages[{inside[0]}] and messages[{inside[1]}] both hold tools, and this model's chat template "
                    "takes them once; give all in one place",
                    param=f"messages[{inside[1]}].tools",
                )
            tools = messages[inside[0]].tools
        self._check_tools([*tools, *(tool for message in messages for tool in message.tools)])
        if tools and self.tools == "message":
            messages, tools = _with_tools(messages, tools), ()
        adapted = [found for i, message in enumerate(messages) for found in self._adapt(message, f"messages[{i}]")]
        return adapted, list(tools) or None

    def _check_tools(self, tools: Iterable[JsonObject]) -> None:
        for tool in tools:
            if self.tools == "none":
                raise PromptError(
                    "this model's chat template has no place for tools; leave them out, or use a model whose template "
                    "has one, like GLM-4",
                    param="tools",
                )
            if tool["type"] in GLM_TOOLS and tool["type"] not in self.words:
                raise PromptError(
                    f"this model's chat template does not know {tool['type']}, a tool of glm-4-9b-chat; describe it as "
                    "a function",
                    param="tools",
                )

    def _adapt(self, message: Message, path: str) -> list[JsonObject]:
        """Return one message as the template reads it; in GLM-4's form, each call is a message of its own."""
        fields: dict[str, Any] = {"role": self._role(message, path), "content": message.text}
        if message.metadata:
            if self.calls != "metadata":
                raise PromptError(
                    f"{path}.metadata is for GLM-4's chat template, and this model's does not read it; give tool_calls "
                    "for a call",
                    param=f"{path}.metadata",
                )
            fields["metadata"] = message.metadata
        if self.calls == "metadata":
            if message.tools and self.tools == "message":
                fields["tools"] = list(message.tools)
            calls = [_glm_call(call) for call in message.tool_calls]
            return [fields, *calls] if message.text or not calls else calls
        if message.tool_calls:
            if self.calls == "none":
                raise PromptError(
                    f"{path} calls a tool, and this model's chat template has no place for calls; use a model whose "
                    "template has one, like GLM-4",
                    param=f"{path}.tool_calls",
                )
            fields["tool_calls"] = [_openai_call(call) for call in message.tool_calls]
        rest = {"tool_call_id": message.tool_call_id, "name": message.name}
        return [fields | {key: value for key, value in rest.items() if value}]

    def _role(self, message: Message, path: str) -> str:
        role = message.role
        if role == "developer":
            return "system"
        if role not in _RESULTS:
            return role
        if self.calls == "metadata" or (role == "observation" and role in self.words):
            return "observation"
        if self.calls == "none" and "tool" not in self.words:
            raise PromptError(
                f"{path}.role is {role!r}, and this model's chat template has no place for results of tools; use a "
                "model whose template has one, like GLM-4",
                param=f"{path}.role",
            )
        return "tool"


def _with_tools(messages: Sequence[Message], tools: Sequence[JsonObject]) -> list[Message]:
    """Return the messages with the tools in a first system message, which is the caller's if there is one."""
    first = messages[0]
    if first.role in ("system", "developer"):
        return [replace(first, tools=tuple(tools)), *messages[1:]]
    return [Message("system", tools=tuple(tools)), *messages]


def _glm_call(call: ToolCall) -> JsonObject:
    arguments = _parsed(call.arguments)
    content = call.arguments if arguments is None else json.dumps(arguments, ensure_ascii=False)
    return {"role": "assistant", "metadata": call.name, "content": content}


def _openai_call(call: ToolCall) -> JsonObject:
    """Return a call with its arguments as an object, as transformers lets templates expect them."""
    arguments = _parsed(call.arguments)
    function = {"name": call.name, "arguments": call.arguments if arguments is None else arguments}
    return {"type": "function", "function": function} | ({"id": call.id} if call.id else {})


def _parsed(arguments: str) -> dict[str, Any] | None:
    """Return arguments as an object; None if they are not one, or would not survive the conversion."""
    if not arguments.strip():
        return {}  # GLM-4's template would omit an empty content, and the call with it
    try:
        parsed = json.loads(arguments, object_pairs_hook=_unique, parse_constant=_refuse)
        json.dumps(parsed, allow_nan=False)  # 1e999 is infinite
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
