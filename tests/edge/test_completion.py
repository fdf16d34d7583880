"""Completion as a shell does it: in bash, zsh and fish themselves, with the words that a user has typed so far."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.cli import VERBS, main
from edge.commands.completion import FILES, FOLDER, SWITCHED_ON
from edge.commands.options import DEVICES
from edge.export.compress.recipes import recipes
from edge.runtime.engines.registry import ENGINES
from tests.edge.verbs import PARSERS

ROOT = Path(__file__).parents[2]
PLACE = ROOT / "edge" / FOLDER
MANUAL = PLACE / "edge.1"
# What `bash -i` does at a Tab: the function of the script is called with the line so far, and leaves the words that
# could come next in COMPREPLY.
BASH = """
source {script}
function_of_edge="$(complete -p edge | sed 's/.*-F \\([^ ]*\\) edge/\\1/')"
[[ "$(type -t edge)" == function ]] && exit 9
while IFS= read -r line; do
  read -ra COMP_WORDS <<< "$line"
  [[ "$line" == *" " ]] && COMP_WORDS+=("")
  COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)) COMP_LINE="$line" COMP_POINT=${{#line}} COMP_TYPE=9 COMPREPLY=()
  "$function_of_edge" edge "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD - 1]}}" 2>/dev/null
  echo "${{COMPREPLY[*]}}"
done
"""


def shell(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def completed(lines: list[str], cwd: Path) -> Iterator[list[str]]:
    """What bash offers after each line, in one shell."""
    script = BASH.format(script=PLACE / FILES["bash"])
    done = subprocess.run(
        [shell("bash"), "--norc", "-c", script],
        input="".join(f"{line}\n" for line in lines),
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return (line.split() for line in done.stdout.splitlines())


CASES: dict[str, list[str]] = {
    "edge ": list(VERBS),
    "edge ex": ["export"],
    "edge profile ": ["run", "compare", "report"],
    "edge completion ": list(FILES),
    "edge export x y --frontend ": ["native", "optimum"],
    "edge run x y --kv-p": ["--kv-precision"],
    "edge run x y --engine ": ["auto", *ENGINES],
    "edge bench x --engine ": ["auto", *ENGINES, "all"],
    "edge verify x --device ": DEVICES.split("|"),
    "edge export x y --recipe int4-sym-": [name for name in recipes() if name.startswith("int4-sym-")],
    "edge profile run x y --recipes fp16,int8-": ["fp16,int8-asym", "fp16,int8-sym"],
    "edge profile run x y --kv-precision f16,u": ["f16,u8", "f16,u4"],
    "edge run glm": ["glm4-int4"],
    "edge export glm": ["glm4-int4", "glm4.gguf"],
    "edge inspect glm4.": ["glm4.gguf"],
    "edge run x y --temperature ": [],
    "edge profile run x y --": [
        option
        for action in PARSERS["profile run"]._actions
        for option in action.option_strings
        if option.startswith("--")
    ],
}


def test_bash_completes_verbs_options_names_and_paths(tmp_path: Path) -> None:
    (tmp_path / "glm4-int4").mkdir()
    (tmp_path / "glm4.gguf").touch()
    for (line, expected), found in zip(CASES.items(), completed(list(CASES), tmp_path), strict=True):
        assert sorted(word.rstrip("/") for word in found) == sorted(expected), line


def test_fish_completes_verbs_and_names(tmp_path: Path) -> None:
    fish = shell("fish")
    for line in ("edge ", "edge profile ", "edge export x y --frontend ", "edge export x y --recipe int4-sym-"):
        script = f"source {PLACE / FILES['fish']}; complete -C '{line}'"
        done = subprocess.run(
            [fish, "--no-config", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        offered = {row.split("\t")[0] for row in done.stdout.splitlines()}
        assert set(CASES[line]) <= offered, (line, done.stderr)


def test_zsh_takes_the_script() -> None:
    zsh = shell("zsh")
    load = f'eval "$(cat {PLACE / FILES["zsh"]})"'  # as in SWITCHED_ON
    script = f"autoload -Uz compinit; compinit -D; {load}; whence -w _shtab_edge; echo $_comps[edge]"
    done = subprocess.run([zsh, "-f", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "_shtab_edge: function" in done.stdout
    assert done.stdout.splitlines()[-1] == "_shtab_edge"


@pytest.mark.parametrize("name", FILES)
def test_the_verb_prints_the_script(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", name]) == 0
    assert capsys.readouterr().out == (PLACE / FILES[name]).read_text(encoding="utf-8")
    assert f"edge completion {name}" in SWITCHED_ON[name]


def test_the_files_are_those_of_the_parser() -> None:
    """Of one Python: the others lay the usage out differently. `python -m tests.docs.shell_files` makes them again."""
    pytest.importorskip("shtab")
    pytest.importorskip("argparse_manpage")
    if sys.version_info[:2] != (3, 11):
        pytest.skip("made with Python 3.11")
    from tests.docs.shell_files import files

    made = files()
    assert {path.name for path in PLACE.iterdir()} == made.keys()
    for name, text in made.items():
        assert (PLACE / name).read_text(encoding="utf-8") == text, f"{name}: python -m tests.docs.shell_files"


def test_man_takes_the_page() -> None:
    done = subprocess.run([shell("man"), "-l", str(MANUAL)], capture_output=True, text=True, check=True)
    shown = " ".join(done.stdout.split())
    for name in PARSERS:
        assert f"edge {name.split()[0]}" in shown
    assert "COMMAND 'edge run'" in shown


def test_mandoc_finds_no_error() -> None:
    done = subprocess.run(
        [shell("mandoc"), "-T", "lint", "-W", "error", str(MANUAL)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")
