"""`edge recipes`: sizes of real shapes, and the measured figures, which are those of profiles/results."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import members
import pytest

from edge.cli import main
from edge.commands.recipes import GLM4_9B, measured, tiers, weight_bytes
from edge.export.architectures.registry import describe
from edge.export.checkpoint.checkpoint import open_checkpoint
from edge.export.compress.recipes import DEFAULT, find_recipe, recipes
from edge.export.pipeline import export
from edge.export.weights.names import canonical_shapes
from edge.profiles.record import DEFAULT_SETTING, read_profile
from edge.profiles.settings import DEFAULT_RECIPES

RESULTS = Path(__file__).parents[2] / "profiles" / "results"


def listing(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:  # JSON
    assert main(["recipes", "--json", *options]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_every_recipe_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    found = {recipe["name"]: recipe for recipe in listing(capsys)["recipes"]}
    assert list(found) == list(recipes())
    for name, recipe in recipes().items():
        assert found[name]["description"] == recipe.description
        assert found[name]["needs_calibration_text"] == recipe.calibrated
    assert main(["recipes", "--all"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n{name} " in shown for name in recipes())
    assert "edgeglm 0.1.0, openvino 2026" in shown
    assert "SmolLM2-135M-Instruct" in shown
    assert "pydoc_data.topics" in shown


def test_measured_figures_are_those_of_the_results(capsys: pytest.CaptureFixture[str]) -> None:
    profile = measured()
    first, more = read_profile(RESULTS), read_profile(RESULTS / "recipes.json")
    assert profile == replace(first, rows=profile.rows)
    assert profile.rows[: len(first.rows)] == first.rows
    assert all(row in first.rows or row in more.rows for row in profile.rows)
    assert first.windows_sha256 == more.windows_sha256, "another text"
    assert first.source == more.source
    assert all(row.export_s is None for row in more.rows), "times that were not measured on a quiet machine"
    found = listing(capsys)
    figures = {
        (recipe["name"], engine): (cell["kld"], cell["kld_stderr"])
        for recipe in found["recipes"]
        for engine, cell in recipe["measured"].items()
    }
    assert figures == {
        (row.recipe, row.engine): (row.accuracy.kld, row.accuracy.kld_stderr)
        for row in profile.rows
        if row.setting == DEFAULT_SETTING
    }
    assert {recipe for recipe, _ in figures} >= {*DEFAULT_RECIPES, DEFAULT}
    assert main(["recipes", "--all"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    for row in profile.rows:
        assert f"{row.accuracy.kld:.4f} ± {row.accuracy.kld_stderr:.4f}" in lines[row.recipe]
    assert lines["fp16"].count("not measured") == 2


def test_shapes_of_the_default_model_are_those_that_are_published() -> None:
    config = members.GLM_9B
    assert GLM4_9B.num_parameters == 9_399_951_360
    for field, key in (
        ("num_layers", "num_hidden_layers"),
        ("hidden_size", "hidden_size"),
        ("intermediate_size", "intermediate_size"),
        ("num_heads", "num_attention_heads"),
        ("num_kv_heads", "num_key_value_heads"),
        ("head_dim", "head_dim"),
        ("vocab_size", "vocab_size"),
        ("qkv_bias", "attention_bias"),
        ("tied_embeddings", "tie_word_embeddings"),
    ):
        assert getattr(GLM4_9B, field) == config[key], field
    # By hand: 4 bits, and a scale and a zero point for 128 of them; 8 bits and one of each a row for the two others.
    h, f, qkv, vocabulary = 4096, 13696, 4096 + 2 * 256, 151552
    linear = 40 * (h * qkv + h * h + 3 * h * f)
    floats = 40 * (qkv + 2 * h) + h
    expected = linear // 2 + linear // 128 * 2 + linear // 256 + 2 * vocabulary * (h + 2 + 1) + 4 * floats
    assert weight_bytes(find_recipe(DEFAULT), GLM4_9B) == expected


@pytest.mark.parametrize("recipe", ["int4-asym-g128", "int8-sym"])
def test_sizes_of_a_checkpoint_are_those_of_its_bundle(
    recipe: str, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = export(tiny_checkpoint, tmp_path / "bundle", recipe)
    found = listing(capsys, "--shapes", str(tiny_checkpoint))
    (facts,) = [facts for facts in found["recipes"] if facts["name"] == recipe]
    assert (facts["weight_bytes"], facts["bits_per_weight"]) == (manifest.weight_bytes, manifest.bits_per_weight)
    assert found["parameters"] == manifest.spec.num_parameters


def test_a_rotated_model_has_a_head_of_its_own_and_some_cannot_be_rotated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tied = replace(GLM4_9B, tied_embeddings=True)
    plain, rotated = find_recipe("int4-asym-g64-gptq"), find_recipe("int4-asym-g64-rot-gptq")
    sizes = [weight_bytes(recipe, tied) for recipe in (plain, rotated)]
    assert sizes[1] == weight_bytes(rotated, GLM4_9B) == weight_bytes(plain, GLM4_9B)
    assert sizes[0] is not None
    assert sizes[1] is not None
    head = canonical_shapes(GLM4_9B)["lm_head.weight"]
    assert sizes[1] - sizes[0] == rotated.bytes_of("lm_head.weight", head)
    normed = replace(GLM4_9B, output_norms=True)
    assert weight_bytes(rotated, normed) is None
    monkeypatch.setattr("edge.commands.recipes.GLM4_9B", normed)
    assert main(["recipes", "--all"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert "cannot have" in lines["int4-asym-g64-rot-gptq"]
    assert "cannot have" not in lines["int4-asym-g64-gptq"]


def test_what_is_no_checkpoint_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--shapes", str(tmp_path / "nothing")]) == 1
    found = capsys.readouterr()
    assert found.out == ""
    assert "no such path" in found.err
    assert found.err.count("\n") == 1


def test_sizes_said_of_the_demo_checkpoint_are_those_that_were_measured(demo_gguf: Path) -> None:
    """Its head is tied, and a rotation unties it."""
    spec = describe(open_checkpoint(demo_gguf))[0]
    assert spec.tied_embeddings
    sizes = {row.recipe: row.weight_bytes for row in measured().rows}
    assert {name: weight_bytes(find_recipe(name), spec) for name in sizes} == sizes
    assert sizes["int4-asym-g64-rot-gptq"] == 114_289_920


def test_inspect_says_the_same_sizes(demo_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And none for recipes that a model cannot have."""
    from tests import tiny

    tiny.make(next(case for case in tiny.TINIES if case.name == "0414"), tmp_path / "0414")
    for source in (demo_gguf, tmp_path / "0414"):
        recipes_of = {
            facts["name"]: facts["weight_bytes"] for facts in listing(capsys, "--shapes", str(source))["recipes"]
        }
        assert main(["inspect", str(source), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)["weight_bytes"]
        assert found == {name: size for name, size in recipes_of.items() if size is not None}
        assert ("int4-asym-g128-rot-gptq" in found) == (source == demo_gguf)


def test_three_to_choose_from(capsys: pytest.CaptureFixture[str]) -> None:
    """The default; nothing of its size is known to lose less; nothing is smaller."""
    profile, told = measured(), listing(capsys)["recipes"]
    demo = replace(GLM4_9B, tied_embeddings=True)
    for spec in (GLM4_9B, demo, replace(GLM4_9B, output_norms=True)):
        chosen = tiers(spec, profile)
        assert list(chosen) == ["default", "best", "smallest"]
        assert chosen["default"] == DEFAULT
        sizes = {name: size for name, recipe in recipes().items() if (size := weight_bytes(recipe, spec)) is not None}
        of_size = {name for name in sizes if sizes[name] <= sizes[DEFAULT]}
        known = {facts["name"]: facts["relative_loss"] for facts in told if facts["relative_loss"] is not None}
        assert known[chosen["best"]] == min(known[name] for name in of_size & known.keys()) < 1
        assert sizes[chosen["smallest"]] == min(sizes.values())
    assert main(["recipes"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()[:4]
    assert head.split() == ["recipe", "size", "loss", "time", "needs", "text"]
    assert [row.split()[:2] for row in rows] == [[tier, name] for tier, name in tiers(GLM4_9B, profile).items()]
    assert rows[0].split()[4:6] == ["1.00", "1.0"]
    facts = {facts["name"]: facts for facts in told}
    assert facts["int4-asym-g64-rot-gptq"]["relative_loss_of"] == "int4-asym-g64-rot-gptq"
    alike = facts["int4-sym-g128-rot-gptq"], facts["int4-sym-channel-rot-gptq"]
    measured_rows = {row.recipe for row in profile.rows}
    assert all(f["relative_loss_of"] in measured_rows | {None} for f in facts.values())
    assert all(f["relative_loss_of"] != "int4-asym-g64-rot-gptq" for f in alike), "symmetric and not"


def test_recipes_for_npus_are_those_that_the_rules_allow(
    tiny_checkpoint: Path, tiny_bundle: Path, int4_bundle: Path, npu_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For the shapes that are asked for, and as `edge verify` judges a bundle of them."""
    told = {facts["name"]: facts["suits"] for facts in listing(capsys)["recipes"]}
    suited = [name for name, devices in told.items() if "NPU" in devices]
    assert suited == [name for name in recipes() if re.fullmatch(r"int4-sym-(g128|channel)(-(rot-gptq|awq.*))?", name)]
    assert {"int4-sym-g128", "int4-sym-channel"} < set(suited)
    assert all({"CPU", "GPU"} <= set(devices) for devices in told.values())
    assert main(["recipes"]) == 0
    assert f"for an NPU: {', '.join(suited)} `edge" in " ".join(capsys.readouterr().out.split())
    assert main(["recipes", "--all"]) == 0
    head, *rows = (line.split() for line in capsys.readouterr().out.splitlines()[: len(told) + 1])
    assert head[5] == "NPU"
    assert {row[0] for row in rows if row[6] == "yes"} == set(suited), "size is two words"
    told = {facts["name"]: facts["suits"] for facts in listing(capsys, "--shapes", str(tiny_checkpoint))["recipes"]}
    for recipe, bundle in (
        ("int8-asym", tiny_bundle),
        ("int4-asym-g64", int4_bundle),
        ("int4-sym-channel", npu_bundle),
    ):
        code = main(["verify", str(bundle), "--device", "NPU"])
        assert (code == 0) == ("NPU" in told[recipe]), capsys.readouterr().out


@pytest.mark.parametrize("options", [[], ["--all"]])
def test_a_terminal_of_a_hundred_columns_is_wide_enough(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", *options]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 100


def test_nothing_is_downloaded_for_a_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A model that is not here is an error at once; a connection would fail the test (tests/conftest.py)."""
    for command in (["recipes", "--shapes"], ["inspect"], ["export", "--dry-run"]):
        out = [str(tmp_path / "out")] if command[0] == "export" else []
        assert main([*command, "hf:no-org/no-model", *out]) == 1
        assert "no-org/no-model" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
