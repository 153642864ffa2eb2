"""Take out of the suspect's scores what reference models explain: how difficult a photo is for anybody.

Photos differ in difficulty far more than in whether a model remembers them. A reference, a model that has never seen
them, tells the difficulty; what is left of a score then speaks of memory (a control variate). The exact test stays
exact, since the references' scores are a function of photos and keys, and since the shares that are subtracted are
worked out from the whole grid, alike for every pair.

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
    there = ~np.isnan(scores) & ~np.isnan(references).any(axis=0)
    weights = np.zeros(len(references))
    if there.sum() < 2:
        return weights
    left = scores[there] - scores[there].mean()
    given = references[:, there] - references[:, there].mean(axis=1, keepdims=True)
    spread = np.sqrt(np.square(given).mean(axis=1))
    total = np.square(left).mean()
    if not total or not spread.any():
        return weights
    scale = np.divide(1, spread, out=np.zeros_like(spread), where=spread > 0)
    along = (given * left).mean(axis=1) * scale
    weights = np.square(np.maximum(along, 0)) / total
    if not weights.any():
        return weights
    weights = weights / weights.sum() * scale
    together = weights @ given
    return KEPT * max(0.0, (together * left).mean() / np.square(together).mean()) * weights


def taken_out(scores, references):
    """Scores without what the references explain, of the same shape.

    scores: float64 (n, L + 1, C), NaN where there is no answer; references: float64 (R, n, L + 1), low where a
    reference finds a photo easy, NaN where it gave no answer (its mean score is taken then).
    """
    references = np.asarray(references, dtype=np.float64)
    if not len(references):
        return scores
    filled, left = _filled(references), scores.copy()
    for label in range(scores.shape[2]):
        left[:, :, label] -= np.tensordot(shares(scores[:, :, label], filled), filled, axes=1)
    return left


def _filled(references):
    """Without NaN: a missing score is the mean of what is there of its reference."""
    there = ~np.isnan(references)
    sums, counts = np.where(there, references, 0.0).sum(axis=(1, 2)), there.sum(axis=(1, 2))
    means = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
    return np.where(there, references, means[:, None, None])
