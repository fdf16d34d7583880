"""No changed byte of a bundle gives another answer in silence, a traceback, or the end of the process."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.runtime.bundle import MANIFEST, open_bundle
from tests.fuzz.flips import FINE, Flip, all_flips, run


def test_places_are_all_of_small_files_and_some_of_large_ones(tiny_bundle: Path) -> None:
    flips = all_flips(tiny_bundle, small=1000, large=50)
    names = {flip.name for flip in flips}
    assert names == {*open_bundle(tiny_bundle).manifest.files, MANIFEST}
    for name in names:
        size = (tiny_bundle / name).stat().st_size
        assert len({flip.at for flip in flips if flip.name == name}) == (size if size <= 1000 else min(size, 50))
    assert flips == all_flips(tiny_bundle, small=1000, large=50)


@pytest.mark.slow
def test_single_bytes_of_every_file(tiny_bundle: Path) -> None:
    flips = all_flips(tiny_bundle, every=25)
    text = (tiny_bundle / MANIFEST).read_bytes()
    space = Flip(MANIFEST, text.index(b"\n "), ord("\n") ^ ord(" "))  # a blank for a line's end: the same values
    found = run(tiny_bundle, [*flips, space])
    assert [one for one in found if one.outcome not in FINE] == []
    assert {one.outcome for one in found if one.flip == space} == {"same answer"}
    assert sum(one.outcome == "caught" for one in found) > 0.9 * len(found)
