"""Needle in a haystack: what is asked, and that shared prompts score as fresh ones do."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from edge.commands import needle as command
from edge.profiles import needle, needle_report
from edge.profiles.likelihood import Query, Trunk, score
from edge.profiles.needle import ANSWER_TOKENS, NeedleResult
from edge.profiles.plot import png_bytes, svg_bytes
from edge.runtime.errors import ContextLengthError, OutputError, SettingsError
from edge.runtime.llm import LLM
from tests.conftest import EXACT

LENGTHS, DEPTHS = (256, 220), (100, 0, 40)


@pytest.fixture(scope="module")
def llm(tiny_bundle: Path, engine: str) -> LLM:
    return LLM(tiny_bundle, replace(EXACT[engine], reproducible=engine == "onnx"))


@pytest.fixture(scope="module")
def result(llm: LLM) -> NeedleResult:
    return needle.run(llm, LENGTHS, DEPTHS, seed=1)


def plans(llm: LLM, seed: int = 1) -> dict[tuple[int, float], needle._Prompt]:
    found, _ = needle._prompts(llm, needle.make_needle(llm.tokenizer, seed), sorted(LENGTHS), sorted(DEPTHS))
    return {(plan.context, plan.depth): plan for plan in found}


def test_prompts(llm: LLM) -> None:
    """The beginning of the documentation, cut to the length that remains, with the needle between two of its lines."""
    hidden = needle.make_needle(llm.tokenizer, 1)
    before, after = llm.render([{"role": "user", "content": f"HAY\n\n{hidden.question}"}]).split("HAY")
    text = "".join(needle._text())
    sentence = f"\n{hidden.sentence}\n"
    room = {}
    for (length, depth), plan in plans(llm).items():
        answer = max(ANSWER_TOKENS, len(f"{hidden.lead} {hidden.secret}"))
        assert len(plan.ids) == length - answer
        prompt = "".join(map(llm.tokenizer.token_text, plan.ids)).replace("Ġ", " ").replace("Ċ", "\n")
        assert prompt.startswith(before)
        assert prompt.endswith(after)
        inside = prompt[len(before) : len(prompt) - len(after)]
        assert inside.count(sentence) == 1
        at = inside.index(sentence)
        assert plan.position == len(llm.tokenizer.encode(before)) + at, "the tiny tokenizer has a token for each byte"
        assert text.startswith(inside.replace(sentence, ""))
        room[length] = plan.haystack_tokens
        assert len(inside) == room[length] + len(sentence)
        assert at == {0.0: 0, 100.0: room[length]}.get(depth, at)
        assert at in (0, room[length]) or text[at - 1] == "\n"
        assert at <= room[length] * depth / 100
    assert room[256] == room[220] + 36


def test_cells_are_what_fresh_runs_give(llm: LLM, result: NeedleResult) -> None:
    """Bit by bit: what was shared with other cells changes nothing."""
    assert [(cell.context, cell.depth) for cell in result.cells] == [(n, d) for n in (220, 256) for d in (0, 40, 100)]
    prompts = plans(llm)
    lead = llm.tokenizer.encode(result.needle.lead)
    numbers = [llm.tokenizer.encode(f" {number}") for number in (result.needle.secret, *result.needle.wrong)]
    for cell in result.cells:
        prompt = prompts[cell.context, cell.depth].ids
        queries = [Query((*prompt, *lead), tuple(number)) for number in numbers]
        fresh = [score(llm.engine, llm.tokenizer.num_tokens, [query])[0].logprob for query in queries]
        assert [cell.logprob, *cell.wrong_logprobs] == fresh
        assert cell.margin == pytest.approx(fresh[0] - np.mean(fresh[1:]), rel=1e-12)
        llm.clear_cache()
        assert cell.answer == llm.generate(prompt, max_new_tokens=ANSWER_TOKENS).text()
        assert cell.retrieved == (result.needle.secret in cell.answer)
        assert (cell.position, cell.prompt_tokens) == (prompts[cell.context, cell.depth].position, len(prompt))


def test_what_prompts_share_is_computed_once(llm: LLM, result: NeedleResult) -> None:
    alone = sum(needle.run(llm, [cell.context], [cell.depth], seed=1).computed_tokens for cell in result.cells)
    assert result.computed_tokens < alone
    before = llm.engine.pool.num_free
    with pytest.raises(KeyboardInterrupt):
        needle.run(llm, LENGTHS, DEPTHS, progress=_interrupt)
    assert llm.engine.pool.num_free == before


def _interrupt(_done: int, _total: int) -> None:
    raise KeyboardInterrupt


def test_an_answer_with_the_secret_is_retrieved(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = needle.make_needle(llm.tokenizer, 1).secret
    monkeypatch.setattr(needle, "_greedy", lambda *_: f"It is {secret}, I think.")
    assert all(cell.retrieved for cell in needle.run(llm, [220], [0, 50], seed=1).cells)
    monkeypatch.setattr(needle, "_greedy", lambda *_: f"It is {secret[:-1]}.")
    assert not any(cell.retrieved for cell in needle.run(llm, [220], [0, 50], seed=1).cells)


def test_needles_are_seeded(llm: LLM) -> None:
    made = [needle.make_needle(llm.tokenizer, seed) for seed in range(20)]
    assert made == [needle.make_needle(llm.tokenizer, seed) for seed in range(20)]
    assert len({one.secret for one in made}) > 15
    for one in made:
        assert len({one.secret, *one.wrong}) == 1 + needle.WRONG
        assert one.secret in one.sentence
        assert one.secret not in one.question


def test_same_seed_same_result(llm: LLM, result: NeedleResult) -> None:
    again = needle.run(llm, LENGTHS[::-1], DEPTHS[::-1], seed=1)
    assert again == result
    shown = json.loads(again.to_json())
    assert shown["cells"][0]["margin"] == result.cells[0].margin
    assert shown["needle"]["secret"] == result.needle.secret
    assert shown["engine"] == llm.engine.info.name


@pytest.mark.parametrize(
    ("lengths", "depths", "error", "message"),
    [
        ([257], [0], ContextLengthError, "a length is 257 tokens and the context holds 256"),
        ([30], [0], SettingsError, r"a length is 30 tokens, expected 1\d\d or more"),
        ([256], [101], SettingsError, "a depth is 101, expected 0 to 100"),
        ([], [0], SettingsError, "no lengths"),
    ],
)
def test_refused_before_anything_is_computed(
    llm: LLM,
    lengths: list[int],
    depths: list[float],
    error: type[Exception],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Trunk, "seek", lambda *_: pytest.fail("something was computed"))
    with pytest.raises(error, match=message):
        needle.run(llm, lengths, depths)


def test_a_text_that_starts_again_says_so(llm: LLM, result: NeedleResult, monkeypatch: pytest.MonkeyPatch) -> None:
    assert result.repeats == 1
    assert "No part of the haystack is in a prompt twice." in needle_report.to_markdown(result)
    monkeypatch.setattr(needle, "_text", lambda: ["one\n", "two\n"])
    again = needle.run(llm, [220], [50], seed=1)
    room = plans(llm)[220, 0].haystack_tokens
    assert again.repeats == -(-room // 8)
    assert f"starts again {again.repeats - 1} times in the longest." in needle_report.to_markdown(again)


def test_markdown_and_heat_map(result: NeedleResult) -> None:
    table = [line for line in needle_report.to_markdown(result).splitlines() if line.startswith("|")]
    assert table[0] == "| depth | 220 tokens | 256 tokens |"
    labels = [f"○ {cell.margin:+.1f}" for cell in result.cells]
    assert table[2:] == [f"| {depth} % | {labels[i]} | {labels[i + 3]} |" for i, depth in enumerate((0, 40, 100))]
    svg = svg_bytes(needle_report.heat_map(result))
    shown = "".join(ElementTree.fromstring(svg).itertext())
    assert all(label in shown for label in (*labels, "220", "256", "40 %", "margin, nats"))
    assert svg == svg_bytes(needle_report.heat_map(result)), "same cells, same bytes"
    assert png_bytes(needle_report.heat_map(result)).startswith(b"\x89PNG")
    assert "matplotlib.pyplot" not in sys.modules


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(arguments)


def test_command(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "needle"
    args = parse(str(tiny_bundle), str(out), "--contexts", "220", "--depths", "0,50", "--engine", "onnx", "--json")
    assert command.run(args) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == json.loads((out / "needle.json").read_text())
    assert [cell["depth"] for cell in shown["cells"]] == [0, 50]
    assert sorted(path.name for path in out.iterdir()) == ["needle.json", "needle.md", "needle.png", "needle.svg"]
    assert "(needle.png)" in (out / "needle.md").read_text()
    (out / "needle.md").write_text("of the run before")
    assert command.run(args) == 0
    assert "(needle.png)" in (out / "needle.md").read_text()
    with pytest.raises(OutputError, match="is not a folder"):
        command.run(parse(str(tiny_bundle), str(out / "needle.md")))
    with pytest.raises(ContextLengthError):
        command.run(parse(str(tiny_bundle), str(tmp_path / "other"), "--contexts", "300", "--engine", "onnx"))
    assert not (tmp_path / "other").exists()
    with pytest.raises(SystemExit):
        parse(str(tiny_bundle), "out", "--contexts", "many")


@pytest.mark.parametrize("name", ["needle.json", "needle.md", "needle.png", "needle.svg"])
def test_files_of_others_stay(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are noticed before a model is loaded; results of this command are replaced."""
    monkeypatch.setattr("edge.api.load", lambda *_args, **_options: pytest.fail("a model was loaded"))
    (tmp_path / name).write_text('{"needle": "of a haystack"}')
    with pytest.raises(OutputError, match=f"holds {name} and no needle.json of an earlier run"):
        command.run(parse("bundle", str(tmp_path)))
    assert (tmp_path / name).read_text() == '{"needle": "of a haystack"}'


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line says so in one line, before a model is loaded."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError) as raised:
        command.run(parse(str(tmp_path / "no-bundle"), "out"))
    assert raised.value.name == "matplotlib"


def test_demo_model_sees_the_needle(demo_llm: LLM) -> None:
    """A model that does not see the number is about as likely to give another one."""
    found = needle.run(demo_llm, [200], [50])
    assert found.cells[0].margin > 5  # 13 to 15 were seen
    lead = tuple(demo_llm.tokenizer.encode(found.needle.lead))
    numbers = [tuple(demo_llm.tokenizer.encode(f" {number}")) for number in (found.needle.secret, *found.needle.wrong)]
    blind = [Query(lead, number) for number in numbers]
    secret, *wrong = (one.logprob for one in score(demo_llm.engine, demo_llm.tokenizer.num_tokens, blind))
    assert abs(secret - np.mean(wrong)) < 5
