"""Figures of runs and of sweeps."""

import numpy as np
import pytest
from PIL import Image
from scipy.stats import beta

from paper import figures, tables
from tests.paper.parts import MANY, write
from tests.parts import call


@pytest.mark.parametrize(("figure", "runs"), [("5", 1), ("10", 2), ("17", 2)])
def test_figures_of_runs(finished_run, tmp_path, script, figure, runs):
    out = tmp_path / "picture.png"
    flags = (figure, "--runs", *[finished_run] * runs, "--out", out)
    if figure == "5":  # as people start it
        done = call("paper.figures", *flags)
        assert done.returncode == 0, done.stderr
    else:
        done = script("paper.figures", *flags)
        assert done.code == 0, done.err
    with Image.open(out) as picture:
        assert min(picture.size) > 300 and len(np.unique(picture.convert("L").resize((64, 64)))) > 10


@pytest.mark.parametrize("figure", ["7", "12", "13"])
def test_figures_of_sweeps(tmp_path, figure, script):
    few = {"marked_samples_per_user": 5}
    write(tmp_path / "a", 0.6, 1, MANY, **few)
    for name, change in (
        ("b", {"img_blending_ratio": 0.5}),
        ("c", {"ood_pattern": "tinyimagenet"}),
        ("d", {"countermeasure": "pruning:amount=0.5,scope=global"}),
        ("e", {"countermeasure": "fine_tuning:lr=0.1,epochs=20,share=0.1"}),
    ):
        write(tmp_path / name, 0.5, 30, MANY, **few, **change)
    out = tmp_path / "picture.png"
    done = script("paper.figures", figure, "--res_folder", tmp_path, "--out", out)
    assert done.code == 0 and out.exists(), done.err
    done = script("paper.figures", figure, "--res_folder", tmp_path / "a", "--out", out)
    assert done.code == 2 and done.err.count("\n") == 1


def test_pooled_points_of_a_figure(tmp_path):
    write(tmp_path / "a", 0.6, 1)
    write(tmp_path / "b", 0.4, 5, seed=2)
    (point,) = figures.pooled_points(tables.collect(tmp_path), "net_type").to_dict("records")
    # 6 of 2,000; exact interval from scipy.stats.beta.
    assert (point["fpr"], point["accuracy"], point["runs"]) == (pytest.approx(0.3), pytest.approx(50), 2)
    assert (point["low"], point["high"]) == (
        pytest.approx(100 * beta.ppf(0.025, 6, 1995)),
        pytest.approx(100 * beta.ppf(0.975, 7, 1994)),
    )
