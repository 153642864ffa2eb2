"""How sure the rates are: intervals over records and models, stable records, RMIA's a, unfair comparisons.

Public: clustered, fairness, offline_a, changes, RESAMPLES.
"""

import numpy as np

import utils
from attacks import clustered as bootstrap

RESAMPLES = (100, 400)  # least and most; fewer where there are more pairs
# The AUC of a score that has not seen the target at all is 0.5; from here on, and if that is no chance, members and
# non-members differ by themselves.
UNFAIR_AUC = 0.03


def clustered(pooled, scores, is_member, options):
    """`pooled` (rates over all targets, of `attack.run_attacks`) with what scores (T, N) say by record and model.

    Added: auc_clustered; at each rate clustered and fpr_clustered, 95 % intervals, and stability (see
    `attacks.clustered`).
    """
    resamples = min(options["resamples"] or int(np.clip(2e7 // scores.size, *RESAMPLES)), RESAMPLES[1])
    found = bootstrap.intervals(scores, is_member, options["fprs"], resamples, options["seed"])
    others = -scores[~is_member]
    points = [
        {
            **point,
            "clustered": one["interval"],
            "fpr_clustered": one["fpr_interval"],
            "stability": bootstrap.stability(scores, is_member, -utils.threshold_at_fpr(others, point["fpr"])),
        }
        for point, one in zip(pooled["tpr_at_fpr"], found["tpr_at_fpr"], strict=True)
    ]
    return {**pooled, "auc_clustered": found["auc_interval"], "tpr_at_fpr": points}


def changes(attacks, verdict, independent):
    """What it changes that records and models are no independent cases: a JSON-ready dict.

    widening: how many times as wide the clustered intervals of the AUC are as those of independent pairs, the median
    over the attacks; verdict and verdict_if_independent: levels; changed: whether they differ.
    """
    ratios = [
        (pooled["auc_clustered"][1] - pooled["auc_clustered"][0]) / width
        for pooled in (one["pooled"] for one in attacks)
        if (width := pooled["auc_interval"][1] - pooled["auc_interval"][0]) > 0
    ]
    return {
        "widening": float(np.median(ratios)) if ratios else None,
        "verdict": verdict["level"],
        "verdict_if_independent": independent["level"],
        "changed": verdict["level"] != independent["level"],
    }


def offline_a(plan, options):
    """How RMIA's offline a was chosen, and whether it matters: a JSON-ready dict, None where it was not.

    asked: the rate at which TPRs were compared, or None (AUC); chosen: of each target; curve [{a, tpr, auc}], means
    over the targets of what was measured on other models as targets. as_good: candidates whose difference from the
    best, on the models that the first target's a was tuned on, has a 95 % interval over records and models that holds
    0; matters: whether any candidate is worse for certain.
    """
    tunings = [fold.tuning for fold in plan if fold.tuning is not None]
    if not tunings:
        return None
    first = tunings[0]
    truth, scores = first.pairs
    best = next(place for place, row in enumerate(first.curve) if row["a"] == first.a)
    resamples = min(options["resamples"] or RESAMPLES[0], RESAMPLES[0])
    as_good = [
        row["a"]
        for place, row in enumerate(first.curve)
        if place == best
        or bootstrap.differences(scores[best], scores[place], truth, first.fpr, resamples, options["seed"])[0] <= 0
    ]
    return {
        "asked": first.fpr,
        "models": first.models,
        "chosen": [one.a for one in tunings],
        "curve": [
            {
                "a": rows[0]["a"],
                "tpr": None
                if any(row["tpr"] is None for row in rows)
                else float(np.mean([row["tpr"] for row in rows])),
                "auc": float(np.mean([row["auc"] for row in rows])),
            }
            for rows in zip(*(one.curve for one in tunings), strict=True)
        ],
        "as_good": as_good,
        "matters": len(as_good) < len(first.curve),
    }


def fairness(plan, is_member, options):
    """Whether members and non-members can be told without the target: a JSON-ready dict.

    auc, auc_interval (over records and models): of the mean loss of the references that were not trained on a record;
    None without references. uneven: by how many the mean count of such references differs between members and
    non-members, at most over the targets. warnings: what that means, in words; empty where nothing is wrong.
    """
    scores, uneven = [], 0.0
    for fold, inside in zip(plan, is_member, strict=True):
        outside = ~fold.membership
        if not len(outside) or not outside.any(axis=0).all():
            return {"auc": None, "auc_interval": None, "uneven": None, "warnings": []}
        counts = outside.sum(axis=0)
        losses = fold.reference_losses if fold.query is not None else fold.reference_losses.mean(axis=1)
        scores.append(-np.where(outside, losses, 0.0).sum(axis=0, dtype=np.float64) / counts)
        uneven = max(uneven, abs(float(counts[inside].mean() - counts[~inside].mean())))
    found = bootstrap.intervals(np.stack(scores), is_member, (), options["resamples"] or RESAMPLES[0], options["seed"])
    auc = float(np.mean(found["auc_interval"]))
    warnings = []
    low, high = found["auc_interval"]
    if abs(auc - 0.5) > UNFAIR_AUC and not low <= 0.5 <= high:
        warnings.append(
            "Models that have never seen a record already tell members from non-members (AUC about "
            f"{auc:.2f}): the two differ in kind or difficulty, and the rates below count that as a leak. Compare "
            "records that chance alone divided."
        )
    if uneven > 0.05:
        warnings.append(
            f"Members and non-members differ in how many references were not trained on them (by {uneven:.2g} on "
            "average), which attacks with references can see without any leak. Deal the records out in the same way "
            "for all."
        )
    return {"auc": auc, "auc_interval": found["auc_interval"], "uneven": uneven, "warnings": warnings}
