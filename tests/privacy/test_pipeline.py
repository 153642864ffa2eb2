"""privacy/: configuration, data, who trains on what, training, signals, models from elsewhere, and restarts."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from privacy_parts import (
    _on_this_machine,  # noqa: F401  (a fixture that every test uses)
    config_of,
    copy_of,
    error_of,
    finished,  # noqa: F401  (a fixture)
    sections,
    write,
)
from safetensors.torch import load_file, save_file
from scipy.special import log_softmax

import utils
from kit.files import load_model
from privacy import config as configuration
from privacy import data, models, pipeline, training
from privacy.attack import ATTACKS


def planned(config):
    records = data.load(config.data)
    return records, data.plan(config, records)


# --- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("run: {log_dir: x, num_experimets: 3}\ndata: {dataset: digits}", ("run.num_experimets", "num_experiments?")),
        ("run: {log_dir: x, epochs: 3}\ndata: {dataset: digits}", ("run.epochs", "belongs in the section train")),
        ("run: {log_dir: x}\ndata: {dataset: digits}\ntrian: {}", ("trian", "did you mean train?")),
        ("run: {log_dir: x}\ndata: {dataset: 4}", ("data.dataset is 4", "string")),
        ("run: {log_dir: x, random_seed: 1.5}\ndata: {dataset: digits}", ("run.random_seed is 1.5", "integer")),
        ("run: {log_dir: x, random_seed: yes}\ndata: {dataset: digits}", ("run.random_seed is True", "integer")),
        ("run: {log_dir: x}\ndata: {dataset: digits}\naudit: {queries: [flip]}", ("audit.queries", "identity")),
        ("run: {log_dir: x}\ndata: {dataset: digits}\naudit: {fprs: [2]}", ("audit.fprs.0 is 2", "less than or equal")),
        ("run: {log_dir: x}", ("data is missing",)),
        ("run: {log_dir: x, log_dir: y}\ndata: {dataset: digits}", ("'log_dir' is given twice", "line 1")),
        (
            "run: {log_dir: x}\ndata: {dataset: !!python/object/apply:os.system [touch pwned]}",
            ("line 2", "plain values"),
        ),
        ("run: {log_dir: x}\ndata: {dataset: !!python/name:os.system }", ("line 2", "plain values")),
        ("run: [", ("line 1",)),
        ("just words", ("has no sections",)),
        ("", ("has no sections",)),
    ],
)
def test_config_errors_name_file_field_and_remedy(text, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "mine.yaml", text)
    message = error_of(configuration.load, path)
    assert all(word in message for word in (str(path), *words)), message
    assert not (tmp_path / "pwned").exists()


def test_missing_config(tmp_path):
    assert "does not exist" in error_of(configuration.load, tmp_path / "none.yaml")


def test_config_paths_are_absolute_and_survive_a_round_trip(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = sections("log", data__data_dir="data", train__model_name="net.py:make", train__learning_rate="1e-3")
    loaded = configuration.load(write(tmp_path / "a.yaml", made))
    assert loaded.run.log_dir == str(tmp_path / "log")
    assert loaded.data.data_dir == str(tmp_path / "data")
    assert loaded.train.model_name == f"{tmp_path / 'net.py'}:make"
    assert loaded.train.learning_rate == 0.001  # which YAML 1.1 calls a word
    configuration.dump(tmp_path / "b.yaml", loaded)
    monkeypatch.chdir("/")
    assert configuration.load(tmp_path / "b.yaml") == loaded


def test_configs_in_the_repository_are_valid_and_every_field_is_documented():
    files = sorted((ROOT / "configs").glob("*.yaml"))
    assert {"digits", "cifar10", "cifar10-quick", "purchase100", "agnews"} <= {file.stem for file in files}
    for file in files:
        configuration.load(file)
    table = (ROOT / "configs" / "README.md").read_text()
    for section in (configuration.Run, configuration.Audit, configuration.Train, configuration.Data):
        for name in section.model_fields:
            assert f"`{name}`" in table, name


@pytest.mark.parametrize(
    ("experiments", "references", "expected"), [(1, None, 4), (1, 1, 4), (16, 7, 16), (5, 1, 6), (2, 4, 10)]
)
def test_number_of_models(experiments, references, expected, tmp_path):
    config = config_of(tmp_path, run__num_experiments=experiments, audit__num_ref_models=references)
    assert config.models == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"audit__algorithm": ["LOSS", "rmai_offline"]},
            ("audit.algorithm 'rmai_offline'", "did you mean rmia_offline?"),
        ),
        ({"audit__epsilon": {"confidense": 0.9}}, ("audit.epsilon 'confidense'", "did you mean confidence?")),
        ({"audit__groups": ["clas"]}, ("audit.groups 'clas'", "did you mean class?")),
        ({"audit__queries": ["identity", "flip"]}, ("audit.queries", "for images")),
    ],
)
def test_what_the_attacks_would_refuse_is_said_before_training(changes, words, tmp_path):
    config = config_of(tmp_path, **changes)
    message = error_of(pipeline.run, config)
    assert all(word in message for word in words), message
    assert not list((tmp_path / "log").glob("models/*"))


def test_families_of_attacks():
    assert pipeline._attacks("RMIA") == ["rmia_offline", "rmia_online"]
    assert pipeline._attacks(["LOSS", "LiRA"]) == [
        "loss",
        "lira_offline",
        "lira_online",
        "lira_offline_fixed",
        "lira_online_fixed",
    ]
    assert pipeline._attacks("all") == list(ATTACKS)


# --- data -------------------------------------------------------------------------------------------------------------


def test_purchase100_formats(tmp_path):
    draws = np.random.default_rng(0)
    features, labels = draws.integers(0, 2, (30, 600)), np.tile([1, 50, 100], 10)
    np.savetxt(tmp_path / "dataset_purchase", np.column_stack([labels, features]), fmt="%d", delimiter=",")
    published = data.load(configuration.Data(dataset="purchase100", data_dir=str(tmp_path)))
    assert published.kind == "table"
    assert published.labels.tolist() == [0, 1, 2] * 10
    assert published.class_names == ("1", "50", "100")
    assert np.array_equal(published.inputs.numpy(), features)
    one_hot = np.eye(3)[[0, 1, 2] * 10]
    np.savez(tmp_path / "purchase100.npz", features=features, labels=one_hot)
    arrays = data.load(configuration.Data(dataset="purchase100", data_dir=str(tmp_path)))
    assert np.array_equal(arrays.inputs, published.inputs)
    assert arrays.labels.tolist() == published.labels.tolist()
    (tmp_path / "purchase100.npz").unlink()
    (tmp_path / "dataset_purchase").write_text("0,1,0\n")
    assert "label from 1 to 100" in error_of(
        data.load, configuration.Data(dataset="purchase100", data_dir=str(tmp_path))
    )
    assert "privacytrustlab" in error_of(
        data.load, configuration.Data(dataset="purchase100", data_dir=str(tmp_path / "none"))
    )


def test_texas100_format(tmp_path):
    folder = tmp_path / "texas" / "100"
    folder.mkdir(parents=True)
    features = np.random.default_rng(0).integers(0, 2, (20, 50))
    np.savetxt(folder / "feats", features, fmt="%d", delimiter=",")
    np.savetxt(folder / "labels", np.tile([7, 3], 10), fmt="%d")
    found = data.load(configuration.Data(dataset="texas100", data_dir=str(tmp_path)))
    assert np.array_equal(found.inputs.numpy(), features)
    assert found.class_names == ("3", "7")
    assert found.labels.tolist() == [1, 0] * 10
    (folder / "labels").write_text("1\n2\n")
    assert "20 lines of feats" in error_of(data.load, configuration.Data(dataset="texas100", data_dir=str(tmp_path)))


def test_csv_columns_words_and_groups(tmp_path):
    (tmp_path / "people.csv").write_text(
        "age, job, income, region\n20,nurse,low,north\n30,clerk,high,south\n40,nurse,high,north\n"
    )
    found = data.load(
        configuration.Data(dataset="table", data_dir=str(tmp_path / "people.csv"), label="income", groups=["region"])
    )
    assert found.inputs.tolist() == [[20, 0, 1], [30, 1, 0], [40, 0, 1]]  # age, job clerk, job nurse
    assert (found.labels.tolist(), found.class_names) == ([1, 0, 0], ("high", "low"))
    assert found.groups["region"].tolist() == ["north", "south", "north"]
    (tmp_path / "plain.csv").write_text("1.5,2,0\n3,4,1\n")
    plain = data.load(configuration.Data(dataset="table", data_dir=str(tmp_path / "plain.csv")))
    assert plain.inputs.tolist() == [[1.5, 2], [3, 4]]
    assert plain.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "x,y\n1,0\n,1\n", "record 1 has a feature that is missing"),
        ("a.csv", "x,y\n1,0\n2,\n", "record 1 has no y"),
        ("a.csv", "x,y\n1,0\n2,0\n", "two classes"),
        ("a.txt", "x", "is not read here"),
    ],
)
def test_bad_tables(name, content, words, tmp_path):
    (tmp_path / name).write_text(content)
    assert words in error_of(data.load, configuration.Data(dataset="table", data_dir=str(tmp_path / name)))


def test_tables_are_read_without_pickle(tmp_path):
    np.savez(tmp_path / "a.npz", features=np.array([print, len], dtype=object), labels=[0, 1])
    assert "damaged" in error_of(data.load, configuration.Data(dataset="table", data_dir=str(tmp_path / "a.npz")))


def test_agnews_as_tokens_and_as_hashed_words(tmp_path):
    (tmp_path / "train.csv").write_text('"3","Oil up","Prices, rose"\n"1","Vote","held"\n')
    (tmp_path / "test.csv").write_text('"4","Chip","made"\n')
    settings = {"dataset": "agnews", "data_dir": str(tmp_path)}
    tokens = data.load(configuration.Data(**settings, tokenize=True, max_length=9))
    assert (tokens.kind, tokens.vocabulary, tokens.labels.tolist()) == ("tokens", 256, [2, 0, 3])
    assert bytes(tokens.inputs[0].tolist()) == b"Oil up Pr"
    assert tokens.inputs.shape == (3, 9)
    words = data.load(configuration.Data(**settings, features=64))
    assert (words.kind, words.inputs.shape) == ("table", (3, 64))
    assert torch.allclose(words.inputs.norm(dim=1), torch.ones(3))
    (tmp_path / "train.csv").write_text('"3","a","b"\n"9","a","b"\n')
    assert "line 2" in error_of(data.load, configuration.Data(**settings))


def test_hub_data_sets(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "datasets", None)
        assert "pip install datasets" in error_of(data.load, configuration.Data(dataset="hf:imdb"))
    datasets = pytest.importorskip("datasets")
    rows = {"text": ["one two", "three"], "label": [1, 0], "place": ["a", "b"]}
    parts = datasets.DatasetDict(train=datasets.Dataset.from_dict(rows), test=datasets.Dataset.from_dict(rows))
    parts.save_to_disk(str(tmp_path / "texts"))
    found = data.load(
        configuration.Data(dataset="hf:mine", data_dir=str(tmp_path / "texts"), groups=["place"], tokenize=True)
    )
    assert found.labels.tolist() == [1, 0, 1, 0]
    assert found.groups["place"].tolist() == ["a", "b", "a", "b"]
    assert bytes(found.inputs[2, :7].tolist()) == b"one two"
    datasets.Dataset.from_dict({"x": [1.5, 2, 3], "y": [0, 1, 2], "label": [0, 1, 1]}).save_to_disk(
        str(tmp_path / "table")
    )
    found = data.load(configuration.Data(dataset="hf:mine", data_dir=str(tmp_path / "table")))
    assert found.inputs.tolist() == [[1.5, 0], [2, 1], [3, 2]]
    assert "has no column 'z'" in error_of(
        data.load, configuration.Data(dataset="hf:mine", data_dir=str(tmp_path / "table"), label="z")
    )


def test_unknown_data_set_names_the_nearest():
    assert "did you mean purchase100?" in error_of(data.load, configuration.Data(dataset="purchase10"))


def test_plan_is_balanced_and_keeps_the_population_apart(tmp_path):
    _, plan = planned(config_of(tmp_path, audit__data_size=50, audit__population_size=70))
    assert (len(plan.audited), len(plan.population)) == (50, 70)
    assert (plan.memberships.sum(axis=1) == 100).all()  # half of the pool of 200
    assert set(plan.memberships.sum(axis=0).tolist()) == {0, 2}  # outside of the pool, or in half of the 4 models
    assert not plan.memberships[:, plan.population].any()
    assert (plan.memberships[:, plan.audited].sum(axis=0) == 2).all()
    assert np.array_equal(plan.memberships[0], ~plan.memberships[1] & plan.memberships.any(axis=0))
    _, more = planned(config_of(tmp_path, run__num_experiments=8))
    assert np.array_equal(more.memberships[:4], plan.memberships)  # so that trained models stay valid
    _, other = planned(config_of(tmp_path, run__random_seed=2))
    assert not np.array_equal(other.memberships, plan.memberships)


def test_population_takes_test_records_last(tmp_path):
    records = data.load(configuration.Data(dataset="digits"))
    is_test = np.arange(len(records)) >= 1000
    records = data.Records(**{**vars(records), "is_test": is_test})
    plan = data.plan(config_of(tmp_path, data__size=900, audit__population_size=150), records)
    assert not is_test[np.flatnonzero(plan.memberships.any(axis=0))].any()
    assert is_test[plan.population].sum() == 50  # after the 100 that are left of the others
    assert "lower it" in error_of(data.plan, config_of(tmp_path, data__size=1001), records)


def test_users_are_in_or_out_as_a_whole(tmp_path):
    config = config_of(tmp_path, data__dataset="photos", data__marked_users=6, data__marked_samples_per_user=5)
    records = data.load(config.data, 1)
    plain = data.load(config.data.model_copy(update={"marked_users": 0}))
    owner = records.groups["user"]
    rows = np.flatnonzero(owner != "")
    assert len(rows) == 30
    assert records.fingerprint != plain.fingerprint
    marked, original = (store.inputs[rows].float() for store in (records, plain))
    assert ((marked - original).abs().amax(dim=(1, 2, 3)) > 8).all()
    others = np.flatnonzero(owner == "")[:50]
    assert torch.equal(records.inputs[others], plain.inputs[others])
    plan = data.plan(config, records)
    for user in np.unique(owner[rows]):
        assert len(np.unique(plan.memberships[:, owner == user], axis=1).T) == 1
    assert set(rows) <= set(plan.audited.tolist())
    assert plan.memberships[:, rows].any(axis=1).all()


# --- networks, recipe, queries ----------------------------------------------------------------------------------------


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


# --- training and signals ---------------------------------------------------------------------------------------------


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
    assert (stored["correct"] == (logits.argmax(1) == labels)).mean() > 0.99
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
