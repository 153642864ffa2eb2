"""BaVarIA: LiRA's two normal distributions with a Bayesian's variance (Brännvall, "Exponential-Family Membership
Inference: From LiRA and RMIA to BaVarIA", arXiv 2603.11799).

A record's logit-scaled confidences of IN, and of OUT, models are normal with a mean and a variance of the record's own.
Both get a normal-inverse-gamma prior, in place of a threshold between "one variance for all" and "one for each":

    variance ~ InverseGamma(nu / 2, nu s^2 / 2),    mean | variance ~ Normal(m, variance / kappa)

The predictive distribution of one more model's confidence is then Student's t ("t", the default), or a normal
distribution with the posterior's variance ("n"). Few models lean on the prior, many on themselves.

The paper names the conjugate prior and the two predictives; how its numbers are chosen is our reading. They are
estimated from all records of a call (`Prior`, `fit_prior`), by moments: m is the mean over records; kappa the variance
within records over that between them, at most 1; nu and s^2 follow from the mean and the spread of the logarithms of
the records' variances (Smyth 2004, section 6.2). Offline there are no IN models, and the score is the one-sided test
of LiRA's offline attack under the OUT predictive.
Public: Prior, fit_prior, online, offline, PREDICTIVES.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import polygamma, psi
from scipy.stats import norm, t

from attacks import signals
from kit.errors import UserError

PREDICTIVES = ("t", "n")
LEAST_VARIANCE = 1e-18  # of models that agree to the last digit
# Degrees of freedom of a prior that is as good as certain, and of one where a record has a single model, so that
# nothing is known of how variances differ.
MOST_FREEDOM, UNKNOWN_FREEDOM = 1e6, 4.0
# How many models the prior of a mean may weigh: records differ in difficulty.
MOST_MODELS = 1.0


@dataclass(frozen=True)
class Prior:
    """Normal-inverse-gamma: mean m, kappa >= 0 models' worth of it, nu > 0 models' worth of the variance s^2 > 0."""

    mean: float
    kappa: float
    nu: float
    variance: float


def fit_prior(values, models):
    """The `Prior` of values (M, N) over those models, bool (M, N), each record with one model or more."""
    counts = models.sum(axis=0)
    mean, squares = _moments(values, models)
    freedom = counts - 1
    between = float(mean.var(ddof=1)) if len(mean) > 1 else 0.0
    if not freedom.any():
        # One model a record: how models differ is bounded by how records do, as in `lira`.
        within, nu = max(between, LEAST_VARIANCE), UNKNOWN_FREEDOM
    else:
        within = max(float(squares.sum() / freedom.sum()), LEAST_VARIANCE)
        nu, within = _variances(squares[freedom > 0], freedom[freedom > 0], within)
    # What records differ by, without what their means differ by because they are means of few.
    spread = max(between - within * float(np.mean(1 / counts)), within / MOST_MODELS)
    return Prior(float(mean.mean()), within / spread, nu, within)


def online(target_scaled, reference_scaled, membership, predictive="t", priors=None):
    """log p(c; IN) - log p(c; OUT) under the predictives, summed over queries: float64 (N,).

    target_scaled: (N,) or (Q, N); reference_scaled: (M, N) or (M, Q, N); membership: bool (M, N), at least one IN and
    one OUT model for each record. predictive: one of PREDICTIVES. priors: None, or the `Prior` of IN and of OUT models
    (default: `fit_prior`, for each query).
    """
    target, references, membership = signals.together(target_scaled, reference_scaled, membership)
    inner, outer = priors or (None, None)
    return sum(
        _predictive(values, membership, predictive, inner, "trained on").logpdf(confidence)
        - _predictive(values, ~membership, predictive, outer, "not trained on").logpdf(confidence)
        for confidence, values in zip(target, references.swapaxes(0, 1), strict=True)
    )


def offline(target_scaled, reference_scaled, membership, predictive="t", prior=None):
    """-log P[Z > c] with Z of the OUT predictive, summed over queries: float64 (N,), at least 0.

    Arguments as for `online`; IN models are not looked at. One OUT model for each record is enough.
    """
    target, references, membership = signals.together(target_scaled, reference_scaled, membership)
    return sum(
        -_log_above(_predictive(values, ~membership, predictive, prior, "not trained on"), confidence)
        for confidence, values in zip(target, references.swapaxes(0, 1), strict=True)
    )


def _predictive(values, models, predictive, prior, kind):
    """The frozen distribution, of each record, of one more model's confidence (Murphy 2007, section 6)."""
    if predictive not in PREDICTIVES:
        raise UserError(f"predictive {predictive!r} is unknown", advice=f"use one of {PREDICTIVES}")
    counts = signals.check_counts(models, 1, kind)
    prior = fit_prior(values, models) if prior is None else prior
    mean, squares = _moments(values, models)
    kappa, nu = prior.kappa + counts, prior.nu + counts
    center = (prior.kappa * prior.mean + counts * mean) / kappa
    # The sum of squares about the prior's mean and the records' own, as one.
    total = prior.nu * prior.variance + squares + prior.kappa * counts / kappa * np.square(mean - prior.mean)
    if predictive == "t":
        return t(nu, center, np.sqrt(total / nu * (1 + 1 / kappa)))
    # The posterior mean of the variance; with nu up to 2 it has none, and its mode stands in.
    variance = np.where(nu > 2, total / np.maximum(nu - 2, 1e-9), total / (nu + 2))
    return norm(center, np.sqrt(variance))


def _log_above(distribution, value):
    """log P[Z > value], float64 (N,), also where the probability of a frozen t is too small for a number.

    scipy takes the logarithm of the probability there; the tail's first term, density * (nu + z^2) / (nu z), is left.
    """
    if distribution.dist.name != "t":
        return distribution.logsf(value)
    freedom, center, scale = distribution.args
    z = (value - center) / scale
    far = distribution.sf(value) < 1e-280
    beyond = np.where(far, z, 1.0)
    tail = t.logpdf(beyond, freedom) + np.log(beyond / freedom + 1 / beyond)
    with np.errstate(divide="ignore"):
        return np.where(far, tail, distribution.logsf(value))


def _moments(values, models):
    """Mean and sum of squared deviations over those models: float64 (N,) each."""
    mean = values.mean(axis=0, where=models, dtype=np.float64)
    return mean, np.where(models, np.square(values - mean), 0.0).sum(axis=0)


def _variances(squares, freedom, pooled):
    """(nu, s^2) of the inverse gamma prior, from sums of squares and their degrees of freedom, (n,) each.

    If a record's variance is a draw from the prior, log(squares / freedom) has mean log s^2 + psi(f/2) - log(f/2) -
    psi(nu/2) + log(nu/2) and variance psi'(f/2) + psi'(nu/2).
    """
    known = squares > 0
    if known.sum() < 2:
        return MOST_FREEDOM, pooled
    half = freedom[known] / 2
    logs = np.log(squares[known] / freedom[known]) - psi(half) + np.log(half)
    left = float(logs.var(ddof=1) - polygamma(1, half).mean())
    nu = MOST_FREEDOM if left <= 0 else float(np.clip(2 * _inverse_trigamma(left), 1e-3, MOST_FREEDOM))
    return nu, max(float(np.exp(logs.mean() + psi(nu / 2) - np.log(nu / 2))), LEAST_VARIANCE)


def _inverse_trigamma(value):
    """x with psi'(x) = value > 0, by Newton's steps on 1 / psi', which is nearly a line."""
    x = 0.5 + 1 / value
    for _ in range(50):
        trigamma = polygamma(1, x)
        step = trigamma * (1 - trigamma / value) / polygamma(2, x)
        x += step
        if abs(step) < 1e-10 * x:
            break
    return float(x)
