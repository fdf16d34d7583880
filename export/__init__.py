"""Turns a checkpoint into a bundle: checkpoint -> names -> graph -> compress -> bundle.

The package can be called, so that `edge.export(source, out)` works whether or not `edge.export.pipeline` has been
imported by its own name. Nothing here imports torch or transformers.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Export(ModuleType):
    """A module that forwards a call to `pipeline.export`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from edge.export.pipeline import export

        return export(*args, **kwargs)


sys.modules[__name__].__class__ = _Export
