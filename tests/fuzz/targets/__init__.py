"""A module for each reader; each has `TARGETS`, a tuple of `Target`."""

from __future__ import annotations

import importlib
import pkgutil

from tests.fuzz.target import Target


def all_targets() -> list[Target]:
    """The targets of all modules here, by name."""
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    return sorted((target for module in modules for target in module.TARGETS), key=lambda target: target.name)
