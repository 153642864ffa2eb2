"""Tables: one row a record, from a NumPy or CSV file or from those that come with scikit-learn.

Public: TableData, checked_table, load_file, load_embedded, read_numbers, EMBEDDED. Files are read without pickle.
"""

import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kit.errors import UserError
from kit.files import read_arrays

EMBEDDED = ("digits", "breast_cancer", "wine", "iris")  # inside scikit-learn: no download
FEATURE_NAMES, LABEL_NAMES = ("features", "x", "X", "data"), ("labels", "y", "Y", "targets")


@dataclass(frozen=True)
class TableData:
    """A labelled table.

    features: float32 (N, F), finite; None where there are labels alone (for models whose answers are stored);
    labels: int64 (N,) in [0, len(class_names)); groups: {name: array (N,)}, columns that are no features.
    """

    name: str
    features: np.ndarray | None
    labels: np.ndarray
    class_names: tuple
    groups: dict = field(default_factory=dict)


def checked_table(name, features, labels, class_names=None, groups=None) -> TableData:
    """A TableData of arrays: labels may be numbers or words of any kind, or one-hot rows. Raises UserError."""
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] > 1:
        if not (np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all()):
            raise UserError(f"data set {name}: labels {labels.shape} are neither one a record nor one-hot rows")
        labels, known = labels.argmax(axis=1), [str(number) for number in range(labels.shape[1])]
    else:
        known, labels = np.unique(labels.ravel(), return_inverse=True)
        known = [_plain(value) for value in known]
    if class_names is not None and len(class_names) >= len(known):
        known = list(class_names)
    if len(known) < 2:
        raise UserError(
            f"data set {name}: all {len(labels)} labels are {known[0] if known else 'missing'}",
            advice="a classifier needs two classes or more",
        )
    if features is not None:
        features = np.asarray(features)
        if features.ndim != 2 or len(features) != len(labels) or features.dtype.kind not in "fiub":
            raise UserError(
                f"data set {name}: features are {features.dtype} {features.shape}, not numbers (records, "
                f"features) for {len(labels)} labels"
            )
        features = features.astype(np.float32)
        if not np.isfinite(features).all():
            row = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])
            raise UserError(
                f"data set {name}: record {row} has a feature that is missing or not finite",
                advice="fill it or leave the record out",
            )
    for group, values in (groups or {}).items():
        if len(values) != len(labels):
            raise UserError(f"data set {name}: {len(values)} values of the group {group} for {len(labels)} records")
    return TableData(name, features, labels.astype(np.int64), tuple(map(str, known)), dict(groups or {}))


def load_file(path, label=None, groups=()) -> TableData:
    """A table of one's own: .npz (arrays `features` and `labels`, or x and y; further arrays may be groups) or .csv.

    A CSV file starts with the columns' names, or has numbers alone; label: the column of labels by name or number
    (default: the last); groups: columns that divide records into groups and are no features. Columns of words become
    one feature for each word. Raises UserError.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"table {path} does not exist", advice="give a .npz or .csv file with data_dir")
    if path.suffix.lower() == ".npz":
        return _of_arrays(path, groups)
    if path.suffix.lower() == ".csv":
        return _of_csv(path, label, groups)
    raise UserError(f"table {path} is not read here", advice="give .npz or .csv")


def load_embedded(name) -> TableData:
    """A table of EMBEDDED."""
    from sklearn import datasets

    found = getattr(datasets, f"load_{name}")()
    return checked_table(name, found.data, found.target, found.target_names)


def read_numbers(path, dtype=np.float32):
    """A text file of numbers with commas and no names: an array (lines, columns). Raises UserError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's about an empty file; said below
            numbers = np.loadtxt(path, dtype=dtype, delimiter=",", ndmin=2)
    except FileNotFoundError:
        raise
    except (ValueError, UnicodeDecodeError, OSError) as error:
        raise UserError(
            f"{path} is not a table of numbers with commas ({error})", advice="get an undamaged copy"
        ) from None
    if not numbers.size:
        raise UserError(f"{path} is empty", advice="get an undamaged copy")
    return numbers


def _plain(value):
    # 1.0 in a column of numbers is the class 1.
    return str(int(value)) if isinstance(value, np.floating) and value == int(value) else str(value)


def _of_arrays(path, groups):
    arrays = read_arrays(path)
    names = [next((name for name in known if name in arrays), None) for known in (FEATURE_NAMES, LABEL_NAMES)]
    if names[1] is None:
        raise UserError(
            f"{path} has the arrays {', '.join(arrays) or 'none'}", advice="it needs labels (or y), and features (or x)"
        )
    missing = [group for group in groups if group not in arrays]
    if missing:
        raise UserError(f"{path} has no array {missing[0]!r} for a group", advice=f"there are {', '.join(arrays)}")
    classes = arrays.get("class_names")
    return checked_table(
        path.stem,
        None if names[0] is None else arrays[names[0]],
        arrays[names[1]],
        None if classes is None else [str(one) for one in classes],
        {group: arrays[group] for group in groups},
    )


def _of_csv(path, label, groups):
    import pandas as pd

    try:
        # A first line of numbers alone is a record.
        first = pd.read_csv(path, header=None, nrows=1, dtype=str).iloc[0]
        header = None if pd.to_numeric(first, errors="coerce").notna().all() else 0
        frame = pd.read_csv(path, header=header, skipinitialspace=True)
    except (ValueError, UnicodeDecodeError, pd.errors.ParserError, IndexError) as error:
        raise UserError(f"{path} can't be read as CSV ({' '.join(str(error).split())[:120]})") from None
    frame.columns = [str(name).strip() for name in frame.columns]
    label = frame.columns[-1] if label is None else str(label)
    missing = [name for name in (label, *groups) if name not in frame.columns]
    if missing:
        raise UserError(f"{path} has no column {missing[0]!r}", advice=f"there are {', '.join(frame.columns[:20])}")
    features = pd.get_dummies(frame.drop(columns=[label, *groups]))
    if frame[label].isna().any():
        raise UserError(f"{path}: record {int(frame[label].isna().argmax())} has no {label}")
    return checked_table(
        path.stem,
        features.to_numpy(np.float32),
        frame[label].to_numpy(),
        groups={name: frame[name].to_numpy(dtype=str) for name in groups},
    )
