"""The bundle: the folder that export writes and the runtime reads. This file is the contract between the two.

In: a folder. Out: a `Bundle` whose manifest and files are checked. Knows nothing about checkpoints, engines or
tokenizers.

    manifest.json            what the model is, how it was compressed, and every other file with its sha256
    openvino_model.{xml,bin} stateful OpenVINO IR
    model.onnx               ONNX over the same openvino_model.bin, in the form of onnxruntime-genai; model.onnx.data
                             holds weights that ONNX needs in another form, or all weights without an OpenVINO IR
    model*.N.onnx            that graph in parts, one set for each choice of kernels, for our engine
    model_plain.onnx         float weights in standard operators, for other tools
    tokenizer.json · chat_template.jinja (when the model has one)
    config.json · generation_config.json · tokenizer_config.json · openvino_{tokenizer,detokenizer}.{xml,bin}
    graph.pbtxt · genai_config.json
                             for openvino_genai, optimum-intel, OpenVINO Model Server and onnxruntime-genai; our
                             runtime reads two of them: special tokens by name, and the recommended sampling
    vision.bin               weights of the picture tower, of models that see pictures
    vision.N.{xml,onnx}      the tower in parts that follow each other, for each engine, over the same vision.bin
    vision_golden.npz        a small picture as the tower takes it, with its rows of float and compressed weights
    golden.npz               prompt ids with float and compressed logits of their last rows
    self_test.npz            prompt ids with the largest logits of all their rows, which every load compares with
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count, takewhile
from pathlib import Path
from typing import Literal

from edge.runtime import manifest
from edge.runtime.errors import COPY_AGAIN, EXPORT_AGAIN, BundleError
from edge.runtime.files import SMALL_BYTES, read_file, real_path, sha256_of, shown_path
from edge.runtime.known_files import KnownFiles
from edge.runtime.manifest import FileRecord, Manifest

MANIFEST = manifest.FILE
MODEL_XML = "openvino_model.xml"
MODEL_BIN = "openvino_model.bin"
ONNX_DATA = "model.onnx.data"
MODEL_ONNX = "model.onnx"
VISION_BIN = "vision.bin"
VISION_GOLDEN = "vision_golden.npz"
ONNX_PLAIN = "model_plain.onnx"
TOKENIZER = "tokenizer.json"
CHAT_TEMPLATE = "chat_template.jinja"
CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SERVER_GRAPH = "graph.pbtxt"
GENAI_CONFIG = "genai_config.json"
GOLDEN = "golden.npz"
SELF_TEST = "self_test.npz"
TEXTS = (TOKENIZER, CHAT_TEMPLATE, TOKENIZER_CONFIG, GENERATION_CONFIG)  # files that loading a model always reads
HASHING_THREADS = 4
JOINED_FROM = 256  # tokens in the cache, from which heads are joined; fewer take no time, and too few no joined heads
WEIGHTS = (MODEL_BIN, ONNX_DATA, VISION_BIN)  # too large to read each time a bundle is opened


def vision_part(index: int, bundle_format: Literal["openvino", "onnx"]) -> str:
    """Return the file name of one graph of the picture tower."""
    return f"vision.{index}.{'xml' if bundle_format == 'openvino' else 'onnx'}"


@dataclass(frozen=True, slots=True)
class OnnxKernels:
    """Kernels that onnxruntime offers a choice of. They are fixed in a graph, so each choice has its own graph."""

    int8_activations: bool = False  # of matrix products, rounded in the weights' blocks
    float16_cache: bool = False  # keys and values
    joined_heads: int = 0  # of a single token, that are multiplied at once with the keys that they share; 0: no two are

    def part(self, index: int) -> str:
        """Return the file name of one part of the graph."""
        kind = ("_int8" if self.int8_activations else "") + ("_kv16" if self.float16_cache else "")
        kind += f"_joined{self.joined_heads}" if self.joined_heads else ""
        return f"model{kind}.{index}.onnx"


@dataclass(frozen=True, slots=True, repr=False)
class Bundle:
    """An opened bundle: all files exist, and all except the weights match the manifest."""

    path: Path
    manifest: Manifest
    _known: KnownFiles = field(default_factory=KnownFiles, compare=False)  # of the weights
    _contents: dict[str, bytes] = field(default_factory=dict, compare=False)  # of TEXTS, until they are read

    def __repr__(self) -> str:
        return f"<Bundle {self.path}: {self.manifest.recipe}>"

    def onnx_parts(self, kernels: OnnxKernels) -> list[Path]:
        """Return the parts of the ONNX graph with these kernels, in running order; an empty list if there is none."""
        files = self.manifest.files
        names = takewhile(lambda name: name in files, (kernels.part(index) for index in count()))
        return [self.path / name for name in names]

    def vision_parts(self, bundle_format: Literal["openvino", "onnx"]) -> list[Path]:
        """Return the graphs of the picture tower, in running order; an empty list if there is none."""
        names = (vision_part(index, bundle_format) for index in count())
        return [self.path / name for name in takewhile(lambda name: name in self.manifest.files, names)]

    def file(self, name: str) -> Path | None:
        """Return the path of a recorded file, or None if this bundle has no such file."""
        return self.path / name if name in self.manifest.files else None

    def recorded(self, *names: str) -> list[str]:
        """Return which of these files this bundle has."""
        return [name for name in names if name in self.manifest.files]

    def has_links(self, names: Iterable[str]) -> bool:
        """Whether one of these files is a link to another folder."""
        folder = Path(os.path.realpath(self.path))
        return any(Path(os.path.realpath(self.path / name)).parent != folder for name in names)

    def read(self, name: str) -> bytes | None:
        """Return the very bytes of a recorded file that were hashed, or None if this bundle has no such file.

        Raises BundleError if they do not match the manifest.
        """
        if name not in self.manifest.files:
            return None
        content = self._contents.pop(name, None)
        return self._read(name) if content is None else content

    def required(self, name: str) -> bytes:
        """Return the content of a file that every bundle has. Raises BundleError if it is missing or altered."""
        content = self.read(name)
        if content is None:
            raise BundleError(f"{self.path} holds no {name}; {EXPORT_AGAIN}")
        return content

    def text(self, name: str) -> str | None:
        """Return the content of a recorded UTF-8 file, or None if this bundle has no such file. Raises BundleError."""
        content = self.read(name)
        try:
            return None if content is None else content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BundleError(f"{self.path}: {name} is not UTF-8 at byte {error.start}; export it again") from error

    def check_files(self) -> None:
        """Check that every file has its size, and all except the weights have their sha256. Raises BundleError."""
        for name, record in self.manifest.files.items():
            path = self.path / name
            if not _answers(path.is_file):
                raise BundleError(f"{self.path}: {name} is missing; {COPY_AGAIN}")
            if (size := path.stat().st_size) != record.size:
                raise BundleError(
                    f"{self.path}: {name} has {size} bytes, the manifest says {record.size}; {COPY_AGAIN}"
                )
        small = sorted(self.manifest.files.keys() - set(WEIGHTS), key=lambda name: -self.manifest.files[name].size)
        with ThreadPoolExecutor(HASHING_THREADS, "hash") as threads:
            for _ in threads.map(self._check_small, small):
                pass  # the first error is raised here

    def check_weights(self, names: Iterable[str]) -> None:
        """Check the sha256 of weights before they are used, unless they were checked before and are untouched.

        Raises BundleError.
        """
        for name in names:
            self._check(name)

    def check_hashes(self, progress: Callable[[str, int], None] = lambda _name, _size: None) -> None:
        """Read every file and check its sha256; `progress` gets each name and size. Raises BundleError."""
        for name, record in self.manifest.files.items():
            self._check(name, anew=True)
            progress(name, record.size)

    def _check_small(self, name: str) -> None:
        if name in TEXTS:
            self._contents[name] = self._read(name)
        else:
            self._check(name)

    def _read(self, name: str) -> bytes:
        record = self.manifest.files[name]
        content = read_file(self.path / name, BundleError, COPY_AGAIN, max_bytes=min(record.size, SMALL_BYTES))
        if hashlib.sha256(content).hexdigest() != record.sha256:
            raise self._altered(name)
        return content

    def _check(self, name: str, *, anew: bool = False) -> None:
        path, sha256 = self.path / name, self.manifest.files[name].sha256
        try:
            known = self._known.is_right if name in WEIGHTS else None
            right = sha256_of(path) == sha256 if known is None else known(path, sha256, anew=anew)
        except OSError as error:
            raise self._unreadable(name, error) from error
        if not right:
            raise self._altered(name)

    def _altered(self, name: str) -> BundleError:
        return BundleError(f"{self.path}: {name} is altered (its sha256 differs from the manifest); {COPY_AGAIN}")

    def _unreadable(self, name: str, error: OSError) -> BundleError:
        return BundleError(f"{self.path}: {name} cannot be read ({error.strerror or error}); {COPY_AGAIN}")


def is_bundle(path: Path) -> bool:
    """Whether a folder claims to be a bundle."""
    return _answers((path / MANIFEST).is_file)


def open_bundle(path: str | Path) -> Bundle:
    """Read the manifest, and check that every file exists and matches it. Raises BundleError.

    Only the size of weights is checked; an engine that reads them calls `check_weights`. A link is followed once, now:
    an update may let it lead to another bundle before the last file is opened.
    """
    path = Path(path)
    path = real_path(path) if _answers(path.is_symlink) else path
    if not is_bundle(path):
        if not _answers(path.exists):
            raise BundleError(f"{shown_path(path)}: no such path; expected a bundle folder, made by `edge export`")
        raise BundleError(f"{path}: no {MANIFEST} in it, so it is not a bundle; make one with `edge export {path} OUT`")
    raw = read_file(path / MANIFEST, BundleError, COPY_AGAIN, max_bytes=manifest.MAX_BYTES)
    try:
        bundle = Bundle(path, Manifest.from_json(raw))
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from error
    bundle.check_files()
    return bundle


def record_of(path: Path) -> FileRecord:
    """Return size and sha256 of a file."""
    return FileRecord(path.stat().st_size, sha256_of(path))


def _answers(question: Callable[[], bool]) -> bool:
    """Ask a path something; return False if it is too long, holds a zero byte, or may not be read."""
    try:
        return question()
    except (OSError, ValueError):
        return False
