"""BaVarIA (Brännvall 2026): the predictives by hand, the prior in worlds where it is known, few and many models."""

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import invgamma, norm, t
from sklearn.metrics import roc_auc_score

from attacks import bavaria, lira
from attacks.membership import balanced
from kit.errors import UserError
from tests.attacks.parts import gaussian_world, random_generator

PRIOR = bavaria.Prior(mean=0.0, kappa=1.0, nu=2.0, variance=3.0)


def test_the_posterior_by_hand():
    """OUT 1 and 3: n = 2, mean 2, squares 2. kappa 3, nu 4, center 4/3, nu s^2 = 2*3 + 2 + (1*2/3)*4 = 32/3.

    t: scale^2 = (32/3 / 4)(1 + 1/3) = 32/9. n: posterior mean of the variance = (32/3) / (4 - 2) = 16/3."""
    references, outside = np.array([[1.0], [3.0]]), np.zeros((2, 1), dtype=bool)
    found = bavaria.offline([5.0], references, outside, prior=PRIOR)
    assert found == pytest.approx(-math.log(t.sf((5 - 4 / 3) / math.sqrt(32 / 9), 4)))
    found = bavaria.offline([5.0], references, outside, "n", prior=PRIOR)
    assert found == pytest.approx(-math.log(norm.sf((5 - 4 / 3) / math.sqrt(16 / 3))))


def test_the_predictive_is_the_integral_over_mean_and_variance():
    """Student's t is no formula taken on trust: integrate Normal(c; mean, variance) over the posterior."""
    values, c = np.array([0.5, 2.0, 1.0]), 2.5
    n, mean = 3, values.mean()
    kappa, nu = 1.0 + n, 2.0 + n
    center = (n * mean) / kappa
    total = 2.0 * 3.0 + np.square(values - mean).sum() + 1.0 * n / kappa * mean**2
    density, _ = quad(
        lambda variance: (
            norm.pdf(c, center, math.sqrt(variance * (1 + 1 / kappa))) * invgamma.pdf(variance, nu / 2, scale=total / 2)
        ),
        0,
        np.inf,
    )
    references = np.concatenate([values, [7.0]])[:, None]
    inside = np.array([[True], [True], [True], [False]])
    known = bavaria._predictive(references, ~inside, "t", PRIOR, "").logpdf(c)
    found = bavaria.online([c], references, inside, priors=(PRIOR, PRIOR))
    assert found + known == pytest.approx(math.log(density))


def test_the_prior_is_found_again():
    draws = random_generator(1)
    nu, variance, kappa, mean = 8.0, 2.0, 0.25, -1.0
    variances = invgamma.rvs(nu / 2, scale=nu * variance / 2, size=20_000, random_state=2)
    means = mean + np.sqrt(variances / kappa) * draws.normal(size=20_000)
    values = means + np.sqrt(variances) * draws.normal(size=(6, 20_000))
    found = bavaria.fit_prior(values, np.ones((6, 20_000), dtype=bool))
    assert found.mean == pytest.approx(mean, abs=0.1)
    assert found.nu == pytest.approx(nu, rel=0.15) and found.variance == pytest.approx(variance, rel=0.05)
    # Moments of the means: E[variance] / kappa, in units of s^2, which is below E[variance] = s^2 nu / (nu - 2).
    assert found.kappa == pytest.approx(kappa * (nu - 2) / nu, rel=0.15)


def test_equal_variances_are_pooled_and_many_models_are_believed():
    """One true variance: the prior is as good as certain, and the order is that of LiRA's fixed variance."""
    target, references, inside, _ = gaussian_world(16, 3000, seed=2, spread=3.0)
    prior = bavaria.fit_prior(references, ~inside)
    assert prior.nu > 50 and prior.variance == pytest.approx(1.0, abs=0.05)
    fixed, found = lira.offline(target, references, inside, "fixed"), bavaria.offline(target, references, inside)
    assert np.corrcoef(np.argsort(np.argsort(fixed)), np.argsort(np.argsort(found)))[0, 1] > 0.99
    # Variances that differ widely, 200 models: each record's own.
    draws = random_generator(3)
    scales = np.exp(draws.normal(0, 0.4, 200))
    many = scales * draws.normal(size=(200, 200))
    outside = np.zeros((200, 200), dtype=bool)
    own, found = lira.offline(2 * scales, many, outside), bavaria.offline(2 * scales, many, outside)
    assert np.abs(found - own).max() < 0.5 and found == pytest.approx(-math.log(norm.sf(2)), abs=1)


def test_with_few_models_it_beats_both_of_liras_variances():
    """Variances that differ between records, three models a side: one for all is wrong, one for each is noise."""
    draws, records = random_generator(7), 6000
    inside, is_member = balanced(6, records, 1), draws.random(records) < 0.5
    scales, level = np.sqrt(invgamma.rvs(2, scale=2, size=records, random_state=3)), 2 * draws.normal(size=records)
    target = level + 1.5 * is_member + scales * draws.normal(size=records)
    references = level + 1.5 * inside + scales * draws.normal(size=(6, records))
    aucs = {
        name: roc_auc_score(is_member, scores)
        for name, scores in {
            "fixed": lira.online(target, references, inside, "fixed"),
            "own": lira.online(target, references, inside),
            "bayes": bavaria.online(target, references, inside),
        }.items()
    }
    assert aucs["bayes"] > aucs["own"] + 0.02 and aucs["bayes"] > aucs["fixed"] + 0.01


def test_one_model_for_a_record_is_enough():
    draws = random_generator(8)
    target, references = draws.normal(size=50), draws.normal(size=(1, 50))
    found = bavaria.offline(target, references, np.zeros((1, 50), dtype=bool))
    assert np.isfinite(found).all() and len(np.unique(found)) == 50
    inside = np.array([[True] * 50, [False] * 50])
    assert np.isfinite(bavaria.online(target, draws.normal(size=(2, 50)), inside)).all()
    same = bavaria.offline([1.0, 2.0, 3.0], np.ones((4, 3)), np.zeros((4, 3), dtype=bool))
    assert np.isfinite(same).all() and (np.diff(same) > 0).all()


def test_the_tail_of_a_t_goes_on_where_its_probability_is_no_number():
    frozen = t(5.0, 0.0, 1.0)
    near, far = (-bavaria._log_above(frozen, value) for value in (1e3, 1e60))
    assert near == pytest.approx(-t.logsf(1e3, 5)) and far == pytest.approx(near + 5 * math.log(1e57), rel=1e-6)
    wide = t(1e6, 0.0, 1.0)
    assert bavaria._log_above(wide, 45.0) == pytest.approx(norm.logsf(45), rel=2e-3)


def test_queries_add_up_and_in_models_are_not_looked_at_offline():
    draws = random_generator(9)
    inside, target, references = balanced(6, 40, 3), draws.normal(size=(2, 40)), draws.normal(size=(6, 2, 40))
    for attack in (bavaria.online, bavaria.offline):
        alone = sum(attack(target[query], references[:, query], inside) for query in range(2))
        assert np.allclose(attack(target, references, inside), alone)
    poisoned = np.where(inside[:, None], 1e4, references)
    assert np.array_equal(bavaria.offline(target, poisoned, inside), bavaria.offline(target, references, inside))
    with pytest.raises(UserError, match="predictive"):
        bavaria.offline(target, references, inside, "normal")
    with pytest.raises(UserError, match="fewer than 1"):
        bavaria.online(target, references, np.ones((6, 40), dtype=bool))
