"""Print what lets a shell complete commands, options, names and paths.

Nothing else needs to be installed, and a Tab starts no Python: each script is a list of everything there is.

examples:
  edge completion bash
  edge completion zsh
  edge completion fish
"""

from __future__ import annotations

import argparse
import sys

# Made from the parser by `python -m tests.docs.shell_files`, under the names that each shell looks for.
FOLDER = "shell"
FILES = {"bash": "edge", "zsh": "_edge", "fish": "edge.fish"}
# What a line in the file that each shell reads at its start may be.
SWITCHED_ON = {
    "bash": 'eval "$(edge completion bash)"',
    "zsh": 'eval "$(edge completion zsh)"',
    "fish": "edge completion fish | source",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", choices=tuple(FILES), help=f"the shell: {', '.join(FILES)}")


def run(args: argparse.Namespace) -> int:
    from importlib.resources import files

    sys.stdout.write(files("edge").joinpath(FOLDER, FILES[args.shell]).read_text(encoding="utf-8"))
    if sys.stdout.isatty():
        where = {"bash": "~/.bashrc", "zsh": "~/.zshrc", "fish": "~/.config/fish/config.fish"}[args.shell]
        print(f"edge: to switch it on, add to {where}: {SWITCHED_ON[args.shell]}", file=sys.stderr)
    return 0
