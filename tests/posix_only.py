"""Test modules that need what only POSIX has, found by what they import when they are loaded.

In: the folder of tests. Out: paths of modules, those that import such a module included. `conftest.py` leaves them out
where there is no POSIX, since pytest could not even collect them.
"""

from __future__ import annotations

import ast
from pathlib import Path

POSIX = frozenset(("fcntl", "pty", "pwd", "resource", "termios"))


def posix_only(tests: Path) -> list[str]:
    """Relative to the folder, sorted."""
    imports = {
        ".".join((tests.name, *path.relative_to(tests).with_suffix("").parts)): _imports(path)
        for path in tests.rglob("*.py")
    }
    found = set(POSIX)
    while more := {module for module, names in imports.items() if names & found} - found:
        found |= more
    return sorted(f"{module.replace('.', '/').removeprefix(f'{tests.name}/')}.py" for module in found - POSIX)


def _imports(path: Path) -> set[str]:
    """Names of modules that a module imports at its top, `from a import b` as a and a.b."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found
