"""A small source of images, a tree that was prepared from it, and a checkpoint."""

import argparse
import importlib
import sys

import pytest
import torch
import torchvision

import utils
from imagenet.users import read_manifest
from tests.imagenet.parts import CLASSES, PREPARE, SIDE, make_source


@pytest.fixture
def source(tmp_path):
    return make_source(tmp_path / "data")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """(source, tree) with default flags, made once. Tests must not change them."""
    root = tmp_path_factory.mktemp("imagenet")
    source, out = make_source(root / "data"), root / "tree"
    flags = {**PREPARE, "--holdout": 0.25, "--data_root": source, "--out": out}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["imagenet-prepare.py", *(str(part) for item in flags.items() for part in item)])
        importlib.import_module("imagenet-prepare").main()
    return source, out


@pytest.fixture(scope="module")
def manifest(prepared):
    return read_manifest(prepared[1])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A torchvision ResNet-18 as torchvision's own script leaves it: weights, and its flags as a Namespace."""
    path = tmp_path_factory.mktemp("model") / "checkpoint.pth"
    with utils.seeded("test"):
        model = torchvision.models.resnet18(num_classes=len(CLASSES))
        with torch.no_grad():  # statistics of a random network are far from those of its activations
            model.train()(torch.randn(16, 3, SIDE, SIDE))
    torch.save({"model": model.state_dict(), "epoch": 1, "args": argparse.Namespace(lr=0.1, output_dir=".")}, path)
    return path
