"""Rates, curves and bootstrap of attacks' scores, by hand and against scikit-learn."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm
from sklearn.metrics import roc_curve

from attacks import evaluation
from kit.errors import UserError
from tests.attacks.parts import random_generator


def test_rates_by_hand():
    """Members 5 4 3 2, others 4 1 1 0 0: one of four is above all others; at an FPR of 0.2 the 4 is let in and all four
    are above the next; the lowest member is 2, so there is one false positive; of 20 pairs 17 are right, one a tie."""
    scores = np.array([5, 4, 3, 2, 4, 1, 1, 0, 0], dtype=float)
    found = evaluation.evaluate(scores, np.arange(9) < 4, fprs=(0.2, 0.0), resamples=200)
    assert json.loads(json.dumps(found)) == found
    assert [row["tpr"] for row in found["tpr_at_fpr"]] == [1.0, 0.25]
    assert (found["false_positives"], found["fpr_at_100_tpr"]) == (1, 0.2)
    assert found["auc"] == pytest.approx(17.5 / 20)
    for row, hits in zip(found["tpr_at_fpr"], (4, 1), strict=True):
        interval = binomtest(hits, 4).proportion_ci(0.95, method="exact")
        assert row["interval"] == pytest.approx([interval.low, interval.high])
    assert found["auc_interval"][0] < found["auc"] < found["auc_interval"][1]


def test_ties_count_against_the_attacker():
    """All scores equal: nobody is found at any FPR below 1, and all non-members are false positives."""
    found = evaluation.evaluate(np.zeros(40), np.arange(40) < 20)
    assert [row["tpr"] for row in found["tpr_at_fpr"]] == [0, 0, 0, 0]
    assert found["fpr_at_100_tpr"] == 1 and found["auc"] == 0.5 and found["auc_interval"] == [0.5, 0.5]


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40))
def test_the_curve_is_that_of_scikit_learn(rows):
    scores, is_member = np.array([row[0] for row in rows], dtype=float), np.array([row[1] for row in rows])
    if is_member.all() or not is_member.any():
        return
    fpr, tpr, thresholds = evaluation.roc(scores, is_member)
    expected = roc_curve(is_member, scores, drop_intermediate=False)
    for ours, theirs in zip((fpr, tpr, thresholds), expected, strict=True):
        assert np.allclose(ours, theirs)
    assert np.trapezoid(tpr, fpr) == pytest.approx(evaluation.evaluate(scores, is_member, resamples=1)["auc"])


def test_bootstrap_is_that_of_a_loop():
    """Mean and spread of the AUCs against resampling written out pair by pair; and the seed decides."""
    draws = random_generator(3)
    is_member = np.arange(90) < 40
    scores = np.round(draws.normal(size=90) + is_member, 1)
    fast = evaluation.bootstrap_auc(scores, is_member, 4000)
    slow = []
    for _ in range(4000):
        ours, theirs = draws.choice(scores[:40], 40), draws.choice(scores[40:], 50)
        slow.append((np.sum(ours[:, None] > theirs) + np.sum(ours[:, None] == theirs) / 2) / 2000)
    assert abs(fast.mean() - np.mean(slow)) < 5 * np.std(slow) * math.sqrt(2 / 4000)
    assert fast.std() == pytest.approx(np.std(slow), rel=0.1)
    assert (
        evaluation.bootstrap_auc(scores, is_member, 30, seed=5)
        == evaluation.bootstrap_auc(scores, is_member, 30, seed=5)
    ).all()
    assert (
        evaluation.bootstrap_auc(scores, is_member, 30, seed=5)
        != evaluation.bootstrap_auc(scores, is_member, 30, seed=6)
    ).any()


def test_bootstrap_intervals_hold_the_true_auc():
    """Of 100 worlds the 95 % interval of 90 or more holds it (fewer than 89 happen in 1 of 200 cases)."""
    draws, truth, held = random_generator(8), norm.cdf(1 / math.sqrt(2)), 0
    is_member = np.arange(200) < 100
    for world in range(100):
        low, high = evaluation.evaluate(draws.normal(size=200) + is_member, is_member, resamples=400, seed=world)[
            "auc_interval"
        ]
        held += low <= truth <= high
    assert held >= 89


def test_resamples_do_not_depend_on_how_they_are_batched(monkeypatch):
    scores, is_member = random_generator(0).normal(size=50), np.arange(50) < 25
    lengths = []
    for at_once in (1, 120, 2**20):
        monkeypatch.setattr(evaluation, "_AT_ONCE", at_once)
        found = evaluation.bootstrap_auc(scores, is_member, 77)
        lengths.append(len(found))
        assert ((found >= 0) & (found <= 1)).all()
    assert lengths == [77, 77, 77]


@pytest.mark.parametrize(
    "scores, is_member, message",
    [
        ([1.0, 2.0], [1, 0], "bool"),
        ([1.0], [True, False], "don't fit"),
        ([1.0, 2.0], [True, True], "are members"),
        ([1.0, math.inf], [True, False], "not finite"),
    ],
)
def test_bad_scores_are_named(scores, is_member, message):
    with pytest.raises(UserError, match=message):
        evaluation.evaluate(scores, np.array(is_member))
