"""`edge verify --device NPU` or `GPU`: what rules find, as text and JSON, and the exit code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from edge.cli import main
from edge.runtime import lint
from edge.runtime import verify as verification
from edge.runtime.bundle import Bundle
from edge.runtime.errors import VerificationError
from edge.runtime.lint import RULES
from tests.runtime.lint.bundles import NPU, tag

VERIFY = verification.verify


@pytest.fixture
def bundle(npu_bundle: Path, tmp_path: Path) -> Path:
    shutil.copytree(npu_bundle, tmp_path / "bundle")
    tag(tmp_path / "bundle", -1)
    return tmp_path / "bundle"


def verify(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    code = main(["verify", *map(str, arguments)])
    return code, capsys.readouterr().out


def as_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    code, out = verify(capsys, *arguments, "--json")
    told: dict[str, Any] = json.loads(out)
    return code, told


@pytest.fixture(autouse=True)
def nothing_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no such device, so nothing may try to compute on it."""

    def computed(*_: Any) -> None:
        raise AssertionError("an engine was opened")

    monkeypatch.setattr(verification, "verify", computed)


@pytest.mark.parametrize("device", ["NPU", "gpu"])
def test_a_bundle_that_suits_a_device_of_another_machine(
    bundle: Path, device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = verify(capsys, bundle, "--device", device)
    assert code == 0
    assert "not on this machine" in text
    assert text.splitlines()[-1] == f"{bundle}: checked by rules alone: nothing was compiled or computed"
    code, told = as_json(capsys, bundle, "--device", device)
    assert code == 0
    assert told["engines"] == []
    assert told["lint"]["target"]["device"] == device.upper()
    assert told["lint"]["rules"] == [rule for rule in RULES if rule.startswith(device.lower())]
    assert [finding["rule"] for finding in told["lint"]["findings"]] == [f"{device.lower()}-plugin"]


def test_a_bundle_that_would_crash(int4_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = verify(capsys, int4_bundle, "--device", "NPU")
    assert code == 1
    assert "  crash: npu-symmetric: " in text
    assert RULES["npu-symmetric"].sources[0].place in text
    assert RULES["npu-symmetric"].advice in text
    assert text.splitlines()[-1] == f"{int4_bundle}: not for this device"
    code, told = as_json(capsys, int4_bundle, "--device", "NPU")
    assert code == 1
    worst = told["lint"]["findings"][0]
    assert (worst["rule"], worst["severity"], worst["refused"]) == ("npu-symmetric", "crash", True)
    assert verify(capsys, int4_bundle, "--device", "GPU")[0] == 0


def test_a_platform_and_lengths_may_be_given(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (bundle, "--device", "NPU", "--max-prompt-tokens", 4000)
    assert verify(capsys, *arguments)[0] == 0
    assert verify(capsys, *arguments, "--platform", "4000")[0] == 0
    code, told = as_json(capsys, *arguments, "--platform", "3720")
    assert code == 1
    assert told["lint"]["findings"][0]["rule"] == "npu-prompt-3720"
    assert told["lint"]["target"]["max_prompt"] == 4096, "as the plugin rounds it"


def test_memory_of_another_machine(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for device in ("NPU", "GPU"):
        assert verify(capsys, bundle, "--device", device, "--max-memory", "16GB")[0] == 0
        code, told = as_json(capsys, bundle, "--device", device, "--max-memory", "100kB")
        assert code == 1
        assert told["lint"]["findings"][0]["rule"] == f"{device.lower()}-memory"


def test_a_device_that_is_here_computes_after_its_rules(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unless one of them says that it would crash. The CPU stands in for it."""

    def computes(bundle: Bundle, device: str, *more: Any) -> object:
        assert device == "NPU"
        return VERIFY(bundle, "CPU", *more)

    monkeypatch.setattr(lint, "target_here", lambda *_: NPU)
    monkeypatch.setattr(verification, "verify", computes)
    code, text = verify(capsys, bundle, "--device", "NPU")
    assert code == 0
    assert "NPU 4000" in text
    assert "openvino on CPU: golden logits off by" in text
    assert "  openvino_model.xml " in text, "files are compared"
    assert text.splitlines()[-1] == f"{bundle}: verified"
    tag(bundle, None)  # slow
    assert verify(capsys, bundle, "--device", "NPU")[0] == 0

    def wrong(*_: Any) -> None:
        raise VerificationError("golden logits differ")

    monkeypatch.setattr(verification, "verify", wrong)
    assert main(["verify", str(bundle), "--device", "NPU"]) == 1


def test_a_report_holds_what_the_rules_find(
    bundle: Path, int4_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the device is missing, or would be refused."""
    file = tmp_path / "report.json"
    code, told = as_json(capsys, int4_bundle, "--device", "NPU", "--report", file)
    assert code == 1
    assert told["report"] == str(file)
    content = json.loads(file.read_text(encoding="utf-8"))
    assert content["rules"]["findings"] == told["lint"]["findings"]
    assert content["rules"]["findings"][0]["rule"] == "npu-symmetric"
    assert content["runs"] == [], "nothing was compiled"
    code, text = verify(capsys, bundle, "--device", "GPU", "--report", file)
    assert code == 1, "there is none"
    assert f"{file}: written; attach it to an issue" in text
    assert "  failed: " in text
    file.write_text("of somebody else")
    assert main(["verify", str(bundle), "--device", "GPU", "--report", str(file)]) == 1
    assert "is not a device report" in capsys.readouterr().err
    assert file.read_text() == "of somebody else"


def test_a_report_of_what_runs(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = verify(capsys, bundle, "--report", tmp_path / "report.json")
    assert code == 0, text
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert {run["run"] for run in content["runs"]} == {
        f"{engine}, {setting}" for engine in ("openvino", "onnx") for setting in ("exact", "usual")
    }


def test_what_would_crash_is_not_tried(
    int4_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lint, "target_here", lambda *_: NPU)
    code, text = verify(capsys, int4_bundle, "--device", "NPU")
    assert code == 1
    assert "verified" not in text
