"""CIFAR-10 (32 px, 10 classes, 50,000 + 10,000 images) through torchvision, and the loader that CIFAR-100 shares.

Needs torchvision, and the network on first use (170 MB); afterwards `cifar-10-batches-py/` below `data_root`.
Public: RECIPE, load, load_cifar.
"""

import errno

import numpy as np
import torch

from dataset.base import ImageData, Recipe, checked_data
from dataset.folders import DEFAULT_ROOT
from dataset.store import MemoryStore
from kit.errors import UserError
from kit.files import network_timeout

CLASS_COUNT = 10
RECIPE = Recipe(
    net_type="wideresnet284",
    train_size=25_000,
    epoch=100,
    lr=0.1,
    batch_size=256,
    momentum=0.9,
    weight_decay=5e-4,
    val_portion=0.2,
    marked_samples_per_user=25,
    num_of_non_member_user=5_000,
    target_user_cls=(0, 2, 5, 6, 9),
    normalization="train",
)
NETWORK_TIMEOUT = 60  # seconds without an answer


def load(data_root=None, image_size=None) -> ImageData:
    """Load CIFAR-10 from `data_root` (default: dataset/), downloading it when missing. Raises UserError."""
    return load_cifar("cifar10", "CIFAR10", RECIPE, CLASS_COUNT, data_root, image_size)


def load_cifar(name, torchvision_class, recipe, class_count, data_root, image_size) -> ImageData:
    """Load one of torchvision's CIFAR sets. torchvision checks its files' MD5 sums before it opens them."""
    if image_size not in (None, 32):
        raise UserError(
            f"data set {name}: images are 32 px, --image_size {image_size} can't be had", advice="leave it out"
        )
    from torchvision import datasets  # takes a second, and the other data sets don't need it

    make = getattr(datasets, torchvision_class)
    root = DEFAULT_ROOT if data_root is None else data_root
    try:
        with network_timeout(NETWORK_TIMEOUT):
            train = make(root, train=True, download=True)
            test = make(root, train=False, download=False)
    except (OSError, RuntimeError, EOFError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"data set {name}: it is not complete in {root} and can't be downloaded ({error})",
            advice=f"put {make.filename} from https://www.cs.toronto.edu/~kriz/cifar.html into {root}",
        ) from None
    if len(train.classes) != class_count:
        raise UserError(
            f"data set {name}: {root} has {len(train.classes)} classes instead of {class_count}",
            advice=f"delete {make.base_folder} there and start again",
        )
    pixels = torch.from_numpy(np.concatenate([train.data, test.data])).permute(0, 3, 1, 2)
    labels = torch.tensor(train.targets + test.targets)
    is_test = torch.arange(len(labels)) >= len(train.targets)
    return checked_data(name, MemoryStore(pixels), labels, train.classes, is_test, recipe)
