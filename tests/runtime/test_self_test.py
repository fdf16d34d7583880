"""A loaded engine computes what the export recorded, or it is not used."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edge
from edge.export.emulation import write_golden_rows
from edge.export.pipeline import export
from edge.runtime import bundle as bundles
from edge.runtime import self_test as testing
from edge.runtime.arrays import Ids, Logits
from edge.runtime.bundle import Bundle
from edge.runtime.engines.choice import open_engine
from edge.runtime.engines.engine import TEXT, EngineInfo, Inputs, Step
from edge.runtime.engines.scripted import ScriptedEngine, noise
from edge.runtime.errors import BundleError, DeviceError, SelfTestError
from edge.runtime.first_results import FILE
from edge.runtime.golden_rows import GoldenRows, read_golden_rows, top_logits
from edge.runtime.kv.pool import BlockPool, CacheSequence
from edge.runtime.notices import LOGGER
from edge.runtime.self_test import open_tested, self_test
from edge.runtime.self_test_bounds import EXACT, noises_of
from edge.runtime.settings import EngineSettings
from tests.conftest import ENGINES
from tests.forging import forge_file, forge_manifest
from tests.runtime.honest_loads import SETTINGS, SMALL, loads
from tests.tiny import make


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "edgeglm"


@pytest.fixture
def notices(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, "edge"), caplog.at_level(logging.INFO, LOGGER):
        yield caplog


def damaged(bundle: Path, out: Path) -> Bundle:
    """A bundle whose weights are others in memory than on the disk, as a failing device has them.

    A twentieth of them is random; its hash fits, so nothing but what is computed can tell.
    """
    shutil.copytree(bundle, out)
    weights = bytearray((out / bundles.MODEL_BIN).read_bytes())
    size = len(weights) // 20
    start = len(weights) // 2
    weights[start : start + size] = np.random.default_rng(0).bytes(size)
    forge_file(out, bundles.MODEL_BIN, bytes(weights))
    return bundles.open_bundle(out)


def golden_of(bundle: Path) -> GoldenRows:
    opened = bundles.open_bundle(bundle)
    return read_golden_rows(opened.required(bundles.SELF_TEST), opened.manifest.spec.vocab_size)


def test_the_first_load_computes_all_rows_and_later_ones_compare_bits(
    int4_bundle: Path, cache: Path, engine: str
) -> None:
    with edge.load(int4_bundle, engine=engine) as llm:
        first = llm.self_test
    assert first is not None
    assert (first.engine, first.device, first.bits) == (engine, "CPU", "none")
    assert first.kld is not None
    assert first.bound is not None
    assert 1e-5 < first.kld < first.bound, "activations are rounded to 8 bits"
    assert first.in_words.endswith("bits are kept for later loads")
    with edge.load(int4_bundle, engine=engine) as llm:
        assert llm.self_test == testing.SelfTest(engine, "CPU", "same")
    assert (cache / FILE).stat().st_mode & 0o777 == 0o600
    assert len((cache / FILE).read_bytes()) < 10_000


def test_weights_that_are_damaged_in_memory(int4_bundle: Path, tmp_path: Path, cache: Path, engine: str) -> None:
    bundle = damaged(int4_bundle, tmp_path / "bundle")
    with pytest.raises(
        SelfTestError,
        match=rf"engine {engine} on CPU fails its self-test: its logits are \S+ nats/token from those recorded at "
        r"export, expected \S+ or less \(row \d+ is \S+ from its own\); run edge verify, .*self_test fall-back",
    ):
        edge.load(bundle.path, engine=engine)
    assert not (cache / FILE).exists(), "no bad result is kept"
    with edge.load(bundle.path, engine=engine, self_test="off") as llm:
        assert llm.self_test is None


def test_bits_find_what_a_bound_does_not(
    int4_bundle: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same damage, at a later load of what is called the same model, for an engine without a bound."""
    with edge.load(int4_bundle, engine="onnx"):
        pass
    bundle = damaged(int4_bundle, tmp_path / "bundle")
    right = bundles.open_bundle(int4_bundle).manifest.model_sha256
    monkeypatch.setattr(type(bundle.manifest), "model_sha256", property(lambda _manifest: right))
    monkeypatch.setattr(testing, "bound_of", lambda *_arguments: None)
    engine, found = open_tested(bundle, EngineSettings("onnx"))
    engine.close()
    assert found is not None
    assert found.bits == "other"


class Disturbed:
    """An engine whose logits are changed on their way."""

    def __init__(self, engine: Any, change: Any) -> None:
        self._engine, self._change = engine, change
        self.pool: BlockPool = engine.pool
        self.info: EngineInfo = engine.info
        self.identity = engine.identity

    def forward(self, ids: Ids, sequence: CacheSequence, rows: Ids, inputs: Inputs = TEXT) -> Logits:
        found: Logits = self._change(self._engine.forward(ids, sequence, rows, inputs).copy(), sequence)
        return found

    def decode(self, steps: list[Step]) -> list[Logits]:
        return [self._change(rows.copy(), steps[0].sequence) for rows in self._engine.decode(steps)]

    def interrupt(self, *, final: bool) -> None:
        pass

    def close(self) -> None:
        self._engine.close()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("bounded", [True, False])
def test_one_value_that_is_not_a_number(
    int4_bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, value: float, bounded: bool
) -> None:
    """Anywhere in any row, whatever the bound is."""
    bundle, settings = bundles.open_bundle(int4_bundle), EngineSettings("onnx")
    if not bounded:
        monkeypatch.setattr(testing, "bound_of", lambda *_arguments: None)
    opened = open_engine(bundle, settings)

    def change(rows: Logits, sequence: CacheSequence) -> Logits:
        if sequence.num_tokens == 31:
            rows[-1, 0] = value
        return rows

    with pytest.raises(SelfTestError, match=r"row 30 of its logits holds NaN or infinity"):
        self_test(Disturbed(opened, change), bundle, settings)
    opened.pool.check_integrity([])
    opened.close()


def test_other_bits_are_told_once_with_row_and_figure(
    int4_bundle: Path, cache: Path, notices: pytest.LogCaptureFixture
) -> None:
    bundle, settings = bundles.open_bundle(int4_bundle), EngineSettings("onnx")
    opened = open_engine(bundle, settings)
    assert self_test(opened, bundle, settings).bits == "none"
    assert self_test(opened, bundle, settings).bits == "same"
    changed = Disturbed(opened, lambda rows, _sequence: np.nextafter(rows, np.float32(9), dtype=np.float32))
    found = self_test(changed, bundle, settings)
    assert found.bits == "other"
    assert found.kld is not None, "then all rows are computed"
    (said,) = [record.getMessage() for record in notices.records if record.levelno == logging.WARNING]
    assert said.startswith("onnx on CPU gives other bits than at the first load on this machine, in the same version: ")
    assert "row 1 is" in said
    assert "nats from what it was" in said
    assert self_test(changed, bundle, settings).bits == "same", "it is the new reference"
    opened.close()


def test_an_update_is_told_and_its_bits_are_kept(
    int4_bundle: Path, cache: Path, notices: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with edge.load(int4_bundle, engine="onnx"):
        pass
    monkeypatch.setattr(testing, "_own_version", lambda: "another")
    for bits in ("none", "same"):
        with edge.load(int4_bundle, engine="onnx") as llm:
            assert llm.self_test is not None
            assert llm.self_test.bits == bits
    said = [record for record in notices.records if "since the update from" in record.getMessage()]
    assert [record.levelno for record in said] == [logging.INFO]
    assert "gives the same bits" in said[0].getMessage()
    assert "to edgeglm another, engine version" in said[0].getMessage()


def test_another_setting_has_its_own_first_result(int4_bundle: Path, cache: Path) -> None:
    for chosen in ({}, {"threads": 1}, {"kv_precision": "f16"}):
        with edge.load(int4_bundle, engine="onnx", **chosen) as llm:
            assert llm.self_test is not None
            assert llm.self_test.bits == "none"
    for chosen in ({"max_context": 64}, {"kv_cache_bytes": 10**7}, {"self_test": "fall-back"}):
        with edge.load(int4_bundle, engine="onnx", **chosen) as llm:  # which change no logits
            assert llm.self_test is not None
            assert llm.self_test.bits == "same"


@pytest.mark.parametrize("context", [1, 2, 5, 20])
def test_a_context_that_holds_only_some_of_the_tokens(
    int4_bundle: Path, cache: Path, engine: str, context: int
) -> None:
    for bits in ("none", "same"):
        with edge.load(int4_bundle, engine=engine, max_context=context) as llm:
            assert llm.self_test is not None
            assert llm.self_test.bits == bits


def test_where_nothing_can_be_kept(int4_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        with edge.load(int4_bundle, engine="onnx") as llm:
            assert llm.self_test is not None
            assert llm.self_test.bits == "none"
            assert llm.self_test.kld is not None


def test_another_engine_falls_back(
    int4_bundle: Path, tmp_path: Path, cache: Path, notices: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of those that pass; it says what it is used instead of."""
    right = testing.self_test

    def failing(engine: Any, bundle: Bundle, settings: EngineSettings) -> testing.SelfTest:
        if engine.info.name == "openvino":
            raise SelfTestError("it is broken")
        return right(engine, bundle, settings)

    monkeypatch.setattr(testing, "self_test", failing)
    with edge.load(int4_bundle, engine="openvino", self_test="fall-back") as llm:
        assert llm.engine.info.name == "onnx"
        assert llm.self_test is not None
        assert llm.self_test.instead_of == "openvino on CPU"
        assert llm.self_test.in_words.endswith("used instead of openvino on CPU")
        assert llm.generate("Hello", max_new_tokens=3).answer().token_ids
    assert [r.getMessage() for r in notices.records if r.levelno == logging.WARNING] == [
        "it is broken; continuing with onnx on CPU"
    ]
    with pytest.raises(SelfTestError, match="it is broken"):
        edge.load(int4_bundle, engine="openvino")


def test_nothing_to_fall_back_to(int4_bundle: Path, tmp_path: Path, cache: Path) -> None:
    """No engine gives these rows: the first error is told."""
    bundle = damaged(int4_bundle, tmp_path / "bundle")
    with pytest.raises(SelfTestError, match="engine openvino on CPU fails"):
        edge.load(bundle.path, engine="openvino", self_test="fall-back")


def test_a_device_that_fails_meanwhile_falls_back_too(
    int4_bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_arguments: object) -> None:
        raise DeviceError("the driver is gone")

    monkeypatch.setattr("edge.runtime.engines.openvino_paged.OpenVINOPagedEngine.forward", fails)
    with edge.load(int4_bundle, engine="openvino", self_test="fall-back") as llm:
        assert llm.engine.info.name == "onnx"
    with pytest.raises(DeviceError, match="the driver is gone"):
        edge.load(int4_bundle, engine="openvino")


def test_the_engine_is_as_before(int4_bundle: Path, cache: Path, engine: str) -> None:
    """No block is held, nothing is cached, and answers have the same bits."""
    answers = []
    for asked in ("refuse", "off", "refuse"):
        with edge.load(int4_bundle, engine=engine, self_test=asked, reproducible=True) as llm:
            llm.engine.pool.check_integrity([])
            assert llm.num_cached_tokens == 0
            assert llm.engine.pool.bytes_held == 0
            answer = llm.generate("Hello", max_new_tokens=5, logprobs=0).answer()
            answers.append((answer.token_ids, [one.logprob for one in answer.logprobs or ()]))
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize("limits", [{}, {"logits_rows": "last", "can_trim": False, "max_step_rows": 1}])
def test_an_engine_that_can_do_little(tiny_bundle: Path, tmp_path: Path, cache: Path, limits: dict[str, Any]) -> None:
    """One sequence, no trimming, logits of the last row alone. The golden rows are those of a script."""
    ids, script = np.arange(32), noise(vocab_size=320)
    whole = ScriptedEngine(script, 320)
    golden = GoldenRows(ids, top_logits(whole.forward(ids, CacheSequence(whole.pool), ids)), {})
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    write_golden_rows(golden, folder / bundles.SELF_TEST)
    forge_file(folder, bundles.SELF_TEST, (folder / bundles.SELF_TEST).read_bytes())
    bundle, settings = bundles.open_bundle(folder), EngineSettings(dynamic_quantization_group=0)
    engine = ScriptedEngine(script, 320, num_blocks=4, max_sequences=1, **limits)
    found = self_test(engine, bundle, settings)
    assert found.kld is not None
    assert abs(found.kld) < 1e-10
    assert found.bound == EXACT
    assert self_test(engine, bundle, settings).bits == "same"
    engine.pool.check_integrity([])
    other = ScriptedEngine(noise(1, 320), 320, **limits)
    with pytest.raises(SelfTestError, match=r"expected 1e-08 or less"):
        self_test(other, bundle, settings)


def test_a_bundle_without_golden_rows(
    tiny_bundle: Path, tmp_path: Path, cache: Path, notices: pytest.LogCaptureFixture
) -> None:
    """As every one was before; it runs, and says so to who listens."""
    old = Path(shutil.copytree(tiny_bundle, tmp_path / "old"))
    (old / bundles.SELF_TEST).unlink()
    forge_manifest(old, lambda data: data["files"].pop(bundles.SELF_TEST))
    with edge.load(old) as llm:
        assert llm.self_test is not None
        assert not llm.self_test.asked
        assert llm.self_test.in_words == "the bundle has no golden rows, a new export has them"
    assert any("has no golden rows" in record.getMessage() for record in notices.records)


def test_golden_rows_that_are_invalid(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    forge_file(bundle, bundles.SELF_TEST, b"PK")
    with pytest.raises(BundleError, match=r"bundle: self_test\.npz cannot be read as arrays"):
        edge.load(bundle)
    with edge.load(bundle, self_test="off"):
        pass


@pytest.mark.parametrize("name", ENGINES)
def test_a_flipped_bit_in_any_file_is_found(int4_bundle: Path, tmp_path: Path, name: str) -> None:
    """Of weights, graphs, tokenizer and everything else, after a load that found all of them right."""
    if name == "openvino_npu":
        pytest.skip("it reads what openvino reads")
    bundle = Path(shutil.copytree(int4_bundle, tmp_path / "bundle"))
    with edge.load(bundle, engine=name):
        pass
    files = bundles.open_bundle(bundle).manifest.files
    assert {bundles.MODEL_BIN, bundles.MODEL_XML, bundles.TOKENIZER, "model.0.onnx", bundles.SELF_TEST} <= set(files)
    for file in files:
        content = (bundle / file).read_bytes()
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 1
        (bundle / file).write_bytes(flipped)
        if name == "openvino" and file == bundles.ONNX_DATA:  # which this engine does not read
            with pytest.raises(BundleError, match=f"{file} is altered"):
                edge.load(bundle, engine="onnx")
        else:
            with pytest.raises(BundleError, match=f"{file} is altered"):
                edge.load(bundle, engine=name)
        (bundle / file).write_bytes(content)
    with edge.load(bundle, engine=name):
        pass


@pytest.mark.parametrize(
    ("name", "chosen", "noise"),
    [
        ("onnx", {}, "int8"),
        ("openvino", {"inference_precision": "f32", "dynamic_quantization_group": 32}, "int8"),
        ("openvino", {"inference_precision": "bf16", "dynamic_quantization_group": 0}, "bf16"),
        ("openvino", {"inference_precision": "f32", "kv_precision": "u8", "dynamic_quantization_group": 0}, "kv8"),
        ("openvino", {"inference_precision": "f32", "kv_precision": "u4", "dynamic_quantization_group": 0}, "kv4"),
        ("onnx", {"kv_precision": "f16", "dynamic_quantization_group": 0}, "f16"),
    ],
)
def test_every_noise_is_needed(
    int4_bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, name: str, chosen: dict[str, Any], noise: str
) -> None:
    """An honest engine passes, and is refused where one thing that it rounds is not allowed for."""
    bundle = bundles.open_bundle(int4_bundle)
    engine = open_engine(bundle, settings := EngineSettings(name, **chosen))
    assert self_test(engine, bundle, settings, whole=True).kld is not None
    right = noises_of
    if noise not in right(engine.info, engine.identity, settings):
        engine.close()
        pytest.skip("this processor computes in float32")
    less = tuple(one for one in right(engine.info, engine.identity, settings) if one != noise)
    monkeypatch.setattr(testing, "noises_of", lambda *_of: less)
    with pytest.raises(SelfTestError, match=r"nats/token from those recorded at export, expected"):
        self_test(engine, bundle, settings, whole=True)
    engine.close()


def _set_sha256(data: dict[str, Any], sha256: str) -> None:
    data["files"][bundles.MODEL_BIN].update(sha256=sha256)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_64_kib_of_damage_in_a_real_model(demo_bundle: Path, tmp_path: Path, cache: Path, name: str) -> None:
    """Random bytes or zeros anywhere among the weights of the blocks, at the first load and with the usual settings."""
    folder = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    content = (folder / bundles.MODEL_BIN).read_bytes()
    rng = np.random.default_rng(0)
    for place in (0.4, 0.6, 0.8, 0.94):
        start = int(len(content) * place) // 64 * 64
        for damage in (rng.bytes(1 << 16), bytes(1 << 16)):
            (folder / bundles.MODEL_BIN).write_bytes(content[:start] + damage + content[start + len(damage) :])
            record = bundles.record_of(folder / bundles.MODEL_BIN)
            forge_manifest(folder, partial(_set_sha256, sha256=record.sha256))
            with pytest.raises(SelfTestError, match=rf"engine {name} on CPU fails its self-test"):
                edge.load(folder, engine=name)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["int8-asym", "int4-sym-channel", "int4-asym-g128-rot-gptq-lora"])
def test_honest_bundles_pass(tmp_path: Path, cache: Path, recipe: str) -> None:
    """`python -m tests.runtime.honest_loads` does it with all recipes and 20 loads of each."""
    make(SMALL, tmp_path / "checkpoint")
    export(tmp_path / "checkpoint", tmp_path / "bundle", recipe)
    for name, choices in SETTINGS.items():
        for chosen in choices:
            found = list(loads(tmp_path / "bundle", name, 3, chosen))
            assert [one.bits for one in found] == ["none", "same", "same"], chosen
            assert found[0].kld is not None
            assert found[0].bound is not None
            assert found[0].kld <= 0.8 * found[0].bound, "with room"
