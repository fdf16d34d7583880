"""The files that shells and `man` read, made from the parser: edge/shell/{edge,_edge,edge.fish,edge.1}.

    python -m tests.docs.shell_files

In: `edge.cli.build_parser`. Out: the files, the same from every run. shtab and argparse-manpage write them; here is
what they cannot see in a parser: which words an option takes whose choices are checked by a function, and what names a
path.
Run it under the oldest Python that is supported: each lays the usage in a manual page out in its own way.
"""

from __future__ import annotations

import argparse
import re
import shlex
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import shtab
from argparse_manpage.manpage import Manpage

from edge.cli import build_parser
from edge.commands.completion import FILES
from edge.export.compress.recipes import recipes
from edge.runtime.engines.registry import ENGINES
from edge.runtime.settings import KV_PRECISIONS

ROOT = Path(__file__).parents[2]
PLACE = ROOT / "edge" / "shell"
MANUAL = "edge.1"
MADE = "Made from the parser by `python -m tests.docs.shell_files`; a test holds it to the parser."
FOLDERS = ("DIR",)  # metavars
PATHS = ("CHECKPOINT", "FILE", "OUT", "PATH", "SOURCE", "A", "B")


def _precisions() -> list[str]:
    return list(dict.fromkeys(str(recipe.linear) for recipe in recipes().values()))


NAMES: dict[str, Callable[[], Iterable[str]]] = {"recipe": recipes, "embedding": _precisions, "head": _precisions}
LISTS: dict[str, Callable[[], Iterable[str]]] = {
    "recipes": recipes,
    "engines": lambda: ENGINES,
    "kv_precision": lambda: KV_PRECISIONS,
}
# Names with commas between them: what is before the last comma stays.
LIST_OF = """
_edge_list() {
  local last="${1##*,}"
  compgen -P "${1%"$last"}" -W "${*:2}" -- "$last"
}
"""
# Names in the models folder, and folders that are here. Of config.toml, which may move the models, no shell knows.
MODELS = """
_edge_models() {
  local mac="$HOME/Library/Application Support"
  if [ -d "$mac" ]; then echo "${XDG_DATA_HOME:-$mac}/edgeglm/models"
  else echo "${XDG_DATA_HOME:-$HOME/.local/share}/edgeglm/models"; fi
}
"""
BUNDLES = {
    "bash": """
_edge_bundles() {
  compgen -d -- "$1"
  (cd -- "$(_edge_models)" 2>/dev/null && compgen -d -- "$1")
}
""",
    "zsh": """
_edge_bundles() {
  local models="$(_edge_models)"
  compadd -- "$models"/*(N/:t)
  _files -/
}
""",
}


def files() -> dict[str, str]:
    """Name -> text of every file."""
    made = {name: _script(shell) for shell, name in FILES.items()}
    return {**made, MANUAL: _manual()}


def _script(shell: str) -> str:
    parser = build_parser()
    lists = []
    for action in _actions(parser):
        if (function := _annotate(action)) is not None:
            lists.append(function)
    preambles = {
        "bash": "\n".join([LIST_OF, MODELS, BUNDLES["bash"], *dict.fromkeys(lists)]),
        "zsh": MODELS + BUNDLES["zsh"],
    }
    preamble = preambles.get(shell, "")
    text = shtab.complete(parser, shell, preamble=preamble)
    mark = "" if shell == "zsh" else f"# {MADE}\n"  # zsh reads the first line of its own
    return mark + "\n".join(line.rstrip() for line in text.strip().splitlines()) + "\n"


def _annotate(action: argparse.Action) -> str | None:
    """Say what completes an argument; return the function of bash that it needs."""
    metavar = str(action.metavar)
    if action.choices is not None or action.nargs == 0:
        return None
    if action.dest in LISTS and not metavar.startswith("{"):
        words = " ".join(map(shlex.quote, LISTS[action.dest]()))
        name = f"_edge_list_of_{action.dest}"
        action.complete = {"bash": name, "zsh": f"_sequence compadd - {words}"}  # type: ignore[attr-defined]
        return f'{name}() {{ _edge_list "$1" {words}; }}'
    if action.dest in NAMES:
        action.choices = list(NAMES[action.dest]())
    elif re.fullmatch(r"\{.+\}", metavar) or "|" in metavar:
        action.choices = re.split("[,|]", metavar.strip("{}"))
    elif metavar == "BUNDLE":
        action.complete = {**shtab.DIRECTORY, **dict.fromkeys(BUNDLES, "_edge_bundles")}  # type: ignore[attr-defined]
    elif metavar in FOLDERS:
        action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]  # where shtab looks for it
    elif metavar in PATHS:
        action.complete = shtab.FILE  # type: ignore[attr-defined]
    return None


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from _actions(sub)
        else:
            yield action


def _manual() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    data = {
        "date": f"edgeglm {project['version']}",  # no day, so that it is the same tomorrow
        "project_name": "edge",
        "manual_title": "edge, user commands",
        "description": project["description"],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(1 << 20))  # man fills lines itself; the terminal of this run does not matter
        text = str(Manpage(build_parser(), _data=data))
    return f'.\\" {MADE}\n' + "\n".join(line.rstrip() for line in text.strip().splitlines()) + "\n"


if __name__ == "__main__":
    PLACE.mkdir(exist_ok=True)
    for name, text in files().items():
        (PLACE / name).write_text(text, encoding="utf-8")
