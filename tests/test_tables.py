"""Known answers for the tables of a sweep, made from results that are written by hand."""

import json
import subprocess

import pytest
from conftest import ROOT, assert_close_table

import tables

BASE = {"dataset": "photos", "net_type": "smallnet", "train_size": 1500, "epoch": 200, "device": "cpu", "data": "d",
        "lr": 0.1, "batch_size": 64, "precision": "float32", "marked_samples_per_user": 8, "img_blending_ratio": 0.7,
        "noise_injection_type": "perlin", "noise_norm": 8.0, "ood_pattern": "color_stripes", "seed": 1,
        "clean_train": 0}


def write(folder, accuracy, false, users=(4,), from_training=True, **settings):
    """A result.json with `false` false positives of 1,000 non-member users."""
    folder.mkdir(parents=True)
    result = {
        "settings": {"training": {**BASE, **settings}},
        "audit": {"set": {"false_positives": false, "non_members": 1000, "auc": 1.0},
                  "instance": {"false_positives": 8 * false, "non_members": 8000, "auc": 0.9}},
        "verdict": {"users": [{"class": label, "trained_on": True} for label in users]
                    + [{"class": label, "trained_on": False} for label in users],
                    "targets_detected": len(users), "controls_detected": 0},
        "accuracy": {"test": accuracy}, "seconds": {"train": 9.0, "audit": 1.0}, "hardware": {"train": "a processor"}}
    (folder / "result.json").write_text(json.dumps(result))
    if from_training:
        (folder / "config.json").write_text("{}")


def rows(folder, sweep, table):
    frame = tables.collect(folder)
    marked, clean = frame[frame["clean_train"] == 0], frame[frame["clean_train"] == 1]
    return tables.summarize(tables.choose(marked, table), clean, table).to_dict("records")


def test_rates_are_pooled_and_the_drop_is_against_the_clean_run(tmp_path):
    write(tmp_path / "a", 0.60, 0, users=(4,))
    write(tmp_path / "b", 0.64, 3, users=(31,))
    write(tmp_path / "clean", 0.63, 100, users=(4, 31), clean_train=1)
    (row,) = rows(tmp_path, "single-target", "Table 1")
    assert row["runs"] == 2 and row["detected"] == "2/2" and row["accused"] == "0/2"
    # 3 of 2,000; exact interval from scipy.stats.beta.
    assert_close_table(row["FPR@100%TPR"], 0.15, 0.0309, 0.4377)
    assert row["accuracy"] == "62.00" and row["drop"] == "-1.00"


def test_different_experiments_are_not_averaged(tmp_path):
    """Wrong: a run with noise_norm 0, or on other images, inside the row of Table 1."""
    write(tmp_path / "a", 0.60, 0)
    write(tmp_path / "b", 0.10, 900, noise_norm=0.0)
    write(tmp_path / "c", 0.20, 900, data="other images")
    write(tmp_path / "clean", 0.61, 100, clean_train=1)
    write(tmp_path / "clean-other", 0.99, 100, clean_train=1, data="other images")
    found = {(row["accuracy"], row["drop"]) for row in rows(tmp_path, "single-target", "Table 1")}
    assert found == {("60.00", "-1.00"), ("10.00", "-51.00"), ("20.00", "-79.00")}


def test_the_same_run_counts_once_and_eval_folders_not_at_all(tmp_path):
    write(tmp_path / "a", 0.60, 0)
    write(tmp_path / "a-again", 0.60, 0)
    write(tmp_path / "a-eval", 0.60, 500, from_training=False)
    (row,) = rows(tmp_path, "single-target", "Table 1")
    assert row["runs"] == 1 and row["FPR@100%TPR"].startswith("0.00")


def test_tables_6_and_7_vary_one_thing_each(tmp_path):
    write(tmp_path / "usual", 0.6, 0)
    write(tmp_path / "net", 0.5, 1, net_type="resnet")
    write(tmp_path / "size", 0.4, 2, train_size=1000)
    write(tmp_path / "many", 0.3, 3, users=(1, 2, 3))
    assert {row["net_type"] for row in rows(tmp_path, "single-target", "Table 6")} == {"smallnet", "resnet"}
    assert {row["train_size"] for row in rows(tmp_path, "single-target", "Table 7")} == {1500, 1000}
    assert [row["users"] for row in rows(tmp_path, "multi-target", "Table 2")] == [3]


def test_components_keep_marked_and_unmarked_apart(tmp_path):
    write(tmp_path / "marked", 0.6, 1)
    write(tmp_path / "clean", 0.6, 9, clean_train=1)
    got = {row["marked"]: row["set-based FPR@100%TPR"][:4] for row in
           tables.summarize_components(tables.collect(tmp_path)).to_dict("records")}
    assert got == {"yes": "0.10", "no": "0.90"}


def test_an_empty_folder_is_a_user_error(tmp_path):
    with pytest.raises(tables.runs.UserError, match="sweep"):
        tables.collect(tmp_path)


@pytest.mark.parametrize("name", ["single-target.sh", "multi-target.sh", "sweep.sh"])
def test_sweep_scripts_are_valid_bash(name):
    assert subprocess.run(["bash", "-n", str(ROOT / name)], check=False).returncode == 0


def test_the_two_sweeps_use_different_names_for_every_run(tmp_path):
    """Wrong: one tag `clean` for both, so that the second sweep finds a run with other settings in its place."""
    fake = tmp_path / "python"
    fake.write_text("#!/usr/bin/env bash\necho \"$@\" >> \"$LOG\"\n")
    fake.chmod(0o755)
    tags = {}
    for script, arguments in (("single-target.sh", []), ("multi-target.sh", ["20", "100"])):
        log = tmp_path / f"{script}.log"
        done = subprocess.run(["bash", str(ROOT / script), *arguments], capture_output=True, text=True, check=False,
                              env={"PATH": "/usr/bin:/bin", "PYTHON": str(fake), "LOG": str(log), "SEED": "2"})
        assert done.returncode == 0, done.stderr
        lines = [line.split() for line in log.read_text().splitlines() if line.startswith("train.py")]
        assert all(line[line.index("--seed") + 1] == "2" for line in lines)
        tags[script] = [(line[line.index("--dataset") + 1], line[line.index("--save_tag") + 1]) for line in lines]
        assert len(set(tags[script])) == len(tags[script])
    assert not set(tags["single-target.sh"]) & set(tags["multi-target.sh"])
    # 5 data sets, 5 more networks, 4 more sizes; 5 targets and a clean run each.
    assert len(tags["single-target.sh"]) == (5 + 5 + 4) * 6 and len(tags["multi-target.sh"]) == 3
