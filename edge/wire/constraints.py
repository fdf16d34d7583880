"""What a body asks of the form of an answer, as the one constraint that the runtime takes.

In: `response_format`, `structured_outputs`, `regex` and `grammar`. Out: a `Constraint`, and the path of what asked for
it. Knows nothing about how it is enforced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edge.runtime.constraint import Constraint
from edge.runtime.errors import SettingsError, shown
from edge.runtime.tools.declared import JsonObject
from edge.wire.errors import RequestError
from edge.wire.fields import JsonType, check_type

_FIELDS = ("response_format", "structured_outputs", "regex", "grammar")


def read_constraint(fields: JsonObject) -> tuple[Constraint, str] | None:
    """Return the constraint with its path; None if there is none. Raises RequestError, also for more than one."""
    given = [name for name in _FIELDS if name in fields]
    if len(given) > 1:
        raise RequestError(
            f"{given[0]} and {given[1]} both say what the answer must look like; give one of them",
            code="invalid_value",
            param=given[1],
        )
    if not given:
        return None
    name = given[0]
    if name == "response_format":
        return _response_format(fields[name])
    if name == "structured_outputs":
        return _structured_outputs(fields[name])
    return _made(Constraint.regex if name == "regex" else Constraint.lark, fields[name], name)


def _response_format(given: JsonObject) -> tuple[Constraint, str] | None:
    kind = given.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return Constraint.json_object(), "response_format"
    path = "response_format.json_schema"
    if kind != "json_schema":
        raise RequestError(
            f"response_format.type is {shown(kind)}, expected 'text', 'json_object' or 'json_schema'",
            code="missing_required_parameter" if kind is None else "invalid_value",
            param="response_format.type",
        )
    wrapper = _inside(given, "json_schema", path, ("object",))
    schema = _inside(wrapper, "schema", f"{path}.schema", ("object",))
    return _made(Constraint.json_schema, schema, f"{path}.schema")


def _structured_outputs(given: JsonObject) -> tuple[Constraint, str] | None:
    """vLLM's field."""
    makers: Mapping[str, tuple[Callable[[Any], Constraint], tuple[JsonType, ...]]] = {  # Any: as the types say
        "json": (Constraint.json_schema, ("object", "string")),
        "json_object": (lambda _: Constraint.json_object(), ("boolean",)),
        "regex": (Constraint.regex, ("string",)),
        "choice": (Constraint.choice, ("array",)),
        "grammar": (Constraint.lark, ("string",)),
    }
    found = {key: value for key, value in given.items() if value is not None and value is not False}
    for key in found:
        if key not in makers:
            raise RequestError(
                f"structured_outputs has {shown(key)}, expected one of {', '.join(makers)}",
                code="unknown_parameter",
                param="structured_outputs",
            )
    if not found:
        return None
    if len(found) > 1:
        raise RequestError(
            f"structured_outputs has {' and '.join(found)}; give one of them",
            code="invalid_value",
            param="structured_outputs",
        )
    ((key, value),) = found.items()
    make, types = makers[key]
    path = f"structured_outputs.{key}"
    check_type(path, value, types)
    return _made(make, value, path)


def _inside(given: JsonObject, key: str, path: str, types: tuple[JsonType, ...]) -> Any:  # Any: JSON
    if given.get(key) is None:
        raise RequestError(f"{path} is missing", code="missing_required_parameter", param=path)
    check_type(path, given[key], types)
    return given[key]


def _made(
    make: Callable[[Any], Constraint],
    value: object,
    path: str,  # Any: what the maker takes
) -> tuple[Constraint, str]:
    try:
        return make(value), path
    except SettingsError as error:
        raise RequestError(str(error), code="invalid_schema", param=path) from error
