"""Type hints to a JSON schema, and values of JSON to arguments of these types.

In: parameters with their hints. Out: a schema for the model, a function that checks and converts what it wrote, and
text for what the function returned. msgspec does all three: it knows the types, refuses hints that JSON cannot hold,
and names the wrong value of an argument. (225 kB without dependencies; pydantic would do it in 7 MB.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime
from inspect import Parameter
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import msgspec

from edge.runtime.errors import PromptError, SettingsError, in_words, shown

_REFS = "#/$defs/"
# uniqueItems is unknown to llguidance, which would hold no argument at all; a set forgives what occurs twice.
_LEFT_OUT = ("$ref", "$defs", "uniqueItems")
_WRITTEN = (str, int, float, bool)  # defaults that a schema can show
_LISTS = (list, tuple, set, frozenset)
_SHOWN_DEFAULT = 200  # characters


@dataclass(frozen=True, slots=True)
class Argument:
    """One parameter of a function."""

    name: str
    hint: Any  # every hint that there is
    default: Any = Parameter.empty  # of any type
    description: str = ""


class Arguments:
    """All parameters of a function."""

    def __init__(self, function: str, arguments: Sequence[Argument]) -> None:
        """Raises SettingsError, which names the parameter, for a hint that has no schema."""
        self._function, self._arguments = function, arguments
        properties: dict[str, Any] = {}
        specs: list[tuple[str, Any, Any]] = []
        for i, argument in enumerate(arguments):
            hint, properties[argument.name] = self._hint_and_schema(argument)
            name, is_required = argument.name, argument.default is Parameter.empty
            field = msgspec.field(name=name) if is_required else msgspec.field(name=name, default=None)
            specs.append((f"a{i}", hint, field))  # a name like __b would be mangled
        self._type = msgspec.defstruct("Arguments", specs, kw_only=True, forbid_unknown_fields=True)
        required_names = [argument.name for argument in arguments if argument.default is Parameter.empty]
        kept: dict[str, Any] = {}
        for found in properties.values():
            for name, part in found.pop("$defs", {}).items():
                if kept.setdefault(name, part) != part:
                    raise SettingsError(f"{function} has parameters of two types named {name}; rename one of them")
        self.schema: dict[str, Any] = {
            "type": "object",
            "properties": properties,
            "required": required_names,
            "additionalProperties": False,
            **({"$defs": kept} if kept else {}),
        }

    def converted(self, given: Mapping[str, Any]) -> dict[str, Any]:  # Any: JSON; values of the hinted types
        """Return what to call the function with. Raises PromptError."""
        try:
            found = msgspec.convert(dict(given), self._type, dec_hook=_from_json)
        except (msgspec.ValidationError, ValueError, TypeError) as error:
            names = [
                argument.name if argument.default is Parameter.empty else f"{argument.name} (optional)"
                for argument in self._arguments
            ]
            raise PromptError(
                f"the arguments of {self._function} are {shown(dict(given))}: {in_words(error)}"
                f"{self._choices(error)}; expected {', '.join(names) or 'none'}"
            ) from error
        _complete(found)
        values = {argument.name: getattr(found, f"a{i}") for i, argument in enumerate(self._arguments)}
        return {name: values[name] for name in given}

    def _choices(self, error: Exception) -> str:
        """Return the schema of an argument that is not one of some values: msgspec does not say which there are."""
        where = re.match(r"Invalid enum value .* - at `\$\.(\w+)", str(error), re.DOTALL)
        schema = self.schema["properties"].get(where.group(1)) if where else None
        return "" if schema is None else f", which follows {in_words(json.dumps(schema, ensure_ascii=False))}"

    def _hint_and_schema(self, argument: Argument) -> tuple[Any, dict[str, Any]]:
        try:
            hint = _prepared(argument.hint)
            (schema,), parts = msgspec.json.schema_components([hint], schema_hook=_schema)
        except Exception as error:  # of msgspec, or of a class that makes its own schema
            raise SettingsError(
                f"{self._function} has a parameter {argument.name} of the type {shown(argument.hint)}, which has no "
                f"JSON schema: {in_words(error)}"
            ) from error
        kept: dict[str, Any] = {}
        found = _inlined(schema, parts, kept)
        if argument.description and "description" not in schema:  # a class's own description tells less
            found = {"description": argument.description, **{k: v for k, v in found.items() if k != "description"}}
        default = argument.default
        if isinstance(default, _WRITTEN) and type(default) in _WRITTEN and len(str(default)) <= _SHOWN_DEFAULT:
            found = {**found, "default": default}
        return hint, {**found, **({"$defs": kept} if kept else {})}


def text_of(value: object) -> str:
    """Return what a function returned as text for a model. Raises TypeError for what JSON cannot hold."""
    if isinstance(value, str):
        return value
    return json.dumps(msgspec.to_builtins(value, str_keys=True, enc_hook=_to_json), ensure_ascii=False)


def _prepared(hint: Any) -> Any:
    """Return a hint whose texts are descriptions, and whose times have the format of RFC 3339."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is datetime:
        return Annotated[datetime, msgspec.Meta(extra_json_schema={"format": "date-time"})]
    if origin is Annotated:
        texts = [extra for extra in args[1:] if isinstance(extra, str)]
        others = [extra for extra in args[1:] if not isinstance(extra, str)]
        told = [msgspec.Meta(description=" ".join(texts))] if texts else []
        return Annotated[(_prepared(args[0]), *others, *told)]
    if origin in (Union, UnionType):
        return Union[tuple(_prepared(arg) for arg in args)]  # noqa: UP007  # of as many as there are
    if isinstance(origin, type) and args and not isinstance(args[0], list):
        inner = tuple(arg if arg is ... else _prepared(arg) for arg in args)
        return hint.copy_with(inner) if hasattr(hint, "copy_with") else hint.__class__(origin, inner)
    return hint


def _inlined(schema: Any, parts: Mapping[str, Any], kept: dict[str, Any]) -> Any:
    """Return a schema with each part in its place, as models see it in training; parts that contain themselves stay.

    kept: gets the parts that stay.
    """
    if isinstance(schema, list):
        return [_inlined(item, parts, kept) for item in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {**parts, **schema.get("$defs", {})}  # a class's own schema has its own
    reference = schema.get("$ref")
    name = str(reference).removeprefix(_REFS)
    rest = {key: _inlined(value, parts, kept) for key, value in schema.items() if key not in _LEFT_OUT}
    if reference is None or name not in parts:
        return rest if reference is None else {**rest, "$ref": reference}
    if not _contains(parts[name], name, parts):
        return {**_inlined(parts[name], parts, kept), **rest}
    if name not in kept:
        kept[name] = None
        kept[name] = _inlined(parts[name], parts, kept)
    return {**rest, "$ref": reference}


def _contains(schema: Any, name: str, parts: Mapping[str, Any]) -> bool:
    """Whether a schema leads to a part, directly or through others."""
    waiting, seen = [schema], set[str]()
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            reference = str(item.get("$ref", "")).removeprefix(_REFS)
            if reference == name:
                return True
            if reference in parts and reference not in seen:
                seen.add(reference)
                waiting.append(parts[reference])
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
    return False


def _schema(kind: type) -> dict[str, Any]:
    """Return the schema that a class makes itself, as pydantic's do."""
    make = getattr(kind, "model_json_schema", None)
    if make is None:
        raise NotImplementedError
    schema: dict[str, Any] = make()
    return schema


def _from_json(kind: type, value: Any) -> Any:
    validate = getattr(kind, "model_validate", None)
    if validate is None:
        raise NotImplementedError
    return validate(value)


def _complete(value: object) -> None:
    """Give dataclasses their defaults: msgspec leaves those to the class, where vars() and writers do not see them."""
    if isinstance(value, msgspec.Struct):
        items = [getattr(value, name) for name in value.__struct_fields__]
    elif is_dataclass(value):
        named = {spec.name: getattr(value, spec.name) for spec in fields(value) if hasattr(value, spec.name)}
        for name, item in named.items():
            object.__setattr__(value, name, item)  # a frozen one too
        items = list(named.values())
    else:
        items = list(value.values() if isinstance(value, Mapping) else value if isinstance(value, _LISTS) else ())
    for item in items:
        _complete(item)


def _to_json(value: Any) -> Any:
    """Return a value in simpler ones, if it knows how: pydantic's models, numbers and arrays of numpy."""
    for name in ("model_dump", "tolist"):
        if (make := getattr(value, name, None)) is not None and not isinstance(value, type):
            return make()
    raise TypeError(f"the tool returned {shown(value)}, expected text or what JSON can hold")
