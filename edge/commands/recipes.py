"""List the recipes of `edge export` with their size, loss, time and needs.

First the three to choose from, then, with --all, the whole list. Sizes are those of GLM-4-9B, or of the checkpoint that
--shapes names, of which nothing is downloaded. Loss is measured on the small model of `edge demo`; measure your own
checkpoint with `edge profile run`.

examples:
  edge recipes
  edge recipes --shapes glm-4-9b-chat-hf
  edge recipes --all
  edge recipes --json
"""

from __future__ import annotations

import argparse
import math
import textwrap
from dataclasses import replace
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
ALSO_MEASURED = ("results", "recipes.json")  # by the same text: the accuracy of more recipes
DEVICES = ("CPU", "GPU", "NPU")
WIDTH = 100  # of a terminal
UNIT = "int4-asym-g128"  # whose time is 1: the default does the same work, and scales channels in passing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--all", action="store_true", help="list every recipe, with its KLD on every engine")
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
    found = {recipe.name: _facts(recipe, spec, profile) for recipe in recipes().values()}
    chosen = tiers(spec, profile)
    if args.json:
        origin = _origin(profile)
        parameters = spec.num_parameters
        print_json(
            {
                "model": model,
                "parameters": parameters,
                "measured": origin,
                "tiers": chosen,
                "recipes": [*found.values()],
            }
        )
        return 0
    if args.all:
        _print_all(found, chosen, profile)
    else:
        _print_tiers(found, chosen)
    _print_origin(model, spec, profile, every=args.all)
    return 0


def weight_bytes(recipe: Recipe, spec: ModelSpec) -> int | None:
    """Bytes of all weights of a model, scales and zero points included; None where the model cannot have the recipe."""
    assignments = _assigned(recipe, spec)
    return None if assignments is None else assignments.nbytes


def tiers(spec: ModelSpec, profile: Profile) -> dict[str, str]:
    """Which recipe is the default, which the most accurate of that size, and which the smallest, for a model."""
    from edge.export.compress.recipes import DEFAULT, recipes

    sizes = {name: size for name, recipe in recipes().items() if (size := weight_bytes(recipe, spec)) is not None}

    def loss(name: str) -> float:
        return _loss(recipes()[name], profile)[0] or math.inf

    best = min((name for name in sizes if sizes[name] <= sizes[DEFAULT]), key=loss)
    smallest = min(sizes, key=lambda name: (sizes[name], loss(name)))
    return {"default": DEFAULT, "best": best, "smallest": smallest}


def _assigned(recipe: Recipe, spec: ModelSpec) -> Assignments | None:
    """What every weight gets; None where the model cannot have the recipe."""
    from edge.export.assignment import assign
    from edge.export.weights.rotation import is_rotatable, rotated_spec

    if not recipe.rotate:
        return assign(recipe, spec)
    return assign(recipe, rotated_spec(spec)) if is_rotatable(spec) else None


def _suited(assignments: Assignments | None, spec: ModelSpec) -> list[str]:
    """The kinds of device that a model in this form suits, by the rules of `edge verify --device`."""
    from edge.runtime.lint import suits

    if assignments is None:
        return []
    tensors = {name: assigned.record() for name, assigned in assignments.items()}
    return [device for device in DEVICES if not suits(spec, tensors, device)]


def measured() -> Profile:
    """What `benchmarks/results.py` measured with the demo checkpoint, and the accuracy of more recipes, as shipped."""
    from importlib.resources import files

    from edge.profiles.record import Profile

    main, more = (
        Profile.from_json(files("edge.profiles").joinpath(*place).read_text(encoding="utf-8"))
        for place in (MEASURED, ALSO_MEASURED)
    )
    known = {row.name for row in main.rows}
    return replace(main, rows=(*main.rows, *(row for row in more.rows if row.name not in known)))


def _spec(source: str) -> ModelSpec:
    from edge.export.architectures.registry import describe
    from edge.export.checkpoint.checkpoint import open_checkpoint

    return describe(open_checkpoint(source, download=False))[0]


def _facts(recipe: Recipe, spec: ModelSpec, profile: Profile) -> dict[str, Any]:  # Any: JSON
    assignments = _assigned(recipe, spec)
    rows = [row for row in _usual_rows(profile) if row.recipe == recipe.name]
    loss, loss_of = _loss(recipe, profile)
    return {
        "name": recipe.name,
        "description": recipe.description,
        "weight_bytes": None if assignments is None else assignments.nbytes,
        "bits_per_weight": None if assignments is None else assignments.bits_per_weight,
        "needs_calibration_text": recipe.calibrated,
        "suits": _suited(assignments, spec),
        "relative_loss": None if loss is None else round(loss, 3),
        "relative_loss_of": loss_of,  # another recipe where this one was not measured
        "relative_time": _relative_time(recipe, profile),
        "measured": {
            row.engine: {"kld": row.accuracy.kld, "kld_stderr": row.accuracy.kld_stderr, "kv_cache": row.kv_cache}
            for row in rows
        },
    }


def _usual_rows(profile: Profile) -> list[Row]:
    """Rows measured with the engines' own settings."""
    from edge.profiles.record import DEFAULT_SETTING

    return [row for row in profile.rows if row.setting == DEFAULT_SETTING]


def _kld(profile: Profile, recipe: str) -> float | None:
    """The mean KLD over engines; None for what was not measured."""
    found = [row.accuracy.kld for row in _usual_rows(profile) if row.recipe == recipe]
    return sum(found) / len(found) if found else None


def _loss(recipe: Recipe, profile: Profile) -> tuple[float | None, str | None]:
    """The KLD over that of the default, and of which recipe it is: its own, or one with groups of another size.

    The demo model has no groups of 128 in most of its layers, so that two such recipes differ little.
    """
    from edge.export.compress.recipes import DEFAULT, find_recipe

    def kind(other: Recipe) -> tuple[object, ...]:
        linear = other.linear
        shape = linear.bits, linear.symmetric, linear.group_size > 0
        return *shape, other.method, other.rotate, other.awq, other.rank

    names = dict.fromkeys([recipe.name, *(row.recipe for row in _usual_rows(profile))])
    for name in names:
        own, usual = _kld(profile, name), _kld(profile, DEFAULT)
        if own is not None and usual is not None and kind(find_recipe(name)) == kind(recipe):
            return own / usual, name
    return None, None


def _relative_time(recipe: Recipe, profile: Profile) -> float | None:
    """How long an export of the demo checkpoint takes, over that of the default; None for what was not measured.

    Time depends on what is done and not on the size of groups, so a recipe may have that of another one.
    """
    from edge.export.compress.recipes import find_recipe

    def work(other: Recipe) -> tuple[object, ...]:
        return other.linear.bits, other.method, other.rotate, other.awq == "inputs", other.rank > 0

    timed = {row.recipe: row.export_s for row in _usual_rows(profile) if row.export_s is not None}
    alike = [name for name in timed if work(find_recipe(name)) == work(recipe)]
    name = recipe.name if recipe.name in timed else next(iter(alike), None)
    return None if name is None or UNIT not in timed else round(timed[name] / timed[UNIT], 1)


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


def _print_tiers(found: dict[str, dict[str, Any]], chosen: dict[str, str]) -> None:
    from edge.commands.console import print_table

    rows = [
        [
            tier,
            name,
            _size(found[name]),
            _lost(found[name]),
            _time(found[name]),
            _text(found[name]),
        ]
        for tier, name in chosen.items()
    ]
    print_table(["", "recipe", "size", "loss", "time", "needs text"], rows)
    npu = [name for name, facts in found.items() if "NPU" in facts["suits"]]
    told = f"for an NPU: {', '.join(npu) or 'none'}"
    print("\n" + textwrap.fill(told, WIDTH, subsequent_indent="  ", break_on_hyphens=False))
    print(f"`edge recipes --all` lists all {len(found)}; `edge export SOURCE NAME --recipe RECIPE` takes one")


def _print_all(found: dict[str, dict[str, Any]], chosen: dict[str, str], profile: Profile) -> None:
    from edge.commands.console import print_table

    engines = list(dict.fromkeys(row.engine for row in _usual_rows(profile)))

    def kld(facts: dict[str, Any], engine: str) -> str:
        figures = facts["measured"].get(engine)
        return "not measured" if figures is None else f"{figures['kld']:.4f} ± {figures['kld_stderr']:.4f}"

    of_tier = {name: tier for tier, name in reversed(chosen.items())}
    rows = [
        [
            facts["name"],
            "-" if facts["weight_bytes"] is None else f"{facts['bits_per_weight']:.2f}",
            _size(facts),
            _time(facts),
            "yes" if facts["needs_calibration_text"] else "no",
            "yes" if "NPU" in facts["suits"] else "no",
            *(kld(facts, engine) for engine in engines),
        ]
        for facts in sorted(found.values(), key=lambda facts: facts["name"] not in of_tier)
    ]
    print_table(["recipe", "bits", "size", "time", "text", "NPU", *(f"KLD, {engine}" for engine in engines)], rows)
    print("\n" + "\n".join(f"{tier}: {name}" for tier, name in chosen.items()))
    print("NPU: by the rules of `edge verify --device NPU` (docs/lint.md)")
    print("what each does: docs/recipes.md, and `edge recipes --json`")


def _size(facts: dict[str, Any]) -> str:
    from edge.commands.console import human_bytes

    return "cannot have" if facts["weight_bytes"] is None else human_bytes(facts["weight_bytes"])


def _lost(facts: dict[str, Any]) -> str:
    about = "" if facts["relative_loss_of"] in (None, facts["name"]) else "~"
    return f"{about}{_relative(facts['relative_loss'], 2)}"


def _relative(value: float | None, digits: int) -> str:
    return "unknown" if value is None else f"{value:.{digits}f}"


def _time(facts: dict[str, Any]) -> str:
    return _relative(facts["relative_time"], 1)


def _text(facts: dict[str, Any]) -> str:
    return "yes, hours for 9B" if facts["needs_calibration_text"] else "no"


def _print_origin(model: str, spec: ModelSpec, profile: Profile, *, every: bool) -> None:
    origin, packages = _origin(profile), {"openvino": "openvino", "onnx": "onnxruntime"}
    engine_versions = (f"{package} {profile.versions[package]}" for package in packages.values())
    what = (
        "KLD: nats/token from the float model ± standard error"
        if every
        else "loss: KLD from the float model, the default is 1 (~: with groups of another size)"
    )
    print(
        f"\nsize: the weights of {model}, {spec.num_parameters:,} parameters\n"
        f"time: of an export of the demo model, that of the default is 1\n"
        f"{what}\n"
        f"  of {origin['source']} over {origin['tokens']:,} tokens\n"
        f"  of {origin['text']},\n"
        f"  with edgeglm {profile.versions['edgeglm']}, {', '.join(engine_versions)} on {profile.machine['processor']}"
    )
