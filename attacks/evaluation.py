"""How well an attack's scores tell members from non-members: rates with their intervals, and the ROC curve.

Public: evaluate, roc, bootstrap_auc.
"""

import numpy as np

import utils
from kit.errors import UserError

# Values of one batch of resamples: what fits a cache.
_AT_ONCE = 2**20


def evaluate(scores, is_member, fprs=(1e-2, 1e-3, 1e-4, 0.0), resamples=1000, seed=0):
    """JSON-ready dict of an attack's rates: scores float (N,), higher for members; is_member bool (N,).

    As `utils.membership_inference`: members, non_members, fpr_at_100_tpr, false_positives, fpr_interval,
    tpr_at_fpr [{fpr, tpr, interval}] and auc. Intervals are 95 % Clopper-Pearson ones of the rate at the threshold
    found; ties count against the attacker: a member is found only where it is above every non-member that is not
    allowed for, and a non-member as high as the lowest member is a false positive. Added: auc_interval, the 95 %
    percentile bootstrap over records (one point where the AUC is 0 or 1), and resamples.
    """
    member, other = _sides(scores, is_member)
    found = utils.membership_inference(-member[:, None], -other[:, None], instance_mi=True, fprs=fprs)
    aucs = bootstrap_auc(scores, is_member, resamples, seed)
    return {
        **found,
        "auc_interval": [float(bound) for bound in np.quantile(aucs, [0.025, 0.975])],
        "resamples": resamples,
    }


def roc(scores, is_member):
    """The ROC curve at every distinct score, the highest first: float64 arrays fpr, tpr, threshold, (K + 1,).

    Row k: the rates of "score >= threshold[k]"; row 0 is (0, 0) with the threshold infinite. Nothing is interpolated or
    left out, so curves can be drawn on a logarithmic axis down to one false positive.
    """
    member, other = _sides(scores, is_member)
    thresholds = np.unique(np.concatenate([member, other]))[::-1]
    tpr, fpr = (
        np.append(0, len(side) - np.searchsorted(np.sort(side), thresholds, side="left")) / len(side)
        for side in (member, other)
    )
    return fpr, tpr, np.append(np.inf, thresholds)


def bootstrap_auc(scores, is_member, resamples=1000, seed=0):
    """AUCs of `resamples` draws with replacement, from members and from non-members apart: float64 (resamples,)."""
    if resamples < 1:
        raise UserError(f"{resamples} resamples give no interval", advice="the default is 1000")
    member, other = _sides(scores, is_member)
    levels, places = np.unique(np.concatenate([member, other]), return_inverse=True)
    sides = places[: len(member)], places[len(member) :]
    draws, aucs = utils.key_generator(seed, "bootstrap of the AUC"), []
    step = max(1, _AT_ONCE // len(places))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        ours, theirs = (_resampled_counts(draws, side, rows, len(levels)) for side in sides)
        # A member beats the non-members below its level and half of those at it.
        beaten = np.cumsum(theirs, axis=1) - theirs / 2
        aucs.append(np.einsum("rl,rl->r", ours, beaten) / (len(member) * len(other)))
    return np.concatenate(aucs)


def _resampled_counts(draws, places, rows, levels):
    """How often each level occurs in `rows` resamples of `places`: float64 (rows, levels)."""
    drawn = places[draws.integers(0, len(places), (rows, len(places)))] + np.arange(rows)[:, None] * levels
    return np.bincount(drawn.ravel(), minlength=rows * levels).reshape(rows, levels).astype(np.float64)


def _sides(scores, is_member):
    scores, is_member = np.asarray(scores, dtype=np.float64), np.asarray(is_member)
    if is_member.dtype != bool or scores.ndim != 1 or scores.shape != is_member.shape:
        raise UserError(
            f"scores {scores.shape} and is_member ({is_member.dtype} {is_member.shape}) don't fit",
            advice="both have one row a record, and is_member is bool",
        )
    if is_member.all() or not is_member.any():
        raise UserError(
            f"{int(is_member.sum())} of {len(scores)} records are members", advice="give members and non-members"
        )
    if not np.isfinite(scores).all():
        raise UserError(f"{int((~np.isfinite(scores)).sum())} scores are not finite")
    return scores[is_member], scores[~is_member]
