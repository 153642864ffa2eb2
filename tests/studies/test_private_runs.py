"""studies/private_runs.py: Table 4's row out of finished runs, and canaries that a draw has divided."""

import json

import numpy as np
import pytest

from dataset import load_dataset
from experiment import setup
from studies import private_runs as study
from tests.parts import SMALL, TRAINING

DP = "dp_sgd:noise_multiplier=2.0,clip=0.1,multiplicity=1,delta=1e-05,lr=1.0"


def test_a_row_for_each_countermeasure(script, tmp_path):
    pytest.importorskip("opacus")
    flags = [*SMALL, "--net_type", "scatternet", "--epoch", "1", "--val_portion", "0"]
    flags += ["--num_of_non_member_user", "10", "--exact_keys", "1"]
    for tag, more in (("a", ()), ("b", ("--countermeasure", DP))):
        done = script("train", *flags, "--res_folder", tmp_path / "res", "--out", tmp_path / "res" / tag, *more)
        assert done.code == 0, done.err
    done = script("studies.private_runs", "--dataset", "photos", "--runs", tmp_path / "res", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    plain, private = result["rows"]
    assert plain["countermeasure"] is None and plain["promised"] is None
    trained = json.loads((tmp_path / "res" / "b" / "result.json").read_text())
    assert private["countermeasure"] == DP
    assert private["promised"] == trained["countermeasure"]["epsilon"] > 0
    assert private["accuracy"] == trained["accuracy"]["test"]
    assert private["fpr"]["share"] == trained["audit"]["set"]["fpr_at_100_tpr"]
    assert max(private["proved"]) < private["promised"]
    assert (tmp_path / "out" / "table.md").read_text().count("\n") == 4


def test_canaries_are_halved_by_the_split_and_leave_users_and_test_images_out(script, tmp_path):
    data = load_dataset("photos")
    settings = {**TRAINING, "val_portion": 0.1, "seed": 4, "target_user_cls": [4, 31]}
    experiment = setup.prepare(settings, {"num_of_non_member_user": 5}, data)
    rows, inside = study.canaries(experiment, 10_000)
    assert 100 < inside.sum() == len(rows) / 2 and len(set(rows)) == len(rows)
    assert np.isin(rows[inside], experiment.splits.train).all()
    seen = np.concatenate([experiment.splits.train, experiment.splits.val])
    assert not np.isin(rows[~inside], seen).any() and not data.is_test[rows].any()
    assert not np.isin(rows, experiment.users.samples).any()
    assert [len(part) for part in study.canaries(experiment, 30)] == [60, 60]
