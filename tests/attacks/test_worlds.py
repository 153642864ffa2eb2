"""All attacks in Gaussian worlds whose best AUC is known, and on bad input.

Tolerances of simulated worlds are five standard errors.
"""

import math

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from attacks import lira, loss, population, reference, rmia, signals
from attacks.membership import balanced, leave_one_out
from kit.errors import UserError
from tests.attacks.parts import HALF, auc_tolerance, gaussian_world, random_generator


@pytest.fixture(scope="module")
def large_world():
    """200 models: what references can tell is known as if they were infinitely many, to 0.005 in AUC."""
    return gaussian_world(200, 6000, seed=9, shift=1.0, spread=2.0, mean=-30.0)


OPTIMAL = norm.cdf(1 / math.sqrt(2))

WITHOUT_REFERENCES = norm.cdf(1 / math.sqrt(2 + 2 * 2.0**2))


@pytest.mark.parametrize(
    "attack",
    [
        lira.online,
        lira.offline,
        lambda *world: lira.online(*world, "fixed"),
        lambda *world: lira.offline(*world, "fixed"),
        lambda target, references, inside: reference.score(-target, -references, inside),
        # log p is Gaussian here, so log p(x|target) - log p(x) with a = 1 is the optimal statistic, plus a constant.
        lambda target, references, inside: rmia.offline(
            -target, -references, inside, *z_of_the_same_world(len(references)), a=1, gamma=1.0
        ),
        lambda target, references, inside: rmia.online(
            -target, -references, inside, *z_of_the_same_world(len(references)), gamma=1.0
        ),
    ],
)
def test_attacks_with_references_reach_the_optimum_of_a_gaussian_world(large_world, attack):
    target, references, inside, is_member = large_world
    found = roc_auc_score(is_member, attack(target, references, inside))
    assert abs(found - OPTIMAL) < auc_tolerance(3000, 3000) + 0.006


def z_of_the_same_world(models):
    target, references, _, _ = gaussian_world(models, 4000, seed=10, shift=0.0, spread=2.0, mean=-30.0)
    return -target, -references


def test_attacks_without_references_reach_theirs(large_world):
    target, _, _, is_member = large_world
    others = -z_of_the_same_world(2)[0]
    for scores in (lira.global_threshold(target), loss.score(-target), population.score(-target, -others)):
        assert abs(roc_auc_score(is_member, scores) - WITHOUT_REFERENCES) < auc_tolerance(3000, 3000)
    assert OPTIMAL - WITHOUT_REFERENCES > 0.13


def test_independent_queries_add_up(large_world):
    """Four queries with independent noise: the optimum rises from Phi(1 / sqrt 2) to Phi(2 / sqrt 2)."""
    draws = random_generator(21)
    inside, is_member = balanced(100, 4000, 1), draws.permutation(np.arange(4000) % 2 == 0)
    level = draws.normal(size=4000)
    target = level + is_member + draws.normal(size=(4, 4000))
    references = level + inside[:, None] + draws.normal(size=(100, 4, 4000))
    expected = norm.cdf(2 / math.sqrt(2))
    assert (
        abs(roc_auc_score(is_member, lira.online(target, references, inside, "fixed")) - expected)
        < auc_tolerance(2000, 2000) + 0.006
    )
    # Fisher's test is not the best for a shift, but close, and more than one query's.
    offline = roc_auc_score(is_member, lira.offline(target, references, inside, "fixed"))
    assert OPTIMAL + 0.08 < offline < expected + auc_tolerance(2000, 2000)


def attack_all(losses, inside, fold, z):
    """Every attack's scores of one fold."""
    target, rest = losses[fold.target], losses[fold.references]
    known, scaled = inside[fold.references], signals.scaled_from_losses(losses)
    scaled_target, scaled_rest = scaled[fold.target], scaled[fold.references]
    z_target, z_rest = z[fold.target], z[fold.references]
    return {
        "loss": loss.score(target),
        "population": population.score(target, z_target),
        "reference": reference.score(target, rest, known),
        "global": lira.global_threshold(scaled_target),
        "lira offline": lira.offline(scaled_target, scaled_rest, known),
        "lira online": lira.online(scaled_target, scaled_rest, known),
        "lira fixed": lira.online(scaled_target, scaled_rest, known, "fixed"),
        "rmia offline": rmia.offline(target, rest, known, z_target, z_rest, 0.5),
        "rmia online": rmia.online(target, rest, known, z_target, z_rest),
    }


def aucs_of_world(effect, drop_complement, models=6, records=4000):
    draws = random_generator(31)
    inside = balanced(models, records, 0)
    losses = np.log1p(np.exp(-(draws.normal(size=records) + draws.normal(size=(models, records)) + effect * inside)))
    z = np.log1p(np.exp(-(draws.normal(size=2000) + draws.normal(size=(models, 2000)))))
    found = [
        {
            name: roc_auc_score(inside[fold.target], scores)
            for name, scores in attack_all(losses, inside, fold, z).items()
        }
        for fold in leave_one_out(inside, drop_complement)
    ]
    return {name: np.mean([row[name] for row in found]) for name in found[0]}


def test_models_that_leak_nothing_are_not_accused_and_leaks_have_the_right_sign():
    """Leave one out, 6 models. Wrong: the target among its references, IN and OUT swapped, a turned sign; and more OUT
    models for the target's members than for others, which a variance from few models gives away."""
    # 6 targets of 4,000 records; those of a pair see the same references, so count three of them.
    tolerance = auc_tolerance(3 * 2000, 3 * 2000)
    for name, auc in aucs_of_world(0.0, True).items():
        assert abs(auc - 0.5) < tolerance, name
    for name, auc in aucs_of_world(1.5, True).items():
        assert auc > 0.62, name


def test_uneven_counts_of_out_models_give_members_away():
    """Why leave_one_out drops the complement: kept, an attack finds members of models that leak nothing."""
    found = aucs_of_world(0.0, False)
    assert max(abs(auc - 0.5) for auc in found.values()) > 2 * auc_tolerance(3 * 2000, 3 * 2000)


GOOD = (np.ones(4), np.ones((4, 4)) + np.arange(4)[:, None], balanced(4, 4, 0))

OUTSIDE = np.ones(3), np.ones((4, 3))


@pytest.mark.parametrize(
    "attack",
    [
        lira.online,
        lira.offline,
        lambda *world: lira.offline(*world, "fixed"),
        reference.score,
        lambda *world: rmia.online(*world, *OUTSIDE),
        lambda *world: rmia.offline(*world, *OUTSIDE, a=0.3),
    ],
)
@pytest.mark.parametrize(
    "changed, message",
    [
        ({0: np.ones(5)}, "don't fit"),
        ({0: np.ones((2, 4))}, "don't fit"),
        ({1: np.ones((3, 4))}, "don't fit"),
        ({2: np.zeros((4, 4))}, "bool"),
        ({2: HALF}, "don't fit"),
        ({0: np.array([1, 1, np.nan, 1])}, "finite"),
        ({1: np.full((4, 4), np.inf)}, "finite"),
        ({2: np.ones((4, 4), dtype=bool)}, "fewer than"),
    ],
)
def test_bad_input_is_named(attack, changed, message):
    attack(*GOOD)
    with pytest.raises(UserError, match=message):
        attack(*(changed.get(place, value) for place, value in enumerate(GOOD)))


def test_scaled_confidences_are_not_taken_for_losses():
    scaled = -np.ones(4)
    for call in (
        lambda: loss.score(scaled),
        lambda: population.score(scaled, np.ones(3)),
        lambda: population.score(np.ones(4), scaled),
        lambda: reference.score(scaled, *GOOD[1:]),
        lambda: rmia.online(scaled, *GOOD[1:], *OUTSIDE),
        lambda: rmia.online(GOOD[0], -GOOD[1], GOOD[2], *OUTSIDE),
        lambda: rmia.online(*GOOD, -OUTSIDE[0], OUTSIDE[1]),
    ):
        with pytest.raises(UserError, match="never negative"):
            call()


def test_float32_signals_are_summed_in_float64():
    """10,000 models: a float32 sum of their signals would be off in the fourth digit."""
    references = np.full((10_000, 2), 0.1, dtype=np.float32) + np.arange(10_000, dtype=np.float32)[:, None] % 2
    outside = np.zeros((10_000, 2), dtype=bool)
    found = lira.offline(np.full(2, 1.0), references, outside)
    exact = references.astype(np.float64)
    assert np.allclose(found, -norm.logsf(1.0, exact.mean(axis=0), exact.std(axis=0, ddof=1)), rtol=1e-9)
