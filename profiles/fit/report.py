"""Everything that `edge fit` tells of a model: at the places that were asked for, and over all devices of the table.

In: a `Subject`, places, a context. Out: a `Report`, and the same as JSON. Prints nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edge.export.compress.recipes import DEFAULT, find_recipe
from edge.profiles.devices.table import device_profiles
from edge.profiles.fit.figures import Figure
from edge.profiles.fit.places import Place, place_of
from edge.profiles.fit.predict import Prediction, predict
from edge.profiles.fit.replicas import Clients, Replicas, replicas
from edge.profiles.fit.simulated import Seen, simulated
from edge.profiles.fit.subject import Planned, Subject
from edge.profiles.fleet.step_costs import MeasuredSteps, stored
from edge.runtime.errors import RecipeError, SettingsError
from edge.runtime.footprint import kv_bytes

USEFUL = (DEFAULT, "int4-sym-channel", "int8-asym")  # one of each kind of weights: the default, for NPUs, 8 bits
USUAL_CONTEXT = 8192
SERVING = "openvino"  # the engine that answers several at once
CACHES = ("f32", "f16", "u8", "u4")


@dataclass(frozen=True, slots=True)
class Report:
    """What is told."""

    subject: Subject
    context_tokens: int
    planned: tuple[Planned, ...]
    places: tuple[tuple[Place, tuple[Prediction, ...]], ...]  # that were asked for, one prediction a recipe
    devices: tuple[tuple[Place, tuple[Prediction, ...]], ...]  # of the table
    wanted: Clients | None = None  # whom replicas are counted for

    @property
    def caches(self) -> dict[str, int]:
        """Bytes of the cache at the context, by precision."""
        return {precision: kv_bytes(self.subject.spec, self.context_tokens, precision) for precision in CACHES}


def report(
    subject: Subject,
    places: Iterable[Place],
    *,
    recipe: str | None = None,
    context_tokens: int | None = None,
    every_device: bool = True,
    memory_bytes: int | None = None,
    draft: Subject | None = None,
    clients: Clients | None = None,
) -> Report:
    """Predict. Raises RecipeError and SettingsError.

    memory_bytes: of the table's machines, instead of the most that they can have. draft: a second model that drafts for
    the first one; of a checkpoint, with the same recipe. clients: whom replicas are counted for.
    """
    most = subject.spec.max_position_embeddings
    context = min(USUAL_CONTEXT, most) if context_tokens is None else context_tokens
    if not 1 <= context <= most:
        raise SettingsError(f"context is {context}, expected 1 to {most}, the model's limit", param="context")
    planned = recipes_of(subject, recipe)
    engines = subject.engines
    if clients is not None and SERVING in engines:
        engines = (SERVING,)  # which `auto` takes for several answers at once

    def at(place: Place) -> tuple[Place, tuple[Prediction, ...]]:
        return place, tuple(
            predict(
                one,
                place,
                context,
                engines=engines,
                tokenizer_bytes=subject.tokenizer_bytes,
                draft=None if draft is None else recipes_of(draft, one.recipe if draft.made is None else None)[0],
            )
            for one in planned
        )

    table = [place_of(profile, memory_bytes) for profile in device_profiles().values()] if every_device else []
    return Report(subject, context, planned, tuple(map(at, places)), tuple(map(at, table)), clients)


def replicas_of(found: Report, one: Prediction) -> Replicas | None:
    """How many of a prediction's device serve the clients; None where none are asked for."""
    if found.wanted is None:
        return None
    return replicas(one, found.wanted, tables_of(one))


def tables_of(one: Prediction) -> list[MeasuredSteps]:
    """Steps that were measured of a prediction's engine, with the most threads: it is predicted with all cores."""
    of_engine = [table for table in stored() if table.engine == one.engine]
    most = max((table.threads for table in of_engine), default=0)
    return [table for table in of_engine if table.threads == most]


def simulations(found: Report) -> list[tuple[Prediction, tuple[Seen, ...]]]:
    """What clients would see at each place that was asked for, by its first recipe that serves them."""
    seen = []
    for _, predictions in found.places:
        for one in predictions:
            counted = replicas_of(found, one)
            if counted is not None and found.wanted is not None and counted.count is not None:
                seen.append((one, simulated(one, counted, found.wanted, tables_of(one))))
                break
    return seen


def simulations_json(seen: Iterable[tuple[Prediction, tuple[Seen, ...]]]) -> list[dict[str, object]]:
    return [
        {"device": one.place.key, "recipe": one.recipe, "runs": [run.to_json() for run in runs]} for one, runs in seen
    ]


def recipes_of(subject: Subject, recipe: str | None) -> tuple[Planned, ...]:
    """What is told of: a bundle as it is, a checkpoint by a recipe, or by those of USEFUL."""
    if subject.made is not None:
        if recipe is not None:
            raise SettingsError(
                f"recipe is {recipe}, and {subject.name} is a bundle, made with {subject.recipe}; give its checkpoint",
                param="recipe",
            )
        return (subject.made,)
    found = [planned for name in ([recipe] if recipe else USEFUL) if (planned := subject.planned(find_recipe(name)))]
    if not found:
        raise RecipeError(f"recipe {recipe}: this model cannot be rotated; choose another, `edge recipes` lists them")
    return tuple(found)


def to_json(found: Report) -> dict[str, Any]:  # Any: JSON
    subject = found.subject
    return {
        "model": subject.name,
        "spec": subject.spec.to_json(),
        "parameters": subject.spec.num_parameters,
        "context": found.context_tokens,
        "weight_bytes": {planned.recipe: planned.weight_bytes for planned in found.planned},
        "cache_bytes": found.caches,
        **({} if found.wanted is None else {"clients": asdict(found.wanted)}),
        "places": [_place_json(found, place, predictions) for place, predictions in found.places],
        "devices": [_place_json(found, place, predictions) for place, predictions in found.devices],
    }


def _place_json(found: Report, place: Place, predictions: Sequence[Prediction]) -> dict[str, Any]:
    return {
        "device": place.key,
        "name": place.name,
        "kind": place.kind,
        "bandwidth_gbs": place.bandwidth_gbs,
        "bandwidth_measured": place.measured,
        "memory_bytes": place.memory_bytes,
        "room_bytes": place.room_bytes,
        "recipes": [_prediction_json(one, replicas_of(found, one)) for one in predictions],
    }


def _prediction_json(one: Prediction, counted: Replicas | None) -> dict[str, Any]:
    needed = one.footprint
    return {
        "recipe": one.recipe,
        "engine": one.engine,
        "runs": one.runs,
        "fits": one.fits,
        "longest_context": one.longest_context,
        "kv_precision": one.kv_precision,
        "memory": one.memory.to_json(),
        "memory_parts": {
            "weights": needed.weights,
            "cache": needed.kv,
            "activations": needed.activations,
            "compile_peak": needed.compile_peak,
            "base": needed.base,
            "droppable": needed.droppable,
        },
        "tokens_per_s": one.decode.to_json(),
        "first_token_s": _json(one.ttft),
        "ready_s": _json(one.load),
        **({} if counted is None else {"replicas": counted.to_json()}),
        "findings": [{"rule": f.rule, "severity": f.severity, "message": f.message} for f in one.findings],
    }


def _json(figure: Figure | None) -> dict[str, object] | None:
    return None if figure is None else figure.to_json()
