"""Huang et al.'s sequential test against Bayes' rule and enumeration."""

import itertools

import numpy as np
import pytest
from scipy import stats

from baselines import sequential, twin_marks


def posterior_ratio_by_hand(total, wins, looked, true):
    """prior / posterior of "true wins among total", by Bayes' rule over whole numbers, from the first principles."""

    def likelihood(number):  # hypergeometric: this many wins among the first `looked`
        return stats.hypergeom.pmf(wins, total, number, looked)

    posterior = likelihood(true) / sum(likelihood(number) for number in range(total + 1))
    return np.inf if posterior == 0 else (1 / (total + 1)) / posterior


@pytest.mark.parametrize("wins", [(1, 1, 1, 0, 1, 1, 1), (0, 0, 1, 0), (1,) * 9, (0,) * 5])
@pytest.mark.parametrize("alpha", [0.3, 0.05])
def test_lower_bound_is_the_smallest_number_that_bayes_rule_keeps(wins, alpha):
    best, expected = 0, []
    for looked in range(1, len(wins) + 1):
        kept = [
            true
            for true in range(len(wins) + 1)
            if posterior_ratio_by_hand(len(wins), sum(wins[:looked]), looked, true) < 1 / alpha
        ]
        best = max(best, min(kept))
        expected.append(best)
    assert sequential.lower_bounds(wins, alpha).tolist() == expected


@pytest.mark.parametrize("alpha", [0.5, 0.2])
def test_sequence_holds_at_all_times_for_every_truth_by_enumeration(alpha):
    total, missed = 8, []
    for true in range(total + 1):
        orders = [np.isin(np.arange(total), places) for places in itertools.combinations(range(total), true)]
        missed.append(np.mean([sequential.lower_bounds(order, alpha).max() > true for order in orders]))
    assert max(missed) <= alpha
    assert max(missed) > 0  # else the bounds would be empty talk


def test_sequence_of_a_longer_audit_holds_with_95_percent():
    """The share of sequences that ever exceed the truth is at most 5 %: refuted only with a chance of 1e-6."""
    draws, total, tries = np.random.default_rng(5), 40, 800
    for true in (20, 30):
        wins = np.arange(total) < true
        missed = sum(sequential.lower_bounds(draws.permutation(wins), 0.05).max() > true for _ in range(tries))
        assert stats.binom.sf(missed - 1, tries, 0.05) > 1e-6


def test_bounds_end_at_the_truth_and_never_fall():
    wins = np.random.default_rng(1).random(40) < 0.7
    bounds = sequential.lower_bounds(wins, 0.05)
    assert bounds[-1] == wins.sum() and (np.diff(bounds) >= 0).all()
    assert (sequential.lower_bounds(wins, 0.2) >= bounds).all()  # less certainty, higher bounds


def exact_false_detections(count, p):
    """P(detected) when every comparison is a fair coin, over all 2 ** count outcomes."""
    return np.mean(
        [
            sequential.sequential_test(np.array(coins, dtype=bool), p)[0]
            for coins in itertools.product((0, 1), repeat=count)
        ]
    )


@pytest.mark.parametrize("count", [2, 5, 6, 10])
@pytest.mark.parametrize("p", [0.05, 0.2])
def test_innocent_models_are_accused_at_most_with_probability_p(count, p):
    threshold, alpha = sequential.decision_threshold(count, p)
    rate = exact_false_detections(count, p)
    assert rate <= p
    if threshold is None:
        assert rate == 0 and 0.5**count >= p
    else:
        assert alpha == pytest.approx(p - stats.binom.sf(threshold - 1, count, 0.5))
        assert rate >= stats.binom.sf(threshold - 1, count, 0.5)  # after all comparisons the count is known exactly


def test_decision_threshold_by_hand():
    assert sequential.decision_threshold(5, 0.05) == (5, pytest.approx(0.05 - 1 / 32))
    assert sequential.decision_threshold(4, 0.05) == (None, 0.0)  # 1/16 is not rare enough
    assert sequential.decision_threshold(25, 0.05)[0] == 18  # P(W >= 17) = 0.0539, P(W >= 18) = 0.0216


def test_lower_bound_above_one_half_is_no_test():
    """What decision_threshold avoids: with all comparisons made, W > N / 2 happens to half of the innocent."""
    draws = np.random.default_rng(2)
    accused = [sequential.lower_bounds(draws.random(25) < 0.5, 0.05)[-1] > 12 for _ in range(400)]
    assert np.mean(accused) > 0.35


def test_sequential_test_stops_early_and_loses_with_the_wrong_sign():
    used, looked = sequential.sequential_test(np.ones(100, dtype=bool), 0.05)
    assert used and looked < 100
    assert sequential.sequential_test(np.zeros(100, dtype=bool), 0.05) == (False, 100)


def test_expected_detection_by_hand():
    assert twin_marks.expected_detection(5, 0.9, 0.05) == pytest.approx(0.9**5)  # all five are needed
    assert twin_marks.expected_detection(4, 1.0, 0.05) == 0.0
    assert twin_marks.expected_detection(250, 0.5, 0.05) < 0.05 < 0.99 < twin_marks.expected_detection(250, 0.65, 0.05)


def test_published_copy_wins_when_it_scores_higher():
    scores = np.array([[[2.0, 1.0], [2.0, 1.0]], [[-3.0, -1.0], [-1.0, -3.0]]])
    bits = np.array([[0, 1], [1, 1]])
    assert twin_marks.won(scores, bits, 1).tolist() == [[True, False], [True, False]]
    ties = twin_marks.won(np.zeros((200, 10, 2)), np.zeros((200, 10), dtype=int), 1)
    assert 0.4 < ties.mean() < 0.6
