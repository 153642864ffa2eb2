"""detection/input_detection.py from end to end: who is in which set, and features as the last layer sees them."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

import utils
from detection import detectors
from detection import input_detection as script
from experiment import training
from kit import files
from kit.errors import UserError, run_script
from networks import build_network
from tests.detection.parts import CLASSES, SIZE, needs_library, photos
from tests.parts import call


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
    done = call("detection.input_detection", *flags(folder, seed=[1, 2]))
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


@pytest.mark.parametrize("cached", [1 << 17, 1], ids=["one piece", "pieces of eight"])
def test_features_are_what_the_last_layer_sees(folder, cached, monkeypatch):
    from suspects.opened import open_model

    monkeypatch.setattr(utils, "CACHED_PIXELS", cached)
    network = script.FeatureNetwork(open_model(folder / "model.safetensors", None, "cpu", "float32"))
    images = photos(70)[0]
    features = network.features(images)
    query, _ = training.load_trained(folder / "model.safetensors", torch.device("cpu"), "float32")
    assert features.shape == (70, 256) and network.head.weight.shape == (5, 256)
    answers = query(images)
    # One batch and parts of 64 may be added in another order: n * eps * magnitude, n the summands of all five layers.
    atol = (3 * 16 + 9 * (32 + 64 + 128) + 256) * 2.0**-24 * answers.abs().max()
    assert torch.allclose(network.head.logits(features), answers, rtol=0, atol=atol)
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
