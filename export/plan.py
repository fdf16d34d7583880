"""What an export is asked to do: everything that decides its bytes, opened and checked.

In: a source and `ExportSettings`. Out: a `Plan`, with what every weight gets, the key by which an interrupted export is
recognised, and the hash of its source. Compresses nothing and writes nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

from edge.export.architectures.doubts import doubts
from edge.export.architectures.registry import can_rotate, describe
from edge.export.assignment import Assignments, assign
from edge.export.budget.choose import base_recipe, options_of
from edge.export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from edge.export.compress import recipes
from edge.export.compress.precision import Rounding
from edge.export.compress.recipes import Recipe
from edge.export.float16.folds import FoldedWeights, Folds
from edge.export.float16.targets import TARGETS
from edge.export.graph.onnx.blocks import block_size
from edge.export.settings import Device, ExportSettings, Format, Limits
from edge.export.text.corpus import Corpus, calibration_corpus
from edge.export.vision.plan import TowerPlan, plan_tower, without_pictures
from edge.export.weights.adapter import Adapter
from edge.export.weights.names import EMBEDDING, HEAD
from edge.export.weights.rotation import RotatedWeights
from edge.export.weights.source import Weights, WeightSource
from edge.runtime import bundle
from edge.runtime.errors import RecipeError, SettingsError
from edge.runtime.files import real_path, sha256_of
from edge.runtime.lint import suits
from edge.runtime.spec import ModelSpec
from edge.runtime.template_file import read_chosen
from edge.runtime.tensor_records import TensorRecord

VERSIONED = ("edgeglm", "openvino", "nncf", "numpy")


@dataclass(frozen=True)
class Plan:
    """Everything that decides the result of an export."""

    source: str  # what the manifest calls it: a hub id, or the name of a file or folder
    checkpoint: Checkpoint
    weights: WeightSource
    recipe: Recipe
    assignments: Assignments  # what the recipe gives every weight
    format: Format
    adapter: Adapter | None  # merged into the weights
    calibration: Corpus | None  # for recipes that need text
    warnings: tuple[str, ...]
    decisions: tuple[str, ...]  # what the user set against the checkpoint, and what was chosen within limits
    limits: Limits | None = None  # within which the recipe chooses
    options: Mapping[str, tuple[Rounding, ...]] = field(default_factory=dict)  # what each matrix is chosen from
    template_file: Path | None = None  # of the chat template, instead of the checkpoint's
    weights_at_once: int | None = None  # that are rounded together, which changes memory alone; None: as is fastest
    device: Device = "CPU"  # that the bundle is for
    range_text: Corpus | None = None  # that values are measured on, for a device that computes in float16
    folds: Folds | None = None  # of the weights, once they are chosen
    tower: TowerPlan | None = None  # of models that see pictures

    @property
    def spec(self) -> ModelSpec:
        return self.weights.spec

    @property
    def openvino(self) -> bool:
        """Whether the bundle gets a graph for OpenVINO."""
        return self.format != "onnx"

    @property
    def onnx(self) -> bool:
        """Whether the bundle gets graphs for ONNX Runtime."""
        return self.format != "openvino"

    @property
    def weight_file(self) -> str:
        """The file of the weights: OpenVINO's, which both formats read, unless the bundle is for ONNX alone."""
        return bundle.MODEL_BIN if self.openvino else bundle.ONNX_DATA

    @property
    def parameters(self) -> int:
        """Of the text model and the picture tower."""
        return self.assignments.parameters + (0 if self.tower is None else self.tower.assignments.parameters)

    @property
    def sources(self) -> set[str]:
        """All tensors of the checkpoint that are read."""
        tables = [self.weights.sources, *([] if self.tower is None else [self.tower.weights.sources])]
        return {part for table in tables for parts in table.values() for part in parts}

    @property
    def source_files(self) -> list[Path]:
        return self.checkpoint.weight_files() + self.small_files

    @property
    def small_files(self) -> list[Path]:
        own = [] if self.template_file is None else [self.template_file]
        return self.checkpoint.small_files() + own + ([] if self.adapter is None else self.adapter.files)

    def chat_template(self) -> str | None:
        """The template of the bundle. Raises TokenizerError and SettingsError."""
        return self.checkpoint.chat_template() if self.template_file is None else read_chosen(self.template_file)

    @property
    def key(self) -> str:
        """Same key, same bytes. Files are identified by size and time: hashing 19 GB first would take too long."""
        stats = [(str(real_path(path)), path.stat()) for path in self.source_files]
        files = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
        text_sha256 = None if self.calibration is None else self.calibration.sha256
        choices = [asdict(self.spec), asdict(self.recipe), text_sha256, self.format, versions(self.format)]
        if self.options:
            options = {name: [str(option) for option in found] for name, found in self.options.items()}
            choices += [None if self.limits is None else asdict(self.limits), options]
        if self.range_text is not None:
            choices += [self.device, self.range_text.sha256, None if self.folds is None else self.folds.to_json()]
        if self.tower is not None:
            text = json.dumps([files, *choices, *self.tower.choices()])
        else:
            text = json.dumps([files, *choices])
        return hashlib.sha256(text.encode()).hexdigest()

    def warned(self, *warnings: str) -> Plan:
        """The plan with more warnings."""
        return replace(self, warnings=(*self.warnings, *warnings))

    def folded(self, folds: Folds) -> Plan:
        """The plan with these folds in its weights."""
        return replace(self, weights=FoldedWeights(self.weights, folds), folds=folds)

    def choose(self, choices: Mapping[str, Rounding], decisions: tuple[str, ...]) -> Plan:
        """The plan with these choices, and the decisions that led to them."""
        recipe = replace(self.recipe, choices=dict(choices))
        assignments = assign(recipe, self.spec)
        return replace(
            self,
            recipe=recipe,
            assignments=assignments,
            warnings=(
                *self.warnings,
                *_copied(assignments, self.format),
                *map(str, suits(self.spec, _records(assignments), self.device, recipe.name) if self.range_text else ()),
            ),
            decisions=(*self.decisions, *decisions),
        )


def make_plan(source: str | Path, settings: ExportSettings, *, download: bool = True) -> Plan:
    """Open and check everything that an export reads. download: a model of a hub that is not on the disk yet.

    Raises CheckpointError, SettingsError, RecipeError and CalibrationError.

    Where the settings have limits instead of a recipe, the plan's recipe makes no choices yet; `Plan.choose` does.
    """
    format, limits = settings.format, settings.limits
    checkpoint = open_checkpoint(source, download=download)
    own, adapter, decisions = _opened(checkpoint, settings)
    own, left_out = without_pictures(checkpoint, settings, own)
    device = settings.device or "CPU"
    target = TARGETS.get(device)
    named = recipes.find_recipe(settings.recipe or recipes.default_for(device))
    recipe = named if limits is None else base_recipe(limits, own.spec)
    weights: WeightSource = RotatedWeights(own) if recipe.rotate else own
    spec = weights.spec
    embedding, head = settings.embedding, settings.head
    recipe = recipe.with_vocabulary(embedding, head, tied=spec.tied_embeddings)
    assignments = assign(recipe, spec)
    format, only_onnx = _format_for(assignments, format, device)
    if format != "openvino":
        _check_groups(assignments)
    options: dict[str, tuple[Rounding, ...]] = {}
    if limits is not None:
        fixed = {EMBEDDING: embedding, HEAD: head} if not spec.tied_embeddings else {EMBEDDING: embedding or head}
        options = options_of(assignments, limits, fixed, spec=spec, formats=format, awq=not recipe.rotate)
    tower = plan_tower(checkpoint, settings, weights, recipe)
    unsuited = () if target is None or options else suits(spec, _records(assignments), device, recipe.name)
    return Plan(
        source=source_name(source),
        checkpoint=checkpoint,
        weights=weights,
        recipe=recipe,
        assignments=assignments,
        format=format,
        adapter=adapter,
        calibration=calibration_corpus(settings.calibration) if recipe.calibrated else None,
        warnings=(
            *doubts(checkpoint, spec),
            *only_onnx,
            *(() if options else _copied(assignments, format)),
            *(() if tower is None else _copied(tower.assignments, format, bundle.VISION_BIN)),
            *map(str, unsuited),
        ),
        decisions=(*decisions, *left_out),
        limits=limits,
        options=options,
        template_file=None if settings.chat_template is None else Path(settings.chat_template),
        device=device,
        range_text=None if target is None else calibration_corpus(settings.calibration),
        tower=tower,
    )


def _records(assignments: Assignments) -> dict[str, TensorRecord]:
    return {name: assigned.record() for name, assigned in assignments.items()}


def _opened(checkpoint: Checkpoint, settings: ExportSettings) -> tuple[Weights, Adapter | None, tuple[str, ...]]:
    """The checkpoint's weights with what the settings merge into them, and what these set against the checkpoint."""
    spec, stored = describe(checkpoint)
    decisions: tuple[str, ...] = ()
    if settings.rope_theta is not None:
        rope_theta = float(settings.rope_theta)
        decisions += (f"rope_theta {rope_theta:,.0f}; the checkpoint says {spec.rope_theta:,.0f}",)
        spec = replace(spec, rope_theta=rope_theta)
    if settings.rotary_dim is not None:
        if not can_rotate(settings.rotary_dim, spec.head_dim):
            raise SettingsError(
                f"rotary_dim is {settings.rotary_dim}, expected an even number of dims from 2 to {spec.head_dim}",
                param="rotary_dim",
            )
        decisions += (f"rotary_dim {settings.rotary_dim}; the checkpoint says {spec.rotary_dim}",)
        spec = replace(spec, rotary_dim=settings.rotary_dim)
    if settings.chat_template is not None:
        read_chosen(settings.chat_template)  # refused before anything else is done
        decisions += (f"chat template: {real_path(settings.chat_template).name}, instead of the checkpoint's",)
    adapter = None if settings.adapter is None else Adapter(Path(settings.adapter), spec, stored.layout)
    return replace(stored, spec=spec, change=adapter), adapter, decisions


def source_name(source: str | Path) -> str:
    """What a manifest calls a source: a hub id, or the name of a file or folder."""
    return real_path(source).name if Path(source).exists() else str(source)


def versions(format: Format) -> dict[str, str]:
    """The packages that decide the bytes of a bundle."""
    return {name: version(name) for name in (*VERSIONED, *(() if format == "openvino" else ("onnx",)))}


def _copied(assignments: Assignments, format: Format, file: str = bundle.ONNX_DATA) -> tuple[str, ...]:
    """A warning where a bundle for both formats holds bytes twice, in this file the second time."""
    size = assignments.signed_bytes
    if format != "both" or not size:
        return ()
    return (
        f"ONNX's operators know no signed integers: {size:,} bytes of weights are in {file} again as "
        "unsigned ones; an -asym recipe, or one format alone, needs no second copy",
    )


def _format_for(assignments: Assignments, format: Format, device: Device) -> tuple[Format, tuple[str, ...]]:
    """The format of a bundle with these weights, and a warning if it is not what was asked for. Raises RecipeError."""
    if not assignments.is_coarse or (format == "onnx" and device == "CPU"):
        return format, ()
    why = "OpenVINO cannot multiply matrices of 2 bits"
    if format == "openvino" or device != "CPU":
        raise RecipeError(f"{why}; use --format onnx without --device, or a recipe with 4 bits")
    return "onnx", (f"{why}, so the bundle has graphs for ONNX Runtime alone",)


def _check_groups(assignments: Assignments) -> None:
    """Raises RecipeError for a weight that ONNX's operators cannot hold, before anything is compressed."""
    for name, found in assignments.items():
        if found.is_matrix and not found.precision.is_float:
            block_size(name, found.precision.group_size or found.shape[1])


def tensor_sha256(checkpoint: Checkpoint, names: Iterable[str]) -> dict[str, str]:
    """The sha256 of each tensor's stored bytes."""
    return {name: checkpoint.sha256(name) for name in names}


def source_sha256(checkpoint: Checkpoint, tensors: Mapping[str, str], small_files: Iterable[Path]) -> str:
    """One hash over everything that decides the result: names, shapes and bytes of tensors, and the small files.

    Tensors rather than files, because they are hashed while they are in memory; files would take another 19 GB pass.
    """
    digest = hashlib.sha256()
    for name, sha256 in sorted(tensors.items()):
        digest.update(f"{name} {list(checkpoint.shapes[name])} {sha256}\n".encode())
    for path in small_files:
        digest.update(f"{path.name} {sha256_of(path)}\n".encode())
    return digest.hexdigest()
