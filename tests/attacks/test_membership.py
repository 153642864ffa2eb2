"""Who is in which model: balanced both ways, and left out of its own references."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks.membership import balanced, leave_one_out
from kit.errors import UserError
from tests.attacks.parts import random_generator


@settings(max_examples=80)
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


@settings(max_examples=50)
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
