"""In which form a chat template reads messages: GLM-4's, or the one that OpenAI and transformers share.

In: a template's syntax tree, then checked messages and tools. Out: the mappings that the template reads. Knows nothing
about rendering or tokens. Content that a template would silently omit is a PromptError here.

The form is inferred from what the template reads, since nothing else in a bundle tells it. GLM-4's templates read
`metadata` of a message and not `tool_calls`: a call is an assistant message with the function's name as metadata and
the arguments as content, and a result has the role `observation`. For tools, glm-4-9b-chat's template reads
`item['tools']` of a system message; GLM-4-0414's and nearly all others read the variable `tools`. Templates without a
place for tools or calls get them as text (`tools/generic`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from jinja2 import meta, nodes

from edge.runtime.errors import PromptError
from edge.runtime.messages import Message, ToolCall
from edge.runtime.parts import IMAGE, Part, TextPart
from edge.runtime.tools.declared import GLM_TOOLS, JsonObject
from edge.runtime.tools.format import ToolFormat
from edge.runtime.tools.generic import call_text, result_text, system_text
from edge.runtime.tools.glm4 import call_message
from edge.runtime.tools.registry import format_of

Calls = Literal["metadata", "tool_calls", "none"]

_RESULTS = ("tool", "function", "observation")


@dataclass(frozen=True, slots=True)
class Convention:
    """The form of messages and tools that a template reads."""

    calls: Calls
    tools: Literal["message", "variable", "none"]
    words: frozenset[str]  # texts that it compares with or looks up, including names of fields

    @classmethod
    def of(cls, template: nodes.Template) -> Convention:
        """Infer it from a template as jinja2 parses it."""
        constants = (node.value for node in template.find_all(nodes.Const) if isinstance(node.value, str))
        words = frozenset([*constants, *(node.attr for node in template.find_all(nodes.Getattr))])
        calls: Calls = "none"
        if "tool_calls" in words:
            calls = "tool_calls"
        elif "metadata" in words and ("observation" in words or "assistant" not in words):
            calls = (
                "metadata"  # GLM-4.1V's reads it, but names the roles that it writes, and results are not among them
            )
        if calls == "metadata" and "tools" in words:
            return cls(calls, "message", words)
        return cls(calls, "variable" if "tools" in meta.find_undeclared_variables(template) else "none", words)

    @property
    def reads_pictures(self) -> bool:
        """Whether the template takes content in parts, and itself writes the tokens of a picture where it stands."""
        return {"image", "type"} <= self.words

    @property
    def tool_format(self) -> ToolFormat:
        """How the template's model is told of tools and calls them."""
        return format_of(self.calls, self.tools, self.words)

    def adapt(
        self, messages: Sequence[Message], tools: Sequence[JsonObject]
    ) -> tuple[list[JsonObject], list[JsonObject] | None]:
        """Return the template's `messages` and `tools`. Raises PromptError for anything that it does not support.

        Where the template has no place for tools, calls or results, they become text of ordinary messages.
        """
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
        declared = [*tools, *(tool for message in messages for tool in message.tools)]
        self._check_tools(declared)
        if tools and self.tools == "message":
            messages, tools = _with_tools(messages, tools), ()
        as_text = bool(tools) and self.tools == "none"
        if as_text:
            messages, tools = _with_tools_as_text(messages, tools), ()
        native = {tool["type"] for tool in declared if tool["type"] in GLM_TOOLS}
        calls = "none" if as_text and self.calls == "tool_calls" else self.calls
        adapting = _Adapting(self, calls, native, messages)
        return adapting.all(), list(tools) or None

    def _check_tools(self, tools: Iterable[JsonObject]) -> None:
        for tool in tools:
            if tool["type"] in GLM_TOOLS and tool["type"] not in self.tool_format.native:
                raise PromptError(
                    f"this model's chat template does not know {tool['type']}, a tool of glm-4-9b-chat; describe it as "
                    "a function",
                    param="tools",
                )


class _Adapting:
    """The messages of one conversation on their way into the form that a template reads."""

    def __init__(
        self, convention: Convention, calls: Calls, native: Collection[str], messages: Sequence[Message]
    ) -> None:
        self._convention, self._calls, self._native, self._messages = convention, calls, native, messages
        self._names = {call.id: call.name for message in messages for call in message.tool_calls if call.id}

    def all(self) -> list[JsonObject]:
        return [
            adapted
            for i, message in enumerate(self._messages)
            for adapted in self._adapt(message, f"messages[{i}]", self._messages[i - 1] if i else None)
        ]

    def _adapt(self, message: Message, path: str, before: Message | None) -> list[JsonObject]:
        """Return one message as the template reads it; in GLM-4's form, each call is a message of its own."""
        if self._calls == "none" and (message.tool_calls or message.role in _RESULTS):
            return self._as_text(message, before)
        fields: dict[str, Any] = {"role": self._role(message), "content": message.text}
        if message.pictures:
            fields["content"] = [_template_part(part) for part in message.content]
        if message.metadata:
            if self._calls != "metadata":
                raise PromptError(
                    f"{path}.metadata is for GLM-4's chat template, and this model's does not read it; give tool_calls "
                    "for a call",
                    param=f"{path}.metadata",
                )
            fields["metadata"] = message.metadata
        if self._calls == "metadata":
            if message.tools and self._convention.tools == "message":
                fields["tools"] = list(message.tools)
            calls = [call_message(call, self._native) for call in message.tool_calls]
            return [fields, *calls] if message.text or not calls else calls
        if message.tool_calls:
            fields["tool_calls"] = [_openai_call(call) for call in message.tool_calls]
        rest = {"tool_call_id": message.tool_call_id, "name": message.name}
        return [fields | {key: value for key, value in rest.items() if value}]

    def _as_text(self, message: Message, before: Message | None) -> list[JsonObject]:
        """Return a call or a result for a template without a place for them: as the assistant's or the user's text."""
        if message.tool_calls:
            calls = "\n".join(map(call_text, message.tool_calls))
            return [{"role": "assistant", "content": f"{message.text}\n{calls}" if message.text else calls}]
        known = self._names.get(message.tool_call_id or "")
        called = [call.name for call in before.tool_calls] if before is not None else []
        name = message.name or known or (called[0] if len(called) == 1 else None)
        return [{"role": "user", "content": result_text(name, message.text)}]

    def _role(self, message: Message) -> str:
        role = message.role
        if role == "developer":
            return "system"
        if role not in _RESULTS:
            return role
        if self._calls == "metadata" or (role == "observation" and role in self._convention.words):
            return "observation"
        return "tool"


def _with_tools(messages: Sequence[Message], tools: Sequence[JsonObject]) -> list[Message]:
    """Return the messages with the tools in a first system message, which is the caller's if there is one."""
    first = messages[0]
    if first.role in ("system", "developer"):
        return [replace(first, tools=tuple(tools)), *messages[1:]]
    return [Message("system", tools=tuple(tools)), *messages]


def _with_tools_as_text(messages: Sequence[Message], tools: Sequence[JsonObject]) -> list[Message]:
    """Return the messages with a first system message that describes the tools, after the caller's own."""
    first = messages[0]
    own = first if first.role in ("system", "developer") else Message("system")
    rest = messages[1:] if own is first else messages
    return [replace(own, content=system_text(tools, own.text), tools=()), *rest]


def _template_part(part: Part | str) -> JsonObject:
    """Return a part as transformers gives it to templates; a picture is a place without its pixels."""
    return part.to_dict() if isinstance(part, TextPart) else {"type": IMAGE}


def _openai_call(call: ToolCall) -> JsonObject:
    """Return a call with its arguments as an object, as transformers lets templates expect them."""
    arguments = call.parsed()
    function = {"name": call.name, "arguments": call.arguments if arguments is None else arguments}
    return {"type": "function", "function": function} | ({"id": call.id} if call.id else {})
