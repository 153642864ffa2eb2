"""What the tests of the data sets share: images that they make, and a cache folder of their own."""

import io
import os
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from dataset import store
from kit.errors import UserError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(store, "CACHE_FOLDER", folder)
    return folder


def random_pixels(seed, size=8):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def write_image(path, seed=0, size=8, **save):
    """A PNG or the like of random pixels, which are returned as (3, size, size)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = random_pixels(seed, size)
    Image.fromarray(pixels).save(path, **save)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def fill(root, counts, size=8):
    """Write `count` PNGs into each folder of `counts`; returns the pixels by relative name."""
    names = [f"{folder}/{i}.png" for folder, count in counts.items() for i in range(count)]
    return {name: write_image(root / name, seed=zlib.crc32(name.encode()), size=size) for name in names}


def user_error(call, *words):
    """Assert that `call` raises a one-line UserError with all the words in it; returns its message."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message, f"{word!r} is not in {message!r}"
    return message


def all_images(data):
    return data.images[torch.arange(len(data.images))]


def make_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def image_bytes(seed):
    buffer = io.BytesIO()
    Image.fromarray(random_pixels(seed)).save(buffer, "png")
    return buffer.getvalue()


class RunsCode:
    def __reduce__(self):
        return os.mkdir, (RunsCode.marker,)
