"""Every field that a body may have, in one table for each endpoint, and what becomes of it.

In: the body of a request. Out: the fields that are used, by name. Knows nothing about what they do: `chat_request` and
`completion_request` hand them to the runtime, whose settings check the values.

    used         taken; its value is checked
    accepted     changes nothing here, whatever it is
    unsupported  would change the answer: refused, unless it is null or has a neutral value, which changes nothing

Null is an absent field everywhere. Any other name is refused: a misspelt field would be a wrong answer in silence.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from edge.runtime.errors import in_words, shown
from edge.runtime.rules import Number, Rule, Texts, Whole
from edge.runtime.tools.declared import JsonObject
from edge.wire.errors import RequestError

Use = Literal["used", "accepted", "unsupported"]
JsonType = Literal["boolean", "integer", "number", "string", "array", "object", "null"]

MAX_CHOICES = 8  # answers to one prompt
MAX_STOPS = 16
MAX_TEMPERATURE = 2
MAX_TOP_LOGPROBS = 20
MAX_OLD_LOGPROBS = 5  # of /v1/completions
_ARTICLES = {"integer": "a whole number", "array": "a list", "object": "an object", "boolean": "true or false"}


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a body."""

    use: Use
    types: tuple[JsonType, ...] = ()  # of a used one
    setting: str = ""  # the keyword of `LLM.generate` that takes the value as it is
    rule: Rule | None = None  # narrower than that of the setting
    absent: tuple[Any, ...] = ()  # Any: JSON. Values that are as good as none


def _used(*types: JsonType, setting: str = "", rule: Rule | None = None, absent: tuple[Any, ...] = ()) -> Field:
    return Field("used", types, setting, rule, absent)


def _unsupported(*neutral: Any) -> Field:  # Any: JSON
    return Field("unsupported", absent=neutral)


_ACCEPTED = Field("accepted")
_NO_LIMIT = (-1,)  # as other servers have it
_COMMON = {
    "model": _used("string"),
    "stream": _used("boolean"),
    "stream_options": _used("object"),
    "n": _used("integer", rule=Whole(1, MAX_CHOICES)),
    "max_tokens": _used("integer", absent=_NO_LIMIT),
    "temperature": _used("number", setting="temperature", rule=Number(0, MAX_TEMPERATURE)),
    "top_p": _used("number", setting="top_p"),
    "stop": _used("string", "array", setting="stop", rule=Texts(), absent=("", [])),
    "presence_penalty": _used("number", setting="presence_penalty"),
    "frequency_penalty": _used("number", setting="frequency_penalty"),
    "logit_bias": _used("object", setting="logit_bias", absent=({},)),
    "seed": _used("integer", rule=Whole(-(2**63))),
    "response_format": _used("object", absent=({"type": "text"},)),
    # Not OpenAI's: names that other local servers have made common.
    "top_k": _used("integer"),
    "min_p": _used("number", setting="min_p"),
    "typical_p": _used("number", setting="typical_p"),
    "repetition_penalty": _used("number", setting="repetition_penalty"),
    "min_tokens": _used("integer", setting="min_new_tokens"),
    "stop_token_ids": _used("array", setting="stop_token_ids"),
    "ignore_eos": _used("boolean", setting="ignore_stop_ids"),
    "structured_outputs": _used("object", absent=({},)),
    "regex": _used("string"),
    "grammar": _used("string", absent=("",)),
    "deadline_s": _used("number", setting="deadline_s"),
    "return_token_ids": _used("boolean"),
    "return_progress": _used("boolean"),
    "timings_per_token": _used("boolean"),
    **dict.fromkeys(
        (
            "user",
            "store",
            "metadata",
            "safety_identifier",
            "prompt_cache_key",
            "prompt_cache_retention",
            "prompt_cache_options",
            "service_tier",
            "cache_prompt",
        ),
        _ACCEPTED,
    ),
    "use_beam_search": _unsupported(False),
    "length_penalty": _unsupported(1),
    "include_stop_str_in_output": _unsupported(False),
    "skip_special_tokens": _unsupported(True),
    "spaces_between_special_tokens": _unsupported(True),
    "truncate_prompt_tokens": _unsupported(),
    "prompt_logprobs": _unsupported(0),
    "best_of": _unsupported(1),
}
CHAT = {
    "messages": _used("array"),
    **_COMMON,
    "max_completion_tokens": _used("integer", absent=_NO_LIMIT),
    "logprobs": _used("boolean"),
    "top_logprobs": _used("integer", rule=Whole(0, MAX_TOP_LOGPROBS)),
    "tools": _used("array", absent=([],)),
    "tool_choice": _used("string", "object"),
    "chat_template_kwargs": _used("object"),
    **dict.fromkeys(("parallel_tool_calls", "reasoning_effort", "verbosity", "moderation", "prediction"), _ACCEPTED),
    "modalities": _unsupported(["text"], []),
    "audio": _unsupported(),
    "web_search_options": _unsupported(),
    "functions": _unsupported([]),
    "function_call": _unsupported("none", "auto"),
    "include": _unsupported([]),
    "continue_final_message": _used("boolean"),
    "add_generation_prompt": _used("boolean"),
}
COMPLETION = {
    "prompt": _used("string", "array"),
    **_COMMON,
    "logprobs": _used("integer", rule=Whole(0, MAX_OLD_LOGPROBS)),
    "echo": _used("boolean"),
    "suffix": _unsupported(""),
}


def read_fields(body: JsonObject, table: Mapping[str, Field]) -> dict[str, Any]:  # Any: JSON
    """Return the used fields that a body has. Raises RequestError for any that the table refuses."""
    found: dict[str, Any] = {}
    for name, value in body.items():
        field = table.get(name)
        if field is None:
            raise _unknown(name, table)
        if value is None or any(_equal(value, neutral) for neutral in field.absent):
            continue
        if field.use == "unsupported":
            raise _refused(name, value, field)
        if field.use == "used":
            check_type(name, value, field.types)
            found[name] = value
    return found


def check_type(param: str, value: object, types: tuple[JsonType, ...]) -> None:
    """Raise RequestError for a value of another type of JSON."""
    if not is_of(value, types):
        raise RequestError(f"{param} is {shown(value)}, expected {_listed(types)}", code="invalid_type", param=param)


def is_of(value: object, types: tuple[JsonType, ...]) -> bool:
    """Whether a value of JSON has one of these types. 5.0 is a whole number, as in JSON schemas."""
    kind = _type_of(value)
    whole = isinstance(value, float) and value.is_integer()
    return kind in types or ("number" in types and kind == "integer") or ("integer" in types and whole)


def _listed(types: tuple[JsonType, ...]) -> str:
    return " or ".join(_ARTICLES.get(kind, "null" if kind == "null" else f"a {kind}") for kind in types)


def _type_of(value: object) -> JsonType:
    kinds: tuple[tuple[type, JsonType], ...] = (
        (bool, "boolean"), (int, "integer"), (float, "number"), (str, "string"), (list, "array"), (dict, "object"),
    )  # fmt: skip
    return next((kind for python, kind in kinds if isinstance(value, python)), "null")


def _equal(value: object, other: object) -> bool:
    """Compare as JSON does: true is not 1."""
    return value == other and (isinstance(value, bool) == isinstance(other, bool))


def _unknown(name: str, table: Mapping[str, Field]) -> RequestError:
    close = get_close_matches(name[:100], table, 1)
    hint = f"; did you mean {close[0]!r}?" if close else "; leave it out"
    return RequestError(f"unknown field {shown(name)}{hint}", code="unknown_parameter", param=in_words(name, 100))


def _refused(name: str, value: object, field: Field) -> RequestError:
    known = ", ".join(map(json.dumps, field.absent))
    return RequestError(
        f"{name} is {shown(value)}, which is not supported; leave it out" + (f", or send {known}" if known else ""),
        code="unsupported_parameter",
        param=name,
    )
