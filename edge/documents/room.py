"""Documents against the context: counted while they are read, and refused as soon as they cannot fit.

In: paths, a model's context and tokenizer, and what else the prompt holds. Out: documents that fit, with their tokens.
Tokens are counted part by part, so a total can be off by one or two a part; the prompt itself is counted exactly when
the model is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge.documents.document import JOINT, Document, heading
from edge.documents.reader import open_document, printable_name
from edge.documents.source import Part
from edge.runtime.errors import ContextLengthError
from edge.runtime.files import real_path

if TYPE_CHECKING:
    from edge.runtime.llm import LLM

ANSWER_TOKENS = 256  # kept free for an answer of unknown length


@dataclass(frozen=True)
class Fitted:
    """A document that fits. tokens: how many it has, with its heading."""

    document: Document
    tokens: int


class Room:
    """What a model's context has left for documents."""

    def __init__(self, llm: LLM, taken: int, max_new_tokens: int | None = None) -> None:
        """taken: tokens of all else in the prompt. max_new_tokens: the longest answer, if that is known."""
        self._tokenizer = llm.tokenizer
        info = llm.engine.info
        self.context = info.max_context
        answer = min(ANSWER_TOKENS if max_new_tokens is None else max_new_tokens, self.context // 4)
        self._limit = min(self.context - answer, info.longest_prompt)
        self.taken = taken
        self._joint = ""  # before the next document

    def read(self, path: str | Path, name: str | None = None) -> Fitted:
        """Read a document that fits beside all that was read before.

        Raises DocumentError, and ContextLengthError once the parts that were read are too long.
        """
        with open_document(path, name) as source:
            tokens = self._count(self._joint + heading(source.name))

            def take(part: Part) -> None:
                nonlocal tokens
                tokens += self._count(part.text)
                if self.taken + tokens > self._limit:
                    raise ContextLengthError(
                        f"{source.name} does not fit: {tokens:,} tokens with {source.progress(part)}, and "
                        f"{max(self._limit - self.taken, 0):,} of the {self.context:,} tokens of context are free "
                        "beside the rest of the prompt and an answer; give a shorter document or a part of it"
                    )

            document = source.read(take)
        self.taken += tokens
        self._joint = JOINT
        return Fitted(document, tokens)

    def _count(self, text: str) -> int:
        return len(self._tokenizer.encode(text, parse_special=False))


def distinct(paths: Sequence[str | Path]) -> dict[Path, str]:
    """Return each file once, in order, with a name of its own: the file name, and as many folders as tell it apart."""
    files: dict[Path, Path] = {}  # where a path leads -> the path as it was given first
    for path in map(Path, paths):
        files.setdefault(real_path(path), path)
    names: dict[Path, str] = {}
    for real, given in files.items():
        depth = 1
        while depth < len(real.parts) and any(
            (given.name, *real.parts[-depth:-1]) == (other.name, *place.parts[-depth:-1])
            for place, other in files.items()
            if place != real
        ):
            depth += 1
        names[given] = printable_name("/".join((*real.parts[max(len(real.parts) - depth, 1) : -1], given.name)))
    return names
