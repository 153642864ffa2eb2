"""Set-based membership inference: signals, rates and their intervals, Algorithm 1, and who the users are.

Expected numbers are worked out by hand, in exactly rounded sums, or by scikit-learn and scipy.
"""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

import utils
from kit.errors import UserError
from utils import (
    clopper_pearson,
    membership_inference,
    sample_signals,
    threshold_at_fpr,
    verify_provenance,
)

# --- Signals of single samples ---


def reference_signals(logits, label):
    """-log p and log(1 - p) - log p of one sample, in Python's exact-to-the-digit float sums."""
    highest = max(logits)
    parts = [math.exp(value - highest) for value in logits]
    rest = math.fsum(part for column, part in enumerate(parts) if column != label)
    return (
        math.log(math.fsum(parts)) + highest - logits[label],
        (math.log(rest) if rest > 0 else -math.inf) + highest - logits[label],
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_signals_equal_a_float64_reference(classes, dtype):
    """Wrong: softmax and then log in float32, the label counted among the others, the sign turned."""
    logits = (torch.randn(200, classes, generator=torch.Generator().manual_seed(classes)) * 6).to(dtype)
    labels = torch.arange(200) % classes
    signals = sample_signals(logits, labels)
    expected = np.array(
        [reference_signals(row, label) for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True)]
    )
    assert set(signals) == {*utils.SIGNALS, "correct"}
    assert {signal.dtype for signal in signals.values()} == {torch.float64}
    np.testing.assert_allclose(signals["cross_entropy"], expected[:, 0], atol=1e-12, rtol=1e-12)
    np.testing.assert_allclose(signals["scaled_loss"], expected[:, 1], atol=1e-12, rtol=1e-12)
    assert torch.equal(signals["correct"].bool(), logits.argmax(1) == labels)


def test_extreme_logits_are_finite_and_exact():
    """Wrong: exp overflow, p rounded to 0 or 1, so that log gives an infinity."""
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [-1e4, 1e4, 1e4], [0.0, 0.0, 0.0], [1e4, 1e4, 1e4]])
    signals = sample_signals(logits, torch.zeros(5, dtype=torch.long))
    third = math.log(3)
    np.testing.assert_allclose(signals["cross_entropy"], [0, 2e4, 2e4 + math.log(2), third, third], atol=1e-11)
    np.testing.assert_allclose(
        signals["scaled_loss"], [-1e4, 2e4, 2e4 + math.log(2), math.log(2), math.log(2)], atol=1e-11
    )


def test_the_two_signals_are_one_probability():
    """scaled_loss = -log(p / (1 - p)) with p = exp(-cross_entropy): lower for members, as cross_entropy is."""
    logits = torch.randn(500, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    signals = sample_signals(logits, torch.arange(500) % 7)
    p = np.exp(-signals["cross_entropy"].numpy())
    np.testing.assert_allclose(signals["scaled_loss"], -np.log(p / (1 - p)), atol=1e-9)
    assert (np.argsort(signals["scaled_loss"]) == np.argsort(signals["cross_entropy"])).all()


def test_very_confident_samples_keep_their_order():
    """Losses far below 1e-16 are still different losses. Wrong: a difference of two large numbers, which is 0."""
    logits = torch.zeros(3, 10, dtype=torch.float64)
    logits[:, 0] = torch.tensor([38.0, 45.0, 60.0])
    losses = sample_signals(logits, torch.zeros(3, dtype=torch.long))["cross_entropy"].numpy()
    np.testing.assert_allclose(losses, 9 * np.exp([-38.0, -45.0, -60.0]), rtol=1e-6, atol=0)


# --- Rates ---


def column(*values):
    """Losses of users with one sample each."""
    return np.array(values, dtype=float)[:, None]


def test_fpr_at_100_tpr_by_hand():
    """The threshold that finds every member is just above the highest member. Wrong: the lowest or the mean member."""
    found = membership_inference(column(0.1, 0.5, 0.3), column(0.2, 0.4, 0.6, 0.8, 0.9))
    assert found["members"] == 3
    assert found["non_members"] == 5
    assert found["false_positives"] == 2
    assert found["fpr_at_100_tpr"] == 0.4
    assert found["fpr_interval"] == pytest.approx(clopper_pearson(2, 5))


def test_a_tie_with_the_highest_member_is_a_false_positive():
    """Wrong: counting only non-members strictly below; no threshold could tell the tied ones apart."""
    assert membership_inference(column(0.1, 0.5), column(0.5, 0.5, 0.6, 0.7))["fpr_at_100_tpr"] == 0.5
    assert membership_inference(column(0.5), column(0.5))["fpr_at_100_tpr"] == 1.0
    assert membership_inference(column(0.5), column(0.5 + 1e-12))["fpr_at_100_tpr"] == 0.0


def test_tpr_at_given_fprs_by_hand():
    """10 non-members: at FPR 0 no non-member may be below the threshold, at 0.1 one, at 0.3 three."""
    others = column(*np.arange(1.0, 11.0))
    found = membership_inference(column(0.5, 1.0, 1.5, 2.0, 3.5, 20.0), others, fprs=(0.0, 0.1, 0.3, 0.05, 1.0))
    assert [row["fpr"] for row in found["tpr_at_fpr"]] == [0.0, 0.1, 0.3, 0.05, 1.0]
    # Below 1.0: one of six; below 2.0: three; below 4.0: five; 0.05 of 10 is less than one non-member; at 1.0 all.
    assert [row["tpr"] for row in found["tpr_at_fpr"]] == pytest.approx([1 / 6, 3 / 6, 5 / 6, 1 / 6, 1.0])
    for row, hits in zip(found["tpr_at_fpr"], (1, 3, 5, 1, 6), strict=True):
        assert row["interval"] == pytest.approx(clopper_pearson(hits, 6))


def test_tpr_with_ties_among_non_members():
    """Two non-members share the lowest loss and one may be accused: neither can be, without the other."""
    others = column(1.0, 1.0, *np.arange(2.0, 10.0))
    found = membership_inference(column(0.5, 1.0, 1.5), others, fprs=(0.1, 0.2))
    assert [row["tpr"] for row in found["tpr_at_fpr"]] == pytest.approx([1 / 3, 1.0])


@settings(max_examples=60)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=20), st.lists(st.integers(0, 6), min_size=1, max_size=20))
def test_auc_and_fpr_equal_definitions(member, other):
    """AUC: the share of pairs in which the member's loss is lower, ties half (a reversed sign gives 1 - AUC)."""
    found = membership_inference(column(*member), column(*other))
    pairs = [(m < o) + 0.5 * (m == o) for m in member for o in other]
    assert found["auc"] == pytest.approx(sum(pairs) / len(pairs))
    truth = [1] * len(member) + [0] * len(other)
    assert found["auc"] == pytest.approx(roc_auc_score(truth, [-value for value in member + other]))
    rates = [sum(o < cut for o in other) / len(other) for cut in (*other, math.inf) if all(m < cut for m in member)]
    assert found["fpr_at_100_tpr"] == pytest.approx(min(rates) if rates else 1.0)


def test_set_based_scores_are_means_of_users_and_instance_based_ones_are_samples():
    """Wrong: averaging over the wrong axis, or the same result for both."""
    member = np.array([[0.0, 4.0], [1.0, 1.0]])  # means 2, 1
    other = np.array([[3.0, 3.0, 3.0], [0.0, 0.0, 9.0], [2.0, 2.0, 2.0], [0.5, 0.5, 0.5]])  # means 3, 3, 2, 0.5
    as_sets = membership_inference(member, other)
    assert (as_sets["members"], as_sets["non_members"]) == (2, 4)
    assert as_sets["fpr_at_100_tpr"] == 0.5
    assert as_sets["auc"] == pytest.approx((2 + 0.5 + 3) / 8)
    single = membership_inference(member, other, instance_mi=True)
    assert (single["members"], single["non_members"]) == (4, 12)
    assert single["false_positives"] == 11
    assert single["tpr_at_fpr"][-1] == {"fpr": 0.0, "tpr": 0.0, "interval": clopper_pearson(0, 4)}


def test_users_are_rows_whatever_their_number_of_samples():
    """Defect 4: users are explicit. A non-member user of 5 samples and a member of 2 are one score each."""
    draws = np.random.default_rng(0)
    member, other = draws.random((3, 2)), draws.random((40, 5)) + 0.3
    found = membership_inference(member, other)
    same = membership_inference(member.mean(1, keepdims=True), other.mean(1, keepdims=True))
    assert found == same


@pytest.mark.parametrize(
    ("member", "other"),
    [
        (np.zeros(3), np.zeros((3, 1))),
        (np.zeros((3, 1)), np.zeros(3)),
        (np.zeros((0, 2)), np.zeros((3, 2))),
        (np.zeros((3, 2)), np.zeros((0, 2))),
        (np.zeros((3, 0)), np.zeros((3, 2))),
        (np.zeros((2, 2, 2)), np.zeros((3, 2))),
    ],
)
def test_losses_that_are_no_users_times_samples_are_refused(member, other):
    """Wrong: a flat array taken for users, or a rate out of nothing."""
    with pytest.raises((ValueError, UserError)):
        membership_inference(member, other)


def test_result_is_ready_for_json():
    """Wrong: numpy numbers, which json refuses, or NaN."""
    losses = np.random.default_rng(0).random((4, 3), dtype=np.float32)
    for instance in (False, True):
        found = membership_inference(losses, losses + 1, instance, np.array([0.1, 0.0]))
        json.loads(json.dumps(found, allow_nan=False))


def test_a_model_that_leaks_nothing_scores_one_half():
    """Defect 2: with another signal on each side such a model scored an AUC of 0.97."""
    draws = np.random.default_rng(3)
    found = membership_inference(draws.random((400, 5)), draws.random((4000, 5)))
    assert found["auc"] == pytest.approx(0.5, abs=0.05)
    assert found["fpr_at_100_tpr"] > 0.95
    assert {row["fpr"] for row in found["tpr_at_fpr"]} == {1e-3, 1e-4, 0.0}
    assert max(row["tpr"] for row in found["tpr_at_fpr"]) < 0.02


@settings(max_examples=60)
@given(trials=st.integers(1, 6000), share=st.floats(0, 1), confidence=st.sampled_from([0.9, 0.95, 0.99]))
def test_clopper_pearson_is_the_interval_that_scipy_searches_for(trials, share, confidence):
    """Wrong: Wald's or Wilson's interval, or a one-sided level."""
    hits = round(share * trials)
    low, high = clopper_pearson(hits, trials, confidence)
    searched = binomtest(hits, trials).proportion_ci(confidence, method="exact")
    assert [low, high] == pytest.approx([searched.low, searched.high], abs=1e-9)
    assert low <= hits / trials <= high


def test_intervals_of_zero_false_positives():
    """Defect 15: 0 of 500 cannot show 0.1 %. SPEC's 0.60 % and 0.06 % are one-sided bounds (two-sided at 90 %); the
    two-sided 95 % interval ends at 0.74 % and 0.07 %."""
    assert clopper_pearson(0, 500) == pytest.approx([0, 1 - 0.025 ** (1 / 500)])
    assert clopper_pearson(0, 500)[1] == pytest.approx(0.00735, abs=1e-5)
    assert clopper_pearson(0, 5000)[1] == pytest.approx(0.000738, abs=1e-6)
    assert clopper_pearson(0, 500, 0.9)[1] == pytest.approx(0.0060, abs=5e-5)
    assert clopper_pearson(0, 5000, 0.9)[1] == pytest.approx(0.0006, abs=5e-6)
    assert clopper_pearson(0, 500)[1] > 0.001 > clopper_pearson(0, 5000)[1]
    assert clopper_pearson(7, 7) == pytest.approx([0.025 ** (1 / 7), 1])


@pytest.mark.parametrize("hits, trials", [(-1, 5), (6, 5), (0, 0)])
def test_what_is_no_rate_has_no_interval(hits, trials):
    with pytest.raises(ValueError, match="is no rate"):
        clopper_pearson(hits, trials)


# --- Algorithm 1 ---


@settings(max_examples=150)
@given(
    scores=st.lists(st.integers(-3, 8).map(float) | st.floats(-5, 5), min_size=1, max_size=60),
    fpr=st.sampled_from([0.0, 1e-4, 1e-3, 0.01, 0.05, 0.1, 1 / 3, 0.5, 0.7, 0.9, 1.0]) | st.floats(0, 1),
)
def test_the_share_of_accused_out_world_users_never_exceeds_the_fpr(scores, fpr):
    """Wrong: a percentile that interpolates, an off-by-one rank, or 'not above' at ties."""
    losses = np.array(scores)[:, None]
    used, tau = verify_provenance(losses, losses, fpr)
    assert used.dtype == bool
    assert used.sum() <= fpr * len(scores) + 1e-8
    assert tau == threshold_at_fpr(scores, fpr)
    # And no higher threshold would do: the next one accuses too many.
    if math.isfinite(tau):
        assert np.sum(np.array(scores) <= tau) > fpr * len(scores) - 1e-8


def test_verdict_by_hand_strict_and_per_user():
    """Used means a mean strictly below tau. Wrong: any single low sample accuses, or a tie does."""
    others = np.array([[1.0, 3.0], [2.0, 4.0], [5.0, 5.0], [6.0, 6.0]])  # means 2, 3, 5, 6
    users = np.array([[0.0, 3.9], [2.0, 2.0], [0.0, 5.0], [3.0, 3.0], [0.0, 100.0]])  # 1.95, 2, 2.5, 3, 50
    used, tau = verify_provenance(users, others, fpr=0.0)
    assert (used.tolist(), tau) == ([True, False, False, False, False], 2.0)
    used, tau = verify_provenance(users, others, fpr=0.25)
    assert (used.tolist(), tau) == ([True, True, True, False, False], 3.0)
    used, tau = verify_provenance(users, others, fpr=0.4)  # 1.6 users: one
    assert (used.tolist(), tau) == ([True, True, True, False, False], 3.0)


@pytest.mark.parametrize(
    ("count", "fpr", "accused"),
    [
        (5000, 1e-3, 5),
        (1000, 1e-3, 1),
        (999, 1e-3, 0),
        (100, 0.07, 7),
        (100, 0.29, 29),
        (1000, 0.057, 57),
        (10, 0.3, 3),
        (20, 0.15, 3),
    ],
)
def test_exact_shares_are_used_up(count, fpr, accused):
    """Wrong: floor(0.29 * 100), which is 28 in floating point, or a threshold one rank too strict."""
    scores = np.random.default_rng(count).random((count, 1))
    assert verify_provenance(scores, scores, fpr)[0].sum() == accused


def test_default_fpr_is_a_tenth_of_a_percent():
    """The paper's low-FPR regime."""
    scores = np.arange(5000.0)[:, None]
    used, tau = verify_provenance(scores, scores)
    assert used.sum() == 5
    assert tau == 5.0
