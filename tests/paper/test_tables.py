"""Known answers for the tables of a sweep, made from results that are written by hand."""

import subprocess

import pytest

from kit.errors import UserError
from paper import ablation, reported, tables
from tests.paper.parts import MANY, rows, table, write
from tests.parts import ROOT, assert_close_table, call


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
    got = {
        row["marked"]: row["set-based FPR@100%TPR"][:4]
        for row in tables.summarize_components(tables.collect(tmp_path)).to_dict("records")
    }
    assert got == {"yes": "0.10", "no": "0.90"}


def test_an_empty_folder_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="sweep"):
        tables.collect(tmp_path)


def test_table_8_names_the_parts_of_a_mark(tmp_path):
    write(tmp_path / "full", 0.6, 0, MANY, marked_samples_per_user=5, exact=[0.0005, 0.001, 0.5])
    write(tmp_path / "full-2", 0.5, 10, MANY, marked_samples_per_user=5, seed=2, exact=[0.01, 0.01, 0.01])
    write(tmp_path / "blend", 0.6, 10, MANY, marked_samples_per_user=5, noise_injection_type="none")
    write(tmp_path / "noise", 0.6, 30, MANY, marked_samples_per_user=5, img_blending_ratio=1.0)
    write(tmp_path / "none", 0.6, 90, MANY, marked_samples_per_user=5, clean_train=1)
    write(tmp_path / "other strength", 0.6, 500, MANY, marked_samples_per_user=5, noise_norm=4.0)
    write(tmp_path / "other noise", 0.6, 500, MANY, marked_samples_per_user=5, noise_injection_type="gabor")
    write(tmp_path / "defended", 0.6, 500, MANY, marked_samples_per_user=5, countermeasure="hamp")
    write(tmp_path / "partly used", 0.6, 500, MANY, marked_samples_per_user=5, used_share=0.5)
    write(tmp_path / "one user", 0.6, 500, (1,), marked_samples_per_user=5)
    found = {row["marking"]: row for row in table(tmp_path, "Table 8")}
    assert {name: row["FPR@100%TPR"].split()[0] for name, row in found.items()} == {
        "blend and noise": "0.50",
        "blend only": "1.00",
        "noise only": "3.00",
        "unmarked": "9.00",
    }
    full = found["blend and noise"]
    assert full["paper FPR"] == "0.64" and full["exact p <= 0.001"] == "2/6" and full["runs from-to"] == "0.00-1.00"
    # The paper's noise only (1.80) is below its blend only (4.62); here it is the other way round.
    sentence = ablation.agreement(ablation.ABLATIONS["Table 8"](tables.collect(tmp_path)))
    assert "of 6 pairs" in sentence and "4 in the same way and 1 the other way round" in sentence
    assert "in 1 the 95 % intervals overlap" in sentence  # 10 of 2,000 and 10 of 1,000


def test_table_9_sets_instances_beside_sets(tmp_path):
    write(tmp_path / "a", 0.6, 2, MANY, marked_samples_per_user=15)
    found = {row["inference"]: row for row in table(tmp_path, "Table 9")}
    assert found["set-based"]["FPR@100%TPR"].startswith("0.20") and found["set-based"]["paper FPR"] == "0.00"
    assert found["instance-based"]["FPR@100%TPR"].startswith("0.20") and found["instance-based"]["AUC"] == "0.9000"
    assert found["instance-based"]["paper FPR"] == "20.47"


def test_table_5_compares_the_shares_of_the_same_marks(tmp_path):
    for share, false in ((1.0, 0), (0.5, 7), (0.3, 300)):
        write(tmp_path / f"{share}", 0.6, false, tuple(range(10)), marked_samples_per_user=20, used_share=share)
        write(tmp_path / f"few{share}", 0.6, 2 * false, MANY, marked_samples_per_user=20, used_share=share)
    write(tmp_path / "other", 0.6, 900, tuple(range(10)), marked_samples_per_user=5)
    found = [
        (row["users per run"], row["share used"], row["FPR@100%TPR"].split()[0], row["paper FPR"])
        for row in table(tmp_path, "Table 5")
    ]
    assert sorted(found) == sorted(
        [
            ("10", 1.0, "0.00", "0.00"),
            ("10", 0.5, "0.70", "0.28"),
            ("10", 0.3, "30.00", "20.12"),
            ("3", 1.0, "0.00", "0.00"),
            ("3", 0.5, "1.40", "0.34"),
            ("3", 0.3, "60.00", "2.46"),
        ]
    )


def test_figures_12_and_13_and_the_noises_vary_one_thing_each(tmp_path):
    few = {"marked_samples_per_user": 5}
    write(tmp_path / "usual", 0.6, 1, MANY, **few)
    write(tmp_path / "ratio", 0.6, 2, MANY, **few, img_blending_ratio=0.5)
    write(tmp_path / "norm", 0.6, 3, MANY, **few, noise_norm=16.0)
    write(tmp_path / "gabor", 0.6, 4, MANY, **few, noise_injection_type="gabor")
    write(tmp_path / "outlier", 0.6, 5, MANY, **few, ood_pattern="/data/tiny32/train")
    write(tmp_path / "two things", 0.6, 6, MANY, **few, noise_norm=16.0, img_blending_ratio=0.5)
    write(tmp_path / "alone", 0.6, 7, MANY, marked_samples_per_user=25, noise_norm=16.0)
    write(tmp_path / "no noise", 0.6, 8, MANY, **few, noise_injection_type="none")

    def rates(name, *columns):
        return {tuple(row[column] for column in columns): row["FPR@100%TPR"][:4] for row in table(tmp_path, name)}

    assert rates("Figure 12", "varied", "value") == {
        ("img_blending_ratio", 0.7): "0.10",
        ("img_blending_ratio", 0.5): "0.20",
        ("noise_norm", 8.0): "0.10",
        ("noise_norm", 16.0): "0.30",
    }
    assert rates("Noise", "noise") == {("perlin",): "0.10", ("gabor",): "0.40"}
    assert rates("Figure 13", "outlier features") == {("color_stripes",): "0.10", ("tiny32",): "0.50"}


def test_tables_without_runs_are_left_out(tmp_path):
    """Wrong: a sweep of some tables ends in a traceback because the others have no rows."""
    write(tmp_path / "a", 0.6, 2, MANY, marked_samples_per_user=5, noise_injection_type="uniform")
    frame = tables.collect(tmp_path)
    assert [name for name, function in ablation.ABLATIONS.items() if len(function(frame))] == []
    write(tmp_path / "b", 0.6, 2, MANY, marked_samples_per_user=5)
    done = call("paper.tables", "ablation", "--res_folder", tmp_path)
    assert done.returncode == 0 and "### Noise" in done.stdout and "Table 5" not in done.stdout, done.stderr


def test_countermeasures_are_measured_against_the_same_runs_without(tmp_path):
    pruned, tuned = "pruning:amount=0.8,scope=global", "fine_tuning:lr=0.05,epochs=20,share=0.1"
    write(tmp_path / "none", 0.60, 0)
    write(tmp_path / "none-2", 0.50, 0, seed=2)
    write(tmp_path / "none-many", 0.70, 5, MANY)
    write(tmp_path / "pruned", 0.50, 12, countermeasure=pruned, more={"zero_weights": 0.8})
    write(tmp_path / "tuned-many", 0.68, 214, MANY, countermeasure=tuned)
    write(tmp_path / "mine", 0.4, 1, countermeasure="hamp:threshold=0.95,alpha=0.005")
    found = {
        (row["users per run"], row["countermeasure"]): row
        for row in ablation.countermeasures(tables.collect(tmp_path)).to_dict("records")
    }
    row = found["1", "pruning"]
    assert (row["setting"], row["drop"], row["paper FPR"], row["paper drop"], row["more"]) == (
        "0.8",
        "-10.00",
        "1.16",
        "-36.90",
        "zero_weights 0.8",
    )
    row = found["3", "fine_tuning"]
    assert row["FPR@100%TPR"].startswith("21.40") and row["paper FPR"] == "21.40" and row["drop"] == "-2.00"
    assert found["1", "hamp"]["paper FPR"] == "0.83" and found["1", "hamp"]["setting"] == "-"
    assert found["1", "none"]["accuracy"] == "55.00"


def test_the_paper_is_copied_rightly():
    """Figures that the specification states, against typing errors."""
    assert reported.TABLE_8["unmarked", 5] == 7.18 and reported.TABLE_9["instance-based", 25] == 7.97
    assert reported.TABLE_5[0.2, "many"] == 76.34 and reported.TABLE_5[0.3, "few"] == 2.46
    assert [reported.COUNTERMEASURES["dp_sgd", noise][0] for noise in (0.01, 0.03, 0.05, 0.2, 0.3)] == [
        0.01,
        0.02,
        0.38,
        1.07,
        3.10,
    ]


def test_countermeasures_take_over_the_model_of_their_own_seed(tmp_path):
    """Every run that changes a finished model names the tag of an undefended run that comes before it."""
    fake = tmp_path / "python"
    fake.write_text('#!/usr/bin/env bash\necho "$@" >> "$LOG"\n')
    fake.chmod(0o755)
    for script, least in (("countermeasures.sh", 300), ("ablation.sh", 60)):
        log = tmp_path / f"{script}.log"
        done = subprocess.run(
            ["bash", str(ROOT / script)],
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": "/usr/bin:/bin", "PYTHON": str(fake), "LOG": str(log), "SEEDS": "1 2"},
        )
        assert done.returncode == 0, done.stderr
        lines = [line.split() for line in log.read_text().splitlines() if line.startswith("train.py")]
        tags = [line[line.index("--save_tag") + 1] for line in lines]
        assert len(tags) == len(set(tags)) >= least
        for place, line in enumerate(lines):
            if "--base_model" in line:
                base = tags.index(line[line.index("--base_model") + 1])
                assert base < place and "--countermeasure" not in lines[base]
                assert lines[base][lines[base].index("--seed") + 1] == line[line.index("--seed") + 1]
                assert lines[base][1 : lines[base].index("--seed")] == line[1 : line.index("--countermeasure")]


@pytest.mark.parametrize(
    "name", ["single-target.sh", "multi-target.sh", "launch/sweep.sh", "ablation.sh", "countermeasures.sh"]
)
def test_sweep_scripts_are_valid_bash(name):
    assert subprocess.run(["bash", "-n", str(ROOT / name)], check=False).returncode == 0


def test_the_two_sweeps_use_different_names_for_every_run(tmp_path):
    """Wrong: one tag `clean` for both, so that the second sweep finds a run with other settings in its place."""
    fake = tmp_path / "python"
    fake.write_text('#!/usr/bin/env bash\necho "$@" >> "$LOG"\n')
    fake.chmod(0o755)
    tags = {}
    for script, arguments in (("single-target.sh", []), ("multi-target.sh", ["20", "100"])):
        log = tmp_path / f"{script}.log"
        done = subprocess.run(
            ["bash", str(ROOT / script), *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": "/usr/bin:/bin", "PYTHON": str(fake), "LOG": str(log), "SEED": "2"},
        )
        assert done.returncode == 0, done.stderr
        lines = [line.split() for line in log.read_text().splitlines() if line.startswith("train.py")]
        assert all(line[line.index("--seed") + 1] == "2" for line in lines)
        tags[script] = [(line[line.index("--dataset") + 1], line[line.index("--save_tag") + 1]) for line in lines]
        assert len(set(tags[script])) == len(tags[script])
    assert not set(tags["single-target.sh"]) & set(tags["multi-target.sh"])
    # 5 data sets, 5 more networks, 4 more sizes; 5 targets and a clean run each.
    assert len(tags["single-target.sh"]) == (5 + 5 + 4) * 6 and len(tags["multi-target.sh"]) == 3
