"""An audit from files alone: what models said about records, in a table, and who was trained on what.

No model is opened and nothing is trained.

A folder holds scores.yaml and one table (CSV, Parquet or .npz) with a row for each record:

    table: scores.csv
    values: losses              # or probabilities, or logits
    member: member              # column: 1 the target was trained on it, 0 not (the hold-out)
    target: loss                # a column, or a list of columns: one for each class, with label
    references:                 # optional: other models of the same kind
      - {values: loss_1, member: in_1}

What can be said depends on what is there (`knows`): with the target's scores of members alone nothing about membership;
with a hold-out, attacks without references; with references, all of them.
Public: run, Scores, Reference, load, read_table, KNOWS, SETTINGS_FILE.
"""

import sys
import zipfile
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field, ValidationError

import utils
from attacks import signals as scales
from kit import files
from kit.environment import software_versions
from kit.errors import UserError, optional
from privacy.config import Section, Share, read
from privacy.signals import Signals

SETTINGS_FILE = "scores.yaml"
SKETCH = f"write {SETTINGS_FILE} with table, values, target and member; privacy/README.md shows one"
MOST_BYTES, MOST_ROWS = 4 * 2**30, 50_000_000
# A probability of exactly 1 was rounded; this is the rest that float64 could still have told.
LEAST_REST = 2.0**-53
KNOWS = {
    "target": (
        "the target's scores alone: how sure the model is, and nothing about who was in its training set",
        "records that the target was not trained on (member 0), like the others in all else",
    ),
    "hold-out": (
        "the target's scores of members and of a hold-out: attacks without reference models",
        "the scores of one or more reference models: attacks with them find more",
    ),
    "references": ("scores of target and reference models: all attacks that these models allow", None),
}


class Reference(Section):
    """A model of the same kind: its columns, and the column that says what it was trained on (missing: on none)."""

    values: str | list[str]
    member: str | None = None


class Scores(Section):
    """scores.yaml."""

    table: str = Field(min_length=1)
    values: Literal["losses", "probabilities", "logits"]
    target: str | list[str]
    member: str | None = None
    label: str | None = None
    references: list[Reference] = Field([])
    population: str | None = None  # column: 1 for records that the attacker compares others with
    features: list[str] = Field([])
    groups: list[str] = Field([])
    name: str = "scores"
    attacks: str | list[str] = "all"
    every_model_as_target: bool = False
    fprs: list[Share] = Field([1e-2, 1e-3, 1e-4, 0.0], min_length=1)
    offline_a: Share | None = None
    epsilon: dict | None = None
    random_seed: int = Field(1, ge=0)


def load(folder):
    """The `Scores` of a folder. Raises UserError that names the file, the field and what is wrong with it."""
    path = Path(folder) / SETTINGS_FILE
    content = read(path, SKETCH)
    if not isinstance(content, dict):
        raise UserError(f"{path} has no fields", advice=SKETCH)
    try:
        return Scores.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        message = (
            f"is unknown; there are {', '.join(Scores.model_fields)}"
            if first["type"] == "extra_forbidden"
            else f"is wrong: {first['msg'].removeprefix('Value error, ')}"
        )
        raise UserError(f"{path}: {place} {message}", advice=SKETCH if first["type"] == "missing" else None) from None


def run(folder, out, settings, clock):
    """Audit a folder and write the report to `out`: (results of `attack.run_attacks`, or None with the target alone;
    what the files know, a key of KNOWS). Raises UserError."""
    from privacy.attack import run_attacks
    from privacy.pipeline import attack_names
    from privacy.report import write_report

    with clock.stage("data"):
        found, knows = _signals(folder, settings)
    if knows == "target":
        files.write_json(Path(out) / "result.json", _alone(found))
        return None, knows
    with clock.stage("audit"):
        results = run_attacks(
            found,
            {
                "attacks": attack_names(settings.attacks),
                "gamma": 2.0,
                "a": settings.offline_a,
                "fprs": settings.fprs,
                "seed": settings.random_seed,
                "groups": settings.groups or None,
                "epsilon": settings.epsilon,
            },
        )
    with clock.stage("report"):
        write_report(out, found, results, _context(found, settings, knows, clock))
    return results, knows


def read_table(path, columns):
    """{column: array (N,) or, of .npz files, (N, C)} of those columns; nothing in a file is executed. UserError."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist", advice=f"name the table in {SETTINGS_FILE}")
    if path.stat().st_size > MOST_BYTES:
        raise UserError(f"{path} has more than {MOST_BYTES // 2**30} GiB", advice="give fewer records or columns")
    readers = {".csv": _csv, ".parquet": _parquet, ".npz": _npz}
    if path.suffix.lower() not in readers:
        raise UserError(f"{path} is none of {', '.join(readers)}", advice="save the table as one of them")
    found = readers[path.suffix.lower()](path, columns)
    missing = [name for name in columns if name not in found]
    if missing:
        raise UserError(f"{path} has no column {missing[0]!r}", advice=f"check the names in {SETTINGS_FILE}")
    lengths = {len(values) for values in found.values()}
    if len(lengths) > 1 or min(lengths) < 2 or max(lengths) > MOST_ROWS:
        raise UserError(
            f"{path} has columns of {min(lengths)} to {max(lengths)} rows", advice="give a row for each record"
        )
    return found


def _csv(path, columns):
    import pandas

    try:
        table = pandas.read_csv(path, usecols=lambda name: name in columns, low_memory=False)
    except (ValueError, UnicodeDecodeError) as error:  # pandas' own errors among them
        raise UserError(
            f"{path} is no table in CSV ({str(error).splitlines()[0]})", advice="save it in UTF-8"
        ) from None
    return {str(name): table[name].to_numpy() for name in table.columns}


def _parquet(path, columns):
    parquet = optional("pyarrow.parquet", "a table in Parquet", "pyarrow")
    try:
        opened = parquet.ParquetFile(path)
        if opened.metadata.num_rows > MOST_ROWS:
            raise UserError(f"{path} has {opened.metadata.num_rows} rows", advice=f"at most {MOST_ROWS} are read")
        table = opened.read([name for name in columns if name in opened.schema_arrow.names])
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is no table in Parquet ({str(error).splitlines()[0]})", advice="save it again"
        ) from None
    return {name: table.column(name).to_numpy() for name in table.column_names}


def _npz(path, columns):
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError):
        unpacked = 0  # read_arrays says what is wrong
    if unpacked > MOST_BYTES:
        raise UserError(
            f"{path} unpacks to more than {MOST_BYTES // 2**30} GiB", advice="give fewer records or columns"
        )
    return {name: values for name, values in files.read_arrays(path).items() if name in columns}


def _signals(folder, settings):
    """(`Signals`, a key of KNOWS) of a folder."""
    folder = Path(folder)
    path = folder / settings.table
    # A settings file that came along with the table must not choose what else is read here.
    if Path(settings.table).name != settings.table or path.resolve().parent != folder.resolve():
        raise UserError(
            f"{SETTINGS_FILE}: the table {settings.table!r} must lie in {folder}", advice="give its name alone"
        )
    models = [Reference(values=settings.target, member=settings.member), *settings.references]
    singles = [
        settings.label,
        settings.population,
        *settings.features,
        *settings.groups,
        *(one.member for one in models),
    ]
    columns = {name for name in singles if name} | {name for one in models for name in _names(one.values)}
    table = read_table(path, columns)
    count = len(next(iter(table.values())))
    for name in (name for name in singles if name):
        if table[name].ndim != 1:
            raise UserError(f"{path}: {name} has the shape {table[name].shape}", advice="give one value a record")
    labels, classes = _labels(table, settings, count)
    parts = [_of_model(_values(table, one.values, path), settings.values, labels, one.values, path) for one in models]
    inside = np.stack(
        [
            np.zeros(count, dtype=bool) if one.member is None else _binary(table[one.member], one.member, path)
            for one in models
        ]
    )
    alone = settings.member is None or inside[0].all() or not inside[0].any()
    outside = np.zeros(count, dtype=bool) if alone else _population(table, settings, inside, path)
    known = _comparable(inside, settings)
    audited, others = np.flatnonzero(~outside & known), np.flatnonzero(outside)
    if left := count - len(audited) - len(others):
        print(f"note: {left} records that all references were trained on are left out", file=sys.stderr)
    features, categorical = _features(table, settings, labels, classes, path)
    losses, scaled = (np.stack([part[place] for part in parts]).astype(np.float32)[:, None] for place in (0, 1))
    hits = None if parts[0][2] is None else np.stack([part[2] for part in parts])[:, None]
    found = Signals(
        losses=losses[..., audited],
        scaled=scaled[..., audited],
        correct=np.zeros((len(models), len(audited)), dtype=bool) if hits is None else hits[:, 0, audited],
        membership=inside[:, audited],
        population_losses=losses[..., others],
        population_scaled=scaled[..., others],
        labels=labels[audited],
        population_labels=labels[others],
        records=audited,
        class_names=classes,
        groups={name: table[name][audited] for name in settings.groups},
        target_ids=list(range(len(models))) if settings.every_model_as_target else [0],
        image_of=None,
        hits=None if hits is None else hits[..., audited],
        population_hits=None if hits is None else hits[..., others],
        features=None if features is None else features[audited],
        population_features=None if features is None else features[others],
        categorical=categorical,
    )
    return found, "target" if alone else "references" if settings.references else "hold-out"


def _names(values):
    return [values] if isinstance(values, str) else values


def _values(table, names, path):
    """Floats (N,), or (N, C) of several columns or of an array."""
    parts = [table[name] for name in _names(names)]
    if any(part.dtype.kind not in "iuf" for part in parts) or any(part.ndim > 1 for part in parts[1:]):
        raise UserError(f"{path}: {_names(names)[0]} holds no numbers", advice="give numbers, and a point in decimals")
    values = parts[0] if len(parts) == 1 else np.stack(parts, axis=1)
    values = values.astype(np.float64)
    if values.ndim > 2 or not np.isfinite(values).all():
        raise UserError(
            f"{path}: {_names(names)[0]} is empty or not finite for {int((~np.isfinite(values)).sum())} records",
            advice="every model needs a value for every record",
        )
    return values


def _of_model(values, kind, labels, names, path):
    """(losses float64 (N,), logit-scaled confidences (N,), whether the top class is right bool (N,) or None)."""
    name = _names(names)[0]
    if values.ndim == 2 and kind == "losses":
        raise UserError(f"{path}: losses have one column a model", advice="or say values: logits")
    if values.ndim == 2 and labels.min() < 0:
        raise UserError(f"{path}: {name} has a value for each class", advice="name the column label, too")
    if values.ndim == 2 and (values.shape[1] < 2 or labels.max() >= values.shape[1]):
        raise UserError(
            f"{path}: {name} has {values.shape[1]} classes, and labels go up to {labels.max()}",
            advice="give a column for each class, in the order of the labels 0, 1, ...",
        )
    if kind == "losses":
        return scales.as_losses(values, f"{path}: {name}"), scales.scaled_from_losses(values), None
    if kind == "logits":
        if values.ndim == 1:  # of the right class against all others
            return scales.losses_from_scaled(values), values, values > 0
        found = utils.sample_signals(torch.from_numpy(values), torch.from_numpy(labels))
        return found["cross_entropy"].numpy(), -found["scaled_loss"].numpy(), found["correct"].numpy().astype(bool)
    return _of_probabilities(values, labels, f"{path}: {name}")


def _of_probabilities(values, labels, where):
    if values.min() < 0 or values.max() > 1 + 1e-6:
        raise UserError(
            f"{where} goes from {values.min():.3g} to {values.max():.3g}", advice="are these logits or losses?"
        )
    if values.ndim == 1:
        right, rest, hits = values, 1 - values, None
    else:
        if np.abs(values.sum(axis=1) - 1).max() > 0.01:
            raise UserError(f"{where}: probabilities of a record do not sum to 1", advice="are these logits?")
        rows = np.arange(len(values))
        right = values[rows, labels]
        # Of the others, and not 1 - p: that has no digits left where p is near 1.
        others = values.copy()
        others[rows, labels] = 0
        rest, hits = others.sum(axis=1), values.argmax(axis=1) == labels
    right, rest = np.clip(right, np.finfo(np.float64).tiny, 1), np.clip(rest, LEAST_REST, None)
    return -np.log(right), np.log(right) - np.log(rest), hits


def _labels(table, settings, count):
    """(int64 (N,), names of the classes); -1 for all where there is no label."""
    if settings.label is None:
        return np.zeros(count, np.int64) if isinstance(settings.target, str) and _is_single(
            table, settings
        ) else np.full(count, -1), ["all"]
    values = table[settings.label]
    if values.dtype.kind in "iu" or (
        values.dtype.kind == "f" and np.isfinite(values).all() and (values % 1 == 0).all()
    ):
        labels = values.astype(np.int64)
        if labels.min() < 0 or labels.max() > 1_000_000:
            raise UserError(f"{settings.label} goes from {labels.min()} to {labels.max()}", advice="give 0, 1, ...")
        return labels, [str(label) for label in range(labels.max() + 1)]
    names, labels = np.unique(values.astype(str), return_inverse=True)
    if not _is_single(table, settings):
        raise UserError(
            f"{settings.label} has names of classes, and which column belongs to which is not known",
            advice="give numbers 0, 1, ... in the order of the columns",
        )
    return labels.astype(np.int64), names.tolist()


def _is_single(table, settings):
    return len(_names(settings.target)) == 1 and table[_names(settings.target)[0]].ndim == 1


def _binary(values, name, path):
    known = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
    words = np.char.lower(values.astype(str))
    wrong = np.setdiff1d(words, list(known))
    if len(wrong):
        raise UserError(f"{path}: {name} has the value {wrong[0][:40]!r}", advice="it must be 1 or 0 for every record")
    return np.isin(words, [word for word, value in known.items() if value])


def _population(table, settings, inside, path):
    """Which records others are compared with: those named; else those that no model was trained on, or half of them
    where they are needed as non-members of the target, too."""
    free = ~inside.any(axis=0)
    if settings.population is not None:
        chosen = _binary(table[settings.population], settings.population, path)
        if (chosen & ~free).any():
            raise UserError(
                f"{path}: {int((chosen & ~free).sum())} records of the population are some model's training records",
                advice="take others",
            )
        if not (~chosen & ~inside[0]).any():
            raise UserError(f"{path}: the population has every non-member", advice="leave some of them out of it")
        return chosen
    rows = np.flatnonzero(free)
    others = int((~inside[0]).sum()) - len(rows)
    if others < len(rows):
        rows = np.sort(utils.key_generator(settings.random_seed, "population").permutation(rows)[: len(rows) // 2])
    chosen = np.zeros(len(free), dtype=bool)
    chosen[rows] = True
    return chosen


def _comparable(inside, settings):
    """Records for which every target has a reference that was not trained on them, bool (N,).

    Whether that is so is decided by the references' training sets alone, and so alike for members and non-members.
    """
    if not settings.references:
        return np.ones(inside.shape[1], dtype=bool)
    if not settings.every_model_as_target:
        return ~inside[1:].all(axis=0)
    counts = (~inside).sum(axis=0)
    return (counts - ~inside >= 1).all(axis=0)


def _features(table, settings, labels, classes, path):
    """(float64 (N, F) or None, numbers of those that are names): the columns named, and the class where it is known."""
    parts, categorical = [], []
    if len(classes) > 1:
        parts.append(labels.astype(np.float64))
        categorical += [0] if len(classes) <= 255 else []
    for name in settings.features:
        values = table[name]
        if values.dtype.kind in "iufb":
            parts.append(values.astype(np.float64))
            continue
        names, places = np.unique(values.astype(str), return_inverse=True)
        if len(names) > 255:
            raise UserError(f"{path}: the feature {name} has {len(names)} different names", advice="leave it out")
        categorical.append(len(parts))
        parts.append(places.astype(np.float64))
    return (np.stack(parts, axis=1) if parts else None), tuple(categorical)


def _alone(found):
    """What the target's scores say by themselves."""
    losses = found.losses[0, 0].astype(np.float64)
    return {
        "format": "membershiptracker-privacy-scores-1",
        "knows": "target",
        "can": KNOWS["target"][0],
        "missing": KNOWS["target"][1],
        "records": len(losses),
        "mean_loss": float(losses.mean()),
        "median_loss": float(np.median(losses)),
        "probability_above_99_percent": float((losses < -np.log(0.99)).mean()),
    }


def _context(found, settings, knows, clock):
    known = found.hits is not None
    return {
        "config": settings.model_dump(),
        "dataset": settings.name,
        "kind": settings.values,
        "model_name": "scores from files",
        "models": len(found.membership),
        "targets": len(found.target_ids),
        "known": KNOWS[knows][0],
        "outside": True,
        "accuracy": [
            {
                "model": number,
                "train": float(hits[inside].mean()) if inside.any() else None,
                "test": float(hits[~inside].mean()) if not inside.all() else None,
            }
            for number, (hits, inside) in enumerate(zip(found.correct, found.membership, strict=True))
        ]
        if known
        else [],
        "seconds": {name: round(seconds, 2) for name, seconds in clock.seconds.items()},
        "versions": software_versions(),
    }
