"""Graphs and manifest tell of one model: where hashes fit and they do not, opening says so in one line."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import openvino as ov
import pytest

from edge.export.pipeline import export
from edge.runtime import bundle as bundles
from edge.runtime import known_files
from edge.runtime.bundle import OnnxKernels, open_bundle
from edge.runtime.engines.choice import choose, open_engine
from edge.runtime.engines.registry import ENGINES
from edge.runtime.errors import BundleError, DeviceError
from edge.runtime.files import sha256_of
from edge.runtime.graph_names import SPEC
from edge.runtime.llm import LLM
from edge.runtime.settings import EngineSettings
from tests.forging import forge_file, forge_manifest, read_manifest

ONE_LINE = r"[^\n]*"


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture
def int4(int4_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(int4_bundle, tmp_path / "int4"))


def answer(bundle: Path, engine: str) -> tuple[int, ...]:
    with LLM(bundle, EngineSettings(engine)) as llm:
        return llm.generate([1, 2, 3], max_new_tokens=8, ignore_stop_ids=True).answer().token_ids


def without_spec(bundle: Path) -> None:
    """As bundles were written before graphs carried it."""
    xml = (bundle / bundles.MODEL_XML).read_bytes()
    cut = re.sub(rb"<edgeglm>.*?</edgeglm>", b"", xml, flags=re.DOTALL)
    assert cut != xml
    forge_file(bundle, bundles.MODEL_XML, cut)
    for path in bundle.glob("model*.onnx"):
        model = onnx.load(path, load_external_data=False)
        assert [entry.key for entry in model.metadata_props] == [".".join(SPEC)]
        del model.metadata_props[:]
        forge_file(bundle, path.name, model.SerializeToString(deterministic=True))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rope_theta", 1e6),
        ("rms_norm_eps", 1e-3),
        ("num_layers", 4),
        ("num_heads", 4),
        ("num_kv_heads", 1),
        ("head_dim", 32),
        ("rotary_dim", 16),
        ("vocab_size", 319),
        ("max_position_embeddings", 2**31),
        ("architecture", "llama"),
        ("qkv_bias", False),
    ],
)
def test_a_manifest_of_another_model(bundle: Path, engine: str, name: str, value: object) -> None:
    """The rotary base above all: the tables of one engine are computed from it."""
    forge_manifest(bundle, lambda data: data["spec"].update({name: value}))
    with pytest.raises(BundleError, match=rf"was made for a model whose {name} is .*, the manifest says .*; export"):
        answer(bundle, engine)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_layers", 2, "caches 6 keys and values, the manifest says keys and values of 2 layers"),
        ("num_layers", 9999, "caches 6 keys and values"),
        ("num_kv_heads", 1, r"caches 0\.key as \[2, 16\], the manifest says 1 heads of 16"),
        ("head_dim", 64, r"caches 0\.key as \[2, 16\], the manifest says 2 heads of 64"),
        ("vocab_size", 400, "has logits of 320, the manifest says 400"),
    ],
)
def test_a_graph_that_does_not_say_what_it_is_of(
    bundle: Path, engine: str, name: str, value: int, message: str
) -> None:
    """Of a bundle exported earlier: its inputs, states and outputs tell."""
    without_spec(bundle)
    whole = answer(bundle, engine)
    assert len(whole) == 8
    forge_manifest(bundle, lambda data: data["spec"].update({name: value}))
    if engine == "openvino" and name in ("num_kv_heads", "head_dim"):  # it has them from the graph alone
        assert answer(bundle, engine) == whole
        return
    with pytest.raises(BundleError, match=f"{message}{ONE_LINE}; export the bundle again"):
        answer(bundle, engine)


def test_rotary_tables_of_another_width(bundle: Path) -> None:
    """Heads that attention rotates itself have tables as inputs; the tiny model's are too narrow for that."""
    spec = open_bundle(bundle).manifest.spec
    path = bundle / OnnxKernels().part(0)
    model = onnx.load(path, load_external_data=False)
    del model.metadata_props[:]
    for name in ("cos", "sin"):
        model.graph.input.append(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["positions", spec.rotary_dim])
        )
    forge_file(bundle, path.name, model.SerializeToString())
    with pytest.raises(BundleError, match="has cos of 8, the manifest says 4"):
        LLM(bundle, EngineSettings("onnx", dynamic_quantization_group=0))


def test_a_part_that_nobody_named(int4: Path) -> None:
    """The graph with int8 activations, forgotten while the other kinds are there."""
    name = OnnxKernels(int8_activations=True).part(0)
    forge_manifest(int4, lambda data: data["files"].pop(name))
    with pytest.raises(BundleError, match=rf"{re.escape(name)} is missing; copy the bundle again or export it again"):
        answer(int4, "onnx")


def test_parts_in_another_order(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.export.graph.onnx.models.PART_BYTES", 1)
    bundle = tmp_path / "bundle"
    export(tiny_checkpoint, bundle, "int8-asym", format="onnx")
    first, second = ((bundle / OnnxKernels().part(index)).read_bytes() for index in (0, 1))
    assert len(answer(bundle, "onnx")) == 8
    forge_file(bundle, OnnxKernels().part(1), first)
    with pytest.raises(BundleError, match="has no hidden, so a part of this graph is missing"):
        answer(bundle, "onnx")
    forge_file(bundle, OnnxKernels().part(1), second)
    last = max(index for index in range(9) if (bundle / OnnxKernels().part(index)).exists())
    forge_manifest(bundle, lambda data: data["files"].pop(OnnxKernels().part(last)))
    with pytest.raises(BundleError, match="has no logits, so a part of this graph is missing"):
        answer(bundle, "onnx")


def test_a_cache_of_another_type(bundle: Path) -> None:
    other = (bundle / OnnxKernels(float16_cache=True).part(0)).read_bytes()
    forge_file(bundle, OnnxKernels().part(0), other)
    with pytest.raises(BundleError, match=r"caches tensor\(float16\), expected tensor\(float\)"):
        LLM(bundle, EngineSettings("onnx", dynamic_quantization_group=0))


@pytest.mark.parametrize(
    "change",
    [
        lambda xml: xml.replace(b"<layer ", b"<layer\xff ", 1),
        lambda xml: xml[: len(xml) // 2],
        lambda xml: b"",
        lambda xml: xml.replace(b'type="Result"', b'type="Nothing"'),
        lambda xml: xml.replace(b"past_key_values.0.key", b"other"),
        lambda xml: xml.replace(b"num_layers", b"Num_layers"),
        lambda xml: xml.replace(b"&quot;num_layers", b"num_layers"),
    ],
)
def test_an_ir_that_hashes_fit_and_that_is_none(bundle: Path, change: Callable[[bytes], bytes]) -> None:
    xml = (bundle / bundles.MODEL_XML).read_bytes()
    assert change(xml) != xml
    forge_file(bundle, bundles.MODEL_XML, change(xml))
    with pytest.raises((BundleError, DeviceError)) as caught:
        answer(bundle, "openvino")
    assert "\n" not in str(caught.value)


def test_a_graph_of_ours_says_what_it_was_made_for(bundle: Path) -> None:
    spec = open_bundle(bundle).manifest.spec
    model = ov.Core().read_model(bundle / bundles.MODEL_XML)
    assert model.get_rt_info(list(SPEC)).astype(str) == spec.to_line()
    for path in bundle.glob("model*.onnx"):
        (entry,) = onnx.load(path, load_external_data=False).metadata_props
        assert (entry.key, entry.value) == ("edgeglm.spec", spec.to_line())


# --- Weights ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The weights that were read to be hashed; a cache folder of its own, and files that count as old."""
    found: list[str] = []

    def counted(path: Path) -> str:
        found.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr(known_files, "sha256_of", counted)
    monkeypatch.setattr(known_files, "SETTLED_NS", -(10**9))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return found


def test_weights_are_read_at_the_first_load_alone(bundle: Path, engine: str, reads: list[str]) -> None:
    first = answer(bundle, engine)
    assert reads == ENGINES[engine].weights(open_bundle(bundle)) == [bundles.MODEL_BIN]
    assert answer(bundle, engine) == first
    assert len(reads) == 1


def test_weights_that_changed_are_no_weights(bundle: Path, engine: str, reads: list[str]) -> None:
    """Every answer before was right; one byte later there is none."""
    answer(bundle, engine)
    path = bundle / bundles.MODEL_BIN
    content = path.read_bytes()
    for at in (0, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(BundleError, match=r"openvino_model\.bin is altered"):
            answer(bundle, engine)
    path.write_bytes(content)
    answer(bundle, engine)


def test_one_engine_does_not_read_the_weights_of_another(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Signed integers are in both files."""
    export(tiny_checkpoint, tmp_path / "bundle", "int8-sym")
    with (tmp_path / "bundle" / bundles.ONNX_DATA).open("r+b") as file:
        file.write(b"\xff\0\xff\0")
    assert len(answer(tmp_path / "bundle", "openvino")) == 8
    with pytest.raises(BundleError, match=r"model\.onnx\.data is altered"):
        answer(tmp_path / "bundle", "onnx")


def link_weights(bundle: Path) -> None:
    """As on a machine whose weights are on another disk."""
    far = bundle.parent / "far"
    far.mkdir()
    (bundle / bundles.MODEL_BIN).rename(far / bundles.MODEL_BIN)
    (bundle / bundles.MODEL_BIN).symlink_to(far / bundles.MODEL_BIN)


def test_weights_that_are_links_to_another_folder(int4: Path) -> None:
    assert choose(open_bundle(int4), EngineSettings()) == "onnx"
    link_weights(int4)
    assert choose(open_bundle(int4), EngineSettings()) == "openvino"
    assert len(answer(int4, "auto")) == 8
    said = "Hello"
    try:
        open_engine(open_bundle(int4), EngineSettings("onnx")).close()
    except DeviceError as error:  # of onnxruntime's newer versions
        said = str(error)
    assert said == "Hello" or "put the file itself there instead of a link, or use --engine openvino" in said


def test_a_bundle_that_is_itself_a_link(int4: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(int4)
    assert choose(open_bundle(tmp_path / "link"), EngineSettings()) == "onnx"
    assert len(answer(tmp_path / "link", "onnx")) == 8


def test_links_where_no_other_engine_is_there(int4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link_weights(int4)
    monkeypatch.setattr("edge.runtime.engines.choice.ENGINES", {"onnx": ENGINES["onnx"]})
    assert choose(open_bundle(int4), EngineSettings()) == "onnx"


def test_what_a_process_may_not_read_is_said(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("edge.runtime.bundle.sha256_of", refuse)
    with pytest.raises(BundleError, match=r"cannot be read \(Permission denied\); copy the bundle again"):
        open_bundle(bundle)


def test_a_path_that_is_too_long(tmp_path: Path) -> None:
    for path in (tmp_path / ("a" * 5000), tmp_path / "a\0b"):
        with pytest.raises(BundleError, match="no such path") as caught:
            open_bundle(path)
        assert len(str(caught.value)) < 600


def test_forged_fields_of_every_kind_open_or_are_one_line(int4: Path, engine: str) -> None:
    """What decides kernels, contexts and stops, with both engines behind it."""
    whole = read_manifest(int4)
    changes: list[dict[str, Any]] = [
        {"stop_token_ids": []},
        {"weight_group_size": 0},
        {"bits_per_weight": -1e300},
        {"checks": []},
        {"tensors": {"a": {"shape": [2, 2], "precision": "int99", "nbytes": 0, "note": ""}}},
        {"tensors": {"a": {"shape": [2, 2], "precision": "fp16", "nbytes": 0, "note": ""}}},
        {"files": {}},
    ]
    for change in changes:
        forge_manifest(int4, lambda data, change=change: data.update(whole | change))  # type: ignore[misc]
        said = ""
        try:
            answer(int4, engine)
        except (BundleError, DeviceError) as error:
            said = str(error)
        assert "\n" not in said
        assert not said or "files" in change or "tensors" in change
