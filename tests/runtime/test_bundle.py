"""A bundle that is not what its manifest says is refused, with the file that is wrong."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edge.cli import main
from edge.runtime import bundle as bundles
from edge.runtime.bundle import open_bundle
from edge.runtime.differences import kl_divergence
from edge.runtime.errors import BundleError, VerificationError
from edge.runtime.llm import LLM
from edge.runtime.manifest import DIGEST, SCHEMA_VERSION, Manifest
from edge.runtime.verify import verify
from tests.conftest import ENGINES
from tests.forging import forge_file, forge_manifest, read_manifest

SMALL = (
    bundles.TOKENIZER,
    bundles.CHAT_TEMPLATE,
    bundles.MODEL_XML,
    bundles.MODEL_ONNX,
    "model.0.onnx",
    "model_int8_kv16.0.onnx",
    bundles.GOLDEN,
    bundles.CONFIG,
    bundles.GENAI_CONFIG,
    "openvino_tokenizer.bin",
)


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def test_manifest_round_trip(bundle: Path) -> None:
    text = (bundle / bundles.MANIFEST).read_text(encoding="utf-8")
    assert Manifest.from_json(text).to_json() == text


def test_a_link_is_followed_once(bundle: Path, tmp_path: Path) -> None:
    """So that what is opened is one bundle, wherever the link leads meanwhile."""
    (tmp_path / "current").symlink_to("bundle")
    opened = open_bundle(tmp_path / "current")
    (tmp_path / "current").unlink()
    (tmp_path / "current").symlink_to("elsewhere")
    opened.check_hashes()
    with pytest.raises(BundleError, match="no such path"):
        open_bundle(tmp_path / "current")


def flip(path: Path, at: int | None = None) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 if at is None else at] ^= 1
    path.write_bytes(bytes(raw))


def _npz(**arrays: npt.NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **arrays)
    return stream.getvalue()


def test_no_such_path(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such path"):
        open_bundle(tmp_path / "nothing")


def test_a_checkpoint_is_no_bundle(tiny_checkpoint: Path) -> None:
    with pytest.raises(BundleError, match="it is not a bundle; make one with `edge export"):
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
    flip(bundle / name)
    with pytest.raises(BundleError, match=f"{name} is altered"):
        verify(bundle)


def test_newer_schema(bundle: Path) -> None:
    forge_manifest(bundle, lambda data: data.update(schema_version=SCHEMA_VERSION + 1))
    with pytest.raises(BundleError, match="schema version 4, this edgeglm reads 2 to 3; update edgeglm"):
        open_bundle(bundle)


def test_older_schema(bundle: Path) -> None:
    forge_manifest(bundle, lambda data: data.update(schema_version=1))
    with pytest.raises(BundleError, match=r"schema version 1.*export it again"):
        open_bundle(bundle)


def test_a_bundle_without_a_digest_of_its_manifest_opens(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As exports wrote them before: minutes to hours of work are not thrown away."""
    data = read_manifest(bundle) | {"schema_version": 2}
    del data[DIGEST]
    (bundle / bundles.MANIFEST).write_text(json.dumps(data))
    manifest = open_bundle(bundle).manifest
    assert manifest.schema_version == 2
    assert DIGEST not in manifest.to_json()
    assert main(["verify", str(bundle)]) == 0
    assert "manifest.json is of an earlier version, which has no sha256 of its own" in capsys.readouterr().out


@pytest.mark.parametrize("version", [2, 3])
def test_a_digest_is_not_got_rid_of_by_one_change(bundle: Path, version: int) -> None:
    """Neither by another version nor by another name of its field."""
    data = read_manifest(bundle)
    data |= {"schema_version": version}
    if version == 3:
        data["Manifest_sha256"] = data.pop(DIGEST)
    (bundle / bundles.MANIFEST).write_text(json.dumps(data))
    with pytest.raises(BundleError, match=r"manifest\.json (is altered|has no field 'manifest_sha256')"):
        open_bundle(bundle)


def test_another_layout_of_the_same_manifest(bundle: Path) -> None:
    """Line ends and indents that a tool for copying or editing changed are no damage."""
    manifest = open_bundle(bundle).manifest
    path, flat = bundle / bundles.MANIFEST, json.dumps(read_manifest(bundle))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert open_bundle(bundle).manifest == manifest
    path.write_text(flat)
    assert open_bundle(bundle).manifest == manifest


@pytest.mark.parametrize(
    ("name", "value"),
    [("stop_token_ids", [256]), ("source", "other"), ("spec", {"rope_theta": 1e6}), ("tensors", {})],
)
def test_a_value_changed_in_the_manifest(bundle: Path, name: str, value: Any) -> None:
    data = read_manifest(bundle)
    data[name] = data[name] | value if isinstance(value, dict) and value else value
    (bundle / bundles.MANIFEST).write_text(json.dumps(data))
    with pytest.raises(BundleError, match=r"manifest\.json is altered"):
        open_bundle(bundle)


@pytest.mark.parametrize("text", ["", "{}", "[1]", "not json", '{"schema_version": 2}'])
def test_manifest_that_is_none(bundle: Path, text: str) -> None:
    (bundle / bundles.MANIFEST).write_text(text)
    with pytest.raises(BundleError, match="export the bundle again"):
        open_bundle(bundle)


SPEC: dict[str, list[object]] = {
    "num_layers": [0, "3", 2.5, True, None, 10**9],
    "num_kv_heads": [0, -2],
    "head_dim": [0, 10**9],
    "rotary_dim": [10**9, 17, -2],
    "rope_theta": [-1, "x", None],
    "rms_norm_eps": [-1],
    "vocab_size": [0, 2**40],
    "max_position_embeddings": [0],
    "qkv_bias": [1, None],
    "architecture": ["\x1b[2J", 5],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in SPEC.items() for value in values])
def test_numbers_that_no_model_has(bundle: Path, name: str, value: object) -> None:
    forge_manifest(bundle, lambda data: data["spec"].update({name: value}))
    with pytest.raises(BundleError, match=rf"manifest\.json: spec\.{name} is .*, expected .*; export the bundle again"):
        open_bundle(bundle)


@pytest.mark.parametrize("raw", ["NaN", "Infinity", "1e999", "9" * 400, "[" * 200 + "]" * 200, '"\\ud83d"'])
def test_what_json_cannot_hold(bundle: Path, raw: str) -> None:
    path = bundle / bundles.MANIFEST
    path.write_text(re.sub(r'("rope_theta": )[^,]*', lambda found: found[1] + raw, path.read_text()))
    with pytest.raises(BundleError, match=r"manifest\.json is not valid JSON: .*; export the bundle again"):
        open_bundle(bundle)


def test_a_manifest_that_is_too_large(bundle: Path) -> None:
    with (bundle / bundles.MANIFEST).open("ab") as file:
        file.truncate(1 << 40)  # of which the disk has nothing
    with pytest.raises(BundleError, match=r"manifest\.json has 1,099,511,627,776 bytes, expected at most"):
        open_bundle(bundle)


def test_a_key_that_is_there_twice(bundle: Path) -> None:
    path = bundle / bundles.MANIFEST
    path.write_text(path.read_text().replace('"source":', '"recipe": "fp32",\n "source":'))
    with pytest.raises(BundleError, match="has the key 'recipe' twice"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(tensors={}), "tensors holds no matrix"),
        (lambda data: next(iter(data["tensors"].values())).update(precision="int"), r"precision is 'int', expected"),
        (lambda data: next(iter(data["tensors"].values())).update(shape=[0]), r"shape is \[0\], expected"),
        (lambda data: next(iter(data["tensors"].values())).update(shape=4), r"shape is 4, expected a list"),
        (lambda data: data.update(tensors=[]), "tensors is \\[\\], expected a JSON object"),
        (lambda data: data.update(stop_token_ids=[320]), r"stop_token_ids is \[320\], expected a list, each .* to 319"),
        (lambda data: data.update(stop_token_ids=[-1]), "stop_token_ids is"),
        (lambda data: data.update(warnings=[5]), "warnings holds 5, expected texts"),
        (lambda data: data.update(warnings="no"), "warnings is 'no', expected a list"),
        (lambda data: data.update(checks=[[]]), r"checks\[0\] is \[\], expected a JSON object"),
        (lambda data: data.update(recipe="\x1b[31mred"), r"recipe is '\\x1b\[31mred', expected"),
        (lambda data: data["versions"].update({"a\nb": "1"}), r"has the key 'a\\nb'"),
        (lambda data: data["files"].update({"a" * 256: {"size": 1, "sha256": "0" * 64}}), "too long for a name"),
        (lambda data: data["files"].update({"x": {"size": -1, "sha256": "0" * 64}}), "size is -1, expected"),
        (lambda data: data["files"].update({"x": {"size": 1, "sha256": ""}}), "sha256 is '', expected 64 hexadecimal"),
        (lambda data: data["files"].update({"x": {"size": 1, "sha256": "0" * 64}}), "x is missing"),
        (lambda data: data.pop("recipe"), "has no field 'recipe'"),
    ],
)
def test_a_manifest_that_is_not_typed(bundle: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    forge_manifest(bundle, change)
    with pytest.raises(BundleError, match=message):
        open_bundle(bundle)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/b", "a\\b", "..", ".", "manifest.json"])
def test_file_outside_the_bundle(bundle: Path, name: str) -> None:
    forge_manifest(bundle, lambda data: data["files"].update({name: {"size": 1, "sha256": "0" * 64}}))
    with pytest.raises(BundleError, match="outside the bundle"):
        open_bundle(bundle)


def test_words_of_others_do_not_reach_a_terminal_raw(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint's folder, an adapter's, or a warning may be called what a terminal would obey."""
    words = "\x1b]0;title\x07\x1b[2J\u202e\r\nnext"
    forge_manifest(bundle, lambda data: data.update(source=words, adapter=words, warnings=[words], decisions=[words]))
    assert main(["inspect", str(bundle)]) == 0
    shown = capsys.readouterr().out
    assert shown.count(r"\x1b]0;title\x07\x1b[2J\u202e\r\nnext") == 4
    assert not set(shown) & set("\x1b\x07\r\u202e")
    assert main(["inspect", "--json", str(bundle)]) == 0
    assert not set(capsys.readouterr().out) & set("\x1b\x07\r\u202e")


def test_a_manifest_is_written_whatever_things_are_called(tiny_bundle: Path) -> None:
    """A folder's name need not be Unicode; hours of export must not end there."""
    manifest = replace(open_bundle(tiny_bundle).manifest, source="caf\udce9", warnings=("\ud83d",))
    again = Manifest.from_json(manifest.to_json().encode())
    assert again == manifest
    assert again.source == r"caf\udce9"


@pytest.mark.parametrize("name", SMALL)
def test_opening_reads_every_small_file(bundle: Path, name: str) -> None:
    flip(bundle / name)
    with pytest.raises(BundleError, match=f"{re.escape(name)} is altered"):
        open_bundle(bundle)


def test_what_was_hashed_is_what_is_read(bundle: Path) -> None:
    """A file that changes after it was opened is not read a second time, or is hashed again."""
    opened = open_bundle(bundle)
    content = (bundle / bundles.TOKENIZER).read_bytes()
    flip(bundle / bundles.TOKENIZER)
    assert opened.read(bundles.TOKENIZER) == content
    with pytest.raises(BundleError, match=r"tokenizer\.json is altered"):
        opened.read(bundles.TOKENIZER)
    assert opened.read("nothing") is None


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
    forge_file(bundle, bundles.GOLDEN, _npz(**arrays))
    with pytest.raises(VerificationError, match=r"differ by 0\.0099 of their scale"):
        verify(bundle)


def test_kl_divergence_by_hand() -> None:
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.5, 0.25])
    expected = 0.5 * np.log(2) + 0.25 * np.log(0.5)
    logits = [np.log(x)[None].astype(np.float32) + shift for x, shift in ((p, 3), (q, -40))]
    assert kl_divergence(logits[0], logits[1]) == pytest.approx(expected, abs=4e-6)  # a float32 near 40 rounds so
    assert kl_divergence(logits[0], logits[0]) == 0
