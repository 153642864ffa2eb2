"""LOSS and Attack P: p-values by hand, levels, and classes of different difficulty."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from attacks import loss, population
from kit.errors import UserError
from tests.attacks.parts import auc_tolerance, random_generator


def test_loss_has_the_right_sign():
    """Defect 16: with the sign turned, AUC 0.24 where 0.76 is right."""
    draws = random_generator(0)
    is_member = draws.random(4000) < 0.5
    losses = np.exp(draws.normal(0, 1, 4000) - is_member)
    expected = norm.cdf(1 / math.sqrt(2))
    found = roc_auc_score(is_member, loss.score(losses))
    assert abs(found - expected) < auc_tolerance(2000, 2000)
    assert (loss.score([0.1, 2.0]) == [-0.1, -2.0]).all()
    assert np.allclose(loss.score([[1.0, 2.0], [3.0, 5.0]]), [-2.0, -3.5])


def test_population_p_values_by_hand():
    """Of 4 population losses: below all, equal to the lowest, between, equal to the highest, above."""
    found = population.score([0.5, 1.0, 2.5, 4.0, 9.0], [3.0, 1.0, 4.0, 2.0])
    assert np.allclose(found, [4 / 5, 3 / 5, 2 / 5, 0, 0])


def test_population_p_values_by_hand_for_each_class():
    found = population.score([2.0, 2.0, 0.0], [1.0, 3.0, 5.0, 2.5], [7, 3, 3], [7, 7, 3, 3])
    assert np.allclose(found, [1 / 3, 2 / 3, 2 / 3])


def test_population_thresholds_are_quantiles_for_each_class():
    losses, labels = np.arange(200.0), np.arange(200) % 2
    assert population.thresholds(losses, 0.05) == 10.0
    assert population.thresholds(losses, 0.05, labels) == {0: 10.0, 1: 11.0}
    assert population.thresholds(losses, 0.0) == 0.0
    assert population.thresholds(losses, 1.0) == math.inf


@settings(max_examples=60)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=30), st.floats(0, 1))
def test_population_test_keeps_its_level_on_exchangeable_records(values, level):
    """Each of n values, taken out and tested against the others: at most a share alpha may be called members."""
    values = np.array(values, dtype=float)
    scores = np.array(
        [
            population.score(values[[row]], np.delete(values, row))[0] if len(values) > 1 else 0.0
            for row in range(len(values))
        ]
    )
    assert (scores >= 1 - level + 1e-12).sum() <= level * len(values) + 1e-9


def test_thresholds_for_each_class_are_worth_what_theory_says():
    """Classes of different difficulty: one threshold gives Phi(d / sqrt(2 + 2 t^2)), one for each Phi(d / sqrt 2)."""
    draws, d, spread = random_generator(5), 1.0, 2.0
    means = draws.normal(size=400)
    means = 20 + spread * (means - means.mean()) / means.std()
    labels, population_labels = np.repeat(np.arange(400), 20), np.repeat(np.arange(400), 500)
    is_member = np.tile(np.arange(20) % 2 == 0, 400)
    target = means[labels] - d * is_member + draws.normal(size=8000)
    others = means[population_labels] + draws.normal(size=200_000)
    alone = roc_auc_score(is_member, population.score(target, others))
    each = roc_auc_score(is_member, population.score(target, others, labels, population_labels))
    assert abs(alone - norm.cdf(d / math.sqrt(2 + 2 * spread**2))) < auc_tolerance(4000, 4000)
    assert abs(each - norm.cdf(d / math.sqrt(2))) < auc_tolerance(4000, 4000)


def test_population_of_a_missing_class_is_named():
    with pytest.raises(UserError, match="no record of class 3"):
        population.score([1.0, 1.0], [1.0], [3, 0], [0])
    with pytest.raises(UserError, match="together"):
        population.score([1.0], [1.0], labels=[0])
