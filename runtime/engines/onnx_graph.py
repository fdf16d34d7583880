"""The parts of a bundle's ONNX graph, compared with the manifest.

In: sessions of all parts, in order, and a `ModelSpec`. Out: nothing, or a BundleError. Knows nothing about running
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge.runtime.errors import EXPORT_AGAIN, BundleError
from edge.runtime.graph_check import Cached, check_cached, check_last, check_spec
from edge.runtime.graph_names import (
    HIDDEN,
    NEXT_HIDDEN,
    REPLACED,
    REPLACEMENTS,
    ROTARY_ROWS,
    ROTARY_TABLES,
    SPEC,
    WANTED_ROWS,
    past_name,
)
from edge.runtime.spec import ModelSpec


def check_parts(
    sessions: Sequence[Any],  # onnxruntime.InferenceSession, which has no types
    paths: Sequence[Path],
    spec: ModelSpec,
    *,
    float16_cache: bool,
    pictures: bool = False,
) -> None:
    """Compare inputs and outputs of the parts with the spec, and with each other. Raises BundleError.

    sessions: one for each path. pictures: whether the manifest has a tower.
    """
    cached: list[Cached] = []
    for index, (session, path) in enumerate(zip(sessions, paths, strict=True)):
        check_spec(session.get_modelmeta().custom_metadata_map.get(".".join(SPEC)), spec, path)
        inputs = {value.name: value for value in session.get_inputs()}
        outputs = {value.name: value for value in session.get_outputs()}
        first, last = index == 0, index == len(paths) - 1
        wanted = {"input_ids" if first else HIDDEN, *([WANTED_ROWS] if last else [])}
        if pictures:
            wanted |= {ROTARY_ROWS, *ROTARY_TABLES, *((REPLACED, REPLACEMENTS) if first else ())}
        given = "logits" if last else NEXT_HIDDEN
        if missing := sorted((wanted - set(inputs)) | ({given} - set(outputs))):
            raise BundleError(f"{path} has no {missing[0]}, so a part of this graph is missing; {EXPORT_AGAIN}")
        if not pictures and ROTARY_ROWS in inputs:
            raise BundleError(f"{path} takes pictures, and the manifest describes no tower for them; {EXPORT_AGAIN}")
        check_last(outputs[given].shape[-1], spec.vocab_size if last else spec.hidden_size, given, path)
        if not first:
            check_last(inputs[HIDDEN].shape[-1], spec.hidden_size, HIDDEN, path)
        if REPLACEMENTS in inputs:
            check_last(inputs[REPLACEMENTS].shape[-1], spec.hidden_size, REPLACEMENTS, path)
        for table in ROTARY_TABLES:
            if table in inputs:
                check_last(inputs[table].shape[-1], spec.rotary_dim // 2, table, path)
        start, kind = past_name(""), "tensor(float16)" if float16_cache else "tensor(float)"
        for name, value in inputs.items():
            if name.startswith(start):
                cached.append(Cached(name.removeprefix(start), tuple(n for n in value.shape if isinstance(n, int))))
                if value.type != kind:
                    raise BundleError(f"{path} caches {value.type}, expected {kind}; {EXPORT_AGAIN}")
    check_cached(cached, spec, paths[0])
