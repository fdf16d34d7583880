"""What a sweep found: `profile.json`, typed. The contract between what measures and what shows.

In: rows and facts, or JSON text. Out: JSON text, or a `Profile` that has been checked. Knows nothing about how a figure
came about or what it will look like.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any, Self

from edge.profiles.accuracy import Accuracy
from edge.profiles.divergence import Divergence
from edge.profiles.machine_record import MachineRecord
from edge.runtime.errors import CalibrationError, ProfileError

SCHEMA_VERSION = 1
PROFILE = "profile.json"
DEFAULT_SETTING = "default"  # nothing was asked of the engine
_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "int | None": (int, NoneType),
    "float | None": (int, float, NoneType),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One recipe on one engine with one setting. None: was not measured."""

    recipe: str
    engine: str
    setting: str  # what was asked of the engine, like "kv u8"; DEFAULT_SETTING where nothing was
    bits_per_weight: float
    weight_bytes: int
    export_s: float | None  # None where a killed export was gone on with
    export_peak_bytes: int | None  # memory that the export allocated: mapped files are not in it
    load_s: float | None
    peak_anonymous_bytes: int | None  # of loading, a prompt and an answer; mapped files are not in it
    peak_rss_bytes: int | None  # the same with mapped files, which the system can drop
    prompt_tokens: int | None  # that TTFT and speed were measured behind
    ttft_ms: float | None
    decode_tokens_per_second: float | None
    kv_cache: str  # what the engine keeps keys and values in
    accuracy: Accuracy
    divergence: Divergence | None  # of greedy text

    @property
    def name(self) -> str:
        """Unique within a profile."""
        return cell_name(self.recipe, self.engine, self.setting)

    def to_json(self) -> dict[str, object]:
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        written = None if self.divergence is None else self.divergence.to_json()
        return {**own, "accuracy": self.accuracy.to_json(), "divergence": written}

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Raises ProfileError for missing, unknown and mistyped fields."""
        known = {field.name: str(field.type) for field in fields(cls)}
        if not isinstance(data, dict) or (unknown := set(data) ^ set(known)):
            what = f"a row has {min(unknown)!r} too many or too few" if isinstance(data, dict) else "a row is no object"
            raise ProfileError(f"{what}; run `edge profile` again")
        for name, value in data.items():
            if name not in ("accuracy", "divergence") and not isinstance(value, _TYPES[known[name]]):
                raise ProfileError(f"{name} of a row is {value!r}, expected {known[name]}; run `edge profile` again")
        try:
            written = data["divergence"]
            return cls(
                **{
                    **data,
                    "accuracy": Accuracy.from_json(data["accuracy"]),
                    "divergence": None if written is None else Divergence.from_json(written),
                }
            )
        except CalibrationError as error:
            raise ProfileError(str(error)) from error


def cell_name(recipe: str, engine: str, setting: str) -> str:
    """How people and messages call a row."""
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
    text: str  # what it is, in words
    windows_sha256: str
    num_windows: int
    window_tokens: int
    machine: MachineRecord
    versions: Mapping[str, str]
    rows: tuple[Row, ...]
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]  # what was left out, and why

    def to_json(self) -> str:
        """Stable text: same profile, same bytes."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        rows, failures = [row.to_json() for row in self.rows], [asdict(failure) for failure in self.failures]
        data = {"schema_version": SCHEMA_VERSION, **own, "rows": rows, "failures": failures}
        return json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ProfileError for another schema version and for anything that does not read as a profile."""
        try:
            data: dict[str, Any] = json.loads(text)
            version = data.pop("schema_version")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ProfileError(f"this is no {PROFILE} ({error!r}); make one with `edge profile`") from error
        if version != SCHEMA_VERSION:
            raise ProfileError(
                f"schema version {version}, this edgeglm reads {SCHEMA_VERSION}; run `edge profile` again"
            )
        try:
            rows = tuple(Row.from_json(row) for row in data.pop("rows"))
            failures = tuple(Failure(**failure) for failure in data.pop("failures"))
            notes = tuple(str(note) for note in data.pop("notes"))
            return cls(rows=rows, failures=failures, notes=notes, **data)
        except (KeyError, TypeError) as error:
            raise ProfileError(f"a field is missing or unknown ({error}); run `edge profile` again") from error


def read_profile(path: Path) -> Profile:
    """Of a `profile.json`, or the folder that holds one. Raises ProfileError."""
    file = path / PROFILE if path.is_dir() else path
    try:
        return Profile.from_json(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(f"{file} cannot be read ({error}); expected what `edge profile` writes") from error
    except ProfileError as error:
        raise ProfileError(f"{file}: {error}") from error
