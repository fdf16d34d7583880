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
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count, takewhile
from pathlib import Path

from edge.runtime import manifest
from edge.runtime.errors import COPY_AGAIN, EXPORT_AGAIN, BundleError, shown
from edge.runtime.files import SMALL_BYTES, read_file, sha256_of
from edge.runtime.known_files import KnownFiles
from edge.runtime.manifest import FileRecord, Manifest
from edge.runtime.terminal_text import is_line

MANIFEST = manifest.FILE
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
TEXTS = (TOKENIZER, CHAT_TEMPLATE, TOKENIZER_CONFIG)  # what every model that is loaded reads
HASHING_THREADS = 4
LONG_PATH = 500  # characters; of longer ones a message quotes the beginning
WEIGHTS = (MODEL_BIN, ONNX_DATA)  # too large to be read whenever a bundle is opened


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
class Bundle:
    """An opened bundle: all files are there, and all but the weights are what the manifest says."""

    path: Path
    manifest: Manifest
    _known: KnownFiles = field(default_factory=KnownFiles, repr=False, compare=False)  # of the weights
    _contents: dict[str, bytes] = field(
        default_factory=dict, repr=False, compare=False
    )  # of TEXTS, until they are read

    def onnx_parts(self, kernels: OnnxKernels) -> list[Path]:
        """The parts of the ONNX graph with these kernels, in the order in which they run; none where it has no such."""
        files = self.manifest.files
        names = takewhile(lambda name: name in files, (kernels.part(index) for index in count()))
        return [self.path / name for name in names]

    def file(self, name: str) -> Path | None:
        """Path of a recorded file, or None when this bundle has no such file."""
        return self.path / name if name in self.manifest.files else None

    def recorded(self, *names: str) -> list[str]:
        """Those of these files that this bundle has."""
        return [name for name in names if name in self.manifest.files]

    def has_links(self, names: Iterable[str]) -> bool:
        """Whether one of these files is a link to another folder."""
        folder = Path(os.path.realpath(self.path))
        return any(Path(os.path.realpath(self.path / name)).parent != folder for name in names)

    def read(self, name: str) -> bytes | None:
        """Content of a recorded file, or None when this bundle has no such file: the very bytes that were hashed.

        Raises BundleError when they are not what the manifest says.
        """
        if name not in self.manifest.files:
            return None
        content = self._contents.pop(name, None)
        return self._read(name) if content is None else content

    def required(self, name: str) -> bytes:
        """Content of a file that every bundle has. Raises BundleError when this one lacks it or it was altered."""
        content = self.read(name)
        if content is None:
            raise BundleError(f"{self.path} holds no {name}; {EXPORT_AGAIN}")
        return content

    def text(self, name: str) -> str | None:
        """Content of a recorded UTF-8 file, or None when this bundle has no such file. Raises BundleError."""
        content = self.read(name)
        try:
            return None if content is None else content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BundleError(f"{self.path}: {name} is not UTF-8 at byte {error.start}; export it again") from error

    def check_files(self) -> None:
        """Whether every file is there in its size, and all but the weights with their sha256. Raises BundleError."""
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
        """Compare weights that are about to be used with their sha256, unless they were before and are untouched.

        Raises BundleError.
        """
        for name in names:
            self._check(name)

    def check_hashes(self, progress: Callable[[str, int], None] = lambda _name, _size: None) -> None:
        """Read every file and compare its sha256; `progress` is told each and its bytes. Raises BundleError."""
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
    """Read the manifest, and check that every file is there and what the manifest says.

    Of weights, that they have their size; an engine that reads them calls `check_weights`. Raises BundleError.
    """
    path = Path(path)
    if not is_bundle(path):
        if not _answers(path.exists):
            name = str(path) if is_line(str(path)) and len(str(path)) < LONG_PATH else shown(str(path))
            raise BundleError(f"{name}: no such path; expected a bundle folder, made by `edge export`")
        raise BundleError(f"{path}: no {MANIFEST} in it, so it is no bundle; make one with `edge export {path} OUT`")
    raw = read_file(path / MANIFEST, BundleError, COPY_AGAIN, max_bytes=manifest.MAX_BYTES)
    try:
        bundle = Bundle(path, Manifest.from_json(raw))
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from error
    bundle.check_files()
    return bundle


def record_of(path: Path) -> FileRecord:
    """Size and sha256 of a file."""
    return FileRecord(path.stat().st_size, sha256_of(path))


def _answers(question: Callable[[], bool]) -> bool:
    """What a path says of itself; no where it is longer than any, holds a zero byte, or may not be looked at."""
    try:
        return question()
    except (OSError, ValueError):
        return False
