"""A bundle's manifest and golden logits, as they are and with hashes that somebody made fit."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from pathlib import Path

import numpy as np

from edge.cli import main
from edge.runtime.bundle import MANIFEST, OnnxKernels, open_bundle
from edge.runtime.golden import read_golden
from edge.runtime.manifest import (
    DIGEST,
    MAX_BYTES,
    SCHEMA_VERSION,
    FileRecord,
    Manifest,
    digest_of,
)
from edge.runtime.spec import ModelSpec
from edge.runtime.tensor_records import StageCheck, TensorRecord
from tests.fuzz.target import Target

VOCAB = 64
SPEC = ModelSpec("glm", 3, 64, 128, 8, 2, 16, 8, 1e4, 1e-5, VOCAB, 256, True, False, False)
FILES = {"openvino_model.bin": b"weights", "tokenizer.json": b"{}", "model.0.onnx": b"graph"}
WORDS = tuple(word.encode() for word in ("manifest_sha256", "schema_version", "2", "3", "files", "spec", "precision"))


def _manifest() -> Manifest:
    return Manifest(
        schema_version=SCHEMA_VERSION,
        source="a checkpoint",
        source_sha256="0" * 64,
        spec=SPEC,
        recipe="int4-asym-g64",
        weight_group_size=64,
        stop_token_ids=(1, 2),
        bits_per_weight=5.1,
        weight_bytes=1000,
        golden_kld=0.01,
        warnings=("a doubt",),
        decisions=("another rope theta",),
        adapter="",
        calibration="",
        checks=(StageCheck("embedding", 0.1, 0.1),),
        tensors={
            "embed.weight": TensorRecord((VOCAB, 64), "int8-asym", 4096, ""),
            "norm.weight": TensorRecord((64,), "fp32", 256, "norms and biases stay float"),
        },
        files={name: FileRecord(len(raw), hashlib.sha256(raw).hexdigest()) for name, raw in FILES.items()},
        versions={"edgeglm": "0.1.0"},
    )


def _manifests(folder: Path) -> list[bytes]:
    for name, raw in FILES.items():
        (folder / name).write_bytes(raw)
    text = _manifest().to_json()
    earlier = json.loads(text) | {"schema_version": 2}
    del earlier[DIGEST]
    return [text.encode(), json.dumps(earlier).encode()]


def _read(raw: bytes, _folder: Path) -> object:
    return Manifest.from_json(raw)


def _read_forged(raw: bytes, folder: Path) -> object:
    """The values as they are, with a digest of them; then all that is asked of an opened bundle before its engine."""
    with contextlib.suppress(ValueError, RecursionError):
        data = json.loads(raw) if len(raw) <= MAX_BYTES else None
        if isinstance(data, dict):
            raw = json.dumps(data | {DIGEST: digest_of(data)}).encode("utf-8", "surrogatepass")
    (folder / MANIFEST).write_bytes(raw)
    bundle = open_bundle(folder)
    manifest = bundle.manifest
    assert 0 < manifest.fewest_bits < 100
    assert len(manifest.model_sha256) == 64
    assert manifest.spec.kv_values_per_token > 0
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert len(bundle.onnx_parts(OnnxKernels())) < 2
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream):
        assert main(["inspect", str(folder)]) == 0
    assert not any(ord(c) < 32 and c != "\n" for c in stream.getvalue())
    return manifest


def _golden(_folder: Path) -> list[bytes]:
    stream, plain = io.BytesIO(), io.BytesIO()
    logits = np.ones((4, VOCAB), np.float32)
    np.savez_compressed(stream, ids=np.arange(8), logits=logits, float_logits=logits * 2)
    np.savez(plain, ids=np.arange(8), logits=logits, float_logits=logits * 2)
    return [stream.getvalue(), plain.getvalue()]


def _read_golden(raw: bytes, _folder: Path) -> object:
    golden = read_golden(raw, VOCAB)
    assert golden.logits.nbytes + golden.ids.nbytes < 100_000
    return golden


TARGETS = (
    Target("manifest", _manifests, _read, "json", WORDS),
    Target("manifest-forged", _manifests, _read_forged, "json", WORDS),
    Target("golden", _golden, _read_golden, "bytes", (b"PK\x01\x02", b"PK\x03\x04", b"shape", b"descr", b"\xff" * 8)),
)
