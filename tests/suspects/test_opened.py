"""Opened models: runs of train.py answer as their own query, and flags and metadata are told apart.

Known answers throughout: weights, statistics and images are random, so a wrong scale or crop gives other numbers.
"""

import struct
import sys

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from experiment import training
from networks import build_network
from suspects.opened import open_model
from tests.suspects.parts import GIVEN, MEAN, assert_answers, images, refused, saved, stirred

# --- Runs of train.py ---


@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16"])
def test_a_run_answers_as_its_own_query(finished_run, precision):
    """Bit by bit, from the folder and from the file. Wrong: another precision, mean or std than that of the run."""
    query, record = training.load_trained(
        finished_run / "model.safetensors", torch.device("cpu"), None if precision == "auto" else precision
    )
    pixels = images(5, 32)
    for path in (finished_run, finished_run / "model.safetensors"):
        suspect = open_model(path, device="cpu", precision=precision)
        answers = suspect.ask(pixels)
        assert answers.values.dtype == np.float32 and answers.classes is None
        assert np.array_equal(answers.values, query(torch.from_numpy(pixels)).numpy())
        assert suspect.name == path.name
    assert suspect.classes == record["classes"] == 99
    assert suspect.preprocessing.size == (32, 32) and suspect.preprocessing.source == "checkpoint"
    assert np.allclose(suspect.preprocessing.mean, record["mean"])
    assert suspect.identity["file"] == "model.safetensors" and suspect.identity["kind"] == "run"


def test_a_run_keeps_its_own_settings(finished_run):
    refused(finished_run, "--mean", overrides={"mean": MEAN})
    refused(finished_run, "smallnet", "--net_type", net_type="resnet")
    suspect = open_model(finished_run, device="cpu", overrides={"interpolation": "lanczos", "resize": 40})
    assert (suspect.preprocessing.interpolation, suspect.preprocessing.resize) == ("lanczos", 40)
    assert suspect.preprocessing.source == "checkpoint and flags"


def test_damaged_runs_are_refused(finished_run, tmp_path):
    whole = (finished_run / "model.safetensors").read_bytes()
    path = tmp_path / "model.safetensors"
    for content in (
        whole[: len(whole) // 2],
        whole[:7],
        b"",
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 10**8) + b'{"a":' + b" " * 100,
        whole.replace(b"smallnet", b"hugenet!"),
    ):
        path.write_bytes(content)
        refused(path, "model.safetensors", net_type="smallnet", overrides=GIVEN)
    refused(tmp_path / "none.pt", "does not exist")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", "folder")


# --- Preprocessing ---


def close_to(suspect, photo, theirs):
    """Our input of a photo is theirs, to a grey level or two: both resize with Pillow."""
    ours = suspect.preprocessing.normalize(suspect.preprocessing.fit(photo)[None])[0]
    theirs = theirs(Image.fromarray(photo)).numpy()
    assert ours.shape == theirs.shape
    levels = np.abs(ours - theirs) * np.reshape(suspect.preprocessing.std, (3, 1, 1)) * 255
    assert levels.max() < 2.5, levels.max()


@pytest.mark.parametrize("name", ["resnet10t", "test_resnet", "resnet10t.c3_in1k"])
def test_timm_preprocessing_is_timms(name, photo, tmp_path):
    """Wrong: no crop_pct, ImageNet's mean for everybody, bilinear for bicubic."""
    timm = pytest.importorskip("timm")
    model = timm.create_model(name, pretrained=False, num_classes=3)
    suspect = open_model(saved(tmp_path / "theirs.pt", model.state_dict()), f"timm:{name}", "cpu")
    close_to(suspect, photo, timm.data.create_transform(**timm.data.resolve_model_data_config(model)))


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x1_5", "efficientnet_b0"])
def test_torchvision_preprocessing_is_torchvisions(name, photo, tmp_path):
    """Wrong: 256 for everybody (it is 232 for some), bilinear for everybody."""
    model = torchvision.models.get_model(name, weights=None, num_classes=3)
    suspect = open_model(saved(tmp_path / "theirs.pt", model.state_dict()), f"torchvision:{name}", "cpu")
    close_to(suspect, photo, torchvision.models.get_model_weights(name).DEFAULT.transforms())


def test_flags_win(tmp_path):
    model = stirred(torchvision.models.get_model("shufflenet_v2_x0_5", weights=None, num_classes=3))
    path = saved(tmp_path / "theirs.pt", model.state_dict())
    suspect = open_model(
        path,
        "torchvision:shufflenet_v2_x0_5",
        "cpu",
        overrides={"size": (64, 96), "mean": MEAN, "std": None, "interpolation": "nearest"},
    )
    made = suspect.preprocessing
    assert (made.size, made.mean, made.interpolation, made.resize) == ((64, 96), MEAN, "nearest", None)
    assert made.std == (0.229, 0.224, 0.225) and made.source == "torchvision and flags"
    pixels = images(2, 96)[:, :, :64]
    assert_answers(suspect.ask(pixels).values, model, pixels, MEAN, made.std)
    assert open_model(path, "shufflenet_v2_x0_5", "cpu", overrides={"resize": 224}).preprocessing.resize == 224


def test_a_size_that_the_network_can_not_take(smallnet, tmp_path):
    """It shows when the model is opened, not in the middle of an audit."""
    path = saved(tmp_path / "theirs.pt", smallnet.state_dict())
    refused(path, "--input_size", "8 x 4", net_type="smallnet", overrides={**GIVEN, "size": (8, 4)})


def test_what_is_not_known_is_asked_for(smallnet, tmp_path):
    """Wrong: 0.5 and 0.25, or ImageNet's, for a network that says nothing: a wrong guess makes an audit worthless."""
    path = saved(tmp_path / "theirs.pt", smallnet.state_dict())
    refused(path, "--input_size and --mean and --std", net_type="smallnet")
    message = refused(path, "--std", net_type="smallnet", overrides={"size": 32, "mean": MEAN})
    assert "--mean" not in message
    for wrong in (
        {"mean": (1, 2)},
        {"mean": "abc"},
        {"std": (1, 1, 0)},
        {"std": (1, 1, np.nan)},
        {"size": 0},
        {"size": (1, 2, 3)},
        {"size": 10**6},
        {"resize": 0},
        {"white": 100},
        {"interpolation": "best"},
    ):
        refused(path, "mean" if "mean" in wrong else "", net_type="smallnet", overrides={**GIVEN, **wrong})
    ours = saved(path, build_network("resnet18_pretrained", 4, weights="random").state_dict())
    made = open_model(ours, "resnet18_pretrained", "cpu").preprocessing
    assert (made.size, made.mean, made.std) == ((224, 224), training.IMAGENET_MEAN, training.IMAGENET_STD)


def test_timm_that_squashes_is_asked_about(tmp_path):
    timm = pytest.importorskip("timm")
    model = timm.create_model("test_vit", pretrained=False, num_classes=3)
    path = saved(tmp_path / "theirs.pt", model.state_dict())
    squash = timm.data.resolve_model_data_config(model) | {"crop_mode": "squash"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("timm.data.resolve_model_data_config", lambda model: squash)
        refused(path, "--resize", net_type="timm:test_vit")
        assert open_model(path, "timm:test_vit", "cpu", overrides={"resize": 170}).preprocessing.resize == 170


def test_packages_that_are_missing(smallnet, tmp_path, monkeypatch):
    path = saved(tmp_path / "theirs.pt", smallnet.state_dict())
    for package in ("timm", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    refused(path, "pip install timm", net_type="timm:resnet10t")
    refused(path, "pip install timm", net_type="resnet10t")
    assert open_model(path, "smallnet", "cpu", overrides=GIVEN).classes == 7
    small = torchvision.models.get_model("shufflenet_v2_x0_5", weights=None, num_classes=3)
    assert open_model(saved(path, small.state_dict()), "shufflenet_v2_x0_5", "cpu").classes == 3
    (tmp_path / "theirs.onnx").write_bytes(b"")
    refused(tmp_path / "theirs.onnx", "pip install onnxruntime")
