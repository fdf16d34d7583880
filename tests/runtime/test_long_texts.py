"""Long texts are encoded in another way than short ones: to the same ids, and without holding up other threads."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import tokenizers

from edge.runtime import tokenizer as module
from edge.runtime.engines.scripted import tokenizer_json
from edge.runtime.tokenizer import Tokenizer

PIECES = ("a", "B ", " ", "\n", "é", "汉", "字", "😀", "123", "the ", "\t", "'s", "<", "|")


def check_same(text_of_tokenizer: str) -> None:
    ours, theirs = Tokenizer.from_text(text_of_tokenizer), tokenizers.Tokenizer.from_str(text_of_tokenizer)
    chance = random.Random(3)
    for _ in range(3):
        text = "".join(chance.choice(PIECES) for _ in range(2 * module._LONG_TEXT))
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids


def test_ids_are_the_same() -> None:
    check_same(tokenizer_json())


def test_ids_of_glm4_are_the_same(shared: Path) -> None:
    check_same((shared / "glm4-tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))


def test_other_threads_go_on() -> None:
    tokenizer, turns, done = Tokenizer.from_text(tokenizer_json()), 0, threading.Event()

    def encode() -> None:
        tokenizer.encode("x" * 1_000_000)
        done.set()

    thread = threading.Thread(target=encode)
    thread.start()
    while not done.is_set():
        time.sleep(0.001)
        turns += 1
    thread.join()
    assert turns > 20, "one or two, if all was read at once"
