"""Intervals where the cases are no independent ones: the same record in several target models, the same model for all
its records.

Rates over all targets count every (record, model) pair. A record that is easy to find is found in most models, and a
model that memorises does so for all records; intervals that take pairs for independent draws are too narrow then. Here
records and models are both drawn again with replacement (the pigeonhole bootstrap of Owen 2007, which is rather wide
than narrow), and a pair weighs the product of how often its record and its model were drawn.
Public: intervals, stability, differences.
"""

import numpy as np

import utils
from kit.errors import UserError


def intervals(scores, is_member, fprs, resamples=200, seed=0):
    """95 % percentile intervals over records and models: a JSON-ready dict.

    scores: float (T, N), higher for members, comparable over all T targets; is_member: bool (T, N). With one target
    only records are drawn. Keys: auc_interval; tpr_at_fpr [{fpr, interval, fpr_interval}], of the TPR with the
    threshold chosen anew in each resample, and of the FPR at the threshold of the data; resamples. Where nobody was
    found in any resample, the interval ends at 0 and says little: look at Clopper-Pearson's beside it.
    """
    curve = _Curve(scores, is_member)
    aucs, tprs, others = [], [], []
    fixed = [curve.last_within(curve.weighted(np.ones(len(curve.pairs)))[1], fpr) for fpr in fprs]
    for weights in _weights(*np.shape(scores), resamples, seed):
        found, false = curve.weighted(weights[curve.pairs])
        if found[-1] == 0 or false[-1] == 0:
            continue  # nobody of one side was drawn
        aucs.append(_area(found, false))
        tprs.append([curve.at(found, curve.last_within(false, fpr)) for fpr in fprs])
        others.append([curve.at(false, place) for place in fixed])
    if not aucs:
        raise UserError("too few records for a bootstrap", advice="give members and non-members")
    ends = [0.025, 0.975]
    tpr_ends, fpr_ends = (
        np.quantile(np.array(values).reshape(len(aucs), len(fprs)), ends, axis=0).T.tolist()
        for values in (tprs, others)
    )
    return {
        "auc_interval": np.quantile(aucs, ends).tolist(),
        "tpr_at_fpr": [
            {"fpr": fpr, "interval": tpr_end, "fpr_interval": fpr_end}
            for fpr, tpr_end, fpr_end in zip(fprs, tpr_ends, fpr_ends, strict=True)
        ],
        "resamples": len(aucs),
    }


def differences(scores, others, is_member, fpr, resamples=200, seed=0):
    """95 % interval of TPR(scores) - TPR(others) at one FPR, over the same draws of records and models: two floats.

    scores, others: float (T, N) of the same pairs; fpr None: of the AUC.
    """
    curves, found = [_Curve(values, is_member) for values in (scores, others)], []
    for weights in _weights(*np.shape(scores), resamples, seed):
        rates = [_rate(curve, weights, fpr) for curve in curves]
        if None not in rates:
            found.append(rates[0] - rates[1])
    return np.quantile(found, [0.025, 0.975]).tolist()


def stability(scores, is_member, threshold):
    """Which records all models give away, at one threshold for all: a JSON-ready dict.

    scores, is_member: (T, N). Counted are the records that two or more targets, trained with different seeds and other
    records, were trained on: records; any: found in one of those at least; all: found in every one; by_chance: how many
    would be found in every one if each target found its own at random, at its own rate; agreement: all / any (None
    where any is 0).
    """
    scores, is_member = np.asarray(scores), np.asarray(is_member)
    chosen = is_member.sum(axis=0) > 1
    inside, hits = is_member[:, chosen], (scores > threshold)[:, chosen] & is_member[:, chosen]
    rates = hits.sum(axis=1) / np.maximum(inside.sum(axis=1), 1)
    everywhere, somewhere = int((hits == inside).all(axis=0).sum()), int(hits.any(axis=0).sum())
    return {
        "records": int(chosen.sum()),
        "any": somewhere,
        "all": everywhere,
        "by_chance": float(np.where(inside, rates[:, None], 1.0).prod(axis=0).sum()) if chosen.any() else 0.0,
        "agreement": everywhere / somewhere if somewhere else None,
    }


class _Curve:
    """Pairs from the highest score down, so that a resample is two cumulative sums."""

    def __init__(self, scores, is_member):
        scores, is_member = np.asarray(scores, dtype=np.float64), np.asarray(is_member)
        if scores.ndim != 2 or scores.shape != is_member.shape or is_member.dtype != bool:
            raise UserError(
                f"scores {scores.shape} and is_member ({is_member.dtype} {is_member.shape}) don't fit",
                advice="both are (targets, records), and is_member is bool",
            )
        self.pairs = np.argsort(-scores, axis=None, kind="stable")
        ranked = scores.ravel()[self.pairs]
        # Equal scores are above the same thresholds.
        self._ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
        self._inside = is_member.ravel()[self.pairs]

    def weighted(self, weights):
        """Members and non-members at or above each distinct score: float64 (K,) each. weights: (T N,), ranked."""
        total = np.cumsum(weights, dtype=np.float64)[self._ends]
        found = np.cumsum(np.where(self._inside, weights, 0), dtype=np.float64)[self._ends]
        return found, total - found

    @staticmethod
    def last_within(false, fpr):
        """The place of the lowest score that lets at most a share fpr of the non-members pass; -1: there is none."""
        return int(np.searchsorted(false, fpr * false[-1] + 1e-9 * false[-1], side="right")) - 1

    @staticmethod
    def at(cumulative, place):
        """The share at a place of `last_within`."""
        return 0.0 if place < 0 else float(cumulative[place] / cumulative[-1])


def _rate(curve, weights, fpr):
    found, false = curve.weighted(weights[curve.pairs])
    if found[-1] == 0 or false[-1] == 0:
        return None
    if fpr is not None:
        return curve.at(found, curve.last_within(false, fpr))
    return _area(found, false)


def _area(found, false):
    """Below the curve of cumulative members over cumulative non-members: the AUC, ties counted half."""
    tpr, fpr = found / found[-1], false / false[-1]
    return float(np.sum(np.diff(fpr, prepend=0.0) * (tpr + np.concatenate([[0.0], tpr[:-1]])) / 2))


def _weights(targets, records, resamples, seed):
    """How often each pair was drawn: int64 (T N,), for each resample."""
    draws = utils.key_generator(seed, "bootstrap over records and models")
    for _ in range(resamples):
        of_records = np.bincount(draws.integers(0, records, records), minlength=records)
        of_targets = (
            np.bincount(draws.integers(0, targets, targets), minlength=targets) if targets > 1 else np.ones(1, np.int64)
        )
        yield np.outer(of_targets, of_records).ravel()
