"""What references explain is taken out of the scores, alike for every pair, and never so that a poor one does harm."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks import exact
from attacks.difficulty import KEPT, shares, taken_out
from tests.attacks.test_exact import check_exact


def scores_and_references(rng, photos=40, keys=5, count=1, noise=0.3):
    """Scores that are half difficulty, and references that see it through noise."""
    difficulty = rng.gamma(2, 0.4, (photos, 1))
    scores = 0.5 * difficulty + rng.normal(0, 0.1, (photos, keys))
    return scores, difficulty + rng.normal(0, noise, (count, photos, keys))


def test_one_reference_by_hand():
    scores = np.array([[1.0], [2.0], [4.0]])
    reference = np.array([[[0.0], [1.0], [2.0]]])
    # slope = cov / var = (mean of (-4/3)(-1) + (-1/3)(0) + (5/3)(1)) / (2/3) = 1.5
    np.testing.assert_allclose(shares(scores, reference), [KEPT * 1.5])
    left = taken_out(scores[..., None], reference)[..., 0]
    np.testing.assert_allclose(left, scores - KEPT * 1.5 * (reference[0] - 1))
    left = taken_out(scores[..., None], reference, by_key=False)[..., 0]
    np.testing.assert_allclose(left, scores - KEPT * 1.5 * reference[0])


def test_the_share_of_each_key_by_hand():
    """A key whose slope differs from that of all keys by more than chance has nearly its own; others have that of
    all."""
    rng = np.random.default_rng(7)
    reference = rng.normal(2, 1, (1, 200, 6))
    scores = 0.8 * reference[0] + rng.normal(0, 0.5, (200, 6))
    scores[:, 3] = 0.1 * reference[0, :, 3] + rng.normal(0, 0.1, 200)
    left, above = taken_out(scores[..., None], reference)[..., 0], reference[0] - reference.mean()
    whole = np.polyfit(above.ravel(), scores.ravel(), 1)[0]
    seen = []
    for key in range(6):
        (slope, _), residuals, *_ = np.polyfit(above[:, key], scores[:, key], 1, full=True)
        chance = residuals[0] / 200 / np.square(above[:, key] - above[:, key].mean()).sum()
        drawn = min(1, chance / (slope - whole) ** 2)
        expected = KEPT * (slope + drawn * (whole - slope))
        np.testing.assert_allclose(left[:, key], scores[:, key] - expected * above[:, key])
        seen.append(drawn)
    assert seen[3] < 0.01 and max(seen) > 0.05


def test_a_reference_does_no_harm_where_the_own_key_is_known_by_heart():
    """Held-out photos look remembered, too, under the own key; which ones were published shows in small differences,
    which one share for all keys would drown."""
    found = {"without": [], "by key": [], "alike": []}
    for seed in range(30):
        rng = np.random.default_rng(seed)
        scores, references = scores_and_references(rng, photos=50, keys=8, noise=0.5)
        selections = exact.random_selections(rng, 50, 25, 499)
        scores[:, 0] = np.where(selections[0], 0.02, 0.15) * rng.gamma(1, 1, 50)
        for name, left in (
            ("without", scores[..., None]),
            ("by key", taken_out(scores[..., None], references)),
            ("alike", taken_out(scores[..., None], references, by_key=False)),
        ):
            found[name].append(exact.p_value(exact.statistic_grid(left, selections, 0)[0]))
    means = {name: np.log(p).mean() for name, p in found.items()}
    assert means["by key"] < means["without"] + 0.25 and means["alike"] > means["without"] + 1


def test_two_references_are_weighted_by_what_each_explains():
    rng = np.random.default_rng(1)
    scores, references = scores_and_references(rng, photos=400, count=2)
    references[1] += rng.normal(0, 2, references[1].shape)
    found = shares(scores, references)
    spread = references.std(axis=(1, 2))
    correlations = [np.corrcoef(scores.ravel(), one.ravel())[0, 1] for one in references]
    weights = np.square(correlations) / np.square(correlations).sum() / spread
    together = np.tensordot(weights, references, axes=1)
    slope = np.cov(scores.ravel(), together.ravel(), bias=True)[0, 1] / together.var()
    np.testing.assert_allclose(found, KEPT * slope * weights)
    assert found[0] > 3 * found[1] > 0


def test_the_same_reference_twice_is_that_reference_once():
    scores, references = scores_and_references(np.random.default_rng(2))
    once = taken_out(scores[..., None], references)
    np.testing.assert_allclose(taken_out(scores[..., None], np.concatenate([references] * 2)), once)
    np.testing.assert_allclose(taken_out(scores[..., None], 7 * references + 3), once)


@pytest.mark.parametrize("reference", ["constant", "opposite", "missing"])
def test_a_reference_that_explains_nothing_changes_nothing(reference):
    scores, references = scores_and_references(np.random.default_rng(3))
    made = {
        "constant": np.full_like(references, 2.5),
        "opposite": -references,
        "missing": np.full_like(references, np.nan),
    }
    np.testing.assert_array_equal(taken_out(scores[..., None], made[reference])[..., 0], scores)


def test_no_reference_and_one_photo_change_nothing():
    scores = np.random.default_rng(4).random((6, 3, 2))
    assert taken_out(scores, ()) is scores
    np.testing.assert_array_equal(taken_out(scores[:1, :1], np.ones((1, 1, 1))), scores[:1, :1])


def test_missing_scores_stay_missing_and_decide_nothing():
    rng = np.random.default_rng(5)
    scores, references = scores_and_references(rng)
    holes, gaps = scores.copy(), references.copy()
    holes[3, 1], gaps[0, 7, 2] = np.nan, np.nan
    left = taken_out(holes[..., None], gaps)[..., 0]
    assert np.isnan(left).sum() == 1 and np.isnan(left[3, 1])
    np.testing.assert_allclose(left[7, 2], scores[7, 2], err_msg="taken as the mean, which says nothing")
    alike = taken_out(holes[..., None], gaps, by_key=False)[..., 0]
    assert np.isnan(alike).sum() == 1
    share = shares(holes, np.where(np.isnan(gaps), np.nanmean(gaps), gaps))
    np.testing.assert_allclose(alike[7, 2], scores[7, 2] - share[0] * np.nanmean(gaps))
    # What the reference did not say leaves no hole where the suspect answered everything.
    rest, beside = np.delete(holes, 3, axis=0), np.delete(gaps, 3, axis=1)
    assert np.isfinite(taken_out(rest[..., None], beside)).all()


def test_each_class_has_a_share_of_its_own():
    rng = np.random.default_rng(6)
    scores, references = scores_and_references(rng)
    both = np.stack([scores, rng.random(scores.shape)], axis=2)
    np.testing.assert_allclose(taken_out(both, references)[..., 0], taken_out(scores[..., None], references)[..., 0])


def test_difficulty_is_taken_out_and_the_test_gets_stronger():
    """25 of 50 photos are remembered a little; without the reference their difficulty hides it."""
    without, beside, poor = [], [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        scores, references = scores_and_references(rng, photos=50, keys=1, noise=0.1)
        selections = exact.random_selections(rng, 50, 25, 499)
        scores[selections[0]] *= 0.75
        for found, given_references in (
            (without, ()),
            (beside, references),
            (poor, rng.gamma(2, 0.4, references.shape)),
        ):
            left = taken_out(scores[..., None], given_references)
            found.append(exact.p_value(exact.statistic_grid(left, selections, 0)[0]))
    without, beside, poor = (np.log(found).mean() for found in (without, beside, poor))
    assert beside < without - 1 and poor < without + 0.25


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_pairs_are_treated_alike(seed):
    """Photos and keys in another order give the scores in that order: nothing looks at what was published."""
    rng = np.random.default_rng(seed)
    scores, references = scores_and_references(rng, photos=12, keys=4, count=3)
    rows, columns = rng.permutation(12), rng.permutation(4)
    moved = taken_out(scores[rows][:, columns, None], references[:, rows][:, :, columns])
    np.testing.assert_allclose(moved, taken_out(scores[..., None], references)[rows][:, columns], atol=1e-12)


@pytest.mark.parametrize("seen", [False, True])
def test_p_keeps_its_level_with_references(seen):
    """2,000 innocent audits, also with a reference that has seen the published photos, fixed before the draw or not."""
    ps = []
    for seed in range(2000):
        rng = np.random.default_rng(seed)
        scores, references = scores_and_references(rng, photos=16, keys=3, count=2)
        selections = exact.random_selections(rng, 16, 8, 49)
        if seen:
            # It knows some photos well, whichever they are: a choice made before the draw.
            references[0, rng.permutation(16)[:8]] *= 0.2
        left = taken_out(scores[..., None], references)
        ps.append(exact.p_value(exact.statistic_grid(left, selections, 0)[0]))
    check_exact(np.array(ps))
