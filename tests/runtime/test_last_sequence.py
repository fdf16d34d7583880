"""An engine with one context that nobody else sees: everything above it asks it what it still has, and takes turns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.runtime.arrays import Ids, Logits
from edge.runtime.chat import ChatTemplate
from edge.runtime.engines.engine import TEXT, Inputs, ResumingEngine, Step
from edge.runtime.engines.scripted import STOP_IDS, TEMPLATE, ScriptedEngine, noise, replies, tokenizer_json
from edge.runtime.errors import ContextLengthError, DeviceError, PromptError, SettingsError
from edge.runtime.kv.pool import CacheSequence
from edge.runtime.llm import LLM
from edge.runtime.prompt import Prompt
from edge.runtime.session import ChatSession
from edge.runtime.settings import GenerationOptions, SpeculationSettings
from edge.runtime.tokenizer import Tokenizer

CHUNK, CONTEXT, MAX_PROMPT = 4, 96, 80
GREEDY: GenerationOptions = {"max_new_tokens": 6, "ignore_stop_ids": True}
RNG = np.random.default_rng(3)


class Holding(ScriptedEngine):
    """Keeps whole chunks of the last sequence, and shows the script what it really holds."""

    def __init__(self, script: Any, max_prompt: int = MAX_PROMPT, **more: Any) -> None:
        super().__init__(
            script,
            max_context=CONTEXT,
            block_size=CONTEXT,
            num_blocks=1,
            max_prompt=max_prompt,
            prefill_chunk=CHUNK,
            max_sequences=1,
            max_step_rows=1,
            logits_rows="last",
            takes_positions=False,
            holds_last=True,
            **dict.fromkeys(("can_trim", "can_fork", "can_snapshot", "reproducible", "decodes_as_it_reads"), False),
            **more,
        )
        self.last: list[int] = []
        self.asked: list[int] = []
        self.fails = 0  # calls of `resume` that fail from now on

    def resume(self, most: int) -> int:
        self.asked.append(most)
        if self.fails:
            self.fails -= 1
            self.last = []
            raise DeviceError("the driver has gone; ask again")
        kept = min(most, len(self.last)) // CHUNK * CHUNK
        self.last = self.last[:kept]
        self._memory.cells[0, :kept] = self.last
        self._written[0] = kept
        return kept

    def forward(self, ids: Ids, sequence: CacheSequence, rows: Ids, inputs: Inputs = TEXT) -> Logits:
        found = super().forward(ids, sequence, rows, inputs)
        self.last = self.held(sequence, sequence.num_tokens)
        return found

    def decode(self, steps: list[Step]) -> list[Logits]:
        found = super().decode(steps)
        self.last = self.held(steps[-1].sequence, steps[-1].sequence.num_tokens)
        return found


def holding_llm(script: Any = None, max_prompt: int = MAX_PROMPT, **more: Any) -> tuple[LLM, Holding]:
    engine, tokenizer = Holding(script or noise(), max_prompt), Tokenizer.from_text(tokenizer_json())
    template = ChatTemplate(TEMPLATE, tokenizer.markup)
    return LLM.from_engine(engine, tokenizer, template=template, stop_ids=STOP_IDS, **more), engine


def free_llm() -> LLM:
    return LLM.from_engine(ScriptedEngine(noise(), max_context=CONTEXT), Tokenizer.from_text(tokenizer_json()))


def ids_and_cached(llm: LLM, prompt: Sequence[int], **more: Any) -> tuple[tuple[int, ...], int]:
    answer = llm.generate(prompt, **{**GREEDY, **more}).answer()
    assert answer.stats is not None
    return answer.token_ids, answer.stats.cached_tokens


def test_a_prompt_continues_what_the_engine_still_has() -> None:
    """Whole chunks of it, at most all but one token; what was computed otherwise is never shown."""
    (llm, engine), free = holding_llm(), free_llm()
    assert isinstance(engine, ResumingEngine)
    first = RNG.integers(0, 250, 21).tolist()
    answer, cached = ids_and_cached(llm, first)
    assert cached == 0
    whole = [*first, *answer]
    for prompt, expected in (
        ([*whole, 1, 2], 24),
        ([*whole, 1, 2], 28),
        ([*first[:10], 9, 9], 8),
        (first, 8),
        (first[:8], 4),
        (first[:1], 0),
        ([5], 0),
        (RNG.integers(0, 250, MAX_PROMPT).tolist(), 0),
    ):
        found, cached = ids_and_cached(llm, prompt)
        assert cached == expected
        assert found == ids_and_cached(free, prompt)[0]
    assert llm.cache_stats.hit_tokens == sum((24, 28, 8, 8, 4))
    llm.engine.pool.check_integrity([])
    assert llm.cache_stats.tokens > 0
    llm.clear_cache()
    assert llm.num_cached_tokens == 0
    assert ids_and_cached(llm, first)[1] == 0
    assert engine.asked[-1] == 0


def test_answers_take_turns() -> None:
    """Several prompts, several answers to one, and a reader that leaves."""
    (llm, _), free = holding_llm(), free_llm()
    prompts = [RNG.integers(0, 250, count).tolist() for count in (5, 40, 17, 3)]
    expected = [ids_and_cached(free, prompt)[0] for prompt in prompts]
    assert [answer.token_ids for answer in llm.generate_batch(prompts, **GREEDY)] == expected
    sampled: Any = {**GREEDY, "temperature": 1.0, "seed": 4}
    wanted = [answer.token_ids for answer in free.sample(prompts[1], 3, **sampled)]
    answers = llm.sample(prompts[1], 3, **sampled)
    assert [answer.token_ids for answer in answers] == wanted
    assert [answer.stats.cached_tokens for answer in answers if answer.stats is not None] == [0, 36, 36]
    streams = [llm.generate(prompt, **GREEDY) for prompt in prompts]
    next(iter(streams[0]))
    streams[0].close()
    streams[2].close()
    assert [streams[i].answer().token_ids for i in (1, 3)] == [expected[1], expected[3]]
    assert llm.stats.running == llm.stats.waiting == 0
    llm.engine.pool.check_integrity([])


@pytest.mark.parametrize("max_prompt", [MAX_PROMPT, 40])
def test_a_conversation_computes_its_new_tokens_alone(max_prompt: int) -> None:
    llm, _ = holding_llm(replies(lambda text: text.upper()), max_prompt)
    session = ChatSession(llm, context_policy="drop-oldest")
    cached = []
    for text in ("one", "two", "three and more", "four, which is longer still", "five", "six"):
        chunks = list(session.send(text))
        assert "".join(chunk.text for chunk in chunks) == text.upper()
        stats = chunks[-1].stats
        assert stats is not None
        assert stats.prompt_tokens <= max_prompt
        cached.append(stats.cached_tokens)
    assert cached[0] == 0
    assert min(cached[1:3]) > 0 or max_prompt < MAX_PROMPT
    assert session.dropped_messages > 0  # prompts never exceed what was compiled for
    assert "".join(chunk.text for chunk in session.retry()) == "SIX"


def test_what_it_cannot_do_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    llm, engine = holding_llm()
    with pytest.raises(
        ContextLengthError, match=r"the prompt has 81 tokens, and the model was compiled for .* up to 80"
    ):
        llm.generate([1] * 81)
    with pytest.raises(SettingsError, match="gives the logits of a prompt's last token only"):
        llm.generate([1, 2], prompt_logprobs=0)
    with pytest.raises(PromptError, match="the prompt has positions"):
        llm.generate(Prompt([1, 2], positions=np.array([0, 5])))
    for refused in (
        lambda: llm.prefixes.pin("text"),
        lambda: llm.prefixes.save("text", tmp_path / "prefix"),
        lambda: llm.prefixes.load(tmp_path / "prefix"),
        lambda: llm.prefixes.use(tmp_path / "prefix", system="text"),
    ):
        with pytest.raises(SettingsError, match="the scripted engine cannot start several prompts from one prefix"):
            refused()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SettingsError, match="cannot verify drafts; load without speculation"):
        holding_llm(speculation=SpeculationSettings())
    assert engine.asked == engine.last == []


def test_a_system_message_is_computed_before_it_is_asked_for() -> None:
    """Where it cannot be pinned, the next prompt continues it."""
    llm, _ = holding_llm(replies({"Hi": "Hello"}))
    llm.prefixes.warm(llm.system_prefix("Answer at once."))
    answer = llm.chat([{"role": "system", "content": "Answer at once."}, {"role": "user", "content": "Hi"}]).answer()
    assert answer.text == "Hello"
    assert answer.stats is not None
    assert answer.stats.cached_tokens == len(llm.system_prefix("Answer at once.")) // CHUNK * CHUNK


def test_an_engine_that_has_lost_its_context_starts_afresh() -> None:
    llm, engine = holding_llm()
    prompt = RNG.integers(0, 250, 30).tolist()
    expected, _ = ids_and_cached(llm, prompt)
    engine.fails = 1
    assert ids_and_cached(llm, prompt) == (expected, 0)
    assert ids_and_cached(llm, prompt) == (expected, 28)


@pytest.mark.parametrize("error", [DeviceError("gone; ask again"), ValueError("a bug")])
def test_a_failure_ends_one_request_and_the_next_is_right(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    llm, engine = holding_llm()
    prompt = RNG.integers(0, 250, 30).tolist()
    expected, _ = ids_and_cached(llm, prompt)

    def fails(_steps: list[Step]) -> list[Logits]:
        engine.last = []
        raise error

    monkeypatch.setattr(engine, "decode", fails)
    failing = llm.generate(prompt, **GREEDY)
    with pytest.raises(Exception, match=r"gone|bug"):
        failing.answer()
    monkeypatch.undo()
    assert ids_and_cached(llm, prompt)[0] == expected
    llm.engine.pool.check_integrity([])
