"""RMIA, the robust membership inference attack (Zarifzadeh et al., ICML'24): compare a record with a population.

    LR(x, z) = [p(x|target) / p(x)] / [p(z|target) / p(z)],    score(x) = share of population records z with LR > gamma

p(x|model) = exp(-loss) is the probability of the label. p(x), over models that may or may not have x, is
(mean_IN + mean_OUT) / 2 online; offline mean_IN is taken to be a * mean_OUT + 1 - a, so that p(x) is
((1 + a) mean_OUT + 1 - a) / 2. p(z) is the plain mean over all reference models that were not trained on z, offline and
online (the paper's algorithm 1).

LR falls with the ratio of z, so a record's share is a rank among the sorted ratios of the population: the matrix of all
pairs is never made.
Public: online, offline, tune_a, scores_by_a, share_dominated, QUERIES, CANDIDATES.
"""

import numpy as np
from sklearn.metrics import roc_auc_score

from attacks import signals
from attacks.membership import leave_one_out
from kit.errors import UserError

QUERIES = ("majority", "mean")
CANDIDATES = tuple(step / 10 for step in range(11))


def online(
    target_losses,
    reference_losses,
    membership,
    population_target,
    population_references,
    population_membership=None,
    gamma=2.0,
    queries="majority",
    strict=True,
):
    """Score with IN and OUT reference models for every record: float64 (N,), shares in [0, 1].

    target_losses: (N,) or (Q, N); reference_losses: (M, N) or (M, Q, N); membership: bool (M, N), at least one IN and
    one OUT model for each record. population_target: (Z,), population_references: (M, Z), losses of the same models on
    records that the target was not trained on; population_membership: bool (M, Z), or None where no reference model was
    either. gamma, strict: see `share_dominated`. queries: "majority", the paper's rule (x dominates z if more than half
    of its Q queries do), or "mean", the mean ratio of the queries in place of one.
    """
    target, references, membership = signals.together(target_losses, reference_losses, membership)
    prior = np.stack(
        [
            (
                _mean_probability(values, membership, "trained on")
                + _mean_probability(values, ~membership, "not trained on")
            )
            / 2
            for values in references.swapaxes(0, 1)
        ]
    )
    return share_dominated(
        _one_ratio(_ratio(target, prior), queries),
        _population_ratio(population_target, population_references, population_membership),
        gamma,
        strict,
    )


def offline(
    target_losses,
    reference_losses,
    membership,
    population_target,
    population_references,
    a,
    population_membership=None,
    gamma=2.0,
    queries="majority",
    strict=True,
):
    """Score with OUT reference models alone: float64 (N,), shares in [0, 1]. Arguments as for `online`, and

    a: in [0, 1], how far the mean probability of OUT models is from that of IN models (1: the same; see above and
    `tune_a`). IN models are not looked at; at least one OUT model is needed for each record.
    """
    target, references, membership = signals.together(target_losses, reference_losses, membership)
    ratio = _ratio(target, _offline_prior(_out_means(references, membership), a))
    return share_dominated(
        _one_ratio(ratio, queries),
        _population_ratio(population_target, population_references, population_membership),
        gamma,
        strict,
    )


def tune_a(
    reference_losses,
    membership,
    population_references,
    population_membership=None,
    gamma=2.0,
    queries="majority",
    strict=True,
    candidates=CANDIDATES,
    targets=1,
):
    """The `a` of `candidates` with the highest mean AUC against reference models that are left out: a float.

    The target itself must not be among the models given. Of equal AUCs the first candidate's is taken. See
    `scores_by_a`.
    """
    aucs = [
        [roc_auc_score(truth, row) for row in scores]
        for truth, scores in scores_by_a(
            reference_losses,
            membership,
            population_references,
            population_membership,
            gamma,
            queries,
            strict,
            candidates,
            targets,
        )
    ]
    return float(candidates[int(np.argmax(np.mean(aucs, axis=0)))])


def scores_by_a(
    reference_losses,
    membership,
    population_references,
    population_membership=None,
    gamma=2.0,
    queries="majority",
    strict=True,
    candidates=CANDIDATES,
    targets=1,
):
    """Reference models as targets: yields (truth bool (n,), scores float64 (candidates, n)) for each.

    The first `targets` reference models are attacked one by one with the other references, as if they were the target
    (the paper's appendix on offline RMIA). Records that no other reference model is OUT for are left out.
    """
    losses, inside, others = (np.asarray(values) for values in (reference_losses, membership, population_references))
    known_others = (
        np.zeros(others.shape, dtype=bool) if population_membership is None else np.asarray(population_membership)
    )
    for fold in list(leave_one_out(inside))[:targets]:
        usable = (~inside[fold.references]).any(axis=0)
        truth = inside[fold.target, usable]
        if truth.all() or not truth.any():
            raise UserError(
                f"{len(inside)} reference models are too few to tune a on one of them",
                advice="give a, or take at least two complementary pairs",
            )
        target, references, known = signals.together(
            losses[fold.target][..., usable], losses[fold.references][..., usable], inside[fold.references][:, usable]
        )
        means = _out_means(references, known)
        outside = ~known_others[fold.target]  # a population is what its target was not trained on
        ratio_z = _population_ratio(
            *(
                values[rows][..., outside]
                for values, rows in ((others, fold.target), (others, fold.references), (known_others, fold.references))
            )
        )
        yield (
            truth,
            np.stack(
                [
                    share_dominated(
                        _one_ratio(_ratio(target, _offline_prior(means, a)), queries), ratio_z, gamma, strict
                    )
                    for a in candidates
                ]
            ),
        )


def share_dominated(ratio_x, ratio_z, gamma=2.0, strict=True):
    """The share of z with ratio_x / ratio_z > gamma (>= gamma where not strict) for each x: float64 (N,).

    ratio_x: (N,), ratio_z: (Z,), finite and not negative. Equal to counting in the dense float64 matrix
    ratio_x[:, None] / ratio_z, to the last tie (x / 0 counts as infinite, 0 / 0 as not dominated), in
    O((N + Z) log Z) time and O(N + Z) memory.
    """
    if not gamma > 0 or not np.isfinite(gamma):
        raise UserError(f"gamma {gamma} is not a positive number", advice="the paper uses 2")
    ratio_x, ratio_z = (np.asarray(ratio, dtype=np.float64) for ratio in (ratio_x, ratio_z))
    if (
        ratio_x.ndim != 1
        or ratio_z.ndim != 1
        or not len(ratio_z)
        or not all((np.isfinite(ratio) & (ratio >= 0)).all() for ratio in (ratio_x, ratio_z))
    ):
        raise UserError(
            f"ratios {ratio_x.shape} and {ratio_z.shape} must be finite, not negative, and (N,) and (Z,) "
            "with at least one population record"
        )
    levels, counts = np.unique(ratio_z, return_counts=True)
    with np.errstate(over="ignore"):
        found = np.searchsorted(levels * gamma, ratio_x)
    # x / z > gamma and x > z * gamma round differently: where they disagree, or tie, it is at the next level or two.
    while len(wrong := np.flatnonzero(_dominates(ratio_x, levels, found, gamma, strict))):
        found[wrong] += 1
    while len(wrong := np.flatnonzero((found > 0) & ~_dominates(ratio_x, levels, found - 1, gamma, strict))):
        found[wrong] -= 1
    return np.concatenate([[0], np.cumsum(counts)])[found] / len(ratio_z)


def _dominates(ratio_x, levels, places, gamma, strict):
    """Whether each x dominates the level at its place; none dominates the place after the last level."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = ratio_x / np.append(levels, np.inf)[places]
    return (ratio > gamma if strict else ratio >= gamma) & (places < len(levels))


def _one_ratio(ratios, queries):
    """One ratio for the Q queries of each record, (Q, N) to (N,): see `online`."""
    if queries not in QUERIES:
        raise UserError(f"queries {queries!r} is unknown", advice=f"use one of {QUERIES}")
    # More than half of the queries dominate z exactly where their lower median does.
    middle = (len(ratios) - 1) // 2
    return ratios.mean(axis=0) if queries == "mean" else np.partition(ratios, middle, axis=0)[middle]


def _ratio(target_losses, prior):
    """p(x|target) / p(x), float64; where every model gives x a probability of 0, p(x) is the smallest number."""
    return np.exp(-signals.as_losses(target_losses)) / np.maximum(prior, np.finfo(np.float64).tiny)


def _mean_probability(losses, models, kind):
    counts = signals.check_counts(models, 1, kind)
    # Model by model: 256 models x 50,000 records in float64 at once would be 100 MB a copy.
    return (
        sum(
            np.where(inside, np.exp(-signals.as_losses(row, "the reference models' losses")), 0.0)
            for row, inside in zip(losses, models, strict=True)
        )
        / counts
    )


def _out_means(references, membership):
    return np.stack([_mean_probability(values, ~membership, "not trained on") for values in references.swapaxes(0, 1)])


def _offline_prior(out_means, a):
    if not 0 <= a <= 1:
        raise UserError(f"a = {a} is not in [0, 1]", advice="rmia.tune_a finds one")
    return ((1 + a) * out_means + (1 - a)) / 2


def _population_ratio(target_losses, reference_losses, membership):
    """p(z|target) / p(z) with ALL models that are OUT for z: without the lowest signals p(z) would be too high."""
    if membership is None:
        membership = np.zeros(np.shape(reference_losses), dtype=bool)
    target, references, membership = signals.together(target_losses, reference_losses, membership)
    if len(target) != 1 or np.ndim(target_losses) != 1:
        raise UserError("the population has one query a record: (Z,) and (M, Z)")
    return _ratio(target[0], _mean_probability(references[:, 0], ~membership, "not trained on"))
