"""Range membership inference: was the model trained on anything in this range? (RaMIA; Tao and Shokri, "Range
Membership Inference Attacks", 2024).

Who holds a cropped, recompressed or otherwise changed copy of a record asks not for this copy but for the range
around it: all that a rotation by some degrees, a crop, or a small change of a row makes of it. Points are sampled,
each gets a score of a membership inference attack, and the range's score is an average of the upper part of them:
most points are far from the record that was trained on and score low, a few score high by chance.
Public: range_score, tune_trim, TRIMS.
"""

import math

import numpy as np
from sklearn.metrics import roc_auc_score

from kit.errors import UserError

# Quantiles between which point scores are averaged; the first is the plain mean.
TRIMS = ((0.0, 1.0), (0.25, 1.0), (0.5, 1.0), (0.75, 1.0), (0.25, 0.9), (0.5, 0.9))


def range_score(point_scores, lower=0.0, upper=1.0):
    """Mean of each range's scores between two of their quantiles: float64 (N,), higher for ranges with a member.

    point_scores: (S, N), S sampled points of each of N ranges; lower < upper in [0, 1], shares of the points that are
    left out below, and kept below and within. At least one point is kept: (1 - 1 / S, 1) is the maximum.
    """
    point_scores = np.asarray(point_scores, dtype=np.float64)
    if point_scores.ndim != 2 or 0 in point_scores.shape or not np.isfinite(point_scores).all():
        raise UserError(f"scores of ranges are (points, ranges) and finite, not {point_scores.shape}")
    if not 0 <= lower < upper <= 1:
        raise UserError(f"quantiles {lower} and {upper} are not an interval in [0, 1]")
    count = len(point_scores)
    last = max(1, math.ceil(upper * count - 1e-9))
    first = min(math.floor(lower * count + 1e-9), last - 1)
    return np.sort(point_scores, axis=0)[first:last].mean(axis=0)


def tune_trim(point_scores, is_member, candidates=TRIMS):
    """The (lower, upper) of `candidates` with the highest AUC on a model whose members are known: a pair of floats.

    point_scores: (S, N) of that model, a reference model that was left out, never the target; is_member: bool (N,),
    whether the range has a record that it was trained on. Of equal AUCs the first candidate's is taken.
    """
    aucs = [roc_auc_score(is_member, range_score(point_scores, *trim)) for trim in candidates]
    return tuple(float(share) for share in candidates[int(np.argmax(aucs))])
