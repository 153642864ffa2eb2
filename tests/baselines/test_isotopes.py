"""Wenger et al.'s verification, on features with a known effect."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from baselines import isotopes


def test_verification_agrees_with_the_paired_t_test():
    draws = np.random.default_rng(7)
    first, second = draws.random((6, 5, 40)), draws.random((6, 5, 40))
    first[:3] += 0.1
    expected = []
    for one, other in zip(first, second, strict=True):
        gaps = one - other  # by the formula, not by scipy's paired test
        p = stats.t.sf(gaps.mean(1) / (gaps.std(1, ddof=1) / np.sqrt(40)), 39)
        expected.append([(p < level).mean() >= 0.6 for level in (0.1, 1e-4)])
    assert isotopes.verify(first, second, (0.1, 1e-4), 0.6).tolist() == expected
    assert isotopes.t_statistics(first, second) == pytest.approx(stats.ttest_rel(first, second, axis=-1).statistic)


def test_equal_features_are_no_evidence():
    same = np.random.default_rng(8).random((2, 5, 10))
    assert not isotopes.verify(same, same, (0.1, 0.5), 0.2).any()
    assert isotopes.t_statistics(same, same).tolist() == [[0.0] * 5] * 2


def made_up_features(effects, users, images=80, classes=4, noise=0.01):
    """Probabilities in which feature f raises the class of user u by effects[f], the same for every class."""
    draws = np.random.default_rng(9)
    probability = 0.2 + np.asarray(effects)[:, None, None] + draws.normal(0, noise, (len(effects), images, classes))
    labels = np.arange(images) % classes
    return probability, labels, np.arange(users) % classes


def flags_of(**changed):
    return SimpleNamespace(**{"significance": 0.1, "rounds": 5, "auxiliary": 30, "positive": 0.6, **changed})


def test_claimed_and_corrected_false_positives_on_features_with_a_known_order():
    """Two targets with a strong effect, six unused features of six different effects: one of two always wins."""
    effects = [0.5, 0.5, 0.0, 0.01, 0.02, 0.03, 0.04, 0.05]
    found, statistics = isotopes.compare_features(*made_up_features(effects, 2), flags_of(), 1)
    assert found["true"][:, 0].mean() == 1.0
    assert found["claimed"][:, 0].mean() == 0.0  # nothing beats the target, however many features differ
    assert found["false"][:, 0].mean() == 0.5  # of any two unused features the stronger one is "used"
    assert len(found["true"]) == 12 and len(found["false"]) == 12
    assert statistics["true"].min() > statistics["false"].max()


def test_unused_features_without_effect_are_rarely_accused():
    """No feature does anything: each t-test is wrong at its level, three of five at 0.1 in 1 of 100 tests."""
    found, _ = isotopes.compare_features(*made_up_features([0.0] * 42, 2), flags_of(), 1)
    for kind in isotopes.KINDS:
        assert found[kind][:, 0].mean() < 0.2
        assert not found[kind][:, -1].any()  # significance 1e-8


def test_wrong_sign_of_the_effect_finds_nothing():
    found, _ = isotopes.compare_features(*made_up_features([-0.5, -0.5, 0, 0, 0, 0], 2), flags_of(), 1)
    assert found["true"][:, 0].mean() == 0.0 and found["claimed"][:, 0].mean() == 1.0


def test_auxiliary_images_of_the_class_itself_are_left_out():
    probability, labels, classes = made_up_features([0.0, 0.0, 0.0, 0.0], 1, noise=0.001)
    probability[0, labels == 0, 0] += 1  # the target's effect shows on images of its own class only
    found, _ = isotopes.compare_features(probability, labels, classes, flags_of(), 1)
    assert not found["true"][:, 1:].any()


def test_features_are_blended_in_at_the_ratio():
    images = torch.full((2, 3, 4, 4), 200, dtype=torch.uint8)
    feature = torch.full((3, 4, 4), 100, dtype=torch.uint8)
    assert (isotopes.blended(images, feature, 0.6) == 160).all()


def test_effect_is_the_probability_with_the_feature():
    def query(images):
        return torch.stack([images[:, 0, 0, 0].float() / 100, torch.zeros(len(images))], 1)

    images = torch.tensor([0, 100], dtype=torch.uint8)[:, None, None, None].expand(2, 3, 4, 4)
    features = torch.tensor([0, 200], dtype=torch.uint8)[:, None, None, None].expand(2, 3, 4, 4)
    found = isotopes.effect_of_features(query, images, features, 0.5)
    assert found[..., 0] == pytest.approx(1 / (1 + np.exp([[0, -0.5], [-1, -1.5]])))
