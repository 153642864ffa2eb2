"""Tramer et al.'s poisons: always wrong, spread evenly."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from baselines import mislabeled


@settings(max_examples=30)
@given(st.integers(2, 12), st.integers(1, 5), st.integers(0, 100), st.lists(st.integers(0, 199), min_size=1))
def test_poisons_are_always_wrong_and_as_many_as_said(classes, copies, seed, rows):
    labels = np.random.default_rng(classes).integers(0, classes, 200)
    found, wrong = mislabeled.draw_poisons(labels, rows, copies, classes, seed)
    assert sorted(found) == sorted(list(set(rows)) * copies)
    assert (wrong != labels[found]).all() and ((wrong >= 0) & (wrong < classes)).all()
    assert all(len(set(wrong[found == row])) == 1 for row in found)  # one wrong label a sample
    again = mislabeled.draw_poisons(labels, rows[::-1], copies, classes, seed)
    assert np.array_equal(found, again[0]) and np.array_equal(wrong, again[1])


def test_wrong_labels_are_spread_over_the_other_classes():
    _, wrong = mislabeled.draw_poisons(np.full(3000, 4), np.arange(3000), 1, 10, 1)
    counts = np.bincount(wrong, minlength=10)
    assert counts[4] == 0 and stats.chisquare(np.delete(counts, 4)).pvalue > 1e-4
    _, other = mislabeled.draw_poisons(np.full(3000, 4), np.arange(3000), 1, 10, 2)
    assert not np.array_equal(wrong, other)
