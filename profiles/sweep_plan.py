"""What a sweep will do: the cells to measure, after a check for everything that would be bound to fail.

In: a checkpoint, a folder, settings as a user gives them. Out: a `SweepPlan`, or an error. Reads the text and writes
nothing. Knows nothing about measuring.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from edge.export.compress.recipes import find_recipe
from edge.export.plan import Plan, make_plan
from edge.export.settings import ExportSettings, Format
from edge.export.text.corpus import builtin_evaluation
from edge.export.text.documents import Document, read_documents
from edge.export.text.overlap import check_apart
from edge.export.text.windows import Windows, token_windows
from edge.profiles.machine_record import machine_record, versions_record
from edge.profiles.record import DEFAULT_SETTING, cell_name
from edge.profiles.settings import SweepSettings
from edge.runtime import bundle as bundles
from edge.runtime.chat import ChatTemplate
from edge.runtime.engines.registry import find
from edge.runtime.errors import DeviceError, OutputError, SettingsError, plain
from edge.runtime.settings import CachePrecision
from edge.runtime.tokenizer import Tokenizer

MIN_WINDOWS = 2  # fewer have no standard error
CELLS, EXPORTS, BUNDLES, REFERENCE, WINDOWS = "cells", "exports", "bundles", "reference.npz", "windows.npz"
CELL_FORMAT = 1  # of the files in cells/ and of what is measured
KEY_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Cell:
    """One recipe on one engine with one setting."""

    recipe: str
    engine: str
    kv_precision: CachePrecision | None
    key: str  # of everything that decides what is measured

    @property
    def setting(self) -> str:
        """What is asked of the engine."""
        return DEFAULT_SETTING if self.kv_precision is None else f"kv {self.kv_precision}"

    @property
    def name(self) -> str:
        return cell_name(self.recipe, self.engine, self.setting)

    def file(self, out: Path) -> Path:
        """The file for its result: cells that differ in anything have different files."""
        parts = (self.recipe, self.engine, *([] if self.kv_precision is None else [self.kv_precision]))
        return out / CELLS / f"{'.'.join(parts)}-{self.key[:KEY_DIGITS]}.json"


@dataclass(frozen=True)
class SweepPlan:
    """A sweep that has been checked: nothing in it is known to fail."""

    source: str
    out: Path
    settings: SweepSettings
    plans: Mapping[str, Plan]  # recipe -> plan of its export
    export_keys: Mapping[str, str]  # recipe -> key of everything that decides its bundle
    windows: Windows
    text: str  # that the windows are from, described in words
    cells: tuple[Cell, ...]
    notes: tuple[str, ...]

    @property
    def format(self) -> Format:
        """The graphs that the bundles get."""
        return _format(self.settings)


def plan_sweep(source: str | Path, out: Path, settings: SweepSettings) -> SweepPlan:
    """Check everything and read the text.

    Raises CheckpointError, RecipeError, SettingsError, DeviceError, CalibrationError, TokenizerError and OutputError.
    """
    _check_names(settings)
    _check_folder(out)
    pairs, notes = _able(settings)
    fitted = [recipe for recipe in settings.recipes if find_recipe(recipe).calibrated]
    if settings.calibration is not None and not fitted:
        raise SettingsError(
            f"none of the recipes {', '.join(settings.recipes)} uses calibration text; leave it out, or add a recipe "
            "like int4-asym-g64-gptq"
        )
    plans = {
        recipe: make_plan(
            source,
            ExportSettings(
                recipe,
                format=_format(settings),
                calibration=settings.calibration if recipe in fitted else None,
            ),
        )
        for recipe in settings.recipes
    }
    first = plans[settings.recipes[0]]
    limit = first.spec.max_position_embeddings
    if not 2 <= settings.window_tokens <= limit:
        raise SettingsError(
            f"windows of {settings.window_tokens} tokens were asked for, expected 2 to {limit}, the model's limit"
        )
    count = settings.num_tokens // settings.window_tokens
    if count < MIN_WINDOWS:
        raise SettingsError(
            f"{settings.num_tokens} tokens are {count} windows of {settings.window_tokens}, expected {MIN_WINDOWS} or "
            "more, because errors are estimated between windows; ask for more tokens or shorter windows"
        )
    documents, text = _documents(settings)
    if fitted and (corpus := plans[fitted[0]].calibration) is not None:
        check_apart(corpus.documents, documents)
    tokenizer, template = _tokenizer(first)
    windows = token_windows(documents, tokenizer, settings.window_tokens, count, template)
    export_keys = {recipe: plan.key for recipe, plan in plans.items()}
    machine = machine_record()
    common = {
        "format": CELL_FORMAT,
        "windows": [windows.sha256, windows.languages],
        "chunk": settings.chunk_tokens,
        "greedy": settings.greedy_tokens,
        "device": settings.device,
        "machine": [
            machine["processor"],
            min(machine["cores"], settings.threads or machine["cores"]),
            machine["system"],
        ],
        "versions": versions_record(),
    }
    cells = tuple(
        Cell(recipe, engine, kv, _hash({**common, "export": export_keys[recipe], "engine": engine, "kv": kv}))
        for recipe, (engine, kv) in product(settings.recipes, pairs)
    )
    found = str(Path(source).absolute() if Path(source).exists() else source)
    return SweepPlan(found, out, settings, plans, export_keys, windows, text, cells, notes)


def _check_names(settings: SweepSettings) -> None:
    """Raises RecipeError, SettingsError and DeviceError."""
    for name, values in (("recipe", settings.recipes), ("engine", settings.engines)):
        if not values:
            raise SettingsError(f"no {name} is given, expected one or more")
        if twice := sorted({value for value in values if values.count(value) > 1}):
            raise SettingsError(f"{name} {plain(twice[0])} is given twice; give it once")
    for recipe in settings.recipes:
        find_recipe(recipe)
    for engine in settings.engines:
        if not find(engine).installed:
            raise DeviceError(f"engine {engine} is not installed; {find(engine).advice}")
    if settings.chunk_tokens is not None and settings.chunk_tokens < 1:
        raise SettingsError(f"chunks of {settings.chunk_tokens} tokens were asked for, expected 1 or more")
    if settings.threads is not None and settings.threads < 1:
        raise SettingsError(f"{settings.threads} threads were asked for, expected 1 or more")
    if settings.greedy_tokens < 0:
        raise SettingsError(f"{settings.greedy_tokens} tokens of greedy text were asked for, expected 0 or more")


def _able(settings: SweepSettings) -> tuple[list[tuple[str, CachePrecision | None]], tuple[str, ...]]:
    """Pairs of engine and cache that can run, and notes on the others. Raises SettingsError when no pair remains."""
    pairs: list[tuple[str, CachePrecision | None]] = []
    notes = []
    for engine, kv in product(settings.engines, settings.kv_precisions):
        record = find(engine)
        if kv not in (None, *record.kv_precisions):
            notes.append(f"Left out: engine {engine} has no {kv} cache")
        elif not record.runs_on(settings.device):
            notes.append(f"Left out: engine {engine} does not run on {settings.device}")
        else:
            pairs.append((engine, kv))
    if not pairs:
        raise SettingsError(f"{notes[0].removeprefix('Left out: ')}, and nothing else was asked for; ask for another")
    return pairs, tuple(dict.fromkeys(notes))


def _check_folder(out: Path) -> None:
    """Raises OutputError where `out` is something other than a profile."""
    if not out.exists():
        return
    if not out.is_dir():
        raise OutputError(f"{out} exists and is not a folder; choose another name")
    if any(out.iterdir()) and not ((out / CELLS).is_dir() and (out / EXPORTS).is_dir()):
        raise OutputError(f"{out} holds something other than a profile; choose an empty or a new folder")


def _documents(settings: SweepSettings) -> tuple[list[Document], str]:
    """The text to measure with, and its description. Raises CalibrationError."""
    documents = [document for path in settings.texts for document in read_documents(path)]
    text = ", ".join(path.name for path in settings.texts)
    if not settings.texts:
        documents, text = builtin_evaluation(), "the documentation of Python's language (pydoc_data.topics)"
    return documents, text


def _tokenizer(plan: Plan) -> tuple[Tokenizer, ChatTemplate | None]:
    """The checkpoint's tokenizer and chat template. Raises TokenizerError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / bundles.TOKENIZER
        plan.checkpoint.write_tokenizer(path)
        template = plan.chat_template()
        tokenizer, names = Tokenizer(path), plan.checkpoint.named_tokens()
        return tokenizer, None if template is None else ChatTemplate(template, tokenizer.markup, names)


def _format(settings: SweepSettings) -> Format:
    """The format that has graphs for the engines that are measured, and no others."""
    formats = {find(engine).bundle_format for engine in settings.engines}
    return formats.pop() if len(formats) == 1 else "both"


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
