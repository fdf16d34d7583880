"""What the documents tell a newcomer to type works as it is printed.

Every line of every `sh` block and every `python` block of `PAGES` is run unchanged, in the order of the page, by one
shell in one clean folder. `org/name` is a path where a folder `org` exists, so a tiny seeded checkpoint under the name
that the pages use makes their commands run in seconds and without a network. Nothing is left out: what takes minutes by
nature (a clone, an environment, `make demo`) is run by the test that is marked slow, which runs each page from top to
bottom.

Commands of all other pages are parsed, and their Python is run as well.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edge.cli import VERBS, build_parser
from tests import tiny
from tests.docs.shown import OUTPUT, PYTHON, ROOT, SHELL, blocks, edge_calls, hidden_commands, program, spans

PAGES = ("README.md", "docs/quickstart.md")
DOCUMENTS = tuple(sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")))
OTHERS = tuple(name for name in DOCUMENTS if name not in PAGES)
CHECKPOINT, BUNDLE = "THUDM/glm-4-9b-chat", "glm4-int4"
REPOSITORY = "https://github.com/edgeglm/edgeglm"
# What a fresh machine does first. The fast test begins after it, with the packages of the environment that runs it.
SET_UP = ("git clone ", "cd ", "make ", "python3 -m venv ", ". ", "pip ")
UNUSABLE_PROXY = "http://127.0.0.1:9"  # whoever asks for the network finds out at once

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the commands are for a POSIX shell")


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GLM-4 with the context that the pages assume, and next to nothing else."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    tiny.make(dataclasses.replace(tiny.TINIES[0], max_position_embeddings=4096), folder)
    return folder


def script(markdown: str, folder: Path, *, set_up: bool) -> str:
    """The page as one shell script that stops at the first line that fails and says which it was.

    Python goes into files of `folder`. What a line reads from its standard input is a greeting.
    """
    typed = folder / "typed.txt"
    typed.write_text("Hello\n", encoding="utf-8")
    lines = ["set -e -o pipefail"]
    for block in blocks(markdown):
        if block.language == PYTHON:
            file = folder / f"block_{block.line}.py"
            file.write_text(block.text, encoding="utf-8")
            commands = [f"python {file}"]
        elif block.language == SHELL:
            commands = [command for command in block.commands if set_up or not command.startswith(SET_UP)]
        else:
            commands = []
        for command in commands:
            lines += [f"echo '@@ {block.line}' >&2", "{", command, f"}} < {typed}"]
    return "\n".join(lines) + "\n"


def run(text: str, cwd: Path, environment: dict[str, str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Output is decoded leniently: a tiny model of random weights ends in the middle of a character."""
    return subprocess.run(
        ["bash", "-c", text],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=timeout_s,
        check=False,
    )


def failure(done: subprocess.CompletedProcess[str]) -> str:
    """The line of the page that failed, and what it said."""
    line, _, said = done.stderr.rpartition("@@ ")[2].partition("\n")
    return f"the block at line {line} failed with {done.returncode}:\n{said[-3000:]}\n{done.stdout[-1000:]}"


def here() -> dict[str, str]:
    """The environment that runs the tests, this checkout first, and no network."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), UNUSABLE_PROXY)
    return {**os.environ, **proxies, "PATH": path, "PYTHONPATH": str(ROOT)}


def new_user(folder: Path) -> dict[str, str]:
    """What makes a user of the environment who has no models yet."""
    return dict.fromkeys(("XDG_DATA_HOME", "WIN_PD_OVERRIDE_LOCAL_APPDATA"), str(folder / "data"))


@pytest.mark.parametrize("name", [PAGES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in PAGES[1:])])
def test_commands_run_as_they_are_shown(name: str, checkpoint: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    shutil.copytree(checkpoint, work / CHECKPOINT)
    done = run(script(page(name), tmp_path, set_up=False), work, here() | new_user(tmp_path), timeout_s=300)
    assert done.returncode == 0, failure(done)
    ran = done.stderr.count("@@ ")
    assert ran >= 4, "the page shows commands"
    assert list((tmp_path / "data").rglob(f"{BUNDLE}/manifest.json")), "and they made a bundle, which has this name"


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_the_whole_page_runs_on_a_fresh_machine(name: str, checkpoint: Path, tmp_path: Path) -> None:
    """From `git clone` on, in an environment of its own; of the network it needs PyPI alone.

    The clone is of this tree as it is now, with the tiny checkpoint in it. What the page shows as output is what comes,
    figures apart.
    """
    origin, work = tmp_path / "origin", tmp_path / "work"
    work.mkdir()
    leave_out = shutil.ignore_patterns(".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, origin, symlinks=True, ignore=leave_out)
    shutil.copytree(checkpoint, origin / CHECKPOINT)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for arguments in (["init", "-q"], ["add", "--all", "--force"], ["commit", "-q", "-m", "as it is now"]):
        subprocess.run([*git, *arguments], cwd=origin, check=True, capture_output=True)
    done = run(script(page(name), tmp_path, set_up=True), work, fresh(origin) | new_user(tmp_path), timeout_s=1800)
    assert done.returncode == 0, failure(done)
    for block in blocks(page(name)):
        for line in block.text.splitlines() if block.language == OUTPUT else ():
            if not re.search(r"\d", line):
                assert line in (*done.stdout.splitlines(), *done.stderr.splitlines())


def fresh(origin: Path) -> dict[str, str]:
    """An environment that knows of no other one; a clone of the project's address comes from a folder."""
    of_python = {"PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV"}
    ours = of_python | {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    outside = [part for part in os.environ["PATH"].split(os.pathsep) if Path(part) != Path(sys.executable).parent]
    return {
        **kept,
        "PATH": os.pathsep.join((str(Path(sys.base_prefix) / "bin"), *outside)),
        "PIP_NO_COMPILE": "1",  # commands compile what they import, and that is little of what is installed
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{origin.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": REPOSITORY,
    }


@pytest.mark.parametrize("name", PAGES)
def test_nothing_shown_escapes(name: str) -> None:
    """A command outside of the blocks that are run would be one that no test runs."""
    text = page(name)
    assert {block.language for block in blocks(text)} <= {SHELL, PYTHON, OUTPUT}
    assert hidden_commands(text) == []
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {span.split()[1] for span in spans(text, "make")} <= set(targets)
    for span in spans(text, "python"):
        assert (ROOT / span.split()[1]).is_file(), span


def test_the_readme_is_one_that_is_read() -> None:
    assert len(page("README.md").splitlines()) <= 120


def test_what_escapes_is_found() -> None:
    """The test above, held to a page that is wrong, and what it is made of."""
    wrong = "Type:\n\n    edge run x y\n\n```text\npip install x\nedge\n```\n\n```sh\nedge a \\\n  b\n\nedge c\n```\n"
    assert hidden_commands(wrong) == ["edge run x y", "pip install x"]
    assert [block.line for block in blocks(wrong)] == [6, 11]
    assert blocks(wrong)[1].commands == ["edge a \\\n  b", "edge c"]
    assert spans("`edge run\nx` and `edge` and `edged x`", "edge") == ["edge run x"]
    assert list(edge_calls('echo "a | b" | edge run x - # and\n')) == [["run", "x", "-"]]


@pytest.mark.parametrize("name", ["README.md", *DOCUMENTS])
def test_commands_in_sentences_are_known(name: str) -> None:
    """Inline code that begins with `edge`: a command that there is, and options that it has."""
    parser = build_parser()
    for span in spans(page(name), "edge"):
        verb, *rest = span.split()[1:]
        if verb.startswith("-") or not verb.islower():
            continue  # of `edge --version`, or a placeholder
        assert verb in VERBS, f"{name}: {span}"
        known = parser_of(parser, verb).format_help() + "".join(
            action.format_help() for action in sub_parsers(parser_of(parser, verb)).values()
        )
        for option in (word for word in rest if word.startswith("--")):
            assert re.search(rf"{option}\b", known), f"{name}: {span}"


def parser_of(parser: argparse.ArgumentParser, verb: str) -> argparse.ArgumentParser:
    return sub_parsers(parser)[verb]


def sub_parsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


@pytest.mark.parametrize("name", OTHERS)
def test_commands_of_other_pages_parse(name: str) -> None:
    """They are not run: some take hours, or a machine of another kind."""
    parser = build_parser()
    for block in blocks(page(name)):
        for command in block.commands if block.language == SHELL else ():
            for arguments in edge_calls(command):
                try:
                    parser.parse_args(arguments)
                except SystemExit:
                    pytest.fail(f"{name}, line {block.line}: edge {' '.join(arguments)}")


@pytest.fixture(scope="module")
def work(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoint and the bundle that pages speak of."""
    folder = tmp_path_factory.mktemp("work")
    shutil.copytree(checkpoint, folder / CHECKPOINT)
    done = run(f"edge export {CHECKPOINT} ./{BUNDLE}", folder, here(), timeout_s=120)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", [name for name in OTHERS if "import edge\n" in program(page(name))])
def test_python_of_other_pages_runs(name: str, work: Path, tmp_path: Path) -> None:
    shutil.copytree(work, tmp_path, dirs_exist_ok=True)
    (tmp_path / "program.py").write_text(program(page(name)), encoding="utf-8")
    done = run("python program.py", tmp_path, here(), timeout_s=120)
    assert done.returncode == 0, done.stderr[-3000:]
