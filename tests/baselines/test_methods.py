"""The competing methods of baselines/: their statistics against known answers, and each script from end to end."""

import itertools
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

sys.path.insert(0, str(ROOT / "baselines"))
import _common as common
import _sequential as sequential
import _summary as summary
import isotopes
import mislabeled
import twin_marks

import utils
from experiment import setup
from kit import files
from kit.errors import UserError

TINY = (
    "--dataset",
    "photos",
    "--net_type",
    "smallnet",
    "--train_size",
    "300",
    "--val_portion",
    "0",
    "--epoch",
    "1",
    "--batch_size",
    "64",
    "--num_of_multiTarget_diffCls",
    "3",
    "--marked_samples_per_user",
    "3",
    "--num_of_non_member_user",
    "30",
    "--device",
    "cpu",
)


# --- Huang et al.'s sequential test ----------------------------------------------------------------------------------


def posterior_ratio_by_hand(total, wins, looked, true):
    """prior / posterior of "true wins among total", by Bayes' rule over whole numbers, from the first principles."""

    def likelihood(number):  # hypergeometric: this many wins among the first `looked`
        return stats.hypergeom.pmf(wins, total, number, looked)

    posterior = likelihood(true) / sum(likelihood(number) for number in range(total + 1))
    return np.inf if posterior == 0 else (1 / (total + 1)) / posterior


@pytest.mark.parametrize("wins", [(1, 1, 1, 0, 1, 1, 1), (0, 0, 1, 0), (1,) * 9, (0,) * 5])
@pytest.mark.parametrize("alpha", [0.3, 0.05])
def test_lower_bound_is_the_smallest_number_that_bayes_rule_keeps(wins, alpha):
    best, expected = 0, []
    for looked in range(1, len(wins) + 1):
        kept = [
            true
            for true in range(len(wins) + 1)
            if posterior_ratio_by_hand(len(wins), sum(wins[:looked]), looked, true) < 1 / alpha
        ]
        best = max(best, min(kept))
        expected.append(best)
    assert sequential.lower_bounds(wins, alpha).tolist() == expected


@pytest.mark.parametrize("alpha", [0.5, 0.2])
def test_sequence_holds_at_all_times_for_every_truth_by_enumeration(alpha):
    total, missed = 8, []
    for true in range(total + 1):
        orders = [np.isin(np.arange(total), places) for places in itertools.combinations(range(total), true)]
        missed.append(np.mean([sequential.lower_bounds(order, alpha).max() > true for order in orders]))
    assert max(missed) <= alpha
    assert max(missed) > 0  # else the bounds would be empty talk


def test_sequence_of_a_longer_audit_holds_with_95_percent():
    """The share of sequences that ever exceed the truth is at most 5 %: refuted only with a chance of 1e-6."""
    draws, total, tries = np.random.default_rng(5), 40, 800
    for true in (20, 30):
        wins = np.arange(total) < true
        missed = sum(sequential.lower_bounds(draws.permutation(wins), 0.05).max() > true for _ in range(tries))
        assert stats.binom.sf(missed - 1, tries, 0.05) > 1e-6


def test_bounds_end_at_the_truth_and_never_fall():
    wins = np.random.default_rng(1).random(40) < 0.7
    bounds = sequential.lower_bounds(wins, 0.05)
    assert bounds[-1] == wins.sum() and (np.diff(bounds) >= 0).all()
    assert (sequential.lower_bounds(wins, 0.2) >= bounds).all()  # less certainty, higher bounds


def exact_false_detections(count, p):
    """P(detected) when every comparison is a fair coin, over all 2 ** count outcomes."""
    return np.mean(
        [
            sequential.sequential_test(np.array(coins, dtype=bool), p)[0]
            for coins in itertools.product((0, 1), repeat=count)
        ]
    )


@pytest.mark.parametrize("count", [2, 5, 6, 10])
@pytest.mark.parametrize("p", [0.05, 0.2])
def test_innocent_models_are_accused_at_most_with_probability_p(count, p):
    threshold, alpha = sequential.decision_threshold(count, p)
    rate = exact_false_detections(count, p)
    assert rate <= p
    if threshold is None:
        assert rate == 0 and 0.5**count >= p
    else:
        assert alpha == pytest.approx(p - stats.binom.sf(threshold - 1, count, 0.5))
        assert rate >= stats.binom.sf(threshold - 1, count, 0.5)  # after all comparisons the count is known exactly


def test_decision_threshold_by_hand():
    assert sequential.decision_threshold(5, 0.05) == (5, pytest.approx(0.05 - 1 / 32))
    assert sequential.decision_threshold(4, 0.05) == (None, 0.0)  # 1/16 is not rare enough
    assert sequential.decision_threshold(25, 0.05)[0] == 18  # P(W >= 17) = 0.0539, P(W >= 18) = 0.0216


def test_lower_bound_above_one_half_is_no_test():
    """What decision_threshold avoids: with all comparisons made, W > N / 2 happens to half of the innocent."""
    draws = np.random.default_rng(2)
    accused = [sequential.lower_bounds(draws.random(25) < 0.5, 0.05)[-1] > 12 for _ in range(400)]
    assert np.mean(accused) > 0.35


def test_sequential_test_stops_early_and_loses_with_the_wrong_sign():
    used, looked = sequential.sequential_test(np.ones(100, dtype=bool), 0.05)
    assert used and looked < 100
    assert sequential.sequential_test(np.zeros(100, dtype=bool), 0.05) == (False, 100)


def test_expected_detection_by_hand():
    assert twin_marks.expected_detection(5, 0.9, 0.05) == pytest.approx(0.9**5)  # all five are needed
    assert twin_marks.expected_detection(4, 1.0, 0.05) == 0.0
    assert twin_marks.expected_detection(250, 0.5, 0.05) < 0.05 < 0.99 < twin_marks.expected_detection(250, 0.65, 0.05)


def test_published_copy_wins_when_it_scores_higher():
    scores = np.array([[[2.0, 1.0], [2.0, 1.0]], [[-3.0, -1.0], [-1.0, -3.0]]])
    bits = np.array([[0, 1], [1, 1]])
    assert twin_marks.won(scores, bits, 1).tolist() == [[True, False], [True, False]]
    ties = twin_marks.won(np.zeros((200, 10, 2)), np.zeros((200, 10), dtype=int), 1)
    assert 0.4 < ties.mean() < 0.6


# --- twin copies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [None, "linear"])
def test_twin_copies_are_symmetrical_within_the_budget(network):
    images = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (6, 3, 16, 16), dtype=np.uint8))
    images[0], images[1] = 0, 255  # no room on one side: no change, rather than one copy off balance
    weight = torch.from_numpy(np.random.default_rng(4).normal(size=(3 * 16 * 16, 5)).astype(np.float32))
    module = None if network is None else lambda values: (values / 255).flatten(1) @ weight
    copies = twin_marks.twin_copies(images, np.arange(6), b"key", module).to(torch.int64)
    first, second = copies[:, 0] - images, copies[:, 1] - images
    assert torch.equal(first, -second)
    assert first.abs().max() == twin_marks.BUDGET and (first[:2] == 0).all()
    room = torch.minimum(images, 255 - images).clamp_max(twin_marks.BUDGET).to(torch.int64)
    assert (first.abs() <= room).all()
    assert network or torch.equal(first.abs(), room)  # the pattern uses the whole budget
    again = twin_marks.twin_copies(images, np.arange(6), b"key", module)
    assert torch.equal(copies, again.to(torch.int64))


def test_a_network_moves_the_copies_farther_apart_in_its_features():
    images = torch.randint(60, 190, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    weight = torch.randn(3 * 16 * 16, 2, generator=torch.Generator().manual_seed(2))

    def features(values):
        return torch.tanh((values / 255).flatten(1) @ weight / 20)

    def gap(network):
        copies = twin_marks.twin_copies(images, np.arange(4), b"key", network).float()
        return (features(copies[:, 0]) - features(copies[:, 1])).norm(dim=1)

    assert (gap(features) > 2 * gap(None)).all()


def test_owners_share_no_image_unless_they_may():
    first, second = twin_marks.draw_owners(np.arange(100, 200), [(5, 10), (10, 5)], 1, "owners")
    rows = np.concatenate([first.rows.ravel(), second.rows.ravel()])
    assert sorted(rows) == list(range(100, 200)) and first.rows.shape == (5, 10) and second.rows.shape == (10, 5)
    assert 0.3 < np.concatenate([first.bits.ravel(), second.bits.ravel()]).mean() < 0.7
    (shared,) = twin_marks.draw_owners(np.arange(20), [(30, 10)], 1, "controls", shared=True)
    assert all(len(set(own)) == 10 for own in shared.rows)
    with pytest.raises(UserError, match="--owners 5"):
        twin_marks.draw_owners(np.arange(49), [(5, 10)], 1, "owners")


def test_copy_scores_average_the_augmented_queries():
    """A model that sees only one corner pixel: the mean is that over the crops and flips, counted here one by one."""
    image = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    image[:, :, 0, 0] = 200

    def query(images):
        return torch.stack([images[:, 0, 0, 0].float(), torch.full((len(images),), 100.0)], 1)

    found = twin_marks.copy_scores(query, image, torch.tensor([0]), 7, 40)
    draws = utils.key_generator(7, "audit's augmentations")
    shifts, flips = draws.integers(0, 9, (40, 2)), draws.random(40) < 0.5
    shifts[0], flips[0] = 4, False
    hits = sum(tuple(shift) == (4, 4) and not flip for shift, flip in zip(shifts, flips, strict=True))
    assert found["label-only"].tolist() == [hits / 40]
    assert found["probabilities"][0] == pytest.approx(-100 * (40 - hits) / 40)


# --- Wenger et al.'s verification ------------------------------------------------------------------------------------


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


# --- Tramer et al.'s poisons -----------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
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


# --- what they share -------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_setup(tmp_path, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["method.py", *TINY, "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    )
    return common.start(common.parse(common.parser("")))


def test_a_model_is_trained_once_and_named_by_images_and_labels(tiny_setup, tmp_path, monkeypatch):
    images, labels = common.base_images(tiny_setup)
    query, _ = common.model(tiny_setup, "first", images, labels)
    monkeypatch.setattr(utils, "train_model", None)  # a second training would fail
    again, record = common.model(tiny_setup, "second", images, labels)
    assert torch.equal(query(images[:4]), again(images[:4])) and record["classes"] == 99
    assert [one["name"] for one in tiny_setup.models] == ["first", "second"]
    with pytest.raises(TypeError):  # other labels on the same images are another model
        common.model(tiny_setup, "third", images, labels.roll(1))
    assert len(list((tmp_path / "work").glob("*/model.safetensors"))) == 1


def test_images_are_put_where_their_rows_are(tiny_setup):
    images, _ = common.base_images(tiny_setup)
    rows = tiny_setup.splits.train[[5, 2]].numpy()
    new = torch.stack([torch.full_like(images[0], 7), torch.full_like(images[0], 9)])
    changed = common.with_images(tiny_setup, images, rows, new)
    assert (changed[5] == 7).all() and (changed[2] == 9).all()
    kept = [place for place in range(len(images)) if place not in (2, 5)]
    assert torch.equal(changed[kept], images[kept])
    with pytest.raises(ValueError, match="training images"):
        common.with_images(tiny_setup, images, tiny_setup.splits.non_member[:2].numpy(), new)


def test_fewer_samples_of_the_same_users_keep_their_marks(tiny_setup):
    users = tiny_setup.groups["target"]
    fewer = common.with_samples(users, 2)
    whole = common.published(tiny_setup, users, tiny_setup.stage.marking).reshape(3, 3, 3, 32, 32)
    some = common.published(tiny_setup, fewer, tiny_setup.stage.marking).reshape(3, 2, 3, 32, 32)
    assert torch.equal(whole[:, :2], some)
    assert torch.equal(whole, setup.marked_images(tiny_setup.stage))
    with pytest.raises(UserError, match="--samples 4"):
        common.with_samples(users, 4)


def test_rows_of_an_audit_by_hand():
    member, other = np.array([[1.0, 3.0], [2.0, 2.0]]), np.array([[5.0, 0.0], [9.0, 9.0], [2.0, 2.0], [8.0, 0.5]])
    rows = {row["figure"]: row for row in common.audit_rows("here", member, other, "set", 0.5, {"AUC": 0.9})}
    assert (rows["FPR@100%TPR"]["hits"], rows["FPR@100%TPR"]["of"]) == (1, 4)  # means 2, 2 against 2.5, 9, 2, 4.25
    assert (rows["TPR@50%FPR"]["hits"], rows["TPR@50%FPR"]["of"]) == (2, 2)
    assert rows["AUC"]["value"] == 7 / 8 and rows["AUC"]["paper"] == 0.9
    by_instance = {row["figure"]: row for row in common.audit_rows("here", member, other, "instance")}
    assert by_instance["FPR@100%TPR"]["hits"] == 4  # 0, 2, 2 and 0.5 are not above the largest, 3


# --- merging seeds ---------------------------------------------------------------------------------------------------


def write_result(folder, seed, hits, auc):
    rows = [common.rate("a", "FPR", hits, 10, 0.5), common.rate("b", "FPR", 9, 10), common.row("a", "AUC", auc)]
    claims = [
        common.claim("a below b", ("a", "FPR"), "<", ("b", "FPR")),
        common.claim("a high", ("a", "AUC"), ">", 0.75),
        common.claim("gone", ("c", "FPR"), "<", 1),
    ]
    files.write_json(
        folder / f"made-seed{seed}" / "result.json",
        {
            "method": "made",
            "rows": rows,
            "claims": claims,
            "models": [{"train_accuracy": 0.9}],
            "notes": [],
            "settings": {"dataset": "x", "net_type": "y", "train_size": 1, "epoch": 2, "seed": seed},
            "hardware": "none",
            "versions": {},
        },
    )


def test_seeds_are_pooled_and_conclusions_judged(tmp_path, script):
    for seed, hits, auc in ((1, 0, 0.7), (2, 1, 0.9), (3, 2, 0.8)):
        write_result(tmp_path, seed, hits, auc)
    done = script("_summary", "--folder", tmp_path)
    assert done.code == 0, done.err
    merged = json.loads((tmp_path / "comparison.json").read_text())["made"]
    rows = {(row["setting"], row["figure"]): row for row in merged["rows"]}
    assert (rows["a", "FPR"]["hits"], rows["a", "FPR"]["of"], rows["a", "FPR"]["paper"]) == (3, 30, 0.5)
    assert rows["a", "FPR"]["interval"] == pytest.approx([stats.beta.ppf(0.025, 3, 28), stats.beta.ppf(0.975, 4, 27)])
    assert rows["a", "AUC"]["value"] == pytest.approx(0.8) and rows["a", "AUC"]["interval"] == [0.7, 0.9]
    assert [(one["agrees"], one["clear"]) for one in merged["conclusions"]] == [
        (True, True),
        (True, False),
        (None, None),
    ]
    assert "| a below b | 10.00 % < 90.00 % | yes |" in (tmp_path / "comparison.md").read_text()
    assert "yes, within the intervals" in done.out and (tmp_path / "comparison.csv").exists()


def test_wrong_order_is_a_no(tmp_path):
    rows = [common.rate("a", "FPR", 9, 10), common.rate("b", "FPR", 1, 10)]
    (judged,) = summary.judge([common.claim("a below b", ("a", "FPR"), "<", ("b", "FPR"))], rows)
    assert judged["agrees"] is False and summary.verdict(judged) == "no"
    (equal,) = summary.judge([common.claim("less", ("a", "FPR"), "<", ("a", "FPR"))], rows)
    assert equal["agrees"] is False


@pytest.mark.parametrize(("changed", "message"), [({"epoch": 3}, "epoch"), ({"seed": 1}, "same seed")])
def test_results_that_do_not_belong_together_are_refused(tmp_path, script, changed, message):
    write_result(tmp_path, 1, 0, 0.7)
    write_result(tmp_path, 2, 0, 0.7)
    path = tmp_path / "made-seed2" / "result.json"
    result = json.loads(path.read_text())
    files.write_json(path, {**result, "settings": {**result["settings"], **changed}})
    done = script("_summary", "--folder", tmp_path)
    assert done.code == 2 and message in done.err and len(done.err.strip().splitlines()) == 1


# --- from end to end -------------------------------------------------------------------------------------------------

CASES = {
    "mislabeled": ("--samples", "2", "3", "--poisons", "2"),
    "isotopes": ("--ratios", "0.6", "--features", "4", "--auxiliary", "10", "--ood_pattern", "BANK"),
    "twin_marks": ("--owners", "2", "--shares", "0.02", "0.01", "--augmentations", "2"),
    "lira": ("--models", "6"),
}
PLOTS = {
    "mislabeled": ["fig16.png"],
    "isotopes": ["fig14.png", "fig15.png", "trade-off.png"],
    "twin_marks": ["detection.png"],
    "lira": ["fig3.png"],
}


@pytest.fixture(scope="module")
def outlier_folder(tmp_path_factory):
    from PIL import Image

    folder, draws = tmp_path_factory.mktemp("bank"), np.random.default_rng(6)
    for number in range(12):
        Image.fromarray(draws.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


@pytest.mark.parametrize("method", CASES)
def test_method_from_end_to_end(method, tmp_path, work, outlier_folder, script, monkeypatch):
    flags = [str(outlier_folder) if flag == "BANK" else flag for flag in CASES[method]]
    call = (method, *TINY, *flags, "--out", tmp_path, "--work", work)
    monkeypatch.setattr(twin_marks, "CONTROLS", 20)
    done = script(*call)
    assert done.code == 0, done.err
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["method"] == method and result["settings"]["epoch"] == 1 and result["versions"]["torch"]
    assert {path.name for path in tmp_path.iterdir()} == {"result.json", "scores.npz", *PLOTS[method]}
    known = {(row["setting"], row["figure"]) for row in result["rows"]}
    assert len(known) == len(result["rows"])
    for row in result["rows"]:
        assert "of" not in row or row["interval"] == utils.clopper_pearson(row["hits"], row["of"])
    # Every conclusion is about rows that are there.
    sides = [
        tuple(side) for claim in result["claims"] for side in (claim["left"], claim["right"]) if isinstance(side, list)
    ]
    assert sides and set(sides) <= known
    assert str(tmp_path / "result.json") in done.out.splitlines()[-1]
    # Again, with the models that are there: the same figures.
    monkeypatch.setattr(utils, "train_model", None)
    assert script(*call).code == 0
    assert json.loads((tmp_path / "result.json").read_text())["rows"] == result["rows"]


def test_methods_share_their_models(work):
    """mislabeled, isotopes: the unmarked and the marked model are the same; run after the tests above."""
    if not any(work.iterdir()):
        pytest.skip("needs the models of test_method_from_end_to_end")
    # mislabeled: unmarked, 2 x poisoned, 2 x marked; isotopes: one; twin_marks: two; lira: six.
    assert len(list(work.glob("*/model.safetensors"))) == 5 + 1 + 2 + 6


@pytest.mark.parametrize(
    ("method", "flags", "message"),
    [
        ("mislabeled", ("--samples", "9"), "--samples 9"),
        ("lira", ("--models", "7"), "--models 7"),
        ("isotopes", ("--features", "400", "--ood_pattern", "BANK"), "--features"),
        ("isotopes", ("--ood_pattern", "/nowhere"), "/nowhere"),
        ("twin_marks", ("--shares", "0.3", "--owners", "9"), "--owners 9"),
        ("twin_marks", ("--features", "/nowhere"), "/nowhere"),
        ("lira", ("--countermeasure", "hamp"), "--countermeasure"),
    ],
)
def test_bad_input_is_one_line(method, flags, message, tmp_path, outlier_folder, script):
    flags = [str(outlier_folder) if flag == "BANK" else flag for flag in flags]
    done = script(method, *TINY, *flags, "--out", tmp_path, "--work", tmp_path / "work")
    assert done.code == 2 and message in done.err and len(done.err.strip().splitlines()) == 1
    assert not (tmp_path / "work").exists()


def test_quick_settings_give_way_to_flags(tmp_path, monkeypatch):
    def parsed(*flags):
        monkeypatch.setattr(sys, "argv", ["x.py", "--quick", "1", *flags])
        return common.parse(common.parser(""), {"epoch": 33}, {"epoch": 44})

    assert (parsed().dataset, parsed().epoch, parsed().train_size) == ("photos", 44, 1000)
    other = parsed("--dataset", "cifar10", "--train_size", "700")
    assert (other.dataset, other.epoch, other.train_size, other.net_type) == ("cifar10", 33, 700, "smallnet")


@pytest.mark.skipif(sys.platform == "win32", reason="needs bash")
def test_comparison_script_runs_what_is_asked_for(tmp_path, work):
    """One method; flags in EXTRA win over those of QUICK; the table of conclusions comes last."""
    environment = {
        **os.environ,
        "QUICK": "1",
        "METHODS": "lira",
        "SEEDS": "2",
        "RES_FOLDER": str(tmp_path / "res"),
        "WORK": str(work),
        "PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "EXTRA": f"{' '.join(TINY)} --models 6 --train_size 150",
    }
    done = subprocess.run(
        ["bash", str(ROOT / "comparison.sh")], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "res" / "comparison"
    assert {path.name for path in folder.iterdir()} == {
        "lira-seed2",
        *(f"comparison.{end}" for end in ("md", "csv", "json")),
    }
    assert json.loads((folder / "comparison.json").read_text())["lira"]["seeds"] == [2]
    assert json.loads((folder / "lira-seed2" / "result.json").read_text())["settings"]["train_size"] == 150
    lines = done.stdout.splitlines()
    assert any("shadow models lower FPR@100%TPR" in line for line in lines[-7:]) and lines[-1].startswith("tables: ")
