"""What is drawn, and from what: keys and selections out of a secret, a commitment and public randomness.

Everything random follows from HMAC-SHA256(secret, context), where the context is the digest of the commitment (which
fixes photos, settings, plan and the beacon's round before that round is known) and of the round's randomness. Whoever
draws a secret anew before the round is out does not know what it will give; afterwards nothing is left to choose.
Photos are taken in the order of the SHA-256 of their content, so that names and numbers decide nothing.

Two secrets are derived from one: the evidence shows the selections' and never the marks'.

Public: mark_secret, selection_secret, context_of, mark_key, selection, sequence, fitting_groups,
PRIVATE_RANDOMNESS.
"""

import hashlib
import hmac

import numpy as np

from utils import derive_key

PRIVATE_RANDOMNESS = ""  # in place of a beacon's randomness: the draw then rests on the secret alone


def mark_secret(secret):
    """What the keys of the marks follow from: 32 bytes. secret: 32 bytes, a batch's own."""
    return _hmac(secret, "marks")


def selection_secret(secret):
    """What the selections follow from: 32 bytes."""
    return _hmac(secret, "selections")


def context_of(commitment, randomness):
    """The public context of a batch's draws: 32 bytes. commitment: hex; randomness: the beacon's, hex, or
    PRIVATE_RANDOMNESS."""
    return derive_key("draw", commitment, randomness)


def mark_key(marks, context, number, audit_seed=""):
    """The key of the user's own marks (number 0), or the audit's fresh key `number`: 32 bytes."""
    return _hmac(marks, "key", context, number, audit_seed if number else "")


def selection(selections, context, number, photos, published, audit_seed="", groups=()):
    """bool (photos,): which photos, in the order of their content's SHA-256, are published (number 0), or would have
    been in the audit's fresh draw `number`.

    groups: the group of each photo, () for none. Photos of a group are drawn together: groups in random order, each
    that still fits into `published`. Each group must be smaller than that (see `fitting_groups`).
    """
    stream = hashlib.shake_256(_hmac(selections, "selection", context, number, audit_seed if number else ""))
    chosen = np.zeros(photos, dtype=bool)
    if not groups:
        chosen[np.argsort(np.frombuffer(stream.digest(8 * photos), "<u8"), kind="stable")[:published]] = True
        return chosen
    sizes, left = np.bincount(groups), published
    for group in np.argsort(np.frombuffer(stream.digest(8 * len(sizes)), "<u8"), kind="stable"):
        if sizes[group] <= left:
            chosen |= np.asarray(groups) == group
            left -= sizes[group]
    return chosen


def sequence(drawn, photos, audit_seed=""):
    """The order in which a sequential audit asks about `photos` photos, int (photos,): it follows from the secrets that
    the evidence shows, and says nothing about the selections. drawn: (secret of the selections, context) of each batch.
    """
    parts = [_hmac(secret, "sequence", context, audit_seed) for secret, context in drawn]
    stream = hashlib.shake_256(derive_key(*parts, "sequence"))
    return np.argsort(np.frombuffer(stream.digest(8 * photos), "<u8"), kind="stable")


def fitting_groups(groups, published):
    """The groups that are drawn together, (): none. Photos of a group that is larger than half of what is
    published are drawn one by one: groups so large would leave too little to draw.
    """
    sizes = np.bincount(groups)
    if sizes.max() == 1:
        return ()
    numbers, fresh = {}, []
    for place, group in enumerate(groups):
        large = sizes[group] > max(1, published // 2)
        fresh.append(numbers.setdefault(("photo", place) if large else ("group", group), len(numbers)))
    return () if len(numbers) == len(groups) else tuple(fresh)


def _hmac(secret, *parts):
    return hmac.digest(secret, derive_key(*parts), "sha256")
