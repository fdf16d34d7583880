"""The generator: equalities of text, ids and cache, and every way an answer can end."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from edge.runtime.bundle import open_bundle
from edge.runtime.chunk import Chunk
from edge.runtime.errors import ContextLengthError, DeviceError, PromptError, SettingsError
from edge.runtime.kv.pool import CacheSequence
from edge.runtime.llm import LLM
from edge.runtime.settings import EngineSettings, generation_settings
from tests.conftest import EXACT
from tests.tiny import STOP_IDS

PROMPT = list(b"Once upon a time")


def ids_of(chunks: list[Chunk]) -> list[int]:
    return [i for chunk in chunks for i in chunk.token_ids]


def fresh(llm: LLM, prompt: list[int], **settings: object) -> list[Chunk]:
    llm.clear_cache()
    return list(llm.generate(prompt, **settings))


def test_greedy_equals_a_plain_argmax_loop(tiny_llm: LLM) -> None:
    """Against the engine itself, one whole prompt at a time and nothing cached."""
    ids = list(PROMPT)
    for _ in range(20):
        sequence = CacheSequence(tiny_llm.engine.pool)
        logits = tiny_llm.engine.forward(np.array(ids), sequence, np.array([len(ids) - 1]))[0]
        ids.append(int(logits[: tiny_llm.tokenizer.num_tokens].argmax()))
        sequence.trim(0)
    chunks = fresh(tiny_llm, PROMPT, max_new_tokens=20, ignore_stop_ids=True)
    assert ids_of(chunks) == ids[len(PROMPT) :]


def test_streamed_text_equals_decoded_ids(demo_llm: LLM) -> None:
    chunks = fresh(demo_llm, demo_llm.tokenizer.encode("Write a haiku with emoji:"), max_new_tokens=60)
    assert "".join(chunk.text for chunk in chunks) == demo_llm.tokenizer.decode(ids_of(chunks))


def test_demo_answers_paris(demo_llm: LLM) -> None:
    assert "Paris" in demo_llm.chat([{"role": "user", "content": "What is the capital of France?"}]).text()


def test_resumed_equals_fresh(demo_llm: LLM, engine: str) -> None:
    """A prompt whose beginning is cached, longer, shorter and diverging, gives what it gives alone."""
    encode = demo_llm.tokenizer.encode
    base = encode("The quick brown fox jumps over the lazy dog. " * 6)
    prompts = [base, base + encode("And then"), base[:40], base[:40] + encode("A cat sat"), base]
    exact, other = (LLM(demo_llm.bundle.path, EXACT[engine]) for _ in range(2))
    for prompt in prompts:
        warm = list(exact.generate(prompt, max_new_tokens=4, ignore_stop_ids=True))
        stats = warm[-1].stats
        assert stats is not None
        cached_tokens = stats.cached_tokens
        alone = fresh(other, prompt, max_new_tokens=4, ignore_stop_ids=True)
        assert ids_of(warm) == ids_of(alone)
    assert cached_tokens >= 40


def test_long_prompts_run_in_chunks(demo_llm: LLM, engine: str) -> None:
    ids = demo_llm.tokenizer.encode("one two three four five six seven eight nine ten " * 120)
    exact = LLM(demo_llm.bundle.path, EXACT[engine])
    assert len(ids) > 2 * exact.engine.info.prefill_chunk
    sequence = CacheSequence(exact.engine.pool)
    one_shot = exact.engine.forward(np.array(ids), sequence, np.array([len(ids) - 1]))[0].copy()
    sequence.trim(0)
    stream = exact.generate(ids)
    progress = [next(stream) for _ in range(-(-len(ids) // exact.engine.info.prefill_chunk) - 1)]
    assert [chunk.prefill for chunk in progress] == [
        ((i + 1) * exact.engine.info.prefill_chunk, len(ids)) for i in range(len(progress))
    ]
    assert all((chunk.text, chunk.token_ids) == ("", ()) for chunk in progress)
    assert next(stream).token_ids == (int(one_shot.argmax()),)


def test_every_stop_id_ends_the_answer(tiny_llm: LLM) -> None:
    """Whichever of the three comes first."""
    free = ids_of(fresh(tiny_llm, PROMPT, max_new_tokens=40, ignore_stop_ids=True))
    chosen = tiny_llm.stop_ids
    try:
        for position in (0, 7, 20):
            tiny_llm.stop_ids = frozenset({free[position]})
            end = free.index(free[position])
            chunks = fresh(tiny_llm, PROMPT, max_new_tokens=40)
            assert ids_of(chunks) == free[: end + 1]
            assert chunks[-1].finish_reason == "stop"
            assert tiny_llm.tokenizer.decode(free[:end]) == "".join(chunk.text for chunk in chunks)
    finally:
        tiny_llm.stop_ids = chosen
    assert chosen == set(STOP_IDS)


def test_padding_rows_are_never_chosen(tiny_llm: LLM) -> None:
    """The embedding has 320 rows and the tokenizer 261 tokens; hot sampling would find the others."""
    ids = ids_of(fresh(tiny_llm, PROMPT, max_new_tokens=150, temperature=50.0, seed=1, ignore_stop_ids=True))
    assert max(ids) < tiny_llm.tokenizer.num_tokens == 261


def test_stop_string_spanning_tokens(demo_llm: LLM) -> None:
    prompt = [{"role": "user", "content": "What is the capital of France?"}]
    whole = demo_llm.chat(prompt, max_new_tokens=30).text()
    chunks = list(demo_llm.chat(prompt, max_new_tokens=30, stop=["of Fra", "never said"]))
    assert "".join(chunk.text for chunk in chunks) == whole[: whole.index("of Fra")]
    assert chunks[-1].finish_reason == "stop"


def test_length_and_figures(tiny_llm: LLM) -> None:
    chunks = fresh(tiny_llm, PROMPT, max_new_tokens=5, ignore_stop_ids=True)
    last = chunks[-1]
    assert len(chunks) == 5
    assert last.finish_reason == "length"
    assert last.stats is not None
    assert (last.stats.prompt_tokens, last.stats.new_tokens) == (len(PROMPT), 5)
    assert last.stats.ttft_ms > 0
    assert last.stats.tokens_per_second > 0
    assert all(chunk.finish_reason is None and chunk.stats is None for chunk in chunks[:-1])


def test_answer_ends_with_the_context(tiny_bundle: Path, engine: str) -> None:
    llm = LLM(tiny_bundle, EngineSettings(engine, max_context=40))
    chunks = fresh(llm, PROMPT, max_new_tokens=500, ignore_stop_ids=True)
    assert len(ids_of(chunks)) == 40 - len(PROMPT)
    assert chunks[-1].finish_reason == "length"
    with pytest.raises(ContextLengthError, match="has 40 tokens and the context holds 40"):
        llm.generate([5] * 40)
    assert ids_of(fresh(llm, [5] * 39, ignore_stop_ids=True)), "one token of room is enough for one token"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0, expected 1 or more"),
        ({"temperature": -1.0}, r"temperature is -1\.0, expected a number from 0 up"),
        ({"deadline_s": 0.0}, "deadline_s is"),
        ({"stop": [""]}, "stop strings hold an empty one"),
        ({"temprature": 1.0}, "unknown setting 'temprature', known are"),
    ],
)
def test_bad_settings(tiny_llm: LLM, settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        tiny_llm.generate(PROMPT, **settings)


def test_bad_prompts(tiny_llm: LLM) -> None:
    with pytest.raises(PromptError, match="empty"):
        tiny_llm.generate("")
    with pytest.raises(PromptError, match="token id 300 is not in the vocabulary"):
        tiny_llm.generate([1, 300])


def test_deadline(demo_llm: LLM) -> None:
    started = time.monotonic()
    *_, last = demo_llm.generate("Once", max_new_tokens=5000, deadline_s=0.4, ignore_stop_ids=True)
    assert last.finish_reason == "deadline"
    assert last.stats is not None
    assert 0 < last.stats.new_tokens < 5000
    assert time.monotonic() - started < 3


def test_deadline_inside_a_long_prefill(demo_llm: LLM) -> None:
    demo_llm.clear_cache()
    chunks = list(demo_llm.generate([7, 9] * 1500, deadline_s=1e-3))
    assert ids_of(chunks) == []
    assert chunks[-1].finish_reason == "deadline"
    assert demo_llm.num_cached_tokens == demo_llm.engine.info.prefill_chunk


def test_closing_keeps_the_cache_consistent(tiny_llm: LLM) -> None:
    expected = ids_of(fresh(tiny_llm, PROMPT, max_new_tokens=30, ignore_stop_ids=True))
    for taken in (1, 2, 9):
        tiny_llm.clear_cache()
        with tiny_llm.generate(PROMPT, max_new_tokens=30, ignore_stop_ids=True) as stream:
            begun = [next(stream) for _ in range(taken)]
        assert ids_of(begun) == expected[:taken]
        assert tiny_llm.num_cached_tokens == len(PROMPT) + taken - 1
        # Going on from there, on what is cached, gives the same answer.
        rest = list(tiny_llm.generate(PROMPT + expected[:taken], max_new_tokens=30 - taken, ignore_stop_ids=True))
        assert ids_of(rest) == expected[taken:]
        assert rest[-1].stats is not None
        assert rest[-1].stats.cached_tokens == len(PROMPT) + taken - 1


def test_an_error_between_reserve_and_commit_keeps_the_cache_consistent(
    tiny_llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ids_of(fresh(tiny_llm, PROMPT, max_new_tokens=10, ignore_stop_ids=True))
    tiny_llm.clear_cache()
    stream = tiny_llm.generate(PROMPT, max_new_tokens=10, ignore_stop_ids=True)
    begun = ids_of([next(stream) for _ in range(4)])

    def interrupt() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tiny_llm.engine, "_run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            next(stream)
    again = list(tiny_llm.generate(PROMPT, max_new_tokens=10, ignore_stop_ids=True))
    assert begun == expected[:4]
    assert ids_of(again) == expected


def test_ctrl_c_ends_a_long_prefill_at_once(demo_llm: LLM, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal arrives while the engine computes 6,000 tokens in one call, which takes seconds."""
    llm = LLM(demo_llm.bundle.path, EXACT[engine])
    prompt, other = [7, 9, 11] * 2000, [5, 6, 7, 8] * 10
    expected = ids_of(fresh(llm, other, max_new_tokens=8, ignore_stop_ids=True))
    llm.clear_cache()
    monkeypatch.setattr(type(llm.engine), "prefill_chunk", 6000)
    signalled: list[float] = []

    def press() -> None:
        signalled.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(0.5, press)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        list(llm.generate(prompt, max_new_tokens=1))
    assert time.monotonic() - signalled[0] < 1.5
    assert llm.num_cached_tokens == 0
    assert ids_of(list(llm.generate(other, max_new_tokens=8, ignore_stop_ids=True))) == expected


def test_several_answers_at_once(tiny_llm: LLM) -> None:
    """Whoever reads one stream drives the others too; closing one leaves the others alone."""
    prompts = [PROMPT, list(b"Another"), list(b"And a third one")]
    expected = [ids_of(fresh(tiny_llm, prompt, max_new_tokens=10, ignore_stop_ids=True)) for prompt in prompts]
    tiny_llm.clear_cache()
    streams = [tiny_llm.generate(prompt, max_new_tokens=10, ignore_stop_ids=True) for prompt in prompts]
    begun = ids_of([next(streams[0]), next(streams[0])])
    streams[1].close()
    assert list(streams[1]) == []
    assert begun + ids_of(list(streams[0])) == expected[0]
    assert ids_of(list(streams[2])) == expected[2]
    assert ids_of(list(tiny_llm.generate(prompts[1], max_new_tokens=10, ignore_stop_ids=True))) == expected[1]


def test_a_stream_may_be_read_by_another_thread(tiny_llm: LLM) -> None:
    expected = ids_of(fresh(tiny_llm, PROMPT, max_new_tokens=10, ignore_stop_ids=True))
    found: list[Chunk] = []
    stream = tiny_llm.generate(PROMPT, max_new_tokens=10, ignore_stop_ids=True)
    thread = threading.Thread(target=lambda: found.extend(stream))
    thread.start()
    thread.join()
    assert ids_of(found) == expected


def test_same_seed_same_text(tiny_llm: LLM) -> None:
    def draw(seed: int) -> list[int]:
        return ids_of(fresh(tiny_llm, PROMPT, max_new_tokens=20, temperature=1.0, seed=seed, ignore_stop_ids=True))

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


def test_repetition_penalty_reaches_the_prompt_and_the_answer(tiny_llm: LLM) -> None:
    plain = ids_of(fresh(tiny_llm, PROMPT, max_new_tokens=30, ignore_stop_ids=True))
    punished = ids_of(fresh(tiny_llm, PROMPT, max_new_tokens=30, ignore_stop_ids=True, repetition_penalty=100.0))
    assert len(set(punished)) == 30
    assert not set(punished) & set(PROMPT)
    assert len(set(plain)) <= 30


def test_kv_budget_is_a_bound(tiny_bundle: Path, engine: str) -> None:
    with pytest.raises(SettingsError, match=r"a context of 200 tokens needs .* bytes of KV cache, 1,000 are allowed"):
        LLM(tiny_bundle, EngineSettings(engine, max_context=200, kv_cache_bytes=1000))
    small = LLM(tiny_bundle, EngineSettings(engine, kv_cache_bytes=40_000))
    pool = small.engine.pool
    assert 0 < pool.num_blocks * pool.block_size * small.engine.info.kv_bytes_per_token <= 40_000
    assert small.engine.info.max_context < 256


@pytest.mark.parametrize("context", [0, 257])
def test_max_context_outside_the_model(tiny_bundle: Path, engine: str, context: int) -> None:
    with pytest.raises(SettingsError, match=f"max_context is {context}, expected 1 to 256"):
        LLM(tiny_bundle, EngineSettings(engine, max_context=context))


@pytest.mark.parametrize("device", ["GPU", "NPU", "TOASTER"])
def test_device_that_is_not_there(tiny_bundle: Path, device: str) -> None:
    import openvino as ov

    if device in ov.Core().available_devices:
        pytest.skip(f"this machine has a {device}")
    with pytest.raises(DeviceError, match=rf"'{device}'.*devices here: CPU"):
        LLM(tiny_bundle, EngineSettings(device=device))


def test_settings_keep_their_defaults() -> None:
    settings = generation_settings(temperature=0.5, stop=["a"])
    assert settings.sampling.temperature == 0.5
    assert settings.stop == ("a",)
    assert settings.max_new_tokens == generation_settings().max_new_tokens == 512


def test_kv_precision_follows_the_budget(tiny_bundle: Path) -> None:
    """16 bits where the whole context fits, u8 where only that does; to be reproducible, a shorter context instead."""
    spec = open_bundle(tiny_bundle).manifest.spec
    wide = 2 * spec.num_layers * spec.kv_size * 2
    roomy, tight = (
        LLM(tiny_bundle, EngineSettings("openvino", kv_cache_bytes=256 * n)).engine for n in (wide, wide - 1)
    )
    assert roomy.kv_bytes_per_token == wide
    assert tight.kv_bytes_per_token < wide
    kept = LLM(tiny_bundle, EngineSettings("openvino", kv_cache_bytes=128 * wide, reproducible=True)).engine
    assert (kept.kv_bytes_per_token, kept.max_context) == (wide, 96)  # a block of the four is the padding's
    assert roomy.max_context == 256
