"""A Python function as a tool: `tool_of`.

In: a function with type hints and a docstring. Out: a `Tool`, whose arguments are checked and converted before the
function is called, and whose result becomes text. What a model may leave out has a default.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Awaitable, Callable, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from edge.runtime.errors import SettingsError, in_words, shown
from edge.runtime.extras import missing_packages_named
from edge.tools.docstring import described
from edge.tools.tool import Tool

if TYPE_CHECKING:
    from edge.tools.schema import Argument

Function = Callable[..., Any]  # Any: functions of every kind

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def tool_of(function: Function, *, name: str | None = None) -> Tool:
    """Return a function as a tool: functions, async ones, methods, partials, and objects that can be called.

    Its name (or `name`), the first paragraph of its docstring, its type hints and what the docstring says of each
    parameter are what the model is told. Raises SettingsError for a function that cannot be described, and
    MissingPackageError without msgspec.
    """
    plain = _plain(function)
    name = _name(plain) if name is None else name
    if not isinstance(name, str) or not name.strip() or "\n" in name:
        raise SettingsError(f"the name of a tool is {shown(name)}, expected text on one line", param="tools")
    with missing_packages_named("tools"):
        from edge.tools.schema import Arguments, text_of
    parameters = _parameters(function, name)
    description, texts = described(_docstring(plain), [parameter.name for parameter in parameters])
    arguments = Arguments(name, [_argument(plain, parameter, texts, name) for parameter in parameters])

    def run(given: Mapping[str, Any]) -> str | Awaitable[str]:
        found = function(**arguments.converted(given))
        return later(found) if inspect.isawaitable(found) else text_of(found)

    async def later(found: Awaitable[object]) -> str:
        return text_of(await found)

    declared = {"name": name, **({"description": description} if description else {}), "parameters": arguments.schema}
    return Tool({"type": "function", "function": declared}, run)


def _plain(function: object) -> Function:
    """Return the function that has the docstring and the hints. Raises SettingsError for what is not a function."""
    if not callable(function) or isinstance(function, type):
        raise SettingsError(f"a tool is {shown(function)}, expected a function or a Tool", param="tools")
    while isinstance(function, functools.partial):
        function = function.func
    if getattr(function, "__name__", "") == "<lambda>":
        raise SettingsError(
            "a tool is a lambda, which has neither type hints nor a docstring; write it with def", param="tools"
        )
    found: Function = function
    return found


def _name(plain: Function) -> str:
    return str(getattr(plain, "__name__", type(plain).__name__))


def _docstring(plain: Function) -> str | None:
    """Return the docstring of a function, or of an object: that of its `__call__`, or of its class."""
    if inspect.isroutine(plain) or hasattr(plain, "__wrapped__"):
        return inspect.getdoc(plain)
    return type(plain).__call__.__doc__ or inspect.getdoc(plain)


def _parameters(function: Function, name: str) -> list[inspect.Parameter]:
    """Return what a model may give, which a partial's keywords are not. Raises SettingsError."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (ValueError, TypeError) as error:
        raise SettingsError(f"the parameters of {name} are not known: {in_words(error)}", param="tools") from error
    given: set[str] = set()
    inner: object = function
    while isinstance(inner, functools.partial):
        given.update(inner.keywords)
        inner = inner.func
    kept = [parameter for parameter in parameters if parameter.name not in given]
    for parameter in kept:
        if parameter.kind in _BY_POSITION:
            positional = ", given by position only" if parameter.kind is inspect.Parameter.POSITIONAL_ONLY else ""
            stars = str(parameter).split(parameter.name)[0]
            raise SettingsError(
                f"{name} has a parameter {stars}{parameter.name}{positional}; a model gives arguments by their names, "
                "so name each of them",
                param="tools",
            )
    return kept


def _argument(plain: Function, parameter: inspect.Parameter, texts: Mapping[str, str], name: str) -> Argument:
    from edge.tools.schema import Argument

    if parameter.annotation is inspect.Parameter.empty:
        raise SettingsError(
            f"{name} has a parameter {parameter.name} without a type hint, from which the model learns what to give; "
            f"write one, like `{parameter.name}: str`",
            param="tools",
        )
    holder = SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    try:
        hint = typing.get_type_hints(holder, _globals(plain), include_extras=True)[parameter.name]
    except Exception as error:  # an annotation is code
        raise SettingsError(
            f"{name} has a parameter {parameter.name} whose type hint {shown(parameter.annotation)} cannot be read: "
            f"{in_words(error)}; define its names at the top of the module",
            param="tools",
        ) from error
    return Argument(parameter.name, hint, parameter.default, texts.get(parameter.name, ""))


def _globals(plain: Function) -> dict[str, Any]:
    """Return where the names in hints are looked up."""
    if not inspect.isroutine(plain):
        plain = type(plain).__call__
    found: dict[str, Any] = getattr(inspect.unwrap(plain), "__globals__", {})
    return found
