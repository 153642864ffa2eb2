"""Take out of the suspect's scores what reference models explain: how difficult a photo is for anybody.

Photos differ in difficulty far more than in whether a model remembers them. A reference, a model that has never seen
them, tells the difficulty; what is left of a score then speaks of memory (a control variate). The exact test stays
exact, since the references' scores are a function of photos and keys, and since the shares that are subtracted are
worked out in the same way for every key, from all of its photos.

The share may differ from key to key. A network that knows the own key's photos by heart finds none of them difficult,
held-out ones included, while it fails at those under other keys; a share for all keys then puts the reference's noise
in place of the small differences that show which ones it was trained on (results/paper-size).

What was compared is in studies/statistic.py (results/statistic).

Public: taken_out, shares, KEPT.
"""

import numpy as np

# Of the share that least squares gives: half of the photos are remembered, whose scores say little about difficulty,
# and a poor reference is subtracted less.
KEPT = 0.7


def shares(scores, references):
    """How much of each reference's score is subtracted: float64 (R,), at least 0.

    scores: float64 (n, L + 1), NaN where the suspect gave no answer; references: float64 (R, n, L + 1), NaN likewise.
    The mean of the standardised references, each weighted by how much of the scores it explains alone (r^2), times
    KEPT x the least-squares slope. A reference that explains nothing, or the opposite, gets nothing.
    """
    weights, slope = _line(scores, references)
    return KEPT * slope * weights


def _line(scores, references):
    """(weights of the references, float64 (R,); least-squares slope of the scores on their weighted sum, at least 0);
    the arguments of `shares`."""
    there = ~np.isnan(scores) & ~np.isnan(references).any(axis=0)
    weights = np.zeros(len(references))
    if there.sum() < 2:
        return weights, 0.0
    left = scores[there] - scores[there].mean()
    given = references[:, there] - references[:, there].mean(axis=1, keepdims=True)
    spread = np.sqrt(np.square(given).mean(axis=1))
    total = np.square(left).mean()
    if not total or not spread.any():
        return weights, 0.0
    scale = np.divide(1, spread, out=np.zeros_like(spread), where=spread > 0)
    along = (given * left).mean(axis=1) * scale
    weights = np.square(np.maximum(along, 0)) / total
    if not weights.any():
        return weights, 0.0
    weights = weights / weights.sum() * scale
    together = weights @ given
    return weights, max(0.0, (together * left).mean() / np.square(together).mean())


def _slopes(scores, together, slope):
    """The least-squares slope of each key's scores on what the references say together, at least 0: float64 (L + 1,).

    scores: float64 (n, L + 1), NaN where there is no answer; together: float64 (n, L + 1); slope: that of all keys, to
    which each key's own is drawn as far as their difference may be chance (the positive-part estimator of James and
    Stein: by the ratio of its variance to the squared difference).
    """
    there = ~np.isnan(scores)
    count = np.maximum(there.sum(axis=0), 1)
    left, given = (
        np.where(there, part - np.where(there, part, 0).sum(axis=0) / count, 0) for part in (scores, together)
    )
    total = np.square(given).sum(axis=0)
    told = total > 0
    own = np.divide(np.maximum((left * given).sum(axis=0), 0), total, out=np.full(len(total), slope), where=told)
    chance = np.square(left - own * given).sum(axis=0) / count
    chance = np.divide(chance, total, out=np.zeros_like(total), where=told)
    apart = np.square(own - slope)
    drawn = np.divide(chance, apart, out=np.ones_like(apart), where=apart > chance)
    return own + drawn * (slope - own)


def taken_out(scores, references, by_key=True):
    """Scores without what the references explain, of the same shape.

    scores: float64 (n, L + 1, C), NaN where there is no answer; references: float64 (R, n, L + 1), low where a
    reference finds a photo easy, NaN where it gave no answer (its mean score is taken then). by_key: shares may differ
    from key to key; False: all have the same, as in version 2 of the statistic.
    """
    references = np.asarray(references, dtype=np.float64)
    if not len(references):
        return scores
    filled, left = _filled(references), scores.copy()
    if not by_key:
        for label in range(scores.shape[2]):
            left[:, :, label] -= np.tensordot(shares(scores[:, :, label], filled), filled, axes=1)
        return left
    # What is said above the mean over all keys, so that a smaller share makes no key look better remembered.
    above = filled - filled.mean(axis=(1, 2), keepdims=True)
    for label in range(scores.shape[2]):
        weights, slope = _line(scores[:, :, label], above)
        together = np.tensordot(weights, above, axes=1)
        left[:, :, label] -= KEPT * _slopes(scores[:, :, label], together, slope) * together
    return left


def _filled(references):
    """Without NaN: a missing score is the mean of what is there of its reference."""
    there = ~np.isnan(references)
    sums, counts = np.where(there, references, 0.0).sum(axis=(1, 2)), there.sum(axis=(1, 2))
    means = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
    return np.where(there, references, means[:, None, None])
