"""What `edge fit` prints for people.

In: a `Report`. Out: lines and tables on stdout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edge.commands.console import human_bytes, print_table
from edge.commands.tables import print_text

if TYPE_CHECKING:
    from edge.profiles.fit.figures import Figure
    from edge.profiles.fit.places import Place
    from edge.profiles.fit.predict import Prediction
    from edge.profiles.fit.report import Report

ROOM = "no room"
REFUSED = "refused"
KINDS = {"cpu": "a CPU", "gpu": "a GPU", "npu": "an NPU"}


def print_report(found: Report) -> None:
    """Print all of it."""
    spec = found.subject.spec
    print_text(
        f"{found.subject.name}: {spec.architecture}, {spec.num_layers} blocks, {spec.num_parameters / 1e9:.2f} billion "
        f"parameters, at most {spec.max_position_embeddings:,} tokens"
    )
    weights = (f"{planned.recipe} {human_bytes(planned.weight_bytes)}" for planned in found.planned)
    print_text(f"weights: {', '.join(weights)}")
    caches = (f"{precision} {human_bytes(size)}" for precision, size in found.caches.items())
    print_text(f"cache of {found.context_tokens:,} tokens: {', '.join(caches)}")
    for place, predictions in found.places:
        print()
        _print_place(place, predictions, found.context_tokens)
    if found.devices:
        print()
        _print_devices(found)


def _print_place(place: Place, predictions: Sequence[Prediction], context: int) -> None:
    has = "memory not known" if place.memory_bytes is None else f"{human_bytes(place.memory_bytes)} of memory"
    room = "" if place.room_bytes is None else f" ({human_bytes(place.room_bytes)} for a model)"
    cores = f", {place.cores} cores" if place.cores and place.kind == "cpu" else ""
    how = "measured" if place.measured else "at most"
    print_text(f"{place.key}: {place.name}{cores}, {has}{room}, {place.bandwidth_gbs:g} GB/s {how}")
    rows = [
        [
            one.recipe,
            one.engine,
            human_bytes(one.memory.value),
            _seconds(one.load),
            _seconds(one.ttft),
            _rate(one.decode),
            _tokens(one),
            verdict(one),
        ]
        for one in predictions
    ]
    columns = ["recipe", "engine", "memory", "ready, s", "first token, s", "tok/s", "longest context", "runs"]
    print_table(columns, rows, spare=["engine", "ready, s", "first token, s"], prose=["recipe", "runs"])
    first = predictions[0]
    needed = first.footprint
    above = max(needed.compile_peak - needed.kv - needed.activations, 0)
    parts = {
        "weights": needed.weights,
        f"cache ({first.kv_precision})": needed.kv,
        "activations": needed.activations,
        "more while it loads": above,
        "libraries, graph and tokenizer": needed.base,
    }
    said = ", ".join(f"{name} {human_bytes(size)}" for name, size in parts.items() if size)
    print_text(f"memory at {context:,} tokens, of {first.recipe}: {said}")
    if needed.droppable:
        print_text(f"beside it, {human_bytes(needed.droppable)} of mapped files, which the system drops when it must")
    for name, figure in (
        ("memory", first.memory),
        ("tok/s", first.decode),
        ("first token", first.ttft),
        ("ready", first.load),
    ):
        if figure is not None:
            print_text(f"error of {name}: {figure.error} ({figure.origin})")
    for finding in dict.fromkeys(str(finding) for one in predictions for finding in one.findings):
        print_text(f"{place.kind.upper()}: {finding}")


def _print_devices(found: Report) -> None:
    """One row a device, one column a recipe: tokens a second, or why not."""
    recipes = [planned.recipe for planned in found.planned]
    rows = []
    for place, predictions in found.devices:
        longest = max(predictions, key=lambda one: one.longest_context)
        has = "?" if place.memory_bytes is None else f"{place.memory_bytes / 2**30:.0f}"
        cells = [_rate(one.decode) if one.runs else REFUSED if one.refused else ROOM for one in predictions]
        rows.append([place.key, f"{place.bandwidth_gbs:g}", has, *cells, _tokens(longest)])
    print_text(
        f"tokens a second of devices, with {found.context_tokens:,} tokens of context and the most memory they have"
    )
    columns = ["device", "GB/s", "GiB", *recipes, "longest context"]
    print_table(columns, rows, spare=["GB/s", "longest context", "GiB", *reversed(recipes[1:])])
    errors = {one.place.kind: one.decode for _, predictions in found.devices for one in predictions}
    for kind, figure in errors.items():
        print_text(f"error on {KINDS[kind]}: {figure.error} ({figure.origin})")
    print_text(
        f"~: known too badly to be relied on. {ROOM}: the wanted context does not fit. {REFUSED}: the device takes no "
        "such weights, or no such prompts; --device says which rule. ?: how much memory it has is not in the table."
    )


def verdict(one: Prediction) -> str:
    """Whether it runs, in words."""
    if one.refused:
        return f"no: {next(finding.rule for finding in one.findings if finding.refused)}"
    if one.fits is None:
        return "if there is room"
    if not one.fits:
        return "no: too little memory"
    low = one.place.room_bytes is not None and one.memory.high > one.place.room_bytes
    return "barely" if low else "yes"


def _tokens(one: Prediction) -> str:
    return f"{'~' if one.memory.about and one.longest_context else ''}{one.longest_context:,}"


def _rate(figure: Figure) -> str:
    return f"{'~' if figure.about else ''}{figure.value:.1f}" if figure.value < 100 else f"{figure.value:.0f}"


def _seconds(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    return f"{'~' if figure.about else ''}{figure.value:.1f}"
