"""Attacks on every target, whose risk is how high, and the report: files, numbers, and the page that people read."""

import csv
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from attacks import cardinality, evaluation, lira, membership, rmia
from attacks.signals import losses_from_scaled
from kit import markup
from kit.errors import UserError
from privacy import attack, html, report, risk
from privacy.folds import ATTACKS, TITLES, folds, levels_of, scores_of

SETTINGS = {
    "attacks": "all",
    "num_ref_models": None,
    "gamma": 2.0,
    "a": None,
    "fprs": [1e-2, 1e-3, 1e-4, 0.0],
    "seed": 1,
    "ramia": None,
    "duci": None,
    "epsilon": None,
    "groups": [],
    "resamples": 100,
}
HOSTILE = '<script>alert("1")</script>'
CLINIC = '<i>clinic" onfocus="x'


def world(models=8, queries=1, records=400, population=300, leak=1.5, seed=0, classes=4, targets=None, **changes):
    """Signals of models that raise the confidence in members by `leak` on average, in some records more."""
    draws = np.random.default_rng(seed)
    inside = membership.balanced(models, records, seed)
    gain = leak * draws.gamma(1, 1, records)
    hardness, others = draws.normal(1, 1.5, records), draws.normal(1, 1.5, population)
    scaled, outside = (
        (values + added)[:, None] + draws.normal(0, 0.7, (models, queries, len(values)))
        for values, added in ((hardness, inside * gain), (others, np.zeros((models, population))))
    )
    fields = {
        "membership": inside,
        "labels": np.arange(records) % classes,
        "population_labels": np.arange(population) % classes,
        "records": np.arange(records) + 1000,
        "class_names": [f"class {number}" for number in range(classes)],
        "groups": {},
        "target_ids": list(range(models)) if targets is None else targets,
        "image_of": None,
        **changes,
    }
    return with_scaled(SimpleNamespace(**fields), scaled, outside)


def with_scaled(signals, scaled, outside):
    scaled, outside = scaled.astype(np.float32), outside.astype(np.float32)
    return SimpleNamespace(
        **{
            **vars(signals),
            "scaled": scaled,
            "correct": scaled[:, 0] > 0,
            "losses": losses_from_scaled(scaled).astype(np.float32),
            "population_scaled": outside,
            "population_losses": losses_from_scaled(outside).astype(np.float32),
        }
    )


def poisoned(signals, model):
    """The same world, but this model's signals are noise."""
    draws = np.random.default_rng(99)
    scaled, outside = signals.scaled.copy(), signals.population_scaled.copy()
    scaled[model], outside[model] = draws.normal(0, 5, scaled[model].shape), draws.normal(0, 5, outside[model].shape)
    return with_scaled(signals, scaled, outside)


@pytest.fixture(scope="module")
def leaking():
    signals = world()
    return signals, attack.run_attacks(signals, SETTINGS)


# ---------------------------------------------------------------------------------------------------------------------
# Attacks on every target
# ---------------------------------------------------------------------------------------------------------------------


def test_every_attack_finds_the_leak_with_the_right_sign(leaking):
    # Defect 16: a score with the wrong sign has 1 - AUC.
    signals, results = leaking
    found = {one["name"]: one["pooled"]["auc"] for one in results["attacks"]}
    assert set(found) == set(ATTACKS) == set(TITLES) and not results["skipped"]
    assert min(found.values()) > 0.62
    scores = results["arrays"]["scores"]
    assert np.array_equal(scores["loss"][3], -signals.losses[3, 0].astype(np.float64))
    assert found["loss"] == pytest.approx(roc_auc_score(signals.membership.ravel(), -signals.losses[:, 0].ravel()))
    assert found["lira_online_fixed"] > found["reference"] > found["loss"] + 0.05
    assert results["verdict"]["level"] == "high"


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
        assert fold.tuned and fold.target not in fold.references
        assert (fold.a, blind.a) == (blind.a, fold.a)
        for other, unseen in zip(fold.others(3), blind.others(3), strict=True):
            assert fold.target != other.target and fold.target not in other.references
            assert np.array_equal(scores_of("rmia_offline", other), scores_of("rmia_offline", unseen))
            assert np.array_equal(levels_of("reference", other, 1), levels_of("reference", unseen, 1))


def test_a_is_the_best_on_a_model_that_was_left_out():
    signals = world(models=8, records=300)
    fold = next(folds(signals, {**SETTINGS, "num_ref_models": 2}))
    assert fold.references.tolist() == [2, 3, 4, 5] and fold.others(9)[0].target == 6
    aucs = {
        a: roc_auc_score(
            signals.membership[6],
            rmia.offline(
                signals.losses[6],
                signals.losses[2:6],
                signals.membership[2:6],
                signals.population_losses[6, 0],
                signals.population_losses[2:6, 0],
                a,
            ),
        )
        for a in rmia.CANDIDATES
    }
    assert aucs[fold.a] == max(aucs.values())


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
    found = attack._verdict([{"title": "attack", "pooled": {"tpr_at_fpr": [point], "auc_interval": [auc, 1]}}])
    assert found["level"] == level and found["ratio"] == pytest.approx(hits / false_positives / 2)


def test_an_attack_that_cannot_run_is_named_with_its_reason():
    results = attack.run_attacks(world(models=4, records=60), {**SETTINGS, "num_ref_models": 1})
    assert set(results["skipped"]) == {"lira_offline", "lira_online"}  # two OUT models a record are needed
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


# ---------------------------------------------------------------------------------------------------------------------
# Whose risk, and beyond single records
# ---------------------------------------------------------------------------------------------------------------------


def test_group_risk_by_hand():
    labels, scores = np.array([0, 0, 0, 0, 1, 1, 1, 1]), np.array([[9.0, 1, 2, 8, 7, 6, 5, 4]])
    inside = np.array([[True, False, False, True, True, True, False, False]])
    signals = SimpleNamespace(labels=labels, class_names=["first", "second"], groups={})
    rows = risk.groups(signals, scores, inside, {"fpr": 0.25}, {"seed": 1})[0]["rows"]
    # One of four non-members may pass: the threshold is 4.
    assert [row["value"] for row in rows] == ["first", "second"]
    assert [(row["tpr"], row["fpr"]) for row in rows] == [(1.0, 0.0), (1.0, 0.5)]
    assert rows[0]["tpr_interval"] == pytest.approx(list(binomtest(2, 2).proportion_ci(method="exact")))
    assert [row["auc"] for row in rows] == [1.0, 1.0] and all(row["small"] for row in rows)
    assert [(row["members"], row["non_members"]) for row in rows] == [(2, 2), (2, 2)]


def test_the_group_that_leaks_comes_first_and_small_groups_are_flagged():
    signals = world(models=8, records=400, leak=0.0, classes=2)
    region = np.where(np.arange(400) < 150, "north", np.where(np.arange(400) < 390, "south", "island"))
    gain = 4.0 * (region == "north") * signals.membership
    signals = with_scaled(signals, signals.scaled + gain[:, None], signals.population_scaled)
    signals.groups = {"region": region}
    tables = attack.run_attacks(signals, {**SETTINGS, "resamples": 5})["groups"]
    assert [one["name"] for one in tables] == ["class", "region"]
    rows = {row["value"]: row for row in tables[1]["rows"]}
    assert tables[1]["rows"][0]["value"] == "north"
    assert rows["north"]["auc_interval"][0] > 0.8 and rows["south"]["auc_interval"][0] < 0.55
    assert [rows[name]["small"] for name in ("north", "south", "island")] == [False, False, True]
    assert rows["north"]["members"] == 4 * 150 and sum(row["records"] for row in rows.values()) == 400


def test_a_group_without_members_has_no_rate():
    signals = SimpleNamespace(labels=np.array([0, 0, 1]), class_names=["first"], groups={})
    rows = risk.groups(
        signals, np.array([[1.0, 2.0, 3.0]]), np.array([[True, False, False]]), {"fpr": 0.0}, {"seed": 1}
    )[0]["rows"]
    alone = next(row for row in rows if row["value"] == "1")  # a class without a name is a number
    assert alone["tpr"] is None and alone["auc"] is None and alone["fpr"] == 0.0


def test_users_are_judged_by_their_mean_loss():
    signals = world(models=4, records=60, leak=0.0)
    owners = np.where(np.arange(60) < 40, np.arange(60) // 8, -1)  # five users with eight records each
    for user in range(5):
        signals.membership[:, owners == user] = (np.arange(4) % 2 == user % 2)[:, None]
    signals.membership[0, 0] = ~signals.membership[0, 0]  # this model knows user 0 in part
    losses = np.full((4, 1, 60), 2.0, dtype=np.float32)
    losses[:, 0][signals.membership] = 0.5
    signals = SimpleNamespace(**{**vars(signals), "losses": losses, "groups": {"user": owners}})
    found = risk.users(
        signals,
        [SimpleNamespace(signals=signals, target=target, is_member=signals.membership[target]) for target in range(4)],
        SETTINGS,
    )
    assert (found["users"], found["in_part"]) == (5, 1)
    assert found["audit"]["auc"] == 1.0 and found["audit"]["fpr_at_100_tpr"] == 0.0
    assert found["audit"]["members"] + found["audit"]["non_members"] == 19
    row = next(row for row in found["rows"] if row["user"] == "1")
    assert (row["models_in"], row["models_out"], row["loss_in"], row["loss_out"]) == (2, 2, 0.5, 2.0)
    assert risk.users(world(models=4, records=20), [], SETTINGS) is None


def test_a_memorised_record_is_the_most_exposed():
    signals = world(models=8, records=300, leak=0.3)
    signals.scaled[:, 0, 77] += 15 * signals.membership[:, 77]
    signals = with_scaled(signals, signals.scaled, signals.population_scaled)
    found = attack.run_attacks(signals, {**SETTINGS, "resamples": 5})["exposed"]
    assert found[0]["record"] == 1077 and found[0]["class"] == "class 1" and len(found) == risk.EXPOSED
    assert (found[0]["models_in"], found[0]["found_in"], found[0]["found_out"]) == (4, 4, 0)
    assert found[0]["false_positive_level"] == pytest.approx(1 / 1201)
    assert found[0]["loss_in"] == pytest.approx(signals.losses[signals.membership[:, 77], 0, 77].mean())
    assert found[0]["loss_out"] == pytest.approx(signals.losses[~signals.membership[:, 77], 0, 77].mean())


def test_a_range_of_copies_tells_more_than_one_copy():
    signals = world(models=6, queries=6, records=300, leak=0.7)
    found = attack.run_attacks(signals, {**SETTINGS, "attacks": ["loss", "lira_offline_fixed"], "ramia": {}})["ramia"]
    assert found["attack"] == "lira_offline_fixed" and found["points"] == 5 and len(found["trims"]) == 6
    assert found["range"]["auc"] > found["one_point"]["auc"] + 0.03
    fold = next(folds(signals, SETTINGS))
    one = scores_of(
        "lira_offline_fixed",
        SimpleNamespace(
            scaled=signals.scaled[0, 1], reference_scaled=signals.scaled[2:, 1], membership=signals.membership[2:]
        ),
    )
    assert np.allclose(risk._points(fold, "lira_offline_fixed")[1], one)
    assert "skipped" in attack.run_attacks(world(models=4, records=60, queries=2), {**SETTINGS, "ramia": {}})["ramia"]


def test_a_range_leaves_the_record_itself_out():
    signals = world(models=6, queries=3, records=200, leak=0.0)
    signals.scaled[:, 0] += 20 * signals.membership
    signals = with_scaled(signals, signals.scaled, signals.population_scaled)
    found = attack.run_attacks(signals, {**SETTINGS, "attacks": ["reference"], "ramia": {}})["ramia"]
    assert found["record"]["auc"] > 0.99 and found["range"]["auc"] < 0.56 and found["one_point"]["auc"] < 0.56


def test_usage_of_data_sets_is_found_without_bias():
    results = attack.run_attacks(
        world(models=8, records=1000, population=500, leak=1.0),
        {**SETTINGS, "attacks": ["lira_offline_fixed"], "duci": {"shares": [0.25, 0.5, 0.75], "sets": 10}},
    )
    for row, share in zip(results["duci"]["rows"], (0.25, 0.5, 0.75), strict=True):
        assert row["share"] == share and row["size"] == 500 and row["sets"] == 80
        assert row["mean"] == pytest.approx(share, abs=0.08) and row["covered"] > 0.8 and row["width"] < 0.6


def test_usage_counts_guesses_with_the_references_that_its_rates_were_measured_with(monkeypatch):
    seen = []
    monkeypatch.setattr(
        risk, "levels_of", lambda name, fold, seed: seen.append(len(fold.references)) or levels_of(name, fold, seed)
    )
    attack.run_attacks(
        world(models=8, records=60, population=30, targets=[3]), {**SETTINGS, "attacks": ["loss"], "duci": {"sets": 1}}
    )
    assert seen == [4] * 7  # six others, of which one for the threshold, and the target


def test_usage_of_named_groups_is_set_beside_the_truth():
    signals = world(models=8, records=400, leak=2.0, groups={"shop": np.repeat(["a", "b"], 200)})
    signals.membership[::2, :200], signals.membership[1::2, :200] = True, False
    signals.membership[::2, 200:], signals.membership[1::2, 200:] = False, True
    draws = np.random.default_rng(5)
    signals = with_scaled(
        signals, (draws.normal(1, 0.5, (8, 400)) + 3 * signals.membership)[:, None], signals.population_scaled
    )
    found = attack.run_attacks(
        signals, {**SETTINGS, "attacks": ["loss"], "duci": {"attack": "loss", "group": "shop", "sets": 1}}
    )["duci"]["groups"]
    assert len(found) == 16 and {row["true"] for row in found} == {0.0, 1.0}
    for row in found:
        assert row["share"] == pytest.approx(row["true"], abs=0.1) and row["records"] == 200


def test_epsilon_is_that_of_the_scores_and_corrected_for_the_number_of_targets(leaking):
    signals, _ = leaking
    results = attack.run_attacks(signals, {**SETTINGS, "attacks": ["loss", "reference"], "epsilon": {"delta": "1e-5"}})
    found = results["epsilon"]
    assert found["attack"] == "reference" and found["delta"] == 1e-5 and len(found["rows"]) == 8
    assert 0 < found["epsilon"] < max(row["epsilon"] for row in found["rows"])
    assert all(row["canaries"] == 400 and row["epsilon"] <= row["provable"] for row in found["rows"])


@pytest.mark.parametrize("wanted, models", [(None, 4), (None, 8), (1, 8), (3, 10)])
def test_rates_are_measured_with_as_many_references_as_they_are_used_with(wanted, models):
    signals = world(models=models, records=40, population=20)
    for fold in folds(signals, {**SETTINGS, "num_ref_models": wanted, "a": 0.5}):
        others = fold.others(9)
        assert {len(other.references) for other in others} == {len(fold.matched(others).references)}
        # The complement, of which the opposite is true, only where there is nothing else.
        assert models == 4 or fold.target ^ 1 not in [other.target for other in others]


def test_levels_are_shares_of_the_population_below():
    signals = world(models=6, records=100, population=50, leak=0.0)
    fold = next(folds(signals, SETTINGS))
    found = levels_of("loss", fold, 1)
    expected = [(signals.population_losses[0, 0] > loss).mean() for loss in signals.losses[0, 0]]
    assert found == pytest.approx(expected)
    rates = [cardinality.rates(levels_of("reference", other, 1), other.is_member, 0.8) for other in fold.others(4)]
    assert 0.1 < sum(row[2] for row in rates) / sum(row[3] for row in rates) < 0.3  # a fifth of the population


# ---------------------------------------------------------------------------------------------------------------------
# The report
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A report on two targets with everything in it and names that mean harm."""
    owners = np.where(np.arange(96) < 48, np.arange(96) // 8, -1)
    signals = world(
        models=6,
        queries=3,
        records=96,
        population=80,
        targets=[1, 4],
        class_names=[HOSTILE, "=HYPERLINK(1)", '" onload="x', "plain"],
        groups={CLINIC: np.repeat(["a&b", "<u>"], 48), "user": owners},
    )
    for user in range(6):
        signals.membership[:, owners == user] = signals.membership[:, [user * 8]]
    signals.image_of = lambda row: torch.full((3, 40, 30), row % 256, dtype=torch.uint8)
    results = attack.run_attacks(
        signals, {**SETTINGS, "ramia": {}, "duci": {"sets": 2, "group": CLINIC}, "epsilon": {}}
    )
    context = {
        "dataset": HOSTILE,
        "model_name": "mlp",
        "models": 6,
        "config": {"run": {"log_dir": HOSTILE}},
        "accuracy": [{"model": number, "train": 0.9, "test": 0.7} for number in range(6)],
        "seconds": {"data": 1.0},
        "versions": {"python": "3"},
        "hardware": {"train": ["a <cpu>"]},
        "outside": False,
        "note": HOSTILE,
    }
    folder = tmp_path_factory.mktemp("audit") / "report"
    report.write_report(folder, signals, results, context)
    return folder, signals, results, context


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_promised_file_is_there(written):
    folder, *_ = written
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {
        "attack_result_average.csv",
        "ROC_average.png",
        "ROC_log_average.png",
        "most_exposed.csv",
        "result.json",
        "report.html",
    } | {
        f"exp/{target}/{name}"
        for target in (1, 4)
        for name in ("attack_result.csv", "ROC.png", "ROC_log.png", "scores.npz")
    }


def test_the_average_file_has_the_right_numbers(written):
    # Defect 23: the file that was promised and never written.
    folder, signals, results, _ = written
    average = {row["attack"]: row for row in rows_of(folder / "attack_result_average.csv")}
    single = [{row["attack"]: row for row in rows_of(folder / "exp" / target / "attack_result.csv")} for target in "14"]
    assert set(average) == set(results["arrays"]["scores"]) == set(single[0])
    for name, row in average.items():
        scores, inside = results["arrays"]["scores"][name], signals.membership[[1, 4]]
        aucs = [roc_auc_score(*pair) for pair in zip(inside, scores, strict=True)]
        assert [float(one[name]["auc"]) for one in single] == pytest.approx(aucs)
        assert float(row["auc_mean"]) == pytest.approx(np.mean(aucs)) and row["targets"] == "2"
        assert float(row["auc_std"]) == pytest.approx(np.std(aucs, ddof=1))
        pooled = evaluation.evaluate(scores.ravel(), inside.ravel(), resamples=2)
        assert float(row["auc_pooled"]) == pytest.approx(pooled["auc"])
        for point, fpr in zip(pooled["tpr_at_fpr"], ("1", "0.1", "0.01", "0"), strict=True):
            assert float(row[f"tpr_at_{fpr}%_fpr_pooled"]) == pytest.approx(point["tpr"])
            assert float(row[f"tpr_at_{fpr}%_fpr_pooled_high"]) == pytest.approx(point["interval"][1])
            assert float(row[f"tpr_at_{fpr}%_fpr_mean"]) == pytest.approx(
                np.mean([float(one[name][f"tpr_at_{fpr}%_fpr"]) for one in single])
            )


def test_scores_and_results_can_be_read_again(written):
    folder, signals, results, _ = written
    with np.load(folder / "exp" / "4" / "scores.npz", allow_pickle=False) as stored:
        assert np.array_equal(stored["membership"], signals.membership[4])
        assert np.array_equal(stored["rmia_offline"], results["arrays"]["scores"]["rmia_offline"][1])
        assert np.array_equal(stored["records"], signals.records)
    numbers = json.loads((folder / "result.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert numbers["headline"] == results["headline"] and "arrays" not in numbers
    assert numbers["context"]["dataset"] == HOSTILE
    for path in folder.rglob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_names_cannot_become_formulas_in_a_spreadsheet(written):
    folder, *_ = written
    rows = rows_of(folder / "most_exposed.csv")
    assert {row["class"] for row in rows} == {HOSTILE, "'=HYPERLINK(1)", '" onload="x', "plain"}
    assert not any(value.startswith(("=", "+", "@")) for row in rows for value in row.values())


class Reader(HTMLParser):
    """Tags with their attributes, headings in order, text, and whether all tags are closed."""

    EMPTY = ("meta", "img", "source", "br")

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def read_page(folder):
    return Reader((folder / "report.html").read_text(encoding="utf-8"))


def test_the_page_holds_everything_and_runs_nothing(written):
    folder, *_ = written
    reader = read_page(folder)
    assert not reader.open
    assert not {tag for tag, _ in reader.tags} & {"script", "link", "iframe", "object", "base", "form", "b", "i", "u"}
    for tag, attributes in reader.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "srcset", "href", "data", "action"):
            value = attributes.get(name, "#")
            assert value.startswith(("data:image/png;base64,", "#")), (tag, value[:80])
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"url\(|@import|https?:", text)


def test_names_that_mean_harm_are_shown_as_text(written):
    folder, *_ = written
    text = "".join(read_page(folder).text)
    for name in (HOSTILE, '" onload="x', "=HYPERLINK(1)", "a&b", "<u>", CLINIC, "a <cpu>"):
        assert name in text
    assert "<script" not in (folder / "report.html").read_text(encoding="utf-8")


def test_the_page_can_be_read_by_everybody(written):
    folder, *_ = written
    reader = read_page(folder)
    assert reader.all("html")[0]["lang"] == "en" and len(reader.all("h1")) == len(reader.all("title")) == 1
    headings = [int(tag[1]) for tag, _ in reader.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1 and all(after <= before + 1 for before, after in pairwise(headings))
    assert all(one.get("scope") in ("col", "row") for one in reader.all("th"))
    assert len(reader.all("caption")) == len(reader.all("table")) > 6
    assert all(one["alt"] for one in reader.all("img")) and len(reader.all("img")) == 2 + risk.EXPOSED
    assert len(reader.all("main")) == 1 and "width=device-width" in str(reader.all("meta"))
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) and {one["href"][1:] for one in reader.all("a")} == set(ids)


def contrast(one, other):
    """Of two colours #rrggbb: WCAG 2.1."""

    def luminance(color):
        parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_enough_in_light_and_dark():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    light, dark = (
        dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root \{([^}]*)\}", markup.CSS)
    )
    dark = {**light, **dark}
    for colors in (light, dark):
        for ink in ("ink", "soft", "link"):
            assert min(contrast(colors[ink], colors[paper]) for paper in ("paper", "tint")) >= 4.5
        assert min(contrast("#ffffff", colors[level]) for level in html.LEVELS) >= 4.5
    for paper, pen in report.INKS.values():
        assert contrast(paper, pen) >= 7
        assert min(contrast(color, paper) for color, _ in report.STYLES.values()) >= 3  # lines, not text


def test_the_page_says_the_numbers_in_plain_words(written):
    folder, _, results, _ = written
    text = " ".join("".join(read_page(folder).text).split())
    head = results["headline"]
    assert f"{head['hits']:,} of {head['members']:,} members found" in text
    assert html.LEVELS[results["verdict"]["level"]] in text
    for one in results["attacks"]:
        assert f"{one['pooled']['auc']:.4f}" in text
    sentence = html._worked({"headline": {"fpr": 1e-3, "tpr": 0.037, "non_members": 5000}})
    assert sentence == (
        "Of 1,000 records that were NOT used, at most 1 would be called a member; the attack finds 37 "
        "of 1,000 that were."
    )
    rare = html._worked({"headline": {"fpr": 1e-4, "tpr": 0.00125, "non_members": 50_000}})
    assert "Of 10,000 records" in rare and "finds 12 of 10,000" in rare


@pytest.mark.parametrize("level", html.LEVELS)
def test_every_level_has_its_words_and_its_advice(written, level):
    _, _, results, context = written
    figures = {scale: {"light": b"png", "dark": b"png"} for scale in ("log", "linear")}
    numbers = {name: value for name, value in results.items() if name != "arrays"}
    numbers["verdict"] = {**results["verdict"], "level": level, "ratio": {"high": 12, "moderate": 1, "low": 1}[level]}
    text = html.render(numbers, context, figures)
    assert html.LEVELS[level] in text and f'class="verdict {level}"' in text
    others = set(html.LEVELS) - {level}
    assert not any(f'class="verdict {other}"' in text for other in others)
    assert ("data protection impact assessment" in text) == (level != "low")
    assert "Most exposed records" in text  # without images, a table


def test_a_page_of_the_least_that_an_audit_gives(tmp_path):
    signals = world(models=4, records=40, population=20, targets=[0])
    results = attack.run_attacks(signals, {**SETTINGS, "attacks": ["loss"], "fprs": [0.0]})
    report.write_report(tmp_path, signals, results, {})
    text = "".join(read_page(tmp_path).text)
    assert "At a threshold above all 20 records" in text and "nan" not in text.lower().split()


def test_a_report_that_fails_leaves_the_old_one(written, tmp_path, monkeypatch):
    _, signals, _, context = written
    few = attack.run_attacks(signals, {**SETTINGS, "attacks": ["loss"]})
    report.write_report(tmp_path, signals, few, context)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(report.page, "render", fail)
    with pytest.raises(KeyboardInterrupt):
        report.write_report(tmp_path, signals, few, {**context, "dataset": "another"})
    assert (tmp_path / "report.html").read_bytes() == before[tmp_path / "report.html"]
    monkeypatch.setattr(report, "_cell", fail)
    with pytest.raises(KeyboardInterrupt):
        report.write_report(tmp_path, signals, few, context)
    path = tmp_path / "attack_result_average.csv"
    assert path.read_bytes() == before[path]
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(before)
