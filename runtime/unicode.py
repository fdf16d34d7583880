"""Text that can be written as UTF-8, or one clear error.

In: text or bytes from outside, and a word for where they come from. Out: the text. Knows nothing about tokens.

A str can hold what UTF-8 cannot: half of a surrogate pair, from JSON or JavaScript, and the stand-ins to which Python
decodes bytes that are not UTF-8 (PEP 383: U+DC80 to U+DCFF, in arguments of the command line).
"""

from __future__ import annotations

import codecs

from edge.runtime.errors import PromptError, shown


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


def decode_text(data: bytes, what: str) -> str:
    """Return the text of UTF-8 bytes. Raises PromptError."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        looks = " (it looks like UTF-16)" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else ""
        raise PromptError(
            f"{what} is not UTF-8: byte 0x{data[error.start]:02X} at position {error.start}{looks}; convert it to UTF-8"
        ) from None
