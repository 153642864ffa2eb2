"""Instance-level attacks: known answers, independent formulas, and worlds in which the best AUC is known.

Expected numbers are worked out by hand, by scipy's normal distribution written out record by record, by a dense matrix
of ratios, or in closed form for Gaussian worlds. Tolerances of simulated worlds are five standard errors.
"""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from attack_parts import auc_tolerance, gaussian_world, random_generator
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

import utils
from attacks import lira, loss, population, reference, signals
from attacks.membership import balanced, leave_one_out
from kit.errors import UserError

# ----------------------------------------------------------------------------------------------------------------------
# Signals
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [1e-300, 1e-12, 0.1, 0.5, 0.9, 1 - 1e-9])
def test_loss_and_scaled_confidence_are_two_scales_of_one_probability(p):
    cross_entropy = -math.log(p)
    scaled = math.log(p) - math.log1p(-p)
    assert signals.scaled_from_losses(cross_entropy) == pytest.approx(scaled, rel=1e-7, abs=1e-12)
    assert signals.losses_from_scaled(scaled) == pytest.approx(cross_entropy, rel=1e-7)


def test_signals_keep_their_digits_where_a_probability_would_round():
    """Wrong: going through exp(-loss), which is 1 below 1e-16 and 0 above 745."""
    scaled = np.array([-5000.0, -800.0, -40.0, 0.0, 40.0, 700.0])
    assert np.allclose(signals.scaled_from_losses(signals.losses_from_scaled(scaled)), scaled, rtol=1e-12)
    assert math.isfinite(signals.scaled_from_losses(0.0)) and signals.scaled_from_losses(0.0) > 700


def test_conventions_fit_those_of_the_core():
    """Losses are cross_entropy; scaled confidences are minus scaled_loss."""
    logits = torch.randn(50, 10, generator=torch.Generator().manual_seed(1)) * 8
    found = utils.sample_signals(logits, torch.arange(50) % 10)
    assert np.allclose(
        signals.scaled_from_losses(found["cross_entropy"].numpy()), -found["scaled_loss"].numpy(), rtol=1e-9
    )


# ----------------------------------------------------------------------------------------------------------------------
# Membership
# ----------------------------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(2, 60),
    st.integers(0, 5),
    st.sampled_from([0.5, 0.25, 0.7, 0.1, Fraction(1, 3), 0.9]),
)
def test_membership_is_balanced_both_ways(models, records, seed, share):
    exact = Fraction(str(share))
    if exact * records < 1 or (1 - exact) * records < 1:
        return
    matrix = balanced(models, records, seed, share)
    assert matrix.shape == (models, records) and matrix.dtype == bool
    sizes = matrix.sum(axis=1)
    assert set(sizes) <= {math.floor(exact * records), math.ceil(exact * records)}
    assert np.ptp(matrix.sum(axis=0)) <= 1
    if share == 0.5:
        assert (matrix.sum(axis=0)[:, None] * 2 == [models - models % 2, models + models % 2]).any(axis=1).all()
        assert (matrix[0 : models - models % 2 : 2] == ~matrix[1::2]).all()


def test_membership_comes_from_the_seed_and_goes_on_where_it_ended():
    small, large = balanced(5, 100, 3, 0.3), balanced(12, 100, 3, 0.3)
    assert (small == large[:5]).all()
    assert (large.sum(axis=1) == 30).all()
    assert (balanced(4, 1000, 1) != balanced(4, 1000, 2)).any()
    pairs = balanced(64, 1000, 0)
    assert (pairs.sum(axis=1) == 500).all() and (pairs.sum(axis=0) == 32).all()
    # Different pairs are drawn independently: they agree on half of the records, 500 +- 5 * sqrt(250).
    agree = (pairs[0::2][:, None] == pairs[0::2][None]).sum(axis=2)[np.triu_indices(32, 1)]
    assert abs(agree - 500).max() < 80 and abs(agree.mean() - 500) < 4


@pytest.mark.parametrize("arguments", [(0, 10, 0), (2, 1, 0), (2, 10, 0, 0.0), (2, 10, 0, 1.0), (2, 10, 0, 0.05)])
def test_impossible_memberships_are_refused(arguments):
    with pytest.raises(UserError, match="cannot be balanced"):
        balanced(*arguments)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 12), st.integers(4, 30), st.booleans(), st.integers(0, 3))
def test_leave_one_out_never_uses_the_targets_own_signals(models, records, drop, seed):
    matrix = balanced(models, records, seed)
    folds = list(leave_one_out(matrix, drop))
    assert [fold.target for fold in folds] == list(range(models))
    for fold in folds:
        assert fold.target not in fold.references and len(set(fold.references)) == len(fold.references)
        assert list(fold.references) == sorted(fold.references)
        if not drop:
            assert len(fold.references) == models - 1
        elif models % 2 == 0 and records % 2 == 0:
            assert len(fold.references) == models - 2
            assert (matrix[fold.references].sum(axis=0) == models // 2 - 1).all()


def test_leave_one_out_without_a_complement_drops_nothing():
    matrix = random_generator(0).random((5, 40)) < 0.5
    assert all(len(fold.references) == 4 for fold in leave_one_out(matrix))
    with pytest.raises(UserError, match="two or more models"):
        next(leave_one_out(matrix[:1]))


# ----------------------------------------------------------------------------------------------------------------------
# LOSS and Attack P
# ----------------------------------------------------------------------------------------------------------------------


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


@settings(max_examples=60, deadline=None)
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


# ----------------------------------------------------------------------------------------------------------------------
# Attack R
# ----------------------------------------------------------------------------------------------------------------------


def test_reference_quantiles_by_hand():
    """OUT losses 1 and 3 (the IN model's 2 does not count): quantiles 0 at 0, 1/3 at 1, 2/3 at 3, 5/6 at 6."""
    targets = np.array([0.0, 0.5, 1.0, 2.0, 3.0, 6.0])
    references = np.tile([[3.0], [2.0], [1.0]], (1, 6))
    inside = np.tile([[False], [True], [False]], (1, 6))
    cdf = [0, 1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6]
    assert np.allclose(reference.score(targets, references, inside), 1 - np.array(cdf))


def test_reference_with_losses_of_zero():
    found = reference.score([0.0, 1.0, 0.0], [[0.0, 0.0, 2.0], [0.0, 0.0, 0.0]], np.zeros((2, 3), dtype=bool))
    assert np.allclose(found, [1 / 3, 0, 2 / 3])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(0, 10_000))
def test_reference_is_a_falling_function_of_the_loss(models, seed):
    draws = random_generator(seed)
    references = np.repeat(draws.exponential(size=(models, 1)), 200, axis=1)
    inside = np.zeros((models, 200), dtype=bool)
    losses = np.sort(draws.exponential(1.5, size=200))
    found = reference.score(losses, references, inside)
    assert (np.diff(found) < 0).all() and found.min() > 0 and found.max() < 1
    steps = (references > losses).sum(axis=0) / (models + 1)
    assert (found >= steps - 1e-12).all() and (found <= steps + 1 / (models + 1) + 1e-12).all()


def test_gaussian_reference_is_offline_lira_on_the_same_records():
    target, references, inside, _ = gaussian_world(8, 50, seed=3)
    found = reference.score(
        signals.losses_from_scaled(target), signals.losses_from_scaled(references), inside, "gaussian"
    )
    assert np.allclose(found, lira.offline(target, references, inside), rtol=1e-6)
    with pytest.raises(UserError, match="smoothing"):
        reference.score([1.0], [[1.0]], np.array([[False]]), "cubic")


# ----------------------------------------------------------------------------------------------------------------------
# LiRA
# ----------------------------------------------------------------------------------------------------------------------


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
