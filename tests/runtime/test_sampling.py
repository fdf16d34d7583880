"""The sampler against transformers' processors, against definitions, and its draws against their distribution."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import (
    GenerationConfig,
    GlmConfig,
    GlmForCausalLM,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from edge.runtime.arrays import Logits
from edge.runtime.errors import SettingsError, shown
from edge.runtime.sampling import Sampler, greedy_margin, kth_largest, nucleus, truncate, typical
from edge.runtime.settings import Sampling

VOCAB = 500
LOGITS = (np.random.default_rng(0).normal(size=VOCAB) * 3).astype(np.float32)
SETTINGS = [
    Sampling(0.8, seed=7),
    Sampling(0.8, top_p=0.9, seed=7),
    Sampling(1.2, top_k=9, min_p=0.05, seed=7),
    Sampling(0.9, typical_p=0.8, seed=7),
    Sampling(1.0, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.7, logit_bias={3: 2.0}, seed=7),
]


def distribution(logits: Logits, settings: Sampling) -> npt.NDArray[np.float64]:
    """Probabilities of a processed row, (vocab,)."""
    found = truncate(logits, settings)
    out = np.zeros(logits.size)
    out[found.ids] = found.weights / found.weights.sum()
    return out


def theirs(scores: torch.Tensor, processors: LogitsProcessorList, ids: list[int]) -> npt.NDArray[np.float64]:
    probabilities: npt.NDArray[np.float64] = torch.softmax(
        processors(torch.tensor([ids]), scores.double()[None]), -1
    ).numpy()[0]
    return probabilities


def test_greedy_is_the_first_best() -> None:
    assert Sampler(Sampling(), [], 4).choose(np.array([0, 3, 3, 1], np.float32)) == 1


@pytest.mark.parametrize(
    ("settings", "warpers"),
    [
        (Sampling(0.7), [TemperatureLogitsWarper(0.7)]),
        (Sampling(1.0, top_k=7), [TopKLogitsWarper(7)]),
        (Sampling(1.0, top_p=0.6), [TopPLogitsWarper(0.6)]),
        (Sampling(1.0, top_p=0.999), [TopPLogitsWarper(0.999)]),
        (Sampling(1.0, min_p=0.05), [MinPLogitsWarper(0.05)]),
        (Sampling(1.0, typical_p=0.2), [TypicalLogitsWarper(0.2)]),
        (Sampling(1.0, typical_p=0.95), [TypicalLogitsWarper(0.95)]),
        (
            Sampling(0.8, top_k=50, top_p=0.8, min_p=0.02),
            [TemperatureLogitsWarper(0.8), TopKLogitsWarper(50), TopPLogitsWarper(0.8), MinPLogitsWarper(0.02)],
        ),
    ],
    ids=["temperature", "top-k", "top-p", "top-p-high", "min-p", "typical", "typical-high", "all"],
)
@pytest.mark.parametrize("masked", [False, True], ids=["free", "masked"])
def test_distribution_equals_transformers(settings: Sampling, warpers: list[object], masked: bool) -> None:
    logits = LOGITS.copy()
    if masked:
        logits[::3] = -np.inf
    expected = theirs(torch.tensor(logits), LogitsProcessorList(warpers), [0])
    np.testing.assert_allclose(distribution(logits, settings), expected, atol=1e-12)


@pytest.mark.parametrize("cuts", [(1.6, 33, 0.93, 0.05, 0.75), (1.9, 18, 0.75, 0.29, 0.61)])
def test_order_is_that_of_transformers_generate(cuts: tuple[float, int, float, float, float]) -> None:
    """Everything on at once, against the list that generate builds from the same settings.

    Any other order of the cuts keeps other ids in the first case or in the second.
    """
    temperature, top_k, top_p, min_p, typical_p = cuts
    settings = Sampling(temperature, top_k, top_p, min_p, typical_p, 1.4, logit_bias={5: 3.0, 250: -2.5})
    config = GenerationConfig(
        do_sample=True, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, typical_p=typical_p,
        repetition_penalty=1.4, sequence_bias={(5,): 3.0, (250,): -2.5},
    )  # fmt: skip
    model = GlmForCausalLM(GlmConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=16, pad_token_id=0,
    ))  # fmt: skip
    processors = model._get_logits_processor(config, input_ids_seq_length=3)
    ids = [5, 99, 250]
    ours = distribution(Sampler(settings, ids, VOCAB).process(LOGITS), settings)
    expected = theirs(torch.tensor(LOGITS), processors, ids)
    np.testing.assert_array_equal(ours > 0, expected > 0)
    assert 2 < np.count_nonzero(ours) < 40
    # Our bias and penalty are float32: a logit below 32 is off by at most 2 * 2^-20, and so is a probability's
    # logarithm by 4 * 2^-20 / temperature at most.
    np.testing.assert_allclose(ours, expected, rtol=4 * 2**-20 / temperature)


def test_repetition_penalty_equals_transformers() -> None:
    prompt, answer = [3, 99, 3, 400], [12, 99, 7]
    sampler = Sampler(Sampling(repetition_penalty=1.3), prompt, VOCAB)
    for i in range(len(answer) + 1):
        seen = torch.tensor([prompt + answer[:i]])
        expected = RepetitionPenaltyLogitsProcessor(1.3)(seen, torch.tensor(LOGITS)[None])[0].numpy()
        np.testing.assert_allclose(sampler.process(LOGITS), expected, rtol=1e-6)
        if i < len(answer):
            sampler.observe(answer[i])


def test_presence_and_frequency_count_the_answer_only() -> None:
    """OpenAI's definition: logit - count * frequency - (count > 0) * presence, of the answer's ids."""
    sampler = Sampler(Sampling(presence_penalty=0.5, frequency_penalty=-0.25), [3, 3, 9], VOCAB)
    np.testing.assert_array_equal(sampler.process(LOGITS), LOGITS)
    counts: Counter[int] = Counter()
    for token_id in (3, 7, 7, 7, 480):
        sampler.observe(token_id)
        counts[token_id] += 1
        expected = LOGITS.astype(np.float64)
        for i, count in counts.items():
            expected[i] -= count * -0.25 + 0.5
        np.testing.assert_allclose(sampler.process(LOGITS), expected, atol=1e-5)


def test_logit_bias_is_added_and_applies_to_greedy() -> None:
    sampler = Sampler(Sampling(logit_bias={17: 100.0, int(LOGITS.argmax()): -100}), [], VOCAB)
    processed = sampler.process(LOGITS)
    assert sampler.choose(processed) == 17
    changed = np.flatnonzero(processed != LOGITS)
    assert changed.tolist() == sorted([17, int(LOGITS.argmax())])
    assert processed[17] == LOGITS[17] + np.float32(100)


def test_the_row_is_never_modified_and_not_copied_for_nothing() -> None:
    before = LOGITS.copy()
    for settings in SETTINGS:
        sampler = Sampler(settings, [1, 2], VOCAB)
        sampler.observe(5)
        processed = sampler.process(LOGITS)
        assert (processed is LOGITS) == (not settings.logit_bias)
        kept = processed.copy()
        sampler.choose(processed)
        np.testing.assert_array_equal(processed, kept)
    np.testing.assert_array_equal(LOGITS, before)


def test_draws_follow_the_distribution() -> None:
    """20,000 draws of 500 ids: each count within 5 standard deviations."""
    settings = Sampling(1.0, top_p=0.9, seed=5)
    sampler, expected = Sampler(settings, [], VOCAB), distribution(LOGITS, settings)
    counts = np.bincount([sampler.choose(LOGITS) for _ in range(20_000)], minlength=VOCAB)
    assert_counts(counts, expected)


def assert_counts(counts: npt.NDArray[np.int64], expected: npt.NDArray[np.float64]) -> None:
    """Each count, and chi-square over the classes expected 5 times or more, within 5 standard deviations."""
    total = counts.sum()
    common = total * expected >= 5
    deviation = np.sqrt(total * expected * (1 - expected))
    # A class expected 5 times or less is nearly Poisson, which exceeds 25 once in 10^10 times.
    assert (np.abs(counts - total * expected)[common] <= 5 * deviation[common] + 5).all()
    assert (counts[~common] <= np.where(expected > 0, 25, 0)[~common]).all()
    squares = (counts[common] - total * expected[common]) ** 2 / (total * expected[common])
    freedom = np.count_nonzero(common)
    assert squares.sum() <= freedom + 5 * np.sqrt(2 * freedom)


def test_masked_ids_are_never_chosen() -> None:
    logits = np.full(VOCAB, -np.inf, np.float32)
    logits[[0, 41, 499]] = [-3, -2, -4]  # the first and the last id, where a draw could slip off the end
    for settings in (Sampling(5.0), Sampling(5.0, top_k=50), Sampling(5.0, top_p=0.999), Sampling(5.0, typical_p=0.99)):
        sampler = Sampler(settings, [], VOCAB)
        assert {sampler.choose(logits) for _ in range(300)} == {0, 41, 499}
    forced = np.full(VOCAB, -np.inf, np.float32)
    forced[123] = -50
    for settings in (*SETTINGS, Sampling()):
        sampler = Sampler(settings, [123], VOCAB)
        assert sampler.choose(sampler.process(forced)) == 123


def test_a_draw_of_zero_is_the_first_possible_id(monkeypatch: pytest.MonkeyPatch) -> None:
    class Zero:
        def random(self) -> float:
            return 0.0

    monkeypatch.setattr(np.random, "default_rng", lambda seed: Zero())
    logits = np.full(VOCAB, -np.inf, np.float32)
    logits[[41, 77]] = 1
    assert Sampler(Sampling(1.0), [], VOCAB).choose(logits) == 41


def test_the_best_token_always_stays() -> None:
    settings = Sampling(1.0, top_k=1, top_p=1e-9, min_p=1.0, typical_p=1e-9)
    assert {Sampler(settings, [], VOCAB).choose(LOGITS) for _ in range(20)} == {int(LOGITS.argmax())}


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-3, 1e300])
def test_extreme_temperatures(temperature: float) -> None:
    """Cold is greedy, hot is uniform; both without a warning."""
    found = distribution(LOGITS, Sampling(temperature))
    if temperature < 1:
        assert found[LOGITS.argmax()] == 1
    else:
        np.testing.assert_allclose(found, 1 / VOCAB)


@pytest.mark.parametrize("settings", SETTINGS)
def test_one_draw_for_every_sampled_token(settings: Sampling) -> None:
    """Also where only one token can come; so the generator's place depends on the number of tokens alone."""
    sampler, rng = Sampler(settings, [], VOCAB), np.random.default_rng(settings.seed)
    forced = np.where(np.arange(VOCAB) == 7, LOGITS, -np.inf).astype(np.float32)
    for row in (LOGITS, forced, LOGITS, LOGITS):
        processed = sampler.process(row)
        weights = distribution(processed, settings)
        expected = np.searchsorted(np.cumsum(weights), rng.random() * weights.sum(), side="right")
        chosen = sampler.choose(processed)
        assert chosen == expected
        sampler.observe(chosen)


def test_same_seed_same_ids() -> None:
    draws = [
        [sampler.choose(LOGITS) for _ in range(50)]
        for sampler in (Sampler(Sampling(1.5, seed=seed), [], VOCAB) for seed in (11, 11, 12))
    ]
    assert draws[0] == draws[1] != draws[2]
    fresh = [[sampler.choose(LOGITS) for _ in range(50)] for sampler in (Sampler(Sampling(1.5), [], VOCAB),) * 2]
    assert fresh[0] != fresh[1]


# A model of 30 tokens: the next row depends on the last id.
TABLE = (np.random.default_rng(8).normal(size=(30, 30)) * 2).astype(np.float32)


def plain(settings: Sampling, prompt: list[int], count: int) -> list[int]:
    sampler, ids = Sampler(settings, prompt, 30), list(prompt)
    for _ in range(count):
        ids.append(sampler.choose(sampler.process(TABLE[ids[-1]])))
        sampler.observe(ids[-1])
    return ids


def speculative(
    settings: Sampling, prompt: list[int], count: int, drafts: Iterator[list[int]]
) -> tuple[list[int], int]:
    """Rows of all drafted tokens come at once; they are verified one after the other. Returns also how many held."""
    sampler, ids, held = Sampler(settings, prompt, 30), list(prompt), 0
    while len(ids) < len(prompt) + count:
        draft = next(drafts)
        rows = TABLE[[ids[-1], *draft]]
        for row, drafted in zip(rows, [*draft, None], strict=True):
            chosen = sampler.choose(sampler.process(row))
            sampler.observe(chosen)
            ids.append(chosen)
            if chosen != drafted:
                break
            held += 1
    return ids[: len(prompt) + count], held


@pytest.mark.parametrize("settings", [Sampling(repetition_penalty=1.2), *SETTINGS])
def test_speculation_gives_the_ids_of_the_same_seed(settings: Sampling) -> None:
    rng = np.random.default_rng(1)
    drafts = iter(lambda: rng.choice(30, p=np.full(30, 1 / 30), size=rng.integers(0, 5)).tolist(), None)
    answer = plain(settings, [1, 2], 400)
    assert speculative(settings, [1, 2], 400, drafts)[0] == answer
    # Drafts that are right are held, all of them: five ids come from every row set of four drafts.
    ahead = iter([answer[i : i + 4] for i in range(2, 402, 5)])
    assert speculative(settings, [1, 2], 400, ahead) == (answer, 320)


def test_speculation_keeps_the_distribution() -> None:
    """The law of rejection sampling: a draft holds with its probability, and what comes instead is p without it."""
    settings = Sampling(1.0, top_p=0.95, seed=3)
    p = distribution(TABLE[4], settings)
    drafted = int(p.argsort()[-2])
    sampler = Sampler(settings, [], 30)
    counts = np.bincount([sampler.choose(TABLE[4]) for _ in range(20_000)], minlength=30)
    assert_counts(counts, p)
    held = counts[drafted]
    assert abs(held - 20_000 * p[drafted]) <= 5 * np.sqrt(20_000 * p[drafted] * (1 - p[drafted]))
    counts[drafted] = 0
    rest = np.where(np.arange(30) == drafted, 0, p)
    assert_counts(counts, rest / rest.sum())


def test_pairs_of_a_speculative_run_follow_the_model() -> None:
    """After an id, the next one follows the model's row of it, drafted or not; drafts are the row's best."""
    best = TABLE.argmax(1)
    settings = Sampling(1.0, seed=21)
    ids = [0]
    sampler = Sampler(settings, ids, 30)
    held = 0
    while len(ids) < 30_000:
        draft = [int(best[ids[-1]])]
        draft.append(int(best[draft[-1]]))
        for row, drafted in zip(TABLE[[ids[-1], *draft]], [*draft, None], strict=True):
            ids.append(sampler.choose(sampler.process(row)))
            if ids[-1] != drafted:
                break
            held += 1
    assert held > 5_000
    pairs = np.zeros((30, 30), np.int64)
    np.add.at(pairs, (ids[:-1], ids[1:]), 1)
    for i in range(30):
        assert_counts(pairs[i], distribution(TABLE[i], settings))


def rows_for_cuts() -> list[npt.NDArray[np.float64]]:
    """Weights of 20,000 ids, the best one 1: broad, peaked, with ties, all equal, and mostly impossible."""
    rng = np.random.default_rng(2)
    normal = rng.normal(size=20_000)
    rows = [normal, normal * 3, normal * 8, np.round(normal * 2), np.zeros(20_000)]
    rows.append(np.where(rng.random(20_000) < 0.001, normal, -np.inf))
    return [np.exp(row - row.max()) for row in rows]


@pytest.mark.parametrize("mass", [1e-9, 0.3, 0.5, 0.95, 0.999999, 1 - 2**-53])
@pytest.mark.parametrize("row", range(6))
def test_nucleus_equals_its_definition(row: int, mass: float) -> None:
    """The definition sorts everything; ours, sorting few, keeps the same ids bit for bit."""
    weights = rows_for_cuts()[row]
    order = np.argsort(-weights, kind="stable")
    before = np.concatenate([[0], np.cumsum(weights[order])[:-1]])
    expected = np.sort(order[before < mass * weights.sum()])
    np.testing.assert_array_equal(nucleus(weights, mass), expected)


@pytest.mark.parametrize("mass", [1e-9, 0.3, 0.95, 0.9999])
@pytest.mark.parametrize("row", range(6))
def test_typical_equals_its_definition(row: int, mass: float) -> None:
    weights = rows_for_cuts()[row]
    share = weights / weights.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise = -np.log(share)
        distance = np.abs(surprise - np.nansum(share * surprise))
    order = np.argsort(distance, kind="stable")
    last = np.count_nonzero(np.cumsum(share[order]) < mass)
    expected = np.flatnonzero(distance <= distance[order[min(int(last), order.size - 1)]])
    # The entropies are summed in another order, so that ties at the edge may differ by rounding; there are none here.
    np.testing.assert_array_equal(typical(weights, mass), expected)


@pytest.mark.parametrize("size", [1, 2, 127, 128, 129, 10_000])
@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
def test_kth_largest_is_that_of_a_sorted_row(size: int, ties: bool) -> None:
    row = np.random.default_rng(size).normal(size=size).astype(np.float32)
    if ties:
        row = np.round(row * 2)
        row[::2] = -np.inf
    for k in {1, 2, 3, 50, 77, 78, 79, size - 1, size} & set(range(1, size + 1)):
        assert kth_largest(row, k) == np.sort(row)[-k]


def test_greedy_margin_is_best_minus_second() -> None:
    rng = np.random.default_rng(4)
    for _ in range(50):
        row = rng.normal(size=100).astype(np.float32)
        second, best = np.sort(row)[-2:].astype(np.float64)
        assert greedy_margin(row) == best - second
    assert greedy_margin(np.array([1, 4, 4], np.float32)) == 0
    assert greedy_margin(np.array([5, 1], np.float32)) == 4
    assert greedy_margin(np.array([1, 5], np.float32)) == 4
    assert greedy_margin(np.array([-np.inf, 2], np.float32)) == np.inf
    assert greedy_margin(np.array([2], np.float32)) == np.inf


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1), ("temperature", float("nan")), ("temperature", float("inf")), ("temperature", True),
        ("temperature", "hot"), ("temperature", 10**400), ("top_k", -1), ("top_k", 1.5),
        ("top_k", True), ("top_k", "5"), ("top_p", 0.0), ("top_p", 1.5), ("top_p", float("nan")), ("top_p", "1"),
        ("min_p", -1.0), ("min_p", float("inf")), ("typical_p", 0), ("typical_p", 1.01), ("typical_p", [0.5]),
        ("repetition_penalty", 0.0), ("repetition_penalty", float("inf")), ("repetition_penalty", 1e-30),
        ("presence_penalty", 2.1), ("presence_penalty", float("nan")), ("frequency_penalty", -2.1),
        ("frequency_penalty", "1"), ("seed", -1), ("seed", 1.5), ("seed", True), ("logit_bias", 3),
    ],
)  # fmt: skip
def test_values_outside_the_range(name: str, value: object) -> None:
    with pytest.raises(SettingsError) as raised:
        Sampling(**{name: value})  # type: ignore[arg-type]
    assert str(raised.value).startswith(f"{name} is {shown(value)}, expected ")


@pytest.mark.parametrize(
    "bias",
    [
        {-1: 0.0}, {"-1": 0.0}, {"one": 0.0}, {True: 1.0}, {1.5: 1.0}, {1: 100.5}, {1: float("nan")}, {1: float("inf")},
        {1: "1"}, {1: None}, (5,), ((1, 2, 3),), ((1, 0.0), (1, 1.0)),
    ],
)  # fmt: skip
def test_biases_outside_the_range(bias: object) -> None:
    with pytest.raises(
        SettingsError, match=r"logit_bias .*expected a mapping of token ids to numbers from -100 to 100"
    ):
        Sampling(logit_bias=bias)  # type: ignore[arg-type]


def test_values_that_are_converted() -> None:
    """Null, whole numbers and keys as JSON gives them."""
    assert Sampling(temperature=None, seed=None, logit_bias=None) == Sampling()  # type: ignore[arg-type]
    assert Sampling(seed=1.0, temperature=1) == Sampling(seed=1, temperature=1.0)  # type: ignore[arg-type]
    assert Sampling(logit_bias={"1": 0.5, 2.0: 1}).logit_bias == ((1, 0.5), (2, 1.0))  # type: ignore[dict-item]


def test_a_bias_outside_the_vocabulary() -> None:
    with pytest.raises(SettingsError, match="token id 500, expected 0 to 499"):
        Sampler(Sampling(logit_bias={500: 1.0}), [], VOCAB)
    Sampler(Sampling(logit_bias={499: 1.0}), [], VOCAB)


def test_settings_can_be_hashed_and_compared() -> None:
    a, b = Sampling(logit_bias={5: 1, 2: -3.5}), Sampling(logit_bias={2: -3.5, 5: 1.0})
    assert a == b
    assert len({a, b, Sampling()}) == 2
    assert a.logit_bias == ((2, -3.5), (5, 1.0))
    assert Sampling(logit_bias=a.logit_bias) == a
    assert Sampling(np.float32(0.5), top_k=np.int64(3)).top_k == 3  # type: ignore[arg-type]
