"""A PDF of 300 pages: read, answered from, and asked a second question without being read again.

    python benchmarks/documents.py BUNDLE [--engine openvino|onnx] [--rounds 5] [--new-tokens 24] [--json]

Four parts, each repeated for --rounds; a figure is a median with the lowest and the highest:

    full pages   the text of 300 pages of 50 lines is extracted: seconds, pages a second
    refused      5,000 such pages are held against the context of BUNDLE: seconds until the error, pages read until then
    in a session 300 short pages that fit the context, in one message with a question, by `ChatSession.send`; then a
                 second question in the same session. Time to first token of both, and how many tokens of the second
                 prompt were in the cache
    stateless    the same by `llm.chat` with the whole conversation as messages, as a client without a session sends it

The cache is cleared before each first question. "right" is how many of the answers hold the word that the page in
question has: it says whether the model can do this at all, and is not what is measured here. The pages are made by
`make_pdf.py`; those to extract are of the documentation inside CPython, whose wording differs a little from one Python
to the next.

Targets: of the second prompt, no more is computed than the first answer, the second question and less than a block, and
its first token comes at least 5 times as soon.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from make_pdf import SIMPLE, make_pdf
from report import about, met_text, put_out, ratio_text, show_about, show_table, spread

import edge
from edge.documents import prompt_with, read_document
from edge.documents.room import Room
from edge.runtime.chunk import Stats
from edge.runtime.errors import ContextLengthError

PAGES, TOO_MANY = 300, 5000
LINES = 50  # of a full page
COLOURS = ("red", "green", "blue", "black", "white", "yellow", "brown")
ASKED = (17, 254)  # rooms in the first and in the second question
BLOCK = 32  # tokens; the largest block of our engines
LEAST_RATIO = 5.0


@dataclass(frozen=True)
class Asked:
    """Two questions about one document."""

    first: Stats
    second: Stats
    right: int


def colour(room: int) -> str:
    return COLOURS[room * room % len(COLOURS)]


def question(room: int) -> str:
    return f"Which colour is the door of room {room}? Answer in one word."


def short_pages() -> list[str]:
    return [f"Room {room}: its door is {colour(room)}." for room in range(1, PAGES + 1)]


def full_pages(count: int) -> list[str]:
    paragraphs = [" ".join(paragraph.split()) for topic in topics.values() for paragraph in topic.split("\n\n")]
    lines = [line for paragraph in paragraphs for line in textwrap.wrap(paragraph, 95)]
    latin = [line.encode("cp1252", "replace").decode("cp1252") for line in lines]
    return ["\n".join(latin[(i * LINES + j) % len(latin)] for j in range(LINES)) for i in range(count)]


def timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def extraction(folder: Path, rounds: int) -> dict[str, Any]:
    path = folder / "full.pdf"
    path.write_bytes(make_pdf(full_pages(PAGES), SIMPLE))
    text = read_document(path).text  # also imports pypdf
    seconds = [timed(lambda: read_document(path)) for _ in range(rounds)]
    return {"pages": PAGES, "characters": len(text), "seconds": spread(seconds)}


def refusal(llm: edge.LLM, folder: Path, rounds: int) -> dict[str, Any]:
    path = folder / "long.pdf"
    path.write_bytes(make_pdf(full_pages(TOO_MANY), SIMPLE))
    said = ""

    def refuse() -> None:
        nonlocal said
        try:
            Room(llm, 0).read(path)
        except ContextLengthError as error:
            said = str(error)

    seconds = [timed(refuse) for _ in range(rounds)]
    return {"pages": TOO_MANY, "said": said, "seconds": spread(seconds)}


def _last(chunks: Sequence[edge.Chunk]) -> tuple[str, Stats]:
    stats = chunks[-1].stats
    assert stats is not None
    return "".join(chunk.text for chunk in chunks), stats


def in_session(llm: edge.LLM, message: str, new_tokens: int) -> Asked:
    """As `edge chat` does it."""
    llm.clear_cache()
    session = edge.ChatSession(llm)
    found = [
        _last(list(session.send(content, max_new_tokens=new_tokens, temperature=0)))
        for content in (message, question(ASKED[1]))
    ]
    return _asked(found)


def stateless(llm: edge.LLM, message: str, new_tokens: int) -> Asked:
    """As a client does it that sends the whole conversation again."""
    llm.clear_cache()
    messages = [{"role": "user", "content": message}]
    first = _last(list(llm.chat(messages, max_new_tokens=new_tokens, temperature=0)))
    messages += [{"role": "assistant", "content": first[0]}, {"role": "user", "content": question(ASKED[1])}]
    return _asked([first, _last(list(llm.chat(messages, max_new_tokens=new_tokens, temperature=0)))])


def _asked(found: Sequence[tuple[str, Stats]]) -> Asked:
    right = sum(colour(room) in text.lower() for room, (text, _) in zip(ASKED, found, strict=True))
    return Asked(found[0][1], found[1][1], right)


PARTS = {"in a session": in_session, "stateless": stateless}


def record_of(asked: Sequence[Asked]) -> dict[str, Any]:
    computed = [one.second.prompt_tokens - one.second.cached_tokens for one in asked]
    asks = asked[0].second.prompt_tokens - asked[0].first.prompt_tokens  # the first answer and the second question
    ratios = spread([one.first.ttft_ms / one.second.ttft_ms for one in asked])
    return {
        "prompt_tokens": asked[0].first.prompt_tokens,
        "first_ttft_ms": spread([one.first.ttft_ms for one in asked]),
        "second_ttft_ms": spread([one.second.ttft_ms for one in asked]),
        "ratio": ratios,
        "second_prompt_tokens": asked[0].second.prompt_tokens,
        "second_computed_tokens": max(computed),
        "right": sum(one.right for one in asked),
        "of": 2 * len(asked),
        "met": max(computed) < asks + BLOCK and ratios["median"] >= LEAST_RATIO,
    }


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    path = folder / "report.pdf"
    path.write_bytes(make_pdf(short_pages(), SIMPLE))
    with edge.load(args.bundle, engine=args.engine) as llm:
        document = read_document(path)
        assert document.pages == PAGES
        message = prompt_with([document], question(ASKED[0]))
        list(llm.chat([{"role": "user", "content": "Hello"}], max_new_tokens=4))  # prepares kernels
        found = {
            name: record_of([ask(llm, message, args.new_tokens) for _ in range(args.rounds)])
            for name, ask in PARTS.items()
        }
        return {
            "context": llm.engine.info.max_context,
            "engine": llm.engine.info.name,
            "full pages": extraction(folder, args.rounds),
            "refused": refusal(llm, folder, args.rounds),
            **found,
        }


def show(report: dict[str, Any]) -> None:
    show_about(report)
    full, refused = report["full pages"], report["refused"]
    print(f"{PAGES} full pages, {full['characters']:,} characters: {ratio_text(full['seconds'])} s")
    print(f"{TOO_MANY:,} full pages: refused in {ratio_text(refused['seconds'])} s: {refused['said']}\n")
    show_table(
        [
            {
                "second question": name,
                "prompt, tokens": f"{part['prompt_tokens']:,}",
                "1st token, ms": ratio_text(part["first_ttft_ms"]),
                "of the 2nd answer, ms": ratio_text(part["second_ttft_ms"]),
                "ratio": ratio_text(part["ratio"]),
                "computed again, tokens": f"{part['second_computed_tokens']:,} of {part['second_prompt_tokens']:,}",
                "right": f"{part['right']} of {part['of']}",
                "target": met_text(part["met"]),
            }
            for name in PARTS
            for part in [report[name]]
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="A PDF of 300 pages: read, and asked two questions.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--engine", default="openvino", choices=("openvino", "onnx"))
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--new-tokens", type=int, default=24, metavar="N")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    report = about(args.bundle)
    with tempfile.TemporaryDirectory() as folder:
        report |= measure(args, Path(folder))
    put_out(report, show, as_json=args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
