"""Completion as a shell asks for it: in bash itself, with the words that a user has typed so far."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edge.cli import ASKED, VERBS
from edge.commands.options import DEVICES
from edge.export.compress.recipes import recipes
from edge.runtime.engines.registry import ENGINES
from tests.edge.verbs import PARSERS

# What `bash -i` does at a Tab: the function that register-python-argcomplete defines is called with the line so far,
# and leaves the words that could come next in COMPREPLY.
SCRIPT = """
eval "$({python} -m argcomplete.scripts.register_python_argcomplete edge)"
complete -p edge >/dev/null || exit 9
read -ra COMP_WORDS <<< "$LINE"
[[ "$LINE" == *" " ]] && COMP_WORDS+=("")
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)) COMP_LINE="$LINE" COMP_POINT=${{#LINE}} COMP_TYPE=9
_python_argcomplete edge "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD - 1]}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an `edge` that runs this tree."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "edge").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m edge "$@"\n')
    (folder / "edge").chmod(0o755)
    return folder


def completed(line: str, program: Path, cwd: Path) -> list[str]:
    """What bash offers after a line."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "LINE": line, "PATH": f"{program}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": root}
    script = SCRIPT.format(python=f'"{sys.executable}"')
    done = subprocess.run(
        [bash, "--norc", "-c", script], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [word.strip() for word in done.stdout.splitlines() if word.strip()]


def test_bash_completes_verbs_options_names_and_paths(program: Path, tmp_path: Path) -> None:
    (tmp_path / "glm4-int4").mkdir()
    (tmp_path / "glm4.gguf").touch()
    for line, expected in (
        ("edge ", list(VERBS)),
        ("edge ex", ["export"]),
        ("edge profile ", ["run", "compare", "report"]),
        ("edge export x y --frontend ", ["native", "optimum"]),
        ("edge run x y --kv-p", ["--kv-precision"]),
        ("edge run x y --engine ", ["auto", *ENGINES]),
        ("edge bench x --engine ", ["auto", *ENGINES, "all"]),
        ("edge verify x --device ", DEVICES.split("|")),
        ("edge export x y --recipe int4-sym-", [name for name in recipes() if name.startswith("int4-sym-")]),
        ("edge profile run x y --recipes fp16,int8-", ["fp16,int8-asym", "fp16,int8-sym"]),
        ("edge profile run x y --recipes int8-asym,int8-", ["int8-asym,int8-sym"]),
        ("edge profile run x y --kv-precision f16,u", ["f16,u8", "f16,u4"]),
        ("edge run glm", ["glm4-int4/"]),
        ("edge export glm", ["glm4-int4/", "glm4.gguf"]),
        ("edge inspect glm4.", ["glm4.gguf"]),
        ("edge run x y --temperature ", []),
    ):
        assert sorted(completed(line, program, tmp_path)) == sorted(expected), line


def test_every_option_of_a_verb_is_offered(program: Path, tmp_path: Path) -> None:
    offered = set(completed("edge profile run x y --", program, tmp_path))
    assert offered == {option for action in PARSERS["profile run"]._actions for option in action.option_strings
                       if option.startswith("--")}  # fmt: skip


def test_without_a_shell_that_asks_it_costs_nothing() -> None:
    script = (
        "import sys; from edge.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'argcomplete', 'edge.commands.completion'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0


def test_a_shell_that_asks_without_the_package_gets_one_line() -> None:
    script = "import sys; sys.modules['argcomplete'] = None; from edge.cli import main; sys.exit(main([]))"
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, ASKED: "1"}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == 'edge: argcomplete is not installed; pip install "edgeglm[completion]"\n'


def test_the_program_is_marked_for_completion_of_all() -> None:
    """Where it is switched on for every program, argcomplete reads the first 1024 characters of the module."""
    assert "PYTHON_ARGCOMPLETE_OK" in (Path(__file__).parents[2] / "edge" / "cli.py").read_text()[:1024]
