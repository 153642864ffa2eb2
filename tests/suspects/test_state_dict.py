"""Opened models: they answer as the same module called directly does, and what can't be opened is refused in one line.

Known answers throughout: weights, statistics and images are random, so a network that is left in training mode, a wrong
class count, channel order, scale or crop gives other numbers. Hostile files must not run code.
"""

import hashlib
import io
import json
import shutil
import struct
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from test_runs import PICKLES, hostile

from experiment import training
from kit.errors import UserError
from networks import build_network
from suspects.opened import open_model

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
GIVEN = {"size": 32, "mean": MEAN, "std": STD}
WRAPPERS = ("state_dict", "model", "model_state_dict", "net", "params", "state_dict_ema")


def images(count, size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, size, size), dtype=np.uint8)


def stirred(model):
    """The model with statistics and biases as after training, where nothing is zero or one by luck."""
    generator = torch.Generator().manual_seed(1)
    for name, value in model.state_dict().items():
        if value.is_floating_point() and value.ndim == 1:
            noise = torch.rand(value.shape, generator=generator)
            value.copy_(noise + 0.5 if name.endswith(("weight", "var")) else noise - 0.5)
    return model


def expected(model, pixels, mean=MEAN, std=STD):
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (mean, std))
    with torch.no_grad():
        return model.eval()((torch.from_numpy(pixels).double().div(255).float() - mean) / std).numpy()


def saved(path, content):
    save_file(content, path) if path.suffix == ".safetensors" else torch.save(content, path)
    return path


def refused(path, *words, **arguments):
    """open_model(path) is a UserError of one line that names the file and says these words."""
    with pytest.raises(UserError) as caught:
        open_model(path, **{"device": "cpu", **arguments})
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700
    for word in words or (path.name,):
        assert word in message, message
    return message


@pytest.fixture(scope="module")
def smallnet():
    return stirred(build_network("smallnet", 7))


@pytest.fixture(scope="module")
def photo():
    """A real photograph that is not square, uint8 (384, 512, 3). Libraries round sides of other shapes differently."""
    from skimage.data import astronaut

    return astronaut()[:384]


# ----------------------------------------------------------------------------------------------------------------------
# Runs of train.py
# ----------------------------------------------------------------------------------------------------------------------


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


# ----------------------------------------------------------------------------------------------------------------------
# State dicts
# ----------------------------------------------------------------------------------------------------------------------


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
    np.testing.assert_allclose(suspect.ask(pixels).values, expected(model, pixels), rtol=0, atol=1e-5)
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
    wanted = expected(model, pixels, suspect.preprocessing.mean, suspect.preprocessing.std)
    np.testing.assert_allclose(suspect.ask(pixels).values, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    assert suspect.classes == classes == wanted.shape[1]
    assert suspect.preprocessing.source == (build or "torchvision")
    assert suspect.identity["net_type"] == f"{build or 'torchvision'}:{plain}"


def test_auxiliary_classifiers(tmp_path):
    """With them or without, and never with ImageNet's statistics guessed: some of these nets normalise once more."""
    model = stirred(torchvision.models.get_model("googlenet", weights=None, num_classes=5, init_weights=False))
    tensors = model.state_dict()
    pixels = images(1, 64)
    wanted = expected(model, pixels)
    for content in (tensors, {name: value for name, value in tensors.items() if not name.startswith("aux")}):
        path = saved(tmp_path / "theirs.pt", content)
        suspect = open_model(path, "torchvision:googlenet", "cpu", overrides=dict(GIVEN, size=64))
        np.testing.assert_allclose(suspect.ask(pixels).values, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
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
    np.testing.assert_allclose(answers.values, expected(smallnet, pixels), rtol=0, atol=1e-5)


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


# ----------------------------------------------------------------------------------------------------------------------
# Hostile and damaged files
# ----------------------------------------------------------------------------------------------------------------------


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


# ----------------------------------------------------------------------------------------------------------------------
# Preprocessing
# ----------------------------------------------------------------------------------------------------------------------


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
    wanted = expected(model, pixels, MEAN, made.std)
    np.testing.assert_allclose(suspect.ask(pixels).values, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
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


# ----------------------------------------------------------------------------------------------------------------------
# ONNX
# ----------------------------------------------------------------------------------------------------------------------

WEIGHTS = np.random.default_rng(5).normal(size=(3, 4)).astype(np.float32)
SAYS = {"mean": MEAN, "std": STD}


def onnx_file(path, shape=("n", 3, 8, 6), kind="FLOAT", outputs=("dense",), metadata=SAYS, location=None):
    """A model that multiplies the pixels' mean with WEIGHTS; outputs: dense, label, column, words, map, spare."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    node, info = helper.make_node, helper.make_tensor_value_info
    last = shape[-1] == 3
    nodes = [
        node("Cast", ["x"], ["cast"], to=TensorProto.FLOAT),
        node("Transpose", ["cast"], ["nchw"], perm=[0, 3, 1, 2] if last else [0, 1, 2, 3]),
        node("ReduceMean", ["nchw", "axes"], ["mean"], keepdims=0),
        node("MatMul", ["mean", "w"], ["dense"]),
        node("ArgMax", ["dense"], ["label"], axis=1, keepdims=0),
        node("ArgMax", ["dense"], ["column"], axis=1, keepdims=1),
        node("Cast", ["label"], ["words"], to=8),
        node("Neg", ["dense"], ["spare"]),
        node("ZipMap", ["dense"], ["map"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2, 3]),
    ]
    kinds = {
        "dense": info("dense", 1, [shape[0], 4]),
        "label": info("label", 7, [shape[0]]),
        "column": info("column", 7, [shape[0], 1]),
        "words": info("words", 8, [shape[0]]),
        "spare": info("spare", 1, [shape[0], 4]),
        "map": helper.make_value_info(
            "map", helper.make_sequence_type_proto(helper.make_map_type_proto(7, helper.make_tensor_type_proto(1, [])))
        ),
    }
    needed = [
        each
        for each in nodes
        if each.output[0] in (*outputs, "cast", "nchw", "mean", "dense")
        or (each.output[0] == "label" and "words" in outputs)
    ]
    weights = numpy_helper.from_array(WEIGHTS[: shape[1] if shape[1] == 1 else 3], "w")
    if location is not None:
        (path.parent / location).write_bytes(weights.raw_data)
        weights.ClearField("raw_data")
        weights.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", str(WEIGHTS.nbytes))):
            entry = weights.external_data.add()
            entry.key, entry.value = key, value
    graph = helper.make_graph(
        needed,
        "g",
        [info("x", getattr(TensorProto, kind), shape)],
        [kinds[name] for name in outputs],
        [weights, numpy_helper.from_array(np.array([2, 3]), "axes")],
    )
    model = helper.make_model(
        graph, ir_version=9, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    )
    helper.set_model_props(
        model,
        {key: value.decode() if isinstance(value, bytes) else json.dumps(value) for key, value in metadata.items()},
    )
    path.write_bytes(model.SerializeToString())
    return path


def onnx_answers(pixels, mean=MEAN, std=STD, white=1):
    return ((pixels / 255 * white).mean(axis=(2, 3)) - mean) / std @ WEIGHTS


@pytest.mark.parametrize(
    "shape",
    [
        ("n", 3, 8, 6),
        ("n", 8, 6, 3),
        (None, 3, 8, 6),
        (3, 3, 8, 6),
        (1, 8, 6, 3),
        ("n", 3, "h", "w"),
        ("n", "c", "h", "w"),
    ],
)
@pytest.mark.parametrize("kind", ["FLOAT", "FLOAT16", "DOUBLE", "UINT8"])
def test_onnx_inputs(kind, shape, tmp_path):
    """Wrong: NCHW for everybody; a fixed batch that is not filled up or not cut off; scaled pixels for uint8 inputs."""
    whole = kind == "UINT8"
    path = onnx_file(tmp_path / "theirs.onnx", shape, kind, metadata={} if whole else SAYS)
    free = "h" in shape
    suspect = open_model(path, device="cpu", overrides={"size": (8, 6)} if free else None, batch_size=2)
    assert suspect.preprocessing.size == (8, 6) and suspect.classes == 4 and suspect.name == "theirs.onnx"
    assert suspect.batch_size == (1 if shape[0] == 1 else 2)
    pixels = images(suspect.batch_size, 8)[..., :6]
    wanted = onnx_answers(pixels, (0, 0, 0), (1, 1, 1), 255) if whole else onnx_answers(pixels)
    answers = suspect.ask(pixels)
    np.testing.assert_allclose(answers.values, wanted, rtol=1e-5, atol=2e-3 if kind == "FLOAT16" else 2e-5)
    assert answers.values.dtype == np.float32 and answers.classes is None
    if shape[0] == 3:
        np.testing.assert_allclose(suspect.ask(pixels[:1]).values, wanted[:1], rtol=1e-5, atol=2e-3)


@pytest.mark.parametrize(
    "outputs, labels",
    [
        (("dense",), False),
        (("label",), True),
        (("column",), True),
        (("label", "dense"), False),
        (("words", "dense"), False),
    ],
)
def test_onnx_outputs(outputs, labels, tmp_path):
    """Wrong: the first output, whatever it is (scikit-learn's exporter puts the label first)."""
    suspect = open_model(onnx_file(tmp_path / "theirs.onnx", outputs=outputs), device="cpu")
    pixels = np.eye(3, dtype=np.uint8)[:, :, None, None] * images(3, 8)[..., :6]  # a red, a green and a blue one
    answers, wanted = suspect.ask(pixels), onnx_answers(pixels)
    if labels:
        assert answers.values is None and answers.classes.dtype == np.int32 and suspect.classes is None
        assert np.array_equal(answers.classes, wanted.argmax(1)[:, None]) and len(set(wanted.argmax(1))) > 1
    else:
        np.testing.assert_allclose(answers.values, wanted, rtol=0, atol=2e-5)
        assert suspect.classes == 4


@pytest.mark.parametrize(
    "outputs, word",
    [(("words",), "words"), (("map",), "zipmap"), (("label", "map"), None), (("dense", "spare"), "one output")],
)
def test_onnx_outputs_that_are_no_answers(outputs, word, tmp_path):
    path = onnx_file(tmp_path / "theirs.onnx", outputs=outputs)
    if word:
        refused(path, "theirs.onnx", word)
    else:
        assert open_model(path, device="cpu").ask(images(2, 8)[..., :6]).values is None


def test_onnx_metadata(tmp_path):
    names = ["Katze", "dog", "horse", "cow"]
    says = {"size": 8, "resize": 12, "mean": MEAN, "std": STD, "white": 255, "interpolation": "bicubic"}
    shape = ("n", 3, "h", "w")
    for metadata in (says, {"preprocessing": says}):
        path = onnx_file(tmp_path / "theirs.onnx", shape, metadata={**metadata, "class_names": names, "author": "x"})
        suspect = open_model(path, device="cpu")
        made = suspect.preprocessing
        assert (made.size, made.resize, made.white, made.interpolation) == ((8, 8), 12, 255, "bicubic")
        assert (made.mean, made.std, made.source) == (MEAN, STD, "onnx metadata")
        assert suspect.class_names == tuple(names)
        np.testing.assert_allclose(suspect.ask(images(2, 8)).values, onnx_answers(images(2, 8), white=255), rtol=1e-4)
        made = open_model(path, device="cpu", overrides={"mean": (0, 0, 0), "size": (9, 7)}).preprocessing
        assert (made.mean, made.size, made.std) == ((0, 0, 0), (9, 7), STD) and made.source == "onnx metadata and flags"
    for wrong in (names[:3], b"Katze", [1, 2, 3, 4], None):
        path = onnx_file(tmp_path / "theirs.onnx", metadata={**SAYS, "labels": wrong})
        assert open_model(path, device="cpu").class_names is None
    path = onnx_file(tmp_path / "theirs.onnx", outputs=("label",), metadata={**SAYS, "labels": names})
    assert open_model(path, device="cpu").classes == 4


def test_onnx_metadata_that_is_wrong(tmp_path):
    for metadata in (
        {**SAYS, "size": b"large"},
        {**SAYS, "mean": b"[" * 5000},
        {"preprocessing": [1]},
        {"preprocessing": {**SAYS, "crop_pct": 0.9}},
        {**SAYS, "std": [0, 1, 1]},
        {**SAYS, "resize": 10**9},
        {**SAYS, "interpolation": 3},
        {**SAYS, "size": [8, 8]},
    ):
        refused(onnx_file(tmp_path / "theirs.onnx", metadata=metadata), "", overrides={"white": 1})
    for metadata in ({**SAYS, "mean": b"no JSON"}, {"preprocessing": {**SAYS, "mean": "large"}}):
        path = onnx_file(tmp_path / "theirs.onnx", metadata=metadata)
        assert open_model(path, device="cpu", overrides={"mean": MEAN}).preprocessing.mean == MEAN
    refused(onnx_file(path, metadata={}), "--mean and --std")
    refused(onnx_file(path), "size", overrides={"size": 8})
    refused(onnx_file(path, kind="UINT8", metadata={}), "mean", overrides=SAYS)


def test_onnx_models_that_take_no_photos(tmp_path, capfd):
    path = tmp_path / "theirs.onnx"
    for shape, word in (
        (("n", 1, 8, 6), "RGB"),
        (("n", 3, 5000, 6), "--input_size"),
        ((2000, 3, 8, 6), "2000"),
        (("n", 3, "h", "w"), "--input_size"),
    ):
        refused(onnx_file(path, shape), word)
    refused(onnx_file(path, kind="INT64"), "float or uint8")
    refused(onnx_file(path), "--precision", precision="bfloat16")
    for content in (
        b"",
        b"garbage" * 30,
        onnx_file(path).read_bytes()[:150],
        onnx_file(path).read_bytes()[50:],
        onnx_file(path, ("n", 3, "h", "w")).read_bytes().replace(b"\n\x12\x01w", b"\n\x12\x01\xe8"),
        onnx_file(path).read_bytes().replace(b"0.4, 0.5", b"0.4,\xe4\xb00."),
    ):
        path.write_bytes(content)
        refused(path)
    assert capfd.readouterr() == ("", "")  # onnxruntime prints on its own, unless told otherwise


def test_onnx_weights_beside_the_file(tmp_path):
    """They are part of the identity; those outside the folder are never read. Wrong: a digest of the graph alone."""
    folder = tmp_path / "model"
    folder.mkdir()
    path = onnx_file(folder / "theirs.onnx", location="theirs.onnx.data")
    suspect = open_model(path, device="cpu")
    np.testing.assert_allclose(
        suspect.ask(images(2, 8)[..., :6]).values, onnx_answers(images(2, 8)[..., :6]), rtol=0, atol=2e-5
    )
    first = suspect.identity["external_data"]["theirs.onnx.data"]
    (folder / "theirs.onnx.data").write_bytes((WEIGHTS + 1).tobytes())
    assert open_model(path, device="cpu").identity["external_data"]["theirs.onnx.data"] != first
    (folder / "theirs.onnx.data").unlink()
    refused(path)
    assert open_model(onnx_file(path, metadata={**SAYS, "location": b"Berlin"}), device="cpu").classes == 4
    for location in ("../outside", str(tmp_path / "outside")):
        refused(onnx_file(path, location=location), "outside its folder")
    (folder / "link").symlink_to(tmp_path / "outside")
    refused(onnx_file(path, location="link"), "outside its folder")


@pytest.mark.filterwarnings("ignore:overflow")
def test_onnx_answers_that_are_not_finite(tmp_path):
    suspect = open_model(
        onnx_file(tmp_path / "theirs.onnx"),
        device="cpu",
        overrides={"std": (1e-38, 1e-38, 1e-38), "mean": (-9, -9, -9)},
        batch_size=4,
    )
    with pytest.raises(UserError, match="not finite for 2 of 2"):
        suspect.ask(images(2, 8)[..., :6])


def test_an_export_of_a_torch_module(smallnet, tmp_path):
    """torch's exporter keeps weights in a second file unless told otherwise."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    path, pixels = tmp_path / "theirs.onnx", images(3, 32)
    torch.onnx.export(
        smallnet.eval(),
        (torch.zeros(2, 3, 32, 32),),
        path,
        dynamo=True,
        verbose=False,
        dynamic_shapes=({0: torch.export.Dim("n")},),
        input_names=["pixels"],
    )
    suspect = open_model(path, device="cpu", overrides=SAYS)
    np.testing.assert_allclose(suspect.ask(pixels).values, expected(smallnet, pixels), rtol=0, atol=1e-5)
    assert suspect.classes == 7


def test_checkpoints_of_torchvisions_and_timms_trainers(tmp_path):
    """They keep their flags as a Namespace beside the weights. Wrong: refused, or unpickled freely."""
    import argparse

    model = build_network("smallnet", 3)
    content = {"model": model.state_dict(), "args": argparse.Namespace(lr=0.1, workers=[1, 2]), "epoch": 3}
    flags = {"size": (32, 32), "mean": (0.5,) * 3, "std": (0.25,) * 3}
    for name in ("checkpoint.pth", "last.pth.tar"):
        torch.save(content, tmp_path / name)
        assert open_model(tmp_path / name, "smallnet", "cpu", overrides=flags).classes == 3
