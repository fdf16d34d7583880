"""What a model asks of the browser: GLM-4's own calls and arguments of a function, read to the letter or refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge import ToolError
from edge.tools.browser.actions import Action, Click, Open, Search, from_arguments, parse_call

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80).filter(
    lambda text: bool(text.strip())
)
IDS = st.lists(st.integers(0, 10**9), min_size=1, max_size=10, unique=True)
SPACE = st.sampled_from(["", " ", "\n", "  "])


@pytest.mark.parametrize(
    ("call", "action"),
    [
        ('search("query", recency_days=30)', Search("query", 30)),
        ('search("query")', Search("query")),
        ("search('query')", Search("query")),
        ('search(query="a", recency_days=7)', Search("a", 7)),
        ('search(recency_days=7, query="a")', Search("a", 7)),
        ('search("a", 7)', Search("a", 7)),
        ('search("a", recency_days=-1)', Search("a")),
        ('search("a", recency_days=0)', Search("a")),
        ('search("say \\"hi\\" \\u4f60\\n")', Search('say "hi" 你')),
        ('search("it\'s )](= ")', Search("it's )](=")),
        ("mclick([0,1])", Click((0, 1))),
        ("mclick([ 3 , 1, 3, ])", Click((3, 1))),
        ("mclick(ids=[2])", Click((2,))),
        ("mclick(4)", Click((4,))),
        ('open_url("report.pdf")', Open("report.pdf")),
        ('\n open_url( url = "a b.txt" , ) \n', Open("a b.txt")),
    ],
)
def test_calls_of_glm_4(call: str, action: Action) -> None:
    assert parse_call(call) == action
    assert from_arguments({"input": call}) == action


@pytest.mark.parametrize(
    "call",
    [
        "",
        "search",
        "search(",
        "search()",
        'search("a"',
        'search("a)',
        'search("a" "b")',
        'search("a",, 3)',
        'search("a", 3, 4)',
        'search("a", query="b")',
        'search("a", limit=3)',
        'search("a", recency_days="3")',
        'search("a", recency_days=99999999999)',
        "search(a)",
        "search(1)",
        "search(['a'])",
        'search("  ")',
        'search("a"); search("b")',
        'search("a").x',
        'search("a" + "b")',
        'search(f"{1}")',
        "mclick([])",
        "mclick([-1])",
        "mclick([1.5])",
        "mclick([0x1])",
        "mclick([1_0])",
        "mclick([[1]])",
        "mclick(['1'])",
        f"mclick({list(range(11))})",
        "mclick([1], [2])",
        "open_url()",
        "open_url(5)",
        '__import__("os").system("id")',
        'eval("1")',
        'Search("a")',
        "(" * 5000,
        "mclick([" + "[" * 5000,
        "x" * 10_001,
        'search("' + "\\" * 9_001 + '")',
        "\0",
        "搜索(“a”)",
    ],
)
def test_other_calls_are_refused(call: str) -> None:
    with pytest.raises(ToolError) as caught:
        parse_call(call)
    assert len(str(caught.value)) < 500


@given(query=TEXT, days=st.none() | st.integers(1, 10**9), space=SPACE)
def test_any_query_survives(query: str, days: int | None, space: str) -> None:
    written = json.dumps(query, ensure_ascii=False).replace("\\b", "\b").replace("\\f", "\f")
    rest = "" if days is None else f",{space}recency_days{space}={space}{days}"
    assert parse_call(f"search({space}{written}{rest}{space})") == Search(query.strip(), days)


@given(ids=IDS, space=SPACE)
def test_any_ids_survive(ids: list[int], space: str) -> None:
    assert parse_call(f"mclick([{(space + ',' + space).join(map(str, ids))}])") == Click(tuple(ids))


@given(text=st.text(max_size=60) | st.text(st.sampled_from("search(mclick[])\"'\\, =0123open_url"), max_size=60))
def test_any_text_is_an_action_or_refused(text: str) -> None:
    try:
        action = parse_call(text)
    except ToolError:
        return
    assert isinstance(action, Search | Click | Open)
    assert text.strip().startswith(("search", "mclick", "open_url"))


@pytest.mark.parametrize(
    ("arguments", "action"),
    [
        ({"query": "a"}, Search("a")),
        ({"query": " a ", "recency_days": 3}, Search("a", 3)),
        ({"query": "a", "ids": None, "url": None}, Search("a")),
        ({"ids": [1, 0]}, Click((1, 0))),
        ({"ids": 1}, Click((1,))),
        ({"url": "a.txt"}, Open("a.txt")),
    ],
)
def test_arguments_of_a_function(arguments: dict[str, object], action: Action) -> None:
    assert from_arguments(arguments) == action


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"query": ""},
        {"query": 5},
        {"query": "a", "ids": [1]},
        {"query": "a", "url": "b"},
        {"query": "a", "more": 1},
        {"query": "a", "recency_days": True},
        {"query": "a" * 10_001},
        {"recency_days": 3},
        {"ids": []},
        {"ids": [True]},
        {"ids": ["1"]},
        {"ids": [1.0]},
        {"ids": True},
        {"ids": {"0": 1}},
        {"ids": list(range(11))},
        {"url": " "},
        {"input": 5},
        {"input": 'search("a")', "query": "a"},
        {"code": "1"},
    ],
)
def test_other_arguments_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(ToolError) as caught:
        from_arguments(arguments)
    assert len(str(caught.value)) < 500
