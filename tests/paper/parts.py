"""What the tests of the paper's tables share: result files as runs leave them."""

import json

from paper import ablation, tables

BASE = {
    "dataset": "photos",
    "net_type": "smallnet",
    "train_size": 1500,
    "epoch": 200,
    "device": "cpu",
    "data": "d",
    "lr": 0.1,
    "batch_size": 64,
    "precision": "float32",
    "marked_samples_per_user": 8,
    "img_blending_ratio": 0.7,
    "noise_injection_type": "perlin",
    "noise_norm": 8.0,
    "ood_pattern": "color_stripes",
    "seed": 1,
    "clean_train": 0,
}


def write(folder, accuracy, false, users=(4,), from_training=True, exact=None, more=None, **settings):
    """A result.json with `false` false positives of 1,000 non-member users; exact: p of the target users."""
    folder.mkdir(parents=True)
    result = {
        "settings": {"training": {**BASE, **settings}},
        "audit": {
            "set": {"false_positives": false, "non_members": 1000, "auc": 1.0},
            "instance": {"false_positives": 8 * false, "non_members": 8000, "auc": 0.9},
        },
        "countermeasure": more or {},
        "verdict": {
            "users": [
                {"class": label, "trained_on": True, "exact_p": p}
                for label, p in zip(users, exact or [None] * len(users), strict=True)
            ]
            + [{"class": label, "trained_on": False} for label in users],
            "targets_detected": len(users),
            "controls_detected": 0,
        },
        "accuracy": {"test": accuracy},
        "seconds": {"train": 9.0, "audit": 1.0},
        "hardware": {"train": "a processor"},
    }
    (folder / "result.json").write_text(json.dumps(result))
    if from_training:
        (folder / "config.json").write_text("{}")


def rows(folder, sweep, table):
    frame = tables.collect(folder)
    marked, clean = frame[frame["clean_train"] == 0], frame[frame["clean_train"] == 1]
    return tables.summarize(tables.choose(marked, table), clean, table).to_dict("records")


MANY = (1, 2, 3)


def table(folder, name):
    return ablation.ABLATIONS[name](tables.collect(folder)).to_dict("records")
