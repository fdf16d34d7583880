"""The generator: equalities of text, ids and cache, and every way an answer can end.

What follows from ids alone is tested on a scripted engine, whose logits follow from what the cache really holds.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pytest

from edge.api import scripted_llm
from edge.runtime.arrays import Logits
from edge.runtime.bundle import open_bundle
from edge.runtime.chunk import Chunk, FinishReason, StoppedBy
from edge.runtime.engines.scripted import END, Script, ScriptedEngine, noise, replies, tokenizer_json
from edge.runtime.errors import ContextLengthError, DeviceError, GenerationError, PromptError, SettingsError
from edge.runtime.kv.pool import CacheSequence
from edge.runtime.llm import LLM
from edge.runtime.settings import EngineSettings, GenerationOptions, generation_settings
from edge.runtime.tokenizer import Tokenizer
from tests.conftest import EXACT

PROMPT = list(b"Once upon a time")
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def llm() -> Iterator[LLM]:
    """Random logits that follow from every token so far."""
    with scripted_llm(noise()) as found:
        yield found


def slowed(script: Script, step_s: float) -> Script:
    """A script that takes its time."""

    def next_id(held: Sequence[int]) -> int | Logits:
        time.sleep(step_s)
        return script(held)

    return next_id


def ids_of(chunks: list[Chunk]) -> list[int]:
    return [i for chunk in chunks for i in chunk.token_ids]


def fresh(llm: LLM, prompt: list[int], **settings: Unpack[GenerationOptions]) -> list[Chunk]:
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


def test_streamed_text_equals_decoded_ids() -> None:
    """A character of two, three or four tokens appears as a whole; what is none becomes U+FFFD."""
    text = "Frühling – 春が来た 🌸🌸!"
    llm = scripted_llm(replies({"Write a haiku with emoji": text}))
    chunks = list(llm.chat([{"role": "user", "content": "Write a haiku with emoji"}]))
    assert "".join(chunk.text for chunk in chunks) == llm.tokenizer.decode(ids_of(chunks)) == text
    assert [chunk.text for chunk in chunks if chunk.text] == list(text)
    with scripted_llm(noise()) as other:
        chunks = fresh(other, PROMPT, max_new_tokens=60)
        assert "".join(chunk.text for chunk in chunks) == other.tokenizer.decode(ids_of(chunks))


@pytest.fixture(scope="module")
def exact_llm(demo_bundle: Path, engine: str) -> Iterator[LLM]:
    with LLM(demo_bundle, EXACT[engine]) as llm:
        yield llm


@pytest.fixture
def exact(exact_llm: LLM) -> LLM:
    """The demo model without any rounding of an engine's own, its cache empty."""
    exact_llm.clear_cache()
    return exact_llm


def test_demo_answers_paris(demo_llm: LLM) -> None:
    assert "Paris" in demo_llm.chat([{"role": "user", "content": "What is the capital of France?"}]).text()


def test_resumed_equals_fresh(exact: LLM, engine: str) -> None:
    """A prompt whose beginning is cached, longer, shorter and diverging, gives what it gives alone."""
    encode = exact.tokenizer.encode
    base = encode("The quick brown fox jumps over the lazy dog. " * 6)
    prompts = [base, base + encode("And then"), base[:40], base[:40] + encode("A cat sat"), base]
    other = LLM(exact.bundle.path, EXACT[engine])
    for prompt in prompts:
        warm = list(exact.generate(prompt, max_new_tokens=4, ignore_stop_ids=True))
        stats = warm[-1].stats
        assert stats is not None
        cached_tokens = stats.cached_tokens
        alone = fresh(other, prompt, max_new_tokens=4, ignore_stop_ids=True)
        assert ids_of(warm) == ids_of(alone)
    assert cached_tokens >= 40


def test_long_prompts_run_in_chunks(exact: LLM) -> None:
    ids = exact.tokenizer.encode("one two three four five six seven eight nine ten " * 120)
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


def test_every_stop_id_ends_the_answer(llm: LLM) -> None:
    """Whichever of the three comes first."""
    free = ids_of(fresh(llm, PROMPT, max_new_tokens=40, ignore_stop_ids=True))
    for position in (0, 7, 20):
        stop_ids = {free[position], 256, 257}
        other = LLM.from_engine(ScriptedEngine(noise()), Tokenizer.from_text(tokenizer_json()), stop_ids=stop_ids)
        end = free.index(free[position])
        chunks = fresh(other, PROMPT, max_new_tokens=40)
        assert ids_of(chunks) == free[: end + 1]
        assert chunks[-1].finish_reason == "stop"
        assert other.tokenizer.decode(free[:end]) == "".join(chunk.text for chunk in chunks)


def test_stop_ids_are_those_of_the_bundle(tiny_llm: LLM) -> None:
    from tests.tiny import STOP_IDS

    assert tiny_llm.stop_ids == set(STOP_IDS)


def test_padding_rows_are_never_chosen() -> None:
    """The embedding has 320 rows and the tokenizer 261 tokens; hot sampling would find the others."""
    llm = scripted_llm(noise(vocab_size=320), vocab_size=320)
    ids = ids_of(fresh(llm, PROMPT, max_new_tokens=150, temperature=50.0, seed=1, ignore_stop_ids=True))
    assert max(ids) < llm.tokenizer.num_tokens == 261


def test_stop_string_spanning_tokens() -> None:
    whole = "It is Paris, the capital of France."
    llm = scripted_llm(replies({"What is the capital of France?": whole}))
    chunks = list(llm.chat(QUESTION, max_new_tokens=40, stop=["of Fra", "never said"]))
    assert "".join(chunk.text for chunk in chunks) == whole[: whole.index("of Fra")]
    assert chunks[-1].finish_reason == "stop"


def test_every_token_comes_with_its_step() -> None:
    """While its text is held back: a character of four tokens, and what may become a stop string."""
    text = "🌸 sto, stop"
    llm = scripted_llm(replies({"Go": text}))
    chunks = list(llm.chat([{"role": "user", "content": "Go"}], stop=["stop!"]))
    *steps, last = chunks
    assert [chunk.token_ids for chunk in steps] == [(byte,) for byte in text.encode()]
    assert [chunk.text for chunk in steps] == ["", "", "", "🌸", " ", "", "", "", "sto,", " ", "", "", "", ""]
    assert (last.token_ids, last.text, last.finish_reason) == ((END,), "stop", "stop")


def test_what_ended_an_answer() -> None:
    llm = scripted_llm(replies({"Hi": "Hello you"}))
    hi = [{"role": "user", "content": "Hi"}]
    cases: list[tuple[GenerationOptions, FinishReason, StoppedBy | None]] = [
        ({}, "stop", StoppedBy(token_id=END)),
        ({"stop_token_ids": [ord("y")]}, "stop", StoppedBy(token_id=ord("y"))),
        ({"stop": ["o y", "lo"]}, "stop", StoppedBy(text="lo")),
        ({"max_new_tokens": 3}, "length", None),
        ({"deadline_s": 1e-9}, "deadline", None),
    ]
    for settings, reason, stopped_by in cases:
        chunks = list(llm.chat(hi, **settings))
        assert (chunks[-1].finish_reason, chunks[-1].stopped_by) == (reason, stopped_by)
        assert all(chunk.stopped_by is None for chunk in chunks[:-1])
        answer = llm.chat(hi, **settings).answer()
        assert (answer.finish_reason, answer.stopped_by) == (reason, stopped_by)


def test_length_and_figures(llm: LLM) -> None:
    chunks = fresh(llm, PROMPT, max_new_tokens=5, ignore_stop_ids=True)
    last = chunks[-1]
    assert len(chunks) == 5
    assert last.finish_reason == "length"
    assert last.stats is not None
    assert (last.stats.prompt_tokens, last.stats.new_tokens) == (len(PROMPT), 5)
    assert last.stats.ttft_ms > 0
    assert last.stats.tokens_per_second > 0
    assert all(chunk.finish_reason is None and chunk.stats is None for chunk in chunks[:-1])


@pytest.mark.parametrize("limit", [500, None])
def test_answer_ends_with_the_context(limit: int | None) -> None:
    """Whether more is asked for, or no limit at all is given."""
    llm = scripted_llm(noise(), max_context=40)
    chunks = fresh(llm, PROMPT, max_new_tokens=limit, ignore_stop_ids=True)
    assert len(ids_of(chunks)) == 40 - len(PROMPT)
    assert chunks[-1].finish_reason == "length"
    assert chunks[-1].stopped_by is None
    with pytest.raises(ContextLengthError, match="has 40 tokens and the context holds 40"):
        llm.generate([5] * 40)
    assert ids_of(fresh(llm, [5] * 39, ignore_stop_ids=True)), "one token of room is enough for one token"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0, expected a whole number, 1 or more"),
        ({"temperature": -1.0}, r"temperature is -1\.0, expected a number from 0 up"),
        ({"deadline_s": 0.0}, r"deadline_s is 0\.0, expected a number above 0"),
        ({"stop": [""]}, "stop holds '', expected a text, or a list of texts, none of them empty"),
        ({"temprature": 1.0}, r"unknown setting 'temprature', did you mean 'temperature'\? Known are .*top_k"),
    ],
)
def test_bad_settings(llm: LLM, settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        llm.generate(PROMPT, **settings)  # type: ignore[arg-type]  # what it refuses


def test_bad_prompts(llm: LLM) -> None:
    with pytest.raises(PromptError, match="empty"):
        llm.generate("")
    with pytest.raises(PromptError, match="token id 300 is not in the vocabulary"):
        llm.generate([1, 300])


def test_deadline() -> None:
    llm = scripted_llm(slowed(noise(), 0.002))
    for deadline_s in (0.1, 0.5, 2.5):  # after the first token, also where that takes long
        *_, last = llm.generate("Once", max_new_tokens=4000, deadline_s=deadline_s, ignore_stop_ids=True)
        assert last.finish_reason == "deadline"
        assert last.stats is not None
        assert last.stats.new_tokens <= deadline_s / 0.002
        if last.stats.new_tokens:
            return
    pytest.fail("not even one token came in time")


def test_deadline_inside_a_long_prefill() -> None:
    llm = scripted_llm(slowed(noise(), 0.005))
    chunks = list(llm.generate([7, 9] * 1500, deadline_s=1e-3))
    assert ids_of(chunks) == []
    assert chunks[-1].finish_reason == "deadline"
    assert llm.num_cached_tokens == llm.engine.info.prefill_chunk


def test_closing_keeps_the_cache_consistent(llm: LLM) -> None:
    expected = ids_of(fresh(llm, PROMPT, max_new_tokens=30, ignore_stop_ids=True))
    for taken in (1, 2, 9):
        llm.clear_cache()
        with llm.generate(PROMPT, max_new_tokens=30, ignore_stop_ids=True) as stream:
            begun = [next(stream) for _ in range(taken)]
        assert ids_of(begun) == expected[:taken]
        assert llm.num_cached_tokens == len(PROMPT) + taken - 1
        # Going on from there, on what is cached, gives the same answer.
        rest = list(llm.generate(PROMPT + expected[:taken], max_new_tokens=30 - taken, ignore_stop_ids=True))
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

    def fail() -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(tiny_llm.engine, "_run", fail)
        with pytest.raises(GenerationError, match="this answer failed: MemoryError"):
            next(stream)
    again = list(tiny_llm.generate(PROMPT, max_new_tokens=10, ignore_stop_ids=True))
    assert begun == expected[:4]
    assert ids_of(again) == expected


def test_ctrl_c_ends_a_long_prefill_at_once(exact: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal arrives while the engine computes 2,100 tokens in one call, which takes seconds."""
    llm = exact
    prompt, other = [7, 9, 11] * 700, [5, 6, 7, 8] * 10
    expected = ids_of(fresh(llm, other, max_new_tokens=8, ignore_stop_ids=True))
    llm.clear_cache()
    monkeypatch.setattr(llm.engine, "info", replace(llm.engine.info, prefill_chunk=2100))
    signalled: list[float] = []

    def press() -> None:
        signalled.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    forward = llm.engine.forward

    def watched(*given: Any) -> Any:  # Any: the engine's own
        threading.Timer(0.3, press).start()
        return forward(*given)

    for _ in range(4):  # of a machine that is busy, one moment is not
        with monkeypatch.context() as patch:
            patch.setattr(llm.engine, "forward", watched)
            with pytest.raises(KeyboardInterrupt):
                list(llm.generate(prompt, max_new_tokens=1))
        if time.monotonic() - signalled[-1] < 1.5:
            break
    else:
        pytest.fail("the whole step was waited for, each time")
    assert llm.num_cached_tokens == 0
    assert ids_of(list(llm.generate(other, max_new_tokens=8, ignore_stop_ids=True))) == expected


def test_several_answers_at_once(llm: LLM) -> None:
    """Whoever reads one stream drives the others too; closing one leaves the others alone."""
    prompts = [PROMPT, list(b"Another"), list(b"And a third one")]
    expected = [ids_of(fresh(llm, prompt, max_new_tokens=10, ignore_stop_ids=True)) for prompt in prompts]
    llm.clear_cache()
    streams = [llm.generate(prompt, max_new_tokens=10, ignore_stop_ids=True) for prompt in prompts]
    begun = ids_of([next(streams[0]), next(streams[0])])
    streams[1].close()
    assert list(streams[1]) == []
    assert begun + ids_of(list(streams[0])) == expected[0]
    assert ids_of(list(streams[2])) == expected[2]
    assert ids_of(list(llm.generate(prompts[1], max_new_tokens=10, ignore_stop_ids=True))) == expected[1]


def test_a_stream_may_be_read_by_another_thread(llm: LLM) -> None:
    expected = ids_of(fresh(llm, PROMPT, max_new_tokens=10, ignore_stop_ids=True))
    found: list[Chunk] = []
    stream = llm.generate(PROMPT, max_new_tokens=10, ignore_stop_ids=True)
    thread = threading.Thread(target=lambda: found.extend(stream))
    thread.start()
    thread.join()
    assert ids_of(found) == expected


def test_same_seed_same_text(llm: LLM) -> None:
    def draw(seed: int) -> list[int]:
        return ids_of(fresh(llm, PROMPT, max_new_tokens=20, temperature=1.0, seed=seed, ignore_stop_ids=True))

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


def test_repetition_penalty_reaches_the_prompt_and_the_answer() -> None:
    """Of a model that always finds the same ids likely, those of the prompt above all."""
    row = np.random.default_rng(4).standard_normal(256).astype(np.float32)
    row[PROMPT] += 10
    llm = scripted_llm(lambda _held: row)
    plain = ids_of(fresh(llm, PROMPT, max_new_tokens=30, ignore_stop_ids=True))
    punished = ids_of(fresh(llm, PROMPT, max_new_tokens=30, ignore_stop_ids=True, repetition_penalty=100.0))
    assert len(set(punished)) == 30
    assert not set(punished) & set(PROMPT)
    assert set(plain) == {int(row.argmax())} < set(PROMPT)


def test_kv_budget_is_a_bound(tiny_bundle: Path, engine: str) -> None:
    with pytest.raises(SettingsError, match=r"a context of 200 tokens needs .* bytes of KV cache, 1,000 are allowed"):
        LLM(tiny_bundle, EngineSettings(engine, max_context=200, kv_cache_bytes=1000))
    small = LLM(tiny_bundle, EngineSettings(engine, kv_cache_bytes=40_000))
    pool = small.engine.pool
    assert 0 < pool.max_tokens * small.engine.info.kv_bytes_per_token <= 40_000
    assert small.engine.info.max_context < 256


@pytest.mark.parametrize(("context", "expected"), [(0, "a whole number, 1 or more"), (257, "1 to 256")])
def test_max_context_outside_the_model(tiny_bundle: Path, engine: str, context: int, expected: str) -> None:
    with pytest.raises(SettingsError, match=f"max_context is {context}, expected {expected}"):
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
    assert settings.max_new_tokens is generation_settings().max_new_tokens is None


def test_kv_precision_follows_the_budget(tiny_bundle: Path) -> None:
    """16 bits where the whole context fits, u8 where only that does; to be reproducible, a shorter context instead."""
    spec = open_bundle(tiny_bundle).manifest.spec
    wide = 2 * spec.num_layers * spec.kv_size * 2
    roomy, tight = (
        LLM(tiny_bundle, EngineSettings("openvino", kv_cache_bytes=256 * n)).engine.info for n in (wide, wide - 1)
    )
    assert roomy.kv_bytes_per_token == wide
    assert tight.kv_bytes_per_token < wide
    kept = LLM(tiny_bundle, EngineSettings("openvino", kv_cache_bytes=128 * wide, reproducible=True)).engine.info
    assert (kept.kv_bytes_per_token, kept.max_context) == (wide, 96)  # a block of the four is the padding's
    assert roomy.max_context == 256


def test_a_scripted_answer_to_a_prompt_that_is_read_in_pieces_of_characters() -> None:
    long = "é€😀" * 200
    with scripted_llm(replies({long: "yes", f"a{long}": "no"})) as llm:
        assert llm.chat([{"role": "user", "content": long}]).text() == "yes"
        assert llm.chat([{"role": "user", "content": f"a{long}"}]).text() == "no"
