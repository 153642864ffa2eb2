"""The photos inside of scikit-image and scikit-learn."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dataset
from dataset import photos
from dataset.base import make_splits
from tests.dataset.parts import all_images, write_image
from tests.parts import user_error


@pytest.fixture(scope="module")
def photo_data():
    return dataset.load_dataset("photos")


def test_photos(photo_data):
    data, recipe = photo_data, dataset.recipe("photos")
    assert len(data.class_names) == len(set(data.class_names)) == 99 and len(data.labels) == 2_966
    assert data.images.image_shape == (3, 32, 32) and not data.is_test.any() and data.recipe == recipe
    crops = all_images(data).permute(0, 2, 3, 1).numpy()
    assert photos.deviation(crops).min() > photos.LEAST_DEVIATION + 0.1, "rounding could change which crops are kept"
    assert len(np.unique(crops.reshape(len(crops), -1), axis=0)) == len(crops), "two crops are the same"
    counts = torch.bincount(data.labels)
    for seed in range(5):  # enough images in every class for a user of it on either side
        splits = make_splits(data.labels, data.is_test, recipe.train_size, recipe.val_portion, seed)
        assert torch.bincount(data.labels[splits.non_member]).min() >= 10
        assert torch.bincount(data.labels[splits.train]).min() >= recipe.marked_samples_per_user
    assert len(set(recipe.target_user_cls)) == 5 and counts[list(recipe.target_user_cls)].min() >= 35
    assert recipe.train_size == 1_500 and recipe.marked_samples_per_user == 8 and recipe.num_of_non_member_user == 1_000


def test_photo_crops_are_where_they_say():
    for photo in photos.PHOTOS:
        image = photos.open_photo(photo)
        crops, ninths, corners = photos.crop_photo(image, photo.shrink)
        pixels = np.asarray(image.reduce(photo.shrink))
        taken = np.zeros(pixels.shape[:2], dtype=int)
        for crop, ninth, (y, x) in zip(crops, ninths, corners, strict=True):
            assert np.array_equal(crop, pixels[y : y + 32, x : x + 32])
            taken[y : y + 32, x : x + 32] += 1
            row, column = (y + 16) * 3 // taken.shape[0], (x + 16) * 3 // taken.shape[1]
            assert ninth == 3 * row + column
        assert taken.max() == 1, f"crops of {photo.name} overlap"


def test_constant_crops_are_left_out():
    picture = np.zeros((96, 96, 3), dtype=np.uint8)
    picture[64:, 32:64] = np.random.default_rng(0).integers(0, 256, (32, 32, 3))
    crops, ninths, corners = photos.crop_photo(Image.fromarray(picture), 1)
    assert ninths.tolist() == [7] and corners.tolist() == [[64, 32]] and np.array_equal(crops[0], picture[64:, 32:64])


def test_photos_run_no_foreign_code_and_use_no_network():
    code = (
        "import socket, sys; socket.socket.connect = socket.getaddrinfo = None; "
        "import dataset; dataset.load_dataset('photos'); "
        "print([name for name in ('skimage', 'sklearn', 'torchvision') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(dataset.__file__).parents[1], capture_output=True, text=True, timeout=600
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")


def test_photos_that_have_changed(tmp_path, monkeypatch):
    class Spec:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr(photos.importlib.util, "find_spec", lambda name: Spec)
    user_error(lambda: dataset.load_dataset("photos"), "astronaut.png", "missing", "scikit-image==")
    write_image(tmp_path / "data/astronaut.png")
    user_error(lambda: dataset.load_dataset("photos"), "astronaut.png", "not the expected file", "scikit-image==")
    monkeypatch.setattr(photos.importlib.util, "find_spec", lambda name: None)
    user_error(lambda: dataset.load_dataset("photos"), "skimage is not installed", "pip install scikit-image==")
