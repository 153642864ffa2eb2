"""Beyond single records and one number: whose risk is how high, ranges, shares of data sets, epsilon.

Everything here takes the folds and scores that `privacy.attack.run_attacks` has made and gives JSON-ready results.
Public: groups, users, exposed, ramia, duci, epsilon.
"""

from dataclasses import replace

import numpy as np

import utils
from attacks import cardinality, evaluation, ranges
from attacks import epsilon as one_run
from kit.errors import UserError
from privacy.data import NOBODY, OWNERS
from privacy.folds import TITLES, levels_of, scores_of

# Fewer members or non-members than this say little about a group.
SMALL_GROUP = 30
EXPOSED = 24


def groups(signals, scores, is_member, headline, settings):
    """Risk of every class and group under the headline attack's one threshold for all: a list of JSON-ready dicts.

    scores, is_member: (T, N). One entry a grouping {name, rows}, of which each row has value, records, members,
    non_members (both over all targets), tpr and fpr at the headline's threshold, auc, their 95 % intervals (auc by
    bootstrap), and small: fewer than SMALL_GROUP distinct records. Rates are None where a side is empty. The highest
    TPR comes first.
    """
    named = {
        "class": [
            signals.class_names[label] if label < len(signals.class_names) else label
            for label in signals.labels.tolist()
        ],
        **signals.groups,
    }
    wanted = settings.get("groups") or [name for name in named if name not in OWNERS]
    unknown = [name for name in wanted if name not in named]
    if unknown:
        raise UserError(f"audit.groups {unknown[0]!r} is unknown", advice=f"these records have {', '.join(named)}")
    threshold = -utils.threshold_at_fpr(-scores[~is_member], headline["fpr"])
    tables = []
    for name in dict.fromkeys(["class", *wanted]):
        values = np.asarray(named[name]).astype(str)
        found = [
            _group(value, values == value, scores, is_member, threshold, settings["seed"])
            for value in np.unique(values)
        ]
        tables.append({"name": name, "rows": sorted(found, key=lambda row: (-(row["tpr"] or 0), row["value"]))})
    return tables


def _group(value, chosen, scores, is_member, threshold, seed):
    scores, inside = scores[:, chosen].ravel(), is_member[:, chosen].ravel()
    members, others = int(inside.sum()), int((~inside).sum())
    row = {
        "value": str(value),
        "records": int(chosen.sum()),
        "members": members,
        "non_members": others,
        "small": bool(chosen.sum() < SMALL_GROUP or min(members, others) < SMALL_GROUP),
    }
    for name, side in (("tpr", inside), ("fpr", ~inside)):
        hits, total = int((scores[side] > threshold).sum()), int(side.sum())
        row |= {
            name: hits / total if total else None,
            f"{name}_interval": utils.clopper_pearson(hits, total) if total else None,
        }
    if members and others:
        found = evaluation.evaluate(scores, inside, fprs=(), resamples=200, seed=seed)
        return {**row, "auc": found["auc"], "auc_interval": found["auc_interval"]}
    return {**row, "auc": None, "auc_interval": None}


def users(signals, plan, settings):
    """Set-based audit of users (section 4.4 of the MembershipTracker paper), where a grouping is named like one.

    A user is IN for a target that was trained on all of the user's records and OUT for one that was trained on none;
    users that a target knows in part are counted and left out. Scores are mean losses on the records as they are. None
    without such a grouping; else a dict: users, in_part, audit (`utils.membership_inference` over all targets, None
    where a side is empty) and rows {user, records, models_in, models_out, loss_in, loss_out}, the largest gap first.
    """
    name = next((name for name in OWNERS if name in signals.groups), None)
    if name is None:
        return None
    owners = np.asarray(signals.groups[name]).astype(str)
    known = [user for user in np.unique(owners) if user not in NOBODY]
    losses = {True: {user: [] for user in known}, False: {user: [] for user in known}}
    in_part = 0
    for fold in plan:
        target_losses = fold.signals.losses[fold.target, 0].astype(np.float64)
        for user in known:
            inside = fold.is_member[owners == user]
            if inside.all() or not inside.any():
                losses[bool(inside[0])][user].append(float(target_losses[owners == user].mean()))
            else:
                in_part += 1
    member, other = (np.concatenate([*losses[side].values(), []])[:, None] for side in (True, False))
    rows = [
        {
            "user": user,
            "records": int((owners == user).sum()),
            "models_in": len(losses[True][user]),
            "models_out": len(losses[False][user]),
            "loss_in": float(np.mean(losses[True][user])) if losses[True][user] else None,
            "loss_out": float(np.mean(losses[False][user])) if losses[False][user] else None,
        }
        for user in known
    ]
    rows.sort(key=lambda row: row["loss_in"] - row["loss_out"] if row["models_in"] and row["models_out"] else np.inf)
    return {
        "group": name,
        "users": len(known),
        "in_part": in_part,
        "rows": rows,
        "audit": utils.membership_inference(member, other, fprs=tuple(settings["fprs"]))
        if len(member) and len(other)
        else None,
    }


def exposed(signals, plan, scores, is_member, headline, count=EXPOSED):
    """The records that the headline attack finds most surely: a list of JSON-ready dicts, the most exposed first.

    Each has record (row of the data set), label, class, models_in (targets trained on it) and found_in (of those, at
    the headline's threshold), models_out and found_out (the others: false alarms), false_positive_level (median
    over the targets trained on it of the share of all non-members, of any target, that score at least as high; one
    non-member more, so that it is never 0), loss_in and loss_out (mean loss of the targets that were trained on it and
    of those that were not; None without any).
    """
    others = np.sort(scores[~is_member])
    above = len(others) - np.searchsorted(others, scores, side="left")
    level = (1 + above) / (1 + len(others))
    threshold = -utils.threshold_at_fpr(-others, headline["fpr"])
    losses = np.stack([signals.losses[fold.target, 0] for fold in plan]).astype(np.float64)
    models_in, called = is_member.sum(axis=0), scores > threshold
    found_in, found_out = (called & is_member).sum(axis=0), (called & ~is_member).sum(axis=0)
    known = np.flatnonzero(models_in)
    medians = np.nanmedian(np.where(is_member, level, np.nan)[:, known], axis=0)
    means = np.array([np.log(level[is_member[:, place], place]).mean() for place in known])
    # The median says how exposed a record usually is; between equals, the mean of the logarithms, then the loss.
    gaps = np.array([losses[is_member[:, place], place].mean() - losses[:, place].mean() for place in known])
    order = known[np.lexsort((gaps, means, medians))][:count]
    median_of = dict(zip(known.tolist(), medians.tolist(), strict=True))
    names = signals.class_names
    return [
        {
            "record": int(signals.records[place]),
            "label": (label := int(signals.labels[place])),
            "class": str(names[label]) if label < len(names) else str(label),
            "models_in": int(models_in[place]),
            "found_in": int(found_in[place]),
            "models_out": len(plan) - int(models_in[place]),
            "found_out": int(found_out[place]),
            "false_positive_level": median_of[place],
            "loss_in": _mean(losses[:, place], is_member[:, place]),
            "loss_out": _mean(losses[:, place], ~is_member[:, place]),
        }
        for place in order.tolist()
    ]


def _mean(values, chosen):
    return float(values[chosen].mean()) if chosen.any() else None


def ramia(signals, plan, scores, is_member, section, options):
    """Range membership: the point attack's scores on the changed copies of a record, averaged by `attacks.ranges`.

    The range of a record are its changed copies (all queries but the first); it is IN where the record is. None of them
    is the record as it was trained on, which the attacker does not have. A dict: title, points (copies a range), trim
    (of the first target; tuned on another model, or given), and rates over all targets (as `evaluation.evaluate` gives
    them) for range (the average), one_point (the first copy alone) and record (the record itself, for comparison).
    """
    queries = signals.losses.shape[1]
    if queries < 3:
        return {
            "skipped": "A range is sampled by asking about changed copies of a record: audit.ranges says which, "
            f"or audit.queries needs three or more, and has {queries}."
        }
    kinds, trims = {"range": [], "one_point": [], "record": []}, []
    for fold in plan:
        points = _points(fold, section["attack"])
        trim, other = section["trim"], fold.others(1)
        if trim is None:
            trim = (
                ranges.tune_trim(_points(other[0], section["attack"])[1:], other[0].is_member) if other else (0.0, 1.0)
            )
        trims.append([float(share) for share in trim])
        kinds["range"].append(ranges.range_score(points[1:], *trim))
        kinds["one_point"].append(points[1])
        kinds["record"].append(points[0])
    return {
        "attack": section["attack"],
        "title": TITLES[section["attack"]],
        "points": queries - 1,
        "trims": trims,
        **{
            kind: evaluation.evaluate(
                np.concatenate(rows), is_member.ravel(), options["fprs"], options["resamples"] or 200, options["seed"]
            )
            for kind, rows in kinds.items()
        },
    }


def _points(fold, attack):
    """The attack's scores on each query by itself: float64 (Q, N)."""
    return np.stack([scores_of(attack, replace(fold, query=query)) for query in range(fold.signals.losses.shape[1])])


def duci(signals, plan, scores, is_member, section, options):
    """How much of a data set was used: estimates for data sets of which the share is known, and for named groups.

    Scores are compared as levels (`folds.levels_of`); every model is attacked with as many references. The threshold is
    the best of the first other model (see `folds.Fold.others`); the rates are those of the rest, where there are
    any. For each of section["shares"] and each target, `sets` data sets are drawn among the audited records, that share
    of which was used. A dict: title, models (whose rates are known), rows {share, size, sets, no_answer, mean, error
    (mean absolute), covered (share of the intervals that hold the true share), width (their mean)}, and groups {value,
    records, target, true, share, interval} for the grouping section["group"].
    """
    estimates = {share: [] for share in section["shares"]}
    owners, named = signals.groups.get(section["group"]), []
    population = signals.population_losses.shape[-1]
    if section["group"] is not None and owners is None:
        raise UserError(
            f"duci.group {section['group']!r} is unknown", advice=f"these records have {', '.join(signals.groups)}"
        )
    for fold in plan:
        others = fold.others(section["models"] + 1)
        if not others:
            return {"skipped": "no model is left to measure the attack's rates on; train more models"}
        known = [(levels_of(section["attack"], other, options["seed"]), other.is_member) for other in others]
        threshold = cardinality.best_threshold(*known[0])
        calibration = [cardinality.rates(*one, threshold) for one in known[1:] or known]
        guess = levels_of(section["attack"], fold.matched(others), options["seed"]) >= threshold
        for share in section["shares"]:
            for number in range(section["sets"]):
                rows = _data_set(fold.is_member, share, section["size"], options["seed"], fold.target, number)
                estimates[share].append(
                    {"size": len(rows), **cardinality.usage(int(guess[rows].sum()), len(rows), calibration, population)}
                )
        named += (
            []
            if owners is None
            else [
                {
                    "value": str(value),
                    "records": int(rows.sum()),
                    "target": fold.target,
                    "true": float(fold.is_member[rows].mean()),
                    **{key: found[key] for key in ("share", "interval")},
                }
                for value in np.unique(owners)
                for rows in [owners == value]
                for found in [cardinality.usage(int(guess[rows].sum()), int(rows.sum()), calibration, population)]
            ]
        )
    return {
        "attack": section["attack"],
        "title": TITLES[section["attack"]],
        "models": len(calibration),
        "groups": named,
        "rows": [_usage_row(share, found) for share, found in estimates.items()],
    }


def _data_set(is_member, share, size, seed, target, number):
    """Rows of a data set of which `share` was used; size None: as large as every share allows, at most 1,000."""
    draws = utils.key_generator(seed, "data set", int(target), round(share * 1e6), number)
    sides = np.flatnonzero(is_member), np.flatnonzero(~is_member)
    least = min(map(len, sides))
    size = min(1000, least) if size is None else size
    used = round(share * size)
    if used > len(sides[0]) or size - used > len(sides[1]):
        raise UserError(f"duci.size {size} is more than the {least} records that target {target} has on a side")
    return np.concatenate(
        [draws.choice(side, count, replace=False) for side, count in zip(sides, (used, size - used), strict=True)]
    )


def _usage_row(share, found):
    true = round(share * found[0]["size"]) / found[0]["size"]
    known = [one["share"] for one in found if one["share"] is not None]
    low, high = np.array([one["interval"] for one in found]).T
    return {
        "share": true,
        "size": found[0]["size"],
        "sets": len(found),
        "no_answer": len(found) - len(known),
        "mean": float(np.mean(known)) if known else None,
        "error": float(np.mean(np.abs(np.array(known) - true))) if known else None,
        "covered": float(np.mean((low <= true + 1e-9) & (true - 1e-9 <= high))),
        "width": float(np.mean(high - low)),
    }


def epsilon(signals, plan, scores, is_member, section, options):
    """Lower bounds on epsilon from each target's one run (`attacks.epsilon`), every audited record a canary.

    A dict: title, rows (one `attacks.epsilon.audit` a target with its `target`), and epsilon, the bound for the
    training procedure: the highest over all targets, each at a confidence that all of them hold together (Bonferroni).
    """
    rows = scores[section["attack"]]
    found = [
        {
            "target": fold.target,
            **one_run.audit(row, inside, section["delta"], section["confidence"], seed=options["seed"]),
        }
        for fold, row, inside in zip(plan, rows, is_member, strict=True)
    ]
    together = 1 - (1 - section["confidence"]) / len(plan)
    bound = max(
        one_run.audit(row, inside, section["delta"], together, seed=options["seed"])["epsilon"]
        for row, inside in zip(rows, is_member, strict=True)
    )
    return {
        "attack": section["attack"],
        "title": TITLES[section["attack"]],
        "epsilon": bound,
        "delta": section["delta"],
        "confidence": section["confidence"],
        "rows": found,
    }
