"""Huang et al.'s sequential test (CCS'24): how many of N comparisons are won, looking at them one by one.

Each of N pairs of copies was decided by a fair coin, so that a model that knows none of them is won over in a number
W of pairs that is Binomial(N, 1/2). Pairs are looked at in random order, without replacement, and a confidence
sequence for W (Waudby-Smith and Ramdas, NeurIPS 2020) is valid at whatever moment one stops.

Public: decision_threshold, lower_bounds, sequential_test.
"""

import numpy as np
from scipy.special import betaln, gammaln
from scipy.stats import binom


def decision_threshold(count, p):
    """(T, alpha): "used" is said when W >= T is certain at level alpha, so that P(false detection) <= p.

    T is the smallest with P(Binomial(count, 1/2) >= T) < p, and alpha the rest of p, which the confidence sequence may
    spend: a false detection needs W >= T or a sequence that misses W. (Huang et al. bound the tail by Chernoff; the
    exact tail asks for fewer wins. "Lower bound above count / 2" alone would accuse half of all innocent models in the
    end, because W is above count / 2 for half of them.) T is None where even W = count is not rare enough.
    """
    tails = binom.sf(np.arange(count + 1) - 1, count, 0.5)
    rare = np.flatnonzero(tails < p)
    return (int(rare[0]), float(p - tails[rare[0]])) if len(rare) else (None, 0.0)


def lower_bounds(wins, alpha):
    """Lower ends of the confidence sequence for the number of wins among all N: int64 (N,), never falling.

    wins: bool (N,), the comparisons in the random order in which they are looked at. Entry n - 1 is what is known
    after n of them; all entries hold together with a probability of at least 1 - alpha.

    The prior-posterior ratio of the true W is a martingale that starts at 1, so that it ever reaches 1 / alpha with a
    probability of at most alpha (Ville). Uniform prior on 0..N: with s wins among n, the posterior of W - s is
    beta-binomial(N - n, 1 + s, 1 + n - s).
    """
    wins = np.asarray(wins, dtype=bool)
    total, possible = len(wins), np.arange(len(wins) + 1)
    looked, won = np.arange(1, total + 1)[:, None], np.cumsum(wins)[:, None]
    left, more = total - looked, possible - won
    fits = (more >= 0) & (more <= left)
    more = np.where(fits, more, 0)
    posterior = (
        gammaln(left + 1)
        - gammaln(more + 1)
        - gammaln(left - more + 1)
        + betaln(more + 1 + won, left - more + 1 + looked - won)
        - betaln(1 + won, 1 + looked - won)
    )
    # The prior is 1 / (total + 1) for each; a little slack, so that rounding never excludes what is on the edge.
    kept = fits & (-np.log(total + 1) - posterior < -np.log(alpha) + 1e-9) if alpha > 0 else fits
    return np.maximum.accumulate(kept.argmax(1))


def sequential_test(wins, p):
    """(detected, comparisons looked at) for wins in random order, at a false-detection rate of at most p."""
    threshold, alpha = decision_threshold(len(wins), p)
    if threshold is None:
        return False, len(wins)
    sure = np.flatnonzero(lower_bounds(wins, alpha) >= threshold)
    return (True, int(sure[0]) + 1) if len(sure) else (False, len(wins))
