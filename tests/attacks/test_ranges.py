"""Scores of ranges: a record and its near copies."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from attacks import ranges
from kit.errors import UserError


def test_range_scores_by_hand():
    points = np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0], [10.0, 5.0]])
    assert ranges.range_score(points).tolist() == [4.0, 5.0]
    assert ranges.range_score(points, 0.5, 1.0).tolist() == [6.5, 5.0]
    assert ranges.range_score(points, 0.25, 0.75).tolist() == [2.5, 5.0]
    assert ranges.range_score(points, 0.75, 1.0).tolist() == [10.0, 5.0]
    assert ranges.range_score(points, 0.3, 0.6).tolist() == [2.5, 5.0]  # whole points: the second and the third
    assert ranges.range_score(points[:1], 0.5, 0.9).tolist() == [1.0, 5.0]  # one point is always left


@settings(max_examples=60)
@given(st.integers(1, 9), st.data())
def test_range_scores_do_not_depend_on_the_order_of_points_and_rise_with_them(count, data):
    points = np.array(data.draw(st.lists(st.floats(-5, 5), min_size=count, max_size=count)))[:, None]
    trim = data.draw(st.sampled_from(ranges.TRIMS))
    found = ranges.range_score(points, *trim)
    assert np.array_equal(ranges.range_score(points[::-1], *trim), found)
    assert ranges.range_score(points + 1, *trim) == pytest.approx(found + 1)
    assert points.min() - 1e-9 <= found[0] <= points.max() + 1e-9


def test_several_points_tell_more_than_one_and_the_trim_is_the_best_of_its_candidates():
    generator, inside = np.random.default_rng(6), np.arange(2000) % 2 == 0
    near = generator.random((8, 2000)) < 0.4  # of a member's range, most points are too far to show anything
    points = generator.normal(np.where(inside & near, 3, 0), 1)
    trim = ranges.tune_trim(points, inside)
    aucs = {known: roc_auc_score(inside, ranges.range_score(points, *known)) for known in ranges.TRIMS}
    assert aucs[trim] == max(aucs.values()) > aucs[0.0, 1.0] > roc_auc_score(inside, points[0]) + 0.1


@pytest.mark.parametrize(
    "bad",
    [(np.zeros(3), 0, 1), (np.zeros((2, 3)), 0.5, 0.5), (np.full((2, 3), np.nan), 0, 1), (np.zeros((2, 3)), -0.1, 1)],
)
def test_impossible_ranges_are_refused(bad):
    with pytest.raises(UserError):
        ranges.range_score(*bad)
