"""Intervals over records and models, and the records that all models give away."""

import numpy as np
import pytest

import utils
from attacks import clustered, evaluation
from kit.errors import UserError
from tests.attacks.parts import random_generator


def world(targets, records, seed, record_effect=0.0, model_effect=0.0):
    draws = random_generator(seed)
    inside = draws.random((targets, records)) < 0.5
    gain = record_effect * draws.normal(size=records) + model_effect * draws.normal(size=(targets, 1))
    return draws.normal(size=(targets, records)) + inside * (1 + gain), inside


def test_each_resample_is_that_of_rows_written_out():
    scores, inside = world(3, 40, 1)
    scores = np.round(scores, 1)  # with ties
    fprs, found, aucs, fixed = (0.1, 0.0), [], [], []
    threshold = -utils.threshold_at_fpr(-scores[~inside], 0.1)
    draws = utils.key_generator(5, "bootstrap over records and models")
    for _ in range(60):
        columns, rows = draws.integers(0, 40, 40), draws.integers(0, 3, 3)
        drawn, member = scores[np.ix_(rows, columns)].ravel(), inside[np.ix_(rows, columns)].ravel()
        rates = evaluation.evaluate(drawn, member, fprs, resamples=1)
        found.append([point["tpr"] for point in rates["tpr_at_fpr"]])
        aucs.append(rates["auc"])
        fixed.append((drawn[~member] > threshold).mean())
    made = clustered.intervals(scores, inside, fprs, resamples=60, seed=5)
    assert made["auc_interval"] == pytest.approx(np.quantile(aucs, [0.025, 0.975]))
    for place, point in enumerate(made["tpr_at_fpr"]):
        assert point["interval"] == pytest.approx(np.quantile(np.array(found)[:, place], [0.025, 0.975]))
    assert made["tpr_at_fpr"][0]["fpr_interval"] == pytest.approx(np.quantile(fixed, [0.025, 0.975]))


def width(interval):
    return interval[1] - interval[0]


def test_the_same_scores_in_every_model_are_no_new_cases():
    """Eight copies of one model: the interval of pairs shrinks by sqrt(8), that of records does not."""
    scores, inside = world(1, 600, 2)
    alone = clustered.intervals(scores, inside, (0.05,), 300)
    copies = clustered.intervals(np.repeat(scores, 8, axis=0), np.repeat(inside, 8, axis=0), (0.05,), 300)
    for one, other in ((alone, copies), (alone["tpr_at_fpr"][0], copies["tpr_at_fpr"][0])):
        name = "auc_interval" if "auc_interval" in one else "interval"
        assert width(other[name]) == pytest.approx(width(one[name]), rel=0.25)
    pooled = evaluation.evaluate(np.tile(scores[0], 8), np.tile(inside[0], 8), (0.05,), 300)
    assert width(pooled["auc_interval"]) < width(copies["auc_interval"]) / 2


def test_models_that_differ_widen_the_interval():
    scores, inside = world(6, 500, 3, model_effect=1.0)
    pooled = evaluation.evaluate(scores.ravel(), inside.ravel(), (0.05,), 300)
    found = clustered.intervals(scores, inside, (0.05,), 300)
    assert width(found["auc_interval"]) > 2 * width(pooled["auc_interval"])
    assert found["auc_interval"][0] < pooled["auc"] < found["auc_interval"][1]


def test_differences_are_of_the_same_draws():
    scores, inside = world(4, 400, 4, model_effect=1.0)
    better = scores + 0.5 * inside
    for fpr in (0.05, None):
        low, _ = clustered.differences(better, scores, inside, fpr, 200)
        assert low > 0 and clustered.differences(scores, scores, inside, fpr, 50) == [0.0, 0.0]
    # Each alone is far less certain than how much they differ.
    one, other = (clustered.intervals(values, inside, (0.05,), 200)["tpr_at_fpr"][0] for values in (better, scores))
    assert other["interval"][1] > one["interval"][0]


def test_stability_by_hand():
    """Records 0 .. 3, three models. 0: in two, found twice. 1: in three, found twice. 2: in two, never. 3: in one."""
    inside = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1]], dtype=bool)
    scores = np.array([[9, 9, 9, 0], [9, 9, 0, 0], [9, 0, 0, 9]], dtype=float)
    found = clustered.stability(scores, inside, 5.0)
    # Rates among the first three records: 2/2, 2/3, 0/2. By chance: 1 * 2/3, 1 * 2/3 * 0, 2/3 * 0.
    assert found == {"records": 3, "any": 2, "all": 1, "by_chance": pytest.approx(2 / 3), "agreement": 0.5}
    nobody = clustered.stability(scores, inside, 99.0)
    assert (nobody["any"], nobody["agreement"]) == (0, None)
    assert clustered.stability(scores[:1], inside[:1], 5.0)["records"] == 0


def test_wrong_shapes_are_named():
    with pytest.raises(UserError, match="don't fit"):
        clustered.intervals(np.zeros((2, 3)), np.zeros((2, 4), dtype=bool), (0.1,))
    with pytest.raises(UserError, match="too few records"):
        clustered.intervals(np.zeros((1, 3)), np.ones((1, 3), dtype=bool), (0.1,), 5)
