"""What the tests of the attacks share."""

import math

import numpy as np

from attacks.membership import balanced
from suspects.suspect import Answers

HALF = np.array([[True, False], [False, True]])


def random_generator(seed):
    return np.random.default_rng(seed)


def auc_tolerance(members, non_members):
    """Five standard errors of an AUC, at their largest (AUC 0.5)."""
    return 5 * math.sqrt((members + non_members + 1) / (12 * members * non_members))


def gaussian_world(models, records, seed, shift=1.0, spread=1.0, mean=0.0):
    """Scaled confidences mu_i + shift * member + N(0, 1) with mu_i from N(mean, spread): of a target, of references.

    Returns target (N,), references (M, N), their membership (M, N), the target's membership (N,).
    """
    draws = random_generator(seed)
    level = mean + spread * draws.normal(size=records)
    inside, is_member = balanced(models, records, seed), draws.permutation(np.arange(records) % 2 == 0)
    return (
        level + shift * is_member + draws.normal(size=records),
        level + shift * inside + draws.normal(size=(models, records)),
        inside,
        is_member,
    )


def random_answers(kind, rows, classes, rng):
    logits = rng.normal(size=(rows, classes)).astype(np.float32) * 3
    if kind == "logits":
        return Answers(logits)
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    if kind == "probabilities":
        return Answers(chances)
    order = np.argsort(-logits, axis=1)
    if kind == "labels":
        return Answers(None, order[:, :1].astype(np.int32))
    named, values = order[:, :3].astype(np.int32), np.take_along_axis(chances, order[:, :3], 1)
    shuffled = rng.permuted(np.tile(np.arange(3), (rows, 1)), axis=1)  # servers need not sort
    named, values = np.take_along_axis(named, shuffled, 1), np.take_along_axis(values, shuffled, 1)
    gone = (np.arange(3) == 2) & (rng.random((rows, 3)) < 0.3) & (values < values.max(axis=1, keepdims=True))
    return Answers(np.where(gone, 0, values).astype(np.float32), np.where(gone, -1, named).astype(np.int32))
