"""JSON of others: what is within the limits is read as Python reads it, anything else is one error."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.runtime.errors import BundleError, EdgeError
from edge.runtime.files import open_file, read_file
from edge.runtime.json_reader import MAX_BRACKETS, MAX_DEPTH, MAX_DIGITS, parse_json, read_json, read_json_object

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("ab\\\"é"), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


def parse(raw: str | bytes, **options: bool) -> object:
    return parse_json(raw, "it.json", BundleError, "export again", **options)


@given(VALUES, st.booleans())
def test_what_is_json_is_read_as_it_was_written(value: object, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert parse(text) == value
    assert parse(text.encode()) == value
    assert parse(b"\xef\xbb\xbf" + text.encode()) == value, "a byte-order mark"


@given(st.binary(max_size=60) | st.text('[]{}",:0123456789eE+-.\\udDfFtrueINaN\ufeff').map(str.encode))
def test_anything_else_is_one_error(raw: bytes) -> None:
    said = None
    try:
        parse(raw)
    except EdgeError as error:
        said = str(error)
    if said is not None:
        assert said.startswith("it.json is not valid JSON: ")
        assert said.endswith("; export again")
        assert len(said) < 250


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("[" * 100_000, "nest more than 64 deep"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "nest more than 64 deep"),
        ('{"a":' * 5_000 + "1" + "}" * 5_000, "nest more than 64 deep"),
        ("1" * (MAX_DIGITS + 1), "an integer of 41 digits"),
        ("-" + "9" * 5_000, "an integer of 5001 digits"),
        ("1e999", "'1e999', which is beyond a 64-bit float"),
        ("[NaN]", "NaN, which is not a number"),
        ('{"a": -Infinity}', "-Infinity, which is not a number"),
        (r'"\ud83d"', "half a character (surrogate U+D83D)"),
        (r'{"\uDFFF": 1}', "half a character (surrogate U+DFFF)"),
        (b"\xff\xfe[\x00]\x00", "not UTF-8 at byte 0"),
        ("", "Expecting value at line 1, column 1"),
    ],
)
def test_what_later_code_would_die_of(raw: str | bytes, reason: str) -> None:
    with pytest.raises(BundleError, match="is not valid JSON") as caught:
        parse(raw)
    assert reason in str(caught.value)


def test_limits_are_the_last_that_pass() -> None:
    assert parse("[" * MAX_DEPTH + "]" * MAX_DEPTH) is not None
    assert parse("9" * MAX_DIGITS) == int("9" * MAX_DIGITS)
    assert parse(r'"\ud83d\ude00"') == "😀"
    assert parse(r'"\\ud83d"') == r"\ud83d", "an escaped backslash"


def test_keys_may_have_to_be_unique() -> None:
    assert parse('{"a": 1, "a": 2}') == {"a": 2}
    with pytest.raises(BundleError, match="the key 'a' twice"):
        parse('[{"a": 1, "b": {}, "a": 2}]', unique_keys=True)


def test_infinity_where_it_may_be() -> None:
    assert parse("[1e999, -Infinity]", infinite=True) == [float("inf"), float("-inf")]


def test_files_are_ordinary_and_bounded(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text("[1]")
    assert read_json(file, BundleError, "go") == [1]
    with pytest.raises(BundleError, match=r"holds \[1\], expected a JSON object; go"):
        read_json_object(file, BundleError, "go")
    with pytest.raises(BundleError, match=r"has 3 bytes, expected at most 2; go"):
        read_file(file, BundleError, "go", max_bytes=2)
    with file.open("ab") as more:
        more.truncate(10**12)  # takes no space, and would take all memory
    with pytest.raises(BundleError, match="1,000,000,000,000 bytes, expected at most 100,000,000"):
        read_json(file, BundleError, "go")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for strange in (fifo, Path("/dev/zero"), tmp_path):
        with pytest.raises(BundleError, match=r"ordinary file|cannot be read"):
            read_file(strange, BundleError, "go")
    for absent in (tmp_path / "none", tmp_path / ("x" * 300), tmp_path / "a\0b"):
        with pytest.raises(BundleError, match=r"cannot be read .*; go"):
            read_file(absent, BundleError, "go")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(BundleError, match=r"cannot be read"):
        read_file(loop, BundleError, "go")


def test_open_file_gives_ordinary_files_only(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    with open_file(tmp_path / "x", BundleError, "go") as file:
        assert file.read() == b"abc"
    os.mkfifo(tmp_path / "pipe")
    for path, what in (
        (tmp_path / "pipe", "not an ordinary file"),
        (tmp_path, "not an ordinary file|cannot be read"),
        (Path("/dev/zero"), "not an ordinary file"),
        (tmp_path / "absent", "cannot be read"),
        (Path("a\0b"), "cannot be read"),
    ):
        with pytest.raises(BundleError, match=f"{what}.*; go"):
            open_file(path, BundleError, "go")


def test_one_key_twice_among_many() -> None:
    """In time that grows with their number, and not with its square."""
    text = "{" + ",".join(f'"{i}":1' for i in range(200_000)) + ',"199999":1}'
    with pytest.raises(BundleError, match="the key '199999' twice"):
        parse_json(text, "it", BundleError, "go", unique_keys=True)


def test_more_lists_than_memory_is_for() -> None:
    """A hundred megabytes of brackets would be three gigabytes of lists."""
    text = "[" + "[]," * MAX_BRACKETS + "1]"
    with pytest.raises(BundleError, match="it is not valid JSON: it has more than 4,194,304 lists and objects; go"):
        parse_json(text, "it", BundleError, "go")
