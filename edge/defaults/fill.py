"""Defaults put in the place of what a command line leaves out.

In: parsed arguments, what was given of them, and files of defaults. Out: the same arguments with the defaults of the
files, and where each is from. A value gives way to whatever excludes it on a higher floor:

    command line  >  config.toml, the command's table  >  config.toml  >  edge.toml likewise  >  built in
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from edge.defaults.commands import Words
from edge.defaults.given import GIVEN
from edge.defaults.tables import OF_A_BUNDLE, DefaultsFile, IsPath, Layer, Parsers, Value
from edge.models.config_file import OF_BUNDLE, config_path, read_config, read_toml
from edge.runtime.bundle import is_bundle

# Pairs that commands refuse together, besides argparse's own groups.
_RIVALS = (
    ("recipe", "max_bytes"),
    ("recipe", "max_kld"),
    ("raw", "system"),
    ("raw", "system_file"),
    ("raw", "files"),
    ("raw", "messages"),
)


def files_for(bundle: Path | None) -> list[DefaultsFile]:
    """Return the files that hold for a command on a bundle, the user's first. Raises SettingsError."""
    path = config_path()
    files = [] if path is None else [DefaultsFile(path, read_config())]
    if bundle is not None and is_bundle(bundle):
        files.append(file_of_bundle(bundle))
    return files


def file_of_bundle(bundle: Path) -> DefaultsFile:
    """Return a bundle's own file, which may be missing. Raises SettingsError."""
    return DefaultsFile(bundle / OF_BUNDLE, read_toml(bundle / OF_BUNDLE), OF_A_BUNDLE)


def layers_for(files: Iterable[DefaultsFile], words: Words, parsers: Parsers, is_path: IsPath) -> list[Layer]:
    """Return what the files say for a command, what wins first. Raises SettingsError."""
    found: list[Layer] = []
    for file in files:
        file.check(parsers)
        found += file.layers(words, parsers[words], is_path)
    return found


def chosen(parser: argparse.ArgumentParser, given: Iterable[str], layers: Sequence[Layer]) -> dict[str, Value]:
    """Return, by name, the values that are neither given nor excluded by what is on a higher floor."""
    usual = {action.dest: action.default for action in parser._actions}
    pairs = [
        *_RIVALS,
        *(
            (one.dest, other.dest)
            for group in parser._mutually_exclusive_groups
            for one in group._group_actions
            for other in group._group_actions
            if one.dest != other.dest
        ),
    ]
    taken = set(given)  # what is decided
    in_force = set(taken)  # and is not as it would be without
    found: dict[str, Value] = {}
    for layer in layers:
        rivals = {pair[1 - side] for pair in pairs for side in (0, 1) if pair[side] in in_force}
        fresh = {dest: one for dest, one in layer.values.items() if dest not in taken | rivals}
        found |= fresh
        taken |= fresh.keys()
        in_force |= {dest for dest, one in fresh.items() if one.value != usual[dest]}
    return found


def fill(args: argparse.Namespace, words: Words, parsers: Parsers, is_path: IsPath) -> dict[str, Value]:
    """Put defaults of the files into parsed arguments, and return them by name. Raises SettingsError."""
    bundle = Path(args.bundle) if getattr(args, "bundle", None) is not None else None
    found = chosen(parsers[words], getattr(args, GIVEN), layers_for(files_for(bundle), words, parsers, is_path))
    for dest, one in found.items():
        setattr(args, dest, one.value)
    return found


def and_origin(message: str, found: Mapping[str, Value]) -> str:
    """Return an error about an option that nobody typed with where it is from."""
    for one in found.values():
        if re.search(rf"(?<!\S){re.escape(one.option)}(?![-\w])", message):
            return f"{message}; {one.option} is from {one.origin}"
    return message
