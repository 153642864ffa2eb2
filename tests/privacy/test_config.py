"""privacy-audit.py's configuration: every field documented, every mistake named with its remedy."""

import pytest

from privacy import config as configuration
from privacy import pipeline
from privacy.attack import ATTACKS
from tests.parts import ROOT
from tests.privacy.parts import config_of, error_of, sections, write


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
    table = (ROOT / "privacy" / "README.md").read_text()
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
    assert pipeline.attack_names("RMIA") == ["rmia_offline", "rmia_online"]
    assert pipeline.attack_names(["LOSS", "LiRA"]) == [
        "loss",
        "lira_offline",
        "lira_online",
        "lira_offline_fixed",
        "lira_online_fixed",
    ]
    assert pipeline.attack_names("all") == list(ATTACKS)
    # What is an attack by itself is no family: it was, and lira_offline ran lira_offline_fixed.
    assert pipeline.attack_names(["lira_offline", "label_only"]) == ["lira_offline", "label_only"]
    assert pipeline.attack_names(["BASE", "nothing"]) == ["base_offline", "base_online", "nothing"]
