"""Valid inputs made wrong: bytes, JSON values and text.

In: a seed of Python's random numbers and a valid input. Out: another input, the same for the same seed. Knows nothing
about readers.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from random import Random
from typing import Any

from tests.fuzz.target import Kind

NUMBERS = (0, 1, -1, 2, 127, 128, 255, 256, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64)
STRANGE_JSON: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 0.5, -0.0, 1e308, 2**31, 2**63, 2**64, 10**30, "", "a", "\0", "\x1b[2J", "é😀", "../x",
    "/etc/passwd", "a" * 5000, [], {}, [[]], [None], {"": None}, {"a": 1}, [1, 2, 3], [0] * 2000,
)  # fmt: skip
STRANGE_RAW = (
    b"1e999",
    b"NaN",
    b"-Infinity",
    b"9" * 400,
    b"1.0",
    b"[" * 3000,
    b'"\\ud83d"',
    b'"\\u0000"',
    b"",
    b"\xff",
)


def mutate(seed: int, original: bytes, kind: Kind, words: Sequence[bytes] = ()) -> bytes:
    """One input out of another."""
    random = Random(seed)
    if kind == "json" and random.random() < 0.7:
        return _json(random, original)
    if kind == "text" and random.random() < 0.7:
        return _text(random, original.decode("utf-8", "replace"), [word.decode() for word in words]).encode(
            "utf-8", "surrogatepass"
        )
    return _bytes(random, bytearray(original), words)


def _times(random: Random) -> int:
    return 1 if random.random() < 0.5 else random.randint(2, 8)


def _bytes(random: Random, data: bytearray, words: Sequence[bytes]) -> bytes:
    for _ in range(_times(random)):
        at = random.randrange(len(data) + 1)
        match random.randrange(9):
            case 0 if data:
                data[at % len(data)] ^= 1 << random.randrange(8)
            case 1 if data:
                data[at % len(data)] = random.randrange(256)
            case 2:
                del data[at:]
            case 3:
                del data[at : at + random.randint(1, 64)]
            case 4:
                data[at:at] = random.randbytes(random.randint(1, 64))
            case 5:
                width = random.choice((1, 2, 4, 8))
                number = random.choice(NUMBERS) + random.randint(-1, 1)
                data[at : at + width] = (number % 2 ** (8 * width)).to_bytes(width, "little")
            case 6:
                other = random.randrange(len(data) + 1)
                data[at:at] = data[other : other + random.randint(1, 256)]
            case 7 if words:
                word = random.choice(words)
                data[at : at + random.choice((0, len(word)))] = word
            case _:
                data[at : at + random.randint(1, 16)] = b"\0" * random.randint(1, 16)
    return bytes(data)


def _text(random: Random, text: str, words: Sequence[str]) -> str:
    for _ in range(_times(random)):
        at = random.randrange(len(text) + 1)
        until = at + random.randint(0, 20)
        match random.randrange(5):
            case 0:
                text = text[:at] + text[until:]
            case 1:
                other = random.randrange(len(text) + 1)
                text = text[:at] + text[other : other + random.randint(1, 80)] + text[at:]
            case 2:
                text = (
                    text[:at] + chr(random.choice((0, 7, 27, 0x7F, 0x85, 0x2028, 0xD800, 0xFEFF, 0x1F600))) + text[at:]
                )
            case 3:
                text = text[:at] + str(random.choice(NUMBERS)) + text[until:]
            case _:
                text = text[:at] + (random.choice(words) if words else "{}") + text[until:]
    return text


def _json(random: Random, original: bytes) -> bytes:
    value = json.loads(original)
    holder: dict[str, Any] = {"": value}
    raw: dict[str, bytes] = {}
    for _ in range(_times(random)):
        places = [(inside, key) for inside in _containers(holder) for key in _keys(inside)]
        inside, key = random.choice(places)
        match random.randrange(8):
            case 0 | 1 | 2:
                inside[key] = copy.deepcopy(random.choice(STRANGE_JSON))
            case 3 if inside is not holder:
                del inside[key]
            case 4:
                leaf = random.choice(_leaves(holder) or [0])
                inside[key] = random.choice(([inside[key]], {"a": inside[key]}, leaf))
            case 5:
                mark = f"@raw{len(raw)}@"
                raw[mark] = random.choice(STRANGE_RAW)
                inside[key] = mark
            case 6 if isinstance(inside, dict) and inside is not holder:
                inside[random.choice(["", "x", key.upper(), f"{key} ", "\0", "é"])] = inside[key]
            case _:
                number = inside[key]
                if isinstance(number, int | float):
                    inside[key] = random.choice((-number, number + 1, number * 2**20, float(number), str(number)))
                else:
                    inside[key] = [number] * random.choice((0, 2, 100))
    text = json.dumps(holder[""], ensure_ascii=random.random() < 0.5).encode("utf-8", "surrogatepass")
    for mark, content in raw.items():
        text = text.replace(f'"{mark}"'.encode(), content)
    return text


def _containers(value: Any) -> list[Any]:
    found, waiting = [], [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict | list):
            found.append(item)
            waiting += list(item.values() if isinstance(item, dict) else item)
        if len(found) > 2000:
            break
    return found


def _keys(inside: Any) -> list[Any]:
    keys = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
    return keys[:50] + keys[-50:]


def _leaves(value: Any) -> list[Any]:
    return [
        item
        for inside in _containers(value)
        for key in _keys(inside)
        if not isinstance(item := inside[key], dict | list)
    ]
