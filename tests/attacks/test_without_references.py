"""Quantile regression, label-only and trajectories, by hand and in worlds where each has to win; ensembles."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from attacks import ensemble, label_only, quantile, trajectory
from attacks.membership import balanced
from kit.errors import UserError
from tests.attacks.parts import random_generator


def test_a_feature_that_says_nothing_leaves_the_populations_own_quantiles():
    """Population 0 .. 100: median 50, 0.9 quantile 90; a confidence of 70 is half of the way above."""
    found = quantile.score([70.0, 50.0, 10.0], np.ones((3, 1)), np.arange(101.0), np.ones((101, 1)))
    assert found == pytest.approx([0.5, 0.0, -1.0])


def test_each_class_has_its_own_quantiles():
    """Class 0: 0 .. 100, class 1: 1000 .. 1200; the same confidence is high for one and low for the other."""
    known = np.concatenate([np.arange(101.0), 1000 + 2 * np.arange(101.0)])
    classes = np.repeat([0, 1], 101)[:, None]
    found = quantile.score([70.0, 1140.0, 1100.0], np.array([[0], [1], [1]]), known, classes, categorical=(0,))
    assert found == pytest.approx([0.5, 0.5, 0.0], abs=0.05)


def test_features_tell_a_members_confidence_from_an_easy_records():
    draws = random_generator(1)
    features, others = draws.normal(size=(3000, 2)), draws.normal(size=(3000, 2))
    is_member = draws.random(3000) < 0.5
    target = 4 * features[:, 0] + is_member + 0.5 * draws.normal(size=3000)
    known = 4 * others[:, 0] + 0.5 * draws.normal(size=3000)
    found = roc_auc_score(is_member, quantile.score(target, features, known, others))
    assert found > 0.8 and roc_auc_score(is_member, target) < 0.6
    assert np.array_equal(
        quantile.score(target, features, known, others), quantile.score(target[None], features, known[None], others)
    )


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((np.ones(3), np.ones((3, 1)), np.ones(5), np.ones((5, 1))), "too few"),
        ((np.ones(3), np.ones((3, 2)), np.ones(30), np.ones((30, 1))), "2 features"),
        ((np.ones(3), np.ones(3), np.ones(30), np.ones((30, 1))), "features"),
        ((np.ones(3), np.full((3, 1), np.nan), np.ones(30), np.ones((30, 1))), "finite"),
    ],
)
def test_bad_features_are_named(arguments, words):
    with pytest.raises(UserError, match=words):
        quantile.score(*arguments)


def test_label_only_by_hand():
    hits = np.array([[True, True, False], [True, False, False]])
    assert label_only.score(hits).tolist() == [1.0, 0.5, 0.0]
    references = np.array([[[1, 1, 0], [1, 1, 0]], [[1, 0, 0], [0, 0, 0]], [[1, 1, 1], [1, 1, 1]]], dtype=bool)
    inside = np.array([[False] * 3, [False] * 3, [True] * 3])
    # OUT models got (2 + 1) / 4, (2 + 0) / 4 and 0 of the copies right.
    assert label_only.offline(hits, references, inside).tolist() == [1 - 3 / 4, 0.5 - 2 / 4, 0.0]
    for values, words in ((None, "not known"), (hits[:1], "no boundary"), (hits * 1.0, "bool")):
        with pytest.raises(UserError, match=words):
            label_only.score(values)
    with pytest.raises(UserError, match="fewer than 1"):
        label_only.offline(hits, references[2:], inside[2:])


def world_of_trajectories(seed, models=7, records=1500):
    """Losses at three checkpoints: members' fall at once, others' late; the last one tells nothing."""
    draws = random_generator(seed)
    inside = balanced(models, records, seed)
    base = draws.gamma(2, 0.5, records)
    middle = base + draws.gamma(1, 0.5, (models, records)) * np.where(inside, 0.3, 1.0)
    last = np.broadcast_to(base / 5, (models, records))
    return np.stack([np.broadcast_to(3 * base, middle.shape), middle, last], axis=1), inside


def test_a_trajectory_tells_what_the_end_does_not():
    losses, inside = world_of_trajectories(2)
    found = trajectory.score(losses[0], losses[2:], inside[2:])
    assert roc_auc_score(inside[0], -losses[0, -1]) == pytest.approx(0.5, abs=0.05)
    assert roc_auc_score(inside[0], found) > 0.7
    # The sign is learnt: where members' losses fall late, the same code finds them too.
    swapped = trajectory.score(losses[0], losses[2:], ~inside[2:])
    assert roc_auc_score(inside[0], swapped) < 0.3


def test_a_regression_by_hand_on_one_feature_orders_by_that_feature():
    """Two checkpoints of which the first is constant: what is left is the last loss beside the OUT models' mean."""
    draws = random_generator(3)
    inside = balanced(6, 800, 1)
    last = draws.gamma(2, 1, 800) * np.where(inside, 0.5, 1.0)
    losses = np.stack([np.ones_like(last), last], axis=1)
    found = trajectory.score(losses[0], losses[2:], inside[2:])
    logs = np.log1p(last)
    gap = logs[0] - np.where(inside[2:], 0, logs[2:]).sum(axis=0) / (~inside[2:]).sum(axis=0)
    # A line in two features, the loss and its gap: least squares finds it again without a rest.
    design = np.stack([logs[0], gap, np.ones(800)], axis=1)
    rest = found - design @ np.linalg.lstsq(design, found, rcond=None)[0]
    assert np.abs(rest).max() < 1e-6 and np.corrcoef(found, gap)[0, 1] < -0.5


def test_trajectories_need_checkpoints_and_references():
    losses, inside = world_of_trajectories(4, models=4, records=40)
    for arguments, words in (
        ((losses[0, :1], losses[1:, :1], inside[1:]), "two checkpoints"),
        ((losses[0], losses[1:2], inside[1:2]), "too few|fewer"),
        ((losses[0], losses[1:], np.ones((3, 40), dtype=bool)), "fewer than 1"),
    ):
        with pytest.raises(UserError, match=words):
            trajectory.score(*arguments)


def test_an_ensemble_by_hand_and_what_it_is_for():
    one, other = [1.0, 2.0, 3.0], [10.0, 5.0, 20.0]
    ranks = norm.ppf([0.25, 0.5, 0.75])
    expected = [(ranks[0] + ranks[1]) / 2, (ranks[1] + ranks[0]) / 2, ranks[2]]
    assert ensemble.average([one, other]) == pytest.approx(expected)
    # Units don't matter, and noise that two attacks don't share averages out.
    assert ensemble.average([np.exp(one), other]) == pytest.approx(expected)
    draws = random_generator(5)
    truth = draws.random(4000) < 0.5
    scores = [truth + draws.normal(size=4000) for _ in range(2)]
    assert roc_auc_score(truth, ensemble.average(scores)) > max(roc_auc_score(truth, one) for one in scores) + 0.03
    with pytest.raises(UserError, match="ensemble"):
        ensemble.average([one])
