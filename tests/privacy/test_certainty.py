"""Clustered intervals beside those of pairs, comparisons that are unfair, records that every model gives away."""

from types import SimpleNamespace

import numpy as np
import pytest

from attacks import clustered
from privacy import attack, certainty
from privacy.folds import folds
from tests.privacy.parts import SETTINGS, with_scaled, world

OPTIONS = {"fprs": (0.01,), "seed": 1, "resamples": 60}


def test_the_results_hold_both_kinds_of_intervals(leaking):
    signals, results = leaking
    one = next(one for one in results["attacks"] if one["name"] == "bavaria_online")
    scores = results["arrays"]["scores"]["bavaria_online"]
    found = clustered.intervals(scores, signals.membership, SETTINGS["fprs"], SETTINGS["resamples"], SETTINGS["seed"])
    assert one["pooled"]["auc_clustered"] == found["auc_interval"]
    for point, made in zip(one["pooled"]["tpr_at_fpr"], found["tpr_at_fpr"], strict=True):
        assert (point["clustered"], point["fpr_clustered"]) == (made["interval"], made["fpr_interval"])
        others = np.sort(scores[~signals.membership])[::-1]
        threshold = others[int(point["fpr"] * len(others))]
        assert point["stability"] == clustered.stability(scores, signals.membership, threshold)
        assert point["stability"]["all"] <= point["stability"]["any"] <= 400
    # Records leak by different amounts in this world, and every model finds the same ones.
    assert results["certainty"]["widening"] > 1.2 and results["certainty"]["verdict"] == "high"
    point = one["pooled"]["tpr_at_fpr"][1]
    assert point["stability"]["all"] > 10 * point["stability"]["by_chance"]


def test_what_changes_is_said_of_the_two_verdicts():
    pooled = {"auc_interval": [0.50, 0.52], "auc_clustered": [0.47, 0.53]}
    found = certainty.changes([{"pooled": pooled}], {"level": "low"}, {"level": "moderate"})
    assert found == {
        "widening": pytest.approx(3.0),
        "verdict": "low",
        "verdict_if_independent": "moderate",
        "changed": True,
    }


def fairness_of(signals):
    plan = list(folds(signals, {**SETTINGS, "a": 0.5}))
    return certainty.fairness(plan, np.stack([fold.is_member for fold in plan]), OPTIONS)


def test_records_that_chance_divided_are_compared_fairly(leaking):
    signals, _ = leaking
    found = fairness_of(signals)
    assert found["warnings"] == [] and found["uneven"] == 0 and found["auc"] == pytest.approx(0.5, abs=0.05)


def test_members_that_are_easier_for_everybody_are_no_leak_and_are_named():
    signals = world(models=4, records=600, leak=0.0, targets=[0])
    signals.membership[1:] = False  # references that have seen none of these records
    easier = with_scaled(signals, signals.scaled + 2 * signals.membership[0], signals.population_scaled)
    assert fairness_of(signals)["warnings"] == []
    found = fairness_of(easier)
    assert len(found["warnings"]) == 1 and "never seen" in found["warnings"][0] and found["auc"] > 0.6
    # The mistake that it is there to show: LOSS takes the difference for a leak.
    assert attack.run_attacks(easier, {**SETTINGS, "attacks": ["loss"]})["headline"]["auc"] > 0.6


def test_references_that_were_trained_on_the_non_members_are_named():
    signals = world(models=4, records=600, leak=0.0, targets=[0])
    signals.membership[1:3] = False
    signals.membership[3] = ~signals.membership[0] & (np.arange(600) % 3 > 0)
    found = fairness_of(signals)
    assert found["uneven"] > 0.5 and "differ in how many references" in " ".join(found["warnings"])


def test_one_model_alone_has_no_references_and_is_audited_all_the_same():
    signals = world(models=2, records=300)
    alone = {
        name: value[:1] if name in ("losses", "scaled", "membership", "hits", "trajectories") else value
        for name, value in vars(signals).items()
    }
    alone |= {name: value[:1] for name, value in alone.items() if name.startswith("population_") and value.ndim == 3}
    results = attack.run_attacks(SimpleNamespace(**{**alone, "target_ids": [0]}), SETTINGS)
    assert {one["name"] for one in results["attacks"]} == {"loss", "population", "quantile"}
    assert results["fairness"]["auc"] is None and results["references"] == [0]
