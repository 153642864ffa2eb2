"""Texts with labels: AG's News from its published CSV files, and any data set of the Hugging Face hub.

Public: TextData, load_agnews, load_hub. The package `datasets` is needed only for the hub; AG's News is read from
`train.csv` and `test.csv` (class from 1 to 4, title, description) where they are in `data_root`.
"""

import csv
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dataset.folders import DEFAULT_ROOT
from dataset.tabular import TableData, checked_table
from kit.errors import UserError, optional

AGNEWS_CLASSES = ("World", "Sports", "Business", "Sci/Tech")


@dataclass(frozen=True)
class TextData:
    """Labelled texts: N strings, labels int64 (N,) in [0, len(class_names)), groups {name: array (N,)}."""

    name: str
    texts: list
    labels: np.ndarray
    class_names: tuple
    groups: dict = field(default_factory=dict)


def load_agnews(data_root=None) -> TextData:
    """AG's News (Zhang et al. 2015): 127,600 headlines with their first sentences, 4 classes. Raises UserError."""
    root = DEFAULT_ROOT / "agnews" if data_root is None else Path(data_root)
    if not (root / "train.csv").is_file():
        found = load_hub("ag_news", root if data_root is not None and root.is_dir() else None)
        return TextData("agnews", found.texts, found.labels, AGNEWS_CLASSES)
    texts, labels = [], []
    for file in (root / "train.csv", root / "test.csv"):
        if file.is_file():
            with open(file, encoding="utf-8", newline="") as lines:
                for number, row in enumerate(csv.reader(lines), 1):
                    if len(row) != 3 or row[0] not in ("1", "2", "3", "4"):
                        if number == 1:
                            continue  # some copies have a line of names
                        raise UserError(f"data set agnews: line {number} of {file} is not class, title, description")
                    labels.append(int(row[0]) - 1)
                    texts.append(f"{row[1]} {row[2]}")
    if not texts:
        raise UserError(f"data set agnews: {root / 'train.csv'} is empty", advice="get an undamaged copy")
    return TextData("agnews", texts, np.array(labels, dtype=np.int64), AGNEWS_CLASSES)


def load_hub(name, data_root=None, label=None, groups=()) -> TextData | TableData:
    """A data set of the Hugging Face hub, or of a folder of its `save_to_disk`: all splits, one after the other.

    A column of strings makes it texts, else all columns of numbers are features. label: the column of labels (default:
    "label" or "labels", else the last). Code that a data set brings along is not run. Raises UserError.
    """
    datasets = optional("datasets", f"data set hf:{name}")
    try:
        found = datasets.load_from_disk(str(data_root)) if data_root is not None else datasets.load_dataset(name)
    except Exception as error:  # the hub's errors have no class in common
        raise UserError(f"data set hf:{name} can't be loaded ({' '.join(str(error).split())[:160]})") from None
    parts = list(found.values()) if isinstance(found, datasets.DatasetDict) else [found]
    return _of_columns(name, parts, label, groups)


def _of_columns(name, parts, label, groups):
    features = parts[0].features
    label = (
        str(label)
        if label is not None
        else next((one for one in ("label", "labels") if one in features), list(features)[-1])
    )
    missing = [one for one in (label, *groups) if one not in features]
    if missing:
        raise UserError(f"data set hf:{name} has no column {missing[0]!r}", advice=f"there are {', '.join(features)}")
    labels = np.concatenate([np.asarray(part[label]) for part in parts])
    chosen = {one: np.concatenate([np.asarray(part[one]) for part in parts]) for one in groups}
    rest = [one for one in features if one not in (label, *groups)]
    words = [one for one in rest if getattr(features[one], "dtype", None) in ("string", "large_string")]
    if not words:
        numbers = [one for one in rest if str(getattr(features[one], "dtype", "")).startswith(("int", "float", "bool"))]
        if not numbers:
            raise UserError(
                f"data set hf:{name} has neither texts nor numbers beside {label}",
                advice=f"there are {', '.join(features)}",
            )
        columns = np.concatenate([np.stack([np.asarray(part[one]) for one in numbers], axis=1) for part in parts])
        return checked_table(name, columns, labels, getattr(features[label], "names", None), chosen)
    texts = [" ".join(row) for part in parts for row in zip(*(part[one] for one in words), strict=True)]
    known = checked_table(name, None, labels, getattr(features[label], "names", None), chosen)
    return TextData(name, texts, known.labels, known.class_names, chosen)
