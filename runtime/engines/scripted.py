"""An engine that gives scripted answers: for tests of programs, and of everything above an engine.

In: a script, a function from the tokens so far to the next one. Out: an `Engine` that needs neither a model nor a
package. Knows nothing about any real engine.

    llm = edge.scripted_llm(edge.replies({"Hello": "Hello to you"}))
    llm.chat([{"role": "user", "content": "Hello"}]).text()   # "Hello to you"

It is strict where a real engine would hide a mistake for long: the script sees what the KV blocks of a sequence hold,
not what the sequence should hold. Wrong sharing, trimming or copying of blocks therefore changes answers.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edge.runtime.arrays import Array, Ids, Logits
from edge.runtime.engines.engine import TEXT, EngineInfo, Inputs, Step
from edge.runtime.kv.memory import NoMemory, ViewedMemory, untouched
from edge.runtime.kv.pool import BlockPool, CacheSequence
from edge.runtime.tokenizer import byte_of_character

Script = Callable[[Sequence[int]], "int | Logits"]  # keys of all tokens so far -> the next id, or a row of logits

SYSTEM, USER, ASSISTANT, OBSERVATION, END = range(256, 261)  # ids of SPECIAL; 0 to 255 are bytes
SPECIAL = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "<|endoftext|>")
STOP_IDS = (END, USER, OBSERVATION)
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CERTAIN = np.float32(30.0)  # logit of the scripted id; all others are 0


class IdMemory(ViewedMemory):
    """Blocks that hold one number in place of a token's keys and values, made from its id, position and embedding."""

    def __init__(self, num_blocks: int, block_size: int, *, opaque: bool) -> None:
        self.cells = untouched((num_blocks, block_size), np.int64)
        self.block_bytes = block_size * 8
        self._opaque = opaque

    def views(self, block: int, num_tokens: int) -> list[Array]:
        assert not self._opaque, "this engine's blocks can be neither copied nor saved"
        return [self.cells[block, :num_tokens]]

    def blank(self, blocks: Sequence[int]) -> None:
        self.cells[list(blocks)] = -1

    def give_back(self, block: int) -> None:
        self.cells[block] = -1


class ScriptedEngine:
    """An `Engine` over blocks of tokens, whose next token a script decides.

    block_size, num_blocks and max_tokens: of the KV pool. changes: fields of `EngineInfo`, to imitate an engine that
    cannot do everything (`can_trim=False, max_sequences=1`). Asking for more than `info` promises raises an
    AssertionError.
    """

    def __init__(
        self,
        script: Script,
        vocab_size: int = 256 + len(SPECIAL),
        *,
        max_context: int = 4096,
        block_size: int = 16,
        num_blocks: int = 1024,
        max_tokens: int | None = None,
        **changes: Any,  # Any: a value for each field of EngineInfo
    ) -> None:
        self._script = script
        self._vocab_size = vocab_size
        info = EngineInfo(
            name="scripted",
            device="CPU",
            max_context=min(max_context, num_blocks * block_size),
            prefill_chunk=128,
            kv_bytes_per_token=8,
            kv_precision="f32",
            reproducible=True,
            max_sequences=64,
            ragged=True,
            decodes_as_it_reads=True,
            takes_positions=True,
        )
        self.info = replace(info, **changes)
        opaque = not (self.info.can_fork or self.info.can_snapshot)
        self._memory = IdMemory(num_blocks, block_size, opaque=opaque)
        self._written: dict[int, int] = {}  # block -> tokens in it after the last write
        self.pool = BlockPool(num_blocks, block_size, self._memory, max_tokens)
        self.identity = {"engine": "scripted", "block": str(block_size)}

    def forward(self, ids: Ids, sequence: CacheSequence, rows: Ids, inputs: Inputs = TEXT) -> Logits:
        assert self.info.logits_rows == "any" or rows.tolist() == [ids.size - 1], "logits of the last row alone"
        self._write(sequence, ids, inputs)
        logits = self._logits(sequence, [sequence.num_tokens + int(row) + 1 for row in rows])
        sequence.commit(ids.size)
        return logits

    def decode(self, steps: list[Step]) -> list[Logits]:
        most = self.info.max_step_rows
        for sequence, ids, positions in steps:
            assert most is None or ids.size <= most, f"{ids.size} rows, {most} at most"
            self._write(sequence, ids, Inputs(positions))
        found = [
            self._logits(step.sequence, [step.sequence.num_tokens + i + 1 for i in range(step.ids.size)])
            for step in steps
        ]
        for sequence, ids, _ in steps:  # last, so that a script that raises changes nothing
            sequence.commit(ids.size)
        return found

    def interrupt(self, *, final: bool) -> None:
        """Do nothing: a script ends soon."""

    def close(self) -> None:
        self._memory.cells = np.zeros((0, 0), np.int64)
        self.pool.memory = NoMemory()

    def held(self, sequence: CacheSequence, num_tokens: int) -> list[int]:
        """Return what the blocks of a sequence hold for its first tokens."""
        blocks = sequence.block_table[: self.pool.blocks_for(num_tokens)]
        found: list[int] = self._memory.cells[blocks].ravel()[:num_tokens].tolist()
        return found

    def _write(self, sequence: CacheSequence, ids: Ids, inputs: Inputs) -> None:
        """Put new tokens into the blocks of a sequence, which commits them later."""
        begin, size = sequence.num_tokens, self.pool.block_size
        assert begin + ids.size <= self.info.max_context, "beyond the context"
        sequence.reserve(ids.size)
        for i, key in enumerate(_cells(ids, begin, inputs)):
            block = sequence.block_table[(begin + i) // size]
            inside = (begin + i) % size
            assert self.pool.holders(block) == 1, "a shared block is written into"
            assert self.info.can_trim or inside in (0, self._written.get(block)), "tokens were trimmed"
            self._memory.cells[block, inside] = key
            self._written[block] = inside + 1

    def _logits(self, sequence: CacheSequence, lengths: list[int]) -> Logits:
        """Return logits (len(lengths), vocab) after each of these numbers of tokens of a sequence."""
        held = self.held(sequence, max(lengths))
        found = np.zeros((len(lengths), self._vocab_size), np.float32)
        for row, length in zip(found, lengths, strict=True):
            answer = self._script(held[:length])
            if isinstance(answer, np.ndarray):
                row[: answer.size] = answer
            else:
                row[answer] = CERTAIN
        return found


def replies(answers: Mapping[str, str] | Callable[[str], str], otherwise: str = "") -> Script:
    """Return a script for conversations of TEMPLATE: it answers the last user message, and then ends.

    answers: by message, or a function of it. otherwise: the answer to any other message.
    """

    def next_id(held: Sequence[int]) -> int:
        begin = _last(held, ASSISTANT)
        said = bytes(key for key in held[_last(held[:begin], USER) + 1 : begin] if key < USER - 1)
        question = said.decode(errors="replace")  # of a long prompt, a chunk may end inside a character
        text = answers(question) if callable(answers) else answers.get(question, otherwise)
        answer: list[int] = [*text.encode(), END]
        return answer[min(len(held) - begin - 1, len(answer) - 1)]

    return next_id


def noise(seed: int = 0, vocab_size: int = 256) -> Script:
    """Return a script of random logits that depend on every token so far: any error in the cache changes them."""

    def row(held: Sequence[int]) -> Logits:
        digest = zlib.crc32(np.array(held, np.int64).tobytes(), seed)
        return np.random.default_rng(digest).standard_normal(vocab_size, np.float32)

    return row


def tokenizer_json() -> str:
    """Return a tokenizer of bytes: ids 0 to 255, and the special tokens from 256 on."""
    vocabulary = dict(sorted(byte_of_character().items(), key=lambda entry: entry[1]))
    added = [
        {"id": 256 + i, "content": token, "special": True, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for i, token in enumerate(SPECIAL)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    model = {"type": "BPE", "vocab": vocabulary, "merges": [], "ignore_merges": False}
    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": added,
            "pre_tokenizer": byte_level,
            "decoder": byte_level,
            "model": model,
        }
    )


def _cells(ids: Ids, begin: int, inputs: Inputs) -> list[int]:
    """Return what the cache holds for new tokens: their ids, or for more than text, numbers made from everything."""
    keys = [int(token_id) for token_id in ids]
    if inputs.are_text:
        return keys
    if inputs.positions is not None:
        rows = np.atleast_2d(inputs.positions).T.tolist()
        told = [row[0] if len(set(row)) == 1 else row for row in rows]  # of each token, whatever it is computed with
        places = begin + np.arange(ids.size)
        keys = [
            key if position == place else -2 - zlib.crc32(f"{key} {position}".encode())
            for key, position, place in zip(keys, told, places.tolist(), strict=True)
        ]
    for start, rows in inputs.embeddings:
        for i, row in enumerate(rows):
            keys[start + i] = -2 - zlib.crc32(row.tobytes(), keys[start + i] & 0xFFFFFFFF)
    return keys


def _last(held: Sequence[int], token_id: int) -> int:
    """Return the index of the last token with this id, or -1."""
    return next((i for i in range(len(held) - 1, -1, -1) if held[i] == token_id), -1)
