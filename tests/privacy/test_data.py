"""Records of a privacy audit: tables, texts, and who trains on what."""

import sys

import numpy as np
import pytest
import torch

from privacy import config as configuration
from privacy import data
from tests.privacy.parts import config_of, error_of, planned


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
