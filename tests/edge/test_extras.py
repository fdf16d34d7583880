"""Whatever is imported is installed, or its absence is one line that says which extra installs it."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from edge.runtime.errors import MissingPackageError
from edge.runtime.extras import BROUGHT, INCLUDED, LEFT_OUT, check_installed, install_command, missing_package
from tests.edge.verbs import PARSERS

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
    named = {module for brought_by in BROUGHT.values() for module in brought_by}
    assert set(LEFT_OUT) == direct - {"numpy", "tokenizers", "jinja2"}
    for module in sorted(modules):
        if distributions_of(module) & direct:
            assert module not in named, f"{module} is always installed"
        else:
            assert module in named, f"{module} is imported, and no extra is named for it (base brings {sorted(base)})"


def test_every_extra_brings_what_it_is_said_to() -> None:
    for extra, modules in BROUGHT.items():
        whole = brought(PYPROJECT_EXTRAS[extra])
        for module in modules:
            assert distributions_of(module) & whole, f"{extra} lacks {module}"
            for smaller in INCLUDED.get(extra, ()):
                assert not distributions_of(module) & brought(PYPROJECT_EXTRAS[smaller]), f"{smaller} brings {module}"


def test_extras_include_what_they_are_said_to() -> None:
    for extra, included in INCLUDED.items():
        whole = brought(PYPROJECT_EXTRAS[extra])
        for smaller in included:
            assert {canonical(inner.name) for inner in PYPROJECT_EXTRAS[smaller]} - {"edgeglm"} <= whole


def test_what_is_said() -> None:
    gone = ModuleNotFoundError(name="openvino.runtime")
    assert str(missing_package(gone)) == f"openvino is not installed; {install_command('openvino')}"
    assert install_command("profile") in str(missing_package(gone, "profile"))
    scipy = ModuleNotFoundError(name="scipy")
    assert [str(missing_package(scipy, needed)).split("[")[1] for needed in (None, "server", "export", "profile")] == [
        'plots]"',
        'plots]"',
        'export]"',
        'profile]"',
    ]
    assert str(missing_package(ModuleNotFoundError(name="rich.table"))) == "rich is not installed; pip install rich"
    assert missing_package(ModuleNotFoundError(name="somebody_elses")) is None
    assert missing_package(ModuleNotFoundError()) is None


def test_what_is_looked_for_is_not_imported() -> None:
    check_installed("json", "numpy")
    with pytest.raises(MissingPackageError, match=re.escape(install_command("tools"))), hidden("bm25s"):
        check_installed("json", "bm25s", needed="tools")


@contextmanager
def hidden(*modules: str) -> Iterator[None]:
    """As if these were not installed."""
    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            patch.setitem(sys.modules, module, None)
        yield


def test_no_advice_is_in_single_quotes() -> None:
    """cmd.exe hands them to pip as part of the name."""
    parts = [path for top in ("edge", "export", "profiles", "runtime") for path in (ROOT / top).rglob("*.py")]
    for path in [*ROOT.glob("*.md"), *parts]:
        if path != ROOT / "runtime" / "engines" / "choice.py":
            assert not re.search(r"pip install\s+'edgeglm", path.read_text(encoding="utf-8")), path


RESULTS = ROOT / "profiles" / "results"
# Verb, or verb and action -> what it takes, and what it may not need in order to fail or work as it does here.
# A call that goes wrong for another reason than a package (status 1, "no such path") has asked for none.
ONE_LINE = [
    ("scipy", "edge.cli profile run a b", "profile"),
    ("scipy", "edge.cli profile compare {0}:int8-asym/onnx {0}:int4-asym-g128/onnx", "plots"),
    ("matplotlib", "edge.cli profile report {0}", "plots"),
    ("threadpoolctl", "edge.cli export {1} {2}/b", "export"),
    ("openvino", "edge.cli export a b --frontend optimum", "optimum"),
    ("threadpoolctl", "edge.cli export {1} {2}/b --dry-run", "export"),
    ("openvino", "edge.cli demo {2}/b", "export"),
    ("nncf", "edge.cli profile run a b", "profile"),
    ("matplotlib", "edge.cli needle ./a b", "plots"),
    ("starlette", "edge.cli serve ./a", "server"),
    ("cryptography", "edge.cli update key {2}/k", "update"),
    ("urllib3", "edge.cli update install {2}/x https://127.0.0.1/x --key {2}/k", "update"),
    ("bm25s", "edge.cli chat ./a --docs {2}", "tools"),
    ("lm_eval", "edge.profiles.lm_eval --help", "lm-eval"),
    ("tqdm", "edge.profiles.lm_eval --help", "lm-eval"),
]


@pytest.mark.parametrize(("missing", "command", "extra"), ONE_LINE)
def test_a_missing_package_is_one_line(
    missing: str, command: str, extra: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    module, *arguments = command.format(RESULTS, tiny_checkpoint, tmp_path).split()
    done = run_without([missing], arguments, module)
    assert done.returncode == 1, done.stderr
    assert done.stderr == f"edge: {missing} is not installed; {install_command(extra)}\n"
    assert not list(tmp_path.iterdir())


def run_without(missing: list[str], arguments: list[str], module: str = "edge.cli") -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, as if these were not installed."""
    script = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({missing!r}))
sys.argv = ["edge", *{arguments!r}]
if {module!r} == "edge.cli":
    from edge.cli import main
    sys.exit(main())
runpy.run_module({module!r}, run_name="__main__")
"""
    return subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )


OPTIONAL = sorted({module for modules in BROUGHT.values() for module in modules} | set(LEFT_OUT))


def test_nothing_optional_is_needed_to_read(tiny_bundle: Path, tmp_path: Path) -> None:
    """Help of every verb and action, bundles, recipes: with the packages of a slim installation and no engine."""
    every = f"""
import sys
sys.modules.update(dict.fromkeys({OPTIONAL!r}))
from edge.cli import main
for words in {[[*name.split(), "--help"] for name in PARSERS]!r}:
    try:
        main(words)
    except SystemExit as stopped:
        assert not stopped.code, words
bundle = {str(tiny_bundle)!r}
for words in (["inspect", bundle], ["recipes"], ["recipes", "--json"], ["devices"], ["fit", bundle]):
    assert main(words) == 0, words
"""
    done = subprocess.run([sys.executable, "-c", every], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_a_slim_installation_runs(int4_bundle: Path, tmp_path: Path) -> None:
    """Nothing optional but an engine, in one process, as somebody types it."""
    script = f"""
import io, sys
sys.modules.update(dict.fromkeys({[name for name in OPTIONAL if name != "onnxruntime"]!r}))
import edge
from edge.cli import main
bundle, prefix = {str(int4_bundle)!r}, {str(tmp_path / "k.prefix")!r}
for words in (
    ["run", bundle, "hi", "--max-new-tokens", "2"],
    ["chat", bundle, "--max-new-tokens", "2"],
    ["verify", bundle],
    ["devices"],
    ["inspect", bundle],
    ["prefix", "build", bundle, prefix, "--raw", "one two three four five six seven eight nine"],
    ["prefix", "show", prefix],
    ["run", bundle, "--raw", "one two three four five six seven eight nine ten", "--prefix", prefix],
    ["bench", bundle, "--prompt-tokens", "4", "--new-tokens", "2"],
):
    sys.stdin = io.TextIOWrapper(io.BytesIO(b"hello\\n"))
    assert main(words) == 0, words
with edge.load(bundle) as llm:
    assert llm.chat([{{"role": "user", "content": "hi"}}], max_new_tokens=2).text() is not None
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_python_api_names_the_extra(tmp_path: Path) -> None:
    script = f"""
import sys
sys.modules.update(dict.fromkeys({OPTIONAL!r}))
import edge
from edge.profiles.sweep import sweep
from edge.runtime.extras import install_command
def lm_eval():
    import edge.profiles.lm_eval
for call, extra in (
    (lambda: edge.export("nowhere", "out"), "export"),
    (lambda: edge.tools.browser_tool("."), "tools"),
    (lambda: edge.tools.tool_of(len), "tools"),
    (lambda: sweep("nowhere", "out"), "profile"),
    (lm_eval, "lm-eval"),
):
    try:
        call()
    except edge.MissingPackageError as error:
        assert str(error).endswith(f"; {{install_command(extra)}}"), error
    else:
        raise AssertionError(extra)
assert install_command("export") in edge.export.__doc__
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_profile_is_drawn_without_scipy(tmp_path: Path) -> None:
    """Which only the comparison of two rows needs."""
    (tmp_path / "profile.json").write_bytes((RESULTS / "profile.json").read_bytes())
    done = run_without(["scipy"], ["profile", "report", str(tmp_path)])
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "profile.html").is_file()
