"""What every data set of this folder returns, how it is checked, and how it is split: no files are touched here.

Public: Recipe, ImageData, Splits, make_splits, checked_data. `dataset.load_dataset` returns an ImageData whose labels,
class counts, shapes and values have been checked; `make_splits` turns its labels into train, validation, non-member and
test indices that follow from the seed alone.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from dataset.store import FileStore, MemoryStore
from kit.errors import UserError

ImageStore = MemoryStore | FileStore
PIXEL_CHECK_SAMPLE = 64


@dataclass(frozen=True)
class Recipe:
    """How a data set is trained and audited unless a flag says otherwise (the paper's Appendix A)."""

    net_type: str
    train_size: int  # images, training and validation together
    epoch: int
    lr: float
    batch_size: int
    momentum: float
    weight_decay: float
    val_portion: float  # share of train_size, in [0, 1)
    marked_samples_per_user: float  # images; below 1 a share of train_size
    num_of_non_member_user: int
    target_user_cls: tuple[int, ...]  # the classes of the paper's single-target runs
    normalization: str  # "imagenet": ImageNet's mean and deviation; "train": those of the training images


@dataclass(frozen=True)
class ImageData:
    """A labelled image set. `images[indices]` is a uint8 CPU tensor (n, 3, H, W) in the order of `indices`."""

    name: str
    images: ImageStore
    labels: torch.Tensor  # int64 (N,), values in [0, len(class_names))
    class_names: tuple[str, ...]
    is_test: torch.Tensor  # bool (N,): the images that the data set itself calls its test images
    recipe: Recipe


@dataclass(frozen=True)
class Splits:
    """Sorted int64 index tensors. `train`, `val` and `non_member` are disjoint and cover every image.

    `non_member` is everything that the model never saw: the images left over and the data set's own test images.
    `test` is a part of it: the own test images, or all of `non_member` when there are none.
    """

    train: torch.Tensor
    val: torch.Tensor
    non_member: torch.Tensor
    test: torch.Tensor


def make_splits(labels, is_test, train_size, val_portion, seed) -> Splits:
    """Draw training and validation images from those that are no test images; everything else is a non-member.

    Args: labels int64 (N,); is_test bool (N,); train_size, the images of training and validation together (the paper's
    25,000 are 20,000 + 5,000); val_portion in [0, 1), rounded to whole images; seed, any integer.

    Both draws are stratified: each class gets its exact share, rounded up or down. The same arguments give the same
    indices on every platform and numpy version. Raises UserError for a size or portion that can't be met.
    """
    labels, is_test = np.asarray(labels), np.asarray(is_test, dtype=bool)
    if labels.ndim != 1 or labels.shape != is_test.shape:
        raise ValueError(f"labels {labels.shape} and is_test {is_test.shape} must be one-dimensional and equally long")
    available = np.flatnonzero(~is_test)
    if not 1 <= train_size <= len(available) or int(train_size) != train_size:
        raise UserError(
            f"--train_size {train_size} must be a whole number from 1 to {len(available)}, "
            "the images of this data set that are not its test images"
        )
    if not 0 <= val_portion < 1:
        raise UserError(f"--val_portion {val_portion} must be at least 0 and below 1")
    val_size = round(train_size * val_portion)
    if val_size == train_size:
        raise UserError(
            f"--val_portion {val_portion} leaves no training image of --train_size {train_size}", advice="lower it"
        )

    used = _stratified_draw(labels, available, int(train_size), _random_ranks("member", seed, len(labels)))
    val = _stratified_draw(labels, used, val_size, _random_ranks("validation", seed, len(labels)))
    train = np.setdiff1d(used, val, assume_unique=True)
    non_member = np.setdiff1d(np.arange(len(labels)), used, assume_unique=True)
    test = np.flatnonzero(is_test) if is_test.any() else non_member
    return Splits(*(torch.from_numpy(part.astype(np.int64)) for part in (train, val, non_member, test)))


def _stratified_draw(labels, candidates, size, ranks):
    """`size` of the sorted indices `candidates`, sorted; each class gets its share, rounded by largest remainder."""
    _, first, class_of, counts = np.unique(
        labels[candidates], return_index=True, return_inverse=True, return_counts=True
    )
    quota, remainder = np.divmod(size * counts.astype(np.int64), max(len(candidates), 1))
    # Classes with equal remainders compete by the random rank of their first image, so that none is favoured.
    for index in np.lexsort((ranks[candidates[first]], -remainder))[: size - quota.sum()]:
        quota[index] += 1

    order = np.lexsort((ranks[candidates], class_of))
    rank_in_class = np.arange(len(candidates)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(candidates[order[rank_in_class < quota[class_of[order]]]])


def _random_ranks(purpose, seed, count):
    """A random permutation of range(count). It uses the bit generator's raw stream, which numpy promises to keep."""
    digest = hashlib.sha256(f"dataset.make_splits|{purpose}|{int(seed)}".encode()).digest()
    raw = np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(count)
    ranks = np.empty(count, dtype=np.int64)
    ranks[np.argsort(raw, kind="stable")] = np.arange(count)
    return ranks


def checked_data(name, images, labels, class_names, is_test, recipe) -> ImageData:
    """Build an ImageData. Raises UserError naming the data set and the first thing that is wrong with it."""
    labels, is_test = torch.as_tensor(labels), torch.as_tensor(is_test)

    def require(condition, problem):
        if not condition:
            raise UserError(f"data set {name}: {problem}", advice="check that its files are complete and unchanged")

    require(labels.dtype == torch.int64 and labels.ndim == 1, f"labels must be int64 (N,), not {labels.dtype}")
    require(is_test.dtype == torch.bool and is_test.shape == labels.shape, "is_test must be bool, one per label")
    require(len(images) == len(labels), f"{len(images)} images but {len(labels)} labels")
    require(len(labels) > 0, "it has no images")
    outside = torch.nonzero((labels < 0) | (labels >= len(class_names))).flatten()
    if len(outside):
        require(False, f"image {outside[0]} has label {labels[outside[0]]}, outside 0..{len(class_names) - 1}")
    require(len(class_names) >= 2, f"it has only the class {class_names[0]!r}, and a classifier needs two or more")
    missing = torch.nonzero(torch.bincount(labels[~is_test], minlength=len(class_names)) == 0).flatten()
    if len(missing):
        require(False, f"class {class_names[missing[0]]!r} has no training image")
    _require_pixels(images, require)
    return ImageData(name, images, labels, tuple(class_names), is_test, recipe)


def _require_pixels(images, require):
    shape = tuple(images.image_shape)
    require(len(shape) == 3 and shape[0] == 3 and min(shape) >= 1, f"images are {shape} and must be (3, H, W)")
    # A sample, because a lazy store would have to decode every file.
    sample = images[torch.linspace(0, len(images) - 1, min(len(images), PIXEL_CHECK_SAMPLE)).long()]
    require(sample.dtype == torch.uint8, f"pixels are {sample.dtype} and must be uint8")
    require(sample.shape[1:] == shape, f"images are {tuple(sample.shape[1:])}, announced as {shape}")
    first = sample.flatten()[0]
    require(bool((sample != first).any()), f"all pixels of the {len(sample)} images looked at are {first}")
