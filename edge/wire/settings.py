"""Fields that both endpoints share, as the keywords of `LLM.generate` and `LLM.chat`.

In: the used fields of a body. Out: keywords, checked by the runtime's own settings, and what each was called in the
body. Knows nothing about messages or prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from edge.runtime.errors import shown
from edge.runtime.rules import check_value
from edge.runtime.settings import GenerationOptions, generation_settings
from edge.runtime.tools.declared import JsonObject
from edge.wire.body import in_terms_of
from edge.wire.constraints import read_constraint
from edge.wire.errors import RequestError
from edge.wire.fields import MAX_STOPS, Field

_SEEDS = 2**62  # clients send negative ones, too; every choice of a request needs one of its own within 63 bits
_LIMITS = ("max_completion_tokens", "max_tokens")  # the first wins
_OFF = -1  # of top_k, as other servers have it


@dataclass(frozen=True, slots=True)
class RequestSettings:
    """What a body says about its answers, beside what is asked."""

    options: GenerationOptions
    names: Mapping[str, str]  # setting -> the field that set it, where the two differ
    n: int
    model: str | None
    stream: bool
    include_usage: bool
    token_ids: bool  # wanted in the answer
    progress: bool  # of reading the prompt wanted in a stream
    timings: bool  # wanted in each chunk of a stream


def read_settings(
    body: JsonObject,
    fields: dict[str, Any],  # Any: JSON
    table: Mapping[str, Field],
    more: Mapping[str, object] | None = None,
) -> RequestSettings:
    """Return the settings of a body. more: keywords beside those of the table. Raises RequestError."""
    names = {"template_variables": "chat_template_kwargs", "prompt_logprobs": "logprobs"}
    names |= {field.setting: name for name, field in table.items() if field.setting and field.setting != name}
    options: dict[str, object] = dict(more or {})
    with in_terms_of(body, names):
        for name, value in fields.items():
            field = table[name]
            if field.rule is not None:
                fields[name] = check_value(name, field.rule, value)
            if field.setting:
                options[field.setting] = fields[name]
    if len(stops := fields.get("stop", ())) > MAX_STOPS:
        raise RequestError(
            f"stop has {len(stops)} texts, expected at most {MAX_STOPS}", code="invalid_value", param="stop"
        )
    if "seed" in fields:
        options["seed"] = fields["seed"] % _SEEDS
    if "top_k" in fields:
        options["top_k"] = 0 if fields["top_k"] == _OFF else fields["top_k"]
    if limit := _limit(fields):
        names["max_new_tokens"], options["max_new_tokens"] = limit
    if constraint := read_constraint(fields):
        options["constraint"], names["constraint"] = constraint
    with in_terms_of(body, names):
        keywords = cast("GenerationOptions", options)
        generation_settings(**keywords)
    return RequestSettings(
        options=keywords,
        names=names,
        n=fields.get("n", 1),
        model=fields.get("model"),
        stream=fields.get("stream", False),
        include_usage=_include_usage(fields.get("stream_options", {})),
        token_ids=fields.get("return_token_ids", False),
        progress=fields.get("return_progress", False),
        timings=fields.get("timings_per_token", False),
    )


def _limit(fields: JsonObject) -> tuple[str, object] | None:
    given = [(name, fields[name]) for name in _LIMITS if name in fields]
    if len(given) > 1 and given[0][1] != given[1][1]:
        (first, one), (second, other) = given
        raise RequestError(
            f"{first} is {shown(one)} and {second} is {shown(other)}; give one of them",
            code="invalid_value",
            param=second,
        )
    return given[0] if given else None


def _include_usage(stream_options: JsonObject) -> bool:
    wanted = stream_options.get("include_usage")
    if not isinstance(wanted, bool | None):
        path = "stream_options.include_usage"
        raise RequestError(f"{path} is {shown(wanted)}, expected true or false", code="invalid_type", param=path)
    return bool(wanted)
