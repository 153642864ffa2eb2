"""Any images in class folders below `data_root`; the layouts are those of dataset/folders.py.

Small images (up to 64 px) get CIFAR's recipe, larger ones the fine-tuning recipe, both scaled to what is there.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dataset import cifar10, tinyimagenet
from dataset.base import ImageData
from dataset.folders import LAYOUT, checked_image_size, class_folder_data
from kit.errors import UserError

LARGEST_SIZE = 224  # found sizes above it become 224; --image_size may ask for more
LARGEST_CIFAR_LIKE_SIZE = 64
LARGE_IMAGES_BATCH = 64  # 256 of 224 px, as the paper's data sets have, take 6 GB of memory
SIZE_SAMPLE = 64
RECIPE = replace(cifar10.RECIPE, target_user_cls=(0,))


def load(data_root=None, image_size=None) -> ImageData:
    """Load the class folders in `data_root`; `image_size` None: see find_image_size. Raises UserError."""
    if data_root is None:
        raise UserError("data set imagefolder: give its folder with --data_root", advice=f"{LAYOUT} in it")
    size = checked_image_size("imagefolder", image_size, find_image_size)
    return class_folder_data("imagefolder", data_root, make_recipe, size)


def find_image_size(root, files, labels):
    """The size of the images when those of a sample are all square, equally large and at most 224 px; else 224."""
    first_of_class = np.unique(labels.numpy(), return_index=True)[1]
    spread = np.linspace(0, len(files) - 1, min(SIZE_SAMPLE, len(files))).astype(int)
    sizes = {_size_of(Path(root) / files[index].relative) for index in sorted({*first_of_class, *spread})}
    width, height = sizes.pop()
    return width if not sizes and width == height <= LARGEST_SIZE else LARGEST_SIZE


def _size_of(path):
    try:
        with Image.open(path) as image:  # reads the header only
            return image.size
    except Exception as error:
        raise UserError(
            f"{path} is not a readable image ({error})", advice="remove it or get an undamaged copy"
        ) from None


def make_recipe(image_size, labels, is_test):
    """The recipe for images of that size, with at most half of the training images used and as many marked as fit."""
    large = replace(tinyimagenet.RECIPE, batch_size=LARGE_IMAGES_BATCH)
    recipe = cifar10.RECIPE if image_size <= LARGEST_CIFAR_LIKE_SIZE else large
    counts = torch.bincount(labels[~is_test])
    train_size = max(1, min(recipe.train_size, int(counts.sum()) // 2))
    smallest_class = int(counts.min() * train_size * (1 - recipe.val_portion) / counts.sum())
    # A user is one person of many in a class, so half of a class is the most that is marked.
    marked = max(1, min(recipe.marked_samples_per_user, smallest_class // 2))
    targets = sorted({int(c) for c in np.linspace(0, len(counts) - 1, 5)})
    return replace(recipe, train_size=train_size, marked_samples_per_user=marked, target_user_cls=tuple(targets))
