"""First results are kept in a list of ours, and read back as they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge.runtime import first_results
from edge.runtime.first_results import FILE, MOST, find, keep, key_of, result_of

ROW = np.random.default_rng(0).normal(0, 4, 320).astype(np.float32)
VERSIONS = {"engine version": "1.2", "edgeglm": "abc"}
KEY, OTHER = key_of({"model": "m"}), key_of({"model": "n"})


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "edgeglm"


def test_what_is_kept_is_found(cache: Path) -> None:
    assert find(KEY) is None
    result = result_of(ROW, VERSIONS)
    keep(KEY, result)
    keep(OTHER, result_of(-ROW, {}))
    assert find(KEY) == result
    assert find(KEY).kl_divergence(ROW) < 1e-9  # type: ignore[union-attr]  # it is found
    assert find(OTHER).kl_divergence(ROW) > 1  # type: ignore[union-attr]  # it is found
    keep(KEY, result_of(-ROW, VERSIONS))
    assert find(KEY) == result_of(-ROW, VERSIONS), "it takes the place of the earlier one"
    assert len((cache / FILE).read_text().splitlines()) == 2


def test_every_bit_counts() -> None:
    changed = ROW.copy()
    changed[7] = np.nextafter(changed[7], np.float32(9))
    assert first_results.digest_of(ROW) == first_results.digest_of(ROW.copy())
    assert first_results.digest_of(ROW) != first_results.digest_of(changed)
    zero, other_zero = np.zeros(3, np.float32), np.array([0, -0.0, 0], np.float32)
    assert first_results.digest_of(zero) != first_results.digest_of(other_zero)


def test_a_result_of_another_vocabulary(cache: Path) -> None:
    assert np.isnan(result_of(ROW, {}).kl_divergence(ROW[:10]))


def test_no_more_is_kept_than_a_bound(cache: Path) -> None:
    for number in range(3):
        keep(key_of({"number": number}), result_of(ROW, {}))
    line = (cache / FILE).read_text().splitlines()[0]
    (cache / FILE).write_text("".join(f"{number:064x}{line[64:]}\n" for number in range(MOST)))
    keep(KEY, result_of(ROW, {}))
    lines = (cache / FILE).read_text().splitlines()
    assert len(lines) == MOST
    assert lines[-1].startswith(KEY)
    assert lines[0].startswith(f"{1:064x}"), "the oldest is forgotten"


@pytest.mark.parametrize(
    "content", [b"my shopping list\n", b"\xff\x00", b"\n" * 1000, b"x" * 10_000_000, b"0" * 64 + b"\nmore\n"]
)
def test_a_file_of_others_stays(cache: Path, content: bytes) -> None:
    cache.mkdir(parents=True)
    (cache / FILE).write_bytes(content)
    keep(KEY, result_of(ROW, VERSIONS))
    assert find(KEY) is None
    assert (cache / FILE).read_bytes() == content


@pytest.mark.parametrize(
    "damage",
    [
        "{}",
        "{not json}",
        '{"versions": [], "sha256": "x", "ids": [], "logits": [], "rest": 0}',
        '{"versions": {}, "sha256": "%s", "ids": [1], "logits": [1.0, 2.0], "rest": 0.5}' % ("0" * 64),
        '{"versions": {}, "sha256": "%s", "ids": [-1], "logits": [1.0], "rest": 0.5}' % ("0" * 64),
        '{"versions": {}, "sha256": "%s", "ids": [1], "logits": [null], "rest": 0.5}' % ("0" * 64),
        '{"versions": {}, "sha256": "%s", "ids": [], "logits": [], "rest": 0.5}' % ("0" * 64),
    ],
)
def test_a_damaged_line_is_made_again(cache: Path, damage: str) -> None:
    cache.mkdir(parents=True)
    (cache / FILE).write_text(f"{KEY} {damage}\n")
    assert find(KEY) is None
    keep(KEY, result_of(ROW, VERSIONS))
    assert find(KEY) == result_of(ROW, VERSIONS)


def test_where_nothing_can_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    keep(KEY, result_of(ROW, VERSIONS))
    assert find(KEY) is None
