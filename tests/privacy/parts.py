"""What the tests of privacy-audit.py's pipeline share: a small config, and a finished audit."""

import shutil

import pytest
import yaml

from kit.errors import UserError
from privacy import config as configuration
from privacy import pipeline

MLP = {"model_name": "mlp", "hidden": [16], "epochs": 4, "batch_size": 32, "learning_rate": 0.05, "device": "cpu"}


@pytest.fixture(autouse=True)
def _on_this_machine(monkeypatch):
    monkeypatch.delenv("LAUNCHER", raising=False)
    monkeypatch.delenv("JOBS", raising=False)


def sections(folder, **changes):
    """The sections of a small config; changes: {"section.key": value}."""
    made = {
        "run": {"log_dir": str(folder), "num_experiments": 4},
        "audit": {"device": "cpu", "algorithm": "RMIA"},
        "train": dict(MLP),
        "data": {"dataset": "digits", "size": 200},
    }
    for name, value in changes.items():
        section, _, key = name.partition("__")
        made[section][key] = value
    return made


def write(path, content):
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def config_of(folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    return configuration.load(write(folder / "config.yaml", sections(folder / "log", **changes)))


def error_of(function, *arguments, **options):
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A config and its log folder after the stage signals. Tests must not change it."""
    folder = tmp_path_factory.mktemp("finished")
    config = config_of(folder)
    pipeline.run(config, "signals")
    return config, folder / "log"


def copy_of(folder, target):
    shutil.copytree(folder, target)
    return target
