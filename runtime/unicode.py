"""Text that can be written as UTF-8, or one clear error.

In: text or bytes from outside, and a word for where they come from. Out: the text. Knows nothing about tokens.

Bytes are UTF-8, unless they begin with a mark that says otherwise: editors of Windows write one before UTF-8, and `>`
of its PowerShell writes UTF-16.

A str can hold what UTF-8 cannot: half of a surrogate pair, from JSON or JavaScript, and the stand-ins to which Python
decodes bytes that are not UTF-8 (PEP 383: U+DC80 to U+DCFF, in arguments of the command line).
"""

from __future__ import annotations

import codecs
import contextlib
import locale
import os

from edge.runtime.errors import EdgeError, PromptError, shown

# The longer ones first: UTF-32's begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def check_text(text: object, what: str, *, param: str | None = None) -> str:
    """Return the text itself. Raises PromptError if it is not a str, or holds a surrogate."""
    if not isinstance(text, str):
        raise PromptError(f"{what} is {shown(text)}, expected text (a str)", param=param)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        if 0xDC80 <= code <= 0xDCFF:
            problem = f"is not UTF-8: byte 0x{code - 0xDC00:02X} at position {error.start}; convert it to UTF-8"
        else:
            problem = (
                f"is not valid Unicode: half a character (surrogate U+{code:04X}) at position {error.start}; "
                "remove it or send the whole character"
            )
        raise PromptError(f"{what} {problem}", param=param) from None
    return text


def check_typed(text: str, what: str) -> str:
    """Return what a terminal or a shell gave; UTF-8 also where Python took it for ASCII. Raises PromptError."""
    if not text.isascii():
        with contextlib.suppress(UnicodeError):
            return text.encode("ascii", "surrogateescape").decode("utf-8")
    return check_text(text, what)


def marked_encoding(begin: bytes) -> tuple[bytes, str] | None:
    """Return the byte-order mark that a file begins with, and the encoding that it means."""
    return next(((mark, encoding) for mark, encoding in _MARKS if begin.startswith(mark)), None)


def decode_text(data: bytes, what: str, *, error: type[EdgeError] = PromptError, otherwise: str | None = None) -> str:
    """Return the text of bytes, without a mark. Raises `error`, by default PromptError.

    otherwise: the encoding of what has no mark and is not UTF-8.
    """
    mark, encoding = marked_encoding(data) or (b"", "utf-8")
    try:
        return data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as problem:
        if otherwise is not None and not mark:
            with contextlib.suppress(UnicodeError, LookupError):
                return data.decode(otherwise)
        name, place = encoding.removesuffix("-le").removesuffix("-be").upper(), len(mark) + problem.start
        raise error(
            f"{what} is not {name}: byte 0x{data[place]:02X} at position {place}; convert it to UTF-8"
        ) from problem


def told_encoding() -> str | None:
    """The encoding that the environment names for the standard streams; None if it is left to us."""
    named = os.environ.get("PYTHONIOENCODING", "").partition(":")[0]
    if named or os.environ.get("PYTHONUTF8", "") not in ("", "1"):
        return named or locale.getencoding()
    return None
