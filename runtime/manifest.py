"""What a bundle's `manifest.json` says, typed.

In: its text. Out: a `Manifest` whose fields all have their types and bounds, so that later code can rely on them. Knows
nothing about the files themselves.

One field is a digest of all others, so that a change by a disk, a copy or an editor is noticed. Bundles of schema
version 2 have no such digest, but can be read, too: exporting them again would take hours.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from edge.runtime.errors import COPY_AGAIN, EXPORT_AGAIN, BundleError, shown
from edge.runtime.float16_record import Float16Record
from edge.runtime.json_object import ObjectReader
from edge.runtime.json_reader import parse_json
from edge.runtime.spec import ModelSpec
from edge.runtime.tensor_records import StageCheck, TensorRecord, read_stage_check, read_tensor
from edge.runtime.terminal_text import on_one_line
from edge.runtime.vision.record import VisionRecord

SCHEMA_VERSION = 3
OLDEST_SCHEMA = 2  # without a digest
FILE = "manifest.json"
MAX_BYTES = 16_000_000  # a model with 100 blocks has 0.1 MB
DIGEST = "manifest_sha256"  # of all other fields


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file of a bundle."""

    size: int  # bytes
    sha256: str


@dataclass(frozen=True, slots=True, repr=False)
class Manifest:
    """`manifest.json`, typed."""

    schema_version: int
    source: str  # file or folder name of the checkpoint, without its path
    source_sha256: str
    spec: ModelSpec
    recipe: str
    weight_group_size: int  # of the linear layers; 0 if they have no groups
    stop_token_ids: tuple[int, ...]
    bits_per_weight: float
    weight_bytes: int
    golden_kld: float  # nats/token between float and compressed logits of golden.npz
    warnings: tuple[str, ...]  # doubts about what export did nevertheless
    decisions: tuple[str, ...]  # values that the user set in place of the checkpoint's
    adapter: str  # folder name of the LoRA merged into the weights; empty if there is none
    calibration: str  # name and hash of the text that integers were fitted to; empty if there is none
    checks: tuple[StageCheck, ...]
    tensors: Mapping[str, TensorRecord]
    files: Mapping[str, FileRecord]
    versions: Mapping[str, str]
    float16: Float16Record | None = None  # of bundles for devices that compute in it
    vision: VisionRecord | None = None  # of models that see pictures

    def __post_init__(self) -> None:
        """Escape control characters: a file's name or a library's warning may hold some that a terminal obeys."""
        for name in ("source", "recipe", "adapter", "calibration"):
            object.__setattr__(self, name, on_one_line(getattr(self, name)))
        for name in ("warnings", "decisions"):
            object.__setattr__(self, name, tuple(map(on_one_line, getattr(self, name))))

    def __repr__(self) -> str:
        name = f"{self.source} at {self.recipe}: {self.weight_bytes:,} bytes of weights"
        return f"<Manifest {name}, {self.bits_per_weight:.2f} bits per weight>"

    @property
    def has_digest(self) -> bool:
        """Whether its text has a digest of its own, which was checked."""
        return self.schema_version >= SCHEMA_VERSION

    @property
    def fewest_bits(self) -> int:
        """The fewest bits of any matrix."""
        return min(tensor.bits for tensor in self.tensors.values() if len(tensor.shape) == 2)

    @property
    def model_sha256(self) -> str:
        """Hash of everything that logits depend on: weights and graphs of every engine."""
        models = {n: r.sha256 for n, r in self.files.items() if Path(n).stem.startswith(("model", "openvino_model"))}
        return hashlib.sha256(json.dumps(models, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """Return stable text: same manifest, same bytes."""
        data = asdict(self) | {"spec": self.spec.to_json()}
        for name in ("float16", "vision"):
            if data[name] is None:
                del data[name]
        if self.has_digest:
            data[DIGEST] = digest_of(data)
        return json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, raw: str | bytes) -> Manifest:
        """Raises BundleError for another schema version, and for anything that differs from what was written."""
        if len(raw) > MAX_BYTES:
            raise BundleError(f"{FILE} has {len(raw):,} bytes, expected at most {MAX_BYTES:,}; {EXPORT_AGAIN}")
        data = parse_json(raw, FILE, BundleError, EXPORT_AGAIN, unique_keys=True)
        read = ObjectReader(data, FILE, BundleError, EXPORT_AGAIN)
        version = read.whole("schema_version")
        if not OLDEST_SCHEMA <= version <= SCHEMA_VERSION:
            advice = "update edgeglm" if version > SCHEMA_VERSION else "export it again"
            known = f"{OLDEST_SCHEMA} to {SCHEMA_VERSION}"
            raise BundleError(f"{FILE}: schema version {version}, this edgeglm reads {known}; {advice}")
        if (version >= SCHEMA_VERSION or DIGEST in read) and read.word(DIGEST) != digest_of(data):
            raise BundleError(f"{FILE} is altered (its {DIGEST} is of another text); {COPY_AGAIN}")
        spec = ModelSpec.from_json(read.value("spec"), f"{FILE}: spec")
        manifest = cls(
            schema_version=version,
            source=read.text("source"),
            source_sha256=read.word("source_sha256"),
            spec=spec,
            recipe=read.word("recipe"),
            weight_group_size=read.whole("weight_group_size"),
            stop_token_ids=read.wholes("stop_token_ids", 0, spec.vocab_size - 1),
            bits_per_weight=read.number("bits_per_weight"),
            weight_bytes=read.whole("weight_bytes"),
            golden_kld=read.number("golden_kld"),
            warnings=read.texts("warnings"),
            decisions=read.texts("decisions"),
            adapter=read.text("adapter"),
            calibration=read.text("calibration") if "calibration" in read else "",  # earlier versions have none
            checks=read.listed("checks", read_stage_check),
            tensors=read.named("tensors", read_tensor),
            files=read.named("files", _file_record),
            versions=read.words("versions"),
            float16=Float16Record.read(read.inside("float16"), spec) if "float16" in read else None,
            vision=VisionRecord.read(read.inside("vision")) if "vision" in read else None,
        )
        if not any(len(tensor.shape) == 2 for tensor in manifest.tensors.values()):
            raise BundleError(f"{FILE}: tensors holds no matrix; {EXPORT_AGAIN}")
        for name in manifest.files:
            _check_name(name)
        return manifest


def _file_record(read: ObjectReader) -> FileRecord:
    return FileRecord(read.whole("size"), read.word("sha256", "[0-9a-f]{64}", "64 hexadecimal digits"))


def _check_name(name: str) -> None:
    """Raise BundleError unless a name is that of a file beside the manifest."""
    if Path(name).name != name or "\\" in name or name in (".", "..", FILE):
        raise BundleError(f"{FILE} names the file {shown(name)} outside the bundle; do not use this bundle")
    if len(name.encode()) > 255:
        raise BundleError(f"{FILE} names the file {shown(name)}, which is too long for a name; {EXPORT_AGAIN}")


def digest_of(data: Mapping[str, object]) -> str:
    """Return the sha256 of a manifest's values without the digest itself, whatever the layout of its text."""
    rest = {name: value for name, value in data.items() if name != DIGEST}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
