"""Pixels: image files decoded to uint8 tensors, kept in memory, read on demand, or cached on disk.

Needs Pillow. Public: MemoryStore, FileStore, ImageFile, open_images, decode_images, decode_image, MAX_PIXELS.

A store has `len()`, `image_shape` = (3, H, W), and `store[indices]`, a new uint8 CPU tensor (n, 3, H, W) in the order
of `indices`: a 1-D integer tensor, array or list, in which repeats are allowed and negative numbers are not.
"""

import hashlib
import os
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps

from kit.errors import UserError
from kit.files import atomic_path
from kit.progress import Progress

CACHE_FOLDER = Path(__file__).resolve().parent / ".cache"
IN_MEMORY_BYTES = 1 << 30  # more than this stays in its files and is decoded on demand
MAX_PIXELS = 100_000_000  # a small file can claim a huge picture and fill the memory
CHUNK = 64  # images per job of the thread pool
CACHE_FORMAT = 1  # goes up when decoding changes


class ImageFile(NamedTuple):
    """An image file as a data set knows it before it is read."""

    relative: str  # path below the data set's root, with '/'
    size: int  # bytes
    mtime_ns: int


class MemoryStore:
    """All images as one uint8 tensor (N, 3, H, W)."""

    def __init__(self, pixels):
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ValueError(f"pixels must be uint8 (N, 3, H, W), not {pixels.dtype} {tuple(pixels.shape)}")
        self._pixels = pixels.contiguous()

    def __len__(self):
        return len(self._pixels)

    @property
    def image_shape(self):
        return tuple(self._pixels.shape[1:])

    def __getitem__(self, indices):
        return self._pixels[_checked_indices(indices, len(self))]


class FileStore:
    """Images that stay in their files and are decoded by a thread pool when asked for: constant memory."""

    def __init__(self, paths, height, width):
        self._paths = list(paths)
        self.image_shape = (3, height, width)

    def __len__(self):
        return len(self._paths)

    def __getitem__(self, indices):
        wanted = _checked_indices(indices, len(self)).tolist()
        return decode_images([self._paths[index] for index in wanted], *self.image_shape[1:])


def _checked_indices(indices, length):
    indices = torch.as_tensor(indices).cpu()
    if indices.numel() == 0:
        return torch.zeros(0, dtype=torch.int64)
    if indices.ndim != 1 or indices.dtype.is_floating_point or indices.dtype == torch.bool:
        raise TypeError(f"indices must be 1-D integers, not {indices.dtype} of shape {tuple(indices.shape)}")
    if indices.min() < 0 or indices.max() >= length:
        raise IndexError(f"indices run from {indices.min()} to {indices.max()}, but there are {length} images")
    return indices.long()


def open_images(root, files, height, width, label):
    """Open the ImageFiles `files` below `root` as a store of (3, height, width) images.

    Up to IN_MEMORY_BYTES they are decoded once (progress bar named `label` on a terminal) and cached below
    CACHE_FOLDER under a hash of root, names, sizes, mtimes and target size; beyond, they are a FileStore.
    """
    paths = [os.path.join(root, file.relative) for file in files]
    shape = (len(files), 3, height, width)
    if np.prod(shape, dtype=np.int64) > IN_MEMORY_BYTES:
        return FileStore(paths, height, width)
    cache = CACHE_FOLDER / f"{_fingerprint(Path(root), files, height, width)}.npz"
    pixels = _read_cache(cache, shape)
    if pixels is None:
        pixels = decode_images(paths, height, width, label)
        _write_cache(cache, pixels)
    return MemoryStore(pixels)


def _fingerprint(root, files, height, width):
    digest = hashlib.sha256(f"{CACHE_FORMAT}|{height}|{width}|".encode() + os.fsencode(root.resolve()))
    for file in files:
        digest.update(b"\0%b\0%d\0%d" % (os.fsencode(file.relative), file.size, file.mtime_ns))
    return digest.hexdigest()


def _read_cache(path, shape):
    """The cached uint8 tensor, or None when it is missing or damaged (an .npz carries a CRC-32 of its content)."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            pixels = archive["pixels"]
    except Exception:  # damage can look like anything; what counts is that the images themselves are still there
        return None
    return torch.from_numpy(pixels) if pixels.dtype == np.uint8 and pixels.shape == shape else None


def _write_cache(path, pixels):
    try:
        with atomic_path(path) as temporary:
            np.savez(temporary, pixels=pixels.numpy())
    except OSError as error:
        # A read-only checkout or a full disk costs time at the next start, nothing else.
        print(f"note: decoded images were not cached in {path.parent} ({error.strerror or error})", file=sys.stderr)


def decode_images(paths, height, width, label=None):
    """Decode image files to uint8 (n, 3, height, width), in order, in several threads.

    An image of that very size keeps its pixels; others are scaled (bilinear with antialiasing) until they cover it and
    cropped at the centre. With `label`, a terminal shows a progress bar. Raises UserError naming the unreadable file.
    """
    pixels = np.empty((len(paths), 3, height, width), dtype=np.uint8)

    def decode(start):
        for offset, path in enumerate(paths[start : start + CHUNK], start):
            pixels[offset] = decode_image(path, height, width).transpose(2, 0, 1)
        return min(CHUNK, len(paths) - start)

    # Pillow releases the interpreter while it decodes, so threads are enough.
    pool = ThreadPoolExecutor(min(16, os.cpu_count() or 1))
    with (
        warnings.catch_warnings(),
        Progress(total=len(paths), desc=label, unit="image", disable=not label) as bar,
    ):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # decode_image has its own limit
        try:
            for done in pool.map(decode, range(0, len(paths), CHUNK)):
                bar.update(done)
        finally:
            pool.shutdown(cancel_futures=True)
    return torch.from_numpy(pixels)


def decode_image(path, height, width):
    """Decode one image file to a uint8 RGB array (height, width, 3); see decode_images. Raises UserError."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(
                    f"{path} claims {image.width} x {image.height} pixels, above the limit of "
                    f"{MAX_PIXELS // 1_000_000} megapixels",
                    advice="remove it or scale it down",
                )
            return np.asarray(_cover(_to_rgb(_upright(image)), height, width))
    except (UserError, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise nearly anything at a damaged file
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(
            f"{path} is not a readable image ({reason})", advice="remove it or get an undamaged copy"
        ) from None


def _upright(image):
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    return ImageOps.exif_transpose(image) if turned else image


def _to_rgb(image):
    if image.mode.startswith("I"):  # 16 bits a pixel, which convert() would clip at 255 instead of scaling
        image = Image.fromarray((np.asarray(image, dtype=np.int64) >> 8).clip(0, 255).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    return image.convert("RGB")


def _cover(image, height, width):
    if image.size == (width, height):
        return image
    scale = max(height / image.height, width / image.width)
    size = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels are too narrow to be scaled to {width} x {height}")
    image = image.resize(size, Image.Resampling.BILINEAR)  # returns a copy when the size is the same
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return image.crop((left, top, left + width, top + height))
