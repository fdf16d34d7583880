"""The bundle: the folder that export writes and the runtime reads. This file is the contract between the two.

In: a folder. Out: a `Bundle` whose manifest has been checked. Knows nothing about checkpoints, engines or tokenizers.

    manifest.json            what the model is, how it was compressed, and every other file with its sha256
    openvino_model.{xml,bin} stateful OpenVINO IR
    model.onnx               ONNX over the same openvino_model.bin, as onnxruntime-genai takes it; model.onnx.data holds
                             what ONNX has in another form, or all weights where there is no OpenVINO IR
    model*.N.onnx            the same in parts, for each choice of kernels, as our engine takes it
    model_plain.onnx         of float weights in standard operators, for other tools
    tokenizer.json · chat_template.jinja (when the model has one)
    config.json · generation_config.json · tokenizer_config.json · openvino_{tokenizer,detokenizer}.{xml,bin}
    graph.pbtxt · genai_config.json
                             what openvino_genai, optimum-intel, OpenVINO Model Server and onnxruntime-genai read; our
                             runtime does not
    golden.npz               prompt ids with float and compressed logits of their last rows
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from edge.runtime.errors import BundleError
from edge.runtime.spec import ModelSpec

SCHEMA_VERSION = 2
MANIFEST = "manifest.json"
MODEL_XML = "openvino_model.xml"
MODEL_BIN = "openvino_model.bin"
ONNX_DATA = "model.onnx.data"
MODEL_ONNX = "model.onnx"
ONNX_PLAIN = "model_plain.onnx"
TOKENIZER = "tokenizer.json"
CHAT_TEMPLATE = "chat_template.jinja"
CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SERVER_GRAPH = "graph.pbtxt"
GENAI_CONFIG = "genai_config.json"
GOLDEN = "golden.npz"


@dataclass(frozen=True, slots=True)
class OnnxKernels:
    """What an ONNX graph computes with, where onnxruntime has a choice; a part of the graph, so each has its own."""

    int8_activations: bool = False  # of matrix products, rounded in the weights' blocks
    float16_cache: bool = False  # keys and values

    def part(self, index: int) -> str:
        """File name of one part of the graph."""
        kind = ("_int8" if self.int8_activations else "") + ("_kv16" if self.float16_cache else "")
        return f"model{kind}.{index}.onnx"


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file of a bundle."""

    size: int  # bytes
    sha256: str


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """What one weight matrix became."""

    shape: tuple[int, ...]
    precision: str  # "int4-asym-g64", "int8-asym", "fp16" ...
    nbytes: int  # integers, scales and zero points
    note: str  # why it is not what the recipe asked for; empty where it is


@dataclass(frozen=True, slots=True)
class StageCheck:
    """How exactly one stage of the compressed model computes, measured at export on the float model's own input."""

    stage: str  # "embedding", "block 3", "head"
    error: float  # of its output, relative to the float model's
    expected: float  # about what rounding the weights as the recipe does explains


@dataclass(frozen=True, slots=True)
class Manifest:
    """`manifest.json`, typed."""

    schema_version: int
    source: str  # file or folder name of the checkpoint, without its path
    source_sha256: str
    spec: ModelSpec
    recipe: str
    weight_group_size: int  # of the linear layers; 0 where they have no groups
    stop_token_ids: tuple[int, ...]
    bits_per_weight: float
    weight_bytes: int
    golden_kld: float  # nats/token between float and compressed logits of golden.npz
    warnings: tuple[str, ...]  # what export doubted and did all the same
    decisions: tuple[str, ...]  # what the user set against the checkpoint
    adapter: str  # folder name of the LoRA merged into the weights; empty where there is none
    calibration: str  # name and hash of the text that integers were fitted to; empty where there is none
    checks: tuple[StageCheck, ...]
    tensors: Mapping[str, TensorRecord]
    files: Mapping[str, FileRecord]
    versions: Mapping[str, str]

    @property
    def fewest_bits(self) -> int:
        """The fewest bits that a matrix has."""
        matrices = [tensor for tensor in self.tensors.values() if len(tensor.shape) == 2]
        return min(int(re.sub(r"\D*(\d+).*", r"\1", tensor.precision)) for tensor in matrices)

    @property
    def model_sha256(self) -> str:
        """Hash of everything that logits follow from: weights and graphs of every engine."""
        models = {n: r.sha256 for n, r in self.files.items() if Path(n).stem.startswith(("model", "openvino_model"))}
        return hashlib.sha256(json.dumps(models, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """Stable text: same manifest, same bytes."""
        return json.dumps(asdict(self), indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Raises BundleError for another schema version and for anything that does not read as a manifest."""
        try:
            data: dict[str, Any] = json.loads(text)
            version = data["schema_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{MANIFEST} does not read as a manifest ({error}); export the bundle again") from error
        if version != SCHEMA_VERSION:
            advice = "update edgeglm" if isinstance(version, int) and version > SCHEMA_VERSION else "export it again"
            raise BundleError(f"{MANIFEST}: schema version {version}, this edgeglm reads {SCHEMA_VERSION}; {advice}")
        try:
            return cls(
                schema_version=version,
                source=str(data["source"]),
                source_sha256=str(data["source_sha256"]),
                spec=ModelSpec.from_json(data["spec"]),
                recipe=str(data["recipe"]),
                weight_group_size=int(data["weight_group_size"]),
                stop_token_ids=tuple(int(i) for i in data["stop_token_ids"]),
                bits_per_weight=float(data["bits_per_weight"]),
                weight_bytes=int(data["weight_bytes"]),
                golden_kld=float(data["golden_kld"]),
                warnings=tuple(str(warning) for warning in data["warnings"]),
                decisions=tuple(str(decision) for decision in data["decisions"]),
                adapter=str(data["adapter"]),
                calibration=str(data.get("calibration", "")),  # bundles of earlier versions have none
                checks=tuple(
                    StageCheck(str(c["stage"]), float(c["error"]), float(c["expected"])) for c in data["checks"]
                ),
                tensors={
                    name: TensorRecord(tuple(t["shape"]), str(t["precision"]), int(t["nbytes"]), str(t["note"]))
                    for name, t in data["tensors"].items()
                },
                files={name: FileRecord(int(f["size"]), str(f["sha256"])) for name, f in data["files"].items()},
                versions={str(k): str(v) for k, v in data["versions"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BundleError(f"{MANIFEST}: missing or mistyped field ({error}); export the bundle again") from error


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle: all files are there with their recorded sizes."""

    path: Path
    manifest: Manifest

    def onnx_parts(self, kernels: OnnxKernels) -> list[Path]:
        """The parts of the ONNX graph with these kernels, in the order in which they run; none where it has no such."""
        files = self.manifest.files
        names = takewhile(lambda name: name in files, (kernels.part(index) for index in count()))
        return [self.path / name for name in names]

    def file(self, name: str) -> Path | None:
        """Path of a recorded file, or None when this bundle has no such file."""
        return self.path / name if name in self.manifest.files else None

    def text(self, name: str) -> str | None:
        """Content of a recorded UTF-8 file, or None when this bundle has no such file."""
        path = self.file(name)
        return None if path is None else path.read_text(encoding="utf-8")


def is_bundle(path: Path) -> bool:
    """Whether a folder claims to be a bundle."""
    return (path / MANIFEST).is_file()


def open_bundle(path: str | Path) -> Bundle:
    """Read the manifest and check that every file is there in its recorded size; hashes are left to `check_hashes`.

    Raises BundleError.
    """
    path = Path(path)
    if not path.exists():
        raise BundleError(f"{path}: no such path; expected a bundle folder, made by `edge export`")
    if not is_bundle(path):
        raise BundleError(f"{path}: no {MANIFEST} in it, so it is no bundle; make one with `edge export {path} OUT`")
    try:
        manifest = Manifest.from_json((path / MANIFEST).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise BundleError(f"{path}: {MANIFEST} is not UTF-8 text ({error}); export the bundle again") from error
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from error
    for name, record in manifest.files.items():
        if Path(name).name != name:
            raise BundleError(f"{path}: {MANIFEST} names the file {name!r} outside the bundle; do not use this bundle")
        file = path / name
        if not file.is_file():
            raise BundleError(f"{path}: {name} is missing; copy the bundle again or export it again")
        if file.stat().st_size != record.size:
            raise BundleError(
                f"{path}: {name} has {file.stat().st_size} bytes, the manifest says {record.size}; "
                "copy the bundle again or export it again"
            )
    return Bundle(path, manifest)


def check_hashes(bundle: Bundle, progress: Callable[[str, int], None] = lambda _name, _size: None) -> None:
    """Compare every file with its sha256; `progress` is told each file and its bytes. Raises BundleError."""
    for name, record in bundle.manifest.files.items():
        if sha256_of(bundle.path / name) != record.sha256:
            raise BundleError(
                f"{bundle.path}: {name} is altered (its sha256 differs from the manifest); "
                "copy the bundle again or export it again"
            )
        progress(name, record.size)


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_of(path: Path) -> FileRecord:
    """Size and sha256 of a file."""
    return FileRecord(path.stat().st_size, sha256_of(path))
