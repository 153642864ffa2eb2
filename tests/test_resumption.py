"""Which weights are kept, and training that was killed: it goes on to the same bits."""

import inspect
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import utils
from dataset import base
from experiment import setup, training
from experiment.folder import RunPaths
from kit.errors import UserError
from kit.files import load_model, save_model
from tests.parts import ROOT, environment
from tests.training_parts import (
    CPU,
    RAW,
    SETTINGS,
    Countdown,
    Recorder,
    data,
    quick,
    same_bits,
    straight_run,
    tiny_net,
    weights,
)
from utils import make_query, normalize, train_model

# --- Which weights are kept ---


def countdown_data(count=8):
    return torch.zeros(count, 3, 4, 4, dtype=torch.uint8), torch.zeros(count, dtype=torch.long)


def test_without_validation_the_last_weights_are_kept(tmp_path):
    """Defect 11: with no validation split the checkpoint was chosen on test data."""
    model = Countdown(right_at={2})
    history = train_model(model, *countdown_data(), quick(epoch=5), CPU, tmp_path / "p.safetensors", SETTINGS)
    assert model.steps == 5
    assert not any("val_accuracy" in record for record in history)


@pytest.mark.parametrize("best", [1, 2, 4, 5])
def test_with_validation_the_best_epochs_weights_are_kept(best, tmp_path):
    """Wrong: the last weights, weights that went on training because they weren't copied, buffers left out."""
    model = Countdown(right_at={best})
    history = train_model(
        model,
        *countdown_data(),
        quick(epoch=5),
        CPU,
        tmp_path / "p.safetensors",
        SETTINGS,
        validation=countdown_data(3),
    )
    assert model.steps == best
    assert [record["val_accuracy"] for record in history] == [float(epoch == best) for epoch in range(1, 6)]


def test_weights_of_the_best_epoch_are_those_of_a_run_that_stops_there(tmp_path):
    """Parameters and running statistics of the chosen epoch, bit for bit. (lr is constant: no milestone is passed.)"""
    images, labels = data(30)
    recipe = quick(epoch=5)
    model, validation = tiny_net(), data(40, seed=5)
    history = train_model(model, images, labels, recipe, CPU, tmp_path / "a.safetensors", SETTINGS, validation)
    accuracies = [record["val_accuracy"] for record in history]
    best = 1 + int(np.argmax(accuracies))
    short = tiny_net()
    train_model(
        short,
        images,
        labels,
        quick(epoch=best, lr=0.05, milestones=tuple(share * 5 / best for share in (0.6, 0.8, 0.9))),
        CPU,
        tmp_path / "b.safetensors",
        SETTINGS,
    )
    assert same_bits(weights(model), weights(short))
    assert utils.accuracy(make_query(model, recipe, CPU), *validation) == max(accuracies)


def test_validation_data_is_never_trained_on(tmp_path):
    """Wrong: validation images in the training batches, in the running statistics, or consuming random draws."""
    images, labels = data(30)
    histories = []
    for number, validation in enumerate([None, data(20, seed=7), (data(20, seed=7)[0], data(20, seed=8)[1])]):
        history = train_model(
            tiny_net(), images, labels, quick(epoch=4), CPU, tmp_path / f"{number}.safetensors", SETTINGS, validation
        )
        histories.append([(record["loss"], record["train_accuracy"]) for record in history])
    assert histories[0] == histories[1] == histories[2]
    model, zeros = Recorder(), torch.zeros(9, 3, 4, 4, dtype=torch.uint8)
    train_model(
        model,
        zeros,
        zeros[:, 0, 0, 0].long(),
        quick(**RAW),
        CPU,
        tmp_path / "r.safetensors",
        SETTINGS,
        (zeros + 9, zeros[:, 0, 0, 0].long()),
    )
    assert torch.cat(model.batches).abs().max() == 0


def test_validation_accuracy_is_measured_without_augmentation_and_in_evaluation_mode(tmp_path):
    """Wrong: crops and flips, dropout or batch statistics in the choice of the checkpoint."""
    images, labels = data(30)
    validation, recipe = data(25, seed=3), quick(epoch=1)
    model = tiny_net(dropout=0.9)
    history = train_model(model, images, labels, recipe, CPU, tmp_path / "p.safetensors", SETTINGS, validation)
    model.eval()
    with torch.no_grad():
        logits = model(normalize(validation[0], recipe.mean, recipe.std))
    assert history[0]["val_accuracy"] == pytest.approx((logits.argmax(1) == validation[1]).float().mean().item())


def test_train_model_has_no_way_to_see_test_data():
    """Defect 11: nothing but training images and an optional validation pair goes in."""
    parameters = set(inspect.signature(train_model).parameters)
    assert parameters == {
        "model",
        "images",
        "labels",
        "recipe",
        "device",
        "progress_path",
        "settings",
        "validation",
        "team",
        "hooks",
    }


class SpyStore:
    """Images in memory that remember which rows were asked for."""

    def __init__(self, images):
        self.images, self.asked = images, set()
        self.image_shape = tuple(images.shape[1:])

    def __len__(self):
        return len(self.images)

    def __getitem__(self, rows):
        self.asked |= set(torch.as_tensor(rows).flatten().tolist())
        return self.images[rows]


@pytest.mark.parametrize("val_portion", [0.0, 0.2])
def test_the_training_stage_never_opens_an_image_outside_the_training_set(val_portion, tmp_path):
    """Defect 11 from the outside: neither test images nor other non-members are read while the model is made."""
    images, labels = data(120, 32, seed=2)
    store = SpyStore(images)
    recipe = base.Recipe("smallnet", 60, 1, 0.05, 20, 0.9, 5e-4, val_portion, 3, 10, (0,), "train")
    ours = base.ImageData("spied", store, labels, ("a", "b", "c"), torch.arange(120) >= 100, recipe)
    settings = {
        "dataset": "spied",
        "image_size": 32,
        "train_size": 60,
        "val_portion": val_portion,
        "net_type": "smallnet",
        "lr": 0.05,
        "epoch": 1,
        "batch_size": 20,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "seed": 1,
        "clean_train": 0,
        "marked_samples_per_user": 3,
        "img_blending_ratio": 0.7,
        "ood_pattern": "color_stripes",
        "noise_injection_type": "perlin",
        "noise_norm": 8.0,
        "target_user_cls": [0, 2],
        "num_of_multiTarget_diffCls": None,
        "num_of_multiTarget_sameCls": None,
        "precision": "float32",
        "device": "cpu",
    }
    chosen = setup.prepare(settings, {"num_of_non_member_user": 10}, ours)
    store.asked.clear()
    training.train(chosen, setup.build_model(chosen), RunPaths.of_folder(tmp_path / "run"), CPU)
    allowed = set(chosen.splits.train.tolist()) | set(chosen.splits.val.tolist())
    assert store.asked == allowed
    assert not store.asked & set(chosen.splits.test.tolist())


# --- Resumption ---


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves: `clock.step` seconds pass at every look. With a big step, every epoch is saved."""

    class Clock:
        now, step = 0.0, 1e6

        def monotonic(self):
            self.now += self.step
            return self.now

    clock = Clock()
    monkeypatch.setattr(utils, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


@pytest.fixture
def kill_in(monkeypatch):
    """kill_in(epoch, batch) raises Killed in that batch (from 0) of that epoch (from 0); kill_in(None) disarms it."""
    run_epoch = utils.train_epoch

    def arm(epoch, batch=0):
        def deadly(model, images, labels, recipe, optimizer, number, team, hooks):
            seen = [0]

            def count(*_):
                seen[0] += 1
                if seen[0] > batch:
                    raise Killed

            handle = model.register_forward_pre_hook(count) if number == epoch else None
            try:
                return run_epoch(model, images, labels, recipe, optimizer, number, team, hooks)
            finally:
                if handle:
                    handle.remove()

        monkeypatch.setattr(utils, "train_epoch", run_epoch if epoch is None else deadly)

    return arm


def resumed_run(path, recipe, kill_in, kills, validation=None):
    """Start again with the same arguments and fresh weights after each of `kills`, (epoch, batch)."""
    for epoch, batch in kills:
        kill_in(epoch, batch)
        with pytest.raises(Killed):
            straight_run(path, recipe, validation)
    kill_in(None)
    return straight_run(path, recipe, validation)


@pytest.mark.parametrize(
    ("epoch", "validated", "precision"),
    [*((epoch, validated, "float32") for epoch in (0, 1, 3, 5) for validated in (False, True)), (3, True, "bfloat16")],
)
def test_a_killed_run_ends_with_the_same_bits(epoch, validated, precision, tmp_path, clock, kill_in):
    """Wrong: momentum, running statistics, the best weights so far, history or random draws lost with the process."""
    recipe, validation = quick(epoch=6, precision=precision), data(40, seed=5) if validated else None
    expected = straight_run(tmp_path / "straight.safetensors", recipe, validation)
    got = resumed_run(tmp_path / "resumed.safetensors", recipe, kill_in, [(epoch, 0)], validation)
    assert got[1] == expected[1]
    assert same_bits(got[0], expected[0])


def test_a_run_killed_many_times_in_the_middle_of_epochs(tmp_path, clock, kill_in):
    """Wrong: a half-finished epoch that leaves a trace; a second resumption that starts from the first's weights."""
    recipe = quick(epoch=5)
    expected = straight_run(tmp_path / "straight.safetensors", recipe)
    got = resumed_run(tmp_path / "resumed.safetensors", recipe, kill_in, [(0, 2), (1, 3), (1, 1), (4, 2), (4, 0)])
    assert got[1] == expected[1]
    assert same_bits(got[0], expected[0])


@pytest.mark.parametrize("epoch", [1, 2, 4])
def test_a_run_killed_between_two_saves(epoch, tmp_path, clock, kill_in):
    """Progress is not saved every epoch: what was lost is computed again, with the same result."""
    recipe, validation = quick(epoch=5), data(40, seed=5)
    expected = straight_run(tmp_path / "straight.safetensors", recipe, validation)
    clock.step = 4.0  # with two looks an epoch, every other epoch or so is saved
    kill_in(epoch)
    with pytest.raises(Killed):
        straight_run(tmp_path / "resumed.safetensors", recipe, validation)
    kill_in(None)
    got = straight_run(tmp_path / "resumed.safetensors", recipe, validation)
    assert got[1] == expected[1]
    assert same_bits(got[0], expected[0])


def test_resuming_really_continues(tmp_path, clock, kill_in):
    """Wrong: starting from scratch, which ends with the same weights but doubles the time."""
    path, recipe = tmp_path / "p.safetensors", quick(epoch=4, **RAW)
    kill_in(3)
    with pytest.raises(Killed):
        train_model(Recorder(), *data(24), recipe, CPU, path, SETTINGS)
    kill_in(None)
    model = Recorder()
    history = train_model(model, *data(24), recipe, CPU, path, SETTINGS)
    assert len(model.batches) == 3  # one epoch of 24 / 8
    assert [record["epoch"] for record in history] == [1, 2, 3, 4]


def test_killed_after_the_last_epoch_nothing_is_trained_again(tmp_path, clock):
    """The kill came before the finished model was written: the progress file has everything."""
    path, recipe, validation = tmp_path / "p.safetensors", quick(epoch=3), data(40, seed=5)
    expected = straight_run(path, recipe, validation)
    model = tiny_net(seed=9)
    model.register_forward_pre_hook(lambda module, _: pytest.fail("trained again") if module.training else None)
    history = train_model(model, *data(30), recipe, CPU, path, SETTINGS, validation)
    assert history == expected[1]
    assert same_bits(weights(model), expected[0])


@pytest.mark.parametrize("part", ["momentum", "running_var", "weight"])
def test_every_part_of_the_progress_matters(part, tmp_path, clock, kill_in):
    """The tests above would notice a lost optimizer state or lost statistics: without them the result differs."""
    path, recipe = tmp_path / "p.safetensors", quick(epoch=4, lr=0.05)
    expected = straight_run(tmp_path / "straight.safetensors", recipe)
    kill_in(2)
    with pytest.raises(Killed):
        straight_run(path, recipe)
    kill_in(None)
    tensors, stored = load_model(path)
    touched = [name for name in tensors if part in name and not name.startswith("best")]
    assert touched, f"the progress file has no {part}"
    save_model(path, {name: tensor * 0 if name in touched else tensor for name, tensor in tensors.items()}, stored)
    assert not same_bits(straight_run(path, recipe)[0], expected[0])


def test_momentum_zero_can_be_resumed(tmp_path, clock, kill_in):
    """Wrong: a look-up of a momentum buffer that SGD without momentum does not have."""
    recipe = quick(epoch=3, momentum=0.0)
    expected = straight_run(tmp_path / "straight.safetensors", recipe)
    assert same_bits(resumed_run(tmp_path / "resumed.safetensors", recipe, kill_in, [(2, 0)])[0], expected[0])


def test_a_process_killed_while_it_writes_its_progress(tmp_path):
    """SIGKILL in the middle of the second save, in a process of its own; what it leaves is the first save, whole."""
    code = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import utils
from kit import files
from tests import training_parts as t
utils.PROGRESS_SECONDS, saves, write = -1, [], files.save_file
def half(tensors, path, metadata):
    write(tensors, path, metadata)
    saves.append(path)
    if len(saves) == 2:
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
files.save_file = half
t.straight_run(Path(sys.argv[2]), t.quick(epoch=4))
"""
    path = tmp_path / "p.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT), str(path)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(load_model(path)[1]["history"]) == 1
    expected = straight_run(tmp_path / "straight.safetensors", quick(epoch=4))
    got = straight_run(path, quick(epoch=4))
    assert got[1] == expected[1]
    assert same_bits(got[0], expected[0])


def test_progress_of_other_settings_is_refused_by_name(tmp_path, clock, kill_in):
    """DESIGN 1: refuse, and say which setting differs. Wrong: going on with another run's weights."""
    path = tmp_path / "p.safetensors"
    straight_run(path, quick(epoch=2))
    with pytest.raises(UserError, match=r"other settings") as caught:
        train_model(tiny_net(), *data(30), quick(epoch=2), CPU, path, {**SETTINGS, "lr": 0.2})
    assert "lr" in str(caught.value)
    assert "0.2" in str(caught.value), "the message does not say which setting differs"


def test_settings_may_hold_tuples(tmp_path, clock):
    """Wrong: comparing (3, 5) with the [3, 5] that JSON made of it, so that a run refuses its own progress."""
    path, settings = tmp_path / "p.safetensors", {"target_user_cls": (3, 5)}
    first = tiny_net()
    train_model(first, *data(30), quick(epoch=2), CPU, path, settings)
    second = tiny_net()
    train_model(second, *data(30), quick(epoch=2), CPU, path, settings)
    assert same_bits(weights(first), weights(second))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_progress_file_is_a_user_error(share, tmp_path, clock):
    """Wrong: a traceback, or weights that are half there."""
    path = tmp_path / "p.safetensors"
    straight_run(path, quick(epoch=1))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=r"p\.safetensors"):
        straight_run(path, quick(epoch=1))
