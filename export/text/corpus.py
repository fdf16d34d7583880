"""Text that needs no file, because it comes with Python, and the corpus that an export is calibrated with.

The evaluation text is the documentation of the language in `pydoc_data.topics`; the calibration text is docstrings and
short functions of the standard library. Both are English and the same for any one version of Python. Knows nothing
about models.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sysconfig
import textwrap
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from edge.export.text.documents import Document, read_documents
from edge.export.text.overlap import Runs
from edge.runtime.errors import CalibrationError

SHARED_WORDS_BUILTIN = 12  # that the texts that come with Python may not share, since leaving pieces out is easy there
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


@dataclass(frozen=True)
class Corpus:
    """Documents by the name that reports give them."""

    name: str
    documents: tuple[Document, ...]

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of all texts and their languages."""
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
    """Docstrings and short functions of the standard library, a document for each of CALIBRATION_FILES that exists.

    In the order of each file: docstrings of the module, its classes and its functions; functions with a docstring that
    have 4 to 20 lines are taken as a whole. A piece that shares 12 words in a row with the evaluation text is left out,
    and so is a repeated one. With CPython 3.11 that is 1.4 million characters, 376,000 tokens of SmolLM2. Raises
    CalibrationError where Python was installed without its sources.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    forbidden = Runs([document.text for document in builtin_evaluation()], SHARED_WORDS_BUILTIN)
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
        raise CalibrationError(f"{folder} has no sources of Python's library; give a text file to calibrate with")
    return documents


def _pieces(source: str) -> Iterator[str]:
    """Docstrings, and functions that are short, in the order of the file."""
    lines = source.split("\n")  # not splitlines(): to the parser, a form feed does not begin a line

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
