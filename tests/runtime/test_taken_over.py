"""An answer that another run began goes on as if it had not been interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest

import edge
from edge.runtime.chunk import Chunk
from edge.runtime.prompt import Prompt

WORDS = [{"role": "user", "content": "Tell me of it"}]


def parts(chunks: list[Chunk]) -> tuple[str, list[int], object, object]:
    last = chunks[-1]
    ids = [token_id for chunk in chunks for token_id in chunk.token_ids]
    return "".join(chunk.text for chunk in chunks), ids, last.finish_reason, last.stopped_by


OPTIONS: list[edge.GenerationSettings | dict[str, object]] = [
    {"max_new_tokens": 24},
    {"max_new_tokens": 24, "temperature": 1.5, "seed": 7, "top_p": 0.9},
    {"max_new_tokens": 24, "temperature": 1.5, "seed": 7, "presence_penalty": 1.0, "repetition_penalty": 1.3},
    {"max_new_tokens": 24, "temperature": 1.5, "seed": 8, "min_new_tokens": 12, "stop": ["e", "é"]},
    {
        "max_new_tokens": 40,
        "temperature": 1.0,
        "seed": 9,
        "constraint": edge.Constraint("regex", "[a-z]{3}(é| [0-9]){4}"),
    },
]


@pytest.mark.parametrize("options", OPTIONS)
def test_an_answer_taken_over_after_any_token_is_the_undisturbed_one(options: dict[str, object]) -> None:
    with edge.scripted_llm(edge.noise(3)) as llm:
        ids = llm.encode_chat(WORDS)
        whole = list(llm.generate(ids, **options))  # type: ignore[arg-type]  # keywords of several types
        assert whole[-1].stats is not None
        for taken in range(1, len(whole)):
            told, rest = parts(whole[:taken]), whole[taken:]
            prompt = Prompt([*ids, *told[1]], num_answered=len(told[1]))
            found = list(llm.generate(prompt, **options))  # type: ignore[arg-type]
            assert parts(found) == parts(rest)
            stats = found[-1].stats
            assert stats is not None
            assert (stats.prompt_tokens, stats.new_tokens) == (len(ids), whole[-1].stats.new_tokens)
            assert all(chunk.prompt_read is None for chunk in found)


def test_bits_are_the_same_where_they_count(tiny_bundle: Path) -> None:
    with edge.load(tiny_bundle, engine="openvino", reproducible=True) as llm:
        ids = llm.tokenizer.encode("Once upon a time there was")
        whole = list(llm.generate(ids, max_new_tokens=12, temperature=1.0, seed=3, logprobs=2, ignore_stop_ids=True))
        likelihoods = [kept for chunk in whole for kept in chunk.logprobs]
        for taken in (1, 5, 11):
            told = parts(whole)[1][:taken]
            llm.clear_cache()
            found = list(
                llm.generate(
                    Prompt([*ids, *told], num_answered=taken),
                    max_new_tokens=12,
                    temperature=1.0,
                    seed=3,
                    logprobs=2,
                    ignore_stop_ids=True,
                )
            )
            assert parts(found)[1] == parts(whole)[1][taken:]
            assert [kept for chunk in found for kept in chunk.logprobs] == likelihoods[taken:]


@pytest.mark.parametrize("number", [-1, 3, 4])
def test_no_prompt_is_all_answer(number: int) -> None:
    with pytest.raises(edge.PromptError, match="num_answered"):
        Prompt([1, 2, 3], num_answered=number)
