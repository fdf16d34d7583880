"""Sweeps: what is measured, in which order, what is never measured twice, and what is refused before any work.

Steps are played by a stand-in here, which keeps a list of them; tests/edge/test_profile_command.py runs real ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge.export.text.corpus import builtin_calibration
from edge.profiles import processes, sweep_results
from edge.profiles.processes import Outcome, Peak, run_step
from edge.profiles.record import PROFILE, Profile, read_profile
from edge.profiles.settings import SweepSettings
from edge.profiles.sweep import sweep
from edge.profiles.sweep_plan import plan_sweep
from edge.profiles.sweep_progress import SweepProgress
from edge.runtime.errors import EdgeError, OutputError, ProfileError
from tests.profiles.rows import accuracy

TEXT = Path(__file__)  # short, which a sweep does not get by default
SMALL = SweepSettings(
    recipes=("int8-asym", "int4-asym-g64"),
    engines=("openvino", "onnx"),
    texts=(TEXT,),
    num_tokens=256,
    window_tokens=64,
)
ALL_STEPS = [
    "reference",
    "export int8-asym", "int8-asym openvino None", "int8-asym onnx None",
    "export int4-asym-g64", "int4-asym-g64 openvino None", "int4-asym-g64 onnx None",
]  # fmt: skip


class Steps:
    """Plays `run_step`: notes each step, and ends as told."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.fail: dict[str, BaseException] = {}
        self.resumed = False

    def __call__(self, task: Mapping[str, Any], tell: Callable[[str, int, int], None]) -> Outcome:
        name = str(task["task"])
        if name == "export":
            name = f"export {task['recipe']}"
        elif name == "measure":
            recipe = Path(task["bundle"]).name.rpartition("-")[0]
            name = f"{recipe} {task['engine']} {task['kv_precision']}"
            assert Path(task["bundle"]).is_dir()
        if name in self.fail:
            raise self.fail[name]
        self.done.append(name)
        peaks = {"": Peak(1, 2), "export": Peak(30, 40)}
        if task["task"] == "measure":
            peaks = {"": Peak(1, 2), "load": Peak(5, 6), "speed": Peak(7, 8), "accuracy": Peak(99, 99)}
        tell(str(task["task"]), 1, 2)
        if task["task"] == "export":
            Path(task["out"]).mkdir(parents=True, exist_ok=True)
            result: dict[str, Any] = {"resumed": self.resumed, "weight_bytes": 1000, "bits_per_weight": 8.5}
        elif task["task"] == "measure":
            result = {"load_s": 0.5, "kv_cache": "f32", "accuracy": accuracy(0.125).to_json(), "divergence": None}
            if task["speed"]:
                figures = {"prompt_tokens": 128, "ttft_ms": 7.0, "decode_tokens_per_second": 9.0}
                samples = {"ttft_ms_samples": [7.0, 6.5, 8.0], "decode_samples": [9.0, 8.5, 9.25]}
                result["speed"] = figures | samples
        else:
            result = {}
        return Outcome(result, 3.5, peaks)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    steps = Steps()
    monkeypatch.setattr(processes, "run_step", steps)
    monkeypatch.setattr(sweep_results, "_opens", Path.is_dir)
    return steps


def files(out: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted((out / "cells").iterdir())}


def test_every_cell_once_in_order(steps: Steps, tiny_checkpoint: Path, tmp_path: Path) -> None:
    seen: list[SweepProgress] = []
    profile = sweep(tiny_checkpoint, tmp_path / "out", SMALL, seen.append)
    assert steps.done == ALL_STEPS
    assert [row.name for row in profile.rows] == [
        "int8-asym/openvino", "int8-asym/onnx", "int4-asym-g64/openvino", "int4-asym-g64/onnx",
    ]  # fmt: skip
    assert read_profile(tmp_path / "out") == profile
    row = profile.rows[0]
    assert (row.export_s, row.export_peak_bytes, row.weight_bytes) == (3.5, 30, 1000)
    assert (row.load_s, row.peak_anonymous_bytes, row.peak_rss_bytes) == (0.5, 7, 8), "not those of measuring accuracy"
    assert (row.prompt_tokens, row.ttft_ms, row.decode_tokens_per_second) == (128, 7.0, 9.0)
    assert (row.ttft_ms_samples, row.decode_samples) == ((7.0, 6.5, 8.0), (9.0, 8.5, 9.25)), "each repeat is kept"
    assert (row.ttft_ms_spread, row.decode_spread) == (1.0, 0.5)
    assert not (tmp_path / "out" / "bundles").exists()
    assert [progress.row.name for progress in seen if progress.row] == [row.name for row in profile.rows]
    assert [progress.steps_done for progress in seen] == sorted(progress.steps_done for progress in seen)
    assert (seen[-1].steps_done, seen[-1].num_steps) == (7, 7)
    assert seen[0].seconds_left is None
    assert seen[-1].seconds_left == 0


def test_a_profile_is_written_after_each_cell(steps: Steps, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """When progress tells of a cell it is in profile.json already, and failures count."""
    steps.fail = {"int8-asym onnx None": ProfileError("no room")}
    states = []

    def look(progress: SweepProgress) -> None:
        found = read_profile(tmp_path)
        if progress.row is not None:
            assert found.rows[-1] == progress.row
        if progress.failure is not None:
            assert found.failures[-1] == progress.failure
        states.append(found.so_far)

    sweep(tiny_checkpoint, tmp_path, SMALL, look)
    assert list(dict.fromkeys(states)) == [*(f"{done} of 4 settings so far" for done in range(4)), ""]


def test_a_row_of_an_earlier_edgeglm_is_not_measured_again(steps: Steps, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """It has no samples: its spread stays unknown, which hours of measuring again are not worth."""
    one = replace(SMALL, recipes=("int8-asym",), engines=("onnx",))
    sweep(tiny_checkpoint, tmp_path, one)
    (path,) = (tmp_path / "cells").iterdir()
    data = json.loads(path.read_text())
    del data["row"]["ttft_ms_samples"], data["row"]["decode_samples"]
    path.write_text(json.dumps(data))
    steps.done.clear()
    (row,) = sweep(tiny_checkpoint, tmp_path, one).rows
    assert steps.done == []
    assert (row.decode_tokens_per_second, row.decode_spread) == (9.0, None)


def test_again_measures_nothing(steps: Steps, tiny_checkpoint: Path, tmp_path: Path) -> None:
    first = sweep(tiny_checkpoint, tmp_path, SMALL)
    before = files(tmp_path)
    steps.done.clear()
    assert sweep(tiny_checkpoint, tmp_path, SMALL) == first
    assert sweep(tiny_checkpoint, tmp_path, replace(SMALL, speed=False)) == first, "what is there is more than asked"
    assert steps.done == []
    assert files(tmp_path) == before


@pytest.mark.parametrize("last", range(len(ALL_STEPS)))
def test_interrupted_anywhere_goes_on_there(last: int, steps: Steps, tiny_checkpoint: Path, tmp_path: Path) -> None:
    steps.fail[ALL_STEPS[last]] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        sweep(tiny_checkpoint, tmp_path / "out", SMALL)
    measured = sum(step.endswith("None") for step in ALL_STEPS[:last])
    so_far = read_profile(tmp_path / "out")
    assert len(so_far.rows) == measured
    assert so_far.so_far == f"{measured} of 4 settings so far"
    steps.fail.clear()
    before = files(tmp_path / "out")
    profile = sweep(tiny_checkpoint, tmp_path / "out", SMALL)
    assert before.items() <= files(tmp_path / "out").items()
    cells = [step for step in steps.done if step.endswith("None")]
    assert cells == [step for step in ALL_STEPS if step.endswith("None")], "each once"
    assert len(profile.rows) == 4
    sweep(tiny_checkpoint, tmp_path / "whole", SMALL)
    assert (tmp_path / "out" / PROFILE).read_bytes() == (tmp_path / "whole" / PROFILE).read_bytes()


def test_another_recipe_measures_that_alone(steps: Steps, tiny_checkpoint: Path, tmp_path: Path) -> None:
    one = replace(SMALL, recipes=("int8-asym",))
    sweep(tiny_checkpoint, tmp_path, one)
    steps.done.clear()
    assert len(sweep(tiny_checkpoint, tmp_path, SMALL).rows) == 4
    assert steps.done == ["reference", *ALL_STEPS[4:]]
    steps.done.clear()
    assert len(sweep(tiny_checkpoint, tmp_path, one).rows) == 2
    assert steps.done == []


@pytest.mark.parametrize(
    "change",
    [{"chunk_tokens": 8}, {"num_tokens": 192}, {"window_tokens": 32}, {"kv_precisions": ("f16",)}],
    ids=str,
)
def test_another_setting_is_another_cell(
    change: dict[str, Any], steps: Steps, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    one = replace(SMALL, recipes=("int8-asym",), engines=("onnx",))
    sweep(tiny_checkpoint, tmp_path, one)
    steps.done.clear()
    sweep(tiny_checkpoint, tmp_path, replace(one, **change))
    assert len(steps.done) == 3
    steps.done.clear()
    sweep(tiny_checkpoint, tmp_path, one)
    assert steps.done == [], "the first result is still there"


def test_a_cell_that_was_cut_off_is_measured_again(steps: Steps, tiny_checkpoint: Path, tmp_path: Path) -> None:
    first = sweep(tiny_checkpoint, tmp_path, SMALL)
    path = sorted((tmp_path / "cells").iterdir())[0]
    for damaged in (path.read_bytes()[:-50], b"", b"[]", b"\xff", path.read_bytes().replace(b'"load_s"', b'"lead_s"')):
        whole = path.read_bytes()
        path.write_bytes(damaged)
        steps.done.clear()
        assert sweep(tiny_checkpoint, tmp_path, SMALL) == first
        assert steps.done == ["reference", "export int4-asym-g64", "int4-asym-g64 onnx None"]
        assert path.read_bytes() == whole


def test_without_speed(steps: Steps, tiny_checkpoint: Path, tmp_path: Path) -> None:
    row = sweep(tiny_checkpoint, tmp_path, replace(SMALL, speed=False)).rows[0]
    assert (row.load_s, row.peak_rss_bytes, row.ttft_ms, row.decode_tokens_per_second) == (None, None, None, None)
    assert row.export_s == 3.5
    steps.done.clear()
    assert sweep(tiny_checkpoint, tmp_path, SMALL).rows[0].ttft_ms == 7.0, "asked for later, it is measured then"
    assert steps.done == ALL_STEPS


def test_export_that_was_gone_on_with_has_no_time(steps: Steps, tiny_checkpoint: Path, tmp_path: Path) -> None:
    steps.resumed = True
    row = sweep(tiny_checkpoint, tmp_path, SMALL).rows[0]
    assert (row.export_s, row.export_peak_bytes, row.weight_bytes) == (None, None, 1000)


def test_failures_leave_the_others_alone(steps: Steps, tiny_checkpoint: Path, tmp_path: Path) -> None:
    steps.fail = {"int8-asym openvino None": ProfileError("no room"), "export int4-asym-g64": ProfileError("no disk")}
    seen: list[SweepProgress] = []
    profile = sweep(tiny_checkpoint, tmp_path, SMALL, seen.append)
    assert [row.name for row in profile.rows] == ["int8-asym/onnx"]
    assert {failure.name: failure.error for failure in profile.failures} == {
        "int8-asym/openvino": "no room",
        "int4-asym-g64/openvino": "export failed: no disk",
        "int4-asym-g64/onnx": "export failed: no disk",
    }
    assert (seen[-1].steps_done, seen[-1].num_steps) == (7, 7)
    steps.fail.clear()
    steps.done.clear()
    assert not sweep(tiny_checkpoint, tmp_path, SMALL).failures
    assert steps.done == [step for step in ALL_STEPS if step != "int8-asym onnx None"], "failures are tried again"


def test_kept_bundles_stay(steps: Steps, tiny_checkpoint: Path, tmp_path: Path) -> None:
    sweep(tiny_checkpoint, tmp_path, replace(SMALL, keep_bundles=True))
    assert len(list((tmp_path / "bundles").iterdir())) == 2


def test_only_bundles_of_sweeps_are_removed(tmp_path: Path) -> None:
    """Bundles with a recorded export are removed, and of each only what its manifest names."""
    bundles, exports = tmp_path / "bundles", tmp_path / "exports"
    for folder in ("ours", "mixed", "theirs", ".ours-2.partial/bundle", ".theirs.partial/photos"):
        (bundles / folder).mkdir(parents=True)
    exports.mkdir()
    manifest = {"schema_version": 2, "source_sha256": "", "files": {"model.onnx": {}}}
    for name in ("ours", "mixed", "theirs"):
        (bundles / name / "manifest.json").write_text(json.dumps(manifest))
        (bundles / name / "model.onnx").write_text("graph")
        if name != "theirs":
            (exports / f"{name}.json").write_text("{}")
    (bundles / "mixed" / "kiosk.prefix").write_text("my prefix")
    (bundles / "notes.txt").write_text("my notes")
    sweep_results.remove_bundles(tmp_path, unfinished=False)
    assert (bundles / ".ours-2.partial").is_dir()
    sweep_results.remove_bundles(tmp_path, unfinished=True)
    left = sorted(str(path.relative_to(bundles)) for path in bundles.rglob("*") if not any(path.glob("*")))
    assert left == [
        ".theirs.partial/photos", "mixed/kiosk.prefix", "notes.txt", "theirs/manifest.json", "theirs/model.onnx"
    ]  # fmt: skip
    for path in left:
        if (bundles / path).is_file():
            (bundles / path).unlink()
    sweep_results.remove_bundles(tmp_path, unfinished=True)
    assert bundles.is_dir()  # with folders that are not ours


@pytest.mark.parametrize("name", ["profile.json", "reference.npz", "windows.npz", "cells/blood.csv", "bundles/a"])
def test_folders_of_others_are_refused(name: str, steps: Steps, tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("precious")
    with pytest.raises(OutputError, match="holds something other than a profile"):
        sweep(tiny_checkpoint, tmp_path, SMALL)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]
    assert steps.done == []


def test_engine_without_a_cache_is_left_out(steps: Steps, tiny_checkpoint: Path, tmp_path: Path) -> None:
    profile = sweep(tiny_checkpoint, tmp_path, replace(SMALL, recipes=("int8-asym",), kv_precisions=("f16", "u8")))
    assert [row.name for row in profile.rows] == [
        "int8-asym/openvino/kv f16", "int8-asym/openvino/kv u8", "int8-asym/onnx/kv f16",
    ]  # fmt: skip
    assert profile.notes == ("Left out: engine onnx has no u8 cache",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipes": ("int8-asym", "int3")}, "recipe 'int3' is unknown, expected a name like int4-asym"),
        ({"recipes": ()}, "no recipe is given"),
        ({"recipes": ("int8-asym", "int8-asym")}, "recipe int8-asym is given twice"),
        ({"engines": ("openvino", "tensorrt")}, "engine 'tensorrt' is unknown; known are auto, openvino .*, onnx"),
        ({"engines": ("onnx",), "kv_precisions": ("u8",)}, "engine onnx has no u8 cache"),
        ({"engines": ("onnx",), "device": "GPU"}, "engine onnx does not run on GPU"),
        ({"num_tokens": 100}, "100 tokens are 1 windows of 64, expected 2 or more"),
        ({"num_tokens": 10**9}, "windows were asked for; give more text"),
        ({"window_tokens": 257}, "windows of 257 tokens were asked for, expected 2 to 256"),
        ({"chunk_tokens": 0}, "chunks of 0 tokens"),
        ({"greedy_tokens": -1}, "-1 tokens of greedy text"),
        ({"texts": (Path("nowhere.txt"),)}, "nowhere.txt cannot be read"),
    ],
)
def test_refused_before_any_work(
    change: dict[str, Any], message: str, steps: Steps, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(EdgeError, match=message):
        sweep(tiny_checkpoint, tmp_path / "out", replace(SMALL, **change))
    assert steps.done == []
    assert list(tmp_path.iterdir()) == []


def test_text_that_was_calibrated_with_is_refused(steps: Steps, tiny_checkpoint: Path, tmp_path: Path) -> None:
    words = [f"word{i}" for i in range(400)]
    (tmp_path / "measure.txt").write_text(" ".join(words))
    (tmp_path / "calibrate.txt").write_text("another beginning " + " ".join(words[100:150]))
    settings = replace(
        SMALL,
        recipes=("int4-asym-g64-gptq",),
        texts=(tmp_path / "measure.txt",),
        calibration=tmp_path / "calibrate.txt",
    )
    with pytest.raises(EdgeError, match="share 40 words in a row"):
        sweep(tiny_checkpoint, tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


def test_text_that_comes_with_python_is_not_measured_by_those_fitted_to_it(
    steps: Steps, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    text = builtin_calibration()[0].text
    (tmp_path / "measure.txt").write_text(text, encoding="utf-8")
    fitted = replace(SMALL, recipes=("int4-asym-g64-gptq",), texts=(tmp_path / "measure.txt",))
    with pytest.raises(EdgeError, match="share 40 words in a row"):
        sweep(tiny_checkpoint, tmp_path / "out", fitted)
    assert not (tmp_path / "out").exists()


def test_calibration_text_that_no_recipe_takes(steps: Steps, tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match="none of the recipes int8-asym, int4-asym-g64 uses calibration text"):
        sweep(tiny_checkpoint, tmp_path / "out", replace(SMALL, calibration=tmp_path / "missing.txt"))


def test_folder_that_holds_something_else(steps: Steps, tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(OutputError, match="holds something other than a profile"):
        sweep(tiny_checkpoint, tmp_path, SMALL)
    with pytest.raises(OutputError, match="is not a folder"):
        sweep(tiny_checkpoint, tmp_path / "letter.txt", SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_one_sweep_a_folder(steps: Steps, tiny_checkpoint: Path, tmp_path: Path) -> None:
    def second(_progress: SweepProgress) -> None:
        if tried:
            return
        with pytest.raises(OutputError, match="another sweep"):
            sweep(tiny_checkpoint, tmp_path, SMALL)
        tried.append(True)

    tried: list[bool] = []
    sweep(tiny_checkpoint, tmp_path, SMALL, second)
    assert tried


def test_text_decides_the_windows(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("first " * 100)
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "second " * 100, "language": "xx"}))
    settings = replace(SMALL, texts=(tmp_path / "a.txt", tmp_path / "b.jsonl"))
    plan = plan_sweep(tiny_checkpoint, tmp_path / "out", settings)
    assert plan.text == "a.txt, b.jsonl"
    assert sorted(plan.windows.languages) == ["und", "und", "xx", "xx"]
    usual = plan_sweep(tiny_checkpoint, tmp_path / "out", replace(SMALL, texts=()))
    assert usual.windows.languages == ("en",) * 4
    assert "Python" in usual.text


def test_a_step_says_why_it_failed(tmp_path: Path) -> None:
    """In a real process an error of ours is told by its message, any other by its last line."""
    task = {"task": "export", "source": str(tmp_path / "nothing"), "out": str(tmp_path / "out"), "recipe": "int8-asym"}
    with pytest.raises(ProfileError, match=r"nothing: no such path"):
        run_step({**task, "format": "onnx", "calibration": None})
    with pytest.raises(ProfileError, match=r"^KeyError: 'fly'$"):
        run_step({"task": "fly"})


def test_json_has_what_the_profile_has(steps: Steps, tiny_checkpoint: Path, tmp_path: Path) -> None:
    profile = sweep(tiny_checkpoint, tmp_path, SMALL)
    data = json.loads((tmp_path / "profile.json").read_text())
    assert data["schema_version"] == 2
    assert data["rows"][0]["accuracy"]["per_window_kld"]
    assert data["machine"]["processor"]
    assert {"edgeglm", "openvino", "onnxruntime", "python"} <= data["versions"].keys()
    assert Profile.from_json(json.dumps(data)) == profile
