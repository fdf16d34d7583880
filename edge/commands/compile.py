"""Compile a bundle for an NPU ahead of time, so that it loads faster.

Compiling for an NPU takes minutes for a large model. What is made here is used by every later command with the same
settings on the same machine, as long as OpenVINO, the driver and the bundle stay what they are; otherwise a line says
why not, and the model is compiled when it is loaded. It takes its weights from the bundle, which has to stay.

examples:
  edge compile glm4-npu --device NPU
  edge compile glm4-npu --device NPU --max-prompt-tokens 2048 --out ./compiled
  edge compile glm4-npu --engine openvino_npu --device CPU    # the NPU's pipeline on the CPU, to try it
"""

from __future__ import annotations

import argparse
import time

from edge.commands import options
from edge.commands.help import told


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_bundle(parser)
    parser.add_argument(
        "--out",
        metavar="DIR",
        help=told("keep it in this folder, which --compiled-folder names later", "in your cache folder"),
    )
    options.add_json(parser)
    options.add_engine(parser)


def run(args: argparse.Namespace) -> int:
    from edge.commands.console import human_bytes, print_json
    from edge.runtime.bundle import open_bundle
    from edge.runtime.engines.choice import compile_ahead
    from edge.runtime.errors import SettingsError
    from edge.runtime.settings import engine_settings

    chosen = options.engine_settings(args)
    if args.out is not None:
        if args.compiled_folder is not None:
            raise SettingsError("out and compiled_folder name the same folder; give one of them", param="out")
        chosen["compiled_folder"] = args.out
    started = time.perf_counter()
    path, size, lengths = compile_ahead(open_bundle(args.bundle), engine_settings(**chosen))
    seconds = time.perf_counter() - started
    if args.json:
        print_json({"path": str(path), "bytes": size, "seconds": round(seconds, 1), "for": lengths})
        return 0
    print(f"{path}: {human_bytes(size)}, compiled in {seconds:.1f} s for {lengths}")
    if args.out is not None:
        print(f"give --compiled-folder {args.out} with the same settings, so that it is used")
    return 0
