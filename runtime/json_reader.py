"""How JSON from elsewhere is read: always with limits, and with one kind of error.

In: JSON text or a file, what to call it, and the error that its reader raises. Out: the value. Knows nothing about what
the value should be.

Python's own reader accepts what breaks later code: nesting that overflows the stack of code that walks it, numbers
beyond float64 (as inf), integers of thousands of digits, NaN, and halves of characters, which UTF-8 cannot hold.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from edge.runtime.errors import EdgeError, shown
from edge.runtime.files import SMALL_BYTES, read_file

MAX_DEPTH = 64  # nested lists and objects; tokenizer.json and JSON schemas have about ten
MAX_BRACKETS = 1 << 22  # opening ones: each list takes 64 bytes or more, and a tokenizer has 0.3 million merges
MAX_DIGITS = 40  # of an integer; 2**64 has 20
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class _Refused(ValueError):
    """What is wrong with the JSON, in words."""


def parse_json(
    raw: str | bytes,
    name: str,
    error: type[EdgeError],
    advice: str,
    *,
    unique_keys: bool = False,
    infinite: bool = False,
) -> Any:  # Any: JSON
    """Return the value of JSON text; bytes are UTF-8, with or without a byte-order mark.

    unique_keys: refuse an object that has a key twice, for files that we write ourselves. infinite: accept NaN and
    Infinity, which JSON does not have but Python writes. Raises `error`, "`name` is not valid JSON: ... ; `advice`",
    for anything but JSON within the limits.
    """

    def whole(digits: str) -> int:
        if len(digits) > MAX_DIGITS:
            raise _Refused(f"it holds an integer of {len(digits)} digits")
        return int(digits)

    def fraction(digits: str) -> float:
        number = float(digits)
        if math.isinf(number) and not infinite:
            raise _Refused(f"it holds {shown(digits)}, which is beyond a 64-bit float")
        return number

    def constant(word: str) -> float:
        if not infinite:
            raise _Refused(f"it holds {word}, which is not a number in JSON")
        return float(word)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise _Refused(f"an object has the key {shown(twice)} twice")
        return found

    def refuse(reason: object) -> NoReturn:
        raise error(f"{name} is not valid JSON: {reason}; {advice}") from None

    try:
        text = raw.decode("utf-8-sig") if isinstance(raw, bytes) else raw.removeprefix("\ufeff")
        if text.count("[") + text.count("{") > MAX_BRACKETS:
            raise _Refused(f"it has more than {MAX_BRACKETS:,} lists and objects")
        value = json.loads(
            text,
            parse_int=whole,
            parse_float=fraction,
            parse_constant=constant,
            object_pairs_hook=unique if unique_keys else None,
        )
        _check_depth(value)
        if _ESCAPED_SURROGATE.search(text):
            _check_unicode(value)
    except UnicodeDecodeError as problem:
        refuse(f"it is not UTF-8 at byte {problem.start}")
    except json.JSONDecodeError as problem:
        refuse(f"{problem.msg} at line {problem.lineno}, column {problem.colno}")
    except _Refused as problem:
        refuse(problem)
    except RecursionError:
        refuse(f"its lists and objects nest more than {MAX_DEPTH} deep")
    except MemoryError:
        refuse("there is not enough memory for it")
    return value


def read_json(
    path: Path,
    error: type[EdgeError],
    advice: str,
    *,
    max_bytes: int = SMALL_BYTES,
    unique_keys: bool = False,
    infinite: bool = False,
) -> Any:  # Any: JSON
    """Read a file by `parse_json`. Raises `error` also for a file that cannot be read, or is too large."""
    raw = read_file(path, error, advice, max_bytes=max_bytes)
    return parse_json(raw, str(path), error, advice, unique_keys=unique_keys, infinite=infinite)


def read_json_object(
    path: Path,
    error: type[EdgeError],
    advice: str,
    *,
    max_bytes: int = SMALL_BYTES,
    unique_keys: bool = False,
    infinite: bool = False,
) -> dict[str, Any]:  # Any: JSON
    """Read a file by `read_json`. Raises `error` also if its value is not an object."""
    value = read_json(path, error, advice, max_bytes=max_bytes, unique_keys=unique_keys, infinite=infinite)
    if not isinstance(value, dict):
        raise error(f"{path} holds {shown(value)}, expected a JSON object; {advice}")
    return value


def _check_depth(value: object) -> None:
    """Raise for values nested too deeply. Works level by level, since recursion would overflow here as elsewhere."""
    level, depth = [value], 0
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise _Refused(f"its lists and objects nest more than {MAX_DEPTH} deep")
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]


def _check_unicode(value: object) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as problem:
        code = ord(problem.object[problem.start])
        raise _Refused(f"it holds half a character (surrogate U+{code:04X})") from None
