"""Compiled ahead through NPUW on the CPU: the same bits as when it is compiled at load, or not used at all."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from edge.runtime.bundle import open_bundle
from edge.runtime.engines.choice import compile_ahead, open_engine
from edge.runtime.engines.engine import ResumingEngine
from edge.runtime.engines.openvino_npu_compile import logger
from edge.runtime.errors import SettingsError
from edge.runtime.notices import LOGGER
from edge.runtime.settings import EngineSettings
from tests.runtime.npu_bundles import BUNDLES, npu_bundle
from tests.runtime.test_openvino_npu import CHUNK, EXACT_NPU, USUAL, write

pytestmark = pytest.mark.slow

PROMPT = list(range(3, 60))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return npu_bundle(BUNDLES[1], tmp_path_factory)


@pytest.mark.parametrize(
    "settings", [USUAL, replace(USUAL, inference_precision="bf16"), EXACT_NPU], ids=["usual", "bf16", "exact"]
)
def test_an_imported_model_gives_the_same_bits(
    settings: EngineSettings, bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The plugin forgets the precision of what it imports, which would move logits by 2e-2 of their scale."""
    caplog.set_level(logging.INFO, logger.name)
    settings = replace(settings, compiled_folder=tmp_path)
    opened = open_bundle(bundle)
    engine = open_engine(opened, settings)
    expected = write(engine, PROMPT, 6)
    engine.close()
    assert "imported from" not in caplog.text
    path, size, _ = compile_ahead(opened, settings)
    assert path.stat().st_size == size
    engine = open_engine(opened, settings)
    found = write(engine, PROMPT, 6)
    assert f"imported from {tmp_path}" in caplog.text
    assert found.ids == expected.ids
    assert (found.rows == expected.rows).all()
    assert isinstance(engine, ResumingEngine)
    assert engine.resume(len(PROMPT)) == (0 if settings.kv_precision == "f32" else CHUNK)
    engine.close()


def test_a_flipped_byte_and_other_settings_are_told_and_compiled(
    bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """OpenVINO itself takes the altered one without a word."""
    caplog.set_level(logging.INFO, LOGGER)
    opened, settings = open_bundle(bundle), replace(USUAL, compiled_folder=tmp_path)
    path, size, _ = compile_ahead(opened, settings)
    expected = open_engine(opened, settings)
    rows = write(expected, PROMPT, 3).rows
    expected.close()
    assert caplog.messages == []
    engine = open_engine(opened, replace(settings, max_response_tokens=128))
    engine.close()
    assert caplog.messages[0].startswith(f"{tmp_path} has this model compiled for other settings; it is compiled now")
    caplog.clear()
    raw = bytearray(path.read_bytes())
    raw[size // 2] ^= 1
    path.write_bytes(raw)
    engine = open_engine(opened, settings)
    assert (write(engine, PROMPT, 3).rows == rows).all()
    engine.close()
    assert caplog.messages[0].startswith(f"{path} is altered (its sha256 differs); the model is compiled now")


def test_other_engines_are_not_compiled_ahead(bundle: Path) -> None:
    with pytest.raises(SettingsError, match="the openvino engine is not compiled ahead: it starts in seconds; for an"):
        compile_ahead(open_bundle(bundle), EngineSettings("openvino"))
