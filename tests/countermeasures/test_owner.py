"""An owner who knows the tool: detection of marks, refusal and de-striping, and all of it through train.py."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.ensemble import GradientBoostingClassifier

import countermeasures
import utils
from countermeasures import marked_queries, stripes
from countermeasures.marked_queries import RefuseMarked
from countermeasures.stripes import DestripeQueries, DestripeTraining
from tests.parts import SMALL, call

NAMES = ("destripe_queries", "destripe_training", "refuse_marked")


def pictures(count, side=32, seed=0):
    """Smooth shades with coloured shapes and texture, as photographs have them: uint8 (count, 3, side, side)."""
    draws = torch.Generator().manual_seed(seed)

    def field(cells, channels=3):
        coarse = torch.rand(count, channels, cells, cells, generator=draws)
        return F.interpolate(coarse, (side, side), mode="bicubic")

    inside = (field(4, 1) > 0.5).float()
    colours = torch.rand(2, count, 3, 1, 1, generator=draws)
    texture = (torch.rand(count, 1, side, side, generator=draws) - 0.5) * torch.rand(count, 1, 1, 1, generator=draws)
    image = field(3) * 0.6 + colours[0] * inside + colours[1] * (1 - inside) * 0.7 + 0.3 * texture - 0.25
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


MARKING = utils.Marking()


def marked(images, marking=MARKING, key=b"a user's key, never the owner's."):
    """As users mark them, every image another user's."""
    return utils.mark_images(images, key, np.arange(len(images)), np.zeros(len(images), int), marking)


def psnr(images, others):
    error = (images.double() - others.double()).square().mean((1, 2, 3)).clamp_min(1e-6)
    return 10 * (255**2 / error).log10()


@pytest.fixture(scope="module")
def detector():
    return marked_queries.fit_detector(pictures(400, seed=1), 1)


# --- detection --------------------------------------------------------------------------------------------------------


def test_marks_of_other_keys_are_detected_and_pictures_are_not(detector):
    """Wrong: a detector that flags always, or never, or knows its own keys alone."""
    images = pictures(500, seed=2)
    assert marked_queries.flagged(marked(images), detector).float().mean() > 0.97
    assert marked_queries.flagged(images, detector).float().mean() < 0.03
    assert detector["detected"] > 0.97 and detector["false_alarms"] <= 0.01


def test_every_image_that_a_detector_learns_from_has_a_key_of_its_own():
    """Wrong: one key for all, whose stripes the detector would know by heart."""
    same = pictures(1).expand(12, -1, -1, -1)
    first, again, other = (marked_queries.own_marks(same, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    # Without their noise, which differs under one key, too: most stripes of any two images have other colours.
    colours = stripes._decoded(first, 0.3)[1]
    apart = (colours[:, None] - colours[None]).abs().amax(3) > 4
    assert apart.float().mean(2)[~torch.eye(12, dtype=torch.bool)].min() > 0.3


def test_a_detector_of_larger_images():
    learned = marked_queries.fit_detector(pictures(60, 224, seed=3), 1)
    images = pictures(40, 224, seed=4)
    assert marked_queries.flagged(marked(images), learned).float().mean() > 0.9
    assert marked_queries.flagged(images, learned).float().mean() < 0.1


def test_the_detector_follows_from_the_seed(detector):
    again, other = (marked_queries.fit_detector(pictures(400, seed=1), seed) for seed in (1, 2))
    assert all(torch.equal(again[name], detector[name]) for name in detector)
    assert not torch.equal(other["threshold"], detector["threshold"])


def test_what_can_not_be_told_apart_costs_no_more_false_alarms_than_allowed(monkeypatch):
    """Marks that one hardly sees, and 200 pictures: without the limit, a third of all pictures would be refused."""
    monkeypatch.setattr(marked_queries, "MARKING", utils.Marking(0.99, "perlin", 1.0))
    images = pictures(500, seed=5)
    for allowed in (0.02, 0.2):
        learned = marked_queries.fit_detector(images, 1, allowed)
        assert learned["false_alarms"] <= allowed
        assert marked_queries.flagged(pictures(500, seed=6), learned).float().mean() <= allowed + 0.05


def test_features_are_of_each_image_alone():
    """Wrong: a statistic over the batch."""
    images = torch.cat([pictures(10, 48), marked(pictures(10, 48))])
    whole = marked_queries.features(images)
    assert whole.shape == (20, len(marked_queries.FEATURES)) and whole.isfinite().all()
    alone = torch.cat([marked_queries.features(image[None]) for image in images])
    assert torch.allclose(whole, alone, atol=1e-4)
    blank = torch.stack([torch.full((3, 32, 32), value, dtype=torch.uint8) for value in (0, 255)])
    assert marked_queries.features(blank).isfinite().all()


@pytest.mark.parametrize("side", [32, 50, 224])
def test_features_measure_what_their_names_say(side):
    images = pictures(20, side, seed=7)
    noise, lines = (marked(images, utils.Marking(*kind)) for kind in ((1.0, "perlin", 8.0), (0.7, "none")))
    both = marked(images)
    plain, noisy, striped, full = map(marked_queries.features, (images, noise, lines, both))
    place = {name: number for number, name in enumerate(marked_queries.FEATURES)}

    def mean(values, name):
        return float(values[:, place[name]].mean())

    evidence = [mean(values, "stripe evidence") for values in (plain, noisy)]
    assert mean(striped, "stripe evidence") > 1 > -0.5 > max(evidence)
    for name in ("chroma jumps at stripes", "luminance jumps at stripes"):
        assert mean(striped, name) > mean(plain, name) + 0.1
    assert mean(full, "excess of these steps") > mean(striped, "excess of these steps") + 0.05
    assert mean(striped, "darkest value") > 36 and mean(striped, "brightest value") < 230
    assert mean(full, "grey steps as high as the noise") > mean(plain, "grey steps as high as the noise")
    assert mean(noisy, "colour of fine detail") < mean(plain, "colour of fine detail")
    assert mean(striped, "contrast") < mean(plain, "contrast") - 0.2


def test_tensors_are_the_trees_of_scikit_learn(monkeypatch):
    """Also of trees that stop early: with two images a leaf, and a feature that decides alone."""
    draws = np.random.default_rng(0)
    values = draws.normal(size=(300, 9)).astype(np.float32)
    truth = (values[:, 0] + 0.3 * draws.normal(size=300) > 0) | (values[:, 3] > 2)
    trees = GradientBoostingClassifier(n_estimators=12, max_depth=marked_queries.DEPTH, min_samples_leaf=40)
    trees.fit(values, truth)
    assert any(tree.tree_.node_count < 15 for (tree,) in trees.estimators_)
    monkeypatch.setattr(marked_queries, "features", lambda images: images)
    found = marked_queries.scores(torch.from_numpy(values), marked_queries._tensors(trees)).numpy()
    expected = trees.decision_function(values)
    assert np.allclose(found - expected, (found - expected)[0], atol=1e-9) and np.ptp(found) > 1


# --- refusal ----------------------------------------------------------------------------------------------------------


def logits_of(images):
    return images.float().flatten(1)[:, :6] / 50 + 1


@pytest.mark.parametrize("answers", ["uniform", "none"])
def test_only_what_is_flagged_is_refused(detector, answers):
    images = torch.cat([pictures(30, seed=8), marked(pictures(30, seed=8))])[torch.randperm(60)]
    flagged = marked_queries.flagged(images, detector)
    assert 20 < flagged.sum() < 40
    defence = RefuseMarked(answers=answers)
    shown = defence.answer(logits_of, 1, detector)(images)
    assert torch.equal(shown[~flagged], logits_of(images)[~flagged])
    assert shown[flagged].isnan().all() if answers == "none" else (shown[flagged].std(1) == 0).all()
    assert defence.refuses == (answers == "none")


# --- de-striping ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [32, 50, 224])
def test_destriping_recovers_the_picture_without_stripes(side):
    images = pictures(60, side, seed=9)
    striped = marked(images)
    noisy = marked(images, utils.Marking(1.0)).float()
    colours = utils.outlier_features(b"a user's key, never the owner's.", np.arange(60), side, side)
    unstriped = 0.7 * noisy + 0.3 * colours.mean(2, keepdim=True)
    before, after = psnr(striped, unstriped), psnr(stripes.flattened(striped), unstriped)
    assert (after > before).float().mean() > 0.95 and (after - before).mean() > 5


def test_destriping_leaves_unmarked_pictures_nearly_alone():
    for images in (pictures(200, seed=10), marked(pictures(200, seed=10), utils.Marking(1.0))):
        kept = stripes.flattened(images)
        assert kept.dtype == torch.uint8 and psnr(kept, images).quantile(0.1) > 38
        assert (kept == images).flatten(1).all(1).float().mean() > 0.7


def test_stripes_of_another_share_are_taken_out_too():
    images = pictures(100, 64, seed=11)
    striped = marked(images, utils.Marking(0.5, "none"))
    colours = utils.outlier_features(b"a user's key, never the owner's.", np.arange(100), 64, 64)
    unstriped = 0.5 * images + 0.5 * colours.mean(2, keepdim=True)
    before = psnr(striped, unstriped)
    right, wrong = (psnr(stripes.flattened(striped, share), unstriped) for share in (0.5, 0.1))
    assert (right - before).mean() > 5 and (right - wrong).mean() > 3


def test_odd_heights_have_their_boundaries_where_marks_have_them():
    for height in (32, 33, 50, 224):
        stripe = np.arange(height) * utils.STRIPES // height
        assert stripes.boundaries(height).tolist() == (np.flatnonzero(np.diff(stripe)) + 1).tolist()


def test_queries_are_destriped_before_the_model_sees_them():
    images, seen = marked(pictures(8)), []
    kept = images.clone()
    DestripeQueries().answer(lambda batch: seen.append(batch) or logits_of(batch), 1)(images)
    assert torch.equal(seen[0], stripes.flattened(images)) and not torch.equal(seen[0], images)
    assert torch.equal(images, kept), "the caller's images stay"


@pytest.mark.parametrize("queries", [False, True])
def test_training_images_are_destriped_and_labels_are_not_touched(queries):
    images, labels, fitted = marked(pictures(8)), torch.arange(8), {}

    def fit(model, images=None, labels=None, **more):
        fitted.update(model=model, images=images, labels=labels)
        return ["history"]

    defence = DestripeTraining(queries=queries)
    assert defence.train(SimpleNamespace(model="it", images=images, labels=labels, fit=fit)) == ["history"]
    assert torch.equal(fitted["images"], stripes.flattened(images))
    assert fitted["model"] == "it" and (fitted["labels"] is None or torch.equal(fitted["labels"], labels))
    assert torch.equal(labels, torch.arange(8))
    answered = defence.answer(lambda batch: batch, 1)(images)
    assert torch.equal(answered, stripes.flattened(images) if queries else images)


# --- through train.py -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_stored_name_means_the_same_settings(name):
    first = countermeasures.parse(name)
    assert countermeasures.parse(str(first)) == first and str(first).startswith(name)


def test_a_refusing_model_is_audited_and_opened_again(finished_run, tmp_path, script):
    """Its detector is in the file of the model: another process refuses the same queries."""
    out, again = tmp_path / "run", tmp_path / "again"
    flags = ("--countermeasure", "refuse_marked:share=0.5,answers=none", "--base_model", finished_run)
    done = script("train", *SMALL, "--out", out, *flags)
    assert done.code == 0, done.err
    done = call("eval.py", "--checkpoint", out, "--out", again)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((folder / "result.json").read_text()) for folder in (out, again))
    assert first["audit"] == second["audit"] and first["verdict"] == second["verdict"]
    assert first["countermeasure"]["detected"] > 0.8 and first["countermeasure"]["false_alarms"] <= 0.1
    base = json.loads((finished_run / "result.json").read_text())
    assert first["accuracy"]["test"] > base["accuracy"]["test"] - 0.1
    with np.load(out / "losses.npz") as ours:
        uniform = np.isclose(ours["non_member_cross_entropy"], np.log(base_classes(base, finished_run)))
        assert uniform.mean() > 0.8 and not uniform.all()


def base_classes(result, folder):
    from safetensors.torch import load_file

    return len(load_file(folder / "model.safetensors")["classifier.weight"])


def test_destriped_queries_are_those_of_the_same_model(finished_run, tmp_path, script):
    out = tmp_path / "run"
    done = script("train", *SMALL, "--out", out, "--countermeasure", "destripe_queries", "--base_model", finished_run)
    assert done.code == 0, done.err
    with np.load(out / "losses.npz") as ours, np.load(finished_run / "losses.npz") as theirs:
        assert np.array_equal(ours["non_member_samples"], theirs["non_member_samples"])
        assert not np.allclose(ours["target_cross_entropy"], theirs["target_cross_entropy"])


def test_a_model_of_destriped_images_is_another_one(finished_run, tmp_path, script):
    out = tmp_path / "run"
    done = script("train", *SMALL, "--out", out, "--countermeasure", "destripe_training:queries=true")
    assert done.code == 0, done.err
    from safetensors.torch import load_file

    ours, theirs = (load_file(folder / "model.safetensors") for folder in (out, finished_run))
    assert ours.keys() == theirs.keys() and not torch.equal(ours["classifier.weight"], theirs["classifier.weight"])
    with np.load(out / "marks.npz") as marks, np.load(finished_run / "marks.npz") as same:
        assert np.array_equal(marks["images"], same["images"]), "what users published does not change"
