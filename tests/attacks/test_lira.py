"""LiRA (Carlini et al. 2022) against the formula written out record by record, and by hand."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from attacks import lira
from attacks.membership import balanced
from kit.errors import UserError
from tests.attacks.parts import gaussian_world, random_generator


def lira_by_hand(target, references, inside, side_std, one_sided):
    """One record and one query at a time, in Python's sums; side_std: of (query, side), or None for per-sample."""
    scores = []
    for record in range(target.shape[1]):
        total = 0.0
        for query in range(target.shape[0]):
            parts = []
            for side in (True, False):
                values = [
                    float(row[query, record])
                    for row, member in zip(references, inside[:, record], strict=True)
                    if member == side
                ]
                mean = math.fsum(values) / len(values)
                std = (
                    side_std[query, side]
                    if side_std
                    else math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
                )
                parts.append((mean, std))
            if one_sided:
                total -= math.log(norm.sf((target[query, record] - parts[1][0]) / parts[1][1]))
            else:
                total += sum(
                    sign * (-math.log(std) - ((target[query, record] - mean) / std) ** 2 / 2)
                    for sign, (mean, std) in zip((1, -1), parts, strict=True)
                )
        scores.append(total)
    return np.array(scores)


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("attack", [lira.online, lira.offline])
def test_lira_equals_the_formula_record_by_record(attack, queries):
    draws = random_generator(queries)
    inside = balanced(8, 30, 1)
    target = draws.normal(size=(queries, 30))
    references = draws.normal(size=(8, queries, 30)) + inside[:, None]
    expected = lira_by_hand(target, references, inside, None, attack is lira.offline)
    assert np.allclose(attack(target, references, inside), expected, rtol=1e-10)
    if queries == 1:
        assert np.allclose(attack(target[0], references[:, 0], inside), expected, rtol=1e-10)
    pooled = {}
    for query in range(queries):
        for side in (True, False):
            rest = 0.0
            for record in range(30):
                values = references[inside[:, record] == side, query, record]
                rest += sum((value - values.mean()) ** 2 for value in values)
            pooled[query, side] = math.sqrt(rest / (30 * (4 - 1)))
    expected = lira_by_hand(target, references, inside, pooled, attack is lira.offline)
    assert np.allclose(attack(target, references, inside, "fixed"), expected, rtol=1e-10)


def test_lira_by_hand():
    """IN 1 and 3: N(2, 2). OUT -1 and 1: N(0, 2). At c = 2: (0 + 4) / (2 * 2) = 1; one-sided P[Z > 2 / sqrt 2]."""
    references, inside = np.array([[1.0], [3.0], [-1.0], [1.0]]), np.array([[True], [True], [False], [False]])
    assert lira.online([2.0], references, inside) == pytest.approx(1.0)
    assert lira.offline([2.0], references, inside) == pytest.approx(-math.log(norm.sf(math.sqrt(2))))
    assert lira.global_threshold([2.0, -1.0]).tolist() == [2.0, -1.0]


def test_lira_does_not_saturate():
    """Wrong: 1 - P[Z > c], which is 1 from 8 standard deviations on, and logarithms of densities that are 0."""
    references, inside = (
        np.tile([[1.0], [-1.0], [11.0], [9.0]], (1, 4)),
        np.tile([[False], [False], [True], [True]], (1, 4)),
    )
    confidences = np.array([20.0, 100.0, 1000.0, 1001.0])
    for attack in (lira.online, lira.offline):
        found = attack(confidences, references, inside)
        assert np.isfinite(found).all() and (np.diff(found) > 0).all()
    same = lira.offline([1.0, 2.0, 3.0, 4.0], np.ones((4, 4)), inside)
    assert np.isfinite(same).all() and (np.diff(same) > 0).all()


def test_offline_lira_does_not_look_at_in_models():
    target, references, inside, _ = gaussian_world(8, 60, seed=1)
    poisoned = np.where(inside, 1e6, references)
    for variance in lira.VARIANCES:
        assert (
            lira.offline(target, poisoned, inside, variance) == lira.offline(target, references, inside, variance)
        ).all()
        assert (
            lira.online(target, poisoned, inside, variance) != lira.online(target, references, inside, variance)
        ).all()


def test_lira_needs_two_models_a_side_for_a_variance_of_its_own():
    inside = np.array([[True, True, False], [False, True, True], [False, False, True], [True, False, False]])
    lira.online(np.zeros(3), np.ones((4, 3)), inside)
    for attack, models in ((lira.offline, inside[:3]), (lira.online, inside[[0, 1, 3]])):
        with pytest.raises(UserError, match="fewer than 2"):
            attack(np.zeros(3), np.ones((3, 3)), models)
        assert np.isfinite(attack(np.zeros(3), random_generator(0).random((3, 3)), models, "fixed")).all()
    with pytest.raises(UserError, match="variance"):
        lira.offline(np.zeros(3), np.ones((4, 3)), inside, "pooled")


def test_one_shadow_model_ranks_by_the_difference():
    draws = random_generator(2)
    target, references = draws.normal(size=40), draws.normal(size=(1, 40))
    found = lira.offline(target, references, np.zeros((1, 40), dtype=bool), "fixed")
    assert (np.argsort(found) == np.argsort(target - references[0])).all()
