"""Every rule has a bundle that breaks it and no other, and an honest bundle breaks none."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge.commands.recipes import GLM4_9B
from edge.export.assignment import assign
from edge.export.compress.recipes import recipes
from edge.runtime.bundle import open_bundle
from edge.runtime.engines.openvino_properties import GPU_CACHES, GPU_PRECISIONS
from edge.runtime.errors import DeviceError, LintError
from edge.runtime.lint import RULES, SEVERITIES, Finding, Target, check, refuse, suits
from edge.runtime.lint.memory import memory_needed
from edge.runtime.lint.rule import EVIDENCE
from edge.runtime.lint.subject import subject_of
from edge.runtime.settings import KV_PRECISIONS, PRECISIONS
from tests.runtime.lint.bundles import BREAKERS, GPU, NPU, WIDE, spec, tag, tensor


@pytest.fixture
def bundle(npu_bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may change; its graph says how its weights were rounded."""
    shutil.copytree(npu_bundle, tmp_path / "bundle")
    tag(tmp_path / "bundle", -1)
    return tmp_path / "bundle"


def found(bundle: Path, target: Target) -> list[str]:
    return [finding.rule for finding in check(open_bundle(bundle), target)]


@pytest.mark.parametrize("target", [NPU, GPU, Target("NPU"), Target("GPU.1"), Target("NPU", emulated=True)])
def test_an_honest_bundle_breaks_no_rule(bundle: Path, target: Target) -> None:
    assert found(bundle, target) == []


def test_every_rule_has_a_bundle_that_breaks_it() -> None:
    assert list(BREAKERS) == list(RULES)


@pytest.mark.parametrize("rule", BREAKERS)
def test_what_breaks_a_rule_breaks_no_other(rule: str, bundle: Path) -> None:
    target = BREAKERS[rule](bundle)
    findings = check(open_bundle(bundle), target)
    assert [finding.rule for finding in findings] == [rule]
    record = RULES[rule]
    bad = record.severity in ("crash", "garbage")
    assert (findings[0].severity, findings[0].refused) == (record.severity, bad)
    assert findings[0].source == record.sources[0].place
    assert (findings[0].message, findings[0].advice) == (findings[0].message.strip(), record.advice)
    if not bad:
        refuse(findings)
        return
    with pytest.raises(LintError, match=re.escape(f"{rule}: {findings[0].message}; {record.advice}")) as refused:
        refuse(findings)
    assert isinstance(refused.value, DeviceError)


@pytest.mark.parametrize("rule", [rule for rule in RULES if RULES[rule].family == "NPU"])
def test_the_pipeline_on_a_cpu_is_refused_what_was_seen_to_fail_on_it(rule: str, bundle: Path) -> None:
    """What only an NPU's compiler or driver gets wrong is told, and may be tried."""
    target = replace(BREAKERS[rule](bundle), emulated=True)
    [finding] = check(open_bundle(bundle), target)
    record = RULES[rule]
    seen = record.evidence == "NPUW on the CPU" and record.severity in ("crash", "garbage")
    assert (finding.rule, finding.refused) == (rule, seen)


def test_the_worst_comes_first(bundle: Path) -> None:
    for rule in ("npu-rt-info", "npu-low-rank", "npu-four-bits"):
        BREAKERS[rule](bundle)
    tensor(bundle, precision="int8-sym", note="with a product of rank 16 added")
    findings = check(open_bundle(bundle), replace(NPU, platform="3720", max_prompt=4096))
    ranks = [SEVERITIES.index(finding.severity) for finding in findings]
    assert ranks == sorted(ranks)
    assert {finding.severity for finding in findings} == set(SEVERITIES)
    with pytest.raises(LintError) as refused:
        refuse(findings)
    assert "npu-four-bits" in str(refused.value)
    assert "npu-prompt-3720" in str(refused.value)
    assert "npu-rt-info" not in str(refused.value)


def test_a_rule_holds_up_to_its_limit(bundle: Path) -> None:
    """And is broken by the next value."""
    pairs: list[tuple[str, Target, dict[str, Any]]] = [
        ("npu-prompt-3720", replace(NPU, platform="3720", max_prompt=2000), {"max_prompt": 2001}),
        ("npu-openvino", replace(NPU, openvino="2026.4.0.dev20260814"), {"openvino": "2025.12.9"}),
        ("npu-driver", replace(NPU, driver="1003104"), {"driver": "1003103"}),
        ("npu-driver", replace(NPU, driver="32.0.100.3104"), {"driver": "32.0.100.3103"}),
        ("npu-driver", replace(NPU, driver="1738334590"), {"driver": "1718000000"}),
        ("npu-chunk", replace(NPU, chunk=512), {"chunk": 513}),
        ("npu-chunk", replace(NPU, chunk=1100), {"chunk": 1000}),  # more than the prompt: it is read whole
        ("npu-float32-cache", replace(NPU, kv_precision="f32", chunk=1024), {"chunk": 512}),
        ("gpu-openvino", replace(GPU, openvino="2027.0"), {"openvino": "2026.3.1"}),
        ("gpu-cache-precision", replace(GPU, kv_precision="u8"), {"kv_precision": "bf16"}),
    ]
    for rule, holds, change in pairs:
        assert found(bundle, holds) == [], rule
        assert found(bundle, replace(holds, **change)) == [rule]


@pytest.mark.parametrize(("target", "rule"), [(NPU, "npu-memory"), (GPU, "gpu-memory")])
def test_memory_counts_weights_and_the_whole_cache(target: Target, rule: str, bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    matrices = sum(record.nbytes for record in manifest.tensors.values() if len(record.shape) == 2)
    cached = replace(target, kv_precision="f16")
    certain = matrices + manifest.spec.kv_values_per_token * 2 * (target.max_prompt + target.max_response - 1)
    needed = memory_needed(subject_of(open_bundle(bundle)), cached)
    assert certain < needed < 2 * certain
    assert found(bundle, replace(cached, memory_bytes=needed)) == []
    assert found(bundle, replace(cached, memory_bytes=needed - 1)) == [rule]
    assert found(bundle, replace(cached, memory_bytes=None)) == []
    longer = replace(cached, memory_bytes=needed, max_prompt=target.max_prompt + 64)
    assert found(bundle, longer) == [rule]


def test_settings_that_the_engines_refuse_break_a_rule(bundle: Path) -> None:
    """The rules and the engine of GPUs know the same precisions."""
    for cache in KV_PRECISIONS:
        assert (found(bundle, replace(GPU, kv_precision=cache)) == []) == (cache in GPU_CACHES)
    for precision in PRECISIONS:
        assert (found(bundle, replace(GPU, inference_precision=precision)) == []) == (precision in GPU_PRECISIONS)


@pytest.mark.parametrize(
    ("precision", "shape", "rules"),
    [
        ("int4-sym-channel", [64, 128], []),
        ("int4-sym-channel", [64, 3424], []),
        ("int8-sym", [64, 3424], ["npu-four-bits"]),
        ("int4-asym-g32", [64, 128], ["npu-symmetric", "npu-width-64", "npu-rt-info-true", "npu-groups"]),
        ("int4-sym-g128", [64, 128], []),  # one group is a row
        ("nf4", [64, 128], []),
    ],
)
def test_widths_and_precisions(bundle: Path, precision: str, shape: list[int], rules: list[str]) -> None:
    tensor(bundle, WIDE, precision=precision, shape=shape)
    assert sorted(found(bundle, NPU)) == sorted(rules)


@pytest.mark.parametrize(
    ("group", "mode", "rules"),
    [
        (-1, "int4_sym", []),
        (-1, "int8_sym", ["npu-rt-info-true"]),
        (64, "int4_sym", ["npu-rt-info-true"]),
        (None, "", ["npu-rt-info"]),
    ],
)
def test_what_a_graph_says_of_its_weights(bundle: Path, group: int | None, mode: str, rules: list[str]) -> None:
    tag(bundle, group, mode)
    assert found(bundle, NPU) == rules


def test_rows_of_any_width_where_the_graph_says_that_they_are_rows(bundle: Path) -> None:
    tensor(bundle, shape=[64, 3424])
    assert found(bundle, NPU) == []
    tag(bundle, None)
    assert found(bundle, NPU) == ["npu-width-64", "npu-rt-info"]
    assert suits(open_bundle(bundle).manifest.spec, open_bundle(bundle).manifest.tensors, "NPU") == ()


def test_groups_without_a_tag_are_taken_for_what_they_are(bundle: Path) -> None:
    for name in open_bundle(bundle).manifest.tensors:
        if name.startswith("layers.") and len(open_bundle(bundle).manifest.tensors[name].shape) == 2:
            tensor(bundle, name, precision="int4-sym-g128", shape=[128, 256])
    tag(bundle, None)
    spec(bundle, num_layers=4)
    assert found(bundle, NPU) == []


def test_recipes_for_npus_are_symmetric_with_four_bits() -> None:
    """Judged by the same rules, for the shapes of GLM-4-9B."""
    for name, recipe in recipes().items():
        tensors = {key: assigned.record() for key, assigned in assign(recipe, GLM4_9B).items()}
        linear = recipe.linear
        wanted = linear.bits == 4 and linear.symmetric and linear.group_size in (0, 128) and not recipe.rank
        assert (suits(GLM4_9B, tensors, "NPU") == ()) == wanted, name
        assert suits(GLM4_9B, tensors, "GPU.0") == ()
        assert suits(GLM4_9B, tensors, "CPU") == ()


def test_every_rule_says_where_it_is_from_and_what_to_do() -> None:
    for rule in RULES.values():
        assert re.fullmatch(r"(npu|gpu)-[a-z0-9-]+", rule.id)
        assert rule.id.startswith(rule.family.lower())
        assert rule.evidence in EVIDENCE
        assert rule.severity in SEVERITIES
        assert rule.sources
        assert all(source.place and source.when and source.says for source in rule.sources)
        assert rule.why.endswith(".")
        assert not rule.advice.endswith(".")
        assert rule.seen or rule.evidence != "NPUW on the CPU", f"{rule.id}: what was seen?"


def test_a_finding_is_a_sentence() -> None:
    finding = Finding("npu-x", "crash", "the groups are 32, expected 128", "export it again", "a page", True)
    assert str(finding) == "npu-x: the groups are 32, expected 128; export it again"
