"""The bundle that a command line names, for every verb that takes one.

In: parsed arguments. Out: their `bundle` as a folder, and their `called` as a user would say it. What was chatted with
or served is remembered, for `edge chat` without a bundle.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge.runtime.manifest import Manifest

REMEMBERED = ("chat", "serve")  # verbs whose bundle is meant when none is named; answering once writes nothing
DOING = {"chat": "chatting with", "serve": "serving", "show": "showing"}  # verbs that can do without its name


def find(args: argparse.Namespace) -> None:
    """Turn a name into a folder. Raises BundleError where there is none, and SettingsError."""
    from edge.models.find import find_bundle, name_of
    from edge.models.recent import choose, remember
    from edge.runtime.bundle import is_bundle

    if "bundle" not in args or (args.bundle is None and args.verb not in DOING):
        return
    if args.bundle is None:
        choice = choose()
        args.bundle, args.called = str(choice.path), name_of(choice.path) or str(choice.path)
        print(f"edge: {DOING[args.verb]} {args.called}, {choice.why}", file=sys.stderr)
    else:
        args.called = args.bundle
        found = find_bundle(args.bundle)
        if found != Path(args.bundle):  # what was typed stays as it is: "./a" is a path, and "a" might be a name
            args.bundle = str(found)
    if args.verb in REMEMBERED and is_bundle(Path(args.bundle)):
        remember(Path(args.bundle))


def manifest_of(bundle: str | Path) -> Manifest | None:
    """What a bundle's manifest says, before it is loaded; none for one that loading will refuse."""
    from edge.runtime.bundle import MANIFEST, is_bundle
    from edge.runtime.errors import COPY_AGAIN, BundleError
    from edge.runtime.files import read_file
    from edge.runtime.manifest import MAX_BYTES, Manifest

    path = Path(bundle)
    if not is_bundle(path):
        return None
    try:
        return Manifest.from_json(read_file(path / MANIFEST, BundleError, COPY_AGAIN, max_bytes=MAX_BYTES))
    except BundleError:
        return None
