"""Input detection: the detectors' scores on features with known answers, who marks what, the script from end to end."""

import sys

import numpy as np
import pytest
import torch
from conftest import call
from PIL import Image
from scipy.stats import mannwhitneyu, norm
from sklearn.covariance import EmpiricalCovariance

import utils
from detection import detectors
from detection import input_detection as script
from experiment import training
from kit import files
from kit.errors import UserError, run_script
from networks import build_network

CLASSES, SIZE = 3, 32
needs_library = pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("pytorch_ood") is None, reason="pytorch-ood is not installed"
)


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


# ----------------------------------------------------------------------------------------------------------------------
# Detectors
# ----------------------------------------------------------------------------------------------------------------------


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


# ----------------------------------------------------------------------------------------------------------------------
# Neural PCA
# ----------------------------------------------------------------------------------------------------------------------


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


# ----------------------------------------------------------------------------------------------------------------------
# MCHAD
# ----------------------------------------------------------------------------------------------------------------------


def photos(count, seed=0):
    """Smooth images of three colours, one colour a class: uint8 (count, 3, 32, 32), labels."""
    draws, labels = np.random.default_rng(seed), np.arange(count) % CLASSES
    coarse = draws.integers(60, 140, (count, 3, 4, 4)).astype(np.float32)
    coarse[np.arange(count), labels] += 80
    images = torch.nn.functional.interpolate(torch.from_numpy(coarse), (SIZE, SIZE), mode="bilinear")
    return images.to(torch.uint8), torch.from_numpy(labels)


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


# ----------------------------------------------------------------------------------------------------------------------
# The script
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set of class folders, a checkpoint in the form of train.py's, and a folder of other images."""
    root = tmp_path_factory.mktemp("detection")
    images, labels = photos(360)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = root / "data" / f"class{label}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    others = root / "others"
    others.mkdir()
    for number, image in enumerate(np.random.default_rng(5).integers(0, 256, (8, SIZE, SIZE, 3), dtype=np.uint8)):
        Image.fromarray(image).save(others / f"{number}.png")
    with utils.seeded("test network"):
        model = build_network("smallnet", 5)
    files.save_model(
        root / "model.safetensors",
        model.state_dict(),
        {
            "settings": {
                "net_type": "smallnet",
                "image_size": SIZE,
                "epoch": 1,
                "lr": 0.1,
                "batch_size": 32,
                "seed": 1,
                "momentum": 0.9,
                "weight_decay": 0.0,
                "precision": "float32",
            },
            "classes": 5,
            "class_names": list("abcde"),
            "mean": (0.5,) * 3,
            "std": (0.25,) * 3,
        },
    )
    return root


def flags(folder, **more):
    chosen = {
        "dataset": "imagefolder",
        "data_root": folder / "data",
        "features": folder / "model.safetensors",
        "train_size": 200,
        "fit_share": 0.5,
        "num_of_multiTarget_diffCls": 4,
        "marked_samples_per_user": 5,
        "clean_images": 60,
        "ood_pattern": folder / "others",
        "mchad_epochs": 1,
        "device": "cpu",
        "out": folder / "out",
        **more,
    }
    return [
        word
        for name, value in chosen.items()
        for word in (f"--{name}", *(value if isinstance(value, list) else [value]))
    ]


@pytest.fixture
def start(monkeypatch, capsys):
    """Run the script in this process: exit code and the last line of stderr."""

    def run(words):
        monkeypatch.setattr(sys, "argv", ["input_detection.py", *map(str, words)])
        code = 0
        try:
            run_script(script.main)
        except SystemExit as stop:
            code = stop.code
        return code, (capsys.readouterr().err.strip().splitlines() or [""])[-1]

    return run


@needs_library
def test_script_from_end_to_end(folder, start):
    done = call("countermeasures/input_detection.py", *flags(folder, seed=[1, 2]))
    assert done.returncode == 0, done.stderr
    names = (*detectors.UNSUPERVISED, script.PCA, script.MCHAD)
    assert all(word in done.stdout for word in (*names, "0.8085", "0.6333", "0.66", "0.6181", "near 1"))
    results = []
    for seed in (1, 2):
        own = folder / "out" / f"seed-{seed}"
        results.append(files.read_json(own / "result.json"))
        assert results[-1]["images"] == {"fit": 100, "clean": 60, "marked": 20, "users": 4}
        assert len(results[-1]["rows"]) == (8 + 1 + 1) * 4  # two strengths, pictures, plain grey
        assert all(0 <= row["interval"][0] <= row["auc"] <= row["interval"][1] <= 1 for row in results[-1]["rows"])
        assert {"hardware", "seconds"} <= results[-1].keys() and "pytorch-ood" in results[-1]["versions"]
        assert all(Image.open(own / name).size[0] > 500 for name in ("unsupervised.png", "supervised.png"))
    summary = files.read_json(folder / "out" / "result.json")["summary"]
    best, mahalanobis = (
        next(one for one in summary if one["detector"] == name) for name in (script.BEST, "Mahalanobis")
    )
    assert best["auc"] == [
        max(
            row["auc"]
            for row in result["rows"]
            if row["marking"] == best["marking"] and row["detector"] in detectors.UNSUPERVISED
        )
        for result in results
    ]
    assert (best["paper_auc"], mahalanobis["paper_auc"], best["marking"]) == ("0.8085", None, "0.7, 8/255")

    # Deleted, a seed comes back with the same figures; the other one is taken up; another setting is refused by name.
    (folder / "out" / "seed-1" / "result.json").unlink()
    kept = (folder / "out" / "seed-2" / "result.json").stat().st_mtime_ns
    assert start(flags(folder, seed=[1, 2]))[0] == 0
    assert files.read_json(folder / "out" / "seed-1" / "result.json")["rows"] == results[0]["rows"]
    assert (folder / "out" / "seed-2" / "result.json").stat().st_mtime_ns == kept
    code, error = start(flags(folder, seed=1, clean_images=50))
    assert code == 2 and "clean_images is 60 there and 50 here" in error


@needs_library
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"features": "nowhere.safetensors"}, "nowhere.safetensors does not exist"),
        ({"ood_pattern": "nowhere"}, "'nowhere'"),
        ({"noise_norm": [8]}, "one value for each marking strength"),
        ({"fit_share": 0.05}, "of the 10 clean images"),
        ({"train_size": 350, "fit_share": 0.9}, "fit the detectors"),
        ({"marked_samples_per_user": 100}, "images to choose from"),
        ({"pretrained_weights": "x.pth"}, "leave it out"),
        ({"features": script.IMAGENET, "net_type": "torchvision:resnet50"}, "leave --net_type out"),
    ],
)
def test_bad_input_is_one_line(folder, change, words, start):
    code, error = start(flags(folder, **{"out": folder / "bad", **change}))
    assert code == 2 and error.startswith("error: ") and words in error
    assert not (folder / "bad").exists()


def test_a_missing_library_is_named(folder, monkeypatch, start):
    for name in ("pytorch_ood", "pytorch_ood.detector", "pytorch_ood.loss"):
        monkeypatch.setitem(sys.modules, name, None)
    code, error = start(flags(folder, out=folder / "bad"))
    assert code == 2 and "pip install 'pytorch-ood" in error


@pytest.fixture(scope="module")
def data(folder):
    from dataset import load_dataset

    return load_dataset("imagefolder", folder / "data")


SETTINGS = {
    "seed": 3,
    "train_size": 240,
    "num_of_multiTarget_diffCls": 5,
    "marked_samples_per_user": 6,
    "fit_share": 0.25,
    "clean_images": 1000,
    "img_blending_ratio": [0.7, 0.8],
    "noise_norm": [8.0, 4.0],
    "noise_injection_type": "perlin",
}


@pytest.mark.parametrize("seed", range(5))
def test_fit_set_clean_images_and_users_never_overlap(data, seed):
    chosen = script.draw_images(data, {**SETTINGS, "seed": seed})
    marked, clean, fit = set(chosen.users.samples.ravel()), set(chosen.clean), set(chosen.fit)
    assert len(marked) == 30 and len(fit) == 60 and len(clean) == 240 - 30  # all that are left of the training images
    assert not marked & clean and not marked & fit and not clean & fit
    assert np.array_equal(data.labels[chosen.users.samples[:, 0]], chosen.users.classes)
    assert len(set(chosen.users.classes)) == CLASSES
    again = script.draw_images(data, {**SETTINGS, "seed": seed})
    assert np.array_equal(again.fit, chosen.fit) and again.users.key == chosen.users.key
    other = script.draw_images(data, {**SETTINGS, "seed": seed + 1})
    assert not np.array_equal(other.fit, chosen.fit) and other.users.key != chosen.users.key


def test_marks_come_from_the_users_keys(data):
    chosen = script.draw_images(data, SETTINGS)
    strong, weak, grey = script.markings(SETTINGS, None, (SIZE, SIZE)).values()
    assert (strong.img_blending_ratio, strong.noise_norm, weak.img_blending_ratio, weak.noise_norm) == (0.7, 8, 0.8, 4)
    found = script.mark(data, chosen.users, strong)
    assert found.shape == (30, 3, SIZE, SIZE) and found.dtype == torch.uint8
    row = data.images[torch.from_numpy(chosen.users.samples[2, 4:5])]
    assert torch.equal(found[2 * 6 + 4], utils.mark_images(row, chosen.users.key, [2], [4], strong)[0])
    other = utils.Users(chosen.users.samples, chosen.users.classes, b"other")
    assert not torch.equal(found, script.mark(data, other, strong))
    originals = data.images[torch.from_numpy(chosen.users.samples.ravel())].float()
    change = [(script.mark(data, chosen.users, one).float() - originals).abs().mean() for one in (strong, weak)]
    assert change[0] > change[1] > 0
    assert torch.equal(script.mark(data, chosen.users, grey), (originals * 0.7 + 128 * 0.3).round().to(torch.uint8))


def test_pictures_take_the_place_of_the_stripes(data):
    bank = torch.randint(0, 256, (4, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = script.markings(SETTINGS, bank, (SIZE, SIZE))
    assert list(found) == ["0.7, 8/255", "0.8, 4/255", "0.7, pictures", "0.7, plain grey"]
    users = script.draw_images(data, SETTINGS).users
    originals = data.images[torch.from_numpy(users.samples.ravel())].float()
    blended = (script.mark(data, users, found["0.7, pictures"]).float() - 0.7 * originals) / 0.3
    nearest = [min(float((blended[row] - picture).abs().mean()) for picture in bank.float()) for row in (0, 7)]
    assert max(nearest) < 0.7 * 8 / 0.3 + 2  # the user's picture, but for the noise


def test_features_are_what_the_last_layer_sees(folder):
    from suspects.opened import open_model

    network = script.FeatureNetwork(open_model(folder / "model.safetensors", None, "cpu", "float32"))
    images = photos(70)[0]
    features = network.features(images)
    query, _ = training.load_trained(folder / "model.safetensors", torch.device("cpu"), "float32")
    assert features.shape == (70, 256) and network.head.weight.shape == (5, 256)
    assert torch.allclose(network.head.logits(features), query(images), atol=1e-4)
    assert network.class_names == tuple("abcde")


def test_imagenet_weights_are_scaled_to_224_pixels(tmp_path):
    """Weights as torchvision saves them, from a file: the classifier of 1,000 classes is there, too."""
    from torchvision.models import resnet18

    with utils.seeded("test resnet"):
        model = resnet18(weights=None).eval()
    torch.save(model.state_dict(), tmp_path / "resnet18.pth")
    args = script.make_parser().parse_args(["--out", "x", "--pretrained_weights", str(tmp_path / "resnet18.pth")])
    network = script.open_features(args, torch.device("cpu"))
    features = network.features(photos(2)[0])
    assert features.shape == (2, 512) and network.head.weight.shape == (1000, 512)
    size = torch.nn.functional.interpolate(photos(2)[0].float(), (224, 224), mode="bilinear").div(255)
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (training.IMAGENET_MEAN, training.IMAGENET_STD))
    with torch.no_grad():
        wanted = model((size - mean) / std)
    assert torch.allclose(network.head.logits(features), wanted, atol=0.05 * float(wanted.std()) + 0.02)


def test_a_missing_file_of_imagenet_weights_is_one_line():
    args = script.make_parser().parse_args(["--out", "x", "--pretrained_weights", "nowhere.pth"])
    with pytest.raises(UserError, match=r"nowhere\.pth does not exist"):
        script.open_features(args, torch.device("cpu"))
