"""/openapi.json: what this server takes and answers, as an OpenAPI 3.1 document.

In: the router's paths. Out: the document. Knows nothing about what a field means: the tables of `edge.wire` and the
rules of the runtime's settings say what it may be.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import edge
from edge.runtime.rules import Biases, Number, OneOf, Rule, Texts, Whole, Wholes, rule_of
from edge.runtime.settings import GenerationSettings, Sampling
from edge.wire.answers import JsonBody
from edge.wire.anthropic_fields import ANTHROPIC
from edge.wire.fields import CHAT, COMPLETION, Field
from edge.wire.responses_fields import RESPONSES
from edge.wire.tokenizing import IDS, MESSAGES, TEXT

_MODEL_SETTINGS = {spec.name: rule_of(spec) for spec in (*fields(GenerationSettings), *fields(Sampling))}
_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")  # as the router writes it
_ERROR_REF = {"$ref": "#/components/schemas/Error"}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string", "minLength": 1},
                "type": {
                    "enum": [
                        "invalid_request_error",
                        "authentication_error",
                        "permission_error",
                        "rate_limit_error",
                        "server_error",
                    ]
                },
                "param": {"type": ["string", "null"], "description": "the field that is wrong, as a path"},
                "code": {"type": "string", "description": "in what way"},
            },
        }
    },
}


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path."""

    method: str
    path: str  # as the router has it
    summary: str
    table: Mapping[str, Field] | None = None  # of the fields of its body
    required: tuple[str, ...] = ()  # fields without which a body is refused
    streams: bool = False  # if the body asks for it
    answers: str = "application/json"
    needs_key: bool = True  # on a server with keys


# What is said of a path beside its methods; one that is not here is listed without words.
_KNOWN = {
    operation.path: operation
    for operation in (
        Operation("GET", "/health", "Whether requests would be answered.", needs_key=False),
        Operation("GET", "/metrics", "Figures for Prometheus.", answers="text/plain"),
        Operation("GET", "/openapi.json", "This document."),
        Operation("GET", "/v1/models", "The names of the model."),
        Operation("GET", "/v1/models/{name:path}", "One name of the model, and the model's properties."),
        Operation("POST", "/v1/chat/completions", "Answers messages.", CHAT, ("messages",), streams=True),
        Operation("POST", "/v1/completions", "Continues a text.", COMPLETION, ("prompt",), streams=True),
        Operation("POST", "/v1/responses", "Answers items.", RESPONSES, ("input",), streams=True),
        Operation("POST", "/v1/messages", "Answers messages of Anthropic's.", ANTHROPIC, ("messages",), streams=True),
        Operation("POST", "/v1/messages/count_tokens", "How many tokens messages are.", ANTHROPIC, ("messages",)),
        Operation("POST", "/tokenize", "The token ids of a text or of messages.", {**MESSAGES, **TEXT}),
        Operation("POST", "/detokenize", "The text of token ids.", IDS, ("tokens",)),
        Operation("GET", "/tokenizer_info", "The special tokens and the template."),
        Operation("GET", "/page-config.json", "What this server's page shows.", needs_key=False),
        Operation("POST", "/page/forget", "Drops what is kept of finished answers.", {}),
        Operation("GET", "/page/status.json", "The state of the server, for its page."),
    )
}
# What the values of fields hold, where that is more than a type.
_HELD = {
    "messages": "content is a text or a list of parts: text, and for models that see pictures image_url with a data: "
    "URL (in Anthropic's messages image, with a source of base64)",
    "input": "a text, or items; the content of a message is a text or a list of parts: input_text, and for models that "
    "see pictures input_image with a data: URL",
}
_UNLISTED = ("/", "/web/{name:path}")  # files for a browser


def operations_of(routes: Iterable[tuple[str, Iterable[str]]]) -> list[Operation]:
    """Return what is said of the paths of a router, each with its methods."""
    found: list[Operation] = []
    for path, methods in routes:
        if path not in _UNLISTED:
            known = _KNOWN.get(path) or replace(_KNOWN.get(f"/v1{path}", Operation("", path, "")), path=path)
            found += [replace(known, method=method) for method in sorted(methods) if method in ("GET", "POST")]
    return found


def openapi(operations: Iterable[Operation], *, root_path: str = "", keys: bool = False) -> JsonBody:
    """Return the document."""
    paths: dict[str, Any] = {}  # Any: JSON, here and below
    for operation in operations:
        path = _PARAMETER.sub(r"{\1}", operation.path)
        paths.setdefault(path, {})[operation.method.lower()] = _operation(operation, keys)
    components: dict[str, Any] = {"schemas": {"Error": _ERROR}}
    if keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "edgeglm",
            "version": edge.__version__,
            "summary": "OpenAI's protocol for one model on this machine",
        },
        "servers": [{"url": root_path or "/"}],
        "paths": paths,
        "components": components,
    }


def body_schema(table: Mapping[str, Field], required: Sequence[str] = ()) -> JsonBody:
    """Return the schema of a body. Other names than those of the table are refused."""
    return {
        "type": "object",
        "required": list(required),
        "properties": {name: _field(field, name in required) | _held(name) for name, field in table.items()},
        "additionalProperties": False,
    }


def _operation(operation: Operation, keys: bool) -> dict[str, Any]:
    content = {operation.answers: {"schema": {"type": "object"} if operation.answers.endswith("json") else {}}}
    if operation.streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    told: dict[str, Any] = {
        **({"summary": operation.summary} if operation.summary else {}),
        "responses": {
            "200": {"description": "the answer", "content": content},
            "default": {"description": "an error", "content": {"application/json": {"schema": _ERROR_REF}}},
        },
    }
    if names := _PARAMETER.findall(operation.path):
        told["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if operation.method == "POST":
        table = operation.table
        schema = {"type": "object"} if table is None else body_schema(table, operation.required)
        told["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if keys and operation.needs_key:
        told["security"] = [{"key": []}]
    return told


def _held(name: str) -> dict[str, Any]:
    return {"description": _HELD[name]} if name in _HELD else {}


def _field(field: Field, required: bool) -> dict[str, Any]:
    absent = [] if required else [None, *field.absent]
    if field.use == "accepted":
        return {"description": "accepted without effect"}
    if field.use == "unsupported":
        return {"enum": absent, "description": "not supported: any other value is refused"}
    schema = _value(field)
    if not absent:
        return schema
    return {"anyOf": [schema, {"enum": absent, "description": "as good as none"}]}


def _value(field: Field) -> dict[str, Any]:
    types = list(field.types)
    schema: dict[str, Any] = {"type": types[0] if len(types) == 1 else types}
    rule = field.rule or _MODEL_SETTINGS.get(field.setting)
    return schema | (_bounds(rule) if rule is not None else {})


def _bounds(rule: Rule) -> dict[str, Any]:
    bounds: dict[str, Any] = {}
    match rule:
        case Whole(low, high):
            bounds = {"minimum": low} | ({} if high is None else {"maximum": high})
        case Number():
            given = {"exclusiveMinimum" if rule.above else "minimum": rule.low, "maximum": rule.high}
            bounds = {name: bound for name, bound in given.items() if math.isfinite(bound)}
        case OneOf(names):
            bounds = {"enum": list(names)}
        case Texts():
            bounds = {"minLength": 1, "items": {"type": "string", "minLength": 1}}
        case Wholes():
            bounds = {"items": {"type": "integer", "minimum": 0}}
        case Biases():
            bounds = {
                "propertyNames": {"pattern": "^[0-9]{1,19}$"},
                "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
            }
    return bounds
