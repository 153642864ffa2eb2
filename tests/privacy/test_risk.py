"""Whose risk is how high: groups, users, records, ranges, shares of data sets, bounds on epsilon."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import binomtest

from attacks import cardinality
from privacy import attack, risk
from privacy.folds import folds, levels_of, scores_of
from tests.privacy.parts import SETTINGS, with_scaled, world


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
