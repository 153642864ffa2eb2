"""Records by name, and who of them is what: training pool, audited records, population.

Public: Records, Plan, load, plan, plan_of_memberships, digest_of, OWNERS, NOBODY, PAD.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from attacks import membership
from dataset import dataset_names, load_dataset, tabular
from experiment.settings import data_fingerprint
from kit.errors import UserError, optional
from utils import Marking, derive_key, draw_target_users, key_generator, mark_images

TABLES = ("purchase100", "texas100")
PAD = -1  # what follows a text that is shorter than the longest
BYTES = 256  # vocabulary of the tokenizer that needs no file
OWNERS = ("user", "users", "user_id", "user_ids")  # groups of records that are in or out as a whole
NOBODY = ("", "-1", "None", "nan")  # what stands in such a group for a record of nobody


@dataclass(frozen=True)
class Records:
    """A data set as the pipeline sees it; `inputs[rows]`, rows int64 (n,), is what a model gets for these rows.

    kind: "images", uint8 (n, 3, H, W); "table", float32 (n, F); "tokens", int64 (n, L) with PAD at the end; "labels",
    no inputs (None), for models whose answers are stored.
    labels: int64 (N,); is_test: bool (N,), what the data set itself calls test records; groups: {name: array (N,)};
    fingerprint: 16 hex digits that change with the content; vocabulary: number of tokens there are, 0 for other kinds;
    canaries: rows with a wrong label, which alone are audited where there are any.
    """

    name: str
    kind: str
    inputs: object
    labels: torch.Tensor
    class_names: tuple
    is_test: np.ndarray
    groups: dict
    fingerprint: str
    vocabulary: int = 0
    canaries: tuple = ()

    def __len__(self):
        return len(self.labels)

    @property
    def shape(self):
        """Shape of one record's input: (3, H, W), (F,) or (L,)."""
        return tuple(self.inputs.image_shape if self.kind == "images" else self.inputs.shape[1:])


@dataclass(frozen=True)
class Plan:
    """Rows of the data set, int64: `audited` (N,) and `population` (Z,), and which model was trained on which row.

    memberships: bool (M, records), as in memberships.npy; no model was trained on a row of `population`.
    """

    audited: np.ndarray
    population: np.ndarray
    memberships: np.ndarray

    def members(self, model):
        """Rows that a model is trained on, int64, in ascending order."""
        return np.flatnonzero(self.memberships[model])


def load(settings, seed=1):
    """The Records that a config's section `data` names; seed: of marked users (run.random_seed). Raises UserError."""
    records = _load(settings)
    if settings.canaries:
        records = _with_canaries(records, settings.canaries, seed)
    return _with_marked_users(records, settings, seed) if settings.marked_users else records


def _load(settings):
    name, folder = settings.dataset, settings.data_dir
    if name in dataset_names():
        data = load_dataset(name, folder, settings.image_size)
        return Records(
            name, "images", data.images, data.labels, data.class_names, data.is_test.numpy(), {}, data_fingerprint(data)
        )
    if name in tabular.EMBEDDED:
        return _of_table(tabular.load_embedded(name))
    if name in TABLES:
        import importlib

        return _of_table(importlib.import_module(f"dataset.{name}").load(folder))
    if name == "table":
        if folder is None:
            raise UserError("data.dataset table needs data.data_dir, the .npz or .csv file")
        return _of_table(tabular.load_file(folder, settings.label, settings.groups))
    if name == "agnews" or name.startswith("hf:"):
        from dataset import texts

        found = (
            texts.load_agnews(folder)
            if name == "agnews"
            else texts.load_hub(name[3:], folder, settings.label, settings.groups)
        )
        return _of_table(found) if isinstance(found, tabular.TableData) else _of_texts(found, settings)
    import difflib

    known = [*dataset_names(), *tabular.EMBEDDED, *TABLES, "table", "agnews", "hf:NAME"]
    raise UserError(
        f"data.dataset {name!r} is unknown",
        advice=f"did you mean {difflib.get_close_matches(name, known, 1, 0)[0]}? There are {', '.join(known)}",
    )


def _with_canaries(records, count, seed):
    """Records of which `count` that are no test records have another class's label, drawn at random."""
    train = np.flatnonzero(~records.is_test)
    if not 2 <= count <= len(train):
        raise UserError(f"data.canaries {count} must be 2 to {len(train)}, the records that are no test records")
    draws = key_generator(seed, "canaries")
    rows, labels = np.sort(draws.permutation(train)[:count]), records.labels.clone()
    labels[torch.from_numpy(rows)] += torch.from_numpy(draws.integers(1, len(records.class_names), count))
    labels %= len(records.class_names)
    fingerprint = digest_of(np.frombuffer(records.fingerprint.encode(), np.uint8), rows, labels.numpy())
    return replace(records, labels=labels, fingerprint=fingerprint, canaries=tuple(rows.tolist()))


class _MarkedStore:
    """Images of which some rows have been replaced by marked ones."""

    def __init__(self, store, rows, marked):
        self._store, self._marked, self.image_shape = store, marked, store.image_shape
        self._place = np.full(len(store), -1)
        self._place[rows] = np.arange(len(rows))

    def __len__(self):
        return len(self._store)

    def __getitem__(self, rows):
        images, places = self._store[rows], torch.from_numpy(self._place[np.asarray(rows)])
        images[places >= 0] = self._marked[places[places >= 0]]
        return images


def _with_marked_users(records, settings, seed):
    """MembershipTracker's users among the records: images of one class each, marked as they publish them (Eq. 1).

    Their group is "user"; they are in a model's training set as a whole or not at all, and the report audits them as
    sets (algorithm 1's mean loss).
    """
    if records.kind != "images":
        raise UserError(
            f"data.marked_users are for images, and {records.name} has {records.kind}", advice="leave them out"
        )
    count, samples = settings.marked_users, settings.marked_samples_per_user
    train, labels = np.flatnonzero(~records.is_test), records.labels.numpy()
    enough = np.flatnonzero(np.bincount(labels[train]) >= samples)
    if not len(enough):
        raise UserError(f"no class has the {samples} images of a user", advice="lower data.marked_samples_per_user")
    classes = np.resize(key_generator(seed, "users' classes").permutation(enough), count)
    users = draw_target_users(labels, train, classes, samples, derive_key(seed, "marked users"))
    owners, numbers = (index.ravel() for index in np.indices(users.samples.shape))
    rows = users.samples.ravel()
    marked = mark_images(
        records.inputs[rows],
        users.key,
        owners,
        numbers,
        Marking(settings.img_blending_ratio, noise_norm=settings.noise_norm),
    )
    group = np.full(len(records), "", dtype=object)
    group[rows] = [f"user {owner}" for owner in owners]
    fingerprint = hashlib.sha256(json.dumps([records.fingerprint, digest_of(rows, marked.numpy())]).encode())
    return replace(
        records,
        inputs=_MarkedStore(records.inputs, rows, marked),
        fingerprint=fingerprint.hexdigest()[:16],
        groups={**records.groups, "user": group.astype(str)},
    )


def digest_of(*arrays):
    """16 hex digits of arrays' types, shapes and bytes."""
    digest = hashlib.sha256()
    for array in arrays:
        array = np.ascontiguousarray(array)
        digest.update(f"{array.dtype.str} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def _of_table(table):
    features = None if table.features is None else torch.from_numpy(table.features)
    labels = torch.from_numpy(table.labels)
    return Records(
        table.name,
        "labels" if features is None else "table",
        features,
        labels,
        table.class_names,
        np.zeros(len(labels), dtype=bool),
        table.groups,
        digest_of(table.labels, *([] if features is None else [table.features])),
    )


def _of_texts(found, settings):
    """Texts as tokens for a language model, or as hashed counts of words for other networks."""
    if settings.tokenize:
        inputs, vocabulary, kind = *_tokens(found.texts, settings), "tokens"
    else:
        from sklearn.feature_extraction.text import HashingVectorizer

        counts = HashingVectorizer(n_features=settings.features, alternate_sign=False).transform(found.texts)
        inputs, vocabulary, kind = torch.from_numpy(counts.toarray().astype(np.float32)), 0, "table"
    return Records(
        found.name,
        kind,
        inputs,
        torch.from_numpy(found.labels),
        found.class_names,
        np.zeros(len(found.labels), dtype=bool),
        found.groups,
        digest_of(found.labels, inputs.numpy()),
        vocabulary,
    )


def _tokens(texts, settings):
    """(int64 (N, L) with PAD after the end, number of tokens that there are)."""
    if settings.tokenizer == "bytes":
        coded, vocabulary = [list(text.encode()[: settings.max_length]) for text in texts], BYTES
    else:
        transformers = optional("transformers", f"data.tokenizer {settings.tokenizer} (bytes needs nothing)")
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(settings.tokenizer)
        except (OSError, ValueError) as error:
            raise UserError(
                f"data.tokenizer {settings.tokenizer} can't be loaded ({str(error).splitlines()[0]})",
                advice="give a name of the Hugging Face hub, a folder, or bytes",
            ) from None
        coded = tokenizer(list(texts), truncation=True, max_length=settings.max_length)["input_ids"]
        vocabulary = len(tokenizer)
    tokens = torch.full((len(coded), max(2, max(map(len, coded)))), PAD, dtype=torch.int64)
    for row, text in enumerate(coded):
        if len(text) < 2:
            raise UserError(
                f"text {row} has fewer than two tokens, so there is nothing to predict", advice="leave it out"
            )
        tokens[row, : len(text)] = torch.tensor(text)
    return tokens, vocabulary


def plan(config, records):
    """Draw pool, audited records and population from run.random_seed, and deal the pool out to the models: a Plan.

    Every model is trained on half of the pool (`attacks.membership.balanced`): half of the records, or, where a group
    is named like one of OWNERS, half of the users with all their records. The population are records outside of the
    pool, those that the data set does not call test records first. More models later leave those before as they are.
    Raises UserError where the data are too few.
    """
    seed, wanted = config.run.random_seed, config.data.size
    train, test = np.flatnonzero(~records.is_test), np.flatnonzero(records.is_test)
    size = wanted or (len(train) if len(test) else len(train) * 4 // 5)
    if size > len(train):
        raise UserError(
            f"data.size {size} is more than the {len(train)} records of {records.name} that are no test records",
            advice="lower it",
        )
    drawn = key_generator(seed, "pool").permutation(train)
    owners = _owners(records)
    if owners is not None:  # records of users first, because it is they who are audited
        drawn = drawn[np.argsort(np.isin(owners[drawn], NOBODY), kind="stable")]
    if records.canaries:
        if size < len(records.canaries):
            raise UserError(f"data.size {size} is less than data.canaries {len(records.canaries)}", advice="raise it")
        drawn = drawn[np.argsort(~np.isin(drawn, records.canaries), kind="stable")]
    outside = np.concatenate([drawn[size:], key_generator(seed, "population").permutation(test)])
    pool = np.sort(drawn[:size])
    units = np.arange(size) if owners is None else _units(owners[pool])
    matrix = np.zeros((config.models, len(records)), dtype=bool)
    matrix[:, pool] = membership.balanced(config.models, units.max() + 1, seed)[:, units]
    candidates = np.array(records.canaries) if records.canaries else pool
    return Plan(_audited(candidates, config), _population(outside, size, config), matrix)


def _owners(records):
    name = next((name for name in OWNERS if name in records.groups), None)
    return None if name is None else np.asarray(records.groups[name]).astype(str)


def _units(owners):
    """A number for each record, int64: the same for records of one user, another one for each record of nobody."""
    names = np.where(np.isin(owners, NOBODY), [f"record {row}" for row in range(len(owners))], owners)
    return np.unique(names, return_inverse=True)[1]


def plan_of_memberships(path, models, records, config, covered, population=None):
    """The Plan of models that were trained elsewhere, from their memberships.npy: bool (models, records).

    covered: bool (records,), rows that every model has an answer for. population: rows to take, or None: rows that no
    model was trained on, half of them where others need to stay as non-members. Raises UserError.
    """
    matrix = _read_matrix(path, models, len(records))
    trained = matrix.any(axis=0)
    if population is None:
        free = key_generator(config.run.random_seed, "population").permutation(np.flatnonzero(~trained & covered))
        # Where every record has a model that has not seen it, nobody is needed as a non-member.
        always_in = matrix[:, trained & covered].all(axis=0).any()
        population = free[: len(free) // 2] if always_in else free
    elif trained[population].any():
        raise UserError(
            f"{path}: {int(trained[population].sum())} records of the population are some model's training records",
            advice="leave them out of population.npy",
        )
    rest = covered.copy()
    rest[population] = False
    if not matrix[:, rest & trained].all(axis=0).any():
        rest &= trained
    return Plan(_audited(np.flatnonzero(rest), config), _population(population, len(population), config), matrix)


def _read_matrix(path, models, records):
    path = Path(path)
    try:
        matrix = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist",
            advice="models from elsewhere need it: bool (models, records), which was trained on which",
        ) from None
    except (ValueError, EOFError, OSError) as error:
        raise UserError(
            f"{path} is no array ({str(error).splitlines()[0]})",
            advice="save it with numpy.save, bool (models, records)",
        ) from None
    if matrix.shape != (models, records) or not np.isin(matrix, (0, 1)).all():
        raise UserError(
            f"{path} is {matrix.dtype} {matrix.shape}",
            advice=f"it must be bool, ({models} models, {records} records of the data set)",
        )
    return matrix.astype(bool)


def _audited(pool, config):
    wanted = config.audit.data_size or len(pool)
    if wanted > len(pool):
        raise UserError(
            f"audit.data_size {wanted} is more than the {len(pool)} records that there are to audit", advice="lower it"
        )
    return np.sort(key_generator(config.run.random_seed, "audited").permutation(pool)[:wanted])


def _population(outside, default, config):
    wanted = config.audit.population_size or min(default, len(outside))
    if not 1 <= wanted <= len(outside):
        raise UserError(
            f"a population of {wanted} is wanted and {len(outside)} records are left that no model is trained on",
            advice="lower audit.population_size or data.size",
        )
    return np.sort(outside[:wanted])
