"""Training loop: augmentation per image, schedule, which weights are kept, and resumption bit for bit.

Networks here have a few hundred weights. Some are built so that what the loop did can be read off them: `Recorder`
keeps every batch it is given, `Countdown` is right on validation data after one chosen epoch only.
"""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import utils
from kit.errors import UserError
from tests.training_parts import (
    CPU,
    DEVICES,
    RAW,
    SETTINGS,
    Recorder,
    data,
    quick,
    same_bits,
    straight_run,
    tiny_net,
    weights,
)
from utils import TrainingSettings, make_query, normalize, seeded, train_model

# --- Augmentation, normalisation, schedule, generators ---


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("shape", [(8, 8), (5, 9)])
def test_augment_equals_a_loop_over_images(shape, padding, device):
    """Defect 1. Wrong: one crop for the batch, shifts of rows and columns swapped, flip before the crop, no zeros."""
    draws = np.random.default_rng(padding)
    images = data(40, 9)[0][:, :, : shape[0], : shape[1]]
    shifts, flips = draws.integers(0, 2 * padding + 1, (40, 2)), draws.random(40) < 0.5
    expected = np.zeros(images.shape, np.uint8)
    for n in range(40):
        padded = np.zeros((3, shape[0] + 2 * padding, shape[1] + 2 * padding), np.uint8)
        padded[:, padding : padding + shape[0], padding : padding + shape[1]] = images[n]
        crop = padded[:, shifts[n, 0] :, shifts[n, 1] :][:, : shape[0], : shape[1]]
        expected[n] = crop[:, :, ::-1] if flips[n] else crop
    augmented = utils.augment(
        images.to(device), torch.from_numpy(shifts).to(device), torch.from_numpy(flips).to(device), padding
    )
    assert augmented.dtype == torch.uint8
    assert (augmented.cpu().numpy() == expected).all()


def test_every_image_of_a_batch_gets_its_own_crop_and_flip():
    """Defect 1 in the loop itself: 64 equal images in one batch must come out in many of the 162 ways."""
    images = data(1, 8)[0].expand(64, -1, -1, -1).clone().clamp_min(1)
    model, labels = Recorder(), torch.zeros(64, dtype=torch.long)
    train_model(
        model, images, labels, quick(epoch=2, batch_size=64, crop_padding=4, **RAW), CPU, Path("unused"), SETTINGS
    )
    first, second = model.batches
    ways = [{image.numpy().round().tobytes() for image in batch} for batch in (first, second)]
    assert min(map(len, ways)) > 30, "crops are shared within a batch"
    assert len(ways[0] | ways[1]) > max(map(len, ways)), "every epoch has the same crops"
    padded = nn.functional.pad(images[0], [4] * 4).float()
    crops = {}
    for top in range(9):
        for left in range(9):
            crop = padded[:, top : top + 8, left : left + 8]
            crops[crop.numpy().tobytes()], crops[crop.flip(2).contiguous().numpy().tobytes()] = (top, 0), (left, 1)
    assert (ways[0] | ways[1]) <= crops.keys(), "something else than a crop with zero padding and a mirror image"
    assert {crops[way][1] for way in ways[0]} == {0, 1}


def test_crops_and_flips_are_evenly_distributed():
    """Wrong: integers(0, 2 * padding), which never reaches the last shift; or flips of all images or of none."""
    images = torch.zeros(4000, 3, 3, 3, dtype=torch.uint8)
    images[:, :, 1, 1], images[:, :, 1, 2] = 200, 100  # a pair of pixels shows shift and direction
    model = Recorder()
    train_model(
        model,
        images,
        torch.zeros(4000, dtype=torch.long),
        quick(epoch=1, batch_size=500, crop_padding=1, **RAW),
        CPU,
        Path("unused"),
        SETTINGS,
    )
    seen = torch.cat(model.batches)[:, 0].round()
    bright = (seen == 200).flatten(1).float()
    assert len(torch.unique(bright.nonzero()[:, 1])) == 9, "a shift never happens"
    share = bright.mean(0)
    assert (share - 1 / 9).abs().max() < 0.03
    mirrored = ((seen[:, :, :-1] == 100) & (seen[:, :, 1:] == 200)).flatten(1).any(1).float().mean()
    straight = ((seen[:, :, :-1] == 200) & (seen[:, :, 1:] == 100)).flatten(1).any(1).float().mean()
    assert 0.27 < mirrored < 0.40  # half of the flips, two thirds of which keep both pixels inside
    assert 0.27 < straight < 0.40


def test_an_epoch_shows_every_image_once_with_its_own_label():
    """Wrong: sampling with replacement, a permuted image with the label of another, the same order in each epoch."""
    images = (torch.arange(50, dtype=torch.uint8)[:, None, None, None]).expand(50, 3, 4, 4).clone()
    model = Recorder(5)
    history = train_model(
        model, images, torch.arange(50) % 5, quick(crop_padding=0, batch_size=10, **RAW), CPU, Path("unused"), SETTINGS
    )
    orders = torch.cat(model.batches)[:, 0, 0, 0].round().long().reshape(3, 50)
    assert [sorted(order.tolist()) for order in orders] == [list(range(50))] * 3
    assert len({tuple(order.tolist()) for order in orders} | {tuple(range(50))}) == 4
    assert [record["train_accuracy"] for record in history] == [1.0] * 3
    assert [record["epoch"] for record in history] == [1, 2, 3]


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        (100, {0: 0.1, 59: 0.1, 60: 0.02, 79: 0.02, 80: 0.004, 89: 0.004, 90: 0.0008, 99: 0.0008}),
        (30, {0: 0.1, 17: 0.1, 18: 0.02, 23: 0.02, 24: 0.004, 26: 0.004, 27: 0.0008, 29: 0.0008}),
        (7, {0: 0.1, 4: 0.1, 5: 0.02, 6: 0.004}),
    ],
)
def test_learning_rate_is_divided_by_5_at_60_80_and_90_percent(epochs, expected):
    """Defect 13: milestones stayed at 60/80/90 epochs. Also wrong: division by 10, or one epoch late."""
    recipe = TrainingSettings(epoch=epochs, lr=0.1)
    assert {epoch: recipe.lr_at(epoch) for epoch in expected} == pytest.approx(expected)


def test_no_epoch_count_suffers_from_rounding_of_the_shares():
    """Wrong: int(0.6 * epochs) or a float product that lands just above a whole number."""
    for epochs in range(1, 400):
        recipe = TrainingSettings(epoch=epochs, lr=1.0)
        for epoch in range(epochs):
            passed = sum(Fraction(epoch) >= Fraction(tenths, 10) * epochs for tenths in (6, 8, 9))
            assert recipe.lr_at(epoch) == pytest.approx(0.2**passed), (epochs, epoch)


def test_the_loop_uses_the_schedule_and_the_recipe(monkeypatch):
    """Wrong: momentum 0 (defect 20), weight decay left out, a schedule applied on top of itself, warm starts."""
    seen, step = [], torch.optim.SGD.step

    def recorded(self, *args, **kwargs):
        seen.append({name: self.param_groups[0][name] for name in ("lr", "momentum", "weight_decay", "nesterov")})
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", recorded)
    recipe = quick(epoch=10, lr=0.1, batch_size=15, momentum=0.8, weight_decay=3e-4)
    train_model(tiny_net(), *data(30), recipe, CPU, Path("unused"), SETTINGS)
    assert len(seen) == 20
    assert [each["lr"] for each in seen[::2]] == pytest.approx([0.1] * 6 + [0.02] * 2 + [0.004] + [0.0008])
    assert {(each["momentum"], each["weight_decay"], each["nesterov"]) for each in seen} == {(0.8, 3e-4, False)}


def test_weights_after_two_steps_equal_sgd_by_hand():
    """Momentum and weight decay as in SPEC section 2: v = 0.9 v + (g + 5e-4 w); w = w - lr v."""
    images, labels = torch.full((4, 3, 1, 1), 51, dtype=torch.uint8), torch.tensor([0, 0, 1, 0])
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2, bias=False))
    w = model[1].weight.detach().clone().double()
    v = torch.zeros_like(w)
    x = torch.full((4, 3), (51 / 255 - 0.1) / 0.5, dtype=torch.float64)
    for _ in range(2):
        p = (x @ w.T).softmax(1)
        v = 0.9 * v + (p - nn.functional.one_hot(labels, 2)).T @ x / 4 + 5e-4 * w
        w = w - 0.1 * v
    recipe = quick(epoch=2, lr=0.1, batch_size=4, crop_padding=0, mean=(0.1,) * 3, std=(0.5,) * 3)
    # The shares 0.6 of 2 epochs lie behind the second epoch's start, so both have the full rate.
    train_model(model, images, labels, recipe, CPU, Path("unused"), SETTINGS)
    # Two steps of some ten operations in float32 on numbers below 1.
    torch.testing.assert_close(model[1].weight.detach().double(), w, atol=20 * 2.0**-24, rtol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_normalize_and_channel_statistics_equal_numpy(device):
    """Wrong: channels mixed up, variance instead of deviation, statistics of the first batch only, uint8 overflow."""
    images = data(700, 5)[0]
    images[:, 1] //= 2
    images[600:, 2] = 255
    values = images.numpy().astype(np.float64) / 255
    mean, std = utils.channel_statistics(images.to(device))
    np.testing.assert_allclose(mean, values.mean((0, 2, 3)), atol=6e-5)
    np.testing.assert_allclose(std, values.std((0, 2, 3)), atol=6e-5)
    before = images.clone()
    normal = normalize(images.to(device), mean, std)
    assert normal.dtype == torch.float32
    expected = (values - np.reshape(mean, (1, 3, 1, 1))) / np.reshape(std, (1, 3, 1, 1))
    np.testing.assert_allclose(normal.cpu().numpy(), expected, atol=2e-5)
    assert torch.equal(images, before)


def test_channel_statistics_of_a_constant_image_can_be_divided_by():
    """Wrong: a deviation of 0, which makes every pixel infinite."""
    mean, std = utils.channel_statistics(torch.full((2, 3, 4, 4), 255, dtype=torch.uint8))
    assert mean == (1, 1, 1)
    assert min(std) > 0


def test_seeded_gives_the_callers_generator_back():
    """Defect 6. Also after an exception, and when nested; inside, the key alone decides."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with seeded(1, "a"):
        outer = torch.rand(3)
        with pytest.raises(RuntimeError, match="inside"), seeded(1, "b"):
            inner = torch.rand(3)
            raise RuntimeError("inside")
        rest = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(77)
    with seeded(1, "a"):
        assert torch.equal(torch.rand(3), outer)
        assert torch.equal(torch.rand(3), rest)
    with seeded(1, "b"):
        assert torch.equal(torch.rand(3), inner)
    assert not torch.equal(inner, outer)


# --- The rest of the loop ---


def test_the_arguments_alone_decide_the_weights(tmp_path):
    """Defect 6. Wrong: dropout, order or crops from the global generators, or a run that reseeds the caller's."""
    results = []
    for number, state in enumerate((1, 2)):
        torch.manual_seed(state), np.random.seed(state)
        before = torch.get_rng_state(), np.random.get_state()[1].copy()
        results.append(straight_run(tmp_path / f"{number}.safetensors", quick()))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (np.random.get_state()[1] == before[1]).all()
    assert results[0][1] == results[1][1]
    assert same_bits(results[0][0], results[1][0])
    other = straight_run(tmp_path / "2.safetensors", quick(seed=2))
    assert not same_bits(other[0], results[0][0])


def test_training_leaves_the_callers_images_alone(tmp_path):
    """Wrong: augmentation or normalisation in place."""
    images, labels = data(30)
    before = images.clone()
    train_model(tiny_net(), images, labels, quick(epoch=1), CPU, tmp_path / "p.safetensors", SETTINGS, (images, labels))
    assert torch.equal(images, before)


def test_a_batch_of_one_left_over_is_no_crash(tmp_path):
    """25 images in batches of 8: batch normalisation of one 1 x 1 image would raise. Other batches still count."""
    with seeded(0, "net"):
        model = nn.Sequential(nn.Conv2d(3, 4, 4), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))
    images, labels = data(25, 4)
    history = train_model(model, images, labels, quick(crop_padding=0), CPU, tmp_path / "p.safetensors", SETTINGS)
    assert len(history) == 3
    assert int(model[1].num_batches_tracked) == 9


def test_every_image_is_used_in_some_epoch_even_if_one_is_left_over(tmp_path):
    """Wrong: always dropping the same image."""
    images = torch.arange(9, dtype=torch.uint8)[:, None, None, None].expand(9, 3, 2, 2).clone()
    model = Recorder(9)
    train_model(
        model,
        images,
        torch.arange(9),
        quick(epoch=12, batch_size=4, crop_padding=0, **RAW),
        CPU,
        tmp_path / "p.safetensors",
        SETTINGS,
    )
    seen = torch.cat(model.batches)[:, 0, 0, 0].round().long()
    assert len(seen) >= 12 * 8
    assert set(seen.tolist()) == set(range(9))


def test_training_accuracy_is_the_share_of_the_images_seen(tmp_path):
    """Wrong: dividing by all images although a left-over one was not looked at: a perfect model is not at 1."""
    images = torch.arange(9, dtype=torch.uint8)[:, None, None, None].expand(9, 3, 2, 2).clone()
    recipe = quick(epoch=2, batch_size=4, crop_padding=0, **RAW)
    history = train_model(Recorder(9), images, torch.arange(9), recipe, CPU, tmp_path / "p.safetensors", SETTINGS)
    assert [record["train_accuracy"] for record in history] == [1.0, 1.0]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_divergence_is_a_user_error(precision, tmp_path):
    """Wrong: NaN weights written as a finished model."""
    with pytest.raises(UserError, match="--lr"):
        straight_run(tmp_path / "p.safetensors", quick(lr=1e25, precision=precision))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("device", DEVICES)
def test_a_network_learns_in_both_precisions(precision, device, tmp_path):
    """Wrong: autocast around the loss, gradients that underflow, channels mixed up by channels_last."""
    images, labels = data(60)
    images[torch.arange(60), labels] = (images[torch.arange(60), labels].int() // 2 + 127).to(torch.uint8)
    recipe = quick(epoch=12, lr=0.1, batch_size=12, precision=precision)
    model = tiny_net(dropout=0.0)
    history = train_model(model, images, labels, recipe, torch.device(device), tmp_path / "p.safetensors", SETTINGS)
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert history[-1]["train_accuracy"] > 0.9
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    query = make_query(model, recipe, torch.device(device))
    assert utils.accuracy(query, images, labels) > 0.9
    assert query(images).dtype == torch.float32


def test_bfloat16_is_close_to_float32_and_not_the_same():
    """Wrong: a precision setting that does nothing."""
    images = data(20)[0]
    model = tiny_net()
    fine = make_query(model, quick(precision="float32"), CPU)(images)
    coarse = make_query(model, quick(precision="bfloat16"), CPU)(images)
    assert not torch.equal(fine, coarse)
    # Three layers round their inputs, weights and outputs to 8 bits, each by at most 2^-9 of the magnitude.
    torch.testing.assert_close(fine, coarse, rtol=0, atol=9 * 2.0**-9 * fine.abs().max().item())


@pytest.mark.parametrize("device", DEVICES)
def test_queries_keep_no_gradients_and_change_nothing(device):
    """Defect 14. Wrong: graphs kept per query, statistics updated by audits, dropout left on."""
    model = tiny_net(dropout=0.5).train()
    query = make_query(model, quick(), torch.device(device))
    before = weights(model)
    images = data(12)[0]
    first, second = query(images), query(images)
    assert not first.requires_grad
    assert first.grad_fn is None
    assert torch.equal(first, second)
    assert same_bits(weights(model), before)
    # Batches of another size may add in another order. Sums of up to 90 numbers in three layers: n * eps * magnitude,
    # with the 11 bits of TF32 where convolutions of a graphics card use them.
    coarse = device == "cuda" and torch.backends.cudnn.allow_tf32
    atol = 3 * 90 * 2.0 ** -(11 if coarse else 24) * first.abs().max().item()
    torch.testing.assert_close(torch.cat([query(images[:5]), query(images[5:])]), first, rtol=0, atol=atol)
    assert first.shape == (12, 3)


def test_a_cpu_is_asked_a_few_images_at_a_time():
    """Wrong: pieces left out, in another order, or as large as the batch."""
    model, sizes = tiny_net(), []
    model.register_forward_hook(lambda _, inputs, output: sizes.append(len(output)))
    images = torch.cat([data(60, size=16)[0]] * 20)
    together = make_query(model, quick(), CPU)(images)
    assert sum(sizes) == len(images) == 1200 and max(sizes) == utils.CACHED_PIXELS // images[0, 0].numel() < 1200
    apart = torch.cat([make_query(model, quick(), CPU)(images[[row]]) for row in range(0, 1200, 97)])
    torch.testing.assert_close(together[::97], apart, rtol=0, atol=1e-4)
    large, none = torch.zeros(20, 3, 300, 200), images[:0]
    assert [len(part) for part in utils.in_pieces(large, CPU)] == [8, 8, 4], "never fewer than eight"
    assert [len(part) for part in utils.in_pieces(images, torch.device("meta"))] == [1200]
    assert make_query(model, quick(), CPU)(none).shape == (0, 3)


def test_queries_run_in_inference_mode():
    """Defect 14: the network itself must not build a graph while it answers."""
    model, modes = tiny_net(), []
    model.register_forward_hook(lambda *_: modes.append(not torch.is_grad_enabled()))
    make_query(model, quick(), CPU)(data(2)[0])
    assert modes == [True]


def test_queries_normalise_as_in_training(tmp_path):
    """Wrong: an audit that sees other pixel values than the training loop."""

    class Last(Recorder):
        def forward(self, images):
            self.last = images.detach().clone()
            return super().forward(images)

    images = torch.full((4, 3, 2, 2), 100, dtype=torch.uint8)
    recipe = quick(epoch=1, crop_padding=0, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    model = Last()
    train_model(model, images, torch.zeros(4, dtype=torch.long), recipe, CPU, tmp_path / "p.safetensors", SETTINGS)
    make_query(model, recipe, CPU)(images)
    assert torch.equal(model.last, model.batches[0])
    assert model.last[0, :, 0, 0].tolist() == pytest.approx(
        [(100 / 255 - 0.1) / 0.5, (100 / 255 - 0.2) / 0.6, (100 / 255 - 0.3) / 0.7], abs=1e-5
    )


def test_accuracy_counts_every_image_once_whatever_the_batch_size():
    """Wrong: a mean of batch means (the last batch is short), or rows ignored."""
    images = torch.arange(11, dtype=torch.uint8)[:, None, None, None].expand(11, 3, 2, 2).clone()
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 1, 0])
    query = make_query(Recorder(3), quick(**RAW), CPU)
    for size in (1, 4, 10, 100):
        assert utils.accuracy(query, images, labels, size) == pytest.approx(9 / 11)
    assert utils.accuracy(query, images, labels, 2, torch.tensor([9, 0, 10])) == pytest.approx(1 / 3)


@pytest.mark.parametrize("name", ["banana", "cuda:99", "cpu:x", ""])
def test_a_device_that_is_not_there_is_a_user_error(name):
    """One line that names the flag. Wrong: torch's own traceback."""
    with pytest.raises(UserError, match="--device") as caught:
        utils.choose_device(name)
    assert "\n" not in str(caught.value)


def test_auto_picks_a_device_and_a_precision():
    """Runs on CUDA, MPS or CPU without a flag."""
    device = utils.choose_device("auto")
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    assert device.type == next(name for name, works in there.items() if works)
    assert utils.choose_precision("auto", device) in ("float32", "bfloat16")
    assert utils.choose_precision("float32", device) == "float32"
    assert utils.choose_precision("bfloat16", device) == "bfloat16"
