"""Where chat templates run: they reach only what they are given, and they end.

In: the source of a template, and values. Out: text, or whatever exception the template causes. Knows nothing about
messages. `template_budget.py` counts what templates may cost.

jinja2's sandbox limits what a template can reach, but lets it compute for ever and fill the memory. So the syntax tree
is changed before it is compiled: each iteration of a loop and each call of a macro takes units from a budget, and so do
comparisons, joined texts, filters, tests, operators, methods and output, by the sizes of their operands. The budget is
in the context of one rendering, under a name that no template can write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jinja2
from jinja2 import nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace

from edge.runtime.template_budget import (
    BASE_UNITS,
    UNITS_PER_INPUT,
    Budget,
    TooMuchError,
    outer_units,
    total_units,
)

MAX_SOURCE = 200_000  # characters of a template; the longest published ones have 20,000
TEXT_PER_INPUT = 16  # characters that may be written for each character given,
BASE_TEXT = 1_000_000  # in addition to these
_BUDGET, _SPEND, _TOUCH, _WEIGH = " budget", " spend", " touch", " weigh"  # the space keeps templates from naming them

# For HTML, or slow on long texts; no chat template uses them.
_LEFT_OUT = ("lipsum", "urlize", "xmlattr", "striptags", "wordwrap", "pprint", "wordcount")
# Filters whose work depends only on the size of a list or text; that of others may depend on all its content.
_OUTER_FILTERS = frozenset(
    (
        *("length", "count", "first", "last", "list", "reverse", "select", "reject", "selectattr", "rejectattr", "map"),
        *("batch", "slice", "items", "attr", "default", "d", "trim", "random"),
    )
)
_SORTING = frozenset(("sort", "dictsort", "groupby", "unique", "min", "max"))
_COMPARING_TESTS = frozenset(
    ("eq", "==", "equalto", "ne", "!=", "in", "lt", "<", "lessthan", "le", "<=", "gt", ">", "greaterthan", "ge", ">=")
)
_OUTER_CALLS = (Macro, LoopContext, BlockReference, Cycler, Joiner)  # all that they do is counted elsewhere
_OF_JINJA = ("_loop_vars", "_block_vars", "caller")  # keywords that compiled templates add to calls


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}`: marks the assistant's text for training, and changes nothing."""

    tags = {"generation"}  # noqa: RUF012  # as jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Macro) -> str:
        return str(caller())


class Sandbox(ImmutableSandboxedEnvironment):
    """Compiles and renders templates as transformers does, with its extensions and treatment of white space."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(
        self, filters: Mapping[str, Callable[..., object]], functions: Mapping[str, Callable[..., object]]
    ) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], finalize=_finalize
        )
        self.globals |= functions
        for name in _LEFT_OUT:
            self.globals.pop(name, None)
            self.filters.pop(name, None)
        self.filters = {name: _counted_filter(name, found) for name, found in {**self.filters, **filters}.items()}
        self.filters |= {_SPEND: _spend, _TOUCH: _touch, _WEIGH: _weigh}
        tests: dict[str, Any] = {**self.tests}  # untyped in jinja2
        self.tests = {name: _counted_test(name, found) for name, found in tests.items()}

    def compile_text(self, source: str) -> tuple[nodes.Template, jinja2.Template]:
        """Return the syntax tree as it was written, and the template. Raises anything that jinja2 and Python raise."""
        if len(source) > MAX_SOURCE:
            raise TooMuchError(f"it has {len(source):,} characters, expected at most {MAX_SOURCE:,}")
        return self.parse(source), self.from_string(source)

    def _generate(
        self, source: nodes.Template, name: str | None, filename: str | None, defer_init: bool = False
    ) -> str:
        _count_work(source)
        source.set_environment(self)
        return super()._generate(source, name, filename, defer_init)

    def call_binop(self, context: Context, operator: str, left: object, right: object) -> object:
        budget = _budget(context)
        budget.spend(1)
        budget.check_operator(operator, left, right)
        result = super().call_binop(context, operator, left, right)
        budget.touch(result)
        return result

    def call(__self, __context: Context, __obj: object, *args: object, **kwargs: object) -> object:
        budget = _budget(__context)
        budget.spend(1 + len(args) + len(kwargs))
        if not isinstance(__obj, _OUTER_CALLS) and __obj is not Namespace:
            given = {key: value for key, value in kwargs.items() if key not in _OF_JINJA}
            budget.weigh([*args, *given.values()])
            method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format in a version of its own
            owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
            if name == "join":
                args = tuple(_taken(arg, budget) for arg in args)
                budget.weigh(list(args))
            budget.check_method(owner, str(name), args, given)
        result = super().call(__context, __obj, *args, **kwargs)
        budget.touch(result)
        return budget.counted(result)


def render(template: jinja2.Template, values: Mapping[str, object]) -> str:
    """Return a template's text. Raises TooMuchError if it does too much, and any exception that it causes."""
    given = total_units(dict(values))
    budget = Budget(BASE_UNITS + UNITS_PER_INPUT * given)
    most = BASE_TEXT + TEXT_PER_INPUT * _length(values)
    pieces, written = [], 0
    for piece in template.generate({**values, _BUDGET: budget}):
        written += len(piece)
        if written > most:
            raise TooMuchError(f"it writes more than {most:,} characters")
        pieces.append(piece)
    return "".join(pieces)


def _length(value: object) -> int:
    """Return the characters of all texts in a value of JSON, and about those that its other values take."""
    total, waiting = 0, [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Mapping):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple):
            waiting += item
        else:
            total += len(item) if isinstance(item, str) else 8
    return total


def _budget(context: Context) -> Budget:
    found = context.resolve_or_missing(_BUDGET)
    assert isinstance(found, Budget), "templates are rendered by `render`"
    return found


@pass_context
def _finalize(context: Context, value: object) -> object:
    """Count a value that is about to be written."""
    _budget(context).weigh(value)
    return value


@pass_context
def _spend(context: Context, units: int) -> int:
    _budget(context).spend(units)
    return units


@pass_context
def _touch(context: Context, value: object) -> object:
    _budget(context).touch(value)
    return value


@pass_context
def _weigh(context: Context, value: object) -> object:
    _budget(context).weigh(value)
    return value


def _first_argument(function: Callable[..., Any], context: Context) -> list[Any]:
    """Return what a filter or test takes before its value."""
    kind = getattr(getattr(function, "jinja_pass_arg", None), "name", None)
    if kind is None:
        return []
    return [{"context": context, "eval_context": context.eval_ctx}.get(kind, context.environment)]


def _counted_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @pass_context
    def counted(context: Context, *args: Any, **kwargs: Any) -> Any:
        budget = _budget(context)
        if name in ("join", "sum", *_SORTING) and args:
            args = (_taken(args[0], budget), *args[1:])
        sizes = 0
        for value in (*args, *kwargs.values()):
            if name in _OUTER_FILTERS:
                budget.touch(value)
            else:
                sizes += budget.weigh(value)
        if name in _SORTING:
            budget.spend(sizes * 16)  # about as many comparisons for each value
        if name == "sum" and any(not isinstance(n, int | float | str) for n in (*args[1:], *kwargs.values())):
            raise TooMuchError("it adds up values that are not numbers")
        if name == "format" and args:
            budget.check_format(str(args[0]), "%", [*args[1:], *kwargs.values()])
        if args:
            budget.check_growth(name, args, kwargs)
        result = function(*_first_argument(function, context), *args, **kwargs)
        budget.touch(result)
        return budget.counted(result)

    return counted


def _counted_test(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @pass_context
    def counted(context: Context, *args: Any, **kwargs: Any) -> Any:
        budget = _budget(context)
        for value in (*args, *kwargs.values()):
            if name in _COMPARING_TESTS:
                budget.weigh(value)
            else:
                budget.touch(value)
        return function(*_first_argument(function, context), *args, **kwargs)

    return counted


def _taken(value: object, budget: Budget) -> object:
    """Return the value, or a list of its items if it yields them one by one."""
    return list(budget.counted(iter(value))) if isinstance(value, Iterator | range) else value


def _count_work(template: nodes.Template) -> None:
    """Change a syntax tree so that it takes units for its work, in addition to those that the environment takes."""
    for node in list(template.find_all(nodes.Node)):
        match node:
            case nodes.For():
                if node.test is not None:
                    line = node.lineno
                    node.test = nodes.And(_use(_SPEND, nodes.Const(_cost([node.test])), line), node.test, lineno=line)
                node.body.insert(0, _spending(node.body, node.lineno))
            case nodes.Macro() | nodes.CallBlock() | nodes.Block():
                node.body.insert(0, _spending(node.body, node.lineno))
            case nodes.Concat():
                node.nodes = [_use(_WEIGH, part, node.lineno) for part in node.nodes]
            case nodes.Compare():
                _count_comparison(node)
            case nodes.Getitem() if isinstance(node.arg, nodes.Slice):
                node.node = _use(_TOUCH, node.node, node.lineno)
            case nodes.Getitem() if not isinstance(node.arg, nodes.Const):
                node.arg = _use(_WEIGH, node.arg, node.lineno)  # hashing a tuple hashes all that is in it
            case nodes.Pair() if not isinstance(node.key, nodes.Const):
                node.key = _use(_WEIGH, node.key, node.lineno)


def _count_comparison(node: nodes.Compare) -> None:
    """Count the operands of a comparison; one with a constant reads no more than the constant's size."""
    constant = isinstance(node.expr, nodes.Const)
    for operand in node.ops:
        if operand.op in ("in", "notin"):
            operand.expr = _use(_TOUCH if constant else _WEIGH, operand.expr, node.lineno)
        elif not constant and not isinstance(operand.expr, nodes.Const):
            operand.expr = _use(_WEIGH, operand.expr, node.lineno)
        constant = constant and isinstance(operand.expr, nodes.Const)


def _use(name: str, value: nodes.Expr | nodes.Node, line: int) -> Any:  # jinja2's nodes are untyped
    """Return one of our filters around a value."""
    return nodes.Filter(value, name, [], [], None, None, lineno=line)


def _spending(body: list[nodes.Node], line: int) -> nodes.Node:
    """Return a statement that takes the cost of running a body once."""
    return nodes.ExprStmt(_use(_SPEND, nodes.Const(_cost(body)), line), lineno=line)


def _cost(body: Iterable[nodes.Node]) -> int:
    """Return the units of straight-line code: by its length, and by the text that it writes."""
    count, texts = 0, 0
    for node in body:
        count += 1 + sum(1 for _ in node.find_all(nodes.Node))
        found = [node] if isinstance(node, nodes.TemplateData) else node.find_all(nodes.TemplateData)
        texts += sum(outer_units(text.data) for text in found)
    return 1 + count // 8 + texts
