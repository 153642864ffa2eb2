"""Photos that show the same: two files of one picture, bursts, edits.

One of them published and the other held out would make the halves alike, and the proof weaker. So near-duplicates are
kept on the same side of the hold-out: a group of them is drawn as one, in the user's own draw and in all the audit's.

Public: perceptual_hash, fingerprint, groups_of, NEAR_BITS.
"""

import imagehash
import numpy as np
from PIL import Image

NEAR_BITS = 6  # of a perceptual hash's 64; pictures within this distance look alike
SMALLEST = 64  # pixels: the hash of a smaller picture says little, and equal hashes of different pictures are common


def perceptual_hash(pixels):
    """The perceptual hash of a picture of any size, uint8 (H, W, 3): bool (64,)."""
    return imagehash.phash(Image.fromarray(np.ascontiguousarray(pixels))).hash.ravel()


def fingerprint(pixels):
    """The perceptual hash of a photo, uint8 (H, W, 3): bool (64,), or None for one that is too small to tell."""
    if min(pixels.shape[:2]) < SMALLEST:
        return None
    return perceptual_hash(pixels)


def groups_of(fingerprints):
    """The group of each photo, whole numbers from 0 in the order of first members: a list of n.

    fingerprints: of `fingerprint`. Whatever is near to a member belongs to the group.
    """
    groups = list(range(len(fingerprints)))
    known = [number for number, one in enumerate(fingerprints) if one is not None]
    if known:
        bits = np.stack([fingerprints[number] for number in known])
        for place, number in enumerate(known):
            near = np.flatnonzero((bits[:place] != bits[place]).sum(axis=1) <= NEAR_BITS)
            for other in near:
                old, new = groups[number], groups[known[other]]
                groups = [new if group == old else group for group in groups]
    order = list(dict.fromkeys(groups))
    return [order.index(group) for group in groups]
