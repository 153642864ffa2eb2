"""Audits of what others trained: stored logits, state dicts, and files that mean harm."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.special import log_softmax

import utils
from kit import files
from networks import build_network
from privacy import config as configuration
from privacy import data, pipeline, training
from tests.privacy.parts import config_of, error_of, sections, write


def third_party(folder, queries=None, rows=None):
    """A data set of labels alone and stored logits of six models, of which only the members' are raised."""
    draws = np.random.default_rng(3)
    labels, members = draws.integers(0, 3, 240), np.zeros((6, 240), dtype=bool)
    for pair in range(3):
        chosen = draws.permutation(200)[:100]
        members[2 * pair, chosen], members[2 * pair + 1, np.setdiff1d(np.arange(200), chosen)] = True, True
    (folder / "log" / "models").mkdir(parents=True)
    np.savez(folder / "labels.npz", labels=labels)
    entries = []
    for number, inside in enumerate(members):
        logits = draws.normal(size=(240, 3))
        logits[np.arange(240), labels] += 1 + 2.5 * inside
        arrays = {"logits": logits.astype(np.float32)}
        if rows is not None:
            arrays = {"logits": arrays["logits"][rows], "records": rows}
        if queries:
            arrays["logits"] = np.repeat(arrays["logits"][None], queries, axis=0)
        np.savez(folder / "log" / "models" / f"logits_{number}.npz", **arrays)
        entries.append({"model_path": f"logits_{number}.npz"})
    np.save(folder / "log" / "models" / "memberships.npy", members)
    files.write_json(folder / "log" / "models" / "models_metadata.json", {"models": entries, "targets": [0, 3]})
    return {
        "run": {"log_dir": str(folder / "log")},
        "data": {"dataset": "table", "data_dir": str(folder / "labels.npz")},
        "audit": {"device": "cpu", "algorithm": ["LOSS", "RMIA"], "fprs": [0.1]},
    }


def test_audit_of_stored_logits_alone(tmp_path):
    from sklearn.metrics import roc_auc_score

    config = configuration.load(write(tmp_path / "a.yaml", third_party(tmp_path)))
    results, _ = pipeline.run(config, "audit")
    loss = next(attack for attack in results["attacks"] if attack["name"] == "loss")
    assert results["targets"] == [0, 3]
    logits = np.load(tmp_path / "log" / "models" / "logits_3.npz")["logits"].astype(np.float64)
    labels = np.load(tmp_path / "labels.npz")["labels"]
    members = np.load(tmp_path / "log" / "models" / "memberships.npy")
    rows = members.any(axis=0)  # the 40 others are the population
    score = log_softmax(logits, axis=1)[np.arange(240), labels]
    assert loss["targets"][1]["auc"] == pytest.approx(roc_auc_score(members[3, rows], score[rows]), abs=1e-6)
    assert results["population"] == 40
    assert loss["pooled"]["auc"] > 0.75


def test_stored_logits_of_some_records_and_several_queries(tmp_path):
    rows = np.r_[np.arange(0, 180), np.arange(200, 230)]
    config = configuration.load(write(tmp_path / "a.yaml", third_party(tmp_path, 2, rows)))
    pipeline.run(config, "signals")
    stored = np.load(tmp_path / "log" / "signals" / "model_0.npz")
    assert stored["losses"].shape == (2, 180)
    assert stored["population_losses"].shape == (2, 30)


def test_one_model_without_references(tmp_path):
    made = third_party(tmp_path)
    folder = tmp_path / "log" / "models"
    members = np.load(folder / "memberships.npy")[:1]
    np.save(folder / "memberships.npy", members)
    files.write_json(folder / "models_metadata.json", {"models": [{"model_path": "logits_0.npz"}]})
    config = configuration.load(write(tmp_path / "a.yaml", made))
    records = data.load(config.data)
    plan, *_ = pipeline._outside(config, records)
    assert not members[0, plan.population].any()
    assert len(plan.population) == 70  # half of the 140 that it was not trained on
    assert np.array_equal(np.sort(np.r_[plan.audited, plan.population]), np.arange(240))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "memberships.npy").unlink(), "memberships.npy does not exist"),
        (lambda folder: np.save(folder / "memberships.npy", np.zeros((6, 10), bool)), "must be bool, (6 models"),
        (lambda folder: np.savez(folder / "logits_0.npz", scores=np.zeros((240, 3))), "it needs logits"),
        (lambda folder: np.savez(folder / "logits_0.npz", logits=np.zeros((240, 4))), "(records, 3 classes)"),
        (lambda folder: np.savez(folder / "logits_0.npz", logits=np.full((240, 3), np.nan)), "not finite"),
        (lambda folder: np.savez(folder / "logits_0.npz", logits=np.array([[len]], dtype=object)), "damaged"),
        (
            lambda folder: np.save(folder / "memberships.npy", np.array([len], dtype=object), allow_pickle=True),
            "no array",
        ),
        (lambda folder: files.write_json(folder / "models_metadata.json", {"models": []}), '"models"'),
        (
            lambda folder: files.write_json(folder / "models_metadata.json", {"models": [{"model_path": "a.pkl"}] * 6}),
            "labels alone",
        ),
        (lambda folder: np.save(folder / "population.npy", np.array([0, 1])), "training records"),
    ],
)
def test_bad_files_from_elsewhere(change, words, tmp_path):
    config = configuration.load(write(tmp_path / "a.yaml", third_party(tmp_path)))
    change(tmp_path / "log" / "models")
    assert words in error_of(pipeline.run, config, "signals")


def test_state_dicts_from_elsewhere(tmp_path):
    records = data.load(configuration.Data(dataset="photos"))
    folder = tmp_path / "log" / "models"
    folder.mkdir(parents=True)
    with utils.seeded("test"):
        model = build_network("smallnet", len(records.class_names))
    save_file(model.state_dict(), folder / "mine.safetensors")
    entry = {
        "model_path": "mine.safetensors",
        "model_name": "smallnet",
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "input_size": 32,
    }
    files.write_json(folder / "models_metadata.json", {"models": [entry]})
    members = np.zeros((1, len(records)), dtype=bool)
    members[0, :50] = True
    np.save(folder / "memberships.npy", members)
    made = {
        "run": {"log_dir": str(tmp_path / "log")},
        "data": {"dataset": "photos"},
        "audit": {"device": "cpu", "data_size": 40, "population_size": 30, "queries": ["identity", "flip"]},
    }
    pipeline.run(configuration.load(write(tmp_path / "a.yaml", made)), "signals")
    stored = np.load(tmp_path / "log" / "signals" / "model_0.npz")
    plan, *_ = pipeline._outside(configuration.load(tmp_path / "a.yaml"), records)
    query = utils.make_query(
        model, utils.TrainingSettings(mean=(0.5,) * 3, std=(0.25,) * 3, precision="float32"), torch.device("cpu")
    )
    rows = torch.from_numpy(plan.audited)
    expected = utils.sample_signals(query(records.inputs[rows].flip(3)), records.labels[rows])["cross_entropy"]
    assert np.allclose(stored["losses"][1], expected, rtol=1e-4)


@pytest.mark.parametrize(
    "change", [{"net_type": "os:getcwd"}, {"net_type": "/tmp/evil.py:make"}, {"pretrained": "somebody/model"}]
)
def test_a_model_file_does_not_choose_whose_code_runs(change, finished, tmp_path):
    config, log = finished
    tensors, record = files.load_model(log / "models" / "model_0.safetensors")
    files.save_model(tmp_path / "a.safetensors", tensors, {**record, "settings": {**record["settings"], **change}})
    records = data.load(config.data)
    assert "asks for code or weights" in error_of(training.open_own, tmp_path / "a.safetensors", records, config)


def test_no_section_train_and_no_models(tmp_path):
    made = sections(tmp_path / "log")
    del made["train"]
    assert "no section train" in error_of(pipeline.run, configuration.load(write(tmp_path / "a.yaml", made)))


def test_marked_users_are_audited_as_sets(tmp_path):
    config = config_of(
        tmp_path,
        data__dataset="photos",
        data__size=120,
        data__marked_users=8,
        data__marked_samples_per_user=5,
        train__model_name="smallnet",
        train__epochs=2,
        audit__population_size=40,
        run__num_experiments=2,
        audit__num_ref_models=1,
        train__batch_size=64,
    )
    results, _ = pipeline.run(config, "audit")
    users = results["users"]
    assert (users["group"], users["users"], users["in_part"]) == ("user", 8, 0)
    assert all(row["records"] == 5 for row in users["rows"])
    # Targets 0 and 1 are complementary: each user is in for one of them and out for the other.
    assert all((row["models_in"], row["models_out"]) == (1, 1) for row in users["rows"])
