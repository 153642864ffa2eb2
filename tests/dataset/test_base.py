"""Data sets by name, their recipes and splits, and what is checked at load."""

import hashlib
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dataset
from dataset import photos
from dataset.base import Recipe, checked_data, make_splits
from dataset.store import MemoryStore
from tests.parts import user_error

# --- registry ---


def test_names_and_unknown_name():
    assert dataset.dataset_names() == [
        "cifar10",
        "cifar100",
        "tinyimagenet",
        "celeba",
        "artbench",
        "imagefolder",
        "photos",
    ]
    user_error(lambda: dataset.load_dataset("cifar11"), "cifar11", "did you mean cifar10?", *dataset.dataset_names())
    user_error(lambda: dataset.recipe("TinyImagenet"), "did you mean tinyimagenet?")


# SPEC.md section 2; batches of 224 px are those of the published scripts. Net, training images, epochs, learning rate,
# batch, weight decay, validation, marked, classes.
SPEC = {
    "cifar10": ("wideresnet284", 25_000, 100, 0.1, 256, 5e-4, 0.2, 25, (0, 2, 5, 6, 9), "train"),
    "cifar100": ("wideresnet284", 25_000, 100, 0.1, 256, 5e-4, 0.2, 25, (17, 36, 69, 80, 93), "train"),
    "tinyimagenet": ("resnet18_pretrained", 25_000, 30, 0.01, 256, 0, 0.2, 25, (4, 58, 102, 168, 184), "imagenet"),
    "celeba": ("resnet18_pretrained", 2_000, 30, 0.01, 16, 0, 0, 2, (58, 95, 164, 228, 306), "imagenet"),
    "artbench": ("resnet18_pretrained", 25_000, 30, 0.01, 256, 0, 0.2, 25, (0, 1, 5, 7, 8), "imagenet"),
}


@pytest.mark.parametrize("name", SPEC)
def test_recipes_are_the_papers(name):
    net, train_size, epoch, lr, batch, decay, val, marked, classes, normalization = SPEC[name]
    assert dataset.recipe(name) == Recipe(
        net, train_size, epoch, lr, batch, 0.9, decay, val, marked, 5_000, classes, normalization
    )


# --- splits ---


@st.composite
def split_cases(draw):
    labels = np.array(draw(st.lists(st.integers(0, 4), min_size=3, max_size=80)))
    is_test = np.array(draw(st.lists(st.booleans(), min_size=len(labels), max_size=len(labels))))
    is_test[draw(st.integers(0, len(labels) - 1))] = False
    return (
        torch.from_numpy(labels),
        torch.from_numpy(is_test),
        draw(st.integers(1, int((~is_test).sum()))),
        draw(st.sampled_from([0, 0.1, 0.2, 0.45])),
        draw(st.integers(0, 2**40)),
    )


@given(split_cases())
@settings(max_examples=150)
def test_splits_are_a_stratified_partition(case):
    labels, is_test, train_size, val_portion, seed = case
    splits = make_splits(labels, is_test, train_size, val_portion, seed)
    for part in (splits.train, splits.val, splits.non_member, splits.test):
        assert part.dtype == torch.int64 and torch.equal(part, part.unique())
    everything = torch.cat([splits.train, splits.val, splits.non_member])
    assert torch.equal(everything.sort().values, torch.arange(len(labels)))
    assert len(splits.val) == round(train_size * val_portion) and len(splits.train) + len(splits.val) == train_size
    used = torch.cat([splits.train, splits.val])
    assert not is_test[used].any()
    assert torch.equal(splits.test, torch.nonzero(is_test).flatten() if is_test.any() else splits.non_member)
    for drawn, source in ((used, torch.nonzero(~is_test).flatten()), (splits.val, used)):
        share = torch.bincount(labels[source], minlength=5) * (len(drawn) / len(source))
        assert ((torch.bincount(labels[drawn], minlength=5) - share).abs() < 1 - 1e-9).all()
    again = make_splits(labels, is_test, train_size, val_portion, seed)
    assert all(torch.equal(vars(splits)[part], vars(again)[part]) for part in vars(splits))


def test_splits_of_cifars_shape():
    labels, is_test = torch.arange(60_000) % 10, torch.arange(60_000) >= 50_000
    splits = make_splits(labels, is_test, 25_000, 0.2, 1)
    assert torch.bincount(labels[splits.train]).tolist() == [2_000] * 10
    assert torch.bincount(labels[splits.val]).tolist() == [500] * 10
    assert len(splits.non_member) == 35_000 and splits.test.tolist() == list(range(50_000, 60_000))
    # Written down once: another platform or numpy must draw the same images.
    digest = hashlib.sha256(splits.train.numpy().astype("<i8").tobytes() + splits.val.numpy().astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == "569bca7f87458e3d"
    other = make_splits(labels, is_test, 25_000, 0.2, 2)
    overlap = np.isin(other.train, splits.train).mean()
    assert 0.37 < overlap < 0.43, "two seeds share 20,000 of 50,000 images by chance"


def test_no_class_is_favoured_when_shares_are_equal():
    labels = torch.arange(3).repeat_interleave(torch.tensor([4, 4, 4]))
    wins = torch.zeros(3)
    for seed in range(300):
        wins[labels[make_splits(labels, torch.zeros(12, dtype=torch.bool), 1, 0, seed).train]] += 1
    assert wins.min() > 70, wins


def test_splits_leave_other_generators_alone():
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    make_splits(torch.zeros(9, dtype=torch.int64), torch.zeros(9, dtype=torch.bool), 5, 0.2, 0)
    assert before[:2] == (random.getstate(), np.random.get_state()[1].tolist())
    assert torch.equal(before[2], torch.get_rng_state())


@pytest.mark.parametrize(
    ("train_size", "val_portion", "words"),
    [
        (7, 0.2, ("--train_size 7", "1 to 6")),
        (0, 0.2, ("--train_size 0",)),
        (-1, 0.2, ("--train_size -1",)),
        (2.5, 0.2, ("--train_size 2.5",)),
        (float("nan"), 0.2, ("--train_size nan",)),
        (4, 1, ("--val_portion 1",)),
        (4, -0.1, ("--val_portion -0.1",)),
        (4, float("nan"), ("--val_portion nan",)),
        (1, 0.9, ("no training image",)),
    ],
)
def test_splits_that_cannot_be(train_size, val_portion, words):
    labels, is_test = torch.arange(8) % 2, torch.arange(8) >= 6
    user_error(lambda: make_splits(labels, is_test, train_size, val_portion, 0), *words)


# --- checks ---


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"labels": torch.tensor([0, 1, 2, 0])}, "image 2 has label 2"),
        ({"labels": torch.tensor([0, -1, 1, 0])}, "image 1 has label -1"),
        ({"labels": torch.tensor([0, 0, 0, 1]), "is_test": torch.tensor([False, False, False, True])}, "class 'bee'"),
        ({"labels": torch.tensor([0, 1, 0])}, "one per label"),
        ({"labels": torch.tensor([0, 1, 0]), "is_test": torch.zeros(3, dtype=torch.bool)}, "4 images but 3 labels"),
        ({"labels": torch.tensor([0.0, 1, 0, 1])}, "int64"),
        ({"is_test": torch.zeros(4)}, "bool"),
        ({"images": MemoryStore(torch.full((4, 3, 2, 2), 9, dtype=torch.uint8))}, "all pixels"),
        (
            {
                "images": MemoryStore(torch.zeros((0, 3, 2, 2), dtype=torch.uint8)),
                "labels": torch.zeros(0, dtype=torch.int64),
                "is_test": torch.zeros(0, dtype=torch.bool),
            },
            "no images",
        ),
    ],
)
def test_checks_at_load(change, word):
    good = {
        "images": MemoryStore(torch.arange(48, dtype=torch.uint8).reshape(4, 3, 2, 2)),
        "labels": torch.tensor([0, 1, 1, 0]),
        "class_names": ("ant", "bee"),
        "is_test": torch.zeros(4, dtype=torch.bool),
        "recipe": photos.RECIPE,
    }
    checked_data("mine", **good)
    user_error(lambda: checked_data("mine", **{**good, **change}), "data set mine", word)


def test_checks_of_pixels():
    class Odd:
        image_shape, pixels = (3, 2, 2), torch.rand(4, 3, 2, 2)
        __len__, __getitem__ = lambda self: 4, lambda self, indices: self.pixels[indices]

    labels, is_test = torch.tensor([0, 1, 1, 0]), torch.zeros(4, dtype=torch.bool)
    odd = Odd()
    user_error(lambda: checked_data("mine", odd, labels, "ab", is_test, photos.RECIPE), "mine", "uint8")
    odd.pixels = torch.arange(64, dtype=torch.uint8).reshape(4, 4, 2, 2)
    user_error(lambda: checked_data("mine", odd, labels, "ab", is_test, photos.RECIPE), "mine", "(4, 2, 2)")
    odd.image_shape = (4, 2, 2)
    user_error(lambda: checked_data("mine", odd, labels, "ab", is_test, photos.RECIPE), "mine", "(3, H, W)")
    for pixels in (torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, 3, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            MemoryStore(pixels)
