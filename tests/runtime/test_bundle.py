"""A bundle that is not what its manifest says is refused, with the file that is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from edge.runtime import bundle as bundles
from edge.runtime.bundle import Manifest, open_bundle
from edge.runtime.errors import BundleError, VerificationError
from edge.runtime.llm import LLM
from edge.runtime.verify import kl_divergence, verify
from tests.conftest import ENGINES


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def edit_manifest(bundle: Path, **changes: object) -> None:
    path = bundle / bundles.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_manifest_round_trip(bundle: Path) -> None:
    text = (bundle / bundles.MANIFEST).read_text(encoding="utf-8")
    assert Manifest.from_json(text).to_json() == text


def test_no_such_path(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such path"):
        open_bundle(tmp_path / "nothing")


def test_a_checkpoint_is_no_bundle(tiny_checkpoint: Path) -> None:
    with pytest.raises(BundleError, match="it is no bundle; make one with `edge export"):
        LLM(tiny_checkpoint)


def test_missing_file(bundle: Path) -> None:
    (bundle / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match=r"tokenizer\.json is missing"):
        open_bundle(bundle)


def test_shorter_file(bundle: Path) -> None:
    with (bundle / "openvino_model.bin").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(BundleError, match=r"openvino_model\.bin has 1000 bytes, the manifest says"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", ["openvino_model.bin", "openvino_model.xml", "tokenizer.json", "golden.npz"])
def test_flipped_byte(bundle: Path, name: str) -> None:
    raw = bytearray((bundle / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (bundle / name).write_bytes(bytes(raw))
    with pytest.raises(BundleError, match=f"{name} is altered"):
        verify(bundle)


def test_newer_schema(bundle: Path) -> None:
    edit_manifest(bundle, schema_version=bundles.SCHEMA_VERSION + 1)
    with pytest.raises(BundleError, match="schema version 3, this edgeglm reads 2; update edgeglm"):
        open_bundle(bundle)


def test_older_schema(bundle: Path) -> None:
    edit_manifest(bundle, schema_version=0)
    with pytest.raises(BundleError, match=r"schema version 0.*export it again"):
        open_bundle(bundle)


@pytest.mark.parametrize("text", ["", "{}", "[1]", "not json", '{"schema_version": 2}'])
def test_manifest_that_is_none(bundle: Path, text: str) -> None:
    (bundle / bundles.MANIFEST).write_text(text)
    with pytest.raises(BundleError, match="export the bundle again"):
        open_bundle(bundle)


def test_spec_of_another_shape(bundle: Path) -> None:
    spec = json.loads((bundle / bundles.MANIFEST).read_text())["spec"]
    edit_manifest(bundle, spec=spec | {"num_layers": "3"})
    with pytest.raises(BundleError, match=r"spec\.num_layers is '3', expected int"):
        open_bundle(bundle)


def test_file_outside_the_bundle(bundle: Path) -> None:
    files = json.loads((bundle / bundles.MANIFEST).read_text())["files"]
    edit_manifest(bundle, files=files | {"../../etc/passwd": {"size": 1, "sha256": ""}})
    with pytest.raises(BundleError, match="outside the bundle"):
        open_bundle(bundle)


def test_verify_passes_and_measures(tiny_bundle: Path) -> None:
    manifest = open_bundle(tiny_bundle).manifest
    reports = verify(tiny_bundle)
    assert {report.engine for report in reports} == set(ENGINES)
    for report in reports:
        assert report.exact_error < 1e-4
        assert report.kld_exact == pytest.approx(manifest.golden_kld, rel=1e-2, abs=1e-6)
        assert report.kld_device > 0


def test_verify_notices_another_function(bundle: Path) -> None:
    """Golden logits of other weights, with hashes that fit: only computing can tell."""
    with np.load(bundle / bundles.GOLDEN) as golden:
        arrays = dict(golden)
    arrays["logits"] = arrays["logits"] * np.float32(1.01)
    np.savez(bundle / bundles.GOLDEN, **arrays)
    files = json.loads((bundle / bundles.MANIFEST).read_text())["files"]
    record = bundles.record_of(bundle / bundles.GOLDEN)
    edit_manifest(bundle, files=files | {bundles.GOLDEN: {"size": record.size, "sha256": record.sha256}})
    with pytest.raises(VerificationError, match=r"differ by 0\.0099 of their scale"):
        verify(bundle)


def test_kl_divergence_by_hand() -> None:
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.5, 0.25])
    expected = 0.5 * np.log(2) + 0.25 * np.log(0.5)
    logits = [np.log(x)[None].astype(np.float32) + shift for x, shift in ((p, 3), (q, -40))]
    assert kl_divergence(logits[0], logits[1]) == pytest.approx(expected, abs=4e-6)  # a float32 near 40 rounds so
    assert kl_divergence(logits[0], logits[0]) == 0
