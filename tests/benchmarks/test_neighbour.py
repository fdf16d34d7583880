"""Speed beside other programs: who they are, that they end, and what is called met."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from engine_worker import LLAMA, Job, open_ours
from neighbour import NONE, Neighbours, beside, met, neighbours
from neighbour_worker import decode_ms


def test_names_say_who_is_there() -> None:
    assert neighbours(NONE) == Neighbours(0)
    assert neighbours("2") == Neighbours(2)
    assert neighbours("1-low") == Neighbours(1, low=True)
    assert neighbours("1-own") == Neighbours(1, own_session=True)
    for wrong in ("", "many", "1-high", "-1"):
        with pytest.raises(ValueError, match=r"^neighbours are .*, expected none, a number"):
            neighbours(wrong)


def test_neighbours_end_with_the_measurement() -> None:
    def there() -> int:
        return len([child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE])

    before = there()
    with beside(Neighbours(2, low=True)):
        assert there() == before + 2
    assert there() == before


def test_a_loaded_engine_is_measured_again_and_again(tiny_bundle: Path) -> None:
    job = Job(str(tiny_bundle), [7, 9], [], new_tokens=4, threads=1)
    generate = open_ours("onnx", job)
    assert all(decode_ms(generate, job) > 0 for _ in range(2))


def test_what_has_to_hold_is_judged_by_pairs() -> None:
    """Rounds may differ; each is compared with itself."""
    rounds = {
        "edge-onnx": {NONE: [10.0, 20.0], "1": [14.0, 28.0]},
        "edge-openvino": {NONE: [10.0, 20.0], "1": [16.0, 32.0]},
        LLAMA: {NONE: [9.0, 18.0], "1": [15.0, 30.0]},
    }
    assert met(rounds) == {
        "edge-onnx at most 1.5 times slower beside one": True,
        "edge-onnx faster than llama.cpp beside one": True,
        "edge-openvino at most 1.5 times slower beside one": False,
        "edge-openvino faster than llama.cpp beside one": False,
    }
    assert not met({"edge-onnx": {NONE: [10.0]}})
