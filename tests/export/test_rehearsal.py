"""The small model that tells how long an export takes: its form, and that every recipe can be tried with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edge.export.assignment import assign
from edge.export.compress.recipes import Recipe, find_recipe, recipes
from edge.export.forecast import rehearsal
from edge.export.forecast.rehearsal import FIXED_S, Rates, _small, _work, expected_seconds
from edge.export.plan import make_plan
from edge.export.settings import ExportSettings
from edge.export.weights.names import stages_of
from edge.runtime.spec import ModelSpec

NINE_B = ModelSpec(
    architecture="glm", num_layers=40, hidden_size=4096, intermediate_size=13696, num_heads=32, num_kv_heads=2,
    head_dim=128, rotary_dim=64, rope_theta=1e4, rms_norm_eps=1e-5, vocab_size=151552, max_position_embeddings=131072,
    qkv_bias=True, tied_embeddings=False, output_norms=False,
)  # fmt: skip


def ways() -> list[str]:
    """A recipe for every way of compressing."""

    def way(recipe: Recipe) -> tuple[object, ...]:
        return recipe.linear.bits, recipe.linear.symmetric, recipe.method, recipe.awq, recipe.rank, recipe.rotate

    return list({way(recipe): name for name, recipe in recipes().items()}.values())


@pytest.mark.parametrize("recipe", ways())
def test_every_way_of_compressing_is_timed(
    recipe: str, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And neither the checkpoint's folder nor the current one has a new file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rehearsal, "WINDOWS", 2)
    before = sorted(tiny_checkpoint.rglob("*"))
    seconds, measuring_s = expected_seconds(make_plan(tiny_checkpoint, ExportSettings(recipe)))
    assert seconds > FIXED_S
    assert measuring_s == 0
    assert sorted(tiny_checkpoint.rglob("*")) == before
    assert not list(tmp_path.iterdir())


def test_time_grows_with_blocks_and_a_budget_is_measured(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With rates that are given, so that nothing depends on how busy the machine is."""
    plan = make_plan(tiny_checkpoint, ExportSettings("int8-asym"))
    small = replace(plan.spec, num_layers=1)
    monkeypatch.setattr(rehearsal, "_rehearse", lambda _plan: Rates(0.0, 1.5, 0.5, 0.0, small))
    assert expected_seconds(plan) == (FIXED_S + 3 * 2.0, 0.0)
    budget = make_plan(tiny_checkpoint, ExportSettings(max_kld=0.1))
    seconds, measuring_s = expected_seconds(budget)
    assert seconds > FIXED_S + 3 * 2.0
    assert 0 < measuring_s < 4 * seconds


@pytest.mark.parametrize("widest", [256, 1024])
def test_the_small_model_has_the_form_of_the_large_one(widest: int) -> None:
    small = _small(NINE_B, widest)
    assert small.hidden_size == widest
    assert small.num_heads % small.num_kv_heads == 0
    assert small.num_heads >= small.num_kv_heads >= 1
    assert small.intermediate_size % 128 == 0
    assert small.num_parameters < NINE_B.num_parameters / 100
    one_layer = {name for name in assign(find_recipe("int8-asym"), NINE_B) if not name.startswith("layers.")}
    one_layer |= set(assign(find_recipe("int8-asym"), NINE_B).of_stage(stages_of(NINE_B)[1]))
    assert set(assign(find_recipe("int8-asym"), small)) == one_layer
    assert _small(small, widest) == small


def test_work_is_that_of_the_recipe() -> None:
    """More for what is fitted than for what is rounded, and for two models than for one."""

    def work(name: str) -> float:
        recipe = find_recipe(name)
        return _work(assign(recipe, NINE_B).of_stage(stages_of(NINE_B)[1]), NINE_B, recipe)

    assert work("int8-asym") == work("int4-asym-g128")
    assert work("int4-asym-g128") < work("int4-asym-g128-awq") < work("int4-asym-g128-gptq")
    assert work("int4-asym-g128-gptq") < work("int4-asym-g128-awq-gptq")
