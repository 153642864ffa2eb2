"""Attack R: quantiles among reference models, by hand and on LiRA's scale."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks import lira, reference, signals
from kit.errors import UserError
from tests.attacks.parts import gaussian_world, random_generator


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


@settings(max_examples=60)
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
