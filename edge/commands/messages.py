"""Messages of a command line: a conversation in a file, and the question that continues it.

In: the path of JSON, a list of OpenAI's messages or an object that has one under "messages". Out: checked messages.
Knows nothing about models.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edge.commands import options, reuse

if TYPE_CHECKING:
    from edge.runtime.messages import Message


def add_messages(parser: argparse._ActionsContainer) -> None:
    """A conversation to continue."""
    parser.add_argument(
        "--messages",
        metavar="FILE",
        help="a JSON list of messages, like a saved conversation; PROMPT, if there is one, is the next",
    )


def read_messages(path: str) -> list[Message]:
    """The messages of a file or pipe. Raises SettingsError if it cannot be read, PromptError for what it holds."""
    from edge.runtime.files import shown_path
    from edge.terminal.conversation_file import conversation_of

    return list(conversation_of(options.read_text(path), shown_path(path)))


def before(args: argparse.Namespace) -> list[Message]:
    """What comes before the prompt: the conversation that was named, after a system message.

    A conversation that has a system message keeps it, rather than that of a prefix. Raises SettingsError, PromptError
    and SnapshotError.
    """
    from edge.runtime.errors import SettingsError
    from edge.runtime.messages import Message

    found = [] if args.messages is None else read_messages(args.messages)
    if any(message.role in ("system", "developer") for message in found):
        if args.system is not None or args.system_file is not None:
            raise SettingsError(f"{args.messages} has a system message of its own; leave --system out")
        return found
    system = reuse.system_message(args)
    return found if system is None else [Message("system", system), *found]


def ends_with_question(messages: Sequence[Message]) -> bool:
    """Whether the next message is an answer: after a question, or after the results of calls."""
    return bool(messages) and messages[-1].role not in ("assistant", "system", "developer")


def text_of(messages: Sequence[Message]) -> str:
    """All text of messages, whose length says how long a prompt will be."""
    return "".join(message.text for message in messages)
