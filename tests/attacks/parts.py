"""What the tests of the attacks share."""

import math

import numpy as np

from attacks.membership import balanced

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
