"""ResNet-18 with ImageNet's weights and a new classifier, for fine-tuning at 224 px: He et al., CVPR 2016.

Needs torchvision's weights (45 MB), downloaded on first use into torch's hub folder, or a file of them.
"""

import errno
import warnings
from http.client import HTTPException
from pathlib import Path

import torch
from safetensors.torch import load_file
from torchvision.models import ResNet18_Weights, resnet18

from kit.errors import UserError
from kit.files import network_timeout
from networks.layers import Classifier

_DOWNLOAD_TIMEOUT = 60  # seconds without an answer
_OWN_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)  # run_script knows what to say


def build(num_classes, weights=None):
    """torchvision's ResNet-18, ImageNet's stem included; its classifier of 1,000 classes is replaced by a random one.

    Args: weights, None for torchvision's IMAGENET1K_V1, "random" for no pretrained weights, or the path of a state dict
    (.safetensors, or .pth as torch.save writes it) with the keys of torchvision's ResNet-18; a classifier inside is
    ignored. Nothing in the file is executed.
    Raises UserError when the file is missing, damaged, hostile or of another network, or can't be downloaded.
    """
    model = resnet18(weights=None)
    model.fc = Classifier(model.fc.in_features, num_classes)
    if weights != "random":
        path = _downloaded() if weights is None else Path(weights)
        model.load_state_dict(_matching(path, _read(path), model), strict=False)
    return model


def _downloaded():
    url = ResNet18_Weights.IMAGENET1K_V1.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        # The file's name ends with the first digits of its SHA-256 sum.
        with network_timeout(_DOWNLOAD_TIMEOUT):
            torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rsplit("-", 1)[-1])
    except (OSError, HTTPException, RuntimeError) as error:
        if getattr(error, "errno", None) in _OWN_TROUBLE:
            raise
        raise UserError(
            f"ImageNet's ResNet-18 weights can't be downloaded ({error})",
            advice=f"save {url} as {path}, or pass a copy with --pretrained_weights FILE",
        ) from None
    return path


def _read(path):
    if not path.is_file():
        raise UserError(f"pretrained weights {path}: there is no such file", advice="check --pretrained_weights")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error below says all that torch's warnings about odd pickles would
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise anything, from UnpicklingError and EOFError to KeyError
        raise UserError(
            f"pretrained weights {path}: truncated, or not a plain state dict ({_first_line(error)}); "
            "nothing in it was run",
            advice="get an undamaged copy, or the weights as .safetensors",
        ) from None


def _first_line(error):
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:120]}" if lines else type(error).__name__


def _matching(path, content, model):
    # -> the file's tensors for everything but the classifier, each checked against the model's.
    if not isinstance(content, dict) or not content:
        raise UserError(
            f"pretrained weights {path}: holds {type(content).__name__} instead of a state dict",
            advice="save model.state_dict() of torchvision's resnet18",
        )
    # Files from before PyTorch 0.4.1 lack the counters, which nothing reads, and the classifier is a new one.
    wanted = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked")
    }
    for name, tensor in wanted.items():
        trouble = _trouble(name, content, tensor.shape)
        if trouble:
            raise UserError(
                f"pretrained weights {path}: {trouble}", advice="give the weights of torchvision's resnet18"
            )
    known = set(model.state_dict())
    for name in content:
        if name not in known:
            raise UserError(
                f"pretrained weights {path}: {str(name)[:80]!r} is no key of torchvision's resnet18",
                advice="give that network's weights",
            )
    return {name: content[name] for name in wanted}


def _trouble(name, content, shape):
    if name not in content:
        return f"{name!r} is missing (the first key there is {str(next(iter(content)))[:80]!r})"
    value = content[name]
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or not value.is_floating_point():
        return f"{name!r} is not a dense float tensor"
    if value.shape != shape:
        return f"{name!r} has shape {tuple(value.shape)} instead of {tuple(shape)}"
    return None if torch.isfinite(value.float()).all() else f"{name!r} holds values that are not finite"
