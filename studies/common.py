"""What the studies share: users with real mark records among the images of a data set, models trained on what they
published, and the answers of a model for a user's whole grid.

Public: Kind, Cohort, make_cohort, make_record, rows_of, published_images, ask_grid, ask_views, ask_strangers,
exact_p, rate, halves, whole, parser, load, call, write_study, SETTINGS, FAINT, UNCHANGED, MOMENT.
"""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import utils
from attacks import exact
from dataset import load_dataset
from kit import environment, files
from kit.cli import Parser, number
from kit.errors import UserError
from kit.names import MOST_VIEWS
from provenance import record as records
from provenance.grid import query_order, scores_of
from suspects.suspect import Answers
from suspects.views import view_of

SETTINGS = records.MarkSettings(
    img_blending_ratio=0.7,
    noise_injection_type="perlin",
    noise_norm=8.0,
    ood_pattern="color_stripes",
    format="png",
    quality=95,
)
FAINT = SETTINGS.model_copy(update={"img_blending_ratio": 0.95, "noise_norm": 2.0})
UNCHANGED = SETTINGS.model_copy(update={"img_blending_ratio": 1.0, "noise_injection_type": "none", "noise_norm": 0.0})


ROOT = Path(__file__).resolve().parent.parent
MOMENT = "2026-01-01T00:00:00+00:00"  # at which all records of studies are committed, so that draws are the same again


@dataclass(frozen=True)
class Kind:
    """What users of one kind publish, and in how many views a model is asked about each picture.

    hide: (originals, marked) -> what the user makes of a marked photo, published and asked about alike; passage: what
    happens to published copies alone, and the audit knows nothing of it. Images are uint8 (n, 3, H, W). user: the
    number of the one who publishes, where several share a key.
    """

    settings: records.MarkSettings = SETTINGS
    hide: Callable | None = None
    passage: Callable | None = None
    views: int = MOST_VIEWS
    user: int = 0

    def marked(self, originals, key, numbers):
        """Photos under a key, as a model is asked about them; numbers: int (n,), which decide their noise."""
        marked = utils.mark_images(originals, key, np.full_like(numbers, self.user), numbers, self.settings.marking())
        return self.hide(originals, marked) if self.hide else marked

    def published(self, originals, key, numbers):
        """Photos under a key, as a model's maker finds them."""
        marked = self.marked(originals, key, numbers)
        return self.passage(marked) if self.passage else marked


@dataclass(frozen=True)
class Cohort:
    """Users of one study: record i belongs to the images rows[i] (int64 (users, n)) of class classes[i].

    train: rows of the training images, the users' published ones included, their held-out ones never.
    """

    records: list
    rows: np.ndarray
    classes: np.ndarray
    train: np.ndarray


@contextmanager
def whole(folder):
    """A new folder, which gets its name only when it is whole."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    yield part
    part.rename(folder)


def parser(description, **defaults):
    """The flags of every study."""
    flags = Parser(description=description)
    flags.add_argument("--dataset", default="imagefolder")
    flags.add_argument("--data_root", help="folder of the data set, for example CIFAR-10 as class folders")
    flags.add_argument("--device", default="auto")
    flags.add_argument("--work", default="runs/studies", help="where models are kept between calls")
    flags.add_argument("--out", required=True, help="folder for result.json and plots")
    for name, value in defaults.items():
        kind, least = type(value[0] if isinstance(value, list) else value), 0 if name in ("seeds", "keys_alone") else 1
        flags.add_argument(
            f"--{name}",
            default=value,
            nargs="+" if isinstance(value, list) else None,
            type=number(int, least) if kind is int else kind,
        )
    return flags


def halves(data):
    """Two disjoint halves of a data set's training images, (choice, claims), the same for every study."""
    rows = np.flatnonzero(~data.is_test.numpy())
    shuffled = utils.key_generator("studies", "halves").permutation(rows)
    return np.sort(shuffled[: len(rows) // 2]), np.sort(shuffled[len(rows) // 2 :])


def make_record(data, rows, seed, holdout, settings=SETTINGS):
    """A record, for experiments, over the images `rows` of a data set."""
    pixels = data.images[torch.from_numpy(rows)].numpy()
    photos = [
        {
            "original": f"{row}.png",
            "original_sha256": hashlib.sha256(image.tobytes()).hexdigest(),
            "height": image.shape[1],
            "width": image.shape[2],
        }
        for row, image in zip(rows, pixels, strict=True)
    ]
    record = records.commit_batch(records.new_record(settings), photos, holdout, ".", ".", seed=seed, created=MOMENT)
    return records.draw_batch(record, {photo.number: photo.original for photo in record.photos})


def rows_of(record):
    """The rows of a record of `make_record`, by number: int64 (n,)."""
    return np.array([int(photo.original.removesuffix(".png")) for photo in record.photos])


def make_cohort(data, pool, seed, users, photos, holdout, train_size, settings=(SETTINGS,)):
    """Draw users from different classes of `pool` (rows), each with `photos` images, and the other training images.

    settings: how their photos are marked; with several, `users` of each kind, one kind after the other.
    Raises UserError where the pool has too few images.
    """
    users *= len(settings)
    draws, labels = utils.key_generator("studies", "cohort", seed), data.labels.numpy()
    classes = draws.permutation(np.resize(np.unique(labels[pool]), users))
    rows, left = np.empty((users, photos), dtype=np.int64), draws.permutation(pool)
    for user, label in enumerate(classes):
        own = left[labels[left] == label][:photos]
        if len(own) < photos:
            raise UserError(f"class {label} has too few images", advice="fewer --users, --photos or --kinds")
        rows[user] = own
        left = left[~np.isin(left, rows[user])]
    kinds = np.repeat(np.arange(len(settings)), users // len(settings))
    made = [
        make_record(data, own, 1000 * seed + user, holdout, settings[kind])
        for user, (own, kind) in enumerate(zip(rows, kinds, strict=True))
    ]
    rows = np.stack([rows_of(record) for record in made])  # in the records' order
    published = np.concatenate([own[record.published] for own, record in zip(rows, made, strict=True)])
    train = np.concatenate([published, left[: max(0, train_size - len(published))]])
    if len(train) != train_size:
        raise UserError(
            f"{users} users and {len(left)} other images do not make {train_size} training images",
            advice="fewer --users or --kinds, or another --train_size",
        )
    return Cohort(made, rows, classes, train)


def published_images(data, cohort, kinds=None):
    """Training images uint8 (N, 3, H, W) and labels, the users' images in place as they published them (first).

    kinds: the Kind of each user, where there is more to it than the settings in the record.
    """
    images = data.images[torch.from_numpy(cohort.train)]
    place, kinds = 0, kinds or [Kind(record.settings) for record in cohort.records]
    for record, own, kind in zip(cohort.records, cohort.rows, kinds, strict=True):
        numbers = np.flatnonzero(record.published)
        originals = data.images[torch.from_numpy(own[numbers])]
        images[place : place + len(numbers)] = kind.published(originals, record.keys(0)[0][0], numbers)
        place += len(numbers)
    return images, data.labels[torch.from_numpy(cohort.train)]


def ask_grid(query, originals, record, keys, numbers=None, batch=1024):
    """`Answers` for a user's grid, photo by photo with all keys in order.

    originals: uint8 (n, 3, H, W), the record's photos `numbers` (all, unless told), which decide their noise.
    """
    numbers = np.arange(len(originals)) if numbers is None else np.asarray(numbers)
    marked = torch.stack(
        [
            utils.mark_images(originals, key, np.zeros_like(numbers), numbers, record.settings.marking())
            for (key,) in record.keys(keys)
        ],
        dim=1,
    ).flatten(0, 1)
    # Asked in random order, as in a real audit: what a place in a batch does to rounding must not single out a key.
    order = torch.from_numpy(query_order(record, len(marked), ""))
    logits = torch.cat([query(marked[part]).cpu() for part in order.split(batch)])
    return Answers(logits[order.argsort()].numpy())


def ask_views(queries, originals, keys, kind, batch=1024):
    """Logits of several models for the same marked pictures: {name: float32 (n, keys, views, C)}.

    queries: {name: query function}; originals: uint8 (n, 3, H, W), whose places here decide their noise; keys: bytes;
    kind: the Kind of the user.
    """
    numbers, found = np.arange(len(originals)), {name: [] for name in queries}
    for key in keys:
        marked = kind.marked(originals, key, numbers).numpy()
        shown = torch.from_numpy(np.stack([view_of(marked, view) for view in range(kind.views)], axis=1)).flatten(0, 1)
        for name, query in queries.items():
            logits = torch.cat([query(part).float().cpu() for part in shown.split(batch)]).numpy()
            found[name].append(logits.reshape(len(numbers), kind.views, -1))
    return {name: np.stack(each, axis=1) for name, each in found.items()}


def ask_strangers(query, data, users, batch=1024):
    """Losses of `utils.Users` marked with their own keys, the paper's signal: float64 (users, K), and hits."""
    found = utils.score_users(query, data.images, users, SETTINGS.marking(), torch.device("cpu"), batch)
    return found["cross_entropy"], found["correct"]


def exact_p(answers, record, label, label_only=False, selections=999, keys=None, rows=None):
    """p of the exact test on a grid of `ask_grid`: with the first `keys` fresh keys and the photos `rows` alone."""
    drawn = record.selections(selections)
    grid = answers.values.reshape(len(record.photos) if rows is None else len(rows), -1, answers.values.shape[1])
    kept = grid[:, : None if keys is None else keys + 1]
    chosen = drawn if rows is None else drawn[:, rows]
    answers = Answers(kept.reshape(-1, kept.shape[2])).limited(label_only)
    scores, top, _ = scores_of(answers, chosen.shape[1], kept.shape[2], label)
    return exact.p_value(exact.statistic_grid(scores, chosen, label, top)[0])


def rate(hits, of):
    """{"share", "hits", "of", "interval"}: a rate with its 95 % Clopper-Pearson interval."""
    return {"share": hits / of, "hits": int(hits), "of": int(of), "interval": utils.clopper_pearson(hits, of)}


def load(args):
    """(data set, device) of the flags."""
    return load_dataset(args.dataset, args.data_root), utils.choose_device(args.device)


def call(script, *arguments):
    """A script of the repository, as a user calls it."""
    print("$", script, *arguments, flush=True)
    done = subprocess.run([sys.executable, str(ROOT / script), *map(str, arguments)], check=False)
    if done.returncode:
        raise UserError(f"{script} ended with exit code {done.returncode}")


def write_study(out, result, device):
    """result.json of a study, with hardware and versions."""
    files.write_json(
        Path(out) / "result.json",
        {**result, "hardware": environment.hardware_name(device), "versions": environment.software_versions()},
    )
