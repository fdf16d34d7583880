"""Which model is meant, what is predicted of it, and how predictions depend on what goes in."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.commands.recipes import GLM4_9B
from edge.export.architectures.registry import describe
from edge.export.assignment import assign
from edge.export.checkpoint.checkpoint import open_checkpoint
from edge.export.compress.recipes import recipes
from edge.export.weights.rotation import is_rotatable, rotated_spec
from edge.profiles.devices.table import device_profiles
from edge.profiles.fit.places import Place, place_of
from edge.profiles.fit.predict import Prediction, operations, predict, together
from edge.profiles.fit.report import USEFUL, recipes_of, report, to_json
from edge.profiles.fit.subject import MOST_LAYERS, Planned, Subject, find_subject
from edge.runtime.bundle import open_bundle
from edge.runtime.errors import BundleError, CheckpointError, ConfigError, EdgeError, RecipeError, SettingsError
from edge.runtime.lint import suits
from tests.fuzz.targets.checkpoint import make_gguf

HERE = Place("here", "this machine", "cpu", 40.0, measured=True, cores="2", room_bytes=8 * 10**9, memory_bytes=10**10)


def planned(recipe: str = "int4-asym-g128", layers: int = 40) -> Planned:
    found = Subject("glm", replace(GLM4_9B, num_layers=layers)).planned(recipes()[recipe])
    assert found is not None
    return found


# --- What is meant ----------------------------------------------------------------------------------------------------


def test_a_config_alone_is_enough(tiny_checkpoint: Path, tmp_path: Path) -> None:
    spec, _ = describe(open_checkpoint(tiny_checkpoint))
    shutil.copy(tiny_checkpoint / "config.json", tmp_path / "config.json")
    assert find_subject(str(tiny_checkpoint)).spec == spec
    assert find_subject(str(tmp_path / "config.json")).spec == spec
    assert find_subject(str(tmp_path)).spec == spec


def test_a_config_may_have_any_name(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_checkpoint / "config.json", tmp_path / "glm.json")
    assert find_subject(str(tmp_path / "glm.json")).spec.architecture == "glm"


def test_of_a_bundle_it_is_the_manifest(tiny_bundle: Path) -> None:
    manifest = open_bundle(tiny_bundle).manifest
    subject = find_subject(str(tiny_bundle))
    assert subject.spec == manifest.spec
    assert subject.made is not None
    assert subject.made.weight_bytes == sum(record.nbytes for record in manifest.tensors.values())
    assert subject.tokenizer_bytes == manifest.files["tokenizer.json"].size
    assert subject.engines == ("openvino", "onnx")


def test_of_a_gguf_it_is_the_header(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    make_gguf(path, "glm4")
    spec, _ = describe(open_checkpoint(path))
    assert find_subject(str(path)).spec == spec


@pytest.mark.parametrize("name", ["glm-4-9b-chat", "glm-4-9b-chat-hf", "glm-4-9b-chat-1m", "glm-edge-1.5b-chat"])
def test_published_configs(shared: Path, name: str) -> None:
    subject = find_subject(str(shared / "configs" / f"{name}.json"))
    found = report(subject, [HERE])
    assert len(found.places[0][1]) == len(USEFUL)
    assert len(found.devices) == len(device_profiles())
    if "9b" in name:
        assert subject.spec.num_parameters == pytest.approx(9.4e9, rel=0.01)


VALID = {
    "model_type": "glm",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "vocab_size": 256,
    "max_position_embeddings": 128,
}


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"model_type": "llava"}, CheckpointError, "architecture 'llava'"),
        ({"model_type": 7}, ConfigError, "model_type"),
        ({"model_type": None}, ConfigError, "model_type"),
        ({"hidden_size": None}, ConfigError, "hidden_size"),
        ({"hidden_size": -1}, ConfigError, "hidden_size"),
        ({"hidden_size": 1e300}, ConfigError, "hidden_size"),
        ({"hidden_size": 2**31}, ConfigError, "hidden_size"),
        ({"hidden_size": "64"}, ConfigError, "hidden_size"),
        ({"num_hidden_layers": MOST_LAYERS + 1}, ConfigError, "layers, expected at most"),
        ({"num_hidden_layers": 2**31 - 1}, ConfigError, "layers, expected at most"),
        ({"num_hidden_layers": 0}, ConfigError, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, ConfigError, "KV heads"),
        ({"rms_norm_eps": 2.0}, ConfigError, "eps"),
        ({"hidden_act": "gelu"}, ConfigError, "hidden_act"),
        ({"rope_scaling": {"type": "yarn"}}, ConfigError, "rope_scaling"),
    ],
)
def test_hostile_configs_are_refused(
    tmp_path: Path, change: dict[str, object], error: type[EdgeError], said: str
) -> None:
    values = {name: value for name, value in {**VALID, **change}.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(error, match=said):
        find_subject(str(tmp_path / "config.json"))


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"model_type": "glm"', "\0" * 100, "[" * 100_000])
def test_what_is_no_config_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError):
        find_subject(str(tmp_path / "config.json"))


def test_the_largest_config_is_predicted(tmp_path: Path) -> None:
    """Whatever numbers it has, an answer comes, and at once."""
    huge = 2**31 - 1
    change = {
        "hidden_size": huge,
        "vocab_size": huge,
        "max_position_embeddings": huge,
        "num_hidden_layers": MOST_LAYERS,
    }
    (tmp_path / "config.json").write_text(json.dumps({**VALID, **change, "intermediate_size": huge}))
    found = report(find_subject(str(tmp_path / "config.json")), [HERE], every_device=False, context_tokens=huge)
    assert all(one.longest_context == 0 and one.fits is False for one in found.places[0][1])


def test_what_is_not_there_is_refused_without_a_hub(tmp_path: Path) -> None:
    for name in ("nothing", str(tmp_path / "a/b/c"), "hf:x"):
        with pytest.raises((CheckpointError, BundleError)):
            find_subject(name)


def test_neither_torch_nor_nncf_nor_an_engine_is_imported(tiny_checkpoint: Path) -> None:
    code = (
        "import sys\nfrom edge import cli\n"
        f"assert cli.main(['fit', {str(tiny_checkpoint / 'config.json')!r}, '--json']) == 0\n"
        "heavy = {'torch', 'nncf', 'transformers', 'openvino', 'onnxruntime', 'huggingface_hub'}\n"
        "loaded = heavy & sys.modules.keys()\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)


# --- What recipes make of it ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recipes())
def test_weights_are_those_that_an_export_would_write(name: str) -> None:
    recipe, spec = recipes()[name], replace(GLM4_9B, num_layers=3)
    found = Subject("glm", spec).planned(recipe)
    if recipe.rotate:
        assert is_rotatable(spec)
        spec = rotated_spec(spec)
    assert found is not None
    assert dict(found.tensors) == {name: one.record() for name, one in assign(recipe, spec).items()}
    assert sum(one.nbytes for one in together(found.tensors).values()) == found.weight_bytes


def test_a_bundle_has_its_recipe(tiny_bundle: Path) -> None:
    subject = find_subject(str(tiny_bundle))
    assert [one.recipe for one in recipes_of(subject, None)] == ["int8-asym"]
    with pytest.raises(SettingsError, match="is a bundle"):
        recipes_of(subject, "int4-asym-g128")


def test_recipes_that_there_are_not() -> None:
    with pytest.raises(RecipeError, match="int4"):
        recipes_of(Subject("glm", GLM4_9B), "int4")
    with pytest.raises(RecipeError, match="cannot be rotated"):
        recipes_of(Subject("glm", replace(GLM4_9B, output_norms=True)), "int4-asym-g128-rot-gptq")


# --- Predictions ------------------------------------------------------------------------------------------------------

PLACES = st.sampled_from([HERE, *map(place_of, device_profiles().values())])


@given(PLACES, st.integers(1, 131071), st.sampled_from(["int4-asym-g128", "int4-sym-channel", "int8-asym", "fp16"]))
def test_longer_contexts_take_more_and_are_not_faster(place: Place, context: int, recipe: str) -> None:
    one, other = (predict(planned(recipe, 2), place, tokens) for tokens in (context, context + 1))
    assert other.memory.value >= one.memory.value
    assert other.decode.value <= one.decode.value
    assert other.longest_context == one.longest_context
    if other.fits:
        assert one.fits


@given(PLACES, st.floats(1.01, 100))
def test_more_bandwidth_is_faster_and_takes_no_more(place: Place, times: float) -> None:
    faster = replace(place, bandwidth_gbs=place.bandwidth_gbs * times)
    one, other = (predict(planned(layers=2), at, 4096) for at in (place, faster))
    assert other.decode.value > one.decode.value
    assert other.memory == one.memory
    assert other.decode.factor == one.decode.factor


@given(PLACES, st.sampled_from([2, 8, 20]))
def test_more_blocks_take_more_and_are_slower(place: Place, layers: int) -> None:
    one, other = (predict(planned(layers=count), place, 4096) for count in (layers, layers + 1))
    assert other.memory.value > one.memory.value
    assert other.decode.value < one.decode.value
    assert other.longest_context <= one.longest_context
    if one.ttft is not None:
        assert other.ttft is not None
        assert other.ttft.value > one.ttft.value


@given(PLACES, st.integers(10**8, 10**11))
def test_the_longest_context_is_the_longest(place: Place, room: int) -> None:
    there = replace(place, room_bytes=room)
    longest = predict(planned(layers=4), there, 1).longest_context
    if longest:
        assert predict(planned(layers=4), there, longest).runs
    if longest < GLM4_9B.max_position_embeddings:
        assert not predict(planned(layers=4), there, longest + 1).runs


def test_a_draft_model_takes_its_own_memory_beside_that_of_the_first() -> None:
    place, first, second = HERE, planned(layers=8), planned(layers=2)
    alone, draft, both = (
        predict(first, place, 4096).footprint,
        predict(second, place, 4096, tokenizer_bytes=0).footprint,
        predict(first, place, 4096, draft=second).footprint,
    )
    assert (both.weights, both.kv) == (alone.weights + draft.weights, alone.kv + draft.kv)
    assert both.peak > alone.peak
    assert predict(first, place, 4096, draft=second).decode == predict(first, place, 4096).decode


def test_operations_of_a_prompt_are_two_for_every_weight_and_token() -> None:
    spec = replace(GLM4_9B, num_layers=1)
    block = sum(one.parameters for one in assign(recipes()["fp16"], spec).values() if one.is_matrix and one.in_block)
    head = spec.vocab_size * spec.hidden_size
    assert operations(spec, 1) == pytest.approx(2 * block + 2 * head, rel=1e-4)
    assert operations(spec, 2) > 2 * block * 2


def test_a_card_holds_the_model_and_the_machine_the_rest() -> None:
    card, inside = (place_of(device_profiles()[key]) for key in ("arc-b580.gpu", "core-ultra-258v.gpu"))
    one, other = (predict(planned(), place, 8192) for place in (card, inside))
    assert one.footprint.base == 0
    assert other.footprint.base > 0
    assert one.decode.value / other.decode.value == pytest.approx(456 / 136.5)


def test_known_answers_of_the_table() -> None:
    """An N100 with 16 GB holds GLM-4-9B; a card with 6 GB holds 4 bits and not 8, with 12 GB both."""
    found = {place.key: dict(zip(USEFUL, ones, strict=True)) for place, ones in report(SUBJECT, []).devices}
    assert found["n100.cpu"][USEFUL[0]].runs
    assert [one.runs for one in found["arc-a380.gpu"].values()] == [True, True, False]
    assert found["arc-b580.gpu"]["int8-asym"].runs
    assert found["core-ultra-258v.gpu"]["int8-asym"].decode.value < found["core-ultra-258v.gpu"][USEFUL[0]].decode.value


SUBJECT = Subject("glm", GLM4_9B)


@pytest.mark.parametrize("kind", ["gpu", "npu"])
@pytest.mark.parametrize("recipe", ["int4-asym-g128", "int4-sym-channel", "int8-asym", "fp32"])
def test_what_a_device_refuses_does_not_run_there(kind: str, recipe: str) -> None:
    """The rules are those of `edge verify --device`."""
    place = next(place_of(row) for row in device_profiles().values() if row.kind == kind)
    found = predict(planned(recipe), place, 2048)
    rules = {rule.rule for rule in suits(GLM4_9B, planned(recipe).tensors, kind.upper(), recipe) if rule.refused}
    assert rules <= {rule.rule for rule in found.findings}
    assert not (rules and found.runs)
    assert not (rules and found.longest_context)


def test_an_npu_takes_prompts_of_its_platform_and_weights_that_suit_it() -> None:
    old, new = (place_of(device_profiles()[key]) for key in ("core-ultra-155h.npu", "core-ultra-258v.npu"))
    for place in (old, new):
        assert predict(planned("int4-asym-g128"), place, 1024).refused
        assert predict(planned("int4-sym-channel"), place, 1024).runs
    assert predict(planned("int4-sym-channel"), old, 8192).refused
    assert predict(planned("int4-sym-channel"), new, 8192).runs
    assert predict(planned("int4-sym-channel"), old, 8192).longest_context == 2000


def test_contexts_beyond_the_model_are_refused() -> None:
    for context in (0, GLM4_9B.max_position_embeddings + 1):
        with pytest.raises(SettingsError, match="the model's limit"):
            report(SUBJECT, [HERE], context_tokens=context)


def test_every_figure_has_its_error_and_where_that_is_from() -> None:
    found = report(SUBJECT, [HERE])
    figures = [
        figure
        for _, ones in (*found.places, *found.devices)
        for one in ones
        for figure in (one.memory, one.decode, one.ttft, one.load)
        if figure is not None
    ]
    assert len(figures) > 200
    assert all(figure.factor > 1 and figure.origin and figure.value > 0 for figure in figures)
    assert all(one.decode.about for one in predictions("cpu") if not one.place.measured)
    assert all(one.decode.about and one.memory.about for one in predictions("npu"))
    assert json.loads(json.dumps(to_json(found)))["model"] == "glm"


def predictions(kind: str) -> list[Prediction]:
    return [one for place, ones in report(SUBJECT, []).devices if place.kind == kind for one in ones]
