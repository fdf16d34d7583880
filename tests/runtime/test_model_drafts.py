"""Drafts of a second model are what it would write, whatever was drafted before, and never the end of an answer."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edge
from edge.runtime.arrays import Ids, Logits
from edge.runtime.bundle import MANIFEST, TOKENIZER, open_bundle
from edge.runtime.engines.engine import TEXT, Engine, Inputs, Step, StepInterrupted
from edge.runtime.engines.scripted import ScriptedEngine, noise, tokenizer_json
from edge.runtime.errors import DeviceError, SettingsError
from edge.runtime.files import sha256_of
from edge.runtime.kv.pool import CacheSequence
from edge.runtime.kv.prefix import common_prefix
from edge.runtime.llm import LLM
from edge.runtime.manifest import FileRecord
from edge.runtime.sampling import Candidates, Sampler, draw
from edge.runtime.settings import EngineSettings, Sampling, SpeculationSettings
from edge.runtime.speculation import model_source
from edge.runtime.speculation.cost import StepCost
from edge.runtime.speculation.draft_bundle import DraftBundle
from edge.runtime.speculation.model_source import _PRIORS, AT_ONCE, FEW, ModelDrafts, ModelSource
from edge.runtime.tokenizer import Tokenizer

NUM_TOKENS = 261
GREEDY, SAMPLED = Sampling(), Sampling(temperature=0.6, top_k=40, seed=7)
CERTAIN = Sampling(temperature=0.02, seed=3)  # of noise, mostly the best one, so that drafts go on


def written(prompt: Sequence[int], count: int, sampling: Sampling, script_seed: int = 0) -> list[int]:
    """What a model of noise writes after a prompt, token by token."""
    script, sampler, ids = noise(script_seed), Sampler(sampling, prompt, NUM_TOKENS), list(prompt)
    for _ in range(count):
        row = np.zeros(NUM_TOKENS, np.float32)
        found = script(ids)
        assert isinstance(found, np.ndarray)
        row[: found.size] = found
        ids.append(sampler.choose(sampler.process(row)))
        sampler.observe(ids[-1])
    return ids[len(prompt) :]


def model(script_seed: int = 0) -> ModelDrafts:
    return ModelDrafts(ScriptedEngine(noise(script_seed)), NUM_TOKENS)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, replace(SAMPLED, presence_penalty=1.5), CERTAIN])
def test_a_model_of_the_same_kind_drafts_what_is_written_with_the_same_random_numbers(sampling: Sampling) -> None:
    prompt, drafts = [1, 2, 3], model()
    answer = written(prompt, 40, sampling)
    source = drafts.source(prompt, sampling)
    assert source is not None
    source.extend(prompt)
    done = 0
    while done < 32:
        found = source.propose(1)
        assert found is not None
        assert found.ids == answer[done : done + 1]
        assert 0 <= found.buckets[0] < len(_PRIORS)
        source.extend(answer[done : done + 3])  # also what was not drafted
        done += 3


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 5), st.integers(0, 5)), min_size=1, max_size=12))
@settings(max_examples=30, deadline=None)
def test_two_answers_draft_in_turns_as_if_each_were_alone(turns: list[tuple[bool, int, int]]) -> None:
    """Noise depends on every token before it, so a cache that was not cut down would change the drafts."""
    drafts, texts = model(1), ([5, 6, 7, 8], [5, 6, 9])
    sources = [drafts.source(text, CERTAIN) for text in texts]
    answers = [written(text, 80, CERTAIN) for text in texts]  # by another model: drafts of it are wrong at times
    done = [0, 0]
    for source, text in zip(sources, texts, strict=True):
        assert source is not None
        source.extend(text)
    for which, count, accepted in turns:
        source, text = sources[which], [*texts[which], *answers[which][: done[which]]]
        assert source is not None
        found = source.propose(count)
        alone = model(1).source(texts[which], CERTAIN)
        assert alone is not None
        alone.extend(texts[which])
        alone.extend(text[len(texts[which]) :])
        expected = alone.propose(count)
        assert found is not None
        assert expected is not None
        assert (found.ids, found.buckets) == (expected.ids, expected.buckets)
        source.extend(answers[which][done[which] : done[which] + accepted])
        done[which] += accepted


def test_forced_ids_come_before_the_draft_and_are_not_kept() -> None:
    drafts = model()
    source = drafts.source([1, 2], GREEDY)
    assert source is not None
    source.extend([1, 2])
    forced = source.propose(1, (3, 4))
    plain = source.propose(1)
    assert forced is not None
    assert plain is not None
    assert forced.ids == written([1, 2, 3, 4], 1, GREEDY)
    assert plain.ids == written([1, 2], 1, GREEDY)


def test_a_long_prompt_is_read_in_parts_and_no_draft_is_made_before_its_end() -> None:
    class Counting(ScriptedEngine):
        most = 0

        def forward(self, ids: Ids, sequence: CacheSequence, rows: Ids, inputs: Inputs = TEXT) -> Logits:
            self.most = max(self.most, ids.size)
            return super().forward(ids, sequence, rows, inputs)

    engine = Counting(noise())
    prompt = [i % 200 for i in range(3 * AT_ONCE - FEW)]
    source = ModelDrafts(engine, NUM_TOKENS).source(prompt, GREEDY)
    assert source is not None
    source.extend(prompt)
    expected = [source.costs_ms(4)]
    for _ in range(2):
        assert source.propose(4) is None
        expected.append(source.costs_ms(4))
    found = source.propose(4)
    assert found is not None
    assert found.ids[:1] == written(prompt, 1, GREEDY)
    assert engine.most == AT_ONCE


def test_a_prompt_beyond_the_draft_models_context_is_not_drafted_for() -> None:
    source = ModelDrafts(ScriptedEngine(noise(), max_context=16), NUM_TOKENS).source(range(15), GREEDY)
    assert source is not None
    source.extend(range(15))
    assert source.propose(4) is not None
    source.extend([1, 2])
    assert source.propose(4) is None


def test_a_text_is_compared_once_after_another_answer_drafted(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []

    def counting(held: tuple[int, ...], ids: tuple[int, ...]) -> int:
        compared.append(len(ids))
        return common_prefix(held, ids)

    monkeypatch.setattr(model_source, "common_prefix", counting)
    drafts, prompt = model(), [i % 200 for i in range(100)]
    one, other = drafts.source(prompt, GREEDY), drafts.source(prompt, GREEDY)
    assert one is not None
    assert other is not None
    one.extend(prompt)
    other.extend([*prompt[:50], 3])
    assert one.propose(4) is not None
    compared.clear()
    one.extend([1, 2])
    for _ in range(3):
        one.costs_ms(16)
    assert max(compared) <= 2  # what is new
    assert other.propose(1) is not None
    compared.clear()
    expected = one.costs_ms(16)
    assert compared == [102]
    assert one.costs_ms(16) == expected
    assert max(compared[1:]) <= 52  # what is missing


class Interrupting(ScriptedEngine):
    """Somebody interrupts its second inference, which completes; so may any."""

    drafts: ModelDrafts
    final = False
    runs = 0

    def decode(self, steps: list[Step]) -> list[Logits]:
        self.runs += 1
        if self.runs == 2:
            self.drafts.interrupt(final=self.final)
        return super().decode(steps)


@pytest.mark.parametrize("final", [False, True])
def test_an_interrupt_ends_a_draft_before_its_next_inference(final: bool) -> None:
    engine = Interrupting(noise())
    engine.drafts = drafts = ModelDrafts(engine, NUM_TOKENS)
    engine.final = final
    source = drafts.source([1, 2, 3], CERTAIN)
    assert source is not None
    source.extend([1, 2, 3])
    with pytest.raises(StepInterrupted):
        source.propose(8)
    assert engine.runs == 2
    if final:
        with pytest.raises(StepInterrupted):
            source.propose(8)
        assert engine.runs == 2
    else:
        again, alone = source.propose(8), model().source([1, 2, 3], CERTAIN)
        assert alone is not None
        alone.extend([1, 2, 3])
        assert again is not None
        expected = alone.propose(8)
        assert expected is not None
        assert (again.ids, again.buckets) == (expected.ids, expected.buckets)


class Failing(ScriptedEngine):
    def decode(self, steps: list[Step]) -> list[Logits]:
        raise DeviceError("the device is lost")


def test_a_draft_model_that_fails_drafts_no_more() -> None:
    drafts = ModelDrafts(Failing(noise()), NUM_TOKENS)
    source = drafts.source([1], GREEDY)
    assert source is not None
    source.extend([1])
    assert source.propose(2) is None
    assert drafts.source([1], GREEDY) is None


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=8), st.floats(0, 1, exclude_max=True))
def test_the_margin_of_a_draw_is_how_far_its_number_may_move(weights: list[float], number: float) -> None:
    def drawn(number: float) -> int:
        return draw(Candidates(np.arange(len(weights)), np.array(weights)), number).token_id

    token_id, margin = draw(Candidates(np.arange(len(weights)), np.array(weights)), number)
    assert 0 <= margin <= 0.5
    inside = margin * (1 - 1e-6)  # float64 sums of eight weights err by 1e-15
    assert drawn(max(number - inside, 0)) == token_id == drawn(min(number + inside, np.nextafter(1, 0)))


# --- A model that drafts with another --------------------------------------------------------------------------------


@pytest.fixture
def cheap_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps cost what is supposed of an engine before it is measured, and drafts one row's: a clock decides nothing."""
    monkeypatch.setattr(StepCost, "record", lambda _self, _rows, _ms: None)
    monkeypatch.setattr(ModelSource, "costs_ms", lambda _self, most: [0.1 * (i + 1) for i in range(most)])


def loaded(draft: Engine | None, script_seed: int = 0) -> LLM:
    return LLM.from_engine(
        ScriptedEngine(noise(script_seed)),
        Tokenizer.from_text(tokenizer_json()),
        speculation=None if draft is None else SpeculationSettings(),
        draft=draft,
    )


@pytest.mark.usefixtures("cheap_rows")
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
@pytest.mark.parametrize("draft_seed", [0, 1])
def test_ids_are_those_without_a_draft_model(sampling: Sampling, draft_seed: int) -> None:
    with loaded(None) as plain, loaded(ScriptedEngine(noise(draft_seed))) as drafting:
        expected = plain.generate([1, 2, 3], sampling=sampling, max_new_tokens=60).answer()
        found = drafting.generate([1, 2, 3], sampling=sampling, max_new_tokens=60).answer()
    assert found.token_ids == expected.token_ids
    assert found.stats is not None
    assert found.stats.drafted_tokens > 0
    if draft_seed == 0:  # the same model
        assert found.stats.accepted_tokens == found.stats.drafted_tokens


@pytest.mark.usefixtures("cheap_rows")
def test_sampled_answers_without_a_seed_are_drafted_with_their_own_random_numbers() -> None:
    with loaded(ScriptedEngine(noise())) as drafting:
        stats = drafting.generate([1, 2, 3], temperature=0.02, max_new_tokens=60).answer().stats
    assert stats is not None
    assert stats.accepted_tokens == stats.drafted_tokens > 0


def test_a_failing_draft_model_ends_no_answer() -> None:
    with loaded(Failing(noise())) as drafting:
        answer = drafting.generate([1, 2, 3], max_new_tokens=20).answer()
    assert list(answer.token_ids) == written([1, 2, 3], 20, GREEDY)


class Endless(ScriptedEngine):
    """Its inferences end when they are interrupted."""

    def __init__(self) -> None:
        super().__init__(noise())
        self.running, self.told, self.in_time = threading.Event(), threading.Event(), list[bool]()

    def decode(self, steps: list[Step]) -> list[Logits]:
        if self.in_time:
            return super().decode(steps)
        self.running.set()
        self.in_time.append(self.told.wait(20))
        raise StepInterrupted

    def interrupt(self, *, final: bool) -> None:
        self.told.set()


@pytest.mark.usefixtures("cheap_rows")
@pytest.mark.parametrize("whole", [False, True])
def test_closing_waits_for_no_inference_of_the_draft_model(whole: bool) -> None:
    engine = Endless()
    with loaded(engine) as drafting:
        stream = drafting.generate([1, 2, 3], max_new_tokens=20)
        reader = threading.Thread(target=lambda: list(stream))
        reader.start()
        assert engine.running.wait(20)
        if whole:
            drafting.close()
        else:
            stream.close()
            answer = drafting.generate([1, 2, 3], max_new_tokens=20).answer()
            assert list(answer.token_ids) == written([1, 2, 3], 20, GREEDY)
        reader.join(20)
    assert engine.in_time == [True]


def test_closing_a_model_closes_its_draft_model() -> None:
    engine = ScriptedEngine(noise())
    loaded(engine).close()
    assert not engine._memory.cells.size


# --- Its bundle -------------------------------------------------------------------------------------------------------


def changed(bundle: Path, folder: Path, old: str, new: str) -> Path:
    """A bundle whose tokenizer.json has another text; its hashes are right."""
    folder.mkdir()
    found = open_bundle(bundle)
    for name in found.manifest.files:
        if name != TOKENIZER:
            (folder / name).hardlink_to(bundle / name)
    text = (bundle / TOKENIZER).read_text()
    assert old in text
    (folder / TOKENIZER).write_text(text.replace(old, new))
    record = FileRecord((folder / TOKENIZER).stat().st_size, sha256_of(folder / TOKENIZER))
    files = {**found.manifest.files, TOKENIZER: record}
    (folder / MANIFEST).write_text(replace(found.manifest, files=files).to_json())
    return folder


def second(draft: Path, first: Path, settings: EngineSettings) -> DraftBundle:
    bundle = open_bundle(first)
    return DraftBundle(draft, bundle, Tokenizer.from_text(bundle.required(TOKENIZER)), settings)


def test_a_draft_bundle_of_another_tokenizer_is_refused_by_the_first_id_that_differs(
    int4_bundle: Path, tmp_path: Path
) -> None:
    other = changed(int4_bundle, tmp_path / "other", "<|user|>", "<|usher|>")
    with pytest.raises(
        SettingsError, match=r"another tokenizer: id \d+ is '<\|usher\|>' there and '<\|user\|>' in"
    ) as found:
        second(other, int4_bundle, EngineSettings())
    assert found.value.param == "draft"


def test_files_of_tokenizers_may_differ_where_their_tokens_do_not(int4_bundle: Path, tmp_path: Path) -> None:
    other = changed(int4_bundle, tmp_path / "other", '"version"', '\n "version"')
    second(other, int4_bundle, EngineSettings())


def test_the_limit_of_the_cache_is_that_of_both_caches(tiny_bundle: Path, int4_bundle: Path) -> None:
    small = second(tiny_bundle, int4_bundle, EngineSettings(kv_cache_bytes=1 << 18))  # of equal shapes
    assert small.settings_of_first.kv_cache_bytes == 1 << 17
    engine = small.open()
    assert engine.pool.bytes <= 1 << 17
    engine.close()
    ample = second(tiny_bundle, int4_bundle, EngineSettings(kv_cache_bytes=1 << 20)).settings_of_first
    assert ample.kv_cache_bytes > 1 << 19, "the draft model leaves what it cannot use"
    share = second(tiny_bundle, int4_bundle, EngineSettings(kv_cache_share=0.5)).settings_of_first
    assert share.kv_cache_share == 0.25


def test_a_bundle_drafts_for_another_one(tiny_bundle: Path, int4_bundle: Path) -> None:
    def ids(**options: Any) -> tuple[int, ...]:
        with edge.load(int4_bundle, **options) as llm:
            return llm.generate("Name five animals.", max_new_tokens=24, ignore_stop_ids=True).answer().token_ids

    assert ids(speculation=True, draft=tiny_bundle) == ids(reproducible=True)


def test_a_draft_model_needs_speculation(tiny_bundle: Path) -> None:
    with pytest.raises(SettingsError, match="give speculation=True too"):
        edge.load(tiny_bundle, draft=tiny_bundle)
