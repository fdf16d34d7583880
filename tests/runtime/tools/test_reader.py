"""Whatever the pieces in which an answer arrives, a call is found in it, and nothing is lost or shown twice."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.runtime.chunk import CallPiece
from edge.runtime.tools.format import RAW_ARGUMENTS
from edge.runtime.tools.reader import AnswerReader, CallForm
from tests.runtime.tools.languages import LANGUAGES

NAMES = ("get", "get_weather", "get_weather_now", "天气", "a b", "python")  # some are prefixes of others
TOOLS = {name: name == "python" for name in NAMES}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from([*LANGUAGES, "}", '{"a": 1}', "\n", "🙂"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def read(pieces: Iterable[str], form: CallForm, *, was_cut: bool = False) -> tuple[str, list[CallPiece], bool]:
    reader = AnswerReader(form, "call_1")
    found = [reader.push(piece) for piece in pieces]
    found.append(reader.finish(was_cut=was_cut))
    return "".join(one.text for one in found), [piece for one in found for piece in one.calls], found[-1].is_call


def arguments(pieces: list[CallPiece]) -> str:
    return "".join(piece.arguments for piece in pieces)


def splits(text: str) -> st.SearchStrategy[list[str]]:
    """All ways to cut a text."""
    return st.lists(st.integers(0, len(text)), max_size=6).map(
        lambda ends: [text[a:b] for a, b in zip([0, *sorted(ends)], [*sorted(ends), len(text)], strict=True)]
    )


@given(st.data(), st.sampled_from(NAMES[:-1]), st.dictionaries(st.text(max_size=8), VALUES, max_size=4), st.booleans())
@settings(max_examples=300, deadline=None)
def test_a_call_round_trips_over_all_splits(data: Any, name: str, given_arguments: dict[str, Any], held: bool) -> None:
    written = json.dumps(given_arguments, ensure_ascii=data.draw(st.booleans()))
    pieces = data.draw(splits(f"{name}\n{written}"))
    text, calls, is_call = read(pieces, CallForm(TOOLS, held=held, lead="\n"))
    assert (text, is_call) == ("", True)
    assert (calls[0].name, calls[0].arguments) == (name, "")
    assert {piece.name for piece in calls[1:]} == {""}
    assert {(piece.index, piece.id) for piece in calls} == {(0, "call_1")}
    assert arguments(calls) == written


@given(st.data(), st.text() | st.sampled_from(LANGUAGES), st.booleans())
@settings(max_examples=300, deadline=None)
def test_text_round_trips_over_all_splits(data: Any, said: str, held: bool) -> None:
    """Also text that begins like a call, or is one but for the end of its first line."""
    begin = data.draw(st.sampled_from(["\n", "\n\n", "get ", "get_weathe", "get_weather:", "天", "x\n{}", " get\n{}"]))
    answer = f"{begin}{said}"
    if answer.partition("\n")[0] in NAMES and "\n" in answer:
        return
    text, calls, is_call = read(data.draw(splits(answer)), CallForm(TOOLS, held=held, lead="\n"))
    assert (calls, is_call) == ([], False)
    assert text == answer.removeprefix("\n")


@given(st.data(), st.sampled_from(NAMES[:-1]), st.text(), st.booleans())
@settings(max_examples=300, deadline=None)
def test_what_is_not_a_call_after_a_name_is_shown_as_text(data: Any, name: str, rest: str, was_cut: bool) -> None:
    answer = f"{name}\n{rest}"
    try:
        json.JSONDecoder().raw_decode(rest.lstrip())
        return
    except ValueError:
        pass
    text, calls, is_call = read(data.draw(splits(answer)), CallForm(TOOLS), was_cut=was_cut)
    assert not is_call
    if calls:  # cut within an object: as far as it came
        assert was_cut
        assert (text, calls[0].name, arguments(calls)) == ("", name, rest.lstrip())
    else:
        assert text == answer


@pytest.mark.parametrize(
    ("rest", "shown", "called"),
    [
        ('{"a": "}"} and more', " and more", '{"a": "}"}'),
        ('{"a": "}"}\n', "", '{"a": "}"}'),
        ("[1]", "get\n[1]", None),
        ("5", "get\n5", None),
        ("", "get\n", None),
        ("{'a': 1}", "get\n{'a': 1}", None),
        ('{"a": 1', 'get\n{"a": 1', None),
    ],
)
def test_without_a_grammar_the_end_decides(rest: str, shown: str, called: str | None) -> None:
    text, calls, is_call = read(["get", "\n", *rest], CallForm(TOOLS))
    assert (text, is_call, arguments(calls) if calls else None) == (shown, called is not None, called)


def test_under_a_grammar_the_name_comes_first_and_arguments_as_they_are_made() -> None:
    reader = AnswerReader(CallForm(TOOLS, held=True), "call_1")
    pushed = [reader.push(piece) for piece in ("get_weather", "\n", '{"ci', 'ty": "北', '京"}')]
    assert [[(piece.name, piece.arguments) for piece in one.calls] for one in pushed] == [
        [],
        [("get_weather", "")],
        [("", '{"ci')],
        [("", 'ty": "北')],
        [("", '京"}')],
    ]
    assert reader.finish(was_cut=False).is_call


@pytest.mark.parametrize("held", [True, False])
def test_a_call_that_is_cut_is_not_complete(held: bool) -> None:
    text, calls, is_call = read(["get\n", '{"a": "x'], CallForm(TOOLS, held=held), was_cut=True)
    assert (text, calls[0].name, arguments(calls), is_call) == ("", "get", '{"a": "x', False)


def test_text_is_held_back_only_while_it_may_become_a_call() -> None:
    reader = AnswerReader(CallForm(TOOLS, lead="\n"), "call_1")
    assert [reader.push(piece).text for piece in ("get", "_we", "t day", " ahead")] == ["", "", "get_wet day", " ahead"]
    assert AnswerReader(CallForm(TOOLS), "call_1").push("The").text == "The"
    assert AnswerReader(CallForm({}, lead="\n"), "call_1").push("\nHi").text == "Hi"


@given(st.data(), st.text() | st.sampled_from(['print("}")\n"""x"""', *LANGUAGES]))
@settings(max_examples=200, deadline=None)
def test_raw_text_of_an_all_tools_call_becomes_its_one_argument(data: Any, code: str) -> None:
    text, calls, is_call = read(data.draw(splits(f"python\n{code}")), CallForm(TOOLS, held=True))
    assert (text, is_call, calls[0].name) == ("", True, "python")
    assert json.loads(arguments(calls)) == {RAW_ARGUMENTS["python"]: code}


@pytest.mark.parametrize("pads", [True, False])
def test_blanks_after_a_name_are_read_where_the_format_has_them(pads: bool) -> None:
    text, calls, is_call = read(list("get  \n{}"), CallForm(TOOLS, pads_names=pads, held=True))
    assert is_call is pads
    assert text == ("" if pads else "get  \n{}")
    assert [piece.name for piece in calls if piece.name] == ["get"] * pads


@pytest.mark.parametrize("held", [True, False])
def test_a_megabyte_of_arguments_is_read_piece_by_piece(held: bool) -> None:
    """In time that grows with its length; a reader that joined what it has at each piece would take minutes."""
    written = json.dumps({"text": '今 }" ' * 200_000}, ensure_ascii=False)
    assert len(written) > 1_000_000
    answer = f"get\n{written}"
    text, calls, is_call = read((answer[i : i + 3] for i in range(0, len(answer), 3)), CallForm(TOOLS, held=held))
    assert (text, is_call, arguments(calls) == written) == ("", True, True)


def test_deep_nesting_is_text_and_not_an_error() -> None:
    answer = "get\n" + '{"a":' * 100_000
    text, calls, is_call = read([answer], CallForm(TOOLS))
    assert (text, calls, is_call) == (answer, [], False)
