"""Prompts that are more than text: keys for the cache, positions and embeddings for an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edge
from edge.api import scripted_llm
from edge.runtime.engines.engine import Embedding, Inputs
from edge.runtime.engines.scripted import noise
from edge.runtime.errors import PromptError
from edge.runtime.kv.pool import CacheSequence
from edge.runtime.llm import LLM
from edge.runtime.prompt import Prompt
from edge.runtime.request import Request
from edge.runtime.settings import EngineSettings, GenerationSettings

WIDTH = 4
PICTURE = 7  # the placeholder id of a picture's patches


def picture(value: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(6, WIDTH) the patches of a picture."""
    return np.full((6, WIDTH), value, np.float32)


def with_picture(value: float) -> Prompt:
    """Three tokens of text, six placeholders at one position, two tokens of text."""
    ids = [1, 2, 3, *[PICTURE] * 6, 4, 5]
    keys = [1, 2, 3, *[(1 << 32) + int(value * 1000)] * 6, 4, 5]
    positions = np.array([0, 1, 2, *[3] * 6, 4, 5])
    return Prompt(ids, keys, positions, (Embedding(3, picture(value)),))


@pytest.fixture
def llm() -> LLM:
    return scripted_llm(noise(), max_context=128, block_size=4, embedding_size=WIDTH)


def test_keys_of_text_are_its_ids() -> None:
    prompt = Prompt([1, 2, np.int64(3)])  # type: ignore[list-item]  # as an array gives them
    assert (prompt.ids, prompt.cache_keys, prompt.is_text, prompt.next_position) == ([1, 2, 3], [1, 2, 3], True, 3)


def test_pictures_with_equal_placeholders_share_nothing(llm: LLM) -> None:
    """Ids alone would find the first picture's keys and values for the second, and answer about the wrong one."""
    first, second = with_picture(0.5), with_picture(0.25)
    assert first.ids == second.ids
    alone = [
        scripted_llm(noise(), max_context=128, embedding_size=WIDTH).generate(prompt, max_new_tokens=6).answer()
        for prompt in (first, second)
    ]
    answers = [llm.generate(prompt, max_new_tokens=6).answer() for prompt in (first, second, first)]
    assert [answer.token_ids for answer in answers] == [alone[i].token_ids for i in (0, 1, 0)]
    cached = [answer.stats.cached_tokens for answer in answers if answer.stats is not None]
    assert cached == [0, 3, 10]  # the text before the picture; then all but the last token


def test_parts_of_a_prompt_get_their_own_inputs() -> None:
    prompt = with_picture(0.5)
    inside = prompt.inputs(2, 6)
    assert inside.positions is not None
    assert inside.positions.tolist() == [2, 3, 3, 3]
    [(start, rows)] = inside.embeddings
    assert (start, rows.shape) == (1, (3, WIDTH))
    assert prompt.inputs(0, 3).embeddings == ()
    assert prompt.next_position == 6


def with_grid() -> Prompt:
    """A picture of two rows and three columns, whose patches have three positions each; text goes on after both."""
    ids = [1, 2, 3, *[PICTURE] * 6, 4, 5]
    rows, columns = np.divmod(np.arange(6), 3)
    inside = 3 + np.stack([np.zeros(6, np.int64), rows, columns])
    around = [np.broadcast_to(np.array(part), (3, len(part))) for part in ([0, 1, 2], [6, 7])]
    positions = np.concatenate([around[0], inside, around[1]], axis=1)
    return Prompt(ids, positions=positions, embeddings=(Embedding(3, picture(0.5)),))


def test_tokens_after_a_grid_have_equal_positions_in_all_rows() -> None:
    prompt = with_grid()
    assert prompt.next_position == 8
    inside = prompt.inputs(4, 10)
    assert inside.positions is not None
    assert inside.positions.tolist() == [[3, 3, 3, 3, 3, 6], [3, 3, 4, 4, 4, 6], [4, 5, 3, 4, 5, 6]]
    tokenizer = scripted_llm(noise()).tokenizer
    request = Request(prompt, GenerationSettings(), tokenizer, (), 64)
    request.ids += [8, 9, 10]
    across = request.inputs(10, 13).positions
    assert across is not None
    assert across.tolist() == [[7, 8, 9]] * 3
    later = request.positions(12, 2)
    assert later is not None
    assert later.tolist() == [[9, 10]] * 3


def test_models_of_one_position_take_no_grid() -> None:
    one = scripted_llm(noise(), embedding_size=WIDTH)
    with pytest.raises(PromptError, match="positions have 3 rows, and this model turns all of a token by one position"):
        one.generate(with_grid())
    three = scripted_llm(noise(), embedding_size=WIDTH, position_rows=3)
    whole = three.generate(with_grid(), max_new_tokens=8).answer().token_ids
    cut = scripted_llm(noise(), embedding_size=WIDTH, position_rows=3, prefill_chunk=2)
    assert cut.generate(with_grid(), max_new_tokens=8).answer().token_ids == whole
    assert three.generate(with_picture(0.5), max_new_tokens=8).answer().token_ids != whole


def test_an_engine_without_pictures_names_the_place_for_them() -> None:
    """Embeddings are told before positions, which pictures have as well."""
    npu = scripted_llm(noise(), name="openvino_npu", takes_positions=False)
    with pytest.raises(PromptError) as raised:
        npu.generate(with_picture(0.5))
    assert str(raised.value) == (
        "the prompt has embeddings, as pictures do, and this model on the openvino_npu engine takes only token ids; "
        "use a model for pictures, on the CPU with the openvino or onnx engine"
    )


@pytest.mark.parametrize("chunk", [1, 2, 5, 128])
def test_chunks_of_any_size_are_one_prompt(chunk: int) -> None:
    whole = scripted_llm(noise(), embedding_size=WIDTH).generate(with_picture(0.5), max_new_tokens=8).answer()
    cut = scripted_llm(noise(), embedding_size=WIDTH, prefill_chunk=chunk)
    assert cut.generate(with_picture(0.5), max_new_tokens=8).answer().token_ids == whole.token_ids


def test_preempted_pictures_answer_as_alone() -> None:
    prompts = [with_picture(i / 16) for i in range(8)]
    tight = scripted_llm(noise(), max_context=48, block_size=4, num_blocks=24, embedding_size=WIDTH)
    alone = scripted_llm(noise(), max_context=48, embedding_size=WIDTH)
    answers = tight.generate_batch(prompts, ignore_stop_ids=True)
    assert tight.stats.preemptions > 0
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.token_ids == alone.generate(prompt, ignore_stop_ids=True).answer().token_ids


def test_a_saved_picture_is_found_by_its_keys(tmp_path: Path) -> None:
    """Another picture with the same ids is not in the file."""
    makes: dict[str, Any] = {"max_context": 128, "block_size": 4, "embedding_size": WIDTH}
    assert scripted_llm(noise(), **makes).prefixes.save(with_picture(0.5), tmp_path / "picture.prefix").num_tokens == 11
    later, alone = scripted_llm(noise(), **makes), scripted_llm(noise(), **makes)
    later.prefixes.load(tmp_path / "picture.prefix")
    for value, cached in ((0.25, 3), (0.5, 10)):
        answer = later.generate(with_picture(value), max_new_tokens=6).answer()
        assert answer.token_ids == alone.generate(with_picture(value), max_new_tokens=6).answer().token_ids
        assert answer.stats is not None
        assert answer.stats.cached_tokens == cached


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ids": [1, {"role": "user"}]}, "ids[1] is {'role': 'user'}, expected a whole number, 0 or more"),
        ({"ids": ["a"]}, "ids[0] is 'a', expected"),
        ({"ids": [5.0]}, "ids[0] is 5.0, expected"),
        ({"ids": [True]}, "ids[0] is True, expected"),
        ({"ids": [-1]}, "ids[0] is -1, expected"),
        ({"ids": "text"}, "ids are 'text', expected a list of whole numbers"),
        ({"ids": [1, 2], "keys": [1]}, "the prompt has 2 ids and 1 keys"),
        ({"ids": [1], "keys": ["k"]}, "keys[0] is 'k', expected"),
        ({"ids": [1, 2], "positions": np.zeros(3, np.int64)}, "positions are int64 of shape (3,), expected"),
        (
            {"ids": [1, 2], "positions": np.zeros((2, 2), np.int64)},
            "positions are int64 of shape (2, 2), expected whole numbers of shape (2,), one per token, or (3, 2) for a "
            "model that has so many per token",
        ),
        ({"ids": [1, 2], "positions": np.zeros(2)}, "positions are float64 of shape (2,), expected"),
        ({"ids": [1, 2], "positions": [0, 1]}, "positions are [0, 1], expected"),
        ({"ids": [1], "positions": np.array([-1])}, "positions hold -1, expected 0 or more"),
        ({"ids": [1], "embeddings": (picture(0),)}, "embeddings hold"),
        ({"ids": [1], "embeddings": (Embedding(0, picture(0)[0]),)}, "rows of an embedding are float32 of shape (4,)"),
        ({"ids": [1] * 6, "embeddings": (Embedding(1, picture(0)),)}, "an embedding of 6 tokens starts at 1, expected"),
        ({"ids": [1] * 9, "embeddings": (Embedding(0, picture(0)), Embedding(3, picture(0)))}, "an embedding of 6"),
    ],
)
def test_what_is_no_prompt(given: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError) as raised:
        Prompt(**given)
    assert str(raised.value).startswith(message)


def test_engines_say_what_they_cannot_take(tiny_bundle: Path, llm: LLM) -> None:
    with pytest.raises(PromptError, match="embeddings are 3 wide, expected 4"):
        llm.generate(Prompt([1, 2], embeddings=(Embedding(0, np.zeros((2, 3), np.float32)),)))
    for engine in ("openvino", "onnx"):
        real = LLM(tiny_bundle, EngineSettings(engine))
        with pytest.raises(PromptError, match=f"the {engine} engine takes only token ids"):
            real.generate(Prompt([1, 2], embeddings=(Embedding(0, picture(0)[:2]),)))
    with pytest.raises(PromptError, match="this model on the onnx engine counts tokens itself; leave positions out"):
        LLM(tiny_bundle, EngineSettings("onnx")).generate(Prompt([1, 2], positions=np.array([0, 0])))


def test_positions_on_openvino(tiny_bundle: Path) -> None:
    """Those that tokens have anyway change no bit; others change the logits, and go on after the prompt's last."""
    llm = LLM(tiny_bundle, EngineSettings("openvino", inference_precision="f32", kv_precision="f32"))
    ids = np.array([5, 9, 13, 2, 7])
    row = np.array([4])

    def logits(positions: np.ndarray[Any, np.dtype[np.int64]] | None) -> np.ndarray[Any, np.dtype[np.float32]]:
        sequence = CacheSequence(llm.engine.pool)
        found = llm.engine.forward(ids, sequence, row, Inputs(positions)).copy()
        sequence.free()
        return found

    assert np.array_equal(logits(None), logits(np.arange(5)))
    assert not np.allclose(logits(None), logits(np.array([0, 1, 1, 1, 2])), rtol=1e-3)
    prompt = edge.Prompt(ids.tolist(), positions=np.array([0, 1, 1, 1, 2]))
    answer = llm.generate(prompt, max_new_tokens=3, ignore_stop_ids=True).answer()
    sequence, expected = CacheSequence(llm.engine.pool), []
    rows = llm.engine.forward(ids, sequence, row, Inputs(np.array([0, 1, 1, 1, 2])))
    for position in (3, 4, 5):
        expected.append(int(rows[0, : llm.tokenizer.num_tokens].argmax()))
        rows = llm.engine.forward(np.array(expected[-1:]), sequence, np.array([0]), Inputs(np.array([position])))
    assert list(answer.token_ids) == expected
