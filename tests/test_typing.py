"""Public signatures say what they take and give: where that is `Any`, a comment beside it says why.

Read from the syntax trees: functions, methods, fields of classes, and aliases of types, by names without a leading
underscore; special methods of public classes count, as `__init__` is what a caller sees.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARTS = ("edge", "runtime", "export", "profiles")
NO_REASON = re.compile(r"#\s*(noqa|type:|fmt:|ruff:)")  # words to a checker

EXAMPLES = """
Array = NDArray[Any]
Reasoned = NDArray[Any]  # of any dtype
_private: Any = None
Hidden: TypeAlias = dict[str, Any]
class Public:
    field: Any
    other: Any = None  # noqa: E501
    known: Any  # JSON
    empty: Any  #
    text = "Any text"
    _own: Any
    def method(self, value: Any) -> None: ...
    def quoted(self) -> "list[Any]": ...
    def given(self, *args: typing.Any, **kwargs: object) -> None: ...
    def reasoned(  # type: ignore  # JSON
        self, value: Any
    ) -> None: ...
    def beside(
        self,
        value: Any,  # JSON
        other: Any,
    ) -> Any: ...
    def __init__(self, value: Any) -> None: ...
    def _own_method(self, value: Any) -> None: ...
    class _Own:
        field: Any
async def function() -> Any:
    inside: Any = None
def _function() -> Any: ...
if TYPE_CHECKING:
    def checked() -> Any: ...
"""


def modules() -> list[str]:
    """Paths below ROOT; the links in edge/ lead to the other parts."""
    found = (path for part in PARTS for path in (ROOT / part).rglob("*.py"))
    return sorted({str(path.resolve().relative_to(ROOT.resolve())) for path in found})


def unexplained(source: str) -> list[str]:
    """What of a module's public signatures holds `Any`, with no reason beside it: "line: name"."""
    reasons = set(lines_with_a_reason(source))
    return [
        f"{line}: {name}"
        for name, annotation, beside in signatures(ast.parse(source), "")
        for line in lines_of_any(annotation)
        if reasons.isdisjoint({line, *beside})
    ]


def lines_with_a_reason(source: str) -> Iterator[int]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        parts = re.split("(?=#)", token.string) if token.type == tokenize.COMMENT else []
        if any(re.search(r"\w", part) and not NO_REASON.match(part) for part in parts):
            yield token.start[0]


def signatures(node: ast.Module | ast.ClassDef, owner: str) -> Iterator[tuple[str, ast.expr, tuple[int, ...]]]:
    """Name, annotation and the lines beside which its reason may stand, other than its own."""
    for item in node.body:
        if isinstance(item, ast.If | ast.Try):  # TYPE_CHECKING, platforms
            yield from signatures(ast.Module(item.body + item.orelse, []), owner)
        elif isinstance(item, ast.ClassDef) and is_public(item.name):
            yield from signatures(item, f"{owner}{item.name}.")
        elif isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef) and is_public(item.name):
            given = item.args
            arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
            annotations = [argument.annotation for argument in arguments if argument is not None]
            for annotation in (*annotations, item.returns):
                if annotation is not None:
                    yield f"{owner}{item.name}", annotation, (item.lineno,)
        elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and is_public(item.target.id):
            alias = [item.value] if "TypeAlias" in ast.dump(item.annotation) and item.value is not None else []
            for expression in (item.annotation, *alias):
                yield f"{owner}{item.target.id}", expression, (item.lineno,)
        elif isinstance(item, ast.Assign) and isinstance(item.value, ast.Subscript | ast.BinOp | ast.Name):  # an alias
            for target in item.targets:
                if isinstance(target, ast.Name) and is_public(target.id):
                    yield f"{owner}{target.id}", item.value, (item.lineno,)


def is_public(name: str) -> bool:
    return not name.startswith("_") or (name.startswith("__") and name.endswith("__"))


def lines_of_any(annotation: ast.expr) -> Iterator[int]:
    for node in ast.walk(annotation):
        if not isinstance(node, ast.expr):
            continue
        name = getattr(node, "id", None) or getattr(node, "attr", None)
        if isinstance(node, ast.Constant) and isinstance(node.value, str):  # an annotation in quotes
            name = "Any" if re.search(r"\bAny\b", node.value) else None
        if name == "Any":
            yield node.lineno


def test_what_is_found() -> None:
    assert unexplained(EXAMPLES) == [
        "2: Array",
        "5: Hidden",
        "7: Public.field",
        "8: Public.other",
        "10: Public.empty",
        "13: Public.method",
        "14: Public.quoted",
        "15: Public.given",
        "22: Public.beside",
        "23: Public.beside",
        "24: Public.__init__",
        "28: function",
        "32: checked",
    ]


def test_every_part_is_read() -> None:
    folders = {path.split("/")[0] for path in modules()}
    assert folders == set(PARTS)
    assert {"runtime/kv/pool.py", "export/graph/onnx/fused.py", "edge/commands/run.py"} <= set(modules())


@pytest.mark.parametrize("path", modules())
def test_any_in_a_public_signature_has_a_reason(path: str) -> None:
    assert unexplained((ROOT / path).read_text(encoding="utf-8")) == []
