"""Show in a few lines what a bundle is and how it will be run.

`edge inspect` shows all of its weights and files.

examples:
  edge show glm-4-9b-chat-int4
  edge show ./glm4 --json
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from edge.commands import options

if TYPE_CHECKING:
    from edge.runtime.bundle import Bundle
    from edge.runtime.engines.registry import EngineRecord
    from edge.runtime.manifest import Manifest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_bundle(parser, may_be_missing=True)
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    from edge.commands.console import human_bytes, print_json
    from edge.defaults.fill import file_of_bundle
    from edge.models.hub_cache import find_cached
    from edge.models.listing import look_at
    from edge.models.recent import recent
    from edge.runtime.bundle import MANIFEST, Bundle, open_bundle
    from edge.runtime.files import real_path

    path = Path(args.bundle)
    if not (path / MANIFEST).is_file():
        open_bundle(path)  # which says what is wrong; what is there would be counted first, however much it is
    days = {one.path: one.day for one in recent()}
    found = look_at(path, days.get(real_path(path), ""))
    if found.manifest is None:
        open_bundle(path)  # which says what is wrong
    manifest = found.manifest
    assert manifest is not None, "a bundle that can be opened has a manifest that can be read"
    bundle = Bundle(path, manifest)
    own = file_of_bundle(path)
    template, tools, sampling = _of_texts(bundle)
    cached = find_cached(manifest.source)
    engines, defaults = _engines(bundle), {f"{table} {key}".strip(): value for table, key, value in own.rows()}
    facts: dict[str, object] = {
        "name": found.name,
        "path": str(real_path(path)),
        "source": manifest.source,
        "adapter": manifest.adapter or None,
        "recipe": manifest.recipe,
        "bits_per_weight": round(manifest.bits_per_weight, 3),
        "bytes": found.bytes,
        "parameters": manifest.spec.num_parameters,
        "context": manifest.spec.max_position_embeddings,
        "pictures": manifest.vision is not None,
        "chat_template": template,
        "tools": tools,
        "sampling": sampling,
        "engines": engines,
        "defaults": defaults,
        "edgeglm": manifest.versions.get("edgeglm"),
        "used": found.used or None,
        "problem": found.problem or None,
    }
    if args.json:
        print_json(facts)
        return 0
    shown = {
        **facts,
        "bits_per_weight": f"{manifest.bits_per_weight:.2f}",
        "bytes": human_bytes(found.bytes),
        "parameters": f"{manifest.spec.num_parameters:,}",
        "context": f"{manifest.spec.max_position_embeddings:,} tokens",
        "pictures": _pictures(manifest),
        "chat_template": "yes" if template else "no (a base model?)",
        "sampling": ", ".join(f"{name} {value:g}" for name, value in sampling.items()) or "greedy",
        "engines": ", ".join(engines),
        "defaults": ", ".join(f"{name} = {value!r}" for name, value in defaults.items()) or "none in edge.toml",
    }
    labels = {
        "bits_per_weight": "bits a weight",
        "bytes": "size",
        "chat_template": "template",
        "edgeglm": "made with edgeglm",
    }
    for name, value in shown.items():
        if value is not None:
            print(f"{labels.get(name, name):<17} {value}")
    if cached is not None:
        print(cached.told(human_bytes(cached.bytes)))
    return 0


def _pictures(manifest: Manifest) -> str | None:
    """What a model that sees pictures makes of them; nothing is said of others."""
    from edge.runtime.vision.geometry import grid_of, num_rows

    if (vision := manifest.vision) is None:
        return None
    spec = vision.spec
    size = spec.image_size
    tokens = (
        f"{num_rows(grid_of(size, size, spec), spec):,} tokens {'each' if spec.is_fixed else f'of {size} x {size}'}"
    )
    most = f", at most {spec.max_pictures} in a conversation" if spec.max_pictures else ""
    return f"yes, {tokens}{most}; {vision.recipe}"


def _of_texts(bundle: Bundle) -> tuple[bool, str, dict[str, float]]:
    """Whether there is a chat template, in what format it has tools called, and the sampling that is recommended."""
    from dataclasses import asdict

    from edge.runtime.bundle import CHAT_TEMPLATE, GENERATION_CONFIG
    from edge.runtime.chat import ChatTemplate
    from edge.runtime.errors import EdgeError
    from edge.runtime.sampling_defaults import recommended_sampling
    from edge.runtime.settings import Sampling

    try:
        source = bundle.text(CHAT_TEMPLATE)
        tools = "none" if source is None else ChatTemplate(source).convention.tool_format
        advice = asdict(recommended_sampling(bundle.text(GENERATION_CONFIG)))
    except EdgeError as error:
        return bundle.file(CHAT_TEMPLATE) is not None, f"not known: {error}", {}
    usual = asdict(Sampling())
    named = tools if isinstance(tools, str) else tools.name if tools.calls else "none"
    return source is not None, named, {name: value for name, value in advice.items() if value != usual[name]}


def _engines(bundle: Bundle) -> list[str]:
    """Engines that it has a graph for, with what is missing here."""
    from edge.runtime.engines.registry import ENGINES

    return [
        f"{record.name} (not installed: {record.advice})" if not record.installed else _where(record)
        for record in ENGINES.values()
        if record.holds(bundle)
    ]


def _where(record: EngineRecord) -> str:
    """An engine's name, and what it is for if that is not the CPU."""
    if record.runs_on("CPU"):
        return record.name
    emulated = f"; on {' and '.join(record.emulated_on)} by name" if record.emulated_on else ""
    return f"{record.name} (for {' and '.join(record.families)}{emulated})"
