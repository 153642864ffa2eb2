"""Detectors of marked images: known distances, planted directions, outliers that score higher."""

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu, norm
from sklearn.covariance import EmpiricalCovariance

import utils
from detection import detectors
from detection import input_detection as script
from kit.errors import UserError
from tests.detection.parts import CLASSES, needs_library, photos


@pytest.fixture(scope="module")
def clusters():
    """Features float32 (N, D) around three far corners, labels, the head that tells them apart, and outliers."""
    draws = np.random.default_rng(0)
    centres = 6 * np.eye(CLASSES, 8)
    labels = np.arange(1500) % CLASSES
    near = centres[labels] + draws.normal(size=(1500, 8))
    # Between the classes and off to a side that no class uses.
    far = centres.mean(0) + 6 * np.eye(8)[5] + draws.normal(size=(400, 8))
    head = detectors.Head(torch.from_numpy(np.float32(np.eye(CLASSES, 8))), torch.full((CLASSES,), -2.0))
    features, outliers = (torch.from_numpy(np.float32(part)) for part in (near, far))
    return features, torch.from_numpy(labels), head, outliers


def auc(high, low):
    """Independent of scikit-learn: the Mann-Whitney statistic."""
    return mannwhitneyu(high, low).statistic / (len(high) * len(low))


# --- Detectors ---


@needs_library
@pytest.mark.parametrize("name", detectors.UNSUPERVISED)
def test_every_detector_scores_outliers_higher(name, clusters):
    features, labels, head, outliers = clusters
    score = detectors.fit_detector(name, features[:900], labels[:900], head)
    inside, outside = score(features[900:]), score(outliers)
    assert inside.dtype == np.float64 and inside.shape == (600,)
    # KL matching sees posteriors alone, and the outliers' are as flat as some near images'.
    assert auc(outside, inside) > (0.7 if name == "KLMatching" else 0.9)


@needs_library
def test_mahalanobis_is_the_distance_to_the_nearest_class(clusters):
    features, labels, head, outliers = clusters
    score = detectors.fit_detector("Mahalanobis", features[:900], labels[:900], head)
    centred = np.concatenate(
        [features[:900][labels[:900] == k] - features[:900][labels[:900] == k].mean(0) for k in range(CLASSES)]
    )
    shape = EmpiricalCovariance(assume_centered=True).fit(np.float64(centred))
    wanted = np.min(
        [
            shape.mahalanobis(np.float64(outliers) - np.float64(features[:900][labels[:900] == k].mean(0)))
            for k in range(CLASSES)
        ],
        axis=0,
    )
    found = score(outliers)
    # The library has half the distance, and the sum of outer products in place of their mean.
    assert np.allclose(found * 2 * 900, wanted, rtol=1e-3)


@needs_library
def test_known_auc_of_a_shifted_gaussian():
    """One class, unit covariance in one dimension that matters: energy of a linear head has AUC Phi(d / sqrt 2)."""
    draws, shift = torch.Generator().manual_seed(0), 1.5
    clean, marked = torch.randn(4000, 2, generator=draws), torch.randn(4000, 2, generator=draws)
    marked[:, 0] -= shift  # less evidence for every class: higher energy
    head = detectors.Head(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.zeros(2))
    score = detectors.fit_detector("Energy", clean, torch.zeros(4000, dtype=torch.int64), head)
    found = detectors.detection(score(marked), score(clean), b"key", 200)
    assert found["auc"] == pytest.approx(norm.cdf(shift / 2**0.5), abs=0.01)
    assert found["interval"][0] < norm.cdf(shift / 2**0.5) < found["interval"][1]
    assert found["tpr_at_5_fpr"] == pytest.approx(norm.sf(norm.isf(0.05) - shift), abs=0.05)


def test_detection_counts_ties_as_half_and_knows_its_sign():
    assert detectors.detection([1.0, 1.0], [1.0, 1.0, 1.0], b"key", 10)["auc"] == 0.5
    assert detectors.detection([2.0, 3.0], [0.0, 1.0], b"key", 10)["auc"] == 1.0
    lost = detectors.detection([0.0, 1.0], np.arange(2, 42), b"key", 10)
    assert lost["auc"] == 0.0 and lost["tpr_at_5_fpr"] == 0.0
    assert lost["roc"][0] == 0.0 and lost["roc"][-1] == 1.0 and lost["roc"][50] == 0.0


def test_detection_rate_allows_five_of_a_hundred_clean_images():
    clean = np.arange(100.0)
    found = detectors.detection([93.0, 94.5, 95.5, 200.0], clean, b"key", 10)
    # 95..99 are five of a hundred: whatever is above 94 may be called marked.
    assert found["tpr_at_5_fpr"] == 0.75
    assert found["tpr_interval"][0] < 0.75 < found["tpr_interval"][1]


def test_bootstrap_interval_is_that_of_resampled_aucs():
    draws = np.random.default_rng(1)
    marked, clean = draws.normal(0.5, 1, 60).round(1), draws.normal(0, 1, 80).round(1)  # rounded: with ties
    found = detectors._bootstrap(marked, clean, np.random.default_rng(2), 20)
    again = np.random.default_rng(2)
    for value in found:
        ours, theirs = again.integers(0, 60, 60), again.integers(0, 80, 80)
        assert value == pytest.approx(auc(marked[ours], np.sort(clean)[theirs]))
    same = [detectors.detection(marked, clean, b"key", 50)["interval"] for _ in range(2)]
    assert same[0] == same[1] and same[0][0] < auc(marked, clean) < same[0][1]


def test_fit_head_answers_in_the_units_of_the_features(clusters):
    features, labels, _, _ = clusters
    scaled = features * torch.tensor([1.0, 10, 100, 1, 1, 1, 0.01, 1]) + 5
    head = detectors.fit_head(scaled[:900], labels[:900])
    assert (head.logits(scaled[900:]).argmax(1) == labels[900:]).float().mean() > 0.97
    two = labels < 2
    head = detectors.fit_head(features[two], labels[two])
    assert head.weight.shape == (2, 8) and (head.logits(features[two]).argmax(1) == labels[two]).float().mean() > 0.97


def test_classes_that_are_too_small_are_named():
    labels = torch.tensor([0] * 30 + [1] * 4 + [2] * 30)
    with pytest.raises(UserError, match="class 1 has 4 of the 64"):
        detectors.check_classes(labels, 3)
    with pytest.raises(UserError, match="class 3 has 0"):
        detectors.check_classes(torch.arange(3).repeat(20), 4)
    detectors.check_classes(torch.arange(3).repeat(5), 3)


# --- Neural PCA ---


def test_alphas_of_all_components_sum_to_the_logit():
    draws = torch.Generator().manual_seed(3)
    features, labels = torch.randn(400, 6, generator=draws).abs(), torch.arange(400) % 2
    head = detectors.Head(torch.randn(2, 6, generator=draws), torch.randn(2, generator=draws))
    found = detectors.NeuralPCA(features, labels, head)
    for label in (0, 1):
        own = features[labels == label]
        logits = head.logits(features)[:, label]
        wanted = logits - head.logits(own.mean(0, keepdim=True))[0, label]
        assert torch.allclose(found.alphas(features, label).sum(1), wanted.double(), atol=1e-4)


def test_neural_pca_finds_the_planted_direction():
    """Class 0 varies along e0 (deviation 3) and e1 (1), weighted 1 and 2: psi deviates by 3 and 2 along these axes."""
    draws = torch.Generator().manual_seed(4)
    features = torch.randn(2000, 2, generator=draws) * torch.tensor([3.0, 1.0])
    head = detectors.Head(torch.tensor([[1.0, 2.0]]), torch.zeros(1))
    labels = torch.zeros(2000, dtype=torch.int64)
    found = detectors.NeuralPCA(features, labels, head)
    alphas = found.alphas(torch.tensor([[30.0, 0.0], [0.0, 8.0], [0.0, -8.0]]), 0)
    assert torch.allclose(alphas, torch.tensor([[30.0, 0.0], [0.0, 16.0], [0.0, -16.0]], dtype=torch.float64), atol=3)
    scores = found.scores(torch.tensor([[30.0, 0.0], [0.0, 8.0], [0.0, -80.0]]), labels[:3])
    # In deviations 10, 8, and near 0: what pushes the logit down is not spurious evidence for the class.
    assert scores[:2] == pytest.approx([10, 8], rel=0.1) and scores[2] < 5


def test_neural_pca_judges_an_image_by_its_own_class():
    draws = torch.Generator().manual_seed(5)
    features, labels = torch.randn(600, 4, generator=draws), torch.arange(600) % 2
    features[labels == 1] += 50
    head = detectors.Head(torch.ones(2, 4), torch.zeros(2))
    found = detectors.NeuralPCA(features, labels, head)
    right, wrong = found.scores(features, labels), found.scores(features[labels == 1], torch.zeros(300, dtype=int))
    assert right.max() < 6 and wrong.min() > 20
    planted = features.clone()
    planted[:, 2] += 4
    assert auc(found.scores(planted, labels), right) > 0.9


# --- MCHAD ---


@needs_library
def test_mchad_separates_marks_it_knows_under_keys_it_does_not():
    images, labels = photos(240)
    settings = {**script.MCHAD_SETTINGS, "batch_size": 32, "epochs": 4, "seed": 1}
    marking = utils.Marking(0.5, "uniform", 60.0)
    score = detectors.train_mchad(images, labels, marking, settings, torch.device("cpu"))
    fresh = photos(90, seed=1)[0]
    marked = utils.mark_images(fresh, b"another key", np.arange(90), np.arange(90), marking)
    assert score(fresh).dtype == np.float64
    assert auc(score(marked), score(fresh)) > 0.95
    again = detectors.train_mchad(images, labels, marking, settings, torch.device("cpu"))
    assert np.array_equal(again(fresh), score(fresh))
