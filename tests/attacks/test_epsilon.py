"""Ranges, shares of data sets, and lower bounds on epsilon, against formulas of their own and simulated worlds."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom, binomtest
from sklearn.metrics import roc_auc_score

from attacks import cardinality, epsilon, ranges
from kit.errors import UserError

# ---------------------------------------------------------------------------------------------------------------------
# Lower bounds on epsilon
# ---------------------------------------------------------------------------------------------------------------------


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


@settings(max_examples=60, deadline=None)
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


# ---------------------------------------------------------------------------------------------------------------------
# How much of a data set was used
# ---------------------------------------------------------------------------------------------------------------------


def test_usage_inverts_the_rates_by_hand():
    # TPR 0.6, FPR 0.1; 30 of 100 guessed: (0.3 - 0.1) / 0.5 = 0.4.
    found = cardinality.usage(30, 100, [[600, 1000, 100, 1000]])
    assert found["raw"] == pytest.approx(0.4)
    assert found["interval"][0] < 0.4 < found["interval"][1]
    assert cardinality.usage(5, 100, [[600, 1000, 100, 1000]])["share"] == 0.0  # below the FPR: cut
    assert cardinality.usage(5, 100, [[600, 1000, 100, 1000]])["raw"] == pytest.approx(-0.1)


def test_usage_interval_against_the_normal_approximation():
    # Rates known from a million records: only the guesses on the data set itself are uncertain.
    found = cardinality.usage(300, 1000, [[600_000, 1_000_000, 100_000, 1_000_000]])
    spread = 1.96 * math.sqrt((0.4 * 0.24 + 0.6 * 0.09) / 1000) / 0.5
    assert found["interval"] == pytest.approx([0.4 - spread, 0.4 + spread], abs=3e-3)


def test_an_attack_that_knows_nothing_gives_the_whole_interval():
    found = cardinality.usage(50, 100, [[500, 1000, 500, 1000]])
    assert found["interval"] == [0.0, 1.0] and found["share"] is None
    # Nor does one that is worse than guessing give a share.
    assert cardinality.usage(50, 100, [[100, 1000, 500, 1000]])["raw"] is None


def test_models_that_differ_widen_the_interval():
    same = cardinality.usage(300, 1000, [[600, 1000, 100, 1000]] * 4)["interval"]
    apart = cardinality.usage(300, 1000, [[800, 1000, 150, 1000], [400, 1000, 50, 1000]] * 2)["interval"]
    assert apart[0] < same[0] < same[1] < apart[1]


def test_usage_is_unbiased_and_its_interval_holds_the_share():
    generator, size = np.random.default_rng(5), 400
    for share in (0.1, 0.5, 0.9):
        raw, held = [], 0
        for _ in range(400):
            scores = np.concatenate([generator.normal(1, 1, 1000), generator.normal(0, 1, 1000)])
            inside = np.arange(2000) < 1000
            rates = cardinality.rates(scores, inside, 0.5)
            used = np.arange(size) < share * size
            guessed = int((generator.normal(used, 1) >= 0.5).sum())
            found = cardinality.usage(guessed, size, [rates])
            raw.append(found["raw"])
            held += found["interval"][0] <= share <= found["interval"][1]
        assert np.mean(raw) == pytest.approx(share, abs=4 * np.std(raw) / 20)
        assert held >= 400 * 0.92


def test_best_threshold_and_rates_by_hand():
    scores, inside = np.array([4.0, 3.0, 2.0, 1.0]), np.array([True, True, False, True])
    assert cardinality.best_threshold(scores, inside) == 3.0  # TPR 2/3, FPR 0
    assert cardinality.rates(scores, inside, 3.0) == (2, 3, 0, 1)


@pytest.mark.parametrize(
    "bad", [(11, 10, [[1, 2, 0, 2]]), (1, 0, [[1, 2, 0, 2]]), (1, 10, []), (1, 10, [[0, 0, 0, 2]])]
)
def test_impossible_usage_is_refused(bad):
    with pytest.raises(UserError):
        cardinality.usage(*bad)


# ---------------------------------------------------------------------------------------------------------------------
# Ranges
# ---------------------------------------------------------------------------------------------------------------------


def test_range_scores_by_hand():
    points = np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0], [10.0, 5.0]])
    assert ranges.range_score(points).tolist() == [4.0, 5.0]
    assert ranges.range_score(points, 0.5, 1.0).tolist() == [6.5, 5.0]
    assert ranges.range_score(points, 0.25, 0.75).tolist() == [2.5, 5.0]
    assert ranges.range_score(points, 0.75, 1.0).tolist() == [10.0, 5.0]
    assert ranges.range_score(points, 0.3, 0.6).tolist() == [2.5, 5.0]  # whole points: the second and the third
    assert ranges.range_score(points[:1], 0.5, 0.9).tolist() == [1.0, 5.0]  # one point is always left


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.data())
def test_range_scores_do_not_depend_on_the_order_of_points_and_rise_with_them(count, data):
    points = np.array(data.draw(st.lists(st.floats(-5, 5), min_size=count, max_size=count)))[:, None]
    trim = data.draw(st.sampled_from(ranges.TRIMS))
    found = ranges.range_score(points, *trim)
    assert np.array_equal(ranges.range_score(points[::-1], *trim), found)
    assert ranges.range_score(points + 1, *trim) == pytest.approx(found + 1)
    assert points.min() - 1e-9 <= found[0] <= points.max() + 1e-9


def test_several_points_tell_more_than_one_and_the_trim_is_the_best_of_its_candidates():
    generator, inside = np.random.default_rng(6), np.arange(2000) % 2 == 0
    near = generator.random((8, 2000)) < 0.4  # of a member's range, most points are too far to show anything
    points = generator.normal(np.where(inside & near, 3, 0), 1)
    trim = ranges.tune_trim(points, inside)
    aucs = {known: roc_auc_score(inside, ranges.range_score(points, *known)) for known in ranges.TRIMS}
    assert aucs[trim] == max(aucs.values()) > aucs[0.0, 1.0] > roc_auc_score(inside, points[0]) + 0.1


@pytest.mark.parametrize(
    "bad",
    [(np.zeros(3), 0, 1), (np.zeros((2, 3)), 0.5, 0.5), (np.full((2, 3), np.nan), 0, 1), (np.zeros((2, 3)), -0.1, 1)],
)
def test_impossible_ranges_are_refused(bad):
    with pytest.raises(UserError):
        ranges.range_score(*bad)
