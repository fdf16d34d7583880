"""Where `edge export` puts a bundle, a path or a name in the models folder; and what it leaves elsewhere.

In: parsed arguments. Out: their `out` as a path, and their `called` as other commands take it. Makes nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

from edge.export.compress.recipes import DEFAULT

OUT_HELP = (
    "the bundle to make: a name in the models folder, or a path, as anything with a separator is and any folder that "
    "exists, like ./glm4; it is new or an empty folder (default: a name made of the source's and the precision)"
)


def settle(args: argparse.Namespace) -> None:
    """Decide on the place, and say it where it is not what was typed. Raises SettingsError and OutputError."""
    from edge.models.find import name_of, place_for

    if args.out is None:
        args.out = _made_up(args)
    path = place_for(args.out)
    args.called = name_of(path) or args.out
    if path != Path(args.out):
        args.out = str(path)
        if sys.stderr.isatty():  # the last line of an export says it, too
            print(f"edge: making {args.called} in {path.parent}", file=sys.stderr)


def tell_what_is_cached(source: str) -> None:
    """Say what a download has left, which the bundle does not need."""
    from edge.commands.console import human_bytes
    from edge.models.hub_cache import find_cached

    if not os.path.lexists(source) and (cached := find_cached(source)) is not None:
        print(cached.told(human_bytes(cached.bytes)))


def _made_up(args: argparse.Namespace) -> str:
    """A name for an export that was given none. One recipe is usual, and need not be told in full."""
    from edge.models.names import name_for
    from edge.runtime.files import real_path

    source = real_path(args.source).name if os.path.lexists(args.source) else args.source
    if args.max_bytes is not None:
        giga = args.max_bytes >= 1e9
        precision = f"{args.max_bytes / (1e9 if giga else 1e6):.3g}{'gb' if giga else 'mb'}"
    elif args.max_kld is not None:
        precision = f"kld{args.max_kld:g}"
    elif args.recipe in (None, DEFAULT):
        precision = re.sub(r"-.*", "", DEFAULT)
    else:
        precision = args.recipe
    return name_for(source, precision, args.adapter)
