"""What the tests of the data sets share: images and archives that they make."""

import io
import os
import tarfile
import zipfile
import zlib

import numpy as np
import torch
from PIL import Image

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


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


def all_images(data):
    return data.images[torch.arange(len(data.images))]


def make_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def make_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


MAKERS = {"zip": make_zip, "tar": make_tar}


def image_bytes(seed):
    buffer = io.BytesIO()
    Image.fromarray(random_pixels(seed)).save(buffer, "png")
    return buffer.getvalue()


class RunsCode:
    def __reduce__(self):
        return os.mkdir, (RunsCode.marker,)
