"""What the tests of detection share."""

import importlib.util

import numpy as np
import pytest
import torch

CLASSES, SIZE = 3, 32
needs_library = pytest.mark.skipif(
    importlib.util.find_spec("pytorch_ood") is None, reason="pytorch-ood is not installed"
)


def photos(count, seed=0):
    """Smooth images of three colours, one colour a class: uint8 (count, 3, 32, 32), labels."""
    draws, labels = np.random.default_rng(seed), np.arange(count) % CLASSES
    coarse = draws.integers(60, 140, (count, 3, 4, 4)).astype(np.float32)
    coarse[np.arange(count), labels] += 80
    images = torch.nn.functional.interpolate(torch.from_numpy(coarse), (SIZE, SIZE), mode="bilinear")
    return images.to(torch.uint8), torch.from_numpy(labels)
