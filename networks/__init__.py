"""Networks by name: one file per architecture, and this registry.

Public: build_network, network_names, count_parameters. Every file `<name>.py` has `build(num_classes, ...)` and is
imported when its network is asked for, because torch and torchvision take seconds to import, and a command line only
wants the names. Weights are drawn from torch's global generator alone and importing draws nothing, so seeding torch
before build_network fixes the network.
"""

import difflib
import importlib
import re

from kit.errors import UnknownNetwork, UserError

_NAMES = (
    "wideresnet284",
    "resnet",
    "resnext",
    "senet",
    "densenet",
    "googlenet",
    "resnet18_pretrained",
    "smallnet",
    "scatternet",
)
# torchvision's names, here in the form for small images, and others that only privacy-audit.py's configs use. Not among
# network_names: a state dict called vgg16 that somebody else made is torchvision's.
_SMALL_IMAGE_NAMES = ("cnn", "alexnet", "vgg16", "speedyresnet")
# wideresnet2810, wideresnet-28-10, wrn28-2, wrn-40x4, ...: without a separator the first two digits are the depth.
_WIDERESNET = re.compile(r"(?:wideresnet|wrn)[-_]?(?:(\d{1,4})[-_x](\d{1,3})|(\d\d)(\d\d?))", re.ASCII)
_SMALLEST_IMAGE = 32


def network_names() -> list[str]:
    """The names that build_network knows first. `wideresnet284` stands for WideResNets of any depth and width.

    It builds cnn, alexnet, vgg16 and speedyresnet for small images, too; mlp.py is built by privacy/models.py.
    """
    return list(_NAMES)


def build_network(net_type, num_classes, image_size=32, weights=None):
    """Build a network of the paper's Appendix A, in training mode, on the CPU, in float32.

    Args: net_type, one of network_names() or a WideResNet such as `wideresnet-16-4`, in any case; num_classes, at least
    2; image_size, the side of the images in pixels, at least 32 (all networks pool adaptively, so it changes nothing
    else); weights, for resnet18_pretrained a .pth or .safetensors file, or None for torchvision's ImageNet weights. The
    other networks have no pretrained weights: None. "random" means none for all of them.
    Returns a module from normalised float images (N, 3, S, S) to float32 logits (N, num_classes), float32 under
    autocast, too. Raises UserError for unknown names, sizes that can't be and unusable weights.
    """
    name, arguments = _resolve(str(net_type).strip().lower())
    if image_size < _SMALLEST_IMAGE:
        raise UserError(
            f"images of {image_size} px are too small for these networks", advice=f"use {_SMALLEST_IMAGE} px or more"
        )
    if num_classes < 2:
        raise UserError(
            f"a classifier needs at least 2 classes, not {num_classes}", advice="check the data set's class folders"
        )
    if name == "resnet18_pretrained":
        arguments = {"weights": weights}
    elif weights not in (None, "random"):
        raise UserError(
            f"network {net_type} has no pretrained weights, so {weights} can't be used",
            advice="leave --pretrained_weights out, or take --net_type resnet18_pretrained",
            flag="--net_type",
        )
    return importlib.import_module(f"networks.{name}").build(num_classes, **arguments)


def count_parameters(model):
    """The number of trainable values. Batch normalisation's running statistics aren't among them, as in papers."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _resolve(name):
    # -> (file of this package, arguments of its build besides num_classes)
    if name in _SMALL_IMAGE_NAMES or (name in _NAMES and name != "wideresnet284"):
        return name, {}
    if not name.startswith(("wideresnet", "wrn")):
        near = difflib.get_close_matches(name, _NAMES, n=3, cutoff=0.4)
        nearest = f"did you mean {' or '.join(near)}? " if near else ""
        raise UnknownNetwork(
            f"unknown network {name!r}",
            f"{nearest}Known: {', '.join(_NAMES)}; or wideresnet-DEPTH-WIDTH",
            flag="--net_type",
        )
    found = _WIDERESNET.fullmatch(name)
    if found is None:
        raise UnknownNetwork(
            f"unknown network {name!r}",
            advice=f"did you mean wideresnet284? A WideResNet is written "
            f"wideresnet-DEPTH-WIDTH. Known: {', '.join(_NAMES)}",
        )
    depth, width = (int(digits) for digits in found.groups() if digits is not None)
    if depth < 10 or depth % 6 != 4:
        below = max(10, depth - (depth - 4) % 6)
        raise UserError(
            f"network {name!r}: a WideResNet's depth is 6n+4 (10, 16, 22, 28, 34, 40, ...), not {depth}",
            advice=f"take wideresnet-{below}-{max(width, 1)} or wideresnet-{below + 6}-{max(width, 1)}",
        )
    if width < 1:
        raise UserError(
            f"network {name!r}: a WideResNet's width is 1 or more, not {width}",
            advice=f"take wideresnet-{depth}-1 or wideresnet-{depth}-4",
        )
    return "wideresnet", {"depth": depth, "width": width}
