"""`photos`, the embedded default: real images that come inside the scikit-image and scikit-learn wheels. No download.

Each of 11 photographs is cut into 32-px crops that do not overlap; the label is which ninth (3 x 3) of which
photograph the middle of a crop lies in: 99 classes. Neighbouring ninths look alike, so that a small network has to
memorise much of what it is trained on, as on the paper's data sets; easy images leave membership nothing to show.

Needs both packages installed (their code is not imported) and Pillow.
Public: RECIPE, load, PHOTOS, Photo, open_photo, crop_photo, deviation.
"""

import hashlib
import importlib.util
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from dataset.base import ImageData, Recipe, checked_data
from dataset.store import MemoryStore
from kit.errors import UserError

CROP = 32
# Mean over the channels of the standard deviation within a crop, in 0..255. Below are the black border of a scan and
# clipped highlights. No crop comes within 0.1 of it, so that decoders that round differently give the same crops.
LEAST_DEVIATION = 0.7
VERSIONS = {"skimage": "scikit-image==0.26.0", "sklearn": "scikit-learn==1.9.1"}


class Photo(NamedTuple):
    """A photograph inside an installed package."""

    name: str
    package: str
    file: str
    shrink: int  # whole factor of a box filter, which evens out how many crops the photographs give
    sha256: str


# Left out: the motorcycle's right view (a near copy of the left one), the cat (too small for 20 crops a ninth),
# drawings, and grey pictures but for two textures.
PHOTOS = (
    Photo(
        "astronaut",
        "skimage",
        "data/astronaut.png",
        1,
        "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    ),
    Photo(
        "coffee", "skimage", "data/coffee.png", 1, "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7"
    ),
    Photo(
        "galaxies",
        "skimage",
        "data/hubble_deep_field.jpg",
        2,
        "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
    ),
    Photo("tissue", "skimage", "data/ihc.png", 1, "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef"),
    Photo(
        "motorcycle",
        "skimage",
        "data/motorcycle_left.png",
        1,
        "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179",
    ),
    Photo(
        "retina", "skimage", "data/retina.jpg", 2, "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6"
    ),
    Photo(
        "rocket", "skimage", "data/rocket.jpg", 1, "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c"
    ),
    Photo(
        "gravel", "skimage", "data/gravel.png", 1, "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12"
    ),
    Photo("grass", "skimage", "data/grass.png", 1, "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89"),
    Photo(
        "temple",
        "sklearn",
        "datasets/images/china.jpg",
        1,
        "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29",
    ),
    Photo(
        "flower",
        "sklearn",
        "datasets/images/flower.jpg",
        1,
        "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638",
    ),
)
NINTHS = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
# So many epochs because only a network that has learnt its images by heart tells who marked them. `train.py --dataset
# photos --target_user_cls 36 4 31 41 84`, 1,000 non-member users, one CPU thread: 70 epochs 26 s, training accuracy
# 79 %, FPR@100%TPR 0.3 %; 120 epochs 54-65 s, 89-91 %, 0 and 0.1 %; 200 epochs 79-83 s, 93-95 %, 0 at each of 3 seeds.
# Classes: 35 to 40 crops of pictures whose ninths differ. In a texture, the one marked ninth draws all marks to itself.
RECIPE = Recipe(
    net_type="smallnet",
    train_size=1_500,
    epoch=200,
    lr=0.1,
    batch_size=64,
    momentum=0.9,
    weight_decay=5e-4,
    val_portion=0.2,
    marked_samples_per_user=8,
    num_of_non_member_user=1_000,
    target_user_cls=(36, 4, 31, 41, 84),
    normalization="train",
)


def load(data_root=None, image_size=None) -> ImageData:
    """Cut the crops. `data_root` is not used. Raises UserError for a missing package or a file that has changed."""
    if image_size not in (None, CROP):
        raise UserError(
            f"data set photos: crops are {CROP} px, --image_size {image_size} can't be had", advice="leave it out"
        )
    parts = [crop_photo(open_photo(photo), photo.shrink) for photo in PHOTOS]
    pixels = torch.from_numpy(np.concatenate([crops for crops, _, _ in parts])).permute(0, 3, 1, 2)
    labels = torch.from_numpy(np.concatenate([9 * index + ninths for index, (_, ninths, _) in enumerate(parts)]))
    class_names = [f"{photo.name} {ninth}" for photo in PHOTOS for ninth in NINTHS]
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    return checked_data("photos", MemoryStore(pixels), labels, class_names, is_test, RECIPE)


def crop_photo(image, shrink):
    """Cut an RGB image into crops on a centred grid, leaving out those of almost no variance.

    Returns crops uint8 (n, 32, 32, 3), ninths int64 (n,) in 0..8 row by row, corners int64 (n, 2), the y and x of each
    crop's upper left pixel in the shrunk image.
    """
    pixels = np.asarray(image.reduce(shrink))
    height, width = pixels.shape[:2]
    tops = height % CROP // 2 + CROP * np.arange(height // CROP)
    lefts = width % CROP // 2 + CROP * np.arange(width // CROP)
    corners = np.stack(np.meshgrid(tops, lefts, indexing="ij"), axis=-1).reshape(-1, 2)
    crops = np.stack([pixels[y : y + CROP, x : x + CROP] for y, x in corners])
    row, column = (3 * (corners + CROP // 2) // (height, width)).T
    kept = deviation(crops) >= LEAST_DEVIATION
    return crops[kept], (3 * row + column)[kept].astype(np.int64), corners[kept].astype(np.int64)


def deviation(crops):
    """Standard deviation of the pixels of each crop, averaged over the channels: float64 (n,)."""
    return crops.astype(np.float64).std(axis=(1, 2)).mean(axis=-1)


def open_photo(photo):
    """A photograph in RGB, straight from its package; UserError when package or file is not the expected one."""
    spec = importlib.util.find_spec(photo.package)  # finds a package's folder without running its code
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"data set photos: {photo.package} is not installed", advice=f"pip install {VERSIONS[photo.package]}"
        )
    path = Path(spec.submodule_search_locations[0], photo.file)
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != photo.sha256:
        raise UserError(
            f"data set photos: {path} is {'not the expected file' if content else 'missing'}",
            advice=f"pip install --force-reinstall {VERSIONS[photo.package]}",
        )
    with Image.open(io.BytesIO(content)) as image:
        return image.convert("RGB")
