"""Attacks on stored signals: every target model in turn, with other models as its references.

Public: run_attacks, ATTACKS, TITLES, SECTIONS, FPR_GRID.
"""

import difflib
from contextlib import suppress
from dataclasses import replace

import numpy as np

import utils
from attacks import evaluation
from kit.errors import UserError
from kit.progress import Progress
from privacy import certainty, risk
from privacy.folds import ATTACKS, TITLES, folds, scores_of

# What the sections ramia, duci and epsilon may hold, with defaults; attack None: the first of these that is run.
SECTIONS = {
    "ramia": {"attack": None, "trim": None},
    "duci": {
        "attack": None,
        "shares": (0.0, 0.25, 0.5, 0.75, 1.0),
        "sets": 20,
        "size": None,
        "models": 8,
        "group": None,
    },
    "epsilon": {"attack": None, "confidence": 0.95, "delta": 0.0},
}
_PREFERRED = ("lira_offline_fixed", "rmia_offline", "lira_offline", "reference", "population", "loss")
# False-positive rates at which the ROC curves of all targets are averaged.
FPR_GRID = np.logspace(-5, 0, 251)


def run_attacks(signals, settings, ranges=None):
    """Run the attacks on every target: a dict that is ready for JSON but for its entry "arrays".

    signals: see `privacy.signals.Signals`. settings: attacks (names of ATTACKS, or "all"), num_ref_models (None, or at
    how many OUT and IN models of each record to stop; in complementary pairs 2 k models for k), gamma, a (None: tuned
    for the TPR at asked_fpr, which may be missing, or None for the AUC), fprs, seed, ramia, duci, epsilon (None, or a
    dict with keys of SECTIONS), groups (names; None: all); optional: resamples of the bootstrap. ranges: Signals of the
    same models and records whose queries but the first are copies of the records, for ramia (default: those of
    `signals`). An attack that can't run on these signals is left out, with its reason in "skipped".

    Keys: attacks [{name, title, average, pooled, targets, mean_roc}], skipped {name: reason}, targets, records,
    headline (the attack with the highest TPR at `fpr`, over all targets), verdict, certainty, offline_a, fairness (see
    `privacy.certainty`), groups, users, exposed, ramia, duci, epsilon, and arrays: scores {name: float64 (T, N)},
    membership bool (T, N).
    """
    names = _check(signals, settings)
    plan = list(folds(signals, settings))
    scores, skipped = _all_scores(plan, names)
    is_member = np.stack([fold.is_member for fold in plan])
    options = {"fprs": tuple(settings["fprs"]), "seed": settings["seed"], "resamples": settings.get("resamples")}
    attacks = [
        _summary(name, values, is_member, plan, options)
        for name, values in Progress(scores.items(), "evaluation", leave=True)
    ]
    headline = _headline(attacks)
    chosen = scores[headline["attack"]]
    result = {
        "attacks": attacks,
        "skipped": skipped,
        "targets": [fold.target for fold in plan],
        "references": [len(fold.references) for fold in plan],
        "records": int(is_member.shape[1]),
        "population": int(signals.population_losses.shape[-1]),
        "queries": int(signals.losses.shape[1]),
        "headline": headline,
        "verdict": (verdict := _verdict(attacks)),
        "certainty": certainty.changes(attacks, verdict, _verdict(attacks, independent=True)),
        "offline_a": certainty.offline_a(plan, options) if "rmia_offline" in scores else None,
        "fairness": certainty.fairness(plan, is_member, options),
        "groups": risk.groups(signals, chosen, is_member, headline, settings),
        "users": risk.users(signals, plan, settings),
        "exposed": risk.exposed(signals, plan, chosen, is_member, headline),
    }
    for name, run in (("ramia", risk.ramia), ("duci", risk.duci), ("epsilon", risk.epsilon)):
        section = _section(settings, name, scores)
        seen = ranges if name == "ramia" and ranges is not None else signals
        those = plan if seen is signals else [replace(fold, signals=seen) for fold in plan]
        result[name] = None if section is None else run(seen, those, scores, is_member, section, options)
    return {**result, "arrays": {"scores": scores, "membership": is_member}}


def _all_scores(plan, names):
    """{name: float64 (T, N)} and {name: why it can't run}."""
    scores, skipped = {name: [] for name in names}, {}
    for fold in Progress(plan, "attacks", leave=True):
        for name in names:
            if name not in skipped:
                try:
                    scores[name].append(scores_of(name, fold))
                except UserError as error:
                    skipped[name] = str(error)
    scores = {name: np.stack(rows) for name, rows in scores.items() if name not in skipped}
    if not scores:
        raise UserError(f"no attack can run: {next(iter(skipped.values()))}")
    return scores, skipped


def _summary(name, scores, is_member, plan, options):
    """One attack: each target, their mean and spread, and all of them under one threshold."""
    targets = [
        {
            "target": fold.target,
            **({"a": fold.a, "a_tuned": fold.tuning is not None} if name == "rmia_offline" else {}),
            **_rates(row, inside, options),
        }
        for fold, row, inside in zip(plan, scores, is_member, strict=True)
    ]
    curves = np.stack(
        [_on_grid(*evaluation.roc(row, inside)[:2]) for row, inside in zip(scores, is_member, strict=True)]
    )
    average = {
        "auc": _spread([row["auc"] for row in targets]),
        "fpr_at_100_tpr": _spread([row["fpr_at_100_tpr"] for row in targets]),
        "tpr_at_fpr": [
            {"fpr": fpr, **_spread([row["tpr_at_fpr"][place]["tpr"] for row in targets])}
            for place, fpr in enumerate(options["fprs"])
        ],
    }
    return {
        "name": name,
        "title": TITLES[name],
        "average": average,
        "pooled": certainty.clustered(_rates(scores.ravel(), is_member.ravel(), options), scores, is_member, options),
        "targets": targets,
        "mean_roc": {"fpr": FPR_GRID.tolist(), "tpr": curves.mean(axis=0).tolist(), "std": curves.std(axis=0).tolist()},
    }


def _rates(scores, is_member, options):
    """`attacks.evaluation.evaluate`, with the false positives that each threshold lets through."""
    # Fewer where there are more records: the interval of millions is narrow, and they take long.
    resamples = options["resamples"] or int(np.clip(2e7 // scores.size, 100, 1000))
    found = evaluation.evaluate(scores, is_member, options["fprs"], resamples, options["seed"])
    others = -scores[~is_member]
    for point in found["tpr_at_fpr"]:
        point["hits"] = round(point["tpr"] * found["members"])
        point["false_positives"] = int((others < utils.threshold_at_fpr(others, point["fpr"])).sum())
        point["fpr_interval"] = utils.clopper_pearson(point["false_positives"], len(others))
        # Below one record in all, a rate is the same as 0 %.
        point["resolved"] = point["fpr"] * len(others) >= 1
    return found


def _on_grid(fpr, tpr):
    """The TPR at each rate of FPR_GRID: that of the last threshold at or below it, which needs no coin."""
    return tpr[np.searchsorted(fpr, FPR_GRID, side="right") - 1]


def _spread(values):
    return {
        "mean": float(np.mean(values)),
        "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "least": float(min(values)),
        "most": float(max(values)),
    }


def _headline(attacks):
    """The strongest attack at 0.1 % FPR, or at the lowest rate that the records can show."""
    points = attacks[0]["pooled"]["tpr_at_fpr"]
    shown = [place for place, point in enumerate(points) if point["resolved"] and point["fpr"] > 0] or [
        int(np.argmax([point["fpr"] for point in points]))
    ]
    place = min(shown, key=lambda number: (abs(points[number]["fpr"] - 1e-3) > 1e-12, points[number]["fpr"]))
    best = max(attacks, key=lambda one: (one["pooled"]["tpr_at_fpr"][place]["tpr"], one["pooled"]["auc"]))
    return {
        "attack": best["name"],
        "title": best["title"],
        "auc": best["pooled"]["auc"],
        "auc_interval": best["pooled"]["auc_interval"],
        "auc_clustered": best["pooled"]["auc_clustered"],
        "members": best["pooled"]["members"],
        "non_members": best["pooled"]["non_members"],
        **best["pooled"]["tpr_at_fpr"][place],
    }


HIGH_RATIO, MODERATE_RATIO, MODERATE_AUC = 10.0, 2.0, 0.55


def _verdict(attacks, independent=False):
    """Three levels, over all attacks and rates: how many times as often members are called as non-members, at least.

    The ratio is the lower end of the TPR's 95 % interval over the upper end of the FPR's. "high": 10 and more;
    "moderate": 2 and more, or the lower end of an AUC's interval at 0.55 and more; "low": everything else. Of the two
    kinds of intervals, of independent pairs and over records and models, the worse end counts; independent: the first
    kind alone.
    """
    found = [
        (_ends(point, "", independent)[0] / _ends(point, "fpr_", independent)[1], one["title"], point["fpr"])
        for one in attacks
        for point in one["pooled"]["tpr_at_fpr"]
    ]
    ratio, title, fpr = max(found)
    auc = max(_ends(one["pooled"], "auc_", independent)[0] for one in attacks)
    level = "high" if ratio >= HIGH_RATIO else "moderate" if ratio >= MODERATE_RATIO or auc >= MODERATE_AUC else "low"
    return {
        "level": level,
        "ratio": ratio,
        "attack": title,
        "fpr": fpr,
        "auc_at_least": auc,
        "high_ratio": HIGH_RATIO,
        "moderate_ratio": MODERATE_RATIO,
        "moderate_auc": MODERATE_AUC,
    }


def _ends(found, rate, independent):
    """The lowest and the highest end of a rate's intervals."""
    kinds = [found[f"{rate}interval"]] + ([] if independent else [found[f"{rate}clustered"]])
    return min(low for low, _ in kinds), max(high for _, high in kinds)


def _between(value, low, high):
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _count(value):
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


# What each of these settings must be: a test, and the same in words.
_RULES = {
    "attack": (lambda value: value is None or isinstance(value, str), "the name of an attack"),
    "trim": (
        lambda value: (
            value is None
            or (
                isinstance(value, list | tuple)
                and len(value) == 2
                and all(_between(share, 0, 1) for share in value)
                and value[0] < value[1]
            )
        ),
        "two quantiles in [0, 1], the lower one first",
    ),
    "shares": (
        lambda value: (
            isinstance(value, list | tuple) and len(value) > 0 and all(_between(share, 0, 1) for share in value)
        ),
        "a list of shares in [0, 1]",
    ),
    "sets": (_count, "a whole number above 0"),
    "models": (_count, "a whole number above 0"),
    "size": (lambda value: value is None or _count(value), "a whole number above 0"),
    "group": (lambda value: value is None or isinstance(value, str), "the name of a grouping"),
    "confidence": (lambda value: _between(value, 0.5, 1 - 1e-9), "a number from 0.5 to below 1"),
    "delta": (lambda value: _between(value, 0, 1), "a number in [0, 1]"),
}


def _check(signals, settings):
    """The attacks that are asked for; UserError where they, the targets or the sections are unknown."""
    names = settings["attacks"]
    names = list(ATTACKS) if names == "all" else [names] if isinstance(names, str) else list(dict.fromkeys(names))
    for name in names:
        _known(name, ATTACKS, "the attack")
    for section in SECTIONS:
        for key, value in _given(settings, section).items():
            _known(key, SECTIONS[section], f"the setting of {section}")
            fits, words = _RULES[key]
            if not fits(value):
                raise UserError(f"{section}.{key} is {value!r}", advice=f"give {words}")
    if not names or not settings["fprs"] or not len(signals.target_ids):
        raise UserError("nothing to audit: give at least one attack, one false-positive rate and one target model")
    missing = [target for target in signals.target_ids if not 0 <= target < len(signals.membership)]
    if missing:
        raise UserError(f"target {missing[0]} is none of the {len(signals.membership)} models")
    return names


def _known(name, known, what):
    if name not in known:
        nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0)[0]
        raise UserError(f"{what} {name!r} is unknown", advice=f"did you mean {nearest}? Known: {', '.join(known)}")


def _given(settings, section):
    """What the configuration says of a section; YAML takes 1e-5 for a word, because it has no dot."""
    found = dict(settings.get(section) or {})
    for key in ("confidence", "delta"):
        with suppress(ValueError, TypeError):
            found |= {key: float(found[key])} if isinstance(found.get(key), str) else {}
    return found


def _section(settings, name, scores):
    """A section's settings with its defaults and the attack it uses; None where the section is not asked for."""
    if settings.get(name) is None:
        return None
    section = {**SECTIONS[name], **_given(settings, name)}
    if section["attack"] is None:
        # By a fixed order and not by what came out, which would be choosing the answer.
        section["attack"] = next(iter([known for known in _PREFERRED if known in scores] or scores))
    elif section["attack"] not in scores:
        raise UserError(f"{name}.attack {section['attack']!r} is not among the attacks that ran: {', '.join(scores)}")
    return section
