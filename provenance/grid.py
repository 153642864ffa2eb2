"""One user's audit of one model: ask the grid, ask the out-world, judge.

ask_grid queries the model for every (photo, key) pair in an order that the secret decides, so that a server whose
answers drift treats no key in a special way; ask_out_world does the same for Algorithm 1's strangers; judge and
algorithm_1 turn answers into verdicts; check_queries rebuilds every image that was sent.
"""

import hashlib
import json
import sys
from functools import lru_cache
from pathlib import Path

import imagehash
import numpy as np
import torch
from PIL import Image
from scipy.special import softmax

from attacks import exact
from kit.errors import UserError
from kit.progress import Progress
from provenance import record as records
from provenance.evidence import AnswerLog
from provenance.photos import UnreadablePhoto, find_photos, read_photo
from provenance.protect import each, mark_photo, shrunk
from suspects.suspect import Answers
from utils import (
    REFERENCE_SIZE,
    Users,
    clopper_pearson,
    derive_key,
    draw_non_member_users,
    key_generator,
    mark_images,
    verify_provenance,
)

# A mark does not depend on the resolution: photos far larger than the model's input are scaled down to this many times
# its size before they are marked, 19 keys of a 12-megapixel photo taking seconds instead of minutes.
WORKING_FACTOR = 4
CACHE_BYTES = 1 << 30
NEAR_DUPLICATE_BITS = 6  # of a perceptual hash's 64


class Photos:
    """Originals by number, at working size: uint8 (H, W, 3). As many as fit into CACHE_BYTES stay in memory."""

    def __init__(self, paths, input_size):
        self._paths, self.side = list(paths), max(REFERENCE_SIZE, WORKING_FACTOR * max(input_size))
        self._read = lru_cache(maxsize=max(16, CACHE_BYTES // (4 * self.side**2)))(self._read_one)

    def __len__(self):
        return len(self._paths)

    def __getitem__(self, number):
        return self._read(int(number))

    def _read_one(self, number):
        try:
            image = Image.fromarray(read_photo(self._paths[number]))
        except UnreadablePhoto as problem:
            raise UserError(f"{self._paths[number]}: {problem}") from None
        # A copy: torch wants to be allowed to write.
        return np.array(shrunk(image, self.side, Image.Resampling.LANCZOS))


def query_order(record, count, audit_seed):
    """The order in which `count` queries are asked: int64, a permutation that the secret key decides."""
    key = derive_key(bytes.fromhex(record.key), "query order", audit_seed)
    return key_generator(key).permutation(count)


def prepared_image(photos, keys, query, record_settings, bank, preprocessing):
    """The image of query number `query` = photo * len(keys) + key: uint8 (3, h, w), as the model gets it."""
    photo, key = divmod(int(query), len(keys))
    marked = mark_photo(photos[photo], keys[key], photo, record_settings.marking(bank))
    return preprocessing.fit(marked)


def _digests(images):
    return np.stack([np.frombuffer(hashlib.sha256(image.tobytes()).digest(), np.uint8) for image in images])


def _ask_all(log, suspect, count, prepare, label):
    """Ask for the images prepare(places), uint8 (n, 3, h, w), in fixed batches; what the log has is not asked again."""
    size = suspect.batch_size
    batches = range(-(-count // size))
    answered = sum(len(answers) for _, answers in log.blocks.values())
    with Progress(desc=label, total=count, initial=answered, unit="query") as bar:
        for batch in batches:
            if batch in log.blocks:
                continue
            images = prepare(np.arange(batch * size, min(count, (batch + 1) * size)))
            log.add(batch, _digests(images), suspect.ask(images))
            bar.update(len(images))
    return log.collect()


def rows_of(answers, order, queries):
    """The answers to some query numbers, from answers in the order asked."""
    places = np.argsort(order)[queries]
    return Answers(*(None if array is None else array[places] for array in (answers.values, answers.classes)))


def _log_settings(record, suspect, **more):
    return {
        "commitment": record.commitments[-1],
        "model": json.dumps(suspect.identity, sort_keys=True),
        "preprocessing": suspect.preprocessing.describe(),
        "batch_size": suspect.batch_size,
        **more,
    }


def ask_grid(record, photos, suspect, keys, audit_seed, folder, bank=None):
    """Query the model for all photos under the user's own and `keys` fresh keys; resumes from `folder`.

    Returns (order of the queries, SHA-256 digests uint8 (N, 32) and Answers, both in the order asked).
    """
    all_keys = records.audit_keys(record, keys, audit_seed)
    order = query_order(record, len(photos) * len(all_keys), audit_seed)
    log = AnswerLog(folder, _log_settings(record, suspect, keys=keys, audit_seed=audit_seed))

    def prepare(places):
        return np.stack(
            [
                prepared_image(photos, all_keys, query, record.settings, bank, suspect.preprocessing)
                for query in order[places]
            ]
        )

    return (order, *_ask_all(log, suspect, len(order), prepare, "asking the model"))


def limit_answers(answers, label_only, top_k):
    """What would be left of dense answers, if the model only named its top class or its top k probabilities."""
    if answers.values is None or answers.classes is not None:
        return answers
    if label_only:
        return Answers(None, answers.values.argmax(axis=1)[:, None].astype(np.int32))
    if top_k is None or top_k >= answers.values.shape[1]:
        return answers
    # The choice between logits and probabilities is made for all answers together, as everywhere.
    logs, _, _ = exact.dense(answers)
    best = np.argsort(-logs, axis=1, kind="stable")[:, :top_k]
    return Answers(np.take_along_axis(softmax(logs, axis=1), best, axis=1).astype(np.float32), best.astype(np.int32))


def judge(batches, selection_key, audit, order, answers, classes):
    """The exact test on answers in the order asked: (result dict, grid T, labels of the pairs).

    batches: dicts or objects with `photos` and `published`; audit: dict keys, selections, alpha, audit_seed, label,
    label_only, top_k. Needs nothing secret but the key of the selections.
    """
    selections = records.draw_selections(selection_key, batches, audit["selections"], audit["audit_seed"])
    answers = limit_answers(rows_of(answers, order, slice(None)), audit["label_only"], audit["top_k"])
    grid, labels = exact.statistic_grid(answers, selections, audit["label"], classes, audit["label_only"])
    p = exact.p_value(grid)
    published = int(selections[0].sum())
    return (
        {
            "p_value": p,
            "alpha": audit["alpha"],
            "detected": p <= audit["alpha"],
            "statistic": float(grid[0, 0]),
            "statistic_of_others": {
                f"{share} %": float(np.percentile(np.delete(grid.ravel(), 0), share)) for share in (0, 1, 5, 50, 95)
            }
            if grid.size > 1
            else {},
            "pairs": int(grid.size),
            "at_most": round(p * grid.size),
            "label": int(labels[0, 0]),
            "queries": len(answers),
            "photos": selections.shape[1],
            "published": published,
            "sentences": exact.sentences(p, audit["alpha"], published),
        },
        grid,
        labels,
    )


def check_queries(record, photos, preprocessing, audit, order, digests, bank=None):
    """How many of the images whose digests were kept are those that record and originals give: a number of queries."""
    keys = records.audit_keys(record, audit["keys"], audit["audit_seed"])
    if len(order) != len(photos) * len(keys):
        raise UserError(
            f"the bundle has {len(order)} queries, this record {len(photos)} photos x {len(keys)} keys",
            advice="give the record of the bundle",
        )
    return sum(
        bool((_digests([prepared_image(photos, keys, query, record.settings, bank, preprocessing)])[0] == digest).all())
        for query, digest in Progress(list(zip(order, digests, strict=True)), "checking", unit="query")
    )


# ----------------------------------------------------------------------------------------------------------------------
# Algorithm 1 beside it: strangers' images, marked with their own keys
# ----------------------------------------------------------------------------------------------------------------------


class OutWorld:
    """Images of strangers: `images[i]` uint8 (H, W, 3), labels int64 (N,), or -1 where the user's label is taken."""

    def __init__(self, images, labels, source):
        self.images, self.labels, self.source = images, np.asarray(labels, dtype=np.int64), source


def out_world_of_folder(folder, suspect):
    """The photos of --non_member_folder; sub-folders named like classes (number or name) give the labels."""
    found, refused, _ = find_photos(folder)

    def problem(name):
        try:
            read_photo(Path(folder) / name)
        except UnreadablePhoto as reason:
            return name, str(reason)

    # All are tried now, so that a damaged file is not met after thousands of queries.
    refused += [bad for bad in each(problem, found, "reading strangers' images") if bad]
    for name, reason in refused:
        print(f"note: {folder}/{name} is left out: {reason}", file=sys.stderr)
    names = [name for name in found if name not in {name for name, _ in refused}]
    if not names:
        raise UserError(
            f"--non_member_folder {folder} has no photos that can be read",
            advice="give a folder with strangers' images",
        )
    known = {str(number): number for number in range(suspect.classes or 0)}
    known |= {name: number for number, name in enumerate(suspect.class_names or ())}
    labels = [known.get(name.split("/")[0], -1) if "/" in name else -1 for name in names]
    return OutWorld(Photos([Path(folder) / name for name in names], suspect.preprocessing.size), labels, str(folder))


class _Store:
    """A data set's images as photos: uint8 (H, W, 3) by number."""

    def __init__(self, images, rows):
        self._images, self._rows = images, rows

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, number):
        return self._images[self._rows[int(number)][None]][0].permute(1, 2, 0).contiguous().numpy()


def out_world_of_data(data, rows):
    """The images `rows` (int64 tensor) of a data set, which the model was not trained on."""
    return OutWorld(_Store(data.images, rows), data.labels[rows].numpy(), data.name)


def draw_out_world(out_world, record, count, label):
    """`count` strangers, each with as many images of one class as the user published: a `utils.Users`."""
    known = np.where(out_world.labels < 0, 0 if label == exact.AUTO else label, out_world.labels)
    key, samples = derive_key(bytes.fromhex(record.key), "out-world"), int(record.published.sum())
    if np.unique(known, return_counts=True)[1].max() < samples:
        raise UserError(
            f"the strangers' images in {out_world.source} are too few: a stranger needs {samples} of one "
            "class, as many as the user published",
            advice="give more in --non_member_folder (or --dataset)",
        )
    return draw_non_member_users(known, np.arange(len(known)), count, samples, key)


def ask_out_world(out_world, users, record, suspect, folder, bank=None):
    """Answers for the strangers' marked images, row by row: Answers of users * K rows; resumes from `folder`."""
    owners, numbers = (index.ravel() for index in np.indices(users.samples.shape))
    marking, samples = record.settings.marking(bank), users.samples.ravel()
    log = AnswerLog(
        folder,
        _log_settings(
            record,
            suspect,
            users=len(users),
            out_world=out_world.source,
            samples=hashlib.sha256(samples.tobytes()).hexdigest(),
        ),
    )

    def prepare(places):
        images, ready = [out_world.images[sample] for sample in samples[places]], [None] * len(places)
        for shape in {image.shape for image in images}:  # images of one size are marked together
            same = [number for number, image in enumerate(images) if image.shape == shape]
            batch = torch.from_numpy(np.stack([images[number] for number in same])).permute(0, 3, 1, 2)
            who, which = owners[places[same]], numbers[places[same]]
            for number, marked in zip(same, mark_images(batch, users.key, who, which, marking), strict=True):
                ready[number] = suspect.preprocessing.fit(marked.permute(1, 2, 0).contiguous().numpy())
        return np.stack(ready)

    return _ask_all(log, suspect, len(samples), prepare, "asking about strangers")[1]


def algorithm_1(own, others, users: Users, label, fpr, classes=None, label_only=False):
    """The paper's verdict on the user beside strangers, with the plain mean loss (a JSON-ready dict).

    own: Answers for the published photos under the user's key; others: for the strangers' images, row by row;
    label: the user's class number, or AUTO (then every set, also a stranger's, gets its majority class).
    """
    count = max(
        classes or 0,
        *(
            int(answers.values.shape[1] if answers.classes is None else answers.classes.max() + 1)
            for answers in (own, others)
        ),
    )

    def losses(answers, labels, sets):
        logs, top, only = exact.dense(answers, count)
        if label == exact.AUTO:
            labels = [np.bincount(part, minlength=count).argmax() for part in top.reshape(sets, -1)]
        chosen = np.repeat(labels, len(top) // sets)
        if only or label_only:
            return (top != chosen).astype(np.float64).reshape(sets, -1)
        return -logs[np.arange(len(top)), chosen].reshape(sets, -1)

    mine, theirs = losses(own, [label], 1), losses(others, users.classes, len(users))
    used, threshold = verify_provenance(mine, theirs, fpr)
    below = int((theirs.mean(axis=1) <= mine.mean()).sum())
    return {
        "used": bool(used[0]),
        "mean_loss": float(mine.mean()),
        "threshold": float(threshold),
        "fpr": fpr,
        "non_member_users": len(users),
        "below_user": below,
        "fpr_at_user": below / len(users),
        "fpr_interval": clopper_pearson(below, len(users)),
    }


def near_duplicates(photos, out_world, limit=3000):
    """How many of the user's photos have a near-duplicate among (at most `limit`) images of the out-world.

    Strangers whose images are the user's own would make the user look like everybody else.
    """

    def hashes(images, numbers):
        return np.stack(
            [imagehash.phash(Image.fromarray(np.asarray(images[number]))).hash.ravel() for number in numbers]
        )

    chosen = np.unique(np.linspace(0, len(out_world.images) - 1, min(limit, len(out_world.images))).astype(int))
    mine, theirs = hashes(photos, range(len(photos))), hashes(out_world.images, chosen)
    return int(((mine[:, None] != theirs).sum(axis=2).min(axis=1) <= NEAR_DUPLICATE_BITS).sum())
