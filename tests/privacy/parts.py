"""What the tests of privacy-audit.py's pipeline share: a small config, and a finished audit."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from attacks import membership
from attacks.signals import losses_from_scaled
from kit.errors import UserError
from privacy import config as configuration
from privacy import data

MLP = {"model_name": "mlp", "hidden": [16], "epochs": 4, "batch_size": 32, "learning_rate": 0.05, "device": "cpu"}


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


def copy_of(folder, target):
    shutil.copytree(folder, target)
    return target


SETTINGS = {
    "attacks": "all",
    "num_ref_models": None,
    "gamma": 2.0,
    "a": None,
    "fprs": [1e-2, 1e-3, 1e-4, 0.0],
    "seed": 1,
    "ramia": None,
    "duci": None,
    "epsilon": None,
    "groups": [],
    "resamples": 100,
}


def world(models=8, queries=1, records=400, population=300, leak=1.5, seed=0, classes=4, targets=None, **changes):
    """Signals of models that raise the confidence in members by `leak` on average, in some records more."""
    draws = np.random.default_rng(seed)
    inside = membership.balanced(models, records, seed)
    gain = leak * draws.gamma(1, 1, records)
    hardness, others = draws.normal(1, 1.5, records), draws.normal(1, 1.5, population)
    scaled, outside = (
        (values + added)[:, None] + draws.normal(0, 0.7, (models, queries, len(values)))
        for values, added in ((hardness, inside * gain), (others, np.zeros((models, population))))
    )
    fields = {
        "membership": inside,
        "labels": np.arange(records) % classes,
        "population_labels": np.arange(population) % classes,
        "records": np.arange(records) + 1000,
        "class_names": [f"class {number}" for number in range(classes)],
        "groups": {},
        "target_ids": list(range(models)) if targets is None else targets,
        "image_of": None,
        # What is seen of a record's difficulty from outside.
        "features": (hardness + draws.normal(0, 0.7, records))[:, None],
        "population_features": (others + draws.normal(0, 0.7, population))[:, None],
        "categorical": (),
        **changes,
    }
    return with_scaled(SimpleNamespace(**fields), scaled, outside)


def with_scaled(signals, scaled, outside):
    scaled, outside = scaled.astype(np.float32), outside.astype(np.float32)
    return SimpleNamespace(
        **{
            **vars(signals),
            "scaled": scaled,
            "correct": scaled[:, 0] > 0,
            "hits": scaled > 0,
            "population_hits": outside > 0,
            # At an earlier checkpoint everything was less sure.
            "trajectories": losses_from_scaled(np.stack([scaled[:, 0] / 2 - 1, scaled[:, 0]], axis=1)),
            "losses": losses_from_scaled(scaled).astype(np.float32),
            "population_scaled": outside,
            "population_losses": losses_from_scaled(outside).astype(np.float32),
        }
    )


def poisoned(signals, model):
    """The same world, but this model's signals are noise."""
    draws = np.random.default_rng(99)
    scaled, outside = signals.scaled.copy(), signals.population_scaled.copy()
    scaled[model], outside[model] = draws.normal(0, 5, scaled[model].shape), draws.normal(0, 5, outside[model].shape)
    return with_scaled(signals, scaled, outside)


def planned(config):
    records = data.load(config.data)
    return records, data.plan(config, records)
