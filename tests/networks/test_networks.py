"""networks/: published parameter counts, CIFAR stems, the blocks' order, names, and hostile files of weights."""

import errno
import io
import os
import pickle
import random
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet18
from torchvision.ops import SqueezeExcitation

from kit.errors import UserError
from networks import build_network, count_parameters, network_names
from networks.senet import SEBasicBlock
from networks.wideresnet import PreActivationBlock, WideResNet
from tests.parts import ROOT, environment

CIFAR_STEM = ["wideresnet284", "resnet", "resnext", "senet", "densenet", "googlenet"]
ALL = [*CIFAR_STEM, "resnet18_pretrained", "smallnet", "scatternet"]
# What a 3x3 stem of 64 filters on RGB saves against ImageNet's 7x7, and a classifier for 10 classes against 1,000.
STEM = 64 * 3 * (7 * 7 - 3 * 3)


def classifier_difference(features):
    return (features + 1) * (1000 - 10)


def build(name, num_classes=10, seed=0):
    torch.manual_seed(seed)
    return build_network(name, num_classes, weights="random")


def images(count, size, seed=1):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def error_of(*arguments, **options):
    with pytest.raises(UserError) as caught:
        build_network(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message and message
    return message


# --- the networks are the published ones ------------------------------------------------------------------------------


def test_registry_is_complete():
    assert sorted(network_names()) == sorted(ALL)


@pytest.mark.parametrize(
    ("name", "num_classes", "published"),
    [
        ("wideresnet-28-10", 10, 36_479_194),
        ("wideresnet-28-10", 100, 36_536_884),
        # torchvision's counts for ImageNet, carried over to a CIFAR stem and 10 classes.
        ("resnet", 10, 11_689_512 - STEM - classifier_difference(512)),
        ("resnet", 10, 11_173_962),
        ("densenet", 10, 7_978_856 - STEM - classifier_difference(1024)),
        ("googlenet", 10, 6_624_904 - STEM - classifier_difference(1024)),
        ("resnet18_pretrained", 1000, 11_689_512),
        # SE-ResNet-18 with ImageNet's stem, as published with pretrained-models libraries.
        ("senet", 10, 11_778_592 - STEM - classifier_difference(512)),
        # The often quoted 9,128,778 has a 1x1 stem; ours is the ResNeXt paper's 3x3.
        ("resnext", 10, 9_128_778 + 64 * 3 * (3 * 3 - 1)),
    ],
)
def test_published_parameter_counts(name, num_classes, published):
    with torch.device("meta"):
        assert count_parameters(build_network(name, num_classes, weights="random")) == published


@pytest.mark.parametrize(
    ("depth", "width", "millions"),
    [
        (40, 1, 0.6),
        (40, 2, 2.2),
        (40, 4, 8.9),
        (40, 8, 35.7),
        (28, 10, 36.5),
        (28, 12, 52.5),
        (22, 8, 17.2),
        (22, 10, 26.8),
        (16, 8, 11.0),
        (16, 10, 17.1),
        (16, 4, 2.7),
    ],
)
def test_wideresnets_have_the_size_of_the_papers_tables(depth, width, millions):
    with torch.device("meta"):
        count = count_parameters(build_network(f"wideresnet-{depth}-{width}", 10))
    assert round(count / 1e6, 1) == millions


def test_smallnet_is_small():
    assert count_parameters(build("smallnet")) == 389_568 + 257 * 10


def test_count_leaves_out_frozen_values_and_statistics():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    model[0].bias.requires_grad_(False)
    assert count_parameters(model) == 3 * 2 + 2 + 2


# --- what goes in and comes out ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wideresnet-10-2", *ALL[1:]])
@pytest.mark.parametrize("size", [33, 64])
def test_logits_at_any_size(name, size):
    model = build(name, num_classes=7).eval()
    with torch.no_grad():
        logits = model(images(1, size))
    assert logits.shape == (1, 7) and logits.dtype == torch.float32
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", ALL)
def test_every_parameter_learns_under_autocast(name):
    model = build(name).to(memory_format=torch.channels_last)
    x = images(4, 32).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
    assert logits.shape == (4, 10) and torch.isfinite(logits).all()
    assert not torch.equal(logits[0], logits[1])
    # Losses near zero need more than bfloat16's 8 bits.
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())
    F.cross_entropy(logits, torch.arange(4)).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().max() > 0, parameter_name


def convolution_inputs(model, size):
    """Sides of the inputs of the first two convolutions, and the side and kernel of the first one's output."""
    seen = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda layer, x, y: seen.append((x[0].shape[-1], y.shape[-1], layer.kernel_size))
            )
    with torch.no_grad():
        model.eval()(images(1, size))
    return seen


@pytest.mark.parametrize("name", CIFAR_STEM)
def test_cifar_stems_keep_the_resolution(name):
    first, second, *_ = convolution_inputs(build(name), 33)
    assert first == (33, 33, (3, 3))
    assert second[0] == 33


def test_googlenet_has_no_pooling_before_its_first_inception():
    model = build("googlenet").eval()
    seen = []
    model.inception3a.register_forward_hook(lambda layer, x, y: seen.append(x[0].shape))
    model(images(1, 32))
    assert seen == [(1, 192, 32, 32)]


def test_resnext_stages():
    model = build("resnext").eval()
    seen = []
    for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
        layer.register_forward_hook(lambda layer, x, y: seen.append(tuple(y.shape[1:])))
    model(images(1, 32))
    assert seen == [(256, 32, 32), (512, 16, 16), (1024, 8, 8), (1024, 8, 8)]
    inner = [layer[0].conv2 for layer in (model.layer1, model.layer2, model.layer3)]
    assert [(conv.out_channels, conv.groups) for conv in inner] == [(128, 2), (256, 2), (512, 2)]


def test_pretrained_resnet_keeps_imagenets_stem():
    first, second, *_ = convolution_inputs(build("resnet18_pretrained"), 64)
    assert first == (64, 32, (7, 7)) and second[0] == 16


# --- the blocks are what their papers say -----------------------------------------------------------------------------


@pytest.fixture
def block_input():
    return torch.randn(4, 32, 8, 8, generator=torch.Generator().manual_seed(2))


def test_wideresnet_identity_path_is_untouched(block_input):
    block = PreActivationBlock(32, 32)
    nn.init.zeros_(block.conv2.weight)
    assert block_input.min() < 0
    assert torch.equal(block(block_input.clone()), block_input)


def test_wideresnet_activates_before_each_convolution(block_input):
    block = PreActivationBlock(32, 64, stride=2)
    seen = {}
    for name in ("bn1", "conv1", "conv2", "shortcut"):
        getattr(block, name).register_forward_pre_hook(lambda layer, x, name=name: seen.update({name: x[0].clone()}))
    out = block(block_input.clone())
    assert out.shape == (4, 64, 4, 4) and out.min() < 0
    assert torch.equal(seen["bn1"], block_input)
    expected = F.relu(F.batch_norm(block_input, None, None, training=True))
    for name in ("conv1", "shortcut"):
        torch.testing.assert_close(seen[name], expected)
    assert seen["conv2"].min() == 0


def test_wideresnet_blocks_and_strides():
    model = build("wideresnet-22-2").eval()
    blocks = [module for module in model.modules() if isinstance(module, PreActivationBlock)]
    assert len(blocks) == 3 * (22 - 4) // 6
    assert [block.conv1.out_channels for block in blocks] == [32] * 3 + [64] * 3 + [128] * 3
    assert [block.conv1.stride[0] for block in blocks] == [1, 1, 1, 2, 1, 1, 2, 1, 1]


def test_wideresnet_dropout_is_an_option_and_off_by_default():
    x = images(2, 32)
    for dropout, same in ((0.0, True), (0.3, False)):
        model = WideResNet(10, 10, 1, dropout)
        assert torch.equal(model(x), model(x)) is same
        model.eval()
        assert torch.equal(model(x), model(x))


def test_wideresnet_class_refuses_impossible_depths():
    for depth, width in ((27, 4), (4, 1), (28, 0)):
        with pytest.raises(ValueError, match="6n\\+4"):
            WideResNet(10, depth, width)


def test_senet_rescales_its_residual_branch():
    model = build("senet").eval()
    blocks = [module for module in model.modules() if isinstance(module, SEBasicBlock)]
    assert len(blocks) == 8
    for block in blocks:
        gates = [module for module in block.modules() if isinstance(module, SqueezeExcitation)]
        assert len(gates) == 1 and gates[0].fc1.out_channels == block.conv2.out_channels // 16
    block, x = blocks[0], torch.randn(2, 64, 8, 8)
    gate = next(module for module in block.modules() if isinstance(module, SqueezeExcitation))
    nn.init.ones_(next(module for module in block.bn2.modules() if isinstance(module, nn.BatchNorm2d)).bias)
    nn.init.zeros_(gate.fc2.weight)
    nn.init.zeros_(gate.fc2.bias)
    with torch.no_grad():
        half = block(x.clone())  # every factor is sigmoid(0)
        nn.init.constant_(gate.fc2.bias, 100.0)
        whole = block(x.clone())
        nn.init.constant_(gate.fc2.bias, -100.0)
        none = block(x.clone())
    torch.testing.assert_close(none, F.relu(x))
    positive = (half > 0) & (whole > 0) & (x > 0)
    torch.testing.assert_close((half - x)[positive], (whole - x)[positive] / 2, atol=1e-4, rtol=1e-4)
    assert (whole - x)[positive].abs().max() > 0.1


def test_smallnet_memorises_random_labels():
    model = build("smallnet").to(memory_format=torch.channels_last)
    x = images(32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (32,), generator=torch.Generator().manual_seed(3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(15):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert (model(x).argmax(1) == labels).all()


# --- seeds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_the_seed_alone_decides_the_weights(name):
    random.seed(1)
    np.random.seed(1)
    first = build(name, seed=5).state_dict()
    random.seed(2)
    np.random.seed(2)
    again, other = build(name, seed=5).state_dict(), build(name, seed=6).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    random_keys = [key for key in first if key.endswith("weight") and first[key].dim() > 1]
    assert not any(torch.equal(first[key], other[key]) for key in random_keys)


IMPORTING = """
import importlib, random, sys
import numpy as np, torch
states = lambda: [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]
before = states()
for name in sys.argv[1:]:
    importlib.import_module(name)
sys.exit(before != states())
"""


def test_importing_touches_no_generator():
    # In a process of its own: classes that are imported a second time here would be others than those of other tests.
    names = ["networks", *[f"networks.{path.stem}" for path in (ROOT / "networks").glob("[a-z]*.py")]]
    assert subprocess.run([sys.executable, "-c", IMPORTING, *names], cwd=ROOT, env=environment()).returncode == 0


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "depth", "width"),
    [
        ("wideresnet284", 28, 4),
        ("wideresnet2810", 28, 10),
        ("wideresnet-28-10", 28, 10),
        ("wrn28-2", 28, 2),
        ("wrn16-4", 16, 4),
        ("wrn-16-4", 16, 4),
        ("WRN-40-2", 40, 2),
        ("wideresnet164", 16, 4),
        ("wideresnet_10_1", 10, 1),
        ("wrn40x2", 40, 2),
        ("wrn-100-1", 100, 1),
    ],
)
def test_wideresnet_names(name, depth, width):
    with torch.device("meta"):
        model = build_network(name, 10)
    blocks = [module for module in model.modules() if isinstance(module, PreActivationBlock)]
    assert len(blocks) == (depth - 4) // 2
    assert blocks[-1].conv2.out_channels == 64 * width


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resent", "senet"),
        ("resnet18", "resnet"),
        ("resnet18_pretrain", "resnet18_pretrained"),
        ("densnet", "densenet"),
        ("smalnet", "smallnet"),
        ("wideresnet", "wideresnet284"),
        ("wideresnet-28", "wideresnet284"),
        ("wideresnet-28-four", "wideresnet284"),
        ("wideresnet10010", "wideresnet284"),
        ("widresnet284", "wideresnet284"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(name, nearest):
    message = error_of(name, 10)
    question, _, known = message.partition("Known: ")
    assert repr(name) in question
    assert nearest in question.partition("did you mean ")[2].replace("?", " ").split()
    assert all(each in known for each in network_names())


@pytest.mark.parametrize("name", ["", "qqqq", "../resnet", "layers", "os", None, 5, "build_network"])
def test_foreign_names_are_refused(name):
    assert "unknown network" in error_of(name, 10)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("wideresnet-27-4", "wideresnet-22-4 or wideresnet-28-4"),
        ("wideresnet304", "wideresnet-28-4 or wideresnet-34-4"),
        ("wrn4-1", "wideresnet-10-1 or wideresnet-16-1"),
        ("wrn-0-2", "wideresnet-10-2 or wideresnet-16-2"),
    ],
)
def test_wideresnet_depths_that_cant_be(name, advice):
    message = error_of(name, 10)
    assert "6n+4" in message and advice in message


def test_wideresnet_of_no_width():
    assert "width" in error_of("wrn28-0", 10)


def test_sizes_that_cant_be():
    assert "32" in error_of("resnet", 10, 31)
    assert "2 classes" in error_of("resnet", 1)


@pytest.mark.parametrize("name", [name for name in ALL if name != "resnet18_pretrained"])
def test_only_the_pretrained_network_takes_weights(name, tmp_path):
    message = error_of(name, 10, weights=tmp_path / "weights.pth")
    assert "resnet18_pretrained" in message and "weights.pth" in message


# --- pretrained weights -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def imagenet_model():
    """Stands for torchvision's trained ResNet-18: random weights, statistics away from their initial values."""
    torch.manual_seed(9)
    model = resnet18(weights=None)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


@pytest.fixture(scope="module")
def weights_files(imagenet_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    torch.save(imagenet_model.state_dict(), folder / "good.pth")
    save_file(imagenet_model.state_dict(), folder / "good.safetensors")
    return folder


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """torch's hub folder is empty and a download is a failure."""

    def fail(url, *_, **__):
        raise URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    return tmp_path / "torch_home" / "hub" / "checkpoints" / "resnet18-f37072fd.pth"


def assert_carries(model, imagenet_model, num_classes):
    assert model.fc.weight.shape == (num_classes, 512)
    mine, theirs = model.state_dict(), imagenet_model.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine if not key.startswith("fc."))
    assert not torch.equal(mine["fc.weight"], theirs["fc.weight"][:num_classes])


@pytest.mark.parametrize("name", ["good.pth", "good.safetensors"])
@pytest.mark.parametrize("as_type", [str, Path])
def test_pretrained_weights_from_a_file(name, as_type, weights_files, imagenet_model, no_network):
    model = build_network("resnet18_pretrained", 7, 224, as_type(weights_files / name))
    assert_carries(model, imagenet_model, 7)


def test_pretrained_weights_without_classifier_and_counters(tmp_path, imagenet_model):
    slim = {
        key: tensor
        for key, tensor in imagenet_model.state_dict().items()
        if not key.startswith("fc.") and not key.endswith("num_batches_tracked")
    }
    torch.save(slim, tmp_path / "slim.pth")
    model = build_network("resnet18_pretrained", 1000, weights=tmp_path / "slim.pth")
    for key, tensor in slim.items():
        assert torch.equal(model.state_dict()[key], tensor)


def test_pretrained_weights_are_downloaded_once(monkeypatch, no_network, weights_files, imagenet_model):
    calls = []

    def download(url, path, hash_prefix=None, **_):
        calls.append((url, hash_prefix))
        shutil.copy(weights_files / "good.pth", path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        assert_carries(build_network("resnet18_pretrained", 7), imagenet_model, 7)
    assert calls == [("https://download.pytorch.org/models/resnet18-f37072fd.pth", "f37072fd")]


def test_without_a_network_the_error_says_what_to_put_where(no_network):
    message = error_of("resnet18_pretrained", 7)
    assert str(no_network) in message and "--pretrained_weights" in message
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in message


def test_a_full_disk_is_no_network_trouble(monkeypatch, no_network):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(OSError, match="No space left"):
        build_network("resnet18_pretrained", 7)


def test_random_weights_need_no_file(no_network):
    assert build_network("resnet18_pretrained", 7, weights="random").fc.weight.shape == (7, 512)


class Hostile:
    """Unpickling it would create the file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (Path(self.marker),)


@pytest.mark.parametrize("name", ["hostile.pth", "hostile.safetensors"])
@pytest.mark.parametrize("write", ["raw", "zip", "in a state dict"])
def test_hostile_pickles_dont_run(tmp_path, name, write):
    marker, path = tmp_path / "marker", tmp_path / name
    if write == "raw":
        path.write_bytes(pickle.dumps(Hostile(marker)))
        pickle.loads(path.read_bytes())
    else:
        torch.save(Hostile(marker) if write == "zip" else {"conv1.weight": Hostile(marker)}, path)
        torch.load(io.BytesIO(path.read_bytes()), weights_only=False)
    assert marker.exists()  # the file is really hostile
    marker.unlink()
    message = error_of("resnet18_pretrained", 7, weights=path)
    assert not marker.exists()
    assert str(path) in message


@pytest.mark.parametrize("name", ["good.pth", "good.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_truncated_weights(tmp_path, weights_files, name, share):
    whole = (weights_files / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
    message = error_of("resnet18_pretrained", 7, weights=tmp_path / name)
    assert str(tmp_path / name) in message and "truncated" in message


def test_missing_weights(tmp_path):
    assert "no such file" in error_of("resnet18_pretrained", 7, weights=tmp_path / "nowhere.pth")
    assert "no such file" in error_of("resnet18_pretrained", 7, weights=tmp_path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1), "layer3.0.conv1.weight": torch.zeros(1)},
            ["'layer1.0.conv1.weight'", "(64, 64, 1, 1)", "(64, 64, 3, 3)"],
        ),
        ({"layer1.0.conv1.weight": None}, ["'layer1.0.conv1.weight'", "missing"]),
        ({"layer5.weight": torch.zeros(1)}, ["'layer5.weight'", "no key"]),
        ({"bn1.weight": torch.zeros(64, dtype=torch.int64)}, ["'bn1.weight'", "float"]),
        ({"bn1.weight": torch.zeros(64).to_sparse()}, ["'bn1.weight'", "dense"]),
        ({"bn1.weight": "text"}, ["'bn1.weight'", "float"]),
        ({"bn1.bias": torch.full((64,), float("nan"))}, ["'bn1.bias'", "finite"]),
    ],
)
def test_wrong_weights_are_named(tmp_path, imagenet_model, change, expected):
    content = {**imagenet_model.state_dict(), **change}
    torch.save({key: value for key, value in content.items() if value is not None}, tmp_path / "wrong.pth")
    message = error_of("resnet18_pretrained", 7, weights=tmp_path / "wrong.pth")
    assert all(part in message for part in [*expected, "wrong.pth"])
    assert "layer3" not in message  # the first one is enough


@pytest.mark.parametrize("content", [[1, 2], {}, torch.zeros(3), {"state_dict": {"conv1.weight": 1}}, {1: 2}])
def test_files_that_hold_no_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "wrong.pth")
    assert "wrong.pth" in error_of("resnet18_pretrained", 7, weights=tmp_path / "wrong.pth")
