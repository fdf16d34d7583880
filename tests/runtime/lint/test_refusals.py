"""What the rules refuse is refused before weights are read and before anything is compiled."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import edge
from edge.runtime import lint
from edge.runtime.bundle import MODEL_BIN, Bundle, open_bundle
from edge.runtime.engines import openvino_npu
from edge.runtime.engines.choice import compile_ahead, open_engine
from edge.runtime.errors import DeviceError, LintError
from edge.runtime.lint import RULES, Target
from edge.runtime.settings import EngineSettings
from tests.runtime.lint.bundles import BREAKERS, GPU, NPU, tag

BAD = [rule for rule in RULES if RULES[rule].severity in ("crash", "garbage")]
ENGINES = {"NPU": "openvino_npu", "GPU": "openvino"}


@pytest.fixture
def bundle(npu_bundle: Path, tmp_path: Path) -> Path:
    shutil.copytree(npu_bundle, tmp_path / "bundle")
    tag(tmp_path / "bundle", -1)
    return tmp_path / "bundle"


@pytest.fixture(autouse=True)
def weights_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody reads the weights."""

    def read(*_: Any) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(Bundle, "check_weights", read)


def there(monkeypatch: pytest.MonkeyPatch, target: Target) -> None:
    """Let this machine have the device."""
    monkeypatch.setattr(lint, "target_here", lambda *_, **__: target)
    monkeypatch.setattr(openvino_npu, "target_here", lambda *_, **__: target)
    monkeypatch.setattr(openvino_npu, "device_here", lambda *_: target.device)


@pytest.mark.parametrize("rule", [rule for rule in BAD if rule.startswith("gpu") or RULES[rule].of_weights])
def test_an_engine_is_not_opened(rule: str, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = RULES[rule].family
    there(monkeypatch, BREAKERS[rule](bundle))
    (bundle / MODEL_BIN).write_bytes(bytes((bundle / MODEL_BIN).stat().st_size))  # not what anybody may read
    with pytest.raises(LintError, match=rule):
        open_engine(open_bundle(bundle), EngineSettings(ENGINES[family], family))


def test_what_suits_the_device_goes_on_to_its_weights(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for target in (NPU, GPU):
        there(monkeypatch, target)
        with pytest.raises(AssertionError, match="weights were read"):
            open_engine(open_bundle(bundle), EngineSettings(ENGINES[target.device], target.device))


def test_nothing_is_compiled_ahead(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there(monkeypatch, BREAKERS["npu-symmetric"](bundle))
    with pytest.raises(LintError, match="npu-symmetric"):
        compile_ahead(open_bundle(bundle), EngineSettings("openvino_npu", "NPU"))


def test_the_pipeline_on_a_cpu_is_refused_what_was_seen_to_fail(bundle: Path) -> None:
    settings = EngineSettings("openvino_npu", "CPU")
    BREAKERS["npu-blocks"](bundle)
    with pytest.raises(LintError, match="npu-blocks"):
        open_engine(open_bundle(bundle), settings)


def test_what_only_an_npu_gets_wrong_may_be_tried_on_a_cpu(int4_bundle: Path) -> None:
    with pytest.raises(AssertionError, match="weights were read"):
        open_engine(open_bundle(int4_bundle), EngineSettings("openvino_npu", "CPU"))


def test_a_device_that_is_not_here_is_what_is_told_first(int4_bundle: Path) -> None:
    with pytest.raises(DeviceError, match="does not exist on this machine") as raised:
        edge.load(int4_bundle, engine="openvino_npu", device="NPU")
    assert not isinstance(raised.value, LintError)
