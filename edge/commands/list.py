"""List the bundles that you have.

Those in the models folder are listed by name, and those elsewhere that were used, by their path. A bundle that is
damaged is listed, too, with what is wrong. Only manifests are read.

examples:
  edge list
  edge list --json
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from edge.commands import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge.models.hub_cache import Cached
    from edge.models.listing import Listed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    from edge.commands.console import human_bytes, print_json
    from edge.commands.tables import print_table
    from edge.models.config_file import models_folder
    from edge.models.listing import all_bundles, numbers_of, unfinished

    bundles, begun, folder = all_bundles(), unfinished(), models_folder()
    cached = _cached(bundles)
    if args.json:
        print_json(
            {
                "models": None if folder is None else str(folder),
                "bundles": [numbers_of(bundle) for bundle in bundles],
                "unfinished": [{"name": one.name, "path": str(one.path), "bytes": one.bytes} for one in begun],
                "hub_cache": [{"id": c.repository, "path": str(c.path), "bytes": c.bytes} for c in cached],
            }
        )
        return 0
    if bundles:
        print_table(["name", "recipe", "size", "context", "used"], map(_row, bundles), spare=("used", "context"))
        if seeing := [one.name for one in bundles if one.manifest is not None and one.manifest.vision is not None]:
            print(f"sees pictures: {', '.join(seeing)}")
    else:
        print("no bundles yet; make one with `edge export SOURCE`, or try `edge demo`")
    for bundle in bundles:
        if bundle.problem:
            print(f"{bundle.name} is damaged: {bundle.problem}")
    for one in begun:
        print(f"{one.name} is not finished: {human_bytes(one.bytes)} in {one.path}; the same `edge export` resumes it")
    if folder is not None:
        print(f"names are in {folder}")
    for found in cached:
        print(found.told(human_bytes(found.bytes)))
    return 0


def _row(bundle: Listed) -> list[str]:
    from edge.commands.console import human_bytes

    found = bundle.manifest
    recipe = "damaged" if bundle.problem else "" if found is None else found.recipe
    context = "" if found is None else str(found.spec.max_position_embeddings)
    return [bundle.name, recipe, human_bytes(bundle.bytes), context, bundle.used or "-"]


def _cached(bundles: Sequence[Listed]) -> list[Cached]:
    from edge.models.hub_cache import find_cached

    sources = dict.fromkeys(bundle.manifest.source for bundle in bundles if bundle.manifest is not None)
    found = [find_cached(source) for source in sources]
    return list({one.path: one for one in found if one is not None}.values())
