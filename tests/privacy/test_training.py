"""Models of a privacy audit: networks, recipe, augmented queries, and the signals of what was trained."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.special import log_softmax

import utils
from kit.files import load_model, read_arrays
from privacy import config as configuration
from privacy import data, models, pipeline, training
from tests.privacy.parts import config_of, copy_of, error_of, planned

# --- networks, recipe, queries ---


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("cnn", 579_402),
        ("alexnet", 4_361_034),
        ("vgg16", 14_724_042),
        ("speedyresnet", 6_573_130),
        ("wrn28-1", 369_498),
        ("mlp", (3072 + 1) * 8 + (8 + 1) * 10),
        ("torchvision:squeezenet1_1", None),
    ],
)
def test_networks_by_name(name, parameters):
    records = data.Records(
        "x", "images", FakeStore(), torch.zeros(4, dtype=torch.int64), tuple("abcdefghij"), np.zeros(4, bool), {}, "0"
    )
    model = models.build(name, records, {"hidden": [8]}).eval()
    answer = model(torch.zeros(2, 3, 32, 32))
    assert answer.shape == (2, 10)
    if parameters is not None:
        assert sum(value.numel() for value in model.parameters()) == parameters


class FakeStore:
    image_shape = (3, 32, 32)


def test_unknown_and_unfitting_networks(tmp_path):
    table = data.load(configuration.Data(dataset="digits"))
    assert "needs images" in error_of(models.build, "cnn", table, {"hidden": [8]})
    images = data.Records(**{**vars(table), "kind": "images", "inputs": FakeStore()})
    assert "did you mean" in error_of(models.build, "vgg166", images, {"hidden": [8]})
    assert "can't be called" in error_of(models.build, "no.such:thing", table, {})
    assert "not a torch.nn.Module" in error_of(models.build, "operator:is_", table, {})


def test_users_own_network_from_a_file(tmp_path):
    (tmp_path / "net.py").write_text(
        "import torch\ndef make(classes, shape):\n    return torch.nn.Linear(shape[0], classes)\n"
    )
    config = config_of(tmp_path, train__model_name=f"{tmp_path / 'net.py'}:make", run__num_experiments=2)
    records, plan = planned(config)
    training.train_one(config, records, plan, 0, tmp_path)
    assert load_file(training.model_path(tmp_path, 0))["weight"].shape == (10, 64)
    (tmp_path / "net.py").write_text("import torch\ndef make(classes, shape):\n    return None\n")
    assert "code is" in error_of(training.train_one, config, records, plan, 0, tmp_path)


def rates_of(monkeypatch, run):
    """The learning rate and momentum of every step of SGD while `run` runs."""
    seen, step = [], torch.optim.SGD.step

    def spy(self, *arguments, **options):
        seen.append((self.param_groups[0]["lr"], self.param_groups[0]["momentum"]))
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    run()
    return seen


@pytest.mark.parametrize("dataset", ["digits", "photos"])
def test_learning_rate_schedule_is_applied_once(dataset, tmp_path, monkeypatch):
    # 10 epochs: divided by 5 from the epochs 6, 8 and 9 on, and never on top of an earlier division (defect 20).
    network = {} if dataset == "digits" else {"train__model_name": "smallnet"}
    config = config_of(
        tmp_path,
        data__dataset=dataset,
        data__size=64,
        train__epochs=10,
        train__batch_size=32,
        audit__population_size=10,
        **network,
    )
    records, plan = planned(config)
    seen = rates_of(monkeypatch, lambda: training.train_one(config, records, plan, 0, tmp_path))
    expected = [0.05] * 6 + [0.01] * 2 + [0.002] + [0.0004]
    assert [rate for rate, _ in seen] == pytest.approx(expected)  # 32 records: one step an epoch
    assert {momentum for _, momentum in seen} == {0.9}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1, 1, 1, 1, 1]),
        ("one_cycle", [0.5, 0.875, 0.625, 0.375, 0.125]),
        ("cosine", [(1 + math.cos(math.pi * (epoch + 0.5) / 5)) / 2 for epoch in range(5)]),
    ],
)
def test_schedules(schedule, expected):
    recipe = models.Recipe(epoch=5, lr=1.0, schedule=schedule)
    assert [recipe.lr_at(epoch) for epoch in range(5)] == pytest.approx(expected)


def test_images_are_cropped_and_flipped(tmp_path, monkeypatch):
    seen, original = [], utils.augment
    monkeypatch.setattr(utils, "augment", lambda *arguments: seen.append(arguments) or original(*arguments))
    config = config_of(
        tmp_path,
        data__dataset="photos",
        data__size=64,
        train__model_name="smallnet",
        audit__population_size=10,
        train__epochs=1,
    )
    training.train_one(config, *planned(config), 0, tmp_path)
    _, shifts, flips, padding = seen[0]
    assert padding == 4
    assert len(shifts.unique(dim=0)) > 10
    assert flips.any() and not flips.all()


def test_augmented_queries_by_hand():
    image = torch.arange(1, 76, dtype=torch.uint8).view(1, 3, 5, 5)
    assert torch.equal(models.augmented(image, "identity"), image)
    assert models.augmented(image, "flip")[0, 0, 0].tolist() == [5, 4, 3, 2, 1]
    assert models.augmented(image, "up")[0, 0, :, 0].tolist() == [11, 16, 21, 0, 0]
    assert models.augmented(image, "down")[0, 0, :, 0].tolist() == [0, 0, 1, 6, 11]
    assert models.augmented(image, "left")[0, 0, 0].tolist() == [3, 4, 5, 0, 0]
    assert models.augmented(image, "right")[0, 0, 0].tolist() == [0, 0, 1, 2, 3]


# --- training and signals ---


def test_files_of_a_run(finished):
    _, log = finished
    metadata = json.loads((log / "models" / "models_metadata.json").read_text())
    assert [entry["model_path"] for entry in metadata["models"]] == [f"model_{n}.safetensors" for n in range(4)]
    memberships = np.load(log / "models" / "memberships.npy", allow_pickle=False)
    assert memberships.dtype == bool
    assert memberships.shape == (4, 1797)
    assert {line.split()[2] for line in (log / "log_time_analysis.log").read_text().splitlines()} == {
        "data",
        "models",
        "signals",
    }
    for file in (log / "signals").glob("*.npz"):
        arrays = np.load(file, allow_pickle=False)
        assert arrays["losses"].dtype == np.float32
        assert arrays["losses"].shape == (1, 200)
    assert not list(log.rglob("*.pkl")) and not list(log.rglob("*.progress"))


def test_signals_are_those_of_the_stored_weights(finished):
    config, log = finished
    records, plan = planned(config)
    tensors, record = load_model(log / "models" / "model_1.safetensors")
    first, second = (tensors[f"{layer}.weight"].numpy().astype(np.float64) for layer in (1, 3))
    rows = plan.audited
    hidden = (records.inputs[rows].numpy() - np.array(record["mean"])) / np.array(record["std"])
    hidden = np.maximum(hidden @ first.T + tensors["1.bias"].numpy(), 0)
    logits = hidden @ second.T + tensors["3.bias"].numpy()
    stored = np.load(log / "signals" / "model_1.npz")
    labels = records.labels[rows].numpy()
    log_p = log_softmax(logits, axis=1)[np.arange(len(rows)), labels]
    assert np.allclose(stored["losses"][0], -log_p, rtol=1e-3, atol=1e-6)
    assert np.allclose(stored["scaled"][0], log_p - np.log(-np.expm1(log_p)), rtol=1e-3, atol=1e-3)
    assert (stored["hits"][0] == (logits.argmax(1) == labels)).mean() > 0.99
    members = records.inputs[plan.members(1)].numpy()
    assert np.allclose(record["mean"], members.mean(axis=0), atol=1e-4)  # of its own training records alone


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train__epochs": 5}, ("model_0.safetensors", "epoch is 4 there and 5 here")),
        ({"train__learning_rate": 0.04}, ("model_0.safetensors", "lr is 0.05 there and 0.04 here")),
        ({"data__size": 180}, ("model_0.safetensors", "members is")),
        ({"data__dataset": "wine", "data__size": 100}, ("model_0.safetensors", "dataset is 'digits' there")),
        ({"run__random_seed": 2}, ("model_0.safetensors", "seed is")),
        ({"audit__population_size": 30}, ("signals/model_0.npz", "population is")),
        ({"audit__data_size": 150}, ("signals/model_0.npz", "audited is")),
    ],
)
def test_stale_files_are_refused_by_name(finished, changes, words, tmp_path):
    _, log = finished
    copy_of(log, tmp_path / "log")
    message = error_of(pipeline.run, config_of(tmp_path, **changes), "signals")
    assert all(word in message for word in (*words, "log_dir")), message


def test_signals_of_other_models_are_refused(finished, tmp_path):
    _, log = finished
    copy_of(log, tmp_path / "log")
    (tmp_path / "log" / "signals" / "model_2.npz").unlink()
    (tmp_path / "log" / "signals" / "model_3.npz").rename(tmp_path / "log" / "signals" / "model_2.npz")
    message = error_of(pipeline.run, config_of(tmp_path), "signals")
    assert "model_2.npz" in message and "model is" in message


def test_damaged_and_foreign_models_are_named(finished, tmp_path):
    _, log = finished
    copy_of(log, tmp_path / "log")
    file = tmp_path / "log" / "models" / "model_1.safetensors"
    file.write_bytes(file.read_bytes()[:500])
    assert "model_1.safetensors" in error_of(pipeline.run, config_of(tmp_path), "models")
    save_file({"a": torch.zeros(1)}, file)
    assert "was not trained by privacy-audit.py" in error_of(pipeline.run, config_of(tmp_path), "models")


@pytest.mark.parametrize("dataset", ["digits", "photos"])
def test_checkpoints_are_kept_and_their_losses_are_a_trajectory(dataset, tmp_path):
    changes = {"audit__algorithm": ["trajectory", "loss"], "train__checkpoints": 2, "run__num_experiments": 1}
    if dataset == "photos":
        changes |= {"data__dataset": "photos", "data__size": 60, "train__model_name": "cnn", "train__epochs": 3}
    config = config_of(tmp_path, **changes, audit__num_ref_models=2)
    results, _ = pipeline.run(config, "audit")
    assert {one["name"] for one in results["attacks"]} == {"trajectory", "loss"}
    models_folder = tmp_path / "log" / "models"
    first, last = (training.checkpoint_path(models_folder, 0, place) for place in (1, 2))
    assert len(list(first.parent.glob("*.safetensors"))) == 2 * 6
    stored = [
        read_arrays(tmp_path / "log" / "signals" / f"{part}model_0.npz")
        for part in ("checkpoint_1/", "checkpoint_2/", "")
    ]
    means = [one["losses"][0].mean() for one in stored]
    assert len(set(means)) == 3 and (dataset == "photos" or means[0] > means[1] > means[2])
    # Resumed: what is kept is not trained again, and a finished training without checkpoints is refused.
    before = first.stat().st_mtime_ns
    pipeline.run(config, "audit")
    assert first.stat().st_mtime_ns == before
    last.unlink()
    assert "does not exist" in error_of(pipeline.run, config, "audit")
    fewer = config_of(tmp_path, **{**changes, "train__checkpoints": 1}, audit__num_ref_models=2)
    assert "checkpoints is 2 there and 1 here" in error_of(pipeline.run, fewer, "models")
    too_many = config_of(tmp_path / "b", train__checkpoints=4)
    assert "fewer than the 4 epochs" in error_of(pipeline.run, too_many, "models")
