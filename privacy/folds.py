"""One target model with its references, as the attacks see it.

Leave-one-out: a target's references are models that are neither the target nor its complement (see
`attacks.membership.leave_one_out`); what has to be tuned (RMIA's a, RaMIA's trim, DUCI's rates) is tuned on models that
are none of the target's references either, where there are any, and never on the target.
Public: Fold, Tuning, folds, scores_of, levels_of, ATTACKS, TITLES, ASKED_FPR.
"""

from contextlib import suppress
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
from sklearn.metrics import roc_auc_score

import utils
from attacks import (
    base,
    bavaria,
    ensemble,
    label_only,
    lira,
    loss,
    membership,
    population,
    quantile,
    reference,
    rmia,
    trajectory,
)
from kit.errors import UserError

ATTACKS = {
    "loss": lambda fold: loss.score(fold.losses),
    "population": lambda fold: population.score(fold.losses, fold.population_losses.mean(axis=0)),
    "reference": lambda fold: reference.score(fold.losses, fold.reference_losses, fold.membership),
    "rmia_offline": lambda fold: rmia.offline(*fold.rmia, a=fold.a, gamma=fold.gamma),
    "rmia_online": lambda fold: rmia.online(*fold.rmia, gamma=fold.gamma),
    "lira_offline": lambda fold: lira.offline(fold.scaled, fold.reference_scaled, fold.membership),
    "lira_online": lambda fold: lira.online(fold.scaled, fold.reference_scaled, fold.membership),
    "lira_offline_fixed": lambda fold: lira.offline(fold.scaled, fold.reference_scaled, fold.membership, "fixed"),
    "lira_online_fixed": lambda fold: lira.online(fold.scaled, fold.reference_scaled, fold.membership, "fixed"),
    "base_offline": lambda fold: base.offline(fold.losses, fold.reference_losses, fold.membership),
    "base_online": lambda fold: base.online(fold.losses, fold.reference_losses, fold.membership),
    "bavaria_offline": lambda fold: bavaria.offline(fold.scaled, fold.reference_scaled, fold.membership),
    "bavaria_online": lambda fold: bavaria.online(fold.scaled, fold.reference_scaled, fold.membership),
    "ensemble_offline": lambda fold: _ensemble(fold, "offline"),
    "ensemble_online": lambda fold: _ensemble(fold, "online"),
    "quantile": lambda fold: _quantile(fold),
    "label_only": lambda fold: label_only.score(fold.hits),
    "label_only_offline": lambda fold: label_only.offline(fold.hits, fold.reference_hits, fold.membership),
    "trajectory": lambda fold: _trajectory(fold),
}
TITLES = {
    "loss": "LOSS",
    "population": "Attack P (population)",
    "reference": "Attack R (reference)",
    "rmia_offline": "RMIA, offline",
    "rmia_online": "RMIA, online",
    "lira_offline": "LiRA, offline",
    "lira_online": "LiRA, online",
    "lira_offline_fixed": "LiRA, offline, fixed variance",
    "lira_online_fixed": "LiRA, online, fixed variance",
    "base_offline": "BASE, offline",
    "base_online": "BASE, online",
    "bavaria_offline": "BaVarIA, offline",
    "bavaria_online": "BaVarIA, online",
    "ensemble_offline": "BASE + BaVarIA, offline",
    "ensemble_online": "BASE + BaVarIA, online",
    "quantile": "Quantile regression",
    "label_only": "Label-only",
    "label_only_offline": "Label-only, with references",
    "trajectory": "Loss trajectories",
}
# Of RMIA's a where no model is left to tune it on: the middle.
_DEFAULT_A = 0.5
# What is asked of an attack, unless told: which share of the members it finds at 0.1 % false positives.
ASKED_FPR = 1e-3
# Models on which a is tuned, at most: one alone has too few non-members for a rate of 0.1 %.
_TUNED_ON = 4


@dataclass(frozen=True)
class Tuning:
    """How RMIA's a was chosen, on `models` other models as targets.

    fpr: at which the highest TPR was looked for; None: these models have too few non-members, and it was the AUC.
    curve: [{a, tpr (None without a rate), auc}]. pairs: truth bool (K, n) and the scores of each candidate, (A, K, n).
    """

    a: float
    fpr: float | None
    models: int
    curve: list
    pairs: tuple


@dataclass(frozen=True)
class Fold:
    """One model as target, as the attacks see it. `query` picks one of the queries (None: all of them)."""

    signals: object
    target: int
    references: np.ndarray
    left_out: np.ndarray  # neither target nor references
    gamma: float = 2.0
    a: float | None = None
    tuning: Tuning | None = None  # of a, on other models; None where it is given or a default
    query: int | None = None

    def _of(self, values, models):
        values = values[models]
        return values if self.query is None else values[..., self.query, :]

    losses = property(lambda self: self._of(self.signals.losses, self.target))
    scaled = property(lambda self: self._of(self.signals.scaled, self.target))
    reference_losses = property(lambda self: self._of(self.signals.losses, self.references))
    reference_scaled = property(lambda self: self._of(self.signals.scaled, self.references))
    hits = property(lambda self: self._known("hits", self.target))
    reference_hits = property(lambda self: self._known("hits", self.references))
    membership = property(lambda self: self.signals.membership[self.references])
    is_member = property(lambda self: self.signals.membership[self.target])

    def _known(self, name, models):
        values = getattr(self.signals, name)
        return None if values is None else self._of(values, models)

    @property
    def population_losses(self):
        """Of the target, (Q, Z)."""
        losses = self.signals.population_losses[self.target]
        return losses if self.query is None else losses[self.query : self.query + 1]

    @property
    def rmia(self):
        """Arguments of RMIA; the population is asked for as it is, one query a record."""
        population_losses = self.signals.population_losses[:, 0]
        return (
            self.losses,
            self.reference_losses,
            self.membership,
            population_losses[self.target],
            population_losses[self.references],
        )

    def others(self, limit):
        """Up to `limit` folds with another model as target, for tuning: none of them looks at this fold's target.

        Models that were left out keep the references as they are. Without any, references are attacked in turn, each
        with the others but its own complement. The target's complement is the last choice: what is by chance true of
        its members is false of the target's.
        """
        inside = self.signals.membership
        spare = [model for model in self.left_out if (inside[model] == inside[self.target]).any()]
        rows = spare or (self.references if len(self.references) >= 4 else self.left_out)
        found = []
        for model in rows[:limit]:
            complement = (inside[self.references] != inside[model]).all(axis=1)
            found.append(
                replace(self, target=int(model), references=self.references[(self.references != model) & ~complement])
            )
        return [fold for fold in found if len(fold.references)]

    def matched(self, others):
        """This fold with as many references as the folds of `others` have, so that rates measured there hold here."""
        return replace(self, references=self.references[: min(len(other.references) for other in others)])


def folds(signals, settings):
    """A `Fold` for each target; settings: num_ref_models, gamma, a, asked_fpr (see `privacy.attack.run_attacks`).

    The references are all other models, or the first that give each record num_ref_models OUT and as many IN. RMIA's a
    is given, or tuned on other models; 0.5 where too few models are left to tune it on. A single model has no
    references.
    """
    wanted = settings.get("num_ref_models")
    if len(signals.membership) == 1:
        nobody = np.empty(0, dtype=np.int64)
        yield Fold(signals, 0, nobody, nobody, settings["gamma"], _DEFAULT_A)
        return
    for one in membership.leave_one_out(signals.membership):
        if one.target not in signals.target_ids:
            continue
        references = one.references if wanted is None else _enough(signals.membership, one, wanted)
        used = {one.target, *references.tolist()}
        # Models that leave_one_out gives first: the target's complement is the last choice.
        left_out = [model for model in one.references.tolist() if model not in used]
        left_out += [model for model in range(len(signals.membership)) if model not in used.union(left_out)]
        fold = Fold(signals, one.target, references, np.array(left_out, dtype=np.int64), settings["gamma"])
        given = settings.get("a")
        tuning = _tuning(fold, settings.get("asked_fpr", ASKED_FPR)) if given is None else None
        default = float(_DEFAULT_A if given is None else given)
        yield replace(fold, a=default if tuning is None else tuning.a, tuning=tuning)


def _enough(inside, fold, wanted):
    rows = inside[fold.references]
    least = np.minimum(rows.cumsum(axis=0), (~rows).cumsum(axis=0)).min(axis=1)
    if not len(least) or least[-1] < wanted:
        raise UserError(
            f"num_ref_models {wanted} needs {wanted} models trained on each record, and as many that were "
            f"not, beside target {fold.target} and its complement",
            advice=f"there are {max(least, default=0)}: train more models or lower num_ref_models",
        )
    return fold.references[: int(np.argmax(least >= wanted)) + 1]


def _tuning(fold, asked):
    """The `Tuning` of RMIA's a on up to _TUNED_ON other models, with the fold's references; None where none is left.

    The highest TPR at the rate `asked` counts, over all these models under one threshold; of equal ones the highest
    AUC. Where fewer than one false positive would be allowed, it is the AUC alone.
    """
    signals, truths, scores = fold.signals, [], []
    for other in fold.others(_TUNED_ON):
        rows = np.array([other.target, *other.references])
        # Not every record need have an OUT model among so few.
        with suppress(UserError):
            for truth, found in rmia.scores_by_a(
                signals.losses[rows], signals.membership[rows], signals.population_losses[rows, 0], gamma=fold.gamma
            ):
                truths.append(truth)
                scores.append(found)
    if not truths:
        return None
    aucs = np.mean([[roc_auc_score(truth, row) for row in rows] for truth, rows in zip(truths, scores, strict=True)], 0)
    truth, pooled = np.concatenate(truths), np.concatenate(scores, axis=1)
    fpr = asked if asked is not None and asked * (~truth).sum() >= 1 else None
    tprs = [None] * len(aucs) if fpr is None else [_tpr(row, truth, fpr) for row in pooled]
    best = max(range(len(aucs)), key=lambda place: (tprs[place] or 0.0, aucs[place], -place))
    curve = [
        {"a": float(a), "tpr": tpr, "auc": float(auc)} for a, tpr, auc in zip(rmia.CANDIDATES, tprs, aucs, strict=True)
    ]
    # Models without some record in common are one long row.
    shape = (len(truths), -1) if len({len(one) for one in truths}) == 1 else (1, -1)
    pairs = truth.reshape(shape), pooled.reshape(len(aucs), *shape)
    return Tuning(float(rmia.CANDIDATES[best]), fpr, len(truths), curve, pairs)


def _tpr(scores, truth, fpr):
    return float((-scores[truth] < utils.threshold_at_fpr(-scores[~truth], fpr)).mean())


def _ensemble(fold, kind):
    """The two whose mistakes have least in common: one looks at the mean of the references, one at their spread."""
    return ensemble.average([ATTACKS[f"{name}_{kind}"](fold) for name in ("base", "bavaria")])


def _quantile(fold):
    signals = fold.signals
    if signals.features is None:
        raise UserError("no feature of the records is known", advice="name some")
    return quantile.score(
        fold.scaled,
        signals.features,
        fold._of(signals.population_scaled, fold.target),
        signals.population_features,
        signals.categorical,
    )


def _trajectory(fold):
    losses = fold.signals.trajectories
    if losses is None:
        raise UserError("no checkpoints are kept", advice="train.checkpoints keeps some")
    return trajectory.score(losses[fold.target], losses[fold.references], fold.membership)


def scores_of(name, fold):
    """An attack's scores on a fold: float64 (N,), higher for members."""
    return ATTACKS[name](fold)


def levels_of(name, fold, seed):
    """The share of the population that the attack gives a lower score: float64 (N,), in [0, 1].

    Scores of two models need not mean the same, because models differ on the population as well; levels do. The
    population's reference models stand for those of audited records: for each, as many of them count as not trained on
    it as for an audited record drawn from the seed. Attacks that look at IN models have no such level: UserError.
    """
    if "online" in name or name == "trajectory":
        raise UserError(
            f"{name} needs models that were trained on a record, and none was trained on the population",
            advice="choose an attack without IN models",
        )
    if name == "quantile":
        raise UserError("quantile has learnt from the population, so that it has no level", advice="choose another")
    if name.startswith("ensemble"):
        raise UserError(f"{name} ranks records among themselves, so that it has no level", advice="choose another")
    signals, count = fold.signals, fold.signals.population_losses.shape[-1]
    drawn = utils.key_generator(seed, "stand-ins").integers(0, signals.membership.shape[1], count)
    stand_in = SimpleNamespace(
        losses=signals.population_losses,
        scaled=signals.population_scaled,
        membership=signals.membership[:, drawn],
        population_losses=signals.population_losses,
        hits=signals.population_hits,
    )
    outside = np.sort(scores_of(name, replace(fold, signals=stand_in)))
    return np.searchsorted(outside, scores_of(name, fold), side="left") / count
