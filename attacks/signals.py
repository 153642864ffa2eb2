"""Membership signals: from one scale to the other, and the checks that all attacks share.

Public: scaled_from_losses, losses_from_scaled, one_signal, as_losses, together, check_counts.
"""

import numpy as np

from kit.errors import UserError


def scaled_from_losses(losses):
    """Cross entropy -log p to logit-scaled confidence log p - log(1 - p): float64, any shape.

    Exact to rounding also where p is near 0 or 1. A loss of 0 (p = 1) counts as the smallest normal number, and gives
    708; float32 losses keep enough digits, float32 probabilities would not.
    """
    losses = np.maximum(as_losses(losses), np.finfo(np.float64).tiny)
    return -losses - np.log(-np.expm1(-losses))


def losses_from_scaled(scaled):
    """Logit-scaled confidence log p - log(1 - p) to cross entropy log(1 + exp(-scaled)): float64, any shape."""
    return np.logaddexp(0.0, -_finite(scaled, "scaled confidences"))


def one_signal(target, name="the target's signals"):
    """The target's signals as float64 (N,): the mean over queries where there are several, (Q, N)."""
    target = _finite(target, name)
    if target.ndim not in (1, 2) or 0 in target.shape:
        raise UserError(f"{name} have the shape {target.shape}", advice="give (records,) or (queries, records)")
    return target if target.ndim == 1 else target.mean(axis=0)


def as_losses(losses, name="losses"):
    """float64 losses, any shape. UserError where one is negative: scaled confidences, or the sign is wrong."""
    losses = _finite(losses, name)
    if losses.size and losses.min() < 0:
        raise UserError(
            f"{name} are as low as {losses.min():.3g}, but a cross entropy -log p is never negative",
            advice="were scaled confidences given? signals.losses_from_scaled turns them into losses",
        )
    return losses


def together(target, references, membership):
    """Check that signals and membership fit: float64 (Q, N), finite (M, Q, N) in its own type, bool (M, N)."""
    target, references, membership = (
        _finite(target, "the target's signals"),
        np.asarray(references),
        np.asarray(membership),
    )
    if membership.dtype != bool or membership.ndim != 2 or 0 in membership.shape:
        raise UserError(
            f"membership is {membership.dtype} {membership.shape}", advice="give a bool array (models, records)"
        )
    if (
        references.ndim != target.ndim + 1
        or target.ndim not in (1, 2)
        or references.shape[1:] != target.shape
        or (len(references), target.shape[-1]) != membership.shape
    ):
        raise UserError(
            f"signals of the target {target.shape}, of the reference models {references.shape} and "
            f"membership {membership.shape} don't fit",
            advice="they are (N,), (M, N) and (M, N), or with Q queries a record (Q, N), (M, Q, N) and (M, N)",
        )
    if not np.isfinite(references).all():
        raise UserError(
            "the reference models' signals are not all finite", advice="compute them again from float64 logits"
        )
    return target.reshape(-1, target.shape[-1]), references.reshape(len(references), -1, target.shape[-1]), membership


def check_counts(models, least, kind):
    """How many models each record has, int64 (N,), of bool (M, N); UserError where a record has fewer than `least`."""
    counts = models.sum(axis=0)
    if (counts < least).any():
        raise UserError(
            f"{int((counts < least).sum())} of {len(counts)} records have fewer than {least} reference "
            f"model(s) {kind} them",
            advice="take more reference models, in complementary pairs, or leave these records out",
        )
    return counts


def _finite(values, name):
    values = np.asarray(values, dtype=np.float64)
    if not np.isfinite(values).all():
        raise UserError(f"{name} are not all finite", advice="compute them again from float64 logits")
    return values
