"""Whatever is imported is installed, or its absence is one line that says which extra installs it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from edge.runtime.extras import EXTRAS, INCLUDED, install_command, missing_package

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BASE = [Requirement(text) for text in PROJECT["dependencies"]]
PYPROJECT_EXTRAS = {
    name: [Requirement(text) for text in texts] for name, texts in PROJECT["optional-dependencies"].items()
}
# The few whose name is not that of the distribution, and those that are not installed wherever tests run.
DISTRIBUTIONS = {"huggingface_hub": "huggingface-hub", "lm_eval": "lm-eval", "optimum": "optimum-intel"}
# What is imported in a script that is text of ours, and so is no import statement.
IN_SCRIPTS = {"openvino_tokenizers", "transformers"}


def imported() -> set[str]:
    """Top-level modules that are imported anywhere in the distribution, at the top of a module or when it is needed."""
    found = set()
    for top in ("edge", "export", "profiles", "runtime"):
        for path in (ROOT / top).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    found |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    found.add(node.module or "")
    return {name.split(".")[0] for name in found} - set(sys.stdlib_module_names) - {"edge"}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def brought(requirements: list[Requirement]) -> set[str]:
    """Distributions that these bring, and what those require in turn."""
    found: set[str] = set()
    waiting = list(requirements)
    while waiting:
        requirement = waiting.pop()
        name = canonical(requirement.name)
        if name == "edgeglm":
            waiting += [inner for extra in requirement.extras for inner in PYPROJECT_EXTRAS[extra]]
        elif name not in found:
            found.add(name)
            waiting += required(name)
    return found


def required(distribution: str) -> Iterator[Requirement]:
    try:
        texts = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return
    for requirement in map(Requirement, texts):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement


packages = cache(metadata.packages_distributions)  # reads the records of all that is installed


def distributions_of(module: str) -> set[str]:
    named = {canonical(DISTRIBUTIONS.get(module, module))}
    return named | {canonical(name) for name in packages().get(module, ())}


def test_every_import_is_a_dependency_or_has_an_extra() -> None:
    modules = imported() | IN_SCRIPTS
    assert {"numpy", "scipy", "threadpoolctl", "llguidance", "lm_eval", "matplotlib"} <= modules
    base = brought(BASE)
    direct = {canonical(requirement.name) for requirement in BASE}
    for module in sorted(modules):
        if distributions_of(module) & direct:
            assert module not in EXTRAS, f"{module} is always installed"
            continue
        assert module in EXTRAS, f"{module} is imported, and no extra is named for it (base brings {sorted(base)})"
        assert distributions_of(module) & brought(PYPROJECT_EXTRAS[EXTRAS[module]]), f"{EXTRAS[module]} lacks {module}"


def test_the_extra_that_is_named_is_the_smallest() -> None:
    for module, extra in EXTRAS.items():
        for smaller in INCLUDED.get(extra, ()):
            assert not distributions_of(module) & brought(PYPROJECT_EXTRAS[smaller]), f"{smaller} brings {module}"


def test_extras_include_what_they_are_said_to() -> None:
    for extra, included in INCLUDED.items():
        whole = brought(PYPROJECT_EXTRAS[extra])
        for smaller in included:
            assert {canonical(inner.name) for inner in PYPROJECT_EXTRAS[smaller]} - {"edgeglm"} <= whole


def test_what_is_said() -> None:
    assert install_command("export") == 'pip install "edgeglm[export]"'
    gone = ModuleNotFoundError(name="openvino.runtime")
    assert str(missing_package(gone)) == 'openvino is not installed; pip install "edgeglm[openvino]"'
    assert 'pip install "edgeglm[profile]"' in str(missing_package(gone, "profile"))
    assert missing_package(ModuleNotFoundError(name="somebody_elses")) is None
    assert missing_package(ModuleNotFoundError()) is None


def test_no_advice_is_in_single_quotes() -> None:
    """cmd.exe hands them to pip as part of the name."""
    parts = [path for top in ("edge", "export", "profiles", "runtime") for path in (ROOT / top).rglob("*.py")]
    for path in [*ROOT.glob("*.md"), *parts]:
        if path != ROOT / "runtime" / "engines" / "choice.py":
            assert not re.search(r"pip install\s+'edgeglm", path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize(
    ("missing", "command", "extra"),
    [
        ("scipy", "edge.cli profile run a b", "profile"),
        ("scipy", "edge.cli profile compare {0}:int8-asym/onnx {0}:int4-asym-g128/onnx", "profile"),
        ("threadpoolctl", "edge.cli export a b", "export"),
        ("nncf", "edge.cli profile run a b", "profile"),
        ("matplotlib", "edge.cli needle ./a b", "profile"),
        ("ml_dtypes", "edge.cli recipes", "export"),
        ("lm_eval", "edge.profiles.lm_eval --help", "lm-eval"),
        ("tqdm", "edge.profiles.lm_eval --help", "lm-eval"),
    ],
)
def test_a_missing_package_is_one_line(missing: str, command: str, extra: str, tmp_path: Path) -> None:
    module, *arguments = command.format(ROOT / "profiles" / "results").split()
    script = f"""
import runpy, sys
sys.modules[{missing!r}] = None
sys.argv = ["edge", *{arguments!r}]
if {module!r} == "edge.cli":
    from edge.cli import main
    sys.exit(main())
runpy.run_module({module!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr == f"edge: {missing} is not installed; {install_command(extra)}\n"
    assert not list(tmp_path.iterdir())


def test_a_profile_is_drawn_without_scipy(tmp_path: Path) -> None:
    """Which only the comparison of two rows needs."""
    (tmp_path / "profile.json").write_bytes((ROOT / "profiles/results/profile.json").read_bytes())
    script = (
        "import sys; sys.modules['scipy'] = None; from edge.cli import main; "
        f"sys.exit(main(['profile', 'report', {str(tmp_path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "profile.html").is_file()
