"""What a sweep keeps in its folder: rows of cells, what exports took, and bundles.

In: a folder and keys. Out: what an earlier sweep left there, and files. Whatever does not read as ours, or has another
key, is as if it were not there. Knows nothing about the order of steps.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from edge.export.destination import LOCK, PARTIAL, PARTS, remove_bundle, remove_work
from edge.profiles.accuracy import Accuracy
from edge.profiles.divergence import Divergence
from edge.profiles.machine_record import Place
from edge.profiles.processes import Outcome
from edge.profiles.record import Row, read_record
from edge.profiles.sweep_plan import BUNDLES, CELLS, EXPORTS, Cell
from edge.profiles.typed_json import read_value
from edge.runtime.atomic import write_atomically
from edge.runtime.bundle import open_bundle
from edge.runtime.errors import BundleError, OutputError, ProfileError
from edge.runtime.locks import hold_now

Cost: TypeAlias = dict[str, Any]  # JSON: what an export took

PLACE = "place"  # where an export was made, in its record


def row_of(cell: Cell, cost: Cost, outcome: Outcome, place: Place | None) -> Row:
    """A row of what was measured; without speed if that was not. cost: as `exported` gives it."""
    found = outcome.result
    made = None if cost.get(PLACE) is None else Place.from_json(cost[PLACE], "the place of an export", "export again")
    places = {"export": made, "accuracy": place}
    row = Row(
        recipe=cell.recipe,
        engine=cell.engine,
        setting=cell.setting,
        bits_per_weight=cost["bits_per_weight"],
        weight_bytes=cost["weight_bytes"],
        export_s=cost["export_s"],
        export_peak_bytes=cost["export_peak_bytes"],
        load_s=None,
        peak_anonymous_bytes=None,
        peak_rss_bytes=None,
        prompt_tokens=None,
        ttft_ms=None,
        decode_tokens_per_second=None,
        ttft_ms_samples=(),
        decode_samples=(),
        kv_cache=found["kv_cache"],
        accuracy=Accuracy.from_json(found["accuracy"]),
        divergence=None if found["divergence"] is None else Divergence.from_json(found["divergence"]),
        places={part: known for part, known in places.items() if known is not None},
    )
    return with_speed(row, outcome, place) if "speed" in found else row


def with_speed(row: Row, outcome: Outcome, place: Place | None) -> Row:
    """The row with its speed, as a step has measured it."""
    speed, peak = outcome.result["speed"], outcome.peak_up_to("speed")
    return replace(
        row,
        load_s=outcome.result["load_s"],
        peak_anonymous_bytes=None if peak is None else peak.anonymous_bytes,
        peak_rss_bytes=None if peak is None else peak.rss_bytes,
        prompt_tokens=speed["prompt_tokens"],
        ttft_ms=speed["ttft_ms"],
        decode_tokens_per_second=speed["decode_tokens_per_second"],
        ttft_ms_samples=tuple(speed["ttft_ms_samples"]),
        decode_samples=tuple(speed["decode_samples"]),
        places={**row.places, **({} if place is None else {"speed": place})},
    )


def finished(cell: Cell, out: Path) -> Row | None:
    """A cell's row from an earlier sweep, maybe without speed; None if it has none."""
    known = _read_keyed(cell.file(out), cell.key)
    if known is None:
        return None
    try:
        return Row.from_json(known["row"])
    except (ProfileError, KeyError, TypeError):
        return None


def write_row(cell: Cell, out: Path, row: Row) -> None:
    write_atomically(cell.file(out), [_json({"key": cell.key, "row": row.to_json()})])


def exported(bundle: Path, out: Path, key: str) -> Cost | None:
    """What the export took, if its bundle still exists; None if it has to be made."""
    known = _read_keyed(_record(bundle, out), key)
    return known if known is not None and _is_cost(known) and _opens(bundle) else None


def write_exported(bundle: Path, out: Path, key: str, cost: Cost) -> None:
    write_atomically(_record(bundle, out), [_json({"key": key, **cost})])


def _record(bundle: Path, out: Path) -> Path:
    """The file that says what the export of a bundle took."""
    return out / EXPORTS / f"{bundle.name}.json"


def _read_keyed(path: Path, key: str) -> dict[str, Any] | None:
    """A JSON object that we wrote with this key, without the key; None for anything else."""
    try:
        data = read_record(path)
    except ProfileError:
        return None
    return data if isinstance(data, dict) and data.pop("key", None) == key else None


def _is_cost(known: Mapping[str, Any]) -> bool:
    """Whether a record has all figures of an export."""
    kinds = {"bits_per_weight": "float", "weight_bytes": "int", "export_s": "float | None"}
    try:
        for name, kind in {**kinds, "export_peak_bytes": "int | None"}.items():
            read_value(known.get(name, "missing"), kind, name, ProfileError, "export again")
        if known.get(PLACE) is not None:
            Place.from_json(known[PLACE], "the place of an export", "export again")
    except ProfileError:
        return False
    return True


def remove_bundles(out: Path, *, unfinished: bool) -> None:
    """Remove the bundles that sweeps made here, then the folder if it is empty.

    unfinished: also those of interrupted exports; otherwise the next sweep resumes them.
    """
    for bundle in (out / BUNDLES).iterdir():
        if (out / EXPORTS / f"{bundle.name}.json").is_file():
            remove_bundle(bundle)
        elif unfinished and bundle.name.startswith(".") and bundle.suffix == PARTIAL:
            remove_work(bundle, PARTS)
    if not any((out / BUNDLES).iterdir()):
        (out / BUNDLES).rmdir()


def _opens(bundle: Path) -> bool:
    try:
        open_bundle(bundle)
    except BundleError:
        return False
    return True


@contextmanager
def own_folder(out: Path) -> Iterator[None]:
    """The folder with its parts, for this process alone. Raises OutputError."""
    with ExitStack() as stack:
        try:
            for name in (CELLS, EXPORTS, BUNDLES):
                (out / name).mkdir(parents=True, exist_ok=True)
            held = stack.enter_context(hold_now(out / LOCK))
        except OSError as error:
            raise OutputError(f"{out} cannot be written ({error.strerror}); choose another folder") from error
        if not held:
            raise OutputError(f"{out} is being written by another sweep; wait for it, or choose another folder")
        yield


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
