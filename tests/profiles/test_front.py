"""The front: what nothing clearly beats, whatever the order, however large the errors are, and never nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from edge.profiles.front import clearly_faster, clearly_more_accurate, pareto_front, size_front, speed_front
from edge.profiles.record import Row, read_profile
from tests.profiles.rows import accuracy, row

RESULTS = Path(__file__).parents[2] / "profiles" / "results"


def made(kld: int, tps: int, megabytes: int, kld_error: int | None, apart: int | None, paired: bool) -> Row:
    """A row in small whole figures, so that many are equal; None: an error that is not known."""
    windows = tuple(kld + offset * (kld_error or 0) for offset in (-1, 0, 1)) if paired else (float(kld),)
    found = replace(accuracy(float(kld), windows), kld_stderr=None if kld_error is None else float(kld_error))
    samples = () if apart is None else (float(tps - apart), float(tps), float(tps + apart))
    return replace(row(megabytes=megabytes, tps=float(tps)), accuracy=found, decode_samples=samples)


figures = st.integers(1, 6)
errors = st.none() | st.integers(0, 2)
rows = st.lists(st.builds(made, figures, figures, figures, errors, errors, st.booleans()), min_size=1, max_size=9)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
def test_without_errors_it_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    def beats(a: tuple[int, int], b: tuple[int, int]) -> bool:
        return a[0] <= b[0] and a[1] <= b[1] and a != b

    found = pareto_front(
        len(points), lambda a, b: points[a][0] < points[b][0], lambda a, b: points[a][1] < points[b][1]
    )
    assert found == [i for i, p in enumerate(points) if not any(beats(q, p) for q in points)]


@given(rows, st.randoms(use_true_random=False))
def test_it_is_never_empty_and_order_does_not_matter(rows: list[Row], random: object) -> None:
    shuffled = list(range(len(rows)))
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # a random.Random
    for front in (size_front, speed_front):
        found = front(rows)
        assert found
        assert found == sorted(set(found))
        assert {shuffled[i] for i in front([rows[i] for i in shuffled])} == set(found)


@given(rows)
def test_who_is_not_on_it_is_beaten_by_somebody(rows: list[Row]) -> None:
    found = speed_front(rows)
    for index, one in enumerate(rows):
        beaten = any(
            (clearly_faster(other, one) or clearly_more_accurate(other, one))
            and not (clearly_faster(one, other) or clearly_more_accurate(one, other))
            for other in rows
        )
        assert index in found or beaten
        if not beaten:
            assert index in found


@given(rows, st.integers(0, 8))
def test_equal_rows_share_their_fate(rows: list[Row], index: int) -> None:
    twin = len(rows)
    one = index % twin
    for front in (size_front, speed_front):
        found = front([*rows, rows[one]])
        assert (one in found) == (twin in found)
        assert set(found) - {twin} == set(front(rows))


@given(rows)
def test_errors_that_are_not_known_count_as_none(rows: list[Row]) -> None:
    """Then each figure is taken as it is, and the front has the best of each."""
    plain = [
        replace(
            one, decode_samples=(), accuracy=replace(accuracy(one.accuracy.kld, (one.accuracy.kld,)), kld_stderr=None)
        )
        for one in rows
    ]
    least = min(one.accuracy.kld for one in plain)
    fastest = max(one.decode_tokens_per_second or 0.0 for one in plain)
    front = [plain[i] for i in speed_front(plain)]
    assert least in [one.accuracy.kld for one in front]
    assert fastest in [one.decode_tokens_per_second for one in front]


def test_rows_that_beat_each_other_in_a_circle_are_equal() -> None:
    """a, b, c are told apart by accuracy, c, d, a by speed, and d and b in the other figure by nothing."""
    circle = ({("a", "b"), ("b", "c"), ("a", "c")}, {("c", "d"), ("d", "a"), ("c", "a")})
    names = "abcd"
    better = [lambda i, j, pairs=pairs: (names[i], names[j]) in pairs for pairs in circle]
    assert pareto_front(4, *better) == [0, 1, 2, 3]


def test_a_row_without_speed_is_on_no_front_of_speed() -> None:
    assert speed_front([row(tps=None), row(tps=5.0)]) == [1]
    assert speed_front([row(tps=None)]) == []


def test_less_than_an_error_is_no_reason_to_be_slower() -> None:
    """int8-asym of the demo model: onnx is slower, and its KLD lower by a fortieth of a standard error."""
    rows = {one.name: one for one in read_profile(RESULTS).rows}
    slow, fast = rows["int8-asym/onnx"], rows["int8-asym/openvino"]
    assert slow.accuracy.kld < fast.accuracy.kld
    assert speed_front([slow, fast]) == [1]
    assert size_front([slow, fast]) == [0, 1], "equal bytes"


def test_few_windows_have_to_differ_by_more() -> None:
    """Four windows that differ by three standard errors: chance gives as much once in 18 times."""
    shares = (1.0, 0.7, 1.9, 0.8)
    a = replace(row(), accuracy=accuracy(0.25, (0.25,) * 4))
    b = replace(row(), accuracy=accuracy(0.25 + 0.0011, tuple(0.25 + 0.001 * share for share in shares)))
    assert not clearly_more_accurate(a, b)
    many = replace(row(), accuracy=accuracy(0.25, (0.25,) * 40))
    others = replace(row(), accuracy=accuracy(0.25 + 0.0011, tuple(0.25 + 0.001 * share for share in shares * 10)))
    assert clearly_more_accurate(many, others)
    assert not clearly_more_accurate(others, many)


def test_repeats_that_overlap_say_nothing() -> None:
    a, b = row(tps=100.0, apart=0.5), row(tps=80.0, apart=0.5)
    assert speed_front([a, b]) == [0, 1]
    assert speed_front([replace(a, decode_samples=(99.0, 100.0)), replace(b, decode_samples=(80.0, 81.0))]) == [0]
