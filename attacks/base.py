"""BASE, the Bayes-optimal attack for independent records (Lassila et al., "Practical Bayes-Optimal Membership Inference
Attacks", NeurIPS'25).

If trained weights are a draw from exp(-sum of losses / T), the posterior odds that x was in the training set are those
of the target's exp(-loss / T) against its mean over models that could have been trained instead:

    score(x) = -loss(x) / T - log mean_k exp(-loss_k(x) / T)

No population is needed, and one pass over the references is all there is to compute. With T = 1 this is the logarithm
of RMIA's ratio p(x | target) / p(x), and orders records as RMIA does with a population that is as fine as one likes.
Public: online, offline.
"""

import numpy as np
from scipy.special import logsumexp

from attacks import signals
from kit.errors import UserError


def online(target_losses, reference_losses, membership, temperature=1.0):
    """Score with IN and OUT reference models for every record: float64 (N,), any real number.

    target_losses: (N,) or (Q, N); reference_losses: (M, N) or (M, Q, N); membership: bool (M, N), at least one IN and
    one OUT model for each record. temperature: T > 0. Several queries' scores are averaged. IN models together weigh
    as much as OUT models, which is the plain mean where a record has as many of both (our reading, for other counts: a
    record is in with probability one half).
    """
    target, references, membership, scale = _checked(target_losses, reference_losses, membership, temperature)
    sides = [
        _log_mean(references, inside, scale, kind)
        for inside, kind in ((membership, "trained on"), (~membership, "not trained on"))
    ]
    return (-target / scale - (np.logaddexp(*sides) - np.log(2))).mean(axis=0)


def offline(target_losses, reference_losses, membership, temperature=1.0):
    """Score with OUT reference models alone: float64 (N,). Arguments as for `online`; IN models are not looked at."""
    target, references, membership, scale = _checked(target_losses, reference_losses, membership, temperature)
    return (-target / scale - _log_mean(references, ~membership, scale, "not trained on")).mean(axis=0)


def _checked(target, references, membership, temperature):
    if not temperature > 0 or not np.isfinite(temperature):
        raise UserError(f"temperature {temperature} is not a positive number", advice="the usual one is 1")
    target, references, membership = signals.together(target, references, membership)
    return signals.as_losses(target), references, membership, float(temperature)


def _log_mean(references, models, scale, kind):
    """log of the mean of exp(-loss / T) over those models, bool (M, N): float64 (Q, N)."""
    counts = signals.check_counts(models, 1, kind)
    # Query by query: the references of all of them in float64 may be some times what fits.
    return np.stack(
        [
            logsumexp(
                np.where(models, -signals.as_losses(values, "the reference models' losses") / scale, -np.inf), axis=0
            )
            - np.log(counts)
            for values in references.swapaxes(0, 1)
        ]
    )
