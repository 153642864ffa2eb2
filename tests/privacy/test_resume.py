"""privacy-audit.py interrupted, resumed, and given what others trained."""

import ast
import json
import math
import os
import subprocess
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
from kit import files
from networks import build_network
from privacy import config as configuration
from privacy import data, pipeline, signals, training


def weights(log):
    return {file.name: load_file(file) for file in sorted((log / "models").glob("model_*.safetensors"))}


def stored_signals(log):
    found = {file.name: dict(np.load(file)) for file in sorted((log / "signals").glob("*.npz"))}
    return found


def assert_same(log, other):
    first, second = weights(log), weights(other)
    assert first.keys() == second.keys()
    for name, tensors in first.items():
        assert all(torch.equal(value, second[name][key]) for key, value in tensors.items()), name
    first, second = stored_signals(log), stored_signals(other)
    assert first.keys() == second.keys()
    for name, arrays in first.items():
        assert all(np.array_equal(value, second[name][key]) for key, value in arrays.items()), name


class Stop(BaseException):
    """Ends the process, as far as the code under test can tell."""


def stop_at(monkeypatch, place, name, call_number):
    """Let the `call_number`th call of a function raise Stop."""
    original, calls = getattr(place, name), []

    def stopping(*arguments, **options):
        calls.append(1)
        if len(calls) == call_number:
            raise Stop
        return original(*arguments, **options)

    monkeypatch.setattr(place, name, stopping)


@pytest.mark.parametrize(
    ("place", "name", "call_number", "models_done", "signals_done"),
    [
        (training, "_fit_table", 1, 0, 0),  # before the first model
        (torch.optim.SGD, "step", 30, 1, 0),  # within an epoch of the second (16 steps a model)
        (os, "replace", 5, 3, 0),  # while the fifth file is given its name
        (signals, "ask", 5, 4, 2),  # while the third model is asked (two calls a model)
        (pipeline, "_judge", 1, 4, 4),  # before the attacks
    ],
)
def test_interrupted_runs_end_with_the_same_bits(
    finished, place, name, call_number, models_done, signals_done, tmp_path, monkeypatch
):
    _, log = finished
    config, mine = config_of(tmp_path), tmp_path / "log"
    with monkeypatch.context() as patch:
        stop_at(patch, place, name, call_number)
        with pytest.raises(Stop):
            pipeline.run(config, "audit")
    before = {file: file.stat().st_mtime_ns for file in mine.rglob("model_*.*") if file.is_file()}
    assert sum(file.suffix == ".safetensors" for file in before) == models_done
    assert sum(file.suffix == ".npz" for file in before) == signals_done
    results, _ = pipeline.run(config, "audit")
    assert {file: file.stat().st_mtime_ns for file in before} == before  # nothing finished was made again
    assert_same(mine, log)
    expected, _ = pipeline.run(finished[0], "audit")
    assert json.dumps(results["attacks"]) == json.dumps(expected["attacks"])


def test_killed_while_training_images(tmp_path):
    made = sections(
        tmp_path / "log",
        data__dataset="photos",
        data__size=200,
        train__model_name="smallnet",
        train__epochs=3,
        audit__population_size=20,
        run__num_experiments=1,
        audit__num_ref_models=1,
        train__batch_size=64,
    )
    write(tmp_path / "a.yaml", made)
    kill = (
        "import os, utils\nutils.PROGRESS_SECONDS = 0\noriginal = utils._train_epoch\ncount = []\n"
        "def epoch(*a, **k):\n    count.append(1)\n    if len(count) == 6: os._exit(9)\n"
        "    return original(*a, **k)\nutils._train_epoch = epoch"
    )
    command = ("--cf", tmp_path / "a.yaml", "--stop_after", "signals")
    assert run_killed(*command, code=kill).returncode == 9
    folder = tmp_path / "log" / "models"
    assert sorted(file.name for file in folder.glob("model_*")) == ["model_0.safetensors", "model_1.progress"]
    config = configuration.load(tmp_path / "a.yaml")
    before = (folder / "model_0.safetensors").stat().st_mtime_ns
    torch.set_num_threads(1)
    pipeline.run(config, "signals")
    assert (folder / "model_0.safetensors").stat().st_mtime_ns == before
    fresh = configuration.load(
        write(tmp_path / "b.yaml", {**made, "run": {**made["run"], "log_dir": str(tmp_path / "other")}})
    )
    pipeline.run(fresh, "signals")
    assert_same(tmp_path / "log", tmp_path / "other")


def run_killed(*arguments, code):
    """privacy-audit.py in a process of its own that runs `code` first."""
    text = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}\nimport runpy\n"
        f"runpy.run_path({str(ROOT / 'privacy-audit.py')!r}, run_name='__main__')"
    )
    return subprocess.run(
        [sys.executable, "-c", text, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        check=False,
    )


def test_one_missing_model_trains_only_itself(finished, tmp_path, monkeypatch):
    _, log = finished
    mine = copy_of(log, tmp_path / "log")
    (mine / "models" / "model_2.safetensors").unlink()
    trained, original = [], training._fit_table
    monkeypatch.setattr(
        training, "_fit_table", lambda *arguments: trained.append(arguments[3]["number"]) or original(*arguments)
    )
    pipeline.run(config_of(tmp_path), "signals")
    assert trained == [2]
    assert_same(mine, log)


def test_more_models_go_on_where_fewer_ended(finished, tmp_path, monkeypatch):
    _, log = finished
    mine = copy_of(log, tmp_path / "log")
    trained, original = [], training._fit_table
    monkeypatch.setattr(
        training, "_fit_table", lambda *arguments: trained.append(arguments[3]["number"]) or original(*arguments)
    )
    pipeline.run(config_of(tmp_path, run__num_experiments=6), "signals")
    assert trained == [4, 5]
    assert np.load(mine / "models" / "memberships.npy").shape == (6, 1797)


def test_models_of_a_launcher_have_the_same_bits(finished, tmp_path, monkeypatch, script):
    _, log = finished
    mine = copy_of(log, tmp_path / "a folder" / "log")
    for number in (1, 2):
        (mine / "models" / f"model_{number}.safetensors").unlink()
    config = write(tmp_path / "a.yaml", sections(mine))
    monkeypatch.setenv("JOBS", "2")
    done = script("privacy-audit", "--cf", config, "--stop_after", "signals")
    assert done.code == 0, done.err
    commands = (mine / "models" / "commands.txt").read_text().splitlines()
    assert [line.split()[-2:] for line in commands] == [["--train_model", "1"], ["--train_model", "2"]]
    assert_same(mine, log)


def test_one_model_by_its_number(finished, tmp_path, script):
    _, log = finished
    config = write(tmp_path / "a.yaml", sections(tmp_path / "log"))
    assert "models 0 to 3" in script("privacy-audit", "--cf", config, "--train_model", 4).err
    assert script("privacy-audit", "--cf", config, "--train_model", 3).code == 0
    assert [file.name for file in (tmp_path / "log" / "models").iterdir()] == ["model_3.safetensors"]
    assert torch.equal(
        weights(log)["model_3.safetensors"]["1.weight"], weights(tmp_path / "log")["model_3.safetensors"]["1.weight"]
    )


# --- models from elsewhere --------------------------------------------------------------------------------------------


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


# --- language models --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("peft_type", [None, "lora"])
def test_tiny_gpt2_from_scratch(peft_type, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    if peft_type:
        pytest.importorskip("peft")
    lines = "".join(f'"{1 + n % 4}","Title {n}","Words of number {n * n}"\n' for n in range(60))
    (tmp_path / "train.csv").write_text(lines)
    changes = {"dataset": "agnews", "data_dir": str(tmp_path), "tokenize": True, "max_length": 24, "size": 40}
    made = sections(
        tmp_path / "log",
        train__model_name="gpt2",
        train__hidden=[32],
        train__optimizer="AdamW",
        train__peft_type=peft_type,
        train__epochs=2,
        run__num_experiments=2,
        audit__batch_size=16,
    )
    made["data"] = changes
    pipeline.run(configuration.load(write(tmp_path / "a.yaml", made)), "signals")
    tensors = load_file(tmp_path / "log" / "models" / "model_0.safetensors")
    assert all("lora" in name for name in tensors) == bool(peft_type)
    stored = np.load(tmp_path / "log" / "signals" / "model_0.npz")
    losses = stored["losses"][0].astype(np.float64)
    assert (losses > 0).all() and (losses < 2 * math.log(256)).all()
    assert np.allclose(stored["scaled"][0], -losses - np.log(-np.expm1(-losses)), rtol=1e-4)


def test_text_signals_are_means_over_next_tokens():
    from types import SimpleNamespace

    from privacy.language import LanguageModel

    logits = torch.tensor([[[2.0, 0, 0], [0, 0, 1.0], [5.0, 5, 5]]]).expand(2, 3, 3)

    class Fixed(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            return SimpleNamespace(logits=logits)

    records = SimpleNamespace(inputs=torch.tensor([[1, 0, 2], [1, 1, data.PAD]]))
    found = LanguageModel(Fixed(), torch.device("cpu")).answers(records, np.arange(2))
    first = math.log(math.exp(2) + 2)
    second = math.log(2 + math.e)
    assert found["cross_entropy"].tolist() == pytest.approx([(first - 2 + second - 1) / 2, first])
    assert found["correct"].tolist() == [1, 0]


# --- the whole --------------------------------------------------------------------------------------------------------


def test_script_ends_with_a_table_and_a_report(finished, tmp_path, script):
    pytest.importorskip("privacy.report")
    _, log = finished
    copy_of(log, tmp_path / "log")
    done = script("privacy-audit", "--cf", write(tmp_path / "a.yaml", sections(tmp_path / "log")))
    assert done.code == 0, done.err
    assert "RMIA, offline" in done.out and "TPR@0.1%FPR" in done.out
    report = tmp_path / "log" / "report"
    for name in ("attack_result_average.csv", "report.html", "result.json", "ROC_average.png", "ROC_log_average.png"):
        assert (report / name).stat().st_size > 0, name
    assert json.loads((report / "result.json").read_text())["context"]["config"]["run"]["log_dir"] == "log"
    assert str(tmp_path) not in (report / "report.html").read_text()


def test_bad_flags_and_configs_are_one_line(tmp_path, script):
    config = write(tmp_path / "a.yaml", "run: {log_dir: x, sed: 1}\ndata: {dataset: digits}")
    for arguments, words in ((("--cf", config), "run.sed is unknown; did you mean"), (("--stop_at", "x"), "--help")):
        done = script("privacy-audit", *arguments)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert words in done.err


def test_nothing_here_unpickles_or_loads_unsafely():
    banned = {"pickle", "dill", "joblib", "cloudpickle", "marshal"}
    for file in [*(ROOT / "privacy").glob("*.py"), ROOT / "privacy-audit.py", *(ROOT / "dataset").glob("t*.py")]:
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            assert not banned & {name.split(".")[0] for name in names}, file
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in (
                    "eval",
                    "exec",
                    "torch.load",
                    "torch.save",
                    "yaml.unsafe_load",
                    "yaml.full_load",
                ), file
                if called == "np.load":
                    assert "allow_pickle=False" in ast.unparse(node), file
