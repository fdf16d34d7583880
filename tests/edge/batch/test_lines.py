"""The file of requests: every way to end a line, what is no line, and names that are missing or repeated."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.batch import lines as module
from edge.batch.lines import Lines
from edge.runtime.errors import PromptError

ONE = b'{"custom_id": "%s"}'


def read(tmp_path: Path, data: bytes) -> list[tuple[int, str | None, bytes | None]]:
    path = tmp_path / "in.jsonl"
    path.write_bytes(data)
    lines = Lines(path)
    found = [(line.number, line.custom_id, line.raw) for line in lines]
    assert len(found) == len(lines)
    lines.close()
    return found


def test_lines_end_as_on_any_system_and_empty_ones_do_not_count(tmp_path: Path) -> None:
    first, second = ONE % b"a", ONE % b"b"
    expected = [(1, "a", first), (2, "b", second)]
    assert read(tmp_path, first + b"\n" + second) == expected
    assert read(tmp_path, first + b"\r\n" + second + b"\r\n") == expected
    assert read(tmp_path, b"\xef\xbb\xbf" + first + b"\n" + second + b"\n") == expected
    assert read(tmp_path, b"\n \r\n" + first + b"\n\t\n\n" + second) == [(3, "a", first), (6, "b", second)]
    assert read(tmp_path, b"\xef\xbb\xbf\n" + first) == [(2, "a", first)]


def test_what_is_not_an_object_has_no_name_and_stays(tmp_path: Path) -> None:
    bad = [b"{", b"\xff", b"[1]", b'"custom_id"', b"5", b"[" * 9999, b"{}x", b'{"custom_id": ' + b"9" * 5000 + b"}"]
    found = read(tmp_path, b"\n".join([*bad, ONE % b"a"]))
    assert [custom_id for _, custom_id, _ in found] == [None] * len(bad) + ["a"]
    assert [raw for _, _, raw in found] == [*bad, ONE % b"a"]


def test_a_name_is_found_in_what_is_otherwise_wrong(tmp_path: Path) -> None:
    assert read(tmp_path, b'{"custom_id": "a", "x": NaN, "y": "\\ud800"}')[0][1] == "a"


@pytest.mark.parametrize("value", ["null", '""', "5", "[]", '"\\ud800"', "true"])
def test_names_that_are_missing(value: str, tmp_path: Path) -> None:
    data = b'{}\n{"custom_id": "a"}\n{"custom_id": %s}\n' % value.encode()
    with pytest.raises(PromptError, match=r"in\.jsonl: lines 1, 3 are without a custom_id"):
        read(tmp_path, data)
    with pytest.raises(PromptError, match=r"lines 1, 2, 3, 4, 5 and 95 more are"):
        read(tmp_path, b"{}\n" * 100)
    with pytest.raises(PromptError, match="line 2 is without"):
        read(tmp_path, ONE % b"a" + b"\n{}")


def test_names_that_are_repeated(tmp_path: Path) -> None:
    data = b"\n".join(ONE % name for name in (b"a", b"b", b"c", b"b"))
    with pytest.raises(PromptError, match="lines 2 and 4 have the same custom_id, 'b'"):
        read(tmp_path, data)
    assert len(read(tmp_path, b"{\n" * 3 + ONE % b"a")) == 4  # what has no name is not the same


def test_names_with_the_same_hash_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Equal:
        def __init__(self, *_: object, **__: object) -> None: ...

        def digest(self) -> bytes:
            return bytes(8)

    monkeypatch.setattr("hashlib.blake2b", Equal)
    assert len(read(tmp_path, b"\n".join(ONE % name for name in (b"a", b"b", b"c")))) == 3


def test_a_line_that_is_too_long_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 40)
    exact = ONE % (b"x" * 23)
    assert len(exact) == 40
    for end in (b"\n", b"\r\n", b""):
        found = read(tmp_path, b"y" * 1000 + b"\n" + exact + b"\n" + exact[:-1] + b" }\n" + ONE % b"a" + end)
        assert found == [(1, None, None), (2, "x" * 23, exact), (3, None, None), (4, "a", ONE % b"a")]


def test_no_lines_and_no_file(tmp_path: Path) -> None:
    for data in (b"", b"\n\n", b"\xef\xbb\xbf"):
        with pytest.raises(PromptError, match="has no lines"):
            read(tmp_path, data)
    with pytest.raises(PromptError, match="not an ordinary file"):
        Lines(tmp_path)
    with pytest.raises(PromptError, match="cannot be read"):
        Lines(tmp_path / "nothing")


def test_a_file_that_changes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(ONE % b"a" + b"\n")
    lines = Lines(path)
    assert lines[0].custom_id == "a"
    path.write_bytes(ONE % b"bc" + b"\n")
    with pytest.raises(PromptError, match="was changed while it was read"):
        lines[0]
    lines.close()


def test_memory_is_that_of_places_and_not_of_contents(tmp_path: Path) -> None:
    path, count = tmp_path / "in.jsonl", 20_000
    path.write_bytes(b"".join(b'{"custom_id": "%d", "x": "%s"}\n' % (i, b"y" * 300) for i in range(count)))
    tracemalloc.start()
    lines = Lines(path)
    assert lines[count - 1].custom_id == str(count - 1)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    lines.close()
    assert kept < 40 * count
    assert peak < 80 * count


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=60) | st.text('\r\n \ufeff{}[]"a\\', max_size=40).map(str.encode))
def test_any_bytes_are_lines_or_refused(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("any")
    try:
        found = read(folder, data)
    except PromptError:
        return
    parts = enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1)
    assert [(number, raw) for number, _, raw in found] == [
        (n, part.rstrip(b"\r\n")) for n, part in parts if part.strip()
    ]
