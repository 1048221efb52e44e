"""The filters against transformers' own, the draw against its probabilities, the checks of each parameter."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as oracle

from linnet.errors import UsageError
from linnet.generate.sampling import (
    Sampling,
    candidates,
    draw,
    likeliest,
    next_token,
    penalize_repetition,
    shift_scores,
    uniform,
)

NOTHING = torch.empty(0, dtype=torch.long)


def scores(seed: int = 0, size: int = 5000, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(size, generator=torch.Generator().manual_seed(seed))


def theirs(logits, *, temperature=1.0, top_k=None, top_p=1.0, min_p=0.0, repetition_penalty=1.0, ids=NOTHING):
    """The probabilities of transformers, its processors in the order of its `generate`."""
    processors = []
    if repetition_penalty != 1:
        processors.append(oracle.RepetitionPenaltyLogitsProcessor(repetition_penalty))
    if temperature != 1:
        processors.append(oracle.TemperatureLogitsWarper(temperature))
    if top_k is not None:
        processors.append(oracle.TopKLogitsWarper(top_k))
    if top_p < 1:
        processors.append(oracle.TopPLogitsWarper(top_p))
    if min_p > 0:
        processors.append(oracle.MinPLogitsWarper(min_p))
    result = logits.double()[None]
    for processor in processors:
        result = processor(ids[None], result)
    return result[0].softmax(0)


def ours(logits, *, ids=NOTHING, **options):
    sampling = Sampling(**{"temperature": 1.0, "top_p": 1.0} | options)
    penalized = penalize_repetition(logits, ids, penalty=sampling.repetition_penalty)
    chosen, chances = candidates(penalized, sampling=sampling)
    result = torch.zeros(len(logits), dtype=torch.float64)
    result[chosen] = torch.from_numpy(chances)
    return result


FILTERS = [
    {"temperature": 0.5},
    {"temperature": 2.5},
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": 10_000},
    {"top_p": 0.1},
    {"top_p": 0.9},
    {"top_p": 0.999},
    {"top_p": 1e-9},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.7},
    {"repetition_penalty": 1.2, "temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 1.5, "top_p": 0.5, "min_p": 0.3},
]


@pytest.mark.parametrize("options", FILTERS, ids=str)
@pytest.mark.parametrize("scale", [0.1, 3.0, 20.0], ids=["flat", "usual", "steep"])
def test_filters_equal_those_of_transformers(options, scale):
    for seed in range(3):
        logits = scores(seed, scale=scale)
        ids = torch.tensor([3, 17, 17, 4000, 17])
        expected = theirs(logits, ids=ids, **options)
        result = ours(logits, ids=ids, **options)
        assert torch.equal(result > 0, expected > 0)
        torch.testing.assert_close(result, expected, atol=1e-9, rtol=1e-6)


def test_a_large_vocabulary_in_flat_scores_is_searched_to_its_end():
    logits = scores(size=50_257, scale=0.01)
    assert int((ours(logits, top_p=0.95) > 0).sum()) == int((theirs(logits, top_p=0.95) > 0).sum())


def test_tokens_as_likely_as_the_last_one_stay():
    logits = torch.tensor([0.0, 1.0, 1.0, 1.0, -1.0])
    assert (ours(logits, top_k=2) > 0).tolist() == [False, True, True, True, False]
    assert (ours(logits, top_p=0.3) > 0).tolist() == [False, True, True, True, False]


@pytest.mark.parametrize("temperature", [1e-300, 1e-6, 1e6, 1e300])
def test_extreme_temperatures_stay_finite(temperature):
    result = ours(scores(), temperature=temperature)
    assert result.isfinite().all()
    assert result.sum().item() == pytest.approx(1)
    if temperature < 1:
        assert result.argmax() == scores().argmax()
        assert result.max() > 0.99


def test_temperature_0_takes_the_likeliest_whatever_the_seed():
    logits = scores()
    sampling = Sampling(temperature=0)
    chosen = {next_token(logits, NOTHING, sampling=sampling, seed=seed, number=seed) for seed in range(20)}
    assert chosen == {int(logits.argmax())}


def test_a_repeated_token_is_penalized_once():
    logits = torch.tensor([2.0, -2.0, 1.0])
    seen = torch.tensor([0, 0, 0, 1])
    assert penalize_repetition(logits, seen, penalty=2.0).tolist() == [1.0, -4.0, 1.0]
    assert logits.tolist() == [2.0, -2.0, 1.0]  # not in place


def test_the_draw_follows_the_probabilities():
    chances = np.array([0.0, 0.5, 0.0, 0.2, 0.3, 0.0])
    n = 20_000
    counts = Counter(draw(chances, uniform(7, number)) for number in range(n))
    assert set(counts) == {1, 3, 4}
    for token, count in counts.items():
        share = float(chances[token])
        assert abs(count / n - share) < 4 * math.sqrt(share * (1 - share) / n)


@pytest.mark.parametrize("point", [0.0, 1e-17, 0.5, 1 - 2**-53])
def test_the_draw_never_takes_what_is_filtered_out(point):
    for chances in ([0, 1, 0], [0, 0.5, 0, 0.5, 0], [1 / 3, 1 / 3, 1 / 3, 0], [0.1] * 10 + [0]):
        assert chances[draw(np.array(chances), point)] > 0


def test_points_are_uniform_and_depend_on_seed_and_number_alone():
    points = [uniform(seed, number) for seed in range(100) for number in range(100)]
    assert len(set(points)) == len(points)
    assert all(0 <= point < 1 for point in points)
    assert sum(points) / len(points) == pytest.approx(0.5, abs=0.01)
    tenths = Counter(int(point * 10) for point in points)
    assert all(900 < count < 1100 for count in tenths.values())
    # neighbours in seed and number are unrelated
    pairs = [(uniform(seed, 0), uniform(seed + 1, 0)) for seed in range(5000)]
    pairs += [(uniform(0, number), uniform(0, number + 1)) for number in range(5000)]
    assert torch.corrcoef(torch.tensor(pairs).t())[0, 1].abs() < 0.03
    assert uniform(1, 0) != uniform(0, 1)
    assert uniform(2**70 + 5, 3) == uniform(2**70 + 5, 3)
    assert uniform(-1, 0) != uniform(1, 0)


def test_the_first_point_of_a_seed_stays_as_it_is():
    # SplitMix64's published first outputs for seed 0 are e220a8397b1dcdaf, 6e789e6aa1b965f4, ...
    from linnet.generate.sampling import _mix

    assert _mix(0) == 0xE220A8397B1DCDAF
    assert _mix(0x9E3779B97F4A7C15) == 0x6E789E6AA1B965F4


WRONG = [
    ("temperature", -0.1),
    ("temperature", math.nan),
    ("temperature", math.inf),
    ("temperature", "warm"),
    ("temperature", True),
    ("temperature", None),
    ("top_p", 0),
    ("top_p", 1.01),
    ("top_p", -1),
    ("top_k", 0),
    ("top_k", -1),
    ("top_k", 2.5),
    ("top_k", True),
    ("min_p", -0.1),
    ("min_p", 1.1),
    ("repetition_penalty", 0),
    ("repetition_penalty", -1),
    ("max_new_tokens", 0),
    ("max_new_tokens", -5),
    ("max_new_tokens", 1.5),
    ("max_new_tokens", None),
    ("seed", 1.5),
    ("seed", "often"),
    ("seed", None),
    ("stop", ""),
    ("stop", ["a", ""]),
    ("stop", [1]),
    ("stop", None),
    ("end_at_sentence", "yes"),
    ("presence_penalty", 2.1),
    ("presence_penalty", math.nan),
    ("frequency_penalty", -2.5),
    ("frequency_penalty", "much"),
    ("logit_bias", {3: 101}),
    ("logit_bias", {3: None}),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=str)
def test_a_wrong_value_is_refused_by_its_name(name, value):
    with pytest.raises(UsageError, match=f"^{name} is .* but must be"):
        Sampling(**{name: value})


def test_a_single_stop_text_may_come_alone():
    assert Sampling(stop="END").stops == ("END",)
    assert Sampling(stop=["a", "b"]).stops == ("a", "b")


def test_random_seeds_differ():
    assert Sampling().drawn_seed() != Sampling().drawn_seed()
    assert Sampling(seed=4).drawn_seed() == 4


def test_presence_and_frequency_penalty_and_bias_are_those_of_openai():
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence + bias[j], c[j] times that j was written."""
    logits = scores(size=10)
    sampling = Sampling(presence_penalty=0.5, frequency_penalty=0.25, logit_bias={2: 3.0, 9: -100})
    expected = logits.clone()
    expected[7] -= 0.5 + 3 * 0.25
    expected[2] += 3.0 - 0.5 - 0.25
    expected[9] -= 100
    torch.testing.assert_close(shift_scores(logits, [7, 2, 7, 7], sampling=sampling), expected)
    assert shift_scores(logits, [7, 2], sampling=Sampling()) is logits


def test_likeliest_is_the_log_softmax():
    logits = scores(size=10)
    found = likeliest(logits, 4, count=3)
    wanted = logits.double().log_softmax(0)
    assert found.logprob == pytest.approx(wanted[4].item(), abs=1e-12)
    assert [token for token, _ in found.top] == wanted.argsort(descending=True)[:3].tolist()
    assert likeliest(logits, 4, count=0).top == []


def test_scores_that_are_no_numbers_still_give_a_token():
    for wrong in (math.nan, math.inf):
        chosen = next_token(torch.full((10,), wrong), NOTHING, sampling=Sampling(), seed=1, number=0)
        assert 0 <= chosen < 10
