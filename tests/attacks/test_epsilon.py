"""Lower bounds on epsilon, against the exact binomial test and simulated mechanisms."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom, binomtest

from attacks import epsilon
from kit.errors import UserError


def test_without_delta_the_p_value_is_the_exact_binomial_test():
    for guesses, correct, bound in ((10, 9, 0.5), (100, 60, 0.0), (50, 50, 3.0), (7, 0, 1.0)):
        share = math.exp(bound) / (1 + math.exp(bound))
        by_hand = sum(
            math.comb(guesses, k) * share**k * (1 - share) ** (guesses - k) for k in range(correct, guesses + 1)
        )
        assert epsilon.p_value(guesses, correct, bound) == pytest.approx(by_hand)
        assert epsilon.p_value(guesses, correct, bound) == pytest.approx(
            binomtest(correct, guesses, share, alternative="greater").pvalue
        )


def test_without_delta_the_bound_is_the_logit_of_clopper_and_pearsons_lower_limit():
    # All of 100 right at 95 %: q = 0.05 ^ (1 / 100).
    share = 0.05 ** (1 / 100)
    assert epsilon.lower_bound(100, 100) == pytest.approx(math.log(share / (1 - share)))
    share = beta.ppf(0.01, 80, 21)
    assert epsilon.lower_bound(100, 80, 0.99) == pytest.approx(math.log(share / (1 - share)))
    assert epsilon.lower_bound(100, 58) == 0  # P[Binomial(100, 1/2) >= 58] = 0.067
    assert epsilon.lower_bound(100, 59) > 0  # 0.044
    assert epsilon.lower_bound(0, 0) == 0


def test_with_delta_the_p_value_is_theorem_5_2():
    guesses, correct, canaries, delta, bound = 60, 50, 500, 1e-4, 0.8
    share = 1 / (1 + math.exp(-bound))
    at_least = [float(binom.sf(k - 1, guesses, share)) for k in range(guesses + 1)]
    excess = max((at_least[correct - i] - at_least[correct]) / i for i in range(1, correct + 1))
    assert epsilon.p_value(guesses, correct, bound, canaries, delta) == pytest.approx(
        at_least[correct] + 2 * canaries * delta * excess
    )
    found = epsilon.lower_bound(guesses, correct, 0.95, canaries, delta)
    assert epsilon.p_value(guesses, correct, found, canaries, delta) <= 0.05
    assert epsilon.p_value(guesses, correct, found + 1e-4, canaries, delta) > 0.05


@settings(max_examples=60)
@given(st.integers(1, 300), st.data())
def test_more_right_guesses_and_less_confidence_raise_the_bound_and_delta_lowers_it(guesses, data):
    correct = data.draw(st.integers(0, guesses - 1))
    found = epsilon.lower_bound(guesses, correct)
    assert epsilon.lower_bound(guesses, correct + 1) >= found
    assert epsilon.lower_bound(guesses, correct, 0.9) >= found
    assert epsilon.lower_bound(guesses + 1, correct) <= found
    small, large = (epsilon.lower_bound(guesses, correct, 0.95, 1000, delta) for delta in (1e-6, 1e-3))
    assert large <= small + 1e-6 <= found + 2e-6
    assert epsilon.lower_bound(guesses, correct, 0.95, 10_000, 1e-6) <= small + 1e-6


def test_randomized_response_is_bounded_below_its_epsilon_at_the_stated_confidence():
    # Each coin is told truthfully with q = e^eps / (1 + e^eps): exactly eps-DP, and the best that can be guessed.
    generator, true, runs = np.random.default_rng(3), 1.0, 400
    above, close = 0, []
    for _ in range(runs):
        inside = generator.random(500) < 0.5
        told = np.where(generator.random(500) < 1 / (1 + math.exp(-true)), inside, ~inside)
        found = epsilon.audit(told + generator.random(500), inside)["epsilon"]
        above, close = above + (found > true), [*close, found]
    assert above <= binom.ppf(0.999, runs, 0.05)
    assert np.mean(close) > 0.5  # a bound that says nothing would be valid as well


def test_no_leak_gives_zero_nearly_always():
    generator, inside = np.random.default_rng(4), np.arange(400) % 2 == 0
    bounds = [epsilon.audit(generator.random(400), inside)["epsilon"] for _ in range(300)]
    assert np.count_nonzero(bounds) <= binom.ppf(0.999, 300, 0.05)


def test_right_guesses_are_the_highest_in_and_the_lowest_out():
    scores, inside = np.array([0.9, 0.1, 0.8, 0.2, 0.5]), np.array([True, False, False, True, True])
    assert epsilon.right_guesses(scores, inside, 2, 0) == 1
    assert epsilon.right_guesses(scores, inside, 0, 1) == 1
    assert epsilon.right_guesses(scores, inside, 1, 2) == 2
    assert epsilon.right_guesses(scores, inside, 0, 0) == 0
    # Ties say nothing: not the order of the records, which may be sorted by membership.
    tied = [epsilon.right_guesses(np.zeros(1000), np.arange(1000) < 500, 500, 0, seed) for seed in range(20)]
    assert 200 < np.mean(tied) < 300


def test_audit_corrects_for_its_ways_of_guessing():
    inside = np.arange(1000) % 2 == 0
    found = epsilon.audit(inside.astype(float), inside, confidence=0.95)
    best = max(found["tests"], key=lambda one: one["epsilon"])
    assert (best["guesses"], best["correct"]) == (500, 500)
    share = (0.05 / len(epsilon.GUESSES)) ** (1 / 500)
    assert found["epsilon"] == found["provable"] == pytest.approx(math.log(share / (1 - share)))


@pytest.mark.parametrize("bad", [(5, 6, 0.0), (5, -1, 0.0), (5, 5, -1.0), (5, 5, math.nan)])
def test_impossible_counts_are_refused(bad):
    with pytest.raises(UserError):
        epsilon.p_value(*bad)
