"""CIFAR-100 (32 px, 100 classes, 50,000 + 10,000 images) through torchvision.

Needs torchvision, and the network on first use (169 MB); afterwards `cifar-100-python/` below `data_root`.
"""

from dataclasses import replace

from dataset import cifar10
from dataset.base import ImageData

CLASS_COUNT = 100
RECIPE = replace(cifar10.RECIPE, target_user_cls=(17, 36, 69, 80, 93))


def load(data_root=None, image_size=None) -> ImageData:
    """Load CIFAR-100 from `data_root` (default: dataset/), downloading it when missing. Raises UserError."""
    return cifar10.load_cifar("cifar100", "CIFAR100", RECIPE, CLASS_COUNT, data_root, image_size)
