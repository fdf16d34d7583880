"""Needle in a haystack: does a model find one sentence in a long text, wherever it is?

In: an `LLM`, context lengths, depths and a seed. Out: a `NeedleResult` and its JSON. Knows nothing about files;
`needle_report.py` shows results.

The needle is "The secret number of <a city> is <a number>." between lines of CPython's documentation; the question
about it comes last. There are two scores. Retrieved: the greedy answer contains the number. Margin: how much more
likely the number is than other numbers of the same length after "The secret number of <the city> is", in nats, as a
mean over WRONG of them. It is about 0 if a model cannot see the number, and smooth, so that it distinguishes even
models that never answer.

Cells are computed in the order of their ids over one sequence in the KV cache (edge.profiles.likelihood), so that what
two prompts have in common, the text before the needle, is read once.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate, count

import numpy as np

from edge.export.text.corpus import builtin_evaluation
from edge.profiles.likelihood import Query, Trunk, score
from edge.profiles.machine_record import MachineRecord, machine_record, versions_record
from edge.profiles.settings import NEEDLE_DEPTHS, NEEDLE_SEED
from edge.runtime.errors import ContextLengthError, SettingsError
from edge.runtime.files import real_path
from edge.runtime.llm import LLM
from edge.runtime.markup import MarkedText
from edge.runtime.tokenizer import Tokenizer

CITIES = (
    "Aleppo",
    "Bergen",
    "Cuenca",
    "Dakar",
    "Essen",
    "Fukuoka",
    "Genoa",
    "Hobart",
    "Izmir",
    "Jaipur",
    "Kyiv",
    "Lima",
)
DIGITS = 5
WRONG = 4  # other numbers that the right one is compared with
ANSWER_TOKENS = 32  # a context of N holds a prompt of N - ANSWER_TOKENS and the answer after it
MAX_DRAWS = 1000
MISSED, FOUND = "○", "●"


@dataclass(frozen=True, slots=True)
class Needle:
    """What is hidden and asked for."""

    city: str
    secret: str  # digits
    wrong: tuple[str, ...]  # other numbers, of as many tokens

    @property
    def lead(self) -> str:
        """What comes before the number, in the needle and in a full answer."""
        return f"The secret number of {self.city} is"

    @property
    def sentence(self) -> str:
        return f"{self.lead} {self.secret}."

    @property
    def question(self) -> str:
        return f"What is the secret number of {self.city}?"


@dataclass(frozen=True, slots=True)
class NeedleCell:
    """What was found at one length and depth."""

    context: int  # tokens of prompt and answer
    depth: float  # percent of the haystack that comes before the needle, as asked
    position: int  # tokens of the prompt before the needle
    prompt_tokens: int
    answer: str  # greedy
    retrieved: bool  # whether the answer contains the secret
    logprob: float  # of the secret, nats
    wrong_logprobs: tuple[float, ...]  # of the wrong ones, nats

    @property
    def margin(self) -> float:
        """Nats by which the secret is more likely than the wrong ones are on average."""
        return self.logprob - math.fsum(self.wrong_logprobs) / len(self.wrong_logprobs)


@dataclass(frozen=True, slots=True)
class NeedleResult:
    """All cells, and what they were measured with."""

    bundle: str  # name of the folder
    recipe: str
    engine: str
    kv_cache: str  # precision of keys and values
    seed: int
    needle: Needle
    repeats: int  # how often the longest prompt begins the text; above 1, it has parts of the text more than once
    cells: tuple[NeedleCell, ...]  # by length, then depth
    computed_tokens: int  # everything read and written; the prompts have sum(prompt_tokens)
    machine: MachineRecord = field(default_factory=machine_record)
    versions: dict[str, str] = field(default_factory=versions_record)

    def to_json(self) -> str:
        cells = [{**asdict(cell), "margin": cell.margin} for cell in self.cells]
        return json.dumps({**asdict(self), "cells": cells}, indent=1, ensure_ascii=False) + "\n"


@dataclass(frozen=True, slots=True)
class _Prompt:
    """The prompt of a cell."""

    context: int
    depth: float
    position: int
    haystack_tokens: int
    ids: tuple[int, ...]


def run(
    llm: LLM,
    lengths: Sequence[int],
    depths: Sequence[float] = NEEDLE_DEPTHS,
    seed: int = NEEDLE_SEED,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> NeedleResult:
    """Hide a needle at every depth of every length, and ask for it.

    lengths: tokens of prompt and answer. depths: percent. progress: told the cells done and the cells in all. Raises
    SettingsError for an impossible length or depth, ContextLengthError for one beyond the context, both before anything
    is computed, and DeviceError.
    """
    needle = make_needle(llm.tokenizer, seed)
    prompts, repeats = _prompts(llm, needle, sorted(set(lengths)), sorted(set(depths)))
    cells: dict[tuple[int, float], NeedleCell] = {}
    with Trunk(llm.engine) as trunk:
        for prompt in sorted(prompts, key=lambda prompt: prompt.ids):
            cells[prompt.context, prompt.depth] = _ask(llm, needle, prompt, trunk)
            progress(len(cells), len(prompts))
    manifest = llm.bundle.manifest
    return NeedleResult(
        bundle=real_path(llm.bundle.path).name,
        recipe=manifest.recipe,
        engine=llm.engine.info.name,
        kv_cache=llm.engine.info.kv_precision,
        seed=seed,
        needle=needle,
        repeats=repeats,
        cells=tuple(cells[key] for key in sorted(cells)),
        computed_tokens=trunk.num_computed,
    )


def make_needle(tokenizer: Tokenizer, seed: int) -> Needle:
    """A city, its number and other numbers with as many tokens, all drawn with the seed."""
    rng = np.random.default_rng(seed)
    city = CITIES[int(rng.integers(len(CITIES)))]
    drawn: list[str] = []
    for _ in range(MAX_DRAWS):
        number = str(rng.integers(10 ** (DIGITS - 1), 10**DIGITS))
        fits = not drawn or len(tokenizer.encode(f" {number}")) == len(tokenizer.encode(f" {drawn[0]}"))
        if fits and number not in drawn:
            drawn.append(number)
        if len(drawn) == 1 + WRONG:
            return Needle(city, drawn[0], tuple(drawn[1:]))
    raise AssertionError(f"no {1 + WRONG} numbers of {DIGITS} digits have as many tokens as each other")


def _ask(llm: LLM, needle: Needle, prompt: _Prompt, trunk: Trunk) -> NeedleCell:
    """One cell: the greedy answer, then how likely the numbers are after the lead of a full answer."""
    trunk.seek(prompt.ids)
    answer = _greedy(llm, prompt.ids, trunk)
    lead = tuple(llm.tokenizer.encode(_lead(llm, needle)))
    numbers = [tuple(llm.tokenizer.encode(f" {number}")) for number in (needle.secret, *needle.wrong)]
    queries = [Query(prompt.ids + lead, number) for number in numbers]
    secret, *wrong = (one.logprob for one in score(llm.engine, llm.tokenizer.num_tokens, queries, trunk=trunk))
    return NeedleCell(
        context=prompt.context,
        depth=prompt.depth,
        position=prompt.position,
        prompt_tokens=len(prompt.ids),
        answer=answer,
        retrieved=needle.secret in answer,
        logprob=secret,
        wrong_logprobs=tuple(wrong),
    )


def _greedy(llm: LLM, prompt: Sequence[int], trunk: Trunk) -> str:
    """What `LLM.generate` would write, continuing a sequence that has the prompt already."""
    trunk.seek(prompt[:-2])
    rows = list(trunk.extend(prompt[-2:]))
    new: list[int] = []
    while True:
        best = int(rows[-1][: llm.tokenizer.num_tokens].argmax())
        if best in llm.stop_ids:
            break
        new.append(best)
        if len(new) == ANSWER_TOKENS:
            break
        rows = list(trunk.extend([best]))
    return llm.tokenizer.decode(new)


def _prompts(llm: LLM, needle: Needle, lengths: Sequence[int], depths: Sequence[float]) -> tuple[list[_Prompt], int]:
    """All prompts, and how often the longest begins the text. Raises SettingsError and ContextLengthError."""
    if not lengths or not depths:
        raise SettingsError("no lengths or no depths; give at least one of each")
    if wrong := [depth for depth in depths if not 0 <= depth <= 100]:
        raise SettingsError(f"a depth is {wrong[0]:g}, expected 0 to 100 percent")
    before, after = _frame(llm, needle)
    hidden = llm.tokenizer.encode(f"\n{needle.sentence}\n")
    fixed = len(before) + len(hidden) + len(after)
    answer = max(ANSWER_TOKENS, len(llm.tokenizer.encode(f"{_lead(llm, needle)} {needle.secret}")))
    info = llm.engine.info
    limit, least = min(info.max_context, info.longest_prompt + answer), fixed + answer + 1
    if lengths[-1] > limit:
        raise ContextLengthError(
            f"a length is {lengths[-1]} tokens and the context holds {limit}; ask for fewer, or load with a larger "
            "max_context or KV cache"
        )
    if lengths[0] < least:
        raise SettingsError(
            f"a length is {lengths[0]} tokens, expected {least} or more: question and answer take the rest"
        )
    lines, repeats = _haystack(llm.tokenizer, lengths[-1] - answer - fixed)
    tokens = [token_id for line in lines for token_id in line]
    ends = [0, *accumulate(map(len, lines))]
    prompts = []
    for length in lengths:
        room = length - answer - fixed
        for depth in depths:
            at = room if depth == 100 else ends[bisect_right(ends, room * depth / 100) - 1]  # where a line ends
            ids = (*before, *tokens[:at], *hidden, *tokens[at:room], *after)
            prompts.append(_Prompt(length, float(depth), len(before) + at, room, ids))
    return prompts, repeats


def _frame(llm: LLM, needle: Needle) -> tuple[list[int], list[int]]:
    """Ids before and after the haystack: the chat template, if the bundle has one, and the question."""
    question, place = f"\n\n{needle.question}", "\x00"
    if llm.template is None:
        return [], llm.tokenizer.encode(f"{question}\nAnswer:")
    text = llm.chat_template.render_marked([{"role": "user", "content": f"{place}{question}"}])
    before, after = (MarkedText(part) for part in text.split(place))
    return llm.tokenizer.encode_marked(before), llm.tokenizer.encode_marked(after)


def _lead(llm: LLM, needle: Needle) -> str:
    return f" {needle.lead}" if llm.template is None else needle.lead


def _haystack(tokenizer: Tokenizer, num_tokens: int) -> tuple[list[list[int]], int]:
    """Ids of lines, `num_tokens` of them or more, and how often the text is begun for that."""
    lines: list[list[int]] = []
    missing = num_tokens
    for begun in count(1):
        for line in _text():
            lines.append(tokenizer.encode(line))
            missing -= len(lines[-1])
            if missing <= 0:
                return lines, begun
    raise AssertionError("numbers do not end")


def _text() -> list[str]:
    """The lines of the documentation."""
    return "\n".join(document.text for document in builtin_evaluation()).splitlines(keepends=True)
