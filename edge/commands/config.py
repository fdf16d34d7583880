"""Show the defaults of options, and where each is from.

Defaults are in config.toml, in your own folder for settings, and in edge.toml in a bundle; what a command line gives
comes before both. Without COMMAND, what these files say is shown; with it, every option of that command.

examples:
  edge config
  edge config chat --bundle glm-4-9b-chat-int4
  edge config prefix build --json
  edge config --path
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from edge.commands import kinds, options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("command", nargs="*", metavar="COMMAND", help="the command whose options to show")
    parser.add_argument(
        "--bundle", metavar="BUNDLE", help=f"also what the edge.toml of this bundle says; {options.BUNDLE_HELP}"
    )
    parser.add_argument("--path", action="store_true", help="print where config.toml is, or would be, and nothing else")
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    from edge.commands.console import print_json
    from edge.commands.tables import print_table
    from edge.defaults.fill import files_for
    from edge.models.config_file import config_path, models_folder
    from edge.runtime.errors import SettingsError

    path = config_path()
    if args.path:
        if path is None:
            raise SettingsError("this user has no folder for settings; give options on the command line")
        print(path)
        return 0
    files = files_for(None if args.bundle is None else Path(args.bundle))
    for file in files:
        file.check(args.commands)
    rows = _of_command(tuple(args.command), args.commands, files) if args.command else _of_files(files)
    folder = models_folder()
    if args.json:
        print_json(
            {
                "config": None if path is None else str(path),
                "exists": path is not None and path.exists(),
                "models": None if folder is None else str(folder),
                "settings": rows,
            }
        )
        return 0
    print(f"config file: {'none, as this user has no home' if path is None else path}{_state(path)}")
    print(f"models folder: {'none' if folder is None else folder}")
    if rows:
        print()
        print_table(list(rows[0]), (["" if cell is None else cell for cell in row.values()] for row in rows))
    return 0


def _state(path: Path | None) -> str:
    return "" if path is None or path.exists() else " (not there; every option has its own default)"


def _of_files(files: list[Any]) -> list[dict[str, object]]:  # Any: DefaultsFile, imported when it is used
    return [
        {"option": key, "for": table.strip("[]").replace(".", " ") or "all", "value": value, "from": str(file.path)}
        for file in files
        for table, key, value in file.rows()
    ]


def _of_command(words: tuple[str, ...], parsers: Any, files: list[Any]) -> list[dict[str, object]]:  # Any: as above
    """Every option, with what it is without being given: the help's words for that where the value is no value."""
    from edge.defaults.fill import chosen, layers_for
    from edge.defaults.tables import options_of
    from edge.runtime.errors import SettingsError, shown

    if words not in parsers:
        known = ", ".join(" ".join(one) for one in parsers)
        raise SettingsError(f"{shown(' '.join(words))} is not a command; known are {known}")
    parser = parsers[words]
    found = chosen(parser, (), layers_for(files, words, parsers, kinds.is_path))
    rows: list[dict[str, object]] = []
    for action in {id(action): action for action in options_of(parser).values()}.values():
        one = found.get(action.dest)
        told = re.search(r"\(default: (.*)\)$", action.help or "", re.DOTALL)
        usual = told[1] if told else action.default or "not set"
        value, origin = (usual, "built in") if one is None else (one.value, one.origin)
        rows.append({"option": action.option_strings[0], "value": value, "from": origin})
    return rows
