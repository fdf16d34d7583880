"""Engines read rows in place of embeddings, at any positions, as transformers does, however the tokens arrive."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import edge
from edge.export.float16.folds import FoldedWeights, Folds
from edge.export.graph.onnx.files import write_onnx
from edge.export.graph.openvino.files import write_ir
from edge.export.graph.openvino.models import stateful_decoder
from edge.export.pipeline import export
from edge.export.plan import make_plan
from edge.export.settings import ExportSettings
from edge.export.tensors import to_float32
from edge.export.weights.names import canonical_shapes
from edge.export.weights.store import WeightStore
from edge.runtime.bundle import MODEL_BIN, MODEL_XML, open_bundle
from edge.runtime.engines.engine import Engine, Step
from edge.runtime.engines.registry import ENGINES as RECORDS
from edge.runtime.errors import BundleError, PromptError
from edge.runtime.graph_names import REPLACED, REPLACEMENTS, ROTARY_ROWS
from edge.runtime.kv.pool import CacheSequence
from edge.runtime.llm import LLM
from edge.runtime.settings import EngineSettings
from tests.conftest import EXACT
from tests.runtime.picture_bundles import KINDS, TIMES_FLOAT32, Seen, rows_of, seen

ENGINES = ("openvino", "onnx")
Rows = np.ndarray[Any, Any]
ANSWER = (7, 8, 9)  # ids that a prompt is continued with


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return seen(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def expected(model: Seen) -> tuple[Rows, float]:
    """What transformers makes of the first prompt and ANSWER."""
    return model.oracle.logits(model.prompt(), ANSWER)


@pytest.fixture(scope="module", params=ENGINES)
def llm(request: pytest.FixtureRequest, model: Seen) -> LLM:
    return LLM(model.bundle, EXACT[request.param])


@pytest.fixture(scope="module", params=ENGINES)
def reproducible(request: pytest.FixtureRequest, model: Seen) -> LLM:
    return LLM(model.bundle, replace(EXACT[request.param], reproducible=True))


def read(engine: Engine, prompt: edge.Prompt, sizes: list[int], answer: tuple[int, ...] = (), at_once: int = 1) -> Rows:
    """Logits of every token of a prompt, in chunks of these sizes, and of an answer, so many tokens at once."""
    sequence, found, begin = CacheSequence(engine.pool), [], 0
    for size in [*sizes, len(prompt.ids) - sum(sizes)]:
        ids = np.array(prompt.ids[begin : begin + size], np.int64)
        found.append(engine.forward(ids, sequence, np.arange(size), prompt.inputs(begin, begin + size)).copy())
        begin += size
    for first in range(0, len(answer), at_once):
        ids = np.array(answer[first : first + at_once])
        places = prompt.next_position + first + np.arange(ids.size)
        own = None if prompt.positions is None else np.broadcast_to(places, (*prompt.positions.shape[:-1], ids.size))
        found.append(engine.decode([Step(sequence, ids, own)])[0].copy())
    sequence.free()
    return np.concatenate(found)


def ids_of(llm: LLM, prompt: edge.Prompt | list[int]) -> tuple[int, ...]:
    return llm.generate(prompt, max_new_tokens=6, ignore_stop_ids=True).answer().token_ids


def text_of(prompt: edge.Prompt) -> edge.Prompt:
    return edge.Prompt(prompt.ids)


@pytest.mark.parametrize("sizes", [[], [9, 1, 5], [1] * 12], ids=["one shot", "within the picture", "one by one"])
def test_rows_and_positions_give_the_logits_of_transformers(
    llm: LLM, model: Seen, expected: tuple[Rows, float], sizes: list[int]
) -> None:
    logits, float32_error = expected
    assert np.abs(read(llm.engine, model.prompt(), sizes, ANSWER) - logits).max() <= TIMES_FLOAT32 * float32_error


def test_positions_counted_row_by_row_are_another_model(llm: LLM, model: Seen, expected: tuple[Rows, float]) -> None:
    """As several programs number a picture: far beyond what rounding does."""
    prompt, (logits, float32_error) = model.prompt(), expected
    counted = edge.Prompt(prompt.ids, prompt.cache_keys, embeddings=prompt.embeddings)
    assert np.abs(read(llm.engine, counted, [], ANSWER) - logits).max() > 1000 * float32_error


def test_answers_to_pictures_are_those_of_transformers(llm: LLM, model: Seen) -> None:
    """Each token's position is one more than the largest before it, not its place."""
    prompt = model.prompt(seed=1)
    answer = ids_of(llm, prompt)
    expected, _ = model.oracle.logits(prompt, answer)
    rows = expected[len(prompt.ids) - 1 : -1, : llm.tokenizer.num_tokens]
    assert list(answer) == rows.argmax(axis=1).tolist()


def test_pictures_and_texts_are_answered_together_as_alone(llm: LLM, model: Seen) -> None:
    """Sequences as long as each other, whose tokens turn by other positions, share a pass."""
    prompts = [model.prompt(seed=2), text_of(model.prompt()), model.prompt(seed=3, before=3), model.prompt(seed=4)]
    alone = [ids_of(llm, prompt) for prompt in prompts]
    assert len(set(alone)) == len(alone)
    answers = llm.generate_batch(prompts, max_new_tokens=6, ignore_stop_ids=True)
    assert [answer.token_ids for answer in answers] == alone


def test_pictures_share_what_has_equal_keys_and_nothing_else(llm: LLM, model: Seen, tmp_path: Path) -> None:
    """Also in a file: keys of pictures are beyond 32 bits."""
    first, second = model.prompt(seed=5), model.prompt(seed=6)
    assert first.ids == second.ids
    rows = [model.oracle.logits(prompt)[0][-1, : llm.tokenizer.num_tokens] for prompt in (first, second)]
    expected = [int(row.argmax()) for row in rows]
    assert llm.prefixes.save(first, tmp_path / "one.prefix").num_tokens == len(first.ids)
    other = LLM(model.bundle, EXACT[llm.engine.info.name])
    other.prefixes.load(tmp_path / "one.prefix")
    picture = first.embeddings[0].start
    for prompt, token_id, cached in ((second, expected[1], picture), (first, expected[0], len(first.ids) - 1)):
        answer = other.generate(prompt, max_new_tokens=1, ignore_stop_ids=True).answer()
        assert answer.stats is not None
        assert (answer.token_ids, answer.stats.cached_tokens) == ((token_id,), cached)


def test_pictures_are_reproducible_however_they_are_cut(reproducible: LLM, model: Seen) -> None:
    """A token that is read alone, and one that is decoded, round as they do beside others; so do drafts."""
    prompt = model.prompt(seed=7)
    whole = read(reproducible.engine, prompt, [], ANSWER)
    for sizes, at_once in (([9, 1, 5], 1), ([6, 1, 1, 1], 2), ([len(prompt.ids) - 1], 3)):
        assert np.array_equal(read(reproducible.engine, prompt, sizes, ANSWER, at_once), whole)


def test_a_failed_step_leaves_no_trace(llm: LLM, model: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither rows of another picture, nor tables that it made grow."""
    engine: Any = llm.engine
    whole = read(engine, model.prompt(seed=11), [9], ANSWER)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_run", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            read(engine, model.prompt(seed=12), [])
    assert np.array_equal(read(engine, text_of(model.prompt()), []), read(engine, text_of(model.prompt()), []))
    assert np.array_equal(read(engine, model.prompt(seed=11), [9], ANSWER), whole)


def test_preempted_pictures_go_on_as_if_they_had_not_been(reproducible: LLM, model: Seen) -> None:
    prompts = [model.prompt(seed=8 + i) for i in range(4)]
    options: dict[str, Any] = {"max_new_tokens": 80, "ignore_stop_ids": True, "logprobs": 0}
    alone = [reproducible.generate(prompt, **options).answer() for prompt in prompts]
    name, info = reproducible.engine.info.name, reproducible.engine.info
    room = 257 * info.kv_bytes_per_token  # two contexts, and what `reproducible` pads a step with
    tight = LLM(
        model.bundle,
        replace(EXACT[name], reproducible=True, max_context=128, kv_cache_bytes=room),
    )
    answers = tight.generate_batch(prompts, **options)
    assert tight.stats.preemptions > 0
    for answer, own in zip(answers, alone, strict=True):
        assert (answer.token_ids, answer.logprobs) == (own.token_ids, own.logprobs)


@pytest.mark.parametrize("engine", ENGINES)
def test_text_is_read_as_by_a_bundle_without_pictures(engine: str, model: Seen, tmp_path: Path) -> None:
    """To the bit; but where onnxruntime's attention cannot turn heads, cos and sin are numpy's, rounded otherwise."""
    bundle = open_bundle(model.bundle)
    if engine == "openvino":  # whose graph is the same; what the manifest says decides
        plain = replace(bundle, manifest=replace(bundle.manifest, vision=None))
    else:
        export(model.checkpoint, tmp_path / "bundle", "fp32", format="onnx", pictures="none")
        plain = open_bundle(tmp_path / "bundle")
    prompt = text_of(model.prompt())
    expected, found = (
        read(RECORDS[engine].open(opened, EXACT[engine]), prompt, [9, 1], (7, 8)) for opened in (plain, bundle)
    )
    if engine == "onnx" and model.kind == "4v":
        _, float32_error = model.oracle.logits(prompt)
        assert np.abs(found - expected).max() <= TIMES_FLOAT32 * float32_error
    else:
        assert np.array_equal(found, expected)


def test_positions_beyond_the_context_have_rows_of_their_own(llm: LLM, model: Seen) -> None:
    prompt = model.prompt(seed=9)
    assert prompt.positions is not None
    far = edge.Prompt(prompt.ids, prompt.cache_keys, prompt.positions + 300, prompt.embeddings)
    expected, float32_error = model.oracle.logits(far)
    assert np.abs(read(llm.engine, far, [8]) - expected).max() <= TIMES_FLOAT32 * float32_error


def test_a_model_of_three_positions_takes_one_for_all(llm: LLM, model: Seen) -> None:
    """Repeated ones, as GLM-4V's patches have, by heads that attention turns: a prompt's first step and later ones."""
    prompt = model.prompt(seed=10)
    repeated = np.array([min(i, 6) + max(i - 21, 0) for i in range(len(prompt.ids))])
    one = edge.Prompt(prompt.ids, prompt.cache_keys, repeated, prompt.embeddings)
    expected, float32_error = model.oracle.logits(one, (7, 8))
    for sizes in ([], [4, 10], [1] * 10):
        assert np.abs(read(llm.engine, one, sizes, (7, 8)) - expected).max() <= TIMES_FLOAT32 * float32_error


def test_what_a_model_of_pictures_does_not_take(llm: LLM, model: Seen) -> None:
    prompt = model.prompt()
    narrow = edge.Prompt([1, 2], embeddings=(edge.Embedding(0, np.zeros((2, 3), np.float32)),))
    with pytest.raises(PromptError, match=f"embeddings are 3 wide, expected {rows_of(prompt).shape[1]}"):
        llm.generate(narrow)
    if model.kind == "4v":
        with pytest.raises(PromptError, match="positions have 3 rows, and this model turns all of a token by one"):
            llm.generate(edge.Prompt([1, 2], positions=np.zeros((3, 2), np.int64)))


def test_only_our_own_graphs_take_more_than_ids(model: Seen) -> None:
    """Other tools open the rest, and give them what they always give."""
    extra = {REPLACED, REPLACEMENTS, ROTARY_ROWS}
    for path in model.bundle.glob("*.onnx"):
        inputs = {value.name for value in onnx.load(path, load_external_data=False).graph.input}
        ours = path.stem.count(".") == 1 and path.stem.startswith("model")
        assert bool(inputs & extra) == ours, path.name


def test_graphs_without_the_inputs_of_pictures_are_refused(model: Seen, tiny_bundle: Path) -> None:
    bundle, text = open_bundle(model.bundle), open_bundle(tiny_bundle)
    seeing = replace(text.manifest, vision=bundle.manifest.vision)
    with pytest.raises(BundleError, match="has no cos"):
        RECORDS["onnx"].open(replace(text, manifest=seeing), EXACT["onnx"])
    with pytest.raises(BundleError, match="takes pictures, and the manifest describes no tower"):
        RECORDS["onnx"].open(replace(bundle, manifest=replace(bundle.manifest, vision=None)), EXACT["onnx"])


@pytest.mark.parametrize("engine", ENGINES)
def test_rows_are_in_the_checkpoints_scale_wherever_the_residual_stream_is_in_another(
    engine: str, model: Seen, tmp_path: Path
) -> None:
    """Graphs for devices of float16 divide it by a power of two, which changes no bit of the logits."""
    source = make_plan(model.checkpoint, ExportSettings("fp32")).weights
    folded = FoldedWeights(source, replace(Folds.none(source.spec), residual=5))
    store = WeightStore(tmp_path / MODEL_BIN, {}, 0)
    for name in canonical_shapes(folded.spec):
        store.put(name, to_float32(folded.read(name)))
    write_ir(stateful_decoder(store, folded.spec), store, tmp_path / MODEL_XML)
    write_onnx(store, folded.spec, tmp_path, pictures=True)
    store.close()
    bundle = open_bundle(model.bundle)
    scaled = replace(bundle, path=tmp_path, manifest=replace(bundle.manifest, spec=folded.spec))
    expected, found = (
        read(RECORDS[engine].open(opened, EXACT[engine]), model.prompt(), [9], ANSWER) for opened in (bundle, scaled)
    )
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_replaced_tells_nothing(engine: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """With integers of 4 bits, rounded activations and a cache of 16 bits: kernels and graphs that are chosen then."""
    model = seen("glm4v", tmp_path_factory, "int4-asym-g64")
    opened = RECORDS[engine].open(open_bundle(model.bundle), EngineSettings(engine, kv_precision="f16"))
    prompt = model.prompt()
    [(start, rows)] = prompt.embeddings
    ids = [*prompt.ids[:start], *range(len(rows)), *prompt.ids[start + len(rows) :]]
    other = edge.Prompt(ids, positions=prompt.positions, embeddings=prompt.embeddings)
    expected, found = (read(opened, each, [9], ANSWER) for each in (prompt, other))
    assert np.array_equal(found, expected)
    bare = edge.Prompt(prompt.ids, positions=prompt.positions)
    assert not np.allclose(read(opened, bare, [9], ANSWER), expected, rtol=0.1)
