"""benchmarks/packing.py: every packing trains the same networks."""

import json
import sys
from dataclasses import replace

import torch

import utils
from benchmarks import packing
from networks import build_network

RECIPE = utils.TrainingSettings(epoch=2, lr=0.05, batch_size=16, precision="float32")

SEEDS = [1, 2]


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


def test_a_vmapped_step_is_each_networks_own_step():
    """In float64, over three steps with momentum and weight decay, running statistics included."""
    models = networks(torch.float64)
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


def test_a_vmapped_step_rounds_to_bfloat16_as_autocast_does():
    recipe = replace(RECIPE, precision="bfloat16")
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
    # Logits of about 1, which either way rounds by 2^-9 in an order of its own; their mean over 32 images moves less.
    assert torch.allclose(losses["bfloat16"], alone, rtol=0, atol=2.0**-9)


def test_all_packings_train_on_the_batches_of_the_training_loop():
    """The same images, crops, flips, rates and order. Wrong: other draws, which would be other work.

    At a small rate, because training multiplies the rounding by which vmap differs.
    """
    (images, labels), recipe = images_and_labels(), replace(RECIPE, lr=1e-4)
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


def test_packings_are_compared_in_one_run(tmp_path, monkeypatch, capsys):
    out = tmp_path / "found.json"
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
