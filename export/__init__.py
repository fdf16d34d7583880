"""Turns a checkpoint into a bundle: checkpoint -> names -> graph -> compress -> bundle.

The package can be called, so that `edge.export(source, out)` works whether or not `edge.export.pipeline` has been
imported by its own name: a function of that name would be replaced by the package at the first import of a part of it.
Signature and help are those of `pipeline.export`. Nothing here imports torch or transformers.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from edge.runtime.errors import MissingPackageError
from edge.runtime.extras import missing_packages_named


class _Export(ModuleType):
    """A module that forwards a call to `pipeline.export`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # checkers see `pipeline.export`, by edge/__init__.py
        return _function()(*args, **kwargs)

    @property
    def __signature__(self) -> Any:
        import inspect

        return inspect.signature(_function())

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        """What `help(edge.export)` begins with: the call, and then the package."""
        import inspect

        own = self.__dict__["__doc__"]
        try:
            return f"{inspect.getdoc(_function())}\n\n{own}"
        except MissingPackageError as error:
            return f"{own}\n{error}\n"


@missing_packages_named("export")
def _function() -> Any:
    """Raises MissingPackageError where the packages that an export needs are not installed."""
    from edge.export.pipeline import export

    return export


sys.modules[__name__].__class__ = _Export
