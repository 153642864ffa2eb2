"""BASE (Lassila et al. 2025) by hand, beside RMIA, and on a world whose best answer is known."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from attacks import base, rmia
from attacks.membership import balanced
from kit.errors import UserError
from tests.attacks.parts import random_generator


def test_base_by_hand():
    """p = 1/2 at the target; OUT models 1/4 and 1/8, mean 3/16; IN models 1, mean 1. Online: (3/16 + 1) / 2 = 19/32."""
    losses = -np.log([[0.25], [0.125], [1.0]])
    inside = np.array([[False], [False], [True]])
    target = [math.log(2)]
    assert base.offline(target, losses, inside) == pytest.approx(math.log(0.5 / (3 / 16)))
    assert base.online(target, losses, inside) == pytest.approx(math.log(0.5 / (19 / 32)))
    # T = 2: square roots of the probabilities.
    expected = math.log(math.sqrt(0.5) / ((0.5 + math.sqrt(0.125)) / 2))
    assert base.offline(target, losses, inside, temperature=2) == pytest.approx(expected)


def test_queries_are_averaged():
    draws = random_generator(3)
    target, references, inside = draws.random((3, 20)), draws.random((6, 3, 20)), balanced(6, 20, 1)
    for attack in (base.online, base.offline):
        alone = [attack(target[query], references[:, query], inside) for query in range(3)]
        assert np.allclose(attack(target, references, inside), np.mean(alone, axis=0))


def test_base_orders_records_as_rmias_ratio_does():
    """RMIA's share of a fine population is a monotone function of p(x | target) / p(x); BASE is its logarithm."""
    draws = random_generator(4)
    inside, target, references = balanced(8, 500, 2), draws.gamma(1, 1, 500), draws.gamma(1, 1, (8, 500))
    fine = np.linspace(
        0, 15, 20_000
    )  # with p(z) = exp(-5), ratios from exp(5) down, at distances that tell records apart
    others = np.full((8, 20_000), 5.0)
    share = rmia.online(target, references, inside, fine, others, gamma=1.0)
    found = base.online(target, references, inside)
    order = np.argsort(found)
    assert (np.diff(share[order]) >= 0).all() and len(np.unique(share)) > 400
    share = rmia.offline(target, references, inside, fine, others, a=1.0, gamma=1.0)
    assert (np.diff(share[np.argsort(base.offline(target, references, inside))]) >= 0).all()


def test_losses_too_large_for_a_probability_still_have_an_order():
    """exp(-800) is 0: a mean of probabilities would say that all these records are the same."""
    references, inside = np.full((2, 3), 900.0), np.zeros((2, 3), dtype=bool)
    assert base.offline([800.0, 820.0, 810.0], references, inside).tolist() == pytest.approx([100, 80, 90])


def test_base_is_the_best_where_its_model_holds():
    """In: loss Exp(rate 2), out: Exp(rate 1); exp(-loss) is the likelihood ratio up to a constant."""
    draws = random_generator(5)
    difficulty = draws.gamma(4, 1, 4000)
    is_member = draws.random(4000) < 0.5
    target = difficulty + draws.exponential(1, 4000) * np.where(is_member, 0.5, 1)
    references = difficulty + draws.exponential(1, (60, 4000))
    found = roc_auc_score(is_member, base.offline(target, references, np.zeros((60, 4000), dtype=bool)))
    # P[Exp(2) < Exp(1)] = 2 / 3.
    assert found == pytest.approx(2 / 3, abs=0.03) and found > roc_auc_score(is_member, -target) + 0.05


def test_out_models_alone_and_bad_input():
    draws = random_generator(6)
    inside, target, references = balanced(4, 30, 1), draws.random(30), draws.random((4, 30))
    changed = np.where(inside, 50.0, references)
    assert np.array_equal(base.offline(target, changed, inside), base.offline(target, references, inside))
    assert not np.array_equal(base.online(target, changed, inside), base.online(target, references, inside))
    for values, words in (((target, references, inside, 0), "temperature"), ((-target, references, inside), "never")):
        with pytest.raises(UserError, match=words):
            base.online(*values)
    with pytest.raises(UserError, match="never negative"):
        base.offline(target, -references, inside)
    with pytest.raises(UserError, match="fewer than 1"):
        base.online(target, references, np.zeros((4, 30), dtype=bool))
