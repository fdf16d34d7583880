"""Text to calibrate compression with and to measure models by, as documents and as windows of tokens.

In: files a user names, or nothing. Out: `Document`s and `Windows`. What needs no file comes with Python itself: the
evaluation text is the language's documentation in `pydoc_data.topics`, the calibration text docstrings and short
functions of the standard library. Both are English and fixed for one version of Python. Knows nothing about models.
"""

from __future__ import annotations

import ast
import codecs
import hashlib
import json
import re
import sysconfig
import textwrap
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edge.runtime.errors import CalibrationError, PromptError, shown
from edge.runtime.files import read_file, shown_path
from edge.runtime.json_reader import parse_json

if TYPE_CHECKING:
    from edge.runtime.chat import ChatTemplate
    from edge.runtime.messages import MessageLike
    from edge.runtime.tokenizer import Tokenizer

UNKNOWN_LANGUAGE = "und"  # ISO 639-2, undetermined
SHARED_WORDS = 40  # that calibration and evaluation text may not have in common, in a row
SHARED_WORDS_BUILTIN = 12  # the same for the text that comes with Python, where leaving pieces out is easy
SHOWN_WORDS = 30  # of a passage, in a message
MAX_FILE_BYTES = 200_000_000  # of text: 50 million tokens; in memory up to five times as much
FUNCTION_LINES = range(4, 21)  # of a function that is taken as a whole, if it has a docstring

# Files of the standard library with much to read: prose and code of many kinds.
CALIBRATION_FILES = (
    "_pydatetime.py", "_pydecimal.py", "_pyio.py", "_strptime.py", "abc.py", "argparse.py", "ast.py",
    "asyncio/base_events.py", "asyncio/events.py", "asyncio/locks.py", "asyncio/queues.py", "asyncio/streams.py",
    "asyncio/tasks.py", "base64.py", "bdb.py", "bisect.py", "calendar.py", "cmd.py", "codecs.py",
    "collections/__init__.py", "concurrent/futures/_base.py", "configparser.py", "contextlib.py", "copy.py", "csv.py",
    "ctypes/util.py", "dataclasses.py", "difflib.py", "dis.py", "doctest.py", "email/header.py", "email/message.py",
    "email/utils.py", "enum.py", "fileinput.py", "fractions.py", "ftplib.py", "functools.py", "getopt.py", "gettext.py",
    "glob.py", "graphlib.py", "gzip.py", "heapq.py", "html/parser.py", "http/client.py", "http/cookiejar.py",
    "http/cookies.py", "http/server.py", "imaplib.py", "importlib/resources/__init__.py", "importlib/util.py",
    "inspect.py", "ipaddress.py", "json/__init__.py", "json/decoder.py", "json/encoder.py", "linecache.py", "locale.py",
    "logging/__init__.py", "logging/config.py", "logging/handlers.py", "mailbox.py", "mimetypes.py",
    "multiprocessing/managers.py", "multiprocessing/pool.py", "netrc.py", "ntpath.py", "numbers.py", "optparse.py",
    "os.py", "pdb.py", "pickle.py", "pickletools.py", "pkgutil.py", "platform.py", "plistlib.py", "poplib.py",
    "posixpath.py", "pprint.py", "profile.py", "pstats.py", "random.py", "re/__init__.py", "sched.py", "selectors.py",
    "shelve.py", "shlex.py", "shutil.py", "smtplib.py", "socket.py", "socketserver.py", "sqlite3/dump.py", "ssl.py",
    "stat.py", "statistics.py", "string.py", "subprocess.py", "symtable.py", "tabnanny.py", "tarfile.py", "tempfile.py",
    "textwrap.py", "threading.py", "timeit.py", "tokenize.py", "trace.py", "traceback.py", "turtle.py", "types.py",
    "typing.py", "unittest/case.py", "unittest/mock.py", "urllib/parse.py", "urllib/request.py",
    "uuid.py", "warnings.py", "wave.py", "weakref.py", "webbrowser.py", "wsgiref/simple_server.py",
    "xml/dom/minidom.py", "xml/etree/ElementTree.py", "xmlrpc/client.py", "zipfile/__init__.py",
)  # fmt: skip

# A word is a run of characters without space; where a script has no spaces, one character of it.
_WORD = re.compile(
    r"[\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]|[^\s\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+"
)


@dataclass(frozen=True, slots=True)
class Document:
    """One text, or one conversation."""

    text: str  # of a conversation: its contents, one below the other
    language: str = UNKNOWN_LANGUAGE  # a label to report by, like "en" or "zh"
    messages: tuple[MessageLike, ...] = ()  # of a conversation
    origin: str = ""  # where it comes from, for messages: "chats.jsonl, line 3"

    def rendered(self, template: ChatTemplate | None) -> str:
        """The text as a model sees it: a conversation through the template, where there are both."""
        if template is None or not self.messages:
            return self.text
        try:
            return template.render(self.messages, add_generation_prompt=False)
        except PromptError as error:
            raise CalibrationError(f"{self.origin or 'a conversation'}: {error}") from error


@dataclass(frozen=True)
class Windows:
    """Runs of tokens, all of one length, each of one language."""

    ids: npt.NDArray[np.int64]  # (n, length)
    languages: tuple[str, ...]  # n labels

    @property
    def count(self) -> int:
        """Windows."""
        return int(self.ids.shape[0])

    @property
    def length(self) -> int:
        """Tokens of one window."""
        return int(self.ids.shape[1])

    @property
    def num_tokens(self) -> int:
        """Tokens of all windows."""
        return int(self.ids.size)

    @cached_property
    def sha256(self) -> str:
        """Of the ids and their shape: what was computed for these windows is known by it."""
        digest = hashlib.sha256(json.dumps(list(self.ids.shape)).encode())
        digest.update(np.ascontiguousarray(self.ids, "<i8").data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Corpus:
    """Documents by the name that reports give them."""

    name: str
    documents: tuple[Document, ...]

    @cached_property
    def sha256(self) -> str:
        """Of all texts and their languages."""
        digest = hashlib.sha256()
        for document in self.documents:
            digest.update(json.dumps([document.text, document.language]).encode())
        return digest.hexdigest()


def calibration_corpus(path: str | Path | None) -> Corpus:
    """The text of a file, or the one that comes with Python. Raises CalibrationError."""
    if path is None:
        return _builtin_corpus()
    return Corpus(Path(path).name, tuple(read_documents(Path(path))))


@cache
def _builtin_corpus() -> Corpus:
    return Corpus("docstrings of Python's standard library", tuple(builtin_calibration()))


def builtin_evaluation() -> list[Document]:
    """CPython's documentation of its language (pydoc_data.topics), a document for each topic, by name."""
    from pydoc_data.topics import topics

    return [Document(topics[name], "en", origin=f"pydoc_data.topics, {name}") for name in sorted(topics)]


def builtin_calibration() -> list[Document]:
    """Docstrings and short functions of the standard library, a document for each of CALIBRATION_FILES that is there.

    In the order of each file: docstrings of the module, its classes and its functions; of functions with a docstring
    that have 4 to 20 lines, all of it. A piece that has 12 words in a row in common with the evaluation text is left
    out, and so is one that was there before. With CPython 3.11 1.4 million characters, 376,000 tokens of SmolLM2.
    Raises CalibrationError where Python was installed without its sources.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    forbidden = _Shingles([document.text for document in builtin_evaluation()], SHARED_WORDS_BUILTIN)
    documents, seen = [], set()
    for name in CALIBRATION_FILES:
        if not (folder / name).is_file():  # another version of Python
            continue
        with tokenize.open(folder / name) as file:
            pieces = [piece for piece in dict.fromkeys(_pieces(file.read())) if piece not in seen]
        seen.update(pieces)
        if kept := [piece for piece in pieces if forbidden.find(piece) is None]:
            documents.append(Document("\n\n".join(kept), "en", origin=f"Python's {name}"))
    if not documents:
        raise CalibrationError(f"{folder} holds no sources of Python's library; give a text file to calibrate with")
    return documents


def read_documents(path: str | Path) -> list[Document]:
    """The documents of a file: a UTF-8 text as one, or each line of a .jsonl as one.

    A line is {"text": "..."} or a conversation {"messages": [{"role": "user", "content": "..."}, ...]}, both with an
    optional "language". Raises CalibrationError, which names the line.
    """
    path = Path(path)
    name, advice = shown_path(path), "name a text or .jsonl file"
    raw = read_file(path, CalibrationError, advice, max_bytes=MAX_FILE_BYTES)
    try:
        content = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        looks = " (it looks like UTF-16)" if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else ""
        raise CalibrationError(
            f"{name}, line {line}: byte {error.start} is no UTF-8{looks}; save the file as UTF-8"
        ) from error
    if (zero := content.find("\0")) >= 0:
        line = content.count("\n", 0, zero) + 1
        raise CalibrationError(f"{name}, line {line}: a zero byte, so this is no text; {advice}")
    content = content.replace("\r\n", "\n").replace("\r", "\n")
    if path.suffix.lower() != ".jsonl":
        documents = [Document(content, origin=name)] if content.strip() else []
    else:  # not splitlines(): JSON strings may hold U+2028
        lines = enumerate(content.split("\n"), start=1)
        documents = [_from_json(line, f"{name}, line {number}") for number, line in lines if line.strip()]
    if not documents:
        raise CalibrationError(f"{name} holds no text; give a file with some")
    return documents


def check_apart(calibration: Sequence[Document], evaluation: Sequence[Document], words: int = SHARED_WORDS) -> None:
    """Raises CalibrationError, with the passage, when the two have `words` words in a row in common.

    A model that was compressed with the very text it is measured by looks better than it is. White space does not
    count; a Chinese or Japanese character is a word.
    """
    shingles = _Shingles([document.text for document in calibration], words)
    for document in evaluation:
        if (passage := shingles.find(document.text)) is not None:
            common = " ".join(passage[:SHOWN_WORDS]) + (" ..." if len(passage) > SHOWN_WORDS else "")
            where = f" ({document.origin})" if document.origin else ""
            raise CalibrationError(
                f"calibration and evaluation text{where} share {words} words in a row: {common!r}; figures measured "
                "with it would be too good, take the passage out of one of them"
            )


def token_windows(
    documents: Sequence[Document],
    tokenizer: Tokenizer,
    length: int,
    count: int,
    template: ChatTemplate | None = None,
) -> Windows:
    """`count` windows of `length` tokens, spread over the whole text, languages taking turns.

    Documents of one language follow each other with a newline between. A language with too little text leaves its
    turns to the others. No token is added: special tokens are in a window where the text or the template has them.
    Raises CalibrationError when the text is too short.
    """
    if length < 1 or count < 1:
        raise CalibrationError(f"{count} windows of {length} tokens are asked for, expected 1 or more of each")
    texts: dict[str, list[str]] = {}
    for document in documents:
        texts.setdefault(document.language, []).append(document.rendered(template))
    ids = {language: np.array(tokenizer.encode("\n".join(parts)), np.int64) for language, parts in texts.items()}
    turns = _turns({language: of_language.size // length for language, of_language in ids.items()}, count)
    if len(turns) < count:
        found = ", ".join(f"{of_language.size:,} ({language})" for language, of_language in ids.items()) or "0"
        raise CalibrationError(
            f"the text gives {found} tokens, {len(turns)} windows of {length}; {count} windows are asked for, "
            "so give more text, or ask for fewer or shorter windows"
        )
    starts = {
        language: iter(np.arange(turns.count(language)) * of_language.size // max(turns.count(language), 1))
        for language, of_language in ids.items()
    }
    rows = [ids[language][(start := next(starts[language])) : start + length] for language in turns]
    return Windows(np.stack(rows), tuple(turns))


class _Shingles:
    """All runs of `words` words of some texts, hashed; tells whether another text holds one of them.

    A polynomial hash modulo 2^64 of every run at once, from prefix sums: h[i] = sum_j code[i + j] * BASE^j. BASE is odd
    and so has an inverse. What the hash finds is compared word by word.
    """

    BASE = np.uint64(0x9E3779B97F4A7C15)
    INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 1 << 64))

    def __init__(self, texts: Sequence[str], words: int) -> None:
        self._words = words
        self._texts = [_WORD.findall(text) for text in texts]
        self._codes: dict[str, int] = {}
        hashes = [self._hashes(text) for text in self._texts]
        sizes = [of_text.size for of_text in hashes]
        joined = np.concatenate([np.zeros(0, np.uint64), *hashes])
        order = np.argsort(joined, kind="stable")
        self._sorted = joined[order]
        self._text_of = np.repeat(np.arange(len(sizes)), sizes)[order]
        self._place_of = np.concatenate([np.zeros(0, np.int64), *(np.arange(size) for size in sizes)])[order]

    def find(self, text: str) -> list[str] | None:
        """The first passage of `text`, in words and as long as it goes on, that is in the texts as well."""
        words = _WORD.findall(text)
        hashes = self._hashes(words)
        first = np.searchsorted(self._sorted, hashes, "left")
        last = np.searchsorted(self._sorted, hashes, "right")
        for start in np.flatnonzero(last > first).tolist():
            run = words[start : start + self._words]
            for hit in range(first[start], last[start]):
                theirs, place = self._texts[self._text_of[hit]], int(self._place_of[hit])
                if theirs[place : place + self._words] == run:
                    both = zip(words[start:], theirs[place:], strict=False)
                    return [word for word, _ in takewhile(lambda pair: pair[0] == pair[1], both)]
        return None

    def _hashes(self, words: list[str]) -> npt.NDArray[np.uint64]:
        """(len(words) - self._words + 1,), or empty."""
        if len(words) < self._words:
            return np.zeros(0, np.uint64)
        codes = np.array([self._codes.setdefault(word, len(self._codes)) for word in words], np.uint64)
        codes = (codes + np.uint64(1)) * np.uint64(0xBF58476D1CE4E5B9)  # spread over 64 bits (splitmix64's multiplier)
        codes ^= codes >> np.uint64(31)
        powers = _powers(self.BASE, len(words))
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(codes * powers)])
        runs: npt.NDArray[np.uint64] = sums[self._words :] - sums[: -self._words]
        runs *= _powers(self.INVERSE, runs.size)
        return runs


def _powers(base: np.uint64, count: int) -> npt.NDArray[np.uint64]:
    """base^0, base^1, ... modulo 2^64."""
    powers = np.full(count, base, np.uint64)
    powers[:1] = 1
    np.multiply.accumulate(powers, out=powers)
    return powers


def _turns(capacity: Mapping[str, int], count: int) -> list[str]:
    """Languages, one a window, in turn and as long as each has text for another window."""
    rounds = range(max(capacity.values(), default=0))
    fair = chain.from_iterable((name for name, windows in capacity.items() if windows > turn) for turn in rounds)
    return [name for _, name in zip(range(count), fair, strict=False)]


def _pieces(source: str) -> Iterator[str]:
    """Docstrings, and functions that are short, in the order of the file."""
    lines = source.split("\n")  # not splitlines(): a form feed is no new line to the parser

    def walk(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
        docstring = ast.get_docstring(node)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            end = node.end_lineno or node.lineno
            if docstring is not None and end - node.lineno + 1 in FUNCTION_LINES:
                yield textwrap.dedent("\n".join(lines[node.lineno - 1 : end]))
                return
        if docstring:
            yield docstring
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from walk(child)

    yield from walk(ast.parse(source))


def _from_json(line: str, origin: str) -> Document:
    """One line of a .jsonl. Raises CalibrationError."""
    forms = '{"text": "..."} or {"messages": [{"role": "user", "content": "..."}]}'
    data = parse_json(line, origin, CalibrationError, f"expected {forms}")
    if not isinstance(data, dict) or ("text" in data) == ("messages" in data):
        raise CalibrationError(f"{origin}: expected an object {forms}, found {shown(data)}")
    language = data.get("language", UNKNOWN_LANGUAGE)
    if not isinstance(language, str) or not language:
        raise CalibrationError(f'{origin}: language is {shown(language)}, expected a string like "en"')
    if "text" in data:
        if not isinstance(data["text"], str):
            raise CalibrationError(f"{origin}: text is {shown(data['text'])}, expected a string")
        return Document(data["text"], language, origin=origin)
    messages = data["messages"]
    if not isinstance(messages, list) or not messages or not all(_is_message(message) for message in messages):
        raise CalibrationError(
            f"{origin}: messages are {shown(messages)}, expected a list of objects with a role and a content in text"
        )
    return Document("\n".join(message["content"] for message in messages), language, tuple(messages), origin)


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))
