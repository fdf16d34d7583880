"""/openapi.json says what the tables say, in OpenAPI's own terms; so does the reference that tests are made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import yaml
from hypothesis import given
from jsonschema import Draft202012Validator

from edge.runtime.tools.declared import JsonObject
from edge.server.openapi import Operation, body_schema, openapi
from edge.wire.errors import RequestError
from edge.wire.fields import CHAT, COMPLETION, Field, read_fields

OPERATIONS = [
    Operation("GET", "/health", "Whether requests would be answered.", needs_key=False),
    Operation("GET", "/v1/models/{name:path}", "One model."),
    Operation("POST", "/v1/chat/completions", "Answers messages.", CHAT, ("messages",), streams=True),
    Operation("POST", "/v1/completions", "Goes on with a text.", COMPLETION, ("prompt",), streams=True),
]
REFERENCE = Path(__file__).with_name("openai_reference.yaml")
# What OpenAPI 3.1 demands of a document, as far as ours use it: its own meta-schema is no part of any package here.
META: JsonObject = {
    "type": "object",
    "required": ["openapi", "info", "paths"],
    "properties": {
        "openapi": {"type": "string", "pattern": r"^3\.1\.\d+$"},
        "info": {"type": "object", "required": ["title", "version"]},
        "servers": {"type": "array", "items": {"type": "object", "required": ["url"]}},
        "components": {
            "type": "object",
            "properties": {"schemas": {"type": "object", "additionalProperties": {"$ref": "#/$defs/schema"}}},
        },
        "paths": {
            "type": "object",
            "propertyNames": {"pattern": "^/"},
            "additionalProperties": {
                "type": "object",
                "propertyNames": {"enum": ["get", "post"]},
                "additionalProperties": {"$ref": "#/$defs/operation"},
            },
        },
    },
    "unevaluatedProperties": False,
    "$defs": {
        "schema": {"$ref": "https://json-schema.org/draft/2020-12/schema"},
        "operation": {
            "type": "object",
            "required": ["responses"],
            "properties": {
                "operationId": {"type": "string"},
                "summary": {"type": "string"},
                "security": {"type": "array", "items": {"type": "object"}},
                "parameters": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["name", "in", "required", "schema"],
                        "properties": {"in": {"const": "path"}, "required": {"const": True}},
                    },
                },
                "requestBody": {
                    "type": "object",
                    "required": ["content"],
                    "properties": {"content": {"$ref": "#/$defs/content"}, "required": {"type": "boolean"}},
                    "additionalProperties": False,
                },
                "responses": {
                    "type": "object",
                    "minProperties": 1,
                    "propertyNames": {"pattern": "^([1-5][0-9][0-9]|default)$"},
                    "additionalProperties": {
                        "anyOf": [
                            {"type": "object", "required": ["$ref"]},
                            {"type": "object", "required": ["description", "content"]},
                        ],
                        "properties": {"content": {"$ref": "#/$defs/content"}},
                    },
                },
            },
            "additionalProperties": False,
        },
        "content": {
            "type": "object",
            "propertyNames": {"pattern": "^[a-z]+/[a-z+.-]+$"},
            "additionalProperties": {"type": "object", "properties": {"schema": {"$ref": "#/$defs/schema"}}},
        },
    },
}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 200) | st.floats(-3, 3) | st.sampled_from(["", "a", "text"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "5", "x"]), inner, max_size=2),
    max_leaves=4,
)


def check_document(document: JsonObject) -> None:
    """Raise for a document that is not OpenAPI 3.1, or whose references lead nowhere."""
    Draft202012Validator(META).validate(document)
    for reference in references(document):
        found: Any = document
        for name in reference.removeprefix("#/").split("/"):
            found = found[name]


def references(value: object) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [reference for inner in value.values() for reference in references(inner)]
    return [reference for inner in value for reference in references(inner)] if isinstance(value, list) else []


@pytest.mark.parametrize("keys", [False, True])
def test_our_document_is_openapi(keys: bool) -> None:
    document = openapi(OPERATIONS, root_path="/llm", keys=keys)
    check_document(json.loads(json.dumps(document, allow_nan=False)))
    assert ("security" in document["paths"]["/v1/models/{name}"]["get"]) == keys
    assert "security" not in document["paths"]["/health"]["get"]
    assert document["servers"] == [{"url": "/llm"}]


def test_the_reference_is_openapi() -> None:
    check_document(yaml.safe_load(REFERENCE.read_text(encoding="utf-8")))


@pytest.mark.parametrize(("table", "required"), [(CHAT, "messages"), (COMPLETION, "prompt")])
def test_every_field_is_described(table: dict[str, Field], required: str) -> None:
    schema = body_schema(table, (required,))
    assert set(schema["properties"]) == set(table)
    assert schema["required"] == [required]
    validator = Draft202012Validator(schema)
    body: JsonObject = {required: []}
    for name, field in table.items():
        for neutral in () if name == required else (None, *field.absent):
            assert validator.is_valid({**body, name: neutral}), (name, neutral)
    assert not validator.is_valid({})
    assert not validator.is_valid({**body, "messagse": 1})


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("temperature", [0, 2, 1.5], [-0.1, 2.1, "1", True]),
        ("top_p", [0.5, 1], [1.1, -1]),
        ("n", [1, 8, 2.0], [0, 9, 1.5]),
        ("max_tokens", [1, -1], ["1", 1.5]),
        ("stop", ["a", ["a", "b"], "", []], [["a", 1], {}]),
        ("logit_bias", [{"1": 100}, {}], [{"1": 101}, {"x": 1}, {"1": "a"}]),
        ("stop_token_ids", [[1, 2]], [[-1], 5]),
        ("seed", [-5, 7], [0.5]),
        ("top_logprobs", [0, 20], [21]),
        ("modalities", [["text"], None], [["audio"], "text"]),
        ("user", ["anything", 5, {}], []),
    ],
)
def test_ranges_are_those_of_the_rules(name: str, good: list[object], bad: list[object]) -> None:
    validator = Draft202012Validator(body_schema(CHAT))
    assert [value for value in good if not validator.is_valid({name: value})] == []
    assert [value for value in bad if validator.is_valid({name: value})] == []


@given(st.sampled_from(sorted(CHAT.keys() - {"messages"})), VALUES)
def test_what_the_table_refuses_the_document_refuses(name: str, value: object) -> None:
    try:
        read_fields({name: value}, CHAT)
    except RequestError:
        assert not Draft202012Validator(body_schema(CHAT)).is_valid({name: value})
