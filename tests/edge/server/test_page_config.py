"""The words of a page: what is taken is given to the page unchanged, and anything else is named."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.runtime.errors import SettingsError
from edge.server.page_config import MAX_BYTES, PageConfig, read_page_config

WHOLE: dict[str, Any] = {  # Any: JSON
    "title": "博物馆 · متحف",
    "greeting": "Welcome.\n\nAsk about the paintings.",
    "placeholder": "Your question",
    "suggestions": ["Where is the exit?", "谁画了这幅画？"],
    "languages": ["en", "zh-Hans", "ar", "pt-BR"],
    "idle_seconds": 90.0,
    "idle_warning_seconds": 20.0,
    "max_prompt_chars": 2000,
    "system": "You are the guide of a museum.\n",
    "kiosk": True,
    "pictures": False,
}


def written(folder: Path, content: object) -> Path:
    file = folder / "page.json"
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return file


def test_what_is_taken_is_what_the_page_is_given(tmp_path: Path) -> None:
    assert read_page_config(written(tmp_path, WHOLE)).to_json() == WHOLE
    for name in WHOLE.keys() - {"idle_warning_seconds", "kiosk"}:
        one = {name: WHOLE[name]}
        assert read_page_config(written(tmp_path, one)).to_json() == {**one, "kiosk": False}
    nulls: dict[str, Any] = dict.fromkeys(WHOLE)
    assert read_page_config(written(tmp_path, nulls)) == PageConfig()
    assert PageConfig().to_json() == {"kiosk": False}, "the page has words of its own"
    assert read_page_config(written(tmp_path, b"\xef\xbb\xbf{}")) == PageConfig(), "as Notepad writes it"


texts = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=100)


@given(
    values=st.fixed_dictionaries(
        {},
        optional={
            "title": texts,
            "greeting": texts,
            "suggestions": st.lists(texts, max_size=12, unique=True),
            "languages": st.lists(st.from_regex(r"[a-z]{2,3}(-[A-Z]{2})?", fullmatch=True), max_size=40, unique=True),
            "idle_seconds": st.floats(1, 86400),
            "max_prompt_chars": st.integers(1, 10_000_000),
            "system": texts,
            "kiosk": st.booleans(),
        },
    )
)
def test_any_words_come_back(values: dict[str, Any]) -> None:
    found = PageConfig(**values).to_json()
    assert json.loads(json.dumps(found)) == {"kiosk": False, **values}
    assert PageConfig(**found).to_json() == found


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"titel": "x"}, "unknown setting 'titel', did you mean 'title'?"),
        ({"__class__": "x"}, "unknown setting '__class__'"),
        ({"title": ""}, "title is '', expected one line of text of 1 to 100 characters"),
        ({"title": "  "}, "title is '  ', expected"),
        ({"title": "x" * 101}, "title is too long (101 characters), expected one line of text of 1 to 100 characters"),
        ({"title": "a\nb"}, "title is 'a\\nb', which has a line end, expected one line"),
        ({"title": "a\u2028b"}, "title is 'a\\u2028b', which has a line end"),
        ({"title": "a\x00b"}, "title is 'a\\x00b', which has the character '\\x00', expected"),
        ({"title": 3}, "title is 3, expected one line"),
        (
            {"greeting": "a\x1b[2J"},
            "greeting is 'a\\x1b[2J', which has the character '\\x1b', expected text of 1 to 2,000 characters",
        ),
        ({"greeting": ["a"]}, "greeting is ['a'], expected text"),
        ({"suggestions": "one"}, "suggestions is 'one', expected a list of up to 12 different questions"),
        ({"suggestions": ["a", ""]}, "suggestions is a list whose entry 2 is '', expected"),
        ({"suggestions": ["a", "a"]}, "suggestions is a list that has 'a' twice, expected"),
        ({"suggestions": [str(number) for number in range(13)]}, "suggestions is a list of 13 entries, expected"),
        ({"suggestions": ["x" * 301]}, "suggestions is a list whose entry 1 is too long (301 characters), expected"),
        ({"suggestions": [{"a": 1}]}, "suggestions is a list whose entry 1 is {'a': 1}, expected"),
        ({"languages": ["english please"]}, "languages is a list whose entry 1 is 'english please', expected"),
        (
            {"languages": ["en_US"]},
            "languages is a list whose entry 1 is 'en_US', expected a list of up to 40 different",
        ),
        ({"idle_seconds": 0}, "idle_seconds is 0, expected a number above 0 and at most 86400"),
        ({"idle_seconds": "90"}, "idle_seconds is '90', expected a number"),
        ({"idle_seconds": True}, "idle_seconds is True, expected a number"),
        ({"idle_seconds": 1e9}, "idle_seconds is 1000000000.0, expected"),
        ({"idle_warning_seconds": 5}, "idle_warning_seconds is 5 without idle_seconds, expected both"),
        (
            {"idle_warning_seconds": 9, "idle_seconds": 9},
            "idle_warning_seconds is 9 and idle_seconds 9, expected fewer",
        ),
        ({"max_prompt_chars": 0}, "max_prompt_chars is 0, expected a whole number from 1"),
        ({"max_prompt_chars": 1.5}, "max_prompt_chars is 1.5, expected a whole number"),
        ({"system": "x" * 100_001}, "system is too long (100,001 characters), expected text"),
        ({"kiosk": 1}, "kiosk is 1, expected true or false"),
        ([], "holds [], expected a JSON object"),
        ("x", "holds 'x', expected a JSON object"),
        (b'{"title": "a", "title": "b"}', "an object has the key 'title' twice"),
        (b'{"idle_seconds": NaN}', "it holds NaN"),
        (b'{"title": "\\ud800"}', "is not valid JSON"),
        (b'{"title": "caf\xe9"}', "it is not UTF-8 at byte"),
        (b"[" * 100_000, "nest more than"),
        (b"", "is not valid JSON"),
        (b" " * (MAX_BYTES + 1), "expected at most 1,048,576"),
    ],
)
def test_what_cannot_be_shown_is_named(given: object, said: str, tmp_path: Path) -> None:
    file = written(tmp_path, given)
    with pytest.raises(SettingsError) as caught:
        read_page_config(file)
    assert str(file) in str(caught.value)
    assert said in str(caught.value)
    assert str(caught.value).isprintable()
    assert str(caught.value).endswith("see docs/kiosk.md for the keys of a page's configuration")


def test_a_file_that_is_none(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "none", Path(os.devnull)):
        with pytest.raises(SettingsError):
            read_page_config(place)
