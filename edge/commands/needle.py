"""Hide a sentence in long texts and see whether the model finds it, by length and depth.

OUT is a folder for needle.json, needle.md, needle.svg and needle.png. Those of an earlier run are replaced; files with
these names that an earlier run did not write are not.

examples:
  edge needle glm4-int4 glm4-needle
  edge needle glm4-int4 glm4-needle --contexts 1000,8000,32000 --depths 0,50,100 --kv-precision u8
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from edge.commands import kinds, options
from edge.commands.help import told
from edge.profiles.settings import NEEDLE_CONTEXTS, NEEDLE_DEPTHS, NEEDLE_SEED

NAME = "needle"
KINDS = ("json", "md", "svg", "png")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_bundle(parser)
    parser.add_argument("out", metavar="OUT", help="the folder for results; those of an earlier run are replaced")
    options.add_json(parser)
    measured = parser.add_argument_group("what to measure")
    measured.add_argument(
        "--contexts",
        type=kinds.token_counts,
        default=list(NEEDLE_CONTEXTS),
        metavar="N,N",
        help=told("text lengths, in tokens, the question and its answer included", NEEDLE_CONTEXTS),
    )
    measured.add_argument(
        "--depths",
        type=kinds.numbers,
        default=list(NEEDLE_DEPTHS),
        metavar="P,P",
        help=told("where in the text the sentence is hidden, in percent", NEEDLE_DEPTHS),
    )
    measured.add_argument(
        "--seed",
        type=kinds.whole_number,
        default=NEEDLE_SEED,
        metavar="N",
        help=told("which sentence is hidden; each seed has its own", NEEDLE_SEED),
    )
    options.add_engine(parser)


def run(args: argparse.Namespace) -> int:
    import matplotlib  # noqa: F401  # before anything is computed for plots that could not be drawn

    from edge.api import load
    from edge.commands.console import counting_bar
    from edge.profiles import needle, needle_report
    from edge.profiles.plot import png_bytes, svg_bytes
    from edge.runtime.atomic import write_atomically
    from edge.runtime.errors import OutputError

    out = Path(args.out)
    _check_folder(out)
    llm = load(args.bundle, **options.engine_settings(args))
    with counting_bar("asking") as progress:
        result = needle.run(llm, args.contexts, args.depths, args.seed, progress)
    figure = needle_report.heat_map(result)
    shown = needle_report.to_markdown(result)
    files = {
        "json": result.to_json().encode(),
        "md": (shown + f"\n![margin by depth and length]({NAME}.png)\n").encode(),
        "svg": svg_bytes(figure),
        "png": png_bytes(figure),
    }
    _check_folder(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out} cannot be made ({error.strerror or error}); name another folder") from error
    assert files.keys() == set(KINDS)
    for kind, content in files.items():  # the first one tells whose the others are
        write_atomically(out / f"{NAME}.{kind}", [content], private=False)
    print(files["json"].decode() if args.json else shown + f"\n{out}: {', '.join(f'{NAME}.{kind}' for kind in files)}")
    return 0


def _check_folder(out: Path) -> None:
    """Raises OutputError where files would be replaced that no run of this command wrote."""
    from edge.runtime.errors import OutputError

    if os.path.lexists(out) and not out.is_dir():
        raise OutputError(f"{out} exists and is not a folder; choose another path")
    found = [f"{NAME}.{kind}" for kind in KINDS if os.path.lexists(out / f"{NAME}.{kind}")]
    if found and not _is_result(out / f"{NAME}.json"):
        raise OutputError(
            f"{out} holds {', '.join(found)} and no {NAME}.json of an earlier run, so they are somebody else's; name "
            "another folder"
        )


def _is_result(path: Path) -> bool:
    from edge.runtime.errors import OutputError
    from edge.runtime.json_reader import read_json_object

    try:
        found = read_json_object(path, OutputError, "name another folder")
    except OutputError:
        return False
    return {"bundle", "recipe", "engine", "needle", "cells", "computed_tokens"} <= found.keys()
