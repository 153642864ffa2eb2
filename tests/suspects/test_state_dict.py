"""State dicts: they answer as the same module called directly does, and what can't be opened is refused in one line.

Known answers throughout: weights, statistics and images are random, so a network that is left in training mode, a wrong
class count, channel order, scale or crop gives other numbers. Hostile files must not run code.
"""

import hashlib
import io
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from networks import build_network
from suspects.opened import open_model
from tests.kit.parts import PICKLES, hostile
from tests.suspects.parts import GIVEN, assert_answers, images, refused, saved, stirred

WRAPPERS = ("state_dict", "model", "model_state_dict", "net", "params", "state_dict_ema")

# --- State dicts ---


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin", ".ckpt"])
@pytest.mark.parametrize("classes", [3, 1000])
def test_a_state_dict_of_our_networks(suffix, classes, tmp_path):
    """Wrong: training mode, a class count of the library's instead of the file's, RGB statistics in another unit."""
    model = stirred(build_network("smallnet", classes))
    path = saved(tmp_path / f"theirs{suffix}", model.state_dict())
    before = torch.get_rng_state()
    suspect = open_model(path, "smallnet", "cpu", overrides=GIVEN, batch_size=9)
    assert torch.equal(before, torch.get_rng_state())
    pixels = images(4, 32)
    assert_answers(suspect.ask(pixels).values, model, pixels)
    assert suspect.classes == classes and suspect.batch_size == 9 and suspect.class_names is None
    assert suspect.identity == {
        "kind": "state dict",
        "file": path.name,
        "net_type": "networks:smallnet",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "classes": classes,
    }
    assert json.dumps(suspect.identity) and suspect.preprocessing.source == "flags"


@pytest.mark.parametrize(
    "name, classes, build",
    [
        ("torchvision:mobilenet_v3_small", 7, None),
        ("shufflenet_v2_x0_5", 1000, None),
        ("mnasnet0_5", 3, None),  # refuses weights without a version, which safetensors files have not
        ("torchvision:regnet_y_400mf", 3, None),  # can't be built on the meta device
        ("timm:resnet10t", 3, "timm"),
        ("test_resnet", 7, "timm"),
        ("timm:test_vit.r160_in1k", 1000, "timm"),
    ],
)
def test_a_state_dict_of_a_library(name, classes, build, tmp_path):
    plain = name.rpartition(":")[2]
    if build == "timm":
        model = pytest.importorskip("timm").create_model(plain, pretrained=False, num_classes=classes)
    else:
        model = torchvision.models.get_model(plain, weights=None, num_classes=classes)
    path = saved(tmp_path / "theirs.safetensors", stirred(model).state_dict())
    suspect = open_model(path, name, "cpu")
    pixels = images(2, suspect.preprocessing.size[0])
    values = suspect.ask(pixels).values
    assert_answers(values, model, pixels, suspect.preprocessing.mean, suspect.preprocessing.std)
    assert suspect.classes == classes == values.shape[1]
    assert suspect.preprocessing.source == (build or "torchvision")
    assert suspect.identity["net_type"] == f"{build or 'torchvision'}:{plain}"


def test_auxiliary_classifiers(tmp_path):
    """With them or without, and never with ImageNet's statistics guessed: some of these nets normalise once more."""
    model = stirred(torchvision.models.get_model("googlenet", weights=None, num_classes=5, init_weights=False))
    tensors = model.state_dict()
    pixels = images(1, 64)
    for content in (tensors, {name: value for name, value in tensors.items() if not name.startswith("aux")}):
        path = saved(tmp_path / "theirs.pt", content)
        suspect = open_model(path, "torchvision:googlenet", "cpu", overrides=dict(GIVEN, size=64))
        assert_answers(suspect.ask(pixels).values, model, pixels)
    refused(path, "--mean", "--std", net_type="torchvision:googlenet")


@pytest.mark.parametrize(
    "wrapper, prefix",
    [
        *((wrapper, "") for wrapper in WRAPPERS),
        ("state_dict", "model."),
        ("model", "module."),
        (None, "_orig_mod."),
        (None, "module."),
        (None, "backbone."),
        (None, "_orig_mod.module."),
        ("net", "model.backbone."),
    ],
)
def test_wrappers_and_prefixes(wrapper, prefix, smallnet, tmp_path):
    tensors = {prefix + name: value for name, value in smallnet.state_dict().items()}
    wrapped = {"epoch": 3, **dict.fromkeys(WRAPPERS, "not this one"), wrapper: tensors}
    path = saved(tmp_path / "theirs.pt", tensors if wrapper is None else wrapped)
    pixels = images(2, 32)
    answers = open_model(path, "smallnet", "cpu", overrides=GIVEN).ask(pixels)
    assert_answers(answers.values, smallnet, pixels)


def test_a_prefix_of_some_keys_stays(smallnet, tmp_path):
    """Wrong: stripping key by key, by which a file of two networks would pass for one."""
    tensors = dict(smallnet.state_dict())
    name, value = tensors.popitem()
    path = saved(tmp_path / "theirs.pt", {**tensors, f"module.{name}": value})
    refused(path, f"{name} is missing", f"'module.{name}' is unexpected", net_type="smallnet", overrides=GIVEN)


def test_bfloat16_is_used_when_asked_for(tmp_path):
    model = stirred(build_network("smallnet", 3))
    path, pixels = saved(tmp_path / "theirs.pt", model.state_dict()), images(8, 32)
    plain = open_model(path, "smallnet", "cpu", overrides=GIVEN).ask(pixels).values
    coarse = open_model(path, "smallnet", "cpu", "bfloat16", GIVEN).ask(pixels).values
    assert 1e-5 < np.abs(plain - coarse).max() < 0.1 * np.abs(plain).max() and coarse.dtype == np.float32


def test_a_file_of_another_network(smallnet, tmp_path):
    """Wrong: load_state_dict(strict=False), which leaves random weights where names differ."""
    path = saved(tmp_path / "theirs.pt", smallnet.state_dict())
    refused(path, "theirs.pt", "is missing", "is unexpected", "resnet", net_type="networks:resnet", overrides=GIVEN)
    wide = {**smallnet.state_dict(), "features.0.weight": torch.zeros(32, 3, 5, 5)}
    refused(
        saved(path, wide), "features.0.weight", "(32, 3, 5, 5)", "(32, 3, 4, 4)", net_type="smallnet", overrides=GIVEN
    )
    odd = {**smallnet.state_dict(), "two\nlines": torch.zeros(1)}
    refused(saved(path, odd), "is unexpected", net_type="smallnet", overrides=GIVEN)
    lacking = {name: value for name, value in smallnet.state_dict().items() if name != "classifier.bias"}
    refused(saved(path, lacking), "classifier.bias is missing", net_type="smallnet", overrides=GIVEN)
    uneven = {**smallnet.state_dict(), "classifier.bias": torch.zeros(9)}
    refused(saved(path, uneven), "classifier.bias", net_type="smallnet", overrides=GIVEN)
    old = {name: value for name, value in smallnet.state_dict().items() if "num_batches" not in name}
    assert open_model(saved(path, old), "smallnet", "cpu", overrides=GIVEN).classes == 7


def test_a_class_count_that_would_fill_the_memory(smallnet, tmp_path):
    """A tensor of 10^11 values can be stored as one value with strides of zero."""
    huge = {
        **smallnet.state_dict(),
        "classifier.weight": torch.zeros(1).expand(10**9, 256),
        "classifier.bias": torch.zeros(1).expand(10**9),
    }
    refused(saved(tmp_path / "theirs.pt", huge), "1000000000 classes", net_type="smallnet", overrides=GIVEN)
    one = {**smallnet.state_dict(), "classifier.weight": torch.zeros(1, 256), "classifier.bias": torch.zeros(1)}
    refused(saved(tmp_path / "theirs.pt", one), "1 classes", net_type="smallnet", overrides=GIVEN)


def test_network_names(smallnet, tmp_path):
    path = saved(tmp_path / "theirs.pt", smallnet.state_dict())
    refused(path, "--net_type")
    refused(path, "did you mean", "smallnet", net_type="smalnet")
    refused(path, "mobilenet_v3_small", net_type="torchvision:mobilenetv3_small")
    refused(path, "unknown network", net_type="torchvision:smallnet")
    refused(path, "depth", net_type="wrn-11-2")
    for name in ("hf-hub:someone/resnet18", "hf_hub:someone/resnet18", "local-dir:.", "https://host/x", ""):
        refused(path, repr(name) if name == "" else name.split(":")[0], net_type=name)


def test_outputs_that_are_not_finite(smallnet, tmp_path):
    broken = {**smallnet.state_dict(), "classifier.bias": torch.full((7,), torch.nan)}
    refused(saved(tmp_path / "theirs.pt", broken), "theirs.pt", "not finite", net_type="smallnet", overrides=GIVEN)


def test_images_of_another_size_are_a_mistake_of_the_caller(smallnet, tmp_path):
    suspect = open_model(saved(tmp_path / "theirs.pt", smallnet.state_dict()), "smallnet", "cpu", overrides=GIVEN)
    for wrong in (images(1, 40), images(1, 32).astype(np.float32), images(1, 32)[:, :1]):
        with pytest.raises(ValueError):
            suspect.ask(wrong)


# --- Hostile and damaged files ---


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".bin", ".safetensors", ".onnx"])
@pytest.mark.parametrize("kind", PICKLES)
def test_a_pickle_runs_nothing(kind, suffix, tmp_path):
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
    marker = tmp_path / "code ran"
    path = tmp_path / f"theirs{suffix}"
    path.write_bytes(hostile(kind, marker))
    refused(path, net_type="smallnet", overrides=GIVEN)
    assert not marker.exists()


def test_files_that_are_no_state_dict(smallnet, tmp_path):
    path = tmp_path / "theirs.pt"
    scripted = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), scripted)
    whole = saved(path, smallnet.state_dict()).read_bytes()
    zipped = tmp_path / "photos"
    zipped.mkdir()
    (zipped / "a.txt").write_text("no model")
    archive = shutil.make_archive(str(tmp_path / "archive"), "zip", zipped)
    for content in (
        b"",
        b"garbage" * 9,
        whole[: len(whole) // 2],
        whole[:100],
        scripted.getvalue(),
        Path(archive).read_bytes(),
    ):
        path.write_bytes(content)
        refused(path, net_type="smallnet", overrides=GIVEN)
    itself = {}
    itself["model"] = itself
    far = {name: value.to("meta") for name, value in smallnet.state_dict().items()}
    for content in (
        far,
        smallnet,
        [1, 2],
        {},
        {"epoch": 3},
        {"state_dict": {}},
        {"a": "b"},
        itself,
        torch.zeros(3),
        {"a": torch.zeros(3).to_sparse()},
        {"state_dict": {"a": 1}, "model": smallnet.state_dict()},
    ):
        refused(saved(path, content), net_type="smallnet", overrides=GIVEN)
    text = tmp_path / "theirs.txt"
    text.write_text("hello")
    refused(text, ".safetensors", ".onnx", net_type="smallnet")


# --- ONNX ---


def test_checkpoints_of_torchvisions_and_timms_trainers(tmp_path):
    """They keep their flags as a Namespace beside the weights. Wrong: refused, or unpickled freely."""
    import argparse

    model = build_network("smallnet", 3)
    content = {"model": model.state_dict(), "args": argparse.Namespace(lr=0.1, workers=[1, 2]), "epoch": 3}
    flags = {"size": (32, 32), "mean": (0.5,) * 3, "std": (0.25,) * 3}
    for name in ("checkpoint.pth", "last.pth.tar"):
        torch.save(content, tmp_path / name)
        assert open_model(tmp_path / name, "smallnet", "cpu", overrides=flags).classes == 3
