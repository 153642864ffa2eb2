"""How much of a data set was used for training? Dataset usage cardinality inference (DUCI; Tong, Ye, Zarifzadeh and
Shokri, "How much of my dataset did you use?", ICLR'25).

Every record of the data set gets a guess from a membership inference attack. The share guessed is biased: an attack
with the rates TPR and FPR calls h = p TPR + (1 - p) FPR of the records members if a share p was used. Solved for p,

    p = (h - FPR) / (TPR - FPR)

with the rates measured on models of which it is known what they were trained on: reference models that were left out.
The interval is ours: every p is tested against h, with the binomial noise of the guesses and of the rates and the
spread of the rates between models, and those that are not refuted make it up (Fieller's way). An attack that knows
nothing gives [0, 1], and never a wrong answer.
Public: best_threshold, rates, usage.
"""

import numpy as np
from scipy.stats import norm

from attacks.evaluation import roc
from kit.errors import UserError

_SHARES = np.linspace(0, 1, 1001)


def best_threshold(scores, is_member):
    """The threshold with the highest TPR - FPR: a float; "score >= threshold" is the guess "member"."""
    fpr, tpr, thresholds = roc(scores, is_member)
    return float(thresholds[1:][np.argmax((tpr - fpr)[1:])])


def rates(scores, is_member, threshold):
    """(true positives, members, false positives, non-members) of "score >= threshold": whole numbers."""
    guess, is_member = np.asarray(scores) >= threshold, np.asarray(is_member)
    return (
        int((guess & is_member).sum()),
        int(is_member.sum()),
        int((guess & ~is_member).sum()),
        int((~is_member).sum()),
    )


def usage(guessed, size, calibration, population=None, confidence=0.95):
    """The share of a data set that was used, with its interval: a JSON-ready dict.

    guessed: how many of the `size` records of the data set are guessed to be members; calibration: one row of `rates`
    for each model that the rates are known of, at the same threshold: (K, 4). population: how many records the scores
    were ranked among, in every model anew (None: not ranked); their noise moves TPR and FPR alike, as it does at the
    threshold of `best_threshold`, where the ROC curve has slope 1. Keys: share, raw (not cut to [0, 1],
    and without bias; both None where TPR <= FPR), interval, confidence, guessed (the share), tpr, fpr, models.
    """
    calibration = np.asarray(calibration, dtype=np.float64)
    if (
        calibration.ndim != 2
        or calibration.shape[1] != 4
        or not len(calibration)
        or not 0 <= guessed <= size
        or size < 1
        or (calibration[:, [1, 3]] < 1).any()
    ):
        raise UserError(
            f"{guessed} of {size} records guessed, and rates {calibration.shape}",
            advice="give at least one record "
            "and, for each model, true positives of members and false positives of non-members",
        )
    hits, totals = calibration[:, [0, 2]], calibration[:, [1, 3]]
    tpr, fpr = hits.sum(axis=0) / totals.sum(axis=0)
    share = guessed / size
    raw = (share - fpr) / (tpr - fpr) if tpr > fpr else None
    weights = np.stack([_SHARES, 1 - _SHARES], axis=1)  # of TPR and FPR, for every p
    distance = np.abs(share - weights @ [tpr, fpr])
    allowed = norm.isf((1 - confidence) / 2) * np.sqrt(_variance(hits, totals, size, weights, population))
    # Every p between two that fit is given as well: an interval, also where the test leaves a gap.
    fits = _SHARES[distance <= allowed]
    if not len(fits):  # further out than 0 or 1
        fits = _SHARES[[np.argmin(distance - allowed)]]
    return {
        "share": None if raw is None else float(np.clip(raw, 0, 1)),
        "raw": raw,
        "interval": [float(fits[0]), float(fits[-1])],
        "confidence": confidence,
        "guessed": share,
        "tpr": float(tpr),
        "fpr": float(fpr),
        "models": len(calibration),
    }


def _variance(hits, totals, size, weights, population):
    """Variance of h - p TPR - (1 - p) FPR at each p, float64 (len(_SHARES),)."""
    # Half a hit and half a miss more: rates of 0 and 1 are not known to be exact.
    each = (hits + 0.5) / (totals + 1)
    noise = each * (1 - each)
    mean = noise.mean(axis=0)
    ranking = 0.0 if population is None else mean[1] / population
    guesses = weights @ mean / size + ranking
    binomial = np.square(weights) @ (noise / totals).mean(axis=0)
    binomial = binomial + ranking
    models = len(hits)
    between = np.var(weights @ each.T, axis=1, ddof=1) - binomial if models > 1 else 0.0
    # The model in question deviates from the mean of the models as each of them does.
    return guesses + binomial / models + np.maximum(between, 0) * (1 + 1 / models)
