"""The comparison of attacks at a toy size: every attack at every budget, and a second call that asks nothing."""

import json

import numpy as np
import pytest

from attacks import clustered
from kit import files
from privacy import training
from studies import privacy_comparison as study

FLAGS = [
    "--dataset", "photos", "--net_type", "cnn", "--models", "6", "--size", "80", "--population", "60", "--epochs", "3",
    "--budgets", "1", "2", "--checkpoints", "1", "--device", "cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("comparison")


def test_every_attack_has_a_row_at_every_budget_and_a_second_call_asks_nothing(folder, script, monkeypatch):
    flags = [*FLAGS, "--work", folder / "work", "--out", folder / "out"]
    done = script("studies.privacy_comparison", *flags)
    assert done.code == 0, done.err
    result = json.loads((folder / "out" / "result.json").read_text())
    rows = {(row["budget"], row["attack"]): row for row in result["rows"]}
    assert {name for budget, name in rows if budget is None} == set(study.ALONE)
    # LiRA's own variances need two models a side, and trajectories more references than one pair.
    few = {"lira_offline", "lira_online", "trajectory"}
    assert {name for budget, name in rows if budget == 1} == set(study.WITH) - few
    assert {name for budget, name in rows if budget == 2} == set(study.WITH)
    assert result["hours_of_training"] > 0 and (folder / "out" / "budgets.png").stat().st_size > 0
    assert "BaVarIA, online" in done.out and "best at 2" in done.out
    arrays = files.read_arrays(folder / "work" / "privacy-comparison" / "budget_2.npz")
    row = rows[2, "bavaria_online"]
    found = clustered.intervals(arrays["bavaria_online"], arrays["membership"], study.FPRS, study.RESAMPLES)
    assert row["auc_interval"] == pytest.approx(found["auc_interval"])
    best = next(one for one in result["best"] if one["budget"] == 2)
    tprs = [study.asked(row)["tpr"] for (budget, _), row in rows.items() if budget in (None, 2)]
    assert study.asked(rows.get((2, best["attack"])) or rows[None, best["attack"]])["tpr"] == max(tprs)
    assert [(one["first"], one["share"]) for one in result["cascades"]] == [
        (first, share) for first in study.FIRST for share in study.KEPT
    ]
    for name in ("train_one", "open_own"):
        monkeypatch.setattr(training, name, lambda *_: pytest.fail("trained or asked again"))
    again = script("studies.privacy_comparison", *flags)
    assert again.code == 0 and again.out == done.out
    other = script("studies.privacy_comparison", *flags, "--population", "50")
    assert other.code == 2 and "other" in other.err


def test_too_few_models_for_a_budget_are_refused(script, tmp_path):
    done = script("studies.privacy_comparison", *FLAGS, "--out", tmp_path, "--budgets", "3")
    assert done.code == 2 and "at most 2 references" in done.err


def test_a_cascade_asks_the_second_attack_about_the_firsts_best_alone():
    first = np.array([[5.0, 1, 4, 2], [1.0, 2, 3, 4]])
    second = np.array([[-1.0, 9, 3, 8], [7.0, 6, -2, 5]])
    assert study.cascade(first, second, 0.5).tolist() == [[-1, -3, 3, -3], [-3, -3, -2, 5]]
    assert (study.cascade(first, second, 1.0) == second).all()
