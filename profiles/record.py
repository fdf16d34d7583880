"""What a sweep found: `profile.json`, typed. The contract between the code that measures and the code that shows.

In: rows and facts, or JSON text. Out: JSON text, or a `Profile` that has been checked. Knows nothing about how a figure
was measured or how it will be shown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from edge.profiles.accuracy import Accuracy
from edge.profiles.divergence import Divergence
from edge.profiles.machine_record import MachineRecord, Place, read_machine
from edge.profiles.spread import spread
from edge.profiles.typed_json import read_fields, read_texts
from edge.runtime.errors import CalibrationError, ProfileError, shown
from edge.runtime.files import shown_path
from edge.runtime.json_reader import parse_json, read_json

SCHEMA_VERSION = 2
_EARLIER = 1  # without samples of speeds and the number of cells
PROFILE = "profile.json"
PARTS = ("export", "accuracy", "speed")  # of a row that different nodes of a cluster may have measured
DEFAULT_SETTING = "default"  # nothing was asked of the engine
_AGAIN, _MAKE = "run `edge profile run` again", "make one with `edge profile run`"
_MAX_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class Row:
    """One recipe on one engine with one setting. None: not measured."""

    recipe: str
    engine: str
    setting: str  # what was asked of the engine, like "kv u8"; DEFAULT_SETTING if nothing was
    bits_per_weight: float
    weight_bytes: int
    export_s: float | None  # None if a killed export was resumed
    export_peak_bytes: int | None  # memory that the export allocated, without mapped files
    load_s: float | None
    peak_anonymous_bytes: int | None  # memory allocated for loading, a prompt and an answer, without mapped files
    peak_rss_bytes: int | None  # the same with mapped files, which the system can drop
    prompt_tokens: int | None  # of the prompt that TTFT and speed were measured with
    ttft_ms: float | None
    decode_tokens_per_second: float | None
    ttft_ms_samples: tuple[float, ...]  # one a repeat; none in rows of an earlier schema version
    decode_samples: tuple[float, ...]  # tokens per second
    kv_cache: str  # what the engine keeps keys and values in
    accuracy: Accuracy
    divergence: Divergence | None  # of greedy text
    places: Mapping[str, Place] = field(default_factory=dict)  # of a cluster, by what was measured there: PARTS

    @property
    def name(self) -> str:
        """Unique within a profile."""
        return cell_name(self.recipe, self.engine, self.setting)

    @property
    def ttft_ms_spread(self) -> float | None:
        """How far the farthest repeat is from `ttft_ms`; None if that is not known."""
        return spread(self.ttft_ms_samples)

    @property
    def decode_spread(self) -> float | None:
        """As `ttft_ms_spread`, for `decode_tokens_per_second`."""
        return spread(self.decode_samples)

    def to_json(self) -> dict[str, object]:
        own = {known.name: getattr(self, known.name) for known in fields(self)}
        written = None if self.divergence is None else self.divergence.to_json()
        own |= {"accuracy": self.accuracy.to_json(), "divergence": written}
        if self.places:
            return {**own, "places": {part: place.to_json() for part, place in self.places.items()}}
        del own["places"]  # as in profiles that no cluster took part in
        return own

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Raises ProfileError for missing, unknown and mistyped fields."""
        own = frozenset(("accuracy", "divergence", "places"))
        if isinstance(data, dict):
            data = {"ttft_ms_samples": [], "decode_samples": [], "places": {}, **data}
        values = read_fields(cls, data, "a row", ProfileError, _AGAIN, elsewhere=own)
        written = values["divergence"]
        try:
            values["accuracy"] = Accuracy.from_json(values["accuracy"])
        except CalibrationError as error:
            raise ProfileError(str(error)) from error
        values["divergence"] = None if written is None else Divergence.from_json(written)
        if not isinstance(values["places"], dict) or not values["places"].keys() <= set(PARTS):
            raise ProfileError(f"places of a row are {shown(values['places'])}, expected {', '.join(PARTS)}; {_AGAIN}")
        values["places"] = {
            part: Place.from_json(place, f"the place of {part}", _AGAIN) for part, place in values["places"].items()
        }
        return cls(**values)


def cell_name(recipe: str, engine: str, setting: str) -> str:
    """The name that people and messages use for a row."""
    return f"{recipe}/{engine}" + ("" if setting == DEFAULT_SETTING else f"/{setting}")


@dataclass(frozen=True, slots=True)
class Failure:
    """A cell that could not be measured."""

    name: str  # as a row's
    error: str


@dataclass(frozen=True, slots=True)
class Profile:
    """All rows of a sweep, and what they were measured with."""

    source: str
    text: str  # that was measured with, described in words
    windows_sha256: str
    num_windows: int
    window_tokens: int
    num_cells: int  # that the sweep measures; more than rows and failures while it is running, or was interrupted
    machine: MachineRecord
    versions: Mapping[str, str]
    rows: tuple[Row, ...]
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]  # what was left out, and why

    @property
    def so_far(self) -> str:
        """How many cells are done, if not all are."""
        done = len(self.rows) + len(self.failures)
        return "" if done >= self.num_cells else f"{done} of {self.num_cells} settings so far"

    def to_json(self) -> str:
        """JSON text: same profile, same bytes."""
        own = {known.name: getattr(self, known.name) for known in fields(self)}
        rows, failures = [row.to_json() for row in self.rows], [asdict(failure) for failure in self.failures]
        data = {"schema_version": SCHEMA_VERSION, **own, "rows": rows, "failures": failures}
        return json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ProfileError for another schema version and for anything that does not read as a profile."""
        return cls.from_data(parse_json(text, f"this {PROFILE}", ProfileError, _MAKE, infinite=True))

    @classmethod
    def from_data(cls, data: object) -> Self:
        """Like `from_json`, from JSON that has been parsed. Raises ProfileError."""
        if not isinstance(data, dict) or "schema_version" not in data:
            raise ProfileError(f"this is not a {PROFILE}; {_MAKE}")
        data = dict(data)
        version = data.pop("schema_version")
        if isinstance(version, bool) or version not in (SCHEMA_VERSION, _EARLIER):
            raise ProfileError(
                f"schema version {shown(version)}, this edgeglm reads {_EARLIER} and {SCHEMA_VERSION}; {_AGAIN}"
            )
        if version == _EARLIER:
            data["num_cells"] = 0  # profiles were written at the end of a sweep
        own = frozenset(("machine", "versions", "rows", "failures"))
        values = read_fields(cls, data, "the profile", ProfileError, _AGAIN, elsewhere=own)
        values["machine"] = read_machine(values["machine"], "the machine", _AGAIN)
        values["versions"] = read_texts(values["versions"], "versions", ProfileError, _AGAIN)
        for name in ("rows", "failures"):
            if not isinstance(values[name], list | tuple):
                raise ProfileError(f"{name} are {shown(values[name])}, expected a list; {_AGAIN}")
        values["rows"] = tuple([Row.from_json(row) for row in values["rows"]])
        failures = [read_fields(Failure, failure, "a failure", ProfileError, _AGAIN) for failure in values["failures"]]
        values["failures"] = tuple([Failure(**failure) for failure in failures])
        return cls(**values)


def read_profile(path: Path) -> Profile:
    """Read a `profile.json`, given its path or its folder. Raises ProfileError."""
    file = path / PROFILE if path.is_dir() else path
    data = read_record(file)
    try:
        return Profile.from_data(data)
    except ProfileError as error:
        raise ProfileError(f"{shown_path(file)}: {error}") from error


def read_record(file: Path) -> Any:  # JSON
    """The content of a profile's file, where NaN is allowed as a figure. Raises ProfileError."""
    return read_json(
        file,
        ProfileError,
        "expected what `edge profile run` writes",
        max_bytes=_MAX_BYTES,
        infinite=True,
        unique_keys=True,
    )
