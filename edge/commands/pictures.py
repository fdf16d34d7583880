"""The pictures of a command line: the option for them, and what is said about each on stderr.

In: paths, and a bundle or a loaded model. Out: parts of a message. Knows nothing about pixels.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge.commands import kinds
from edge.commands.bundles import manifest_of

if TYPE_CHECKING:
    from edge.runtime.llm import LLM
    from edge.runtime.messages import ImagePart, Message
    from edge.terminal.looking import Looking


def add_pictures(parser: argparse._ActionsContainer, what: str) -> None:
    """Pictures, each of which is `what`."""
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        type=kinds.path,
        dest="images",
        metavar="FILE",
        help=f"a picture that {what}, for models that see pictures: png, jpeg, webp, gif, bmp or tiff; repeatable",
    )


def add_show_thinking(parser: argparse._ActionsContainer) -> None:
    """What is shown of a reasoning model's answers."""
    parser.add_argument(
        "--show-thinking",
        action="store_true",
        help="show on stderr what a reasoning model thinks before it answers, rather than how much",
    )


def check_pictures(args: argparse.Namespace) -> int:
    """Open each picture before a model is loaded; return how many tokens they have, for the choice of an engine.

    Raises PictureError, also for a model that sees none, and MissingPackageError.
    """
    if not args.images:
        return 0
    from edge.runtime.errors import PictureError
    from edge.runtime.vision.decode import open_picture
    from edge.runtime.vision.geometry import grid_of, num_rows
    from edge.terminal.pictures import BLIND

    if (manifest := manifest_of(args.bundle)) is None:
        return 0
    if manifest.vision is None:
        raise PictureError(f"--image is given, and {BLIND}")
    spec = manifest.vision.spec
    if spec.max_pictures and len(args.images) > spec.max_pictures:
        number = "one picture" if spec.max_pictures == 1 else f"{spec.max_pictures} pictures"
        raise PictureError(f"--image was given {len(args.images)} times, and this model takes {number}")
    tokens = 0
    for path in args.images:
        picture = open_picture(Path(path))
        tokens += num_rows(grid_of(picture.width, picture.height, spec), spec)
    return tokens


def read_pictures(args: argparse.Namespace, llm: LLM) -> list[ImagePart]:
    """The pictures of `--image`; tells the size of each on stderr. Raises as `check_pictures`."""
    if not args.images:
        return []
    from edge.terminal.pictures import name_of, picture_of, told_of

    found = [picture_of(path) for path in args.images]
    for part in found:
        print(f"{name_of(part)}: {told_of(part, llm)[0]}", file=sys.stderr)
    return found


def looking_at(messages: Sequence[Message]) -> Looking:
    """What shows on stderr how far the pictures of messages are."""
    from edge.commands.streams import unguarded
    from edge.terminal.looking import Looking
    from edge.terminal.pictures import name_of, pictures_in
    from edge.terminal.status_line import StatusLine

    return Looking(list(map(name_of, pictures_in(messages))), StatusLine(unguarded))
