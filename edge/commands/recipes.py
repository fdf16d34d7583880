"""List the recipes of `edge export` with their size, needs and measured loss.

Sizes are those of GLM-4-9B, or of the checkpoint that --shapes names. KLD is the distance from the float model,
measured on the small model of `edge demo`. Measure your own checkpoint with `edge profile run`.

examples:
  edge recipes
  edge recipes --shapes glm-4-9b-chat-hf
  edge recipes --json
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from edge.commands import options
from edge.commands.help import told
from edge.runtime.spec import ModelSpec

if TYPE_CHECKING:
    from edge.export.assignment import Assignments
    from edge.export.compress.recipes import Recipe
    from edge.profiles.record import Profile, Row

GLM4_9B = ModelSpec(
    architecture="glm",
    num_layers=40,
    hidden_size=4096,
    intermediate_size=13696,
    num_heads=32,
    num_kv_heads=2,
    head_dim=128,
    rotary_dim=64,
    rope_theta=10000.0,
    rms_norm_eps=1.5625e-07,
    vocab_size=151552,
    max_position_embeddings=131072,
    qkv_bias=True,
    tied_embeddings=False,
    output_norms=False,
)
MODEL = "GLM-4-9B"
MEASURED = ("results", "profile.json")  # in edge.profiles: the default profile of the demo checkpoint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shapes",
        metavar="PATH",
        help=told(
            "show the sizes for this checkpoint: a folder, a .gguf file, or a model downloaded before", f"{MODEL}'s"
        ),
    )
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    from edge.commands.console import print_json
    from edge.export.compress.recipes import recipes

    spec, model = (GLM4_9B, MODEL) if args.shapes is None else (_spec(args.shapes), args.shapes)
    profile = measured()
    found = [_facts(recipe, spec, profile) for recipe in recipes().values()]
    if args.json:
        print_json({"model": model, "parameters": spec.num_parameters, "measured": _origin(profile), "recipes": found})
    else:
        _print(found, model, spec, profile)
    return 0


def weight_bytes(recipe: Recipe, spec: ModelSpec) -> int | None:
    """Bytes of all weights of a model, scales and zero points included; None where the model cannot have the recipe."""
    assignments = _assigned(recipe, spec)
    return None if assignments is None else assignments.nbytes


def _assigned(recipe: Recipe, spec: ModelSpec) -> Assignments | None:
    """What every weight gets; None where the model cannot have the recipe."""
    from edge.export.assignment import assign
    from edge.export.weights.rotation import is_rotatable, rotated_spec

    if not recipe.rotate:
        return assign(recipe, spec)
    return assign(recipe, rotated_spec(spec)) if is_rotatable(spec) else None


def measured() -> Profile:
    """What `benchmarks/results.py` measured with the demo checkpoint, as it is shipped."""
    from importlib.resources import files

    from edge.profiles.record import Profile

    return Profile.from_json(files("edge.profiles").joinpath(*MEASURED).read_text(encoding="utf-8"))


def _spec(source: str) -> ModelSpec:
    from edge.export.architectures.registry import describe
    from edge.export.checkpoint.checkpoint import open_checkpoint

    return describe(open_checkpoint(source, download=False))[0]


def _facts(recipe: Recipe, spec: ModelSpec, profile: Profile) -> dict[str, Any]:  # Any: JSON
    assignments = _assigned(recipe, spec)
    rows = [row for row in _usual_rows(profile) if row.recipe == recipe.name]
    return {
        "name": recipe.name,
        "description": recipe.description,
        "weight_bytes": None if assignments is None else assignments.nbytes,
        "bits_per_weight": None if assignments is None else assignments.bits_per_weight,
        "needs_calibration_text": recipe.calibrated,
        "measured": {
            row.engine: {"kld": row.accuracy.kld, "kld_stderr": row.accuracy.kld_stderr, "kv_cache": row.kv_cache}
            for row in rows
        },
    }


def _usual_rows(profile: Profile) -> list[Row]:
    """Rows measured with the engines' own settings."""
    from edge.profiles.record import DEFAULT_SETTING

    return [row for row in profile.rows if row.setting == DEFAULT_SETTING]


def _origin(profile: Profile) -> dict[str, Any]:  # Any: JSON
    """What the measured figures were measured on and with."""
    return {
        "source": profile.source,
        "text": profile.text,
        "tokens": max(row.accuracy.tokens for row in profile.rows),
        "window_tokens": profile.window_tokens,
        "machine": profile.machine,
        "versions": dict(profile.versions),
    }


def _print(found: list[dict[str, Any]], model: str, spec: ModelSpec, profile: Profile) -> None:
    from edge.commands.console import human_bytes, print_table

    engines = list(dict.fromkeys(row.engine for row in _usual_rows(profile)))

    def kld(facts: dict[str, Any], engine: str) -> str:
        figures = facts["measured"].get(engine)
        return "not measured" if figures is None else f"{figures['kld']:.4f} ± {figures['kld_stderr']:.4f}"

    print_table(
        ["recipe", "bits/weight", "size", "needs text", *(f"KLD, {engine}" for engine in engines), "what it is"],
        (
            [
                facts["name"],
                *(
                    ["-", "not for this model"]
                    if facts["weight_bytes"] is None
                    else [f"{facts['bits_per_weight']:.2f}", human_bytes(facts["weight_bytes"])]
                ),
                "yes" if facts["needs_calibration_text"] else "no",
                *(kld(facts, engine) for engine in engines),
                facts["description"],
            ]
            for facts in found
        ),
    )
    origin, packages = _origin(profile), {"openvino": "openvino", "onnx": "onnxruntime"}
    engine_versions = (f"{package} {profile.versions[package]}" for package in packages.values())
    print(f"\nbits/weight and size: the weights of {model}, {spec.num_parameters:,} parameters")
    print(
        f"KLD: nats/token from the float model ± standard error, of {origin['source']}\n"
        f"  over {origin['tokens']:,} tokens of {origin['text']},\n"
        f"  with edgeglm {profile.versions['edgeglm']}, {', '.join(engine_versions)} on {profile.machine['processor']}"
    )
