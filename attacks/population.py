"""Attack P: one threshold on the loss, for all records or for each class, from a population (Ye et al., CCS'22).

The population are records that the target was not trained on and that come from the members' distribution. No other
model is needed.
Public: thresholds, score.
"""

import numpy as np

import utils
from attacks import signals
from kit.errors import UserError


def thresholds(population_losses, fpr, population_labels=None):
    """The loss below which a record is called a member: at most a share `fpr` of the population is below it.

    population_losses: (Z,); population_labels: None for one float, or whole numbers (Z,) for a dict {class: float}.
    """
    losses, labels = _population(population_losses, population_labels)
    if not 0 <= fpr <= 1:
        raise UserError(f"the false-positive rate {fpr} is not in [0, 1]")
    if labels is None:
        return utils.threshold_at_fpr(losses, fpr)
    return {label.item(): utils.threshold_at_fpr(losses[labels == label], fpr) for label in np.unique(labels)}


def score(target_losses, population_losses, labels=None, population_labels=None):
    """One minus the p-value of the record's loss: float64 (N,) in [0, 1).

    p = (1 + population losses <= the record's) / (1 + population), within the record's class where labels are given.
    A record of the population's own distribution has p <= alpha with probability at most alpha, at every alpha and
    however small the class: "score >= 1 - alpha" is the test at level alpha.
    target_losses: (N,) or (Q, N), averaged (then average the population's as well); population_losses: (Z,); labels and
    population_labels: whole numbers (N,) and (Z,), both or neither.
    """
    target = signals.one_signal(signals.as_losses(target_losses))
    if (labels is None) != (population_labels is None):
        raise UserError("labels of the records and of the population are given together or not at all")
    losses, population_labels = _population(population_losses, population_labels)
    if labels is None:
        return _rank(target, losses)
    labels = np.asarray(labels)
    if labels.shape != target.shape:
        raise UserError(f"{labels.shape} labels for {target.shape} records")
    missing = np.setdiff1d(labels, population_labels)
    if len(missing):
        raise UserError(
            f"the population has no record of class {missing[0]} ({len(missing)} such classes)",
            advice="take a larger population, or one threshold for all classes",
        )
    scores = np.empty(len(target))
    for label in np.unique(labels):
        scores[labels == label] = _rank(target[labels == label], losses[population_labels == label])
    return scores


def _rank(target, population):
    not_above = np.searchsorted(np.sort(population), target, side="right")
    return (len(population) - not_above) / (len(population) + 1)


def _population(losses, labels):
    losses = signals.as_losses(losses, "the population's losses")
    if losses.ndim != 1 or not len(losses):
        raise UserError(
            f"the population's losses have the shape {losses.shape}", advice="give (records,), at least one"
        )
    labels = None if labels is None else np.asarray(labels)
    if labels is not None and labels.shape != losses.shape:
        raise UserError(f"{labels.shape} labels for a population of {losses.shape}")
    return losses, labels
