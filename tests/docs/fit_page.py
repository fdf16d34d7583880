"""What docs/fit.md shows of `edge fit`, made by the program.

    python -m tests.docs.fit_page

In: the shapes of GLM-4-9B. Out: the blocks of the page between its marks. Nothing of them depends on the machine.
"""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stdout
from pathlib import Path

from edge.commands.fit_told import print_report, print_simulations
from edge.commands.recipes import GLM4_9B
from edge.profiles.devices.table import find_profile
from edge.profiles.fit.measured import left_out_of, stored
from edge.profiles.fit.places import place_of
from edge.profiles.fit.predict import predict
from edge.profiles.fit.published import GLM4, MODELS
from edge.profiles.fit.replicas import Clients
from edge.profiles.fit.report import recipes_of, report, simulations
from edge.profiles.fit.subject import Subject

PAGE = Path(__file__).parents[2] / "docs" / "fit.md"
SUBJECT = Subject("config.json", GLM4_9B)
OPTIONS = "--clients 40 --tokens-per-s 8 --simulate"
MARK, END = "<!-- made: {} -->\n", "<!-- end -->\n"


def blocks() -> dict[str, str]:
    """Name of a mark -> what is between it and the next end."""
    one = report(SUBJECT, [place_of(find_profile("258V"))], every_device=False)
    return {
        "258V": f"```\n$ edge fit config.json --device 258V\n{shown(one)}```\n",
        "table": f"```\n{shown(report(SUBJECT, [])).partition(chr(10) * 2)[2]}```\n",
        "clients": f"```\n$ edge fit config.json --device 258V {OPTIONS}\n...\n{clients()}```\n",
        "published": published(),
        "measured": measured(),
    }


def shown(found: object) -> str:
    stream = io.StringIO()
    with redirect_stdout(stream):
        print_report(found)  # type: ignore[arg-type]  # a Report
    return stream.getvalue()


def clients() -> str:
    """What is told beyond a model that runs once."""
    found = report(SUBJECT, [place_of(find_profile("258V"))], every_device=False, clients=Clients(40, 8.0))
    stream = io.StringIO()
    with redirect_stdout(stream):
        print_report(found)
        print_simulations(simulations(found))
    return "replicas for" + stream.getvalue().partition("\nreplicas for")[2]


def published() -> str:
    """The comparison with published figures of GLM-4-9B."""
    lines = ["| device | weights | tok/s | published | first token, s | published | memory, MiB | published |"]
    lines.append("|---|---|--:|--:|--:|--:|--:|--:|")
    for known in GLM4:
        [planned] = recipes_of(Subject("", MODELS[known.model]), known.recipe)
        found = predict(planned, place_of(find_profile(known.device)), known.prompt_tokens + 64)
        assert found.ttft is not None
        assert known.ttft_s is not None
        assert known.memory_mib is not None
        lines.append(
            f"| {known.device} | {known.recipe} | {found.decode.value:.1f} | {known.tok_s} | {found.ttft.value:.2f} | "
            f"{known.ttft_s} | {found.memory.value / 2**20:,.0f} | {known.memory_mib:,} |"
        )
    return "\n".join(lines) + "\n"


def measured() -> str:
    """The pairs that were measured, each beside what the others of its engine say of it."""
    lines = [
        "| model | weights | engine | context | memory, MB | predicted | tok/s | predicted | ttft, s | predicted |"
    ]
    lines.append("|---|---|---|--:|--:|--:|--:|--:|--:|--:|")
    for one in left_out_of(stored()):
        pair = one.pair
        lines.append(
            f"| {pair.model} | {pair.recipe} | {pair.engine} | {pair.context_tokens:,} | "
            f"{pair.peak_bytes / 1e6:,.0f} | {one.memory_error:+.1%} | {pair.decode_tok_s:.1f} | "
            f"{one.decode_error:+.0%} | {pair.ttft_s:.2f} | {one.ttft_s / pair.ttft_s - 1:+.0%} |"
        )
    run = stored()
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    told = f"{run.machine}, {run.bandwidth_gbs:.1f} GB/s read by all cores in the same run; {versions}."
    return "\n".join([*lines, "", f"`python benchmarks/fit.py --store`; {told}"]) + "\n"


def made(text: str) -> str:
    """The page with its blocks as the program gives them now."""
    for name, block in blocks().items():
        before, mark, rest = text.partition(MARK.format(name))
        _, end, after = rest.partition(END)
        assert mark, name
        assert end, name
        text = "".join([before, mark, block, end, after])
    return text


if __name__ == "__main__":
    PAGE.write_text(made(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    sys.exit(0)
