"""Membership signals of many models: computed one model after the other, stored with what they depend on.

One file for each model, <log_dir>/signals/model_<id>.npz, with its settings inside: the model's digest, the data's
fingerprint, the rows that were asked about, and how. A file that was made with others is refused by name, so that
signals of two configurations are never mixed. No more than one model is in memory.
Public: Signals, Source, collect, model_digest.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kit import files
from kit.progress import Progress
from privacy import features
from privacy.data import digest_of
from privacy.models import ask

SIDES = ("", "population_")


@dataclass(frozen=True)
class Signals:
    """What the attacks see: M models, Q augmented queries a record, N audited records, Z population records."""

    losses: np.ndarray  # float32 (M, Q, N): cross entropy of every model on every augmented query of every record
    scaled: np.ndarray  # float32 (M, Q, N): log p_y - log(1 - p_y)
    correct: np.ndarray  # bool (M, N): whether the top class is right, on the record as it is
    membership: np.ndarray  # bool (M, N): which model was trained on which record
    population_losses: np.ndarray  # float32 (M, Q, Z): records that no model was trained on (OUT for all)
    population_scaled: np.ndarray  # float32 (M, Q, Z)
    labels: np.ndarray  # int64 (N,)
    population_labels: np.ndarray  # int64 (Z,)
    records: np.ndarray  # int64 (N,): row of each audited record in the data set
    class_names: list
    groups: dict  # {name: array (N,)}: further groupings for the risk of each group; may be empty
    target_ids: list  # which of the M models are audited as targets; the others are references only
    image_of: object  # None, or a function: row -> uint8 tensor (3, H, W)
    hits: np.ndarray | None = None  # bool (M, Q, N): whether the top class of each query is right; None: not known
    population_hits: np.ndarray | None = None  # bool (M, Q, Z)
    features: np.ndarray | None = None  # float32 (N, F), of the records alone (see `features.of`); None: not known
    population_features: np.ndarray | None = None  # float32 (Z, F)
    categorical: tuple = ()  # numbers of the features that are names and not amounts
    trajectories: np.ndarray | None = None  # float32 (M, C, N): losses at C checkpoints; None: none were kept


@dataclass(frozen=True)
class Source:
    """A model that can be asked: its file, and how to open it (called only where its signals aren't stored yet)."""

    path: Path
    open: Callable


def collect(sources, records, plan, targets, queries, batch_size, folder, precision):
    """Ask every model about audited and population records: (Signals, accuracies).

    sources: a Source for each model; plan: `data.Plan`; targets: the numbers of those audited; queries: names of
    config.QUERIES, or how many stored queries there are; folder: where files are kept or taken from. accuracies:
    [{"model", "train", "test"}], shares of the audited members and of the population whose top class is right.
    Raises UserError for files that were made with other settings.
    """
    asked = list(queries) if not isinstance(queries, int) else list(range(queries))
    shapes = {
        "": (len(sources), len(asked), len(plan.audited)),
        "population_": (len(sources), len(asked), len(plan.population)),
    }
    arrays = {side + name: np.empty(shapes[side], dtype=np.float32) for side in SIDES for name in ("losses", "scaled")}
    hits = {side: np.empty(shapes[side], dtype=bool) for side in SIDES}
    wanted = {
        "data": records.fingerprint,
        "audited": digest_of(plan.audited),
        "precision": precision,
        "population": digest_of(plan.population),
        "queries": list(map(str, asked)),
    }
    for number, source in enumerate(Progress(sources, "signals", leave=True)):
        stored = _of_model(Path(folder) / f"model_{number}.npz", source, records, plan, asked, batch_size, wanted)
        for name, values in arrays.items():
            values[number] = stored[name]
        for side in SIDES:
            hits[side][number] = stored[f"{side}hits"]
    membership = plan.memberships[:, plan.audited]
    accuracies = [
        {"model": number, "train": float(hits[inside].mean()) if inside.any() else None, "test": float(others.mean())}
        for number, (hits, inside, others) in enumerate(
            zip(hits[""][:, 0], membership, hits["population_"][:, 0], strict=True)
        )
    ]
    labels = records.labels.numpy()
    known, categorical = features.of(records, np.concatenate([plan.audited, plan.population]))
    image_of = None if records.kind != "images" else lambda row: records.inputs[np.array([row])][0]
    return Signals(
        **arrays,
        correct=hits[""][:, 0],
        membership=membership,
        labels=labels[plan.audited],
        population_labels=labels[plan.population],
        records=plan.audited,
        class_names=list(records.class_names),
        groups={name: values[plan.audited] for name, values in records.groups.items()},
        target_ids=list(targets),
        image_of=image_of,
        hits=hits[""],
        population_hits=hits["population_"],
        features=known[: len(plan.audited)],
        population_features=known[len(plan.audited) :],
        categorical=categorical,
    ), accuracies


def _of_model(path, source, records, plan, queries, batch_size, wanted):
    """The stored signals of one model, computed first where there are none."""
    wanted = {"model": model_digest(source.path), **wanted}
    if path.exists():
        stored = files.read_arrays(path)
        files.check_same_settings(
            _settings_of(stored),
            wanted,
            path,
            advice="use the same settings, or another run.log_dir, or delete the folder signals",
            command=None,
        )
        if all(f"{side}hits" in stored for side in SIDES):  # files of earlier versions don't have them
            return stored
    model, found = source.open(), {}
    for side, rows in (("", plan.audited), ("population_", plan.population)):
        answers = [ask(model, records, rows, query, batch_size) for query in queries]
        found[f"{side}losses"] = np.stack([one["cross_entropy"] for one in answers]).astype(np.float32)
        found[f"{side}scaled"] = -np.stack([one["scaled_loss"] for one in answers]).astype(np.float32)
        found[f"{side}hits"] = np.stack([one["correct"] for one in answers]).astype(bool)
    files.write_arrays(path, settings=np.array(json.dumps(wanted)), **found)
    return found


def model_digest(path):
    """SHA-256 of a model's file, 64 hex digits; of safetensors without the notes inside, such as training seconds."""
    content = Path(path).read_bytes()
    if Path(path).suffix == ".safetensors":
        start = 8 + int.from_bytes(content[:8], "little")
        tensors = {name: value for name, value in json.loads(content[8:start]).items() if name != "__metadata__"}
        content = json.dumps(tensors, sort_keys=True).encode() + content[start:]
    return hashlib.sha256(content).hexdigest()


def _settings_of(stored):
    try:
        return json.loads(str(stored["settings"]))
    except (KeyError, ValueError):
        return None
