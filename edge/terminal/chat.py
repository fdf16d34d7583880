"""A chat: what each line that somebody types does to a conversation.

In: a session, a reader, and what the command line chose. Out: answers, and what commands say. Knows no keys, no tokens,
and no file formats.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge.runtime.errors import GenerationError, MissingPackageError, OutputError, SettingsError
from edge.runtime.messages import ImagePart, Message
from edge.runtime.rules import FilePath, check_value
from edge.runtime.session import ChatSession
from edge.runtime.tools.declared import checked_tools
from edge.runtime.vision.progress import OnPicture
from edge.terminal.answering import Answering, Chunks, Options, Start
from edge.terminal.completing import path_of
from edge.terminal.conversation_file import check_place, read_conversation, write_conversation
from edge.terminal.pictures import BLIND, lost, name_of, picture_of, pictures_in, told_of, with_pictures
from edge.terminal.reader import Reader
from edge.terminal.slash import CommandError, Order, help_lines, message_of, understood
from edge.terminal.tool_rounds import ToolRounds

if TYPE_CHECKING:
    from edge.documents import Document

LEAVES_ELSEWHERE = ("exit", "quit", "exit()", "quit()")
_WAITS = "(it goes with your next message)"
EDITED = 5000  # characters of a message that can be edited at the prompt


@dataclass(frozen=True)
class Sent:
    """A message as it was typed, and the documents and pictures that went with it."""

    text: str
    documents: Sequence[Document] = ()
    pictures: Sequence[ImagePart] = ()

    @property
    def message(self) -> Message:
        """What the model reads."""
        text = self.text
        if self.documents:
            from edge.documents import prompt_with

            text = prompt_with(self.documents, text)
        return Message("user", with_pictures(self.pictures, text))


class Chat:
    """One conversation in a terminal, or over a pipe."""

    def __init__(
        self,
        session: ChatSession,
        reader: Reader,
        answering: Answering,
        *,
        options: Options,
        read_documents: Callable[[str, int], Sequence[Document]],
        tools: ToolRounds | None = None,
        documents: Sequence[Document] = (),
        pictures: Sequence[ImagePart] = (),
        save: Path | None = None,
        own: Sequence[Path] = (),
    ) -> None:
        """options: of each answer. read_documents: from a path, beside so many tokens. tools: on from the beginning.

        documents, pictures: for the first message. save: where the conversation is written after each answer. own:
        files that may be written over.
        """
        self._session, self._reader, self._answering = session, reader, answering
        self._options, self._read_documents = options, read_documents
        self._waiting: list[Document | ImagePart] = [*documents, *pictures]  # for the next message
        self._tools = tools or ToolRounds((), frozenset())
        self._switch(bool(self._tools))
        self._last: Sent | None = None
        self._save_to, self._own = save, {path.absolute() for path in own}
        self._failed = False

    def run(self) -> int:
        """Answer line after line, until the last; returns 1 if one of a pipe's failed, else 0."""
        while True:
            try:
                text = self._reader.read()
                said = understood(text)
                if isinstance(said, Order):
                    if said.command.name == "/exit":
                        break
                    self._obey(said)
                elif text in LEAVES_ELSEWHERE and self._reader.is_terminal:
                    print(f"(not sent: /exit or Ctrl-D leaves, and a space before {text} sends it)", file=sys.stderr)
                elif said:
                    self._send(said)
            except EOFError:
                break
            except SettingsError:
                raise
            except KeyboardInterrupt:  # while a file is read, or a second one after an answer
                if not self._reader.is_terminal:
                    raise
                print("(stopped)", file=sys.stderr)
            except (GenerationError, MissingPackageError) as error:
                self._fail(str(error))
        return int(self._failed and not self._reader.is_terminal)

    def _fail(self, message: str) -> None:
        self._failed = True
        print(f"edge: {message}", file=sys.stderr, flush=True)

    def _obey(self, order: Order) -> None:
        getattr(self, f"_do_{order.command.name[1:]}")(order.argument)

    # --- Answers ------------------------------------------------------------------------------------------------------

    def _send(self, text: str) -> None:
        sent = Sent(text, self._documents, self._pictures)
        message = sent.message

        def start(on_picture: OnPicture) -> Chunks:
            return self._session.send(message.content, on_picture=on_picture, **self._options)

        if self._show(start, [*self._session.messages, message], sent):
            self._last, self._waiting = sent, []
        elif self._waiting:
            print("(what you added goes with your next message)", file=sys.stderr)

    def _show(self, start: Start, messages: Sequence[Message], sent: Sent | None = None) -> bool:
        """Show an answer to messages. sent: the last of them, if it is new."""
        more = 0
        if sent is not None:
            more = len(self._session.llm.tokenizer.encode(sent.message.text, parse_special=False))
            more += sum(told_of(picture, self._session.llm)[1] for picture in sent.pictures)
        names = list(map(name_of, pictures_in(messages)))
        if not self._answering.show(start, self._reader, more, names):
            self._failed = True
            return False
        if not self._tools.answer(self._session, self._answering, self._reader, self._options):
            self._failed = True
        if self._save_to is not None:
            self._write(self._save_to)
        return True

    def _do_retry(self, _: str) -> None:
        self._show(
            lambda on_picture: self._session.retry(on_picture=on_picture, **self._options), self._session.messages
        )

    def _do_edit(self, text: str) -> None:
        last = self._last_sent()
        if not text:
            if not self._reader.edits or len(last.text) > EDITED:
                raise CommandError("/edit needs the new message after it")
            try:
                text = message_of(self._reader.read(last.text))
            except EOFError:
                text = ""
            if not text:
                print("(nothing is changed)", file=sys.stderr)
                return
        sent = Sent(text, last.documents, last.pictures)
        message = sent.message

        def start(on_picture: OnPicture) -> Chunks:
            return self._session.edit(message.content, on_picture=on_picture, **self._options)

        if self._show(start, [*self._session.messages, message], sent):
            self._last = sent

    def _last_sent(self) -> Sent:
        """The last question: as it was typed here, or as a file has it."""
        question = next((m for m in reversed(self._session.messages) if m.role == "user"), None)
        if question is None:
            raise CommandError("the conversation has no question yet; send one first")
        if self._last is not None and self._last.message == question:
            return self._last
        return Sent(question.text, pictures=pictures_in([question]))

    # --- The conversation ---------------------------------------------------------------------------------------------

    def _do_undo(self, _: str) -> None:
        if self._waiting:
            last = self._waiting.pop()
            name = name_of(last) if isinstance(last, ImagePart) else last.name
            print(f"({name} is not sent)", file=sys.stderr)
        elif self._session.undo():
            self._changed()
            print(f"(forgotten; {_counted(self._session.num_turns, 'question')} left)", file=sys.stderr)
        else:
            raise CommandError("there is nothing to undo")

    def _do_reset(self, _: str) -> None:
        self._session.reset()
        self._waiting = []
        self._changed(anew=True)

    def _do_system(self, text: str) -> None:
        if not text:
            print(self._session.system or "no system message")
            return
        self._session.system = text
        self._changed()
        print("(the system message is replaced; the conversation stays)", file=sys.stderr)

    def _changed(self, *, anew: bool = False) -> None:
        self._last = None
        if anew:
            self._answering.figures = None
        self._answering.recount()

    def _do_file(self, argument: str) -> None:
        self._waiting += self._read_documents(_path(argument), self._answering.num_tokens + self._waiting_tokens())
        print(_WAITS, file=sys.stderr)

    def _do_image(self, argument: str) -> None:
        llm = self._session.llm
        if llm.pictures is None:
            raise CommandError(BLIND)
        most, has = llm.pictures.spec.max_pictures, len(pictures_in(self._session.messages)) + len(self._pictures)
        if most and has >= most:
            number = "one picture" if most == 1 else f"{most} pictures"
            raise CommandError(f"this model takes {number} in a conversation; /undo or /reset makes room for another")
        picture = picture_of(_path(argument))
        print(f"{name_of(picture)}: {told_of(picture, llm)[0]}", file=sys.stderr)
        self._waiting.append(picture)
        print(_WAITS, file=sys.stderr)

    @property
    def _documents(self) -> list[Document]:
        return [each for each in self._waiting if not isinstance(each, ImagePart)]

    @property
    def _pictures(self) -> list[ImagePart]:
        return [each for each in self._waiting if isinstance(each, ImagePart)]

    def _waiting_tokens(self) -> int:
        llm = self._session.llm
        texts = sum(len(llm.tokenizer.encode(one.text, parse_special=False)) for one in self._documents)
        return texts + sum(told_of(picture, llm)[1] for picture in self._pictures)

    def _do_save(self, argument: str) -> None:
        path = Path(_path(argument))
        if not self._has_messages():
            raise CommandError("the conversation has no message yet; there is nothing to save")
        try:
            is_there = check_place(path)
        except OutputError as error:
            raise CommandError(str(error)) from error
        if (
            is_there
            and path.absolute() not in self._own
            and not self._reader.confirmed(f"{path} is a saved conversation; write over it?")
        ):
            raise CommandError(f"{path} is not written; choose another name")
        self._write(path)
        print(f"({_counted(len(self._session.messages), 'message')} saved)", file=sys.stderr)

    def _write(self, path: Path) -> None:
        try:
            write_conversation(path, self._session.messages)
        except OutputError as error:
            raise CommandError(str(error)) from error
        self._own.add(path.absolute())

    def _has_messages(self) -> bool:
        return any(message.role not in ("system", "developer") for message in self._session.messages)

    def _do_load(self, argument: str) -> None:
        path = Path(_path(argument))
        self.load(read_conversation(path))
        self._own.add(path.absolute())

    def load(self, messages: Sequence[Message], system: str | None = None) -> None:
        """Continue another conversation, and tell its size. Raises PromptError. system: in place of its own."""
        self._session.load(messages)
        if system is not None:
            self._session.system = system
        self._changed(anew=True)
        size = f"{_counted(len(messages), 'message')}, {self._answering.num_tokens:,} tokens"
        waits = "; the last has no answer yet, /retry gives one" if messages[-1].role == "user" else ""
        if self._reader.is_terminal:
            print(f"({size}{waits})", file=sys.stderr)
        for path in lost(pictures_in(messages)):
            print(f"edge: {path} is gone; put it back, or /undo the message that has it", file=sys.stderr)

    # --- What is told -------------------------------------------------------------------------------------------------

    def _do_stats(self, _: str) -> None:
        figures = self._answering.figures
        print("no answer yet" if figures is None else figures.told(self._answering.num_tokens))

    def _do_stop(self, _: str) -> None:
        print("no answer is being written; while one is, /stop or Ctrl-C ends it", file=sys.stderr)

    def _do_help(self, _: str) -> None:
        for line in help_lines():
            print(line)

    def _do_tools(self, word: str) -> None:
        if not self._tools:
            raise CommandError("there are no tools; name some when the chat starts, like --tool python")
        if word in ("on", "off"):
            self._switch(word == "on")
            self._answering.recount()
        else:
            for line in self._tools.told():
                print(line)
        print(f"(tools are {'on' if self._session.tools else 'off'})", file=sys.stderr)

    def _switch(self, on: bool) -> None:
        self._session.tools = checked_tools(self._tools.declarations if on else [])


def _path(argument: str) -> str:
    """The path that somebody typed. Raises CommandError for what cannot be one."""
    try:
        return str(check_value("the path", FilePath(), path_of(argument)))
    except SettingsError as error:
        raise CommandError(str(error)) from error


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
