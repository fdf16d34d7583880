"""Remove bundles.

A bundle's own files are removed, which its manifest names, and its folder if nothing else is in it. What is not the
bundle's stays and is named. A bundle that is in use, a link, and what is not a bundle are refused.

examples:
  edge rm glm-4-9b-chat-int4
  edge rm old-one ./old-two --yes
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from edge.commands import kinds, options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundles", nargs="+", type=kinds.path, metavar="BUNDLE", help=options.BUNDLE_HELP)
    parser.add_argument("--yes", action="store_true", help="do not ask; needed where nobody can be asked")


def run(args: argparse.Namespace) -> int:
    from edge.commands.console import human_bytes
    from edge.models.find import find_bundle
    from edge.models.listing import look_at
    from edge.models.removal import check_removable, remove

    folders = list(dict.fromkeys(find_bundle(given) for given in args.bundles))
    for folder in folders:
        check_removable(folder)
    found = [look_at(folder) for folder in folders]
    what = " and ".join(f"{one.name} ({human_bytes(one.bytes)})" for one in found)
    if not args.yes and not _agreed(what):
        print("edge: nothing was removed", file=sys.stderr)
        return 1
    for one in found:
        removed = remove(one.path)
        print(f"removed {one.name}: {human_bytes(removed.bytes)} are free again")
        if removed.kept:
            print(f"  {one.path} stays, with what is not the bundle's: {', '.join(map(_shown, removed.kept))}")
    return 0


def _agreed(what: str) -> bool:
    from edge.runtime.errors import SettingsError

    if not sys.stdin.isatty():
        raise SettingsError(f"{what} would be removed, and nobody can be asked here; give --yes")
    print(f"remove {what}? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _shown(name: str) -> str:
    from edge.runtime.files import shown_path

    return shown_path(Path(name))
