"""One answer from rows of logits: drafts, every way to end, logarithms of probabilities, and what a setting may be."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Unpack

import numpy as np
import pytest

import edge
from edge.api import scripted_llm
from edge.runtime.chunk import StoppedBy
from edge.runtime.constraint import Constraint
from edge.runtime.constraint_masks import Constraints
from edge.runtime.engines.scripted import noise, tokenizer_json
from edge.runtime.errors import DeviceError, SettingsError
from edge.runtime.llm import LLM
from edge.runtime.prompt import Prompt
from edge.runtime.request import Request
from edge.runtime.settings import GenerationOptions, GenerationSettings, generation_settings
from edge.runtime.tokenizer import Tokenizer

STOP = 258


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_text(tokenizer_json())


@pytest.fixture
def llm() -> Iterator[LLM]:
    with scripted_llm(noise()) as found:
        yield found


def request(tokenizer: Tokenizer, **settings: Unpack[GenerationOptions]) -> Request:
    return Request(Prompt([1, 2, 3]), generation_settings(**settings), tokenizer, {STOP}, 100)


def rows(*ids: int) -> np.ndarray:
    """Logits whose best ids are these."""
    found = np.zeros((len(ids), 320), np.float32)
    found[np.arange(len(ids)), list(ids)] = 5.0
    return found


def test_drafts_are_taken_as_far_as_they_are_right(tokenizer: Tokenizer) -> None:
    answer = request(tokenizer)
    answer.accept(rows(10, 11, 12, 13), [10, 11, 99])
    assert answer.answer_ids == [10, 11, 12]
    answer.accept(rows(20, 21), [20])
    assert answer.answer_ids == [10, 11, 12, 20, 21]
    answer.accept(rows(30))
    assert [chunk.token_ids for chunk in answer.chunks] == [(10, 11, 12), (20, 21), (30,)]


def test_a_stop_id_inside_a_draft_ends_the_answer(tokenizer: Tokenizer) -> None:
    answer, (h, other) = request(tokenizer), tokenizer.encode("Hx")
    answer.accept(rows(h, STOP, other, other), [h, STOP, other])
    assert answer.answer_ids == [h, STOP]
    (chunk,) = answer.chunks
    assert (chunk.text, chunk.finish_reason, chunk.stopped_by) == ("H", "stop", StoppedBy(token_id=STOP))


def test_a_stop_string_inside_a_draft_ends_the_answer(tokenizer: Tokenizer) -> None:
    answer = request(tokenizer, stop=["ll"])
    ids = tokenizer.encode("Hello")
    assert len(ids) == 5
    answer.accept(rows(*ids), ids)
    assert answer.answer_ids == ids[:4]
    (chunk,) = answer.chunks
    assert (chunk.text, chunk.finish_reason, chunk.stopped_by) == ("He", "stop", StoppedBy(text="ll"))


def test_a_draft_never_exceeds_the_length(tokenizer: Tokenizer) -> None:
    answer = request(tokenizer, max_new_tokens=3)
    answer.accept(rows(10, 11, 12, 13), [10, 11, 12])
    assert answer.answer_ids == [10, 11, 12]
    assert answer.chunks[-1].finish_reason == "length"
    assert answer.chunks[-1].stopped_by is None
    assert answer.remaining == 0


def test_without_a_limit_the_context_is_the_limit(tokenizer: Tokenizer) -> None:
    answer = request(tokenizer)
    assert answer.remaining == 100 - 3
    for _ in range(97):
        assert not answer.finished
        answer.accept(rows(10))
    assert answer.chunks[-1].finish_reason == "length"


def test_a_step_is_a_chunk_whatever_its_text_is(tokenizer: Tokenizer) -> None:
    """Ids come when they are chosen; text when its character is whole and no stop string can begin with it."""
    answer, ids = request(tokenizer, stop=["€!"]), tokenizer.encode("€€?")
    assert len(ids) == 7
    for token_id in ids[:-1]:
        answer.accept(rows(token_id))
    answer.accept(rows(ids[-1], STOP), [ids[-1]])
    assert [chunk.token_ids for chunk in answer.chunks] == [*[(i,) for i in ids[:-1]], (ids[-1], STOP)]
    assert [chunk.text for chunk in answer.chunks] == ["", "", "", "", "", "€", "€?"]


def test_drafts_before_a_token_that_cannot_be_chosen_are_delivered(tokenizer: Tokenizer) -> None:
    answer = request(tokenizer, logprobs=1)
    found = rows(10, 11, 12, 13)
    found[2] = np.nan
    with pytest.raises(DeviceError, match="logits of nan"):
        answer.accept(found, [10, 11, 12])
    (chunk,) = answer.chunks
    assert chunk.token_ids == (10, 11)
    assert len(chunk.logprobs) == 2
    assert chunk.text == tokenizer.decode([10, 11])


def test_the_end_of_a_constraint_is_no_stop_id(tokenizer: Tokenizer) -> None:
    pytest.importorskip("llguidance", reason="constraints need llguidance")
    constraint = Constraint.regex("ab")
    state = Constraints(tokenizer, tokenizer.num_tokens, frozenset({STOP})).start(constraint)
    settings = generation_settings(constraint=constraint)
    answer = Request(Prompt([1, 2, 3]), settings, tokenizer, {STOP}, 100, state)
    while not answer.finished:
        answer.accept(rows(ord("x")))
    assert answer.answer_ids == list(b"ab")
    assert (answer.chunks[-1].finish_reason, answer.chunks[-1].stopped_by) == ("stop", StoppedBy())


def test_more_stop_ids(tokenizer: Tokenizer) -> None:
    answer = request(tokenizer, stop_token_ids=[10])
    answer.accept(rows(10))
    assert answer.chunks[-1].finish_reason == "stop"
    ignoring = request(tokenizer, stop_token_ids=[10], ignore_stop_ids=True)
    ignoring.accept(rows(10))
    assert not ignoring.finished


def test_fewest_tokens(tokenizer: Tokenizer) -> None:
    """A stop id is not chosen before; the second best is."""
    answer = request(tokenizer, min_new_tokens=2)
    logits = rows(STOP)
    logits[0, 40] = 4.0
    for _ in range(3):
        answer.accept(logits)
    assert answer.answer_ids == [40, 40, STOP]
    assert answer.chunks[-1].finish_reason == "stop"


def test_log_probabilities(tokenizer: Tokenizer) -> None:
    answer = request(tokenizer, logprobs=2, repetition_penalty=50.0)
    logits = rows(3)  # which the penalty forbids, but the model's own probabilities say it is best
    logits[0, 40] = 4.0
    answer.accept(logits)
    (entry,) = answer.chunks[0].logprobs
    total = math.log(math.exp(5) + math.exp(4) + tokenizer.num_tokens - 2)
    assert entry.token_id == 40
    assert entry.logprob == pytest.approx(4 - total)
    assert [token_id for token_id, _ in entry.top] == [3, 40]
    assert entry.top[0][1] == pytest.approx(5 - total)
    silent = request(tokenizer)
    silent.accept(logits)
    assert silent.chunks[0].logprobs == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_new_tokens": 600, "max_new_tokens": 512}, "min_new_tokens is 600, expected 0 to max_new_tokens, 512"),
        ({"logprobs": 21}, "logprobs is 21, expected a whole number from 0 to 20"),
        ({"logprobs": -1}, "logprobs is -1"),
        (
            {"stop_token_ids": [3, -1]},
            "stop_token_ids holds -1, expected a list of token ids, whole numbers, 0 or more",
        ),
        ({"frequency_penalty": 3.0}, r"frequency_penalty is 3\.0, expected a number from -2 to 2"),
        ({"typical_p": 0.0}, "typical_p is"),
        ({"logit_bias": {5: math.nan}}, "logit_bias"),
        ({"constraint": Constraint.json_object(), "ignore_stop_ids": True}, "give one of the two"),
    ],
)
def test_settings_out_of_range(settings: GenerationOptions, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        generation_settings(**settings)


def test_settings_are_frozen() -> None:
    assert hash(GenerationSettings()) == hash(generation_settings())


SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "people": {"type": "integer"}},
    "required": ["city", "people"],
    "additionalProperties": False,
}


SAMPLINGS: tuple[GenerationOptions, ...] = ({}, {"temperature": 1.5, "seed": 3})


def test_json_from_the_demo_model(demo_bundle: Path) -> None:
    """Whatever the model would say; what the grammar forces is drafted, and changes no id."""
    pytest.importorskip("llguidance", reason="constraints need llguidance")
    question = [{"role": "user", "content": "Tell me about Paris."}]
    found = []
    for speculate in (False, True):
        llm = edge.load(demo_bundle, engine="onnx", speculation=speculate, reproducible=True)
        for sampling in SAMPLINGS:
            settings: GenerationOptions = {
                "constraint": Constraint.json_schema(SCHEMA),
                "max_new_tokens": 60,
                **sampling,
            }
            answer = llm.chat(question, **settings).answer()
            assert answer.finish_reason == "stop"
            value = json.loads(answer.text)
            assert set(value) == {"city", "people"}
            assert isinstance(value["people"], int)
            assert answer.stats is not None
            assert bool(answer.stats.drafted_tokens) == speculate
            found.append(answer.token_ids)
    assert found[:2] == found[2:]


def test_a_schema_that_is_refused_loses_nothing(llm: LLM) -> None:
    pytest.importorskip("llguidance", reason="constraints need llguidance")
    running = llm.generate("Hello", max_new_tokens=6, ignore_stop_ids=True)
    next(running)
    with pytest.raises(SettingsError, match="the regex constraint is refused"):
        llm.generate("Hello", constraint=Constraint.regex("(unclosed"))
    assert len(running.answer().token_ids) == 5
    assert llm._scheduler.num_requests == 0


def test_samples_of_one_prompt_need_one_at_least(llm: LLM) -> None:
    with pytest.raises(SettingsError, match="n is 0, expected a whole number from 1 to 1024"):
        llm.sample("Hello", 0)
