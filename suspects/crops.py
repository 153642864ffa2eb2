"""Random crops of a picture, and how far an encoder's embeddings of them are apart: it embeds crops of what it was
trained on more alike (the signal of EncoderMI, Liu et al. 2021).

Public: crops_of, crops, disagreement, settings, VIEWS, AREA, SHAPE.
"""

import numpy as np
from PIL import Image

from utils import key_generator

VIEWS = 8
AREA, SHAPE = (0.4, 1.0), 4 / 3  # of a crop: share of the picture; its height by its width, or the inverse, at most


def crops_of(seed, count=VIEWS):
    """[(height, width, top, left, whether it is mirrored), ...]: the first two as shares of the sides, the next two as
    shares of the room that is left. The same for a seed on every machine."""
    draws = key_generator(seed, "crops").random((count, 5))
    found = []
    for share, shape, top, left, mirrored in draws:
        area, ratio = AREA[0] + share * (AREA[1] - AREA[0]), SHAPE ** (2 * shape - 1)
        sides = (min(1.0, (area * by) ** 0.5) for by in (ratio, 1 / ratio))
        found.append((*sides, top, left, bool(mirrored < 0.5)))
    return found


def crops(images, drawn):
    """The drawn crops of pictures, scaled to their size: uint8 (N, 3, h, w) -> (N, len(drawn), 3, h, w)."""
    sides = images.shape[2:]
    found = np.empty((len(images), len(drawn), 3, *sides), np.uint8)
    for image, views in zip(images, found, strict=True):
        whole = Image.fromarray(image.transpose(1, 2, 0))
        for place, (*shares, mirrored) in enumerate(drawn):
            height, width = (max(1, round(share * side)) for share, side in zip(shares[:2], sides, strict=True))
            top, left = round(shares[2] * (sides[0] - height)), round(shares[3] * (sides[1] - width))
            box = (left, top, left + width, top + height)
            view = np.asarray(whole.crop(box).resize(sides[::-1], Image.Resampling.BICUBIC))
            views[place] = (view[:, ::-1] if mirrored else view).transpose(2, 0, 1)
    return found


def disagreement(embeddings):
    """1 - cosine, the mean over all pairs of views: (N, V, D) -> float64 (N,), from 0 to about 1."""
    vectors = np.asarray(embeddings, np.float64)
    vectors = vectors / np.linalg.norm(vectors, axis=2, keepdims=True)
    # Half of a squared distance each, whose sum over pairs is that to the mean: a difference of cosines near 1 would
    # lose its digits.
    apart = np.square(vectors - vectors.mean(axis=1, keepdims=True)).sum(axis=(1, 2))
    return apart / (vectors.shape[1] - 1)


def settings():
    """What a disagreement hangs on beside encoder and seed, JSON-ready."""
    return {"views": VIEWS, "area": list(AREA), "shape": round(SHAPE, 6)}
