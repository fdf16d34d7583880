"""Chat in the terminal; earlier turns are never computed again.

/help lists what can be typed besides messages: /file for a document, /image for a picture, /save, and more. Alt-Enter
begins a new line, Ctrl-C ends an answer, Ctrl-D leaves. Over a pipe, each line is a message, or those between two lines
of three double quotes.

Answers follow the sampling that the model's makers recommend; --sampling greedy always takes the likeliest token.

When the conversation has filled the context, its oldest turns are dropped, which is said: the next answer then takes
longer to start, since what is kept is computed anew.

examples:
  edge chat glm4-int4
  edge chat glm4-int4 --system "Answer in one sentence." --temperature 0.7 --verbose
  edge chat glm4-int4 --file report.pdf
  edge chat glm4v-int4 --image photo.jpg
  edge chat glm4-int4 --tool python --docs handbook
  edge chat glm4-int4 --load monday.json --save monday.json
  edge chat glm4-int4 --system-file kiosk.txt --prefix kiosk.prefix --context-policy error
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edge.commands import options, reuse
from edge.commands.bundles import manifest_of
from edge.commands.documents import add_documents, check_documents
from edge.commands.help import told
from edge.commands.pictures import add_pictures, add_show_thinking, check_pictures
from edge.commands.sampling import sampling_in_use
from edge.commands.tool_options import add_tools, opened_tools
from edge.runtime.settings import CONTEXT_POLICIES, ContextPolicy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge.documents import Document
    from edge.runtime.llm import LLM
    from edge.runtime.messages import Message
    from edge.terminal.history import History
    from edge.tools.tool import Tool

USUAL_POLICY: ContextPolicy = "drop-oldest"  # somebody who types sees what is said; a program is told by an error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_bundle(parser, may_be_missing=True)
    group = parser.add_argument_group("conversation")
    group.add_argument("--load", metavar="FILE", help="continue a saved conversation, or another JSON list of messages")
    group.add_argument(
        "--save", metavar="FILE", help="write the conversation to this file after each answer; a new one, or --load's"
    )
    group.add_argument(
        "--context-policy",
        choices=CONTEXT_POLICIES,
        default=USUAL_POLICY,
        help=told("once the context is full, drop the oldest turns, or refuse messages until /reset", USUAL_POLICY),
    )
    options.add_verbose(group)
    group.add_argument("--no-history", action="store_true", help="keep nothing of what is typed for later chats")
    add_documents(group, "the first message")
    add_pictures(group, "the first message is about")
    add_show_thinking(group)
    add_tools(parser)
    options.add_engine(parser)
    options.add_generation(parser, "model")
    reuse.add_reuse(parser)


def run(args: argparse.Namespace) -> int:
    from edge.api import load
    from edge.commands.streams import check_stdin
    from edge.runtime.settings import generation_settings

    check_stdin()
    system = reuse.system_message(args)
    settings = options.generation_settings(args)
    generation_settings(**settings)
    loaded = _conversation(args)
    if args.chat_template is None:
        _check_template(Path(args.bundle))
    chosen = options.engine_settings(args)
    if tokens := check_documents(args) + check_pictures(args):
        chosen["expected_prompt_tokens"] = tokens
    with opened_tools(args) as tools:
        if sys.stdin.isatty():
            print(f"loading {args.called} ...", file=sys.stderr, flush=True)
        with load(args.bundle, **reuse.reuse_settings(args, chosen)) as llm:
            reuse.prepare(llm, args)
            return _talk(args, llm, system, settings, loaded, tools)


def _conversation(args: argparse.Namespace) -> Sequence[Message]:
    """The messages of --load; also looks at the place of --save. Raises PromptError and OutputError."""
    from edge.runtime.errors import OutputError
    from edge.runtime.files import real_path, shown_path
    from edge.terminal.conversation_file import check_place, read_conversation

    loaded = () if args.load is None else read_conversation(Path(args.load))
    if args.save is not None:
        same = args.load is not None and real_path(args.load) == real_path(args.save)
        if check_place(Path(args.save)) and not same:
            raise OutputError(
                f"{shown_path(args.save)} is a saved conversation; continue it with --load, or name another file"
            )
    return loaded


def _check_template(bundle: Path) -> None:
    """Raises PromptError for a model that cannot chat, before it is loaded; loading says what else is wrong."""
    from edge.runtime.bundle import CHAT_TEMPLATE
    from edge.runtime.errors import PromptError

    manifest = manifest_of(bundle)
    if manifest is not None and CHAT_TEMPLATE not in manifest.files:
        raise PromptError(
            f"{bundle} has no chat template (a base model?); give one with --chat-template, or continue a text with "
            "`edge run --raw`"
        )


def _talk(
    args: argparse.Namespace,
    llm: LLM,
    system: str | None,
    settings: options.Keywords,
    loaded: Sequence[Message],
    tools: Sequence[Tool],
) -> int:
    from edge.commands.documents import read_documents, read_paths
    from edge.commands.pictures import read_pictures
    from edge.commands.streams import unguarded
    from edge.runtime.messages import Message
    from edge.runtime.session import ChatSession
    from edge.runtime.settings import generation_settings
    from edge.terminal.answering import Answering
    from edge.terminal.chat import Chat
    from edge.terminal.reader import open_reader
    from edge.terminal.tool_rounds import ToolRounds

    documents = read_documents(args, llm, before=[] if system is None else [Message("system", system)])
    session = ChatSession(llm, system, context_policy=args.context_policy)
    of_each = generation_settings(llm.recommended_sampling, **settings)
    answering = Answering(session, of_each, unguarded, verbose=args.verbose, shows_thinking=args.show_thinking)
    reader = open_reader(lambda: _history(args), lambda: answering.status, unguarded)
    if reader.is_terminal:
        context = llm.engine.info.context_told
        print(f"{context}; sampling: {sampling_in_use(llm, settings)}; /help lists commands", file=sys.stderr)

    def read(path: str, taken: int) -> Sequence[Document]:
        found = read_paths([path], llm, taken=taken, max_new_tokens=args.max_new_tokens)
        if args.draft_store:
            for document in found:
                llm.add_document(document.text)
        return found

    chat = Chat(
        session,
        reader,
        answering,
        options=settings,
        read_documents=read,
        tools=ToolRounds(tools, llm.tool_format.native),
        documents=documents,
        pictures=read_pictures(args, llm),
        save=None if args.save is None else Path(args.save),
        own=[Path(path) for path in (args.load, args.save) if path is not None],
    )
    if loaded:
        chat.load(loaded, system)
    return chat.run()


def _history(args: argparse.Namespace) -> History:
    from edge.runtime.errors import OutputError
    from edge.terminal.history import History, default_path

    def warn(text: str) -> None:
        print(f"edge: {text}", file=sys.stderr)

    try:
        path = None if args.no_history else default_path()
    except OutputError:  # a user without a home has no history
        path = None
    return History(path, warn)
