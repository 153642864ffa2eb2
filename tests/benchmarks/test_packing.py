"""benchmarks/growth.py and packing.py: the fitted slope, and that every packing trains the same networks."""

import importlib
import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from scipy import stats

import utils
from kit.errors import UserError
from networks import build_network

RECIPE = utils.TrainingSettings(epoch=2, lr=0.05, batch_size=16, precision="float32")
SEEDS = [1, 2]


@pytest.fixture
def benchmark(monkeypatch):
    """Import a file of benchmarks/ by name, and forget it with all its neighbours (`common` is not a name to keep)."""
    names = [path.stem for path in (ROOT / "benchmarks").glob("*.py")]
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    yield importlib.import_module
    for name in names:
        sys.modules.pop(name, None)


def images_and_labels(count=40):
    draws = torch.Generator().manual_seed(0)
    return (
        torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=draws),
        torch.randint(0, 10, (count,), generator=draws),
    )


def networks(dtype=torch.float32):
    made = []
    for seed in SEEDS:
        with utils.seeded(seed, "weights"):
            made.append(build_network("smallnet", 10).to(dtype))
    return made


def tensors(ensemble, number):
    return {name: value[number].detach() for name, value in {**ensemble.params, **ensemble.buffers}.items()}


# --- growth.py -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_slope_of_an_exact_power_law_is_its_power(benchmark, power):
    sizes = np.array([10, 100, 300, 4000])
    found = benchmark("growth").fit(sizes, 3e-4 * sizes**power)
    assert np.allclose([found["slope"], *found["interval"]], power, atol=1e-6)
    assert np.isclose(np.exp(found["intercept"]), 3e-4)


def test_the_interval_of_the_slope_covers_as_often_as_it_says(benchmark):
    """Wrong: a normal quantile with six points, which covers about 88 %, or sums of squares divided by n."""
    draws, sizes = np.random.default_rng(0), 2.0 ** np.arange(6)
    fits = [benchmark("growth").fit(sizes, sizes**0.9 * np.exp(0.1 * draws.standard_normal(6))) for _ in range(2000)]
    covered = sum(found["interval"][0] < 0.9 < found["interval"][1] for found in fits)
    assert stats.binomtest(covered, 2000, 0.95).pvalue > 1e-4


@pytest.mark.parametrize(("sizes", "seconds"), [((1, 2), (1, 2)), ((1, 2, 3), (1, 0, 1)), ((1, 2, 3), (1, 2))])
def test_a_slope_needs_three_positive_points(benchmark, sizes, seconds):
    with pytest.raises(UserError, match="three or more"):
        benchmark("growth").fit(sizes, seconds)


@pytest.mark.parametrize(("panel", "sizes"), [("audit", [1, 2]), ("training", [8, 16]), ("tree", [3, 5])])
def test_a_panel_is_measured_at_each_size(benchmark, panel, sizes):
    rows = benchmark("growth").measure(panel, sizes, SimpleNamespace(rounds=2), torch.device("cpu"))
    assert [row["size"] for row in rows] == sizes
    assert all(0 < min(row["rounds"]) <= row["seconds"] <= max(row["rounds"]) for row in rows)


def test_growth_is_fitted_written_and_drawn(benchmark, tmp_path, monkeypatch, capsys):
    growth, out = benchmark("growth"), tmp_path / "found.json"
    flags = ["--panels", "marking", "--sizes", "16", "8", "24", "--rounds", "1", "--threads", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["growth.py", *flags])
    growth.main()
    found = json.loads(out.read_text())["panels"]["marking"]
    assert [row["size"] for row in found["rows"]] == [64, 256, 576]
    assert found["fit"] == growth.fit([64, 256, 576], [row["seconds"] for row in found["rows"]])
    assert "marking grows with pixels" in capsys.readouterr().out
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


# --- packing.py ------------------------------------------------------------------------------------------------------


def test_a_vmapped_step_is_each_networks_own_step(benchmark):
    """In float64, over three steps with momentum and weight decay, running statistics included."""
    packing, models = benchmark("packing"), networks(torch.float64)
    ensemble, solos = packing.Ensemble(models, RECIPE), [packing.Solo(model, RECIPE) for model in models]
    draws = torch.Generator().manual_seed(3)
    for _ in range(3):
        images = torch.randn(2, 8, 3, 32, 32, generator=draws, dtype=torch.float64)
        labels = torch.randint(0, 10, (2, 8), generator=draws)
        losses = ensemble.step(images, labels)
        alone = torch.stack([solo.step(*pair) for solo, *pair in zip(solos, images, labels, strict=True)])
        assert torch.allclose(losses, alone, rtol=1e-5)
    for number, model in enumerate(models):
        found = tensors(ensemble, number)
        for name, value in model.state_dict().items():
            # The loss is of float32 logits, so the gradients agree to its digits.
            assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-5), name


def test_a_vmapped_step_rounds_to_bfloat16_as_autocast_does(benchmark):
    packing, recipe = benchmark("packing"), replace(RECIPE, precision="bfloat16")
    draws = torch.Generator().manual_seed(3)
    images = torch.randn(2, 32, 3, 32, 32, generator=draws)
    labels = torch.randint(0, 10, (2, 32), generator=draws)
    losses = {}
    for precision in ("bfloat16", "float32"):
        ensemble = packing.Ensemble(networks(), replace(recipe, precision=precision))
        losses[precision] = ensemble.step(images, labels)
    alone = torch.stack(
        [packing.Solo(model, recipe).step(*pair) for model, *pair in zip(networks(), images, labels, strict=True)]
    )
    assert not torch.equal(losses["bfloat16"], losses["float32"])
    assert torch.allclose(losses["bfloat16"], alone, atol=2e-3)


def test_all_packings_train_on_the_batches_of_the_training_loop(benchmark):
    """The same images, crops, flips, rates and order. Wrong: other draws, which would be other work.

    At a small rate, because training multiplies the rounding by which vmap differs.
    """
    packing, (images, labels), recipe = benchmark("packing"), images_and_labels(), replace(RECIPE, lr=1e-4)
    first, turns = networks(), networks()
    packing.train_sequential(first, images, labels, recipe, SEEDS)
    packing.train_streams(turns, images, labels, recipe, SEEDS)
    together = packing.train_vmapped(networks(), images, labels, recipe, SEEDS)
    for number, (one, other, start) in enumerate(zip(first, turns, networks(), strict=True)):
        found, before = tensors(together, number), start.state_dict()
        for name, value in one.state_dict().items():
            assert torch.equal(other.state_dict()[name], value), name
            way = (value - before[name]).double().norm()
            assert way > 0 and (found[name] - value).double().norm() < 0.02 * way, name


def test_packings_are_compared_in_one_run(benchmark, tmp_path, monkeypatch, capsys):
    packing, out = benchmark("packing"), tmp_path / "found.json"
    flags = [
        "--counts",
        "2",
        "--rounds",
        "1",
        "--images",
        "16",
        "--batch_size",
        "8",
        "--threads",
        "1",
        "--ways",
        "processes",
        "streams",
        "--device",
        "cpu",
        "--out",
        str(out),
    ]
    monkeypatch.setattr(sys, "argv", ["packing.py", *flags])
    packing.main()
    rows = json.loads(out.read_text())["rows"]
    assert [(row["way"], row["processes"]) for row in rows] == [("sequential", 1), ("processes", 2)]
    assert rows[0]["median_ratio"] == 1 and all(row["images_per_s"] > 0 and row["peak_GB"] > 0 for row in rows)
    assert "streams need CUDA: left out" in capsys.readouterr().out
