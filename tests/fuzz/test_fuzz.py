"""Every reader with some dozens of inputs; `python -m tests.fuzz` runs as many as one likes."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.runtime.errors import EdgeError
from tests.fuzz.driver import is_message
from tests.fuzz.mutate import mutate
from tests.fuzz.target import Target
from tests.fuzz.targets import all_targets

INPUTS = 60  # `make test-slow` goes on from these to 500


@pytest.mark.parametrize("target", all_targets(), ids=lambda target: target.name)
def test_no_input_is_outside_the_error_tree(target: Target, tmp_path: Path) -> None:
    seeds = list(target.seeds(tmp_path))
    for seed in seeds:
        target.read(seed, tmp_path)
    for number in range(INPUTS):
        raw = mutate(number, seeds[number % len(seeds)], target.kind, target.words)
        said = ""
        try:
            target.read(raw, tmp_path)
        except EdgeError as error:
            said = str(error)
        except BaseException as error:
            raise AssertionError(f"input {number} of {target.name}") from error
        assert is_message(said), f"input {number}: {said[:300]!r}"


def test_mutations_are_reproducible_and_differ() -> None:
    original = b'{"a": [1, 2, {"b": "c"}], "d": 0.5}'
    made = [mutate(seed, original, kind, (b"word",)) for kind in ("bytes", "json", "text") for seed in range(100)]
    again = [mutate(seed, original, kind, (b"word",)) for kind in ("bytes", "json", "text") for seed in range(100)]
    assert made == again
    assert len(set(made)) > 200
