"""What `edge fit` prints for people.

In: a `Report`. Out: lines and tables on stdout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edge.commands.console import human_bytes, print_table
from edge.commands.tables import print_text
from edge.profiles.fit.predict import PROMPT
from edge.profiles.fit.replicas import ANSWER
from edge.profiles.fit.report import replicas_of
from edge.profiles.fit.simulated import TURNS

if TYPE_CHECKING:
    from edge.profiles.fit.figures import Figure
    from edge.profiles.fit.places import Place
    from edge.profiles.fit.predict import Prediction
    from edge.profiles.fit.replicas import Clients, Replicas
    from edge.profiles.fit.report import Report
    from edge.profiles.fit.simulated import Seen

ROOM = "no room"
REFUSED = "refused"
TOO_SLOW = "too slow"
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
        if found.wanted is not None:
            _print_replicas(found, found.wanted, predictions)
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


def _print_replicas(found: Report, wanted: Clients, predictions: Sequence[Prediction]) -> None:
    """How many serve the clients, and what that is computed from."""
    print_text(
        f"replicas for {wanted.count:,} clients of {wanted.tokens_s:g} tokens a second, all asking all the time: "
        f"prompts of {PROMPT:,} tokens, answers of {ANSWER}"
    )
    counted = [(one, replicas) for one in predictions if (replicas := replicas_of(found, one)) is not None]
    rows = [
        [one.recipe, one.engine, replicas_text(one, each), str(each.clients or "-"), each.bound if each.clients else ""]
        for one, each in counted
    ]
    columns = ["recipe", "engine", "replicas (fewest to most)", "clients of each", "no more because of"]
    print_table(columns, rows, spare=["engine"], prose=["recipe"])
    for origin in dict.fromkeys(each.origin for _, each in counted):
        print_text(f"answers at once: {origin}")


def print_simulations(seen: Sequence[tuple[Prediction, tuple[Seen, ...]]]) -> None:
    """Waits and speeds, one table a place."""
    for one, runs in seen:
        print()
        print_text(
            f"{one.place.key}, {one.recipe}, {runs[0].replicas:,} replicas, simulated: conversations of {TURNS} turns "
            f"without pauses, prompts of {PROMPT:,} tokens and answers of {ANSWER} in the mean"
        )
        rows = [
            [
                f"{run.rule}, {run.lost} lost for a while" if run.lost else run.rule,
                *(f"{value:.2f}" for value in (run.result.ttft_s.p50, run.result.ttft_s.p95, run.result.ttft_s.p99)),
                f"{run.result.rate.p50:.1f}",
                f"{run.result.slow_rate:.1f}",
                f"{100 * run.result.turn_hits:.0f} %",
                f"{run.result.refused + run.result.broken:,} of {run.result.asked:,}",
            ]
            for run in runs
        ]
        first = ["first token, s: p50", "p95", "p99"]
        columns = ["routing", *first, "tok/s: p50", "of the slowest 5 %", "earlier turns cached", "failed"]
        print_table(columns, rows, spare=["p99", "failed"], prose=["routing"])


def replicas_text(one: Prediction, each: Replicas) -> str:
    """Like ~3 (2 to 9); a replica that may be too slow even for one client has no upper end."""
    if not one.runs:
        return REFUSED if one.refused else ROOM
    if each.count is None and each.fewest is None:
        return TOO_SLOW
    usual = TOO_SLOW if each.count is None else f"{'~' if each.about else ''}{each.count:,}"
    least = "?" if each.fewest is None else f"{each.fewest:,}"
    return f"{usual} ({least} to {TOO_SLOW if each.most is None else f'{each.most:,}'})"


def _print_devices(found: Report) -> None:
    """One row a device, one column a recipe: tokens a second or replicas, or why not."""
    recipes = [planned.recipe for planned in found.planned]
    rows = []
    for place, predictions in found.devices:
        longest = max(predictions, key=lambda one: one.longest_context)
        has = "?" if place.memory_bytes is None else f"{place.memory_bytes / 2**30:.0f}"
        cells = [_cell(found, one) for one in predictions]
        rows.append([place.key, f"{place.bandwidth_gbs:g}", has, *cells, _tokens(longest)])
    what = "tokens a second of devices"
    if found.wanted is not None:
        what = f"replicas for {found.wanted.count:,} clients of {found.wanted.tokens_s:g} tokens a second, by device"
    print_text(f"{what}, with {found.context_tokens:,} tokens of context and the most memory they have")
    columns = ["device", "GB/s", "GiB", *recipes, "longest context"]
    print_table(columns, rows, spare=["GB/s", "longest context", "GiB", *reversed(recipes[1:])])
    errors = {one.place.kind: one.decode for _, predictions in found.devices for one in predictions}
    for kind, figure in errors.items():
        print_text(f"error on {KINDS[kind]}: {figure.error} ({figure.origin})")
    print_text(
        f"~: known too badly to be relied on. {ROOM}: the wanted context does not fit. {REFUSED}: the device takes no "
        "such weights, or no such prompts; --device says which rule. ?: how much memory it has is not in the table."
    )


def _cell(found: Report, one: Prediction) -> str:
    if (each := replicas_of(found, one)) is not None:
        return replicas_text(one, each)
    return _rate(one.decode) if one.runs else REFUSED if one.refused else ROOM


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
