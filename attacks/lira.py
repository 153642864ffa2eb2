"""LiRA, the likelihood ratio attack (Carlini et al., S&P'22), on logit-scaled confidences log p - log(1 - p).

With shadow models, the reference models of the other attacks, a record's confidences of IN and of OUT models are two
normal distributions; without, it is one threshold for all records. Several augmented queries a record are treated as
independent (a diagonal covariance): their logarithms are summed. Everything is computed in logarithms, so that no
confident record's score rounds to that of another.
Public: online, offline, global_threshold, VARIANCES.
"""

import numpy as np
from scipy.stats import norm

from attacks import signals
from kit.errors import UserError

VARIANCES = ("per_sample", "fixed")
# Models that agree to the last digit would give a variance of 0, and infinite scores.
LEAST_STD = 1e-9


def online(target_scaled, reference_scaled, membership, variance="per_sample"):
    """log N(c; IN) - log N(c; OUT), summed over queries (algorithm 1 of the paper): float64 (N,).

    target_scaled: (N,) or (Q, N); reference_scaled: (M, N) or (M, Q, N); membership: bool (M, N).
    variance: "per_sample" needs two IN and two OUT models for each record; "fixed", one variance for all records on
    each side, pooled over their deviations from their own means, needs one, and is the better one of the two where
    models are few (the paper: below 64).
    """
    target, references, membership = signals.together(target_scaled, reference_scaled, membership)
    return sum(
        norm.logpdf(confidence, *_fit(values, membership, variance, "trained on"))
        - norm.logpdf(confidence, *_fit(values, ~membership, variance, "not trained on"))
        for confidence, values in zip(target, references.swapaxes(0, 1), strict=True)
    )


def offline(target_scaled, reference_scaled, membership, variance="per_sample"):
    """-log(1 - P[Z < c]) with Z ~ N(OUT), summed over queries: float64 (N,), at least 0. Arguments as for `online`.

    The one-sided test of the paper's offline attack. Its score is 1 - P[Z > c], which rounds to 1 from 8 standard
    deviations on; the logarithm of P[Z > c] has the same order and does not. Summed over independent queries it is
    Fisher's combined test. IN models are not looked at.
    """
    target, references, membership = signals.together(target_scaled, reference_scaled, membership)
    return sum(
        -norm.logsf(confidence, *_fit(values, ~membership, variance, "not trained on"))
        for confidence, values in zip(target, references.swapaxes(0, 1), strict=True)
    )


def global_threshold(target_scaled):
    """The attack without shadow models: the confidence itself, float64 (N,), from (N,) or (Q, N), averaged."""
    return signals.one_signal(target_scaled).copy()


def _fit(values, models, variance, kind):
    """Mean (N,) and standard deviation, (N,) or for all records, of values (M, N) over those models, bool (M, N)."""
    if variance not in VARIANCES:
        raise UserError(f"variance {variance!r} is unknown", advice=f"use one of {VARIANCES}")
    counts = signals.check_counts(models, 2 if variance == "per_sample" else 1, kind)
    mean = values.mean(axis=0, where=models, dtype=np.float64)
    if variance == "per_sample":
        std = values.std(axis=0, where=models, ddof=1, dtype=np.float64)
    elif counts.sum() > len(counts):
        deviations = np.where(models, values - mean, 0.0)
        std = np.sqrt(np.square(deviations).sum() / (counts.sum() - len(counts)))
    else:  # One model a record says nothing about how models differ: the spread over records bounds it from above.
        std = mean.std()
    return mean, np.maximum(std, LEAST_STD)
