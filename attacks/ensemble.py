"""Several attacks as one: what each says alone is noisy, and noise that they don't share averages out.

Scores of different attacks have no common unit, so each becomes its rank among the target's own records, as a normal
score; these are averaged (van der Waerden). An attacker who asks about many records can do this without anything else.
Public: average.
"""

import numpy as np
from scipy.stats import norm, rankdata

from kit.errors import UserError


def average(scores):
    """Mean normal score of a list of scores (N,), each higher for members: float64 (N,). Ties share their rank."""
    scores = [np.asarray(one, dtype=np.float64) for one in scores]
    if len(scores) < 2 or len({one.shape for one in scores}) > 1 or scores[0].ndim != 1:
        raise UserError(f"{len(scores)} scores make no ensemble", advice="give two or more, (N,) each")
    return np.mean([norm.ppf(rankdata(one) / (len(one) + 1)) for one in scores], axis=0)
