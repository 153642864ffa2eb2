"""benchmarks/growth.py: the fitted slope and its interval."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks import growth
from kit.errors import UserError


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_slope_of_an_exact_power_law_is_its_power(power):
    sizes = np.array([10, 100, 300, 4000])
    found = growth.fit(sizes, 3e-4 * sizes**power)
    assert np.allclose([found["slope"], *found["interval"]], power, atol=1e-6)
    assert np.isclose(np.exp(found["intercept"]), 3e-4)


def test_the_interval_of_the_slope_covers_as_often_as_it_says():
    """Wrong: a normal quantile with six points, which covers about 88 %, or sums of squares divided by n."""
    draws, sizes = np.random.default_rng(0), 2.0 ** np.arange(6)
    fits = [growth.fit(sizes, sizes**0.9 * np.exp(0.1 * draws.standard_normal(6))) for _ in range(2000)]
    covered = sum(found["interval"][0] < 0.9 < found["interval"][1] for found in fits)
    assert stats.binomtest(covered, 2000, 0.95).pvalue > 1e-4


@pytest.mark.parametrize(("sizes", "seconds"), [((1, 2), (1, 2)), ((1, 2, 3), (1, 0, 1)), ((1, 2, 3), (1, 2))])
def test_a_slope_needs_three_positive_points(sizes, seconds):
    with pytest.raises(UserError, match="three or more"):
        growth.fit(sizes, seconds)


@pytest.mark.parametrize(("panel", "sizes"), [("audit", [1, 2]), ("training", [8, 16]), ("tree", [3, 5])])
def test_a_panel_is_measured_at_each_size(panel, sizes):
    rows = growth.measure(panel, sizes, SimpleNamespace(rounds=2), torch.device("cpu"))
    assert [row["size"] for row in rows] == sizes
    assert all(0 < min(row["rounds"]) <= row["seconds"] <= max(row["rounds"]) for row in rows)


def test_growth_is_fitted_written_and_drawn(tmp_path, monkeypatch, capsys):
    out = tmp_path / "found.json"
    flags = ["--panels", "marking", "--sizes", "16", "8", "24", "--rounds", "1", "--threads", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["growth.py", *flags])
    growth.main()
    found = json.loads(out.read_text())["panels"]["marking"]
    assert [row["size"] for row in found["rows"]] == [64, 256, 576]
    assert found["fit"] == growth.fit([64, 256, 576], [row["seconds"] for row in found["rows"]])
    assert "marking grows with pixels" in capsys.readouterr().out
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
