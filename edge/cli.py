"""The `edge` command: finds the verb, runs it, turns errors into one line and an exit code.

Exit codes: 0 done, 1 failed (one line on stderr), 2 usage, 130 interrupted. Verbs live in `commands/`, one file each.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version

from edge.runtime.errors import EdgeError

VERBS = ("demo", "export", "run", "chat", "prefix", "bench", "profile", "needle", "inspect", "verify", "devices")
EXPORTING = ("demo", "export", "profile")
ENGINES = ("openvino", "onnx")
# Which extra installs a module that can be missing.
EXTRAS = {
    "openvino": "openvino",
    "onnxruntime": "onnx",
    **dict.fromkeys(("nncf", "onnx", "gguf", "ml_dtypes", "huggingface_hub"), "export"),
    "matplotlib": "profile",
    **dict.fromkeys(("optimum", "transformers", "torch"), "optimum"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    args = build_parser().parse_args(arguments)
    try:
        code: int = args.run(args)
        return code
    except EdgeError as error:
        print(f"edge: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("edge: interrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra in ENGINES and args.verb in EXPORTING:
            extra = "export"  # which brings both engines
        if extra is None:
            raise
        print(f"edge: {error.name} is not installed; pip install 'edgeglm[{extra}]'", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at exit
        return 1


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="edge", description="Export GLM-4 checkpoints and run them offline on Intel hardware."
    )
    parser.add_argument("--version", action="version", version=f"edgeglm {version('edgeglm')}")
    verbs = parser.add_subparsers(metavar="COMMAND", required=True)
    for verb in VERBS:
        module = import_module(f"edge.commands.{verb}")
        help_text = (module.__doc__ or "").splitlines()[0]
        sub = verbs.add_parser(
            verb,
            help=help_text,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(sub)
        sub.set_defaults(run=module.run, verb=verb)
    return parser
