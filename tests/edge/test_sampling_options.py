"""Who samples as the model's makers recommend and who is greedy, and how each says so."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge import api, cli
from edge.commands.sampling import sampling_fields, sampling_in_use
from edge.runtime.chat import ChatTemplate
from edge.runtime.engines.scripted import STOP_IDS, TEMPLATE, ScriptedEngine, noise
from edge.runtime.llm import LLM
from edge.runtime.settings import Sampling
from tests.edge.server.live import Live, served

GLM = Sampling(temperature=0.8, top_p=0.8)
BUNDLE = str(Path(__file__).parent)  # any folder: what is loaded is the model below
FEW = ("--max-new-tokens", "9")
HELLO = [{"role": "user", "content": "Hello"}]
Shown = pytest.CaptureFixture[str]


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> Iterator[LLM]:
    """The model that every command loads, with GLM-4-9B-chat's recommendation."""
    tokenizer = api.scripted_llm(noise()).tokenizer
    found = LLM.from_engine(
        ScriptedEngine(noise()),
        tokenizer,
        template=ChatTemplate(TEMPLATE, tokenizer.markup),
        stop_ids=STOP_IDS,
        recommended_sampling=GLM,
    )
    close = found.close
    monkeypatch.setattr(api, "load", lambda *_, **__: found)
    monkeypatch.setattr(found, "close", lambda: None)
    yield found
    close()


@pytest.mark.parametrize(
    ("recommended", "settings", "said"),
    [
        (GLM, {"sampling": "model"}, "temperature 0.8, top-p 0.8 (the model's)"),
        (GLM, {"sampling": "greedy"}, "greedy (the model recommends temperature 0.8, top-p 0.8; --sampling model)"),
        (GLM, {"sampling": "model", "temperature": 0.5}, "temperature 0.5, top-p 0.8 (partly the model's)"),
        (GLM, {"sampling": "model", "temperature": 0.5, "top_p": 0.9}, "temperature 0.5, top-p 0.9"),
        (GLM, {"sampling": "greedy", "temperature": 0.5, "seed": 3}, "temperature 0.5, seed 3"),
        (GLM, {"sampling": "model", "temperature": 0.0}, "greedy"),
        (GLM, {"sampling": "greedy", "repetition_penalty": 1.1}, "greedy, repetition-penalty 1.1"),
        (Sampling(), {"sampling": "model"}, "greedy"),
        (Sampling(), {"sampling": "greedy"}, "greedy"),
        (Sampling(), {}, "greedy"),
        (Sampling(repetition_penalty=1.1), {"sampling": "model"}, "greedy, repetition-penalty 1.1 (the model's)"),
    ],
)
def test_the_line(recommended: Sampling, settings: dict[str, Any], said: str, llm: LLM) -> None:
    llm.recommended_sampling = recommended
    assert sampling_in_use(llm, settings) == said


def test_run_is_greedy_and_says_it_in_json(llm: LLM, capsys: Shown) -> None:
    def answer(*options: str) -> dict[str, Any]:
        assert cli.main(["run", BUNDLE, "Hello", "--json", *FEW, *options]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    greedy = answer()
    assert greedy["token_ids"] == list(llm.chat(HELLO, max_new_tokens=9).answer().token_ids)
    assert greedy["sampling"] == sampling_fields(llm, {}) == {"from": "greedy", **_plain(Sampling())}
    warm = answer("--sampling", "model", "--seed", "1")
    assert warm["sampling"] == {"from": "model", **_plain(GLM), "seed": 1}
    told = answer("--temperature", "0.8", "--top-p", "0.8", "--seed", "1")
    assert warm["token_ids"] == told["token_ids"] != greedy["token_ids"]
    assert told["sampling"]["from"] == "greedy"
    assert capsys.readouterr().err == "", "no line where stderr is not a terminal"


def _plain(sampling: Sampling) -> dict[str, Any]:
    return {name: getattr(sampling, name) for name in Sampling.__slots__ if name != "logit_bias"}


def test_chat_does_as_the_model_says(llm: LLM, monkeypatch: pytest.MonkeyPatch, capsys: Shown) -> None:
    def answer(*options: str) -> str:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Hello\n")))
        assert cli.main(["chat", BUNDLE, "--seed", "1", *FEW, *options]) == 0
        return capsys.readouterr().out

    warm = llm.chat(HELLO, sampling="model", seed=1, max_new_tokens=9).text()
    greedy = llm.chat(HELLO, max_new_tokens=9).text()
    monkeypatch.setattr("edge.commands.chat._check_template", lambda _: None)
    assert answer() == f"{warm}\n" != f"{greedy}\n"
    assert answer("--sampling", "greedy") == f"{greedy}\n"


def test_a_batch_is_greedy(llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Shown) -> None:
    monkeypatch.setattr("edge.load", api.load)
    body = {"messages": HELLO, "max_tokens": 9, "seed": 1}
    (tmp_path / "in").write_text(json.dumps({"custom_id": "a", "url": "/v1/chat/completions", "body": body}))

    def answer(*options: str) -> tuple[str, dict[str, Any]]:
        words = ("batch", BUNDLE, str(tmp_path / "in"), str(tmp_path / "out"), "--force", "--json", *options)
        assert cli.main(list(words)) == 0
        (line,) = (tmp_path / "out").read_text().splitlines()
        return json.loads(line)["response"]["body"]["choices"][0]["message"]["content"], json.loads(
            capsys.readouterr().out
        )["sampling"]

    assert answer() == (llm.chat(HELLO, max_new_tokens=9).text(), sampling_fields(llm, {}))
    warm = llm.chat(HELLO, sampling="model", seed=1, max_new_tokens=9).text()
    assert answer("--sampling", "model") == (warm, sampling_fields(llm, {"sampling": "model"}))
    # What another sampling has answered is not taken for this one's.
    words = ["batch", BUNDLE, str(tmp_path / "in"), str(tmp_path / "out")]
    assert cli.main(words) == 1
    assert "its answers are those of other settings" in capsys.readouterr().err
    assert cli.main([*words, "--sampling", "model"]) == 0
    assert "there is nothing to do" in capsys.readouterr().out


def test_figures_after_an_answer(llm: LLM, monkeypatch: pytest.MonkeyPatch, capsys: Shown) -> None:
    assert cli.main(["run", BUNDLE, "Hello", *FEW, "--verbose"]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{llm.chat(HELLO, max_new_tokens=9).text().lstrip()}\n"
    assert " prompt tokens (" in shown.err
    assert " from the cache), 9 new, first after " in shown.err
    assert shown.err.rstrip().endswith(" s)")
    assert cli.main(["run", BUNDLE, "Hello", *FEW]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("edge.commands.chat._check_template", lambda _: None)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Hello\nAnd?\n")))
    assert cli.main(["chat", BUNDLE, "--verbose", *FEW]) == 0
    assert capsys.readouterr().err.count("in the conversation)") == 2


def test_a_server_does_as_the_model_says(llm: LLM) -> None:
    """Where a request says nothing; and tells which that is, for its page as well."""
    body = {"messages": HELLO, "max_tokens": 9, "seed": 1}
    warm = llm.chat(HELLO, sampling="model", seed=1, max_new_tokens=9).text()
    greedy = llm.chat(HELLO, max_new_tokens=9).text()
    assert warm != greedy
    for settings, answer, used in (({}, warm, GLM), ({"sampling": "greedy"}, greedy, Sampling())):
        with served(llm, **settings) as server:

            def ask(server: Live = server, **fields: object) -> str:
                choice = server.post("/v1/chat/completions", {**body, **fields}).json["choices"][0]
                return str(choice["message"]["content"])

            assert ask() == answer
            assert ask(temperature=0) == greedy
            assert ask(temperature=0.8, top_p=0.8) == warm
            (model,) = server.get("/v1/models").json["data"]
            assert model["meta"]["default_sampling"]["temperature"] == used.temperature
            assert server.get("/page/status.json").json["sampling"]["top_p"] == used.top_p
