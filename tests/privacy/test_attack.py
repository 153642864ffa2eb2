"""Attacks on every target: references, tuning, rates and verdicts, in made-up worlds that leak or don't."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import binomtest, norm, rankdata
from sklearn.metrics import roc_auc_score

from attacks import lira, rmia
from kit.errors import UserError
from privacy import attack
from privacy.folds import ATTACKS, TITLES, folds, levels_of, scores_of
from tests.privacy.parts import SETTINGS, poisoned, world


def test_every_attack_finds_the_leak_with_the_right_sign(leaking):
    # Defect 16: a score with the wrong sign has 1 - AUC.
    signals, results = leaking
    found = {one["name"]: one["pooled"]["auc"] for one in results["attacks"]}
    # One question a record is no boundary.
    assert set(results["skipped"]) == {"label_only", "label_only_offline"}
    assert set(found) | set(results["skipped"]) == set(ATTACKS) == set(TITLES)
    assert min(found.values()) > 0.62
    scores = results["arrays"]["scores"]
    assert np.array_equal(scores["loss"][3], -signals.losses[3, 0].astype(np.float64))
    assert found["loss"] == pytest.approx(roc_auc_score(signals.membership.ravel(), -signals.losses[:, 0].ravel()))
    assert found["lira_online_fixed"] > found["reference"] > found["loss"] + 0.05
    assert results["verdict"]["level"] == "high"


def test_an_ensemble_is_the_mean_normal_score_of_base_and_bavaria(leaking):
    signals, results = leaking
    scores = results["arrays"]["scores"]
    for kind in ("offline", "online"):
        ranks = [rankdata(scores[f"{name}_{kind}"][3]) for name in ("base", "bavaria")]
        expected = np.mean([norm.ppf(rank / (len(rank) + 1)) for rank in ranks], axis=0)
        assert np.allclose(scores[f"ensemble_{kind}"][3], expected)
        with pytest.raises(UserError, match=f"ensemble_{kind}"):
            levels_of(f"ensemble_{kind}", next(folds(signals, SETTINGS)), 1)


def test_references_are_all_models_but_the_target_and_its_complement(leaking):
    signals, results = leaking
    scores = results["arrays"]["scores"]
    for target in (0, 5):
        rows = [model for model in range(8) if model // 2 != target // 2]
        assert np.allclose(
            scores["lira_offline"][target],
            lira.offline(signals.scaled[target], signals.scaled[rows], signals.membership[rows]),
        )
        assert np.allclose(
            scores["rmia_online"][target],
            rmia.online(
                signals.losses[target],
                signals.losses[rows],
                signals.membership[rows],
                signals.population_losses[target, 0],
                signals.population_losses[rows, 0],
            ),
        )


def test_scores_need_neither_the_complement_nor_another_targets_signals_beyond_the_references():
    signals = world(models=8, records=80, population=60, targets=[2])
    given = {**SETTINGS, "a": 0.4, "num_ref_models": 2}
    scores = attack.run_attacks(signals, given)["arrays"]["scores"]
    # Two pairs are references, 0 1 and 4 5; the complement 3 and the pair 6 7 are not asked.
    again = attack.run_attacks(poisoned(poisoned(signals, 3), 6), given)["arrays"]["scores"]
    assert all(np.array_equal(scores[name], again[name]) for name in scores)
    changed = attack.run_attacks(poisoned(signals, 4), given)["arrays"]["scores"]
    assert not np.array_equal(scores["reference"], changed["reference"])


@pytest.mark.parametrize("wanted, models", [(None, 8), (1, 4), (1, 8), (3, 8)])
def test_nothing_is_tuned_on_the_target(wanted, models):
    signals = world(models=models, queries=3, records=200, population=100)
    settings = {**SETTINGS, "num_ref_models": wanted}
    for fold, blind in zip(
        folds(signals, settings),
        (
            next(folds(SimpleNamespace(**{**vars(poisoned(signals, target)), "target_ids": [target]}), settings))
            for target in range(models)
        ),
        strict=True,
    ):
        assert fold.tuning.models >= 1 and fold.target not in fold.references
        assert (fold.a, blind.a) == (blind.a, fold.a) and fold.tuning.curve == blind.tuning.curve
        for other, unseen in zip(fold.others(3), blind.others(3), strict=True):
            assert fold.target != other.target and fold.target not in other.references
            assert np.array_equal(scores_of("rmia_offline", other), scores_of("rmia_offline", unseen))
            assert np.array_equal(levels_of("reference", other, 1), levels_of("reference", unseen, 1))


def test_a_is_the_best_on_models_that_were_left_out():
    signals = world(models=8, records=300)
    fold = next(folds(signals, {**SETTINGS, "num_ref_models": 2, "asked_fpr": 0.05}))
    assert fold.references.tolist() == [2, 3, 4, 5]
    assert [other.target for other in fold.others(4)] == [6, 7] and fold.tuning.models == 2
    scores = {
        a: np.stack(
            [
                rmia.offline(
                    signals.losses[other],
                    signals.losses[2:6],
                    signals.membership[2:6],
                    signals.population_losses[other, 0],
                    signals.population_losses[2:6, 0],
                    a,
                )
                for other in (6, 7)
            ]
        )
        for a in rmia.CANDIDATES
    }
    truth = signals.membership[6:]
    tprs = {a: (rows[truth] > np.sort(rows[~truth])[-16]).mean() for a, rows in scores.items()}  # 15 of 300 may pass
    aucs = {a: np.mean([roc_auc_score(*pair) for pair in zip(truth, rows, strict=True)]) for a, rows in scores.items()}
    assert [row["tpr"] for row in fold.tuning.curve] == pytest.approx(list(tprs.values()))
    assert [row["auc"] for row in fold.tuning.curve] == pytest.approx(list(aucs.values()))
    assert (tprs[fold.a], aucs[fold.a]) == max(zip(tprs.values(), aucs.values(), strict=True))
    # 300 non-members have no rate of 0.1 %, and then the AUC decides; as where it is asked for.
    for asked in (1e-3, None):
        other = next(folds(signals, {**SETTINGS, "num_ref_models": 2, "asked_fpr": asked}))
        assert other.tuning.fpr is None and aucs[other.a] == max(aucs.values())


def test_a_that_changes_the_answer_matters_and_one_that_does_not_is_said_not_to():
    found = attack.run_attacks(world(models=8, records=400), {**SETTINGS, "attacks": ["rmia_offline"]})["offline_a"]
    assert found["asked"] is None and len(found["chosen"]) == 8 and len(found["curve"]) == 11
    assert set(found["chosen"][:1]) <= set(found["as_good"])
    # Here mean_OUT is far from mean_IN, so that a = 1, which takes them for the same, is worse for certain.
    assert found["matters"] and 1.0 not in found["as_good"] and max(found["chosen"]) < 0.6
    flat = world(models=8, records=400, leak=0.0)
    assert not attack.run_attacks(flat, {**SETTINGS, "attacks": ["rmia_offline"]})["offline_a"]["matters"]
    given = attack.run_attacks(flat, {**SETTINGS, "attacks": ["rmia_offline"], "a": 0.3})
    assert given["offline_a"] is None and given["attacks"][0]["targets"][0]["a_tuned"] is False


def test_num_ref_models_counts_models_on_each_side_of_a_record():
    signals = world(models=8, records=60, population=30)
    for wanted in (1, 2, 3):
        for fold in folds(signals, {**SETTINGS, "num_ref_models": wanted}):
            assert len(fold.references) == 2 * wanted and (fold.membership.sum(axis=0) == wanted).all()
    with pytest.raises(UserError, match="train more models"):
        list(folds(signals, {**SETTINGS, "num_ref_models": 4}))


def test_without_a_leak_every_auc_is_near_half_and_the_verdict_low():
    levels, means = [], []
    for seed in range(6):
        results = attack.run_attacks(
            world(models=6, records=300, leak=0, seed=seed, targets=[0, 2, 4]),
            {**SETTINGS, "epsilon": {}, "resamples": 40},
        )
        levels.append(results["verdict"]["level"])
        means.append([one["average"]["auc"]["mean"] for one in results["attacks"]])
        assert results["epsilon"]["epsilon"] < 0.3
    assert levels == ["low"] * 6
    assert np.abs(np.mean(means, axis=0) - 0.5).max() < 0.03


def test_rates_counts_and_intervals_are_those_of_the_scores(leaking):
    signals, results = leaking
    for one in results["attacks"]:
        scores = results["arrays"]["scores"][one["name"]]
        member, other = scores[signals.membership], scores[~signals.membership]
        for point in one["pooled"]["tpr_at_fpr"]:
            allowed = int(point["fpr"] * len(other))
            threshold = np.sort(other)[::-1][allowed]
            assert point["hits"] == (member > threshold).sum() == round(point["tpr"] * len(member))
            assert point["false_positives"] == (other > threshold).sum() <= allowed
            interval = binomtest(point["hits"], len(member)).proportion_ci(method="exact")
            assert point["interval"] == pytest.approx(list(interval))
            assert point["resolved"] == (point["fpr"] * 1600 >= 1)
        assert one["pooled"]["auc_interval"][0] < one["pooled"]["auc"] < one["pooled"]["auc_interval"][1]
        assert one["pooled"]["fpr_at_100_tpr"] == (other >= member.min()).mean()


def test_averages_are_means_over_targets_and_curves_are_read_at_or_below_each_rate(leaking):
    signals, results = leaking
    one = next(one for one in results["attacks"] if one["name"] == "lira_offline")
    scores = results["arrays"]["scores"]["lira_offline"]
    aucs = [roc_auc_score(signals.membership[target], scores[target]) for target in range(8)]
    assert one["average"]["auc"]["mean"] == pytest.approx(np.mean(aucs))
    assert one["average"]["auc"]["std"] == pytest.approx(np.std(aucs, ddof=1))
    for rate in (0.004, 0.05, 1.0):
        place = int(np.argmin(np.abs(attack.FPR_GRID - rate)))
        tprs = []
        for row, inside in zip(scores, signals.membership, strict=True):
            # Two-hundred non-members: so many may pass.
            threshold = np.sort(row[~inside])[::-1][min(199, int(attack.FPR_GRID[place] * 200))]
            above = row[inside] > threshold if attack.FPR_GRID[place] < 1 else row[inside] > -np.inf
            tprs.append(above.mean())
        assert one["mean_roc"]["tpr"][place] == pytest.approx(np.mean(tprs), abs=1e-9)
    assert one["mean_roc"]["tpr"][0] == pytest.approx(np.mean([p["tpr_at_fpr"][3]["tpr"] for p in one["targets"]]))


def test_the_headline_is_the_strongest_attack_at_a_rate_that_the_records_can_show(leaking):
    _, results = leaking
    head = results["headline"]
    assert head["fpr"] == 1e-3 and head["resolved"]
    assert head["tpr"] == max(one["pooled"]["tpr_at_fpr"][1]["tpr"] for one in results["attacks"])
    small = attack.run_attacks(world(models=4, records=60, targets=[1]), SETTINGS)["headline"]
    assert small["fpr"] == 1e-2 and not small["resolved"]


@pytest.mark.parametrize(
    "hits, false_positives, auc, level",
    [
        (0.05, 0.001, 0.5, "high"),
        (0.01, 0.001, 0.5, "moderate"),
        (0.001, 0.001, 0.56, "moderate"),
        (0.001, 0.001, 0.54, "low"),
    ],
)
def test_the_verdict_divides_the_worse_ends_of_the_intervals(hits, false_positives, auc, level):
    point = {"fpr": 1e-3, "interval": [hits, 1], "fpr_interval": [0, false_positives * 2]}
    point |= {"clustered": [hits * 2, 1], "fpr_clustered": [0, false_positives]}
    pooled = {"tpr_at_fpr": [point], "auc_interval": [auc, 1], "auc_clustered": [0.9, 1]}
    found = attack._verdict([{"title": "attack", "pooled": pooled}])
    assert found["level"] == level and found["ratio"] == pytest.approx(hits / false_positives / 2)
    # The other kind of interval is the worse one: it decides, and without it all is as before.
    wide = {**point, "clustered": [hits / 4, 1], "fpr_clustered": [0, false_positives * 4]}
    both = [{"title": "attack", "pooled": {**pooled, "tpr_at_fpr": [wide], "auc_clustered": [0.5, 1]}}]
    assert attack._verdict(both)["ratio"] == pytest.approx(hits / false_positives / 16)
    assert attack._verdict(both)["auc_at_least"] == 0.5
    assert attack._verdict(both, independent=True)["level"] == level


def test_an_attack_that_cannot_run_is_named_with_its_reason():
    results = attack.run_attacks(world(models=4, records=60), {**SETTINGS, "num_ref_models": 1})
    # Two OUT models a record are needed, three references, and two queries.
    few = {"lira_offline", "lira_online", "trajectory"}
    assert set(results["skipped"]) == {*few, "label_only", "label_only_offline"}
    assert "reference model" in results["skipped"]["lira_online"]
    with pytest.raises(UserError, match="no attack can run"):
        attack.run_attacks(world(models=4, records=60), {**SETTINGS, "num_ref_models": 1, "attacks": ["lira_online"]})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"attacks": ["rmia_ofline"]}, "did you mean rmia_offline"),
        ({"duci": {"share": [1]}}, "did you mean shares"),
        ({"attacks": []}, "nothing to audit"),
        ({"epsilon": {"attack": "loss"}, "attacks": ["reference"]}, "did not|among"),
        ({"groups": ["age"]}, "age"),
        ({"duci": {"attack": "rmia_online"}}, "without IN models"),
        ({"ramia": {"trim": [0.5, 0.2]}}, "ramia.trim"),
        ({"duci": {"shares": 0.5}}, "duci.shares"),
        ({"epsilon": {"confidence": 95}}, "epsilon.confidence"),
        ({"duci": {"group": "age"}}, "age"),
        ({"duci": {"size": 50}}, "50"),
    ],
)
def test_wrong_settings_are_refused_by_name(change, message):
    with pytest.raises(UserError, match=message):
        attack.run_attacks(world(models=4, records=60, targets=[0]), {**SETTINGS, **change})
