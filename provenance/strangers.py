"""Algorithm 1 beside the exact test: strangers' images, marked with their own keys, and asked about in the same way.

Public: OutWorld, out_world_of_folder, out_world_of_dataset, out_world_of_data, draw_out_world, ask_out_world,
algorithm_1, calibrated, near_duplicates.
"""

import hashlib
import sys
from pathlib import Path

import numpy as np
import torch

from attacks import exact
from attacks.difficulty import taken_out
from dataset import load_dataset
from experiment import setup
from experiment.settings import data_fingerprint
from kit.errors import UserError
from provenance import references
from provenance.duplicates import NEAR_BITS, perceptual_hash
from provenance.evidence import AnswerLog
from provenance.folder import each
from provenance.grid import Photos, ask_all, ask_grid, in_order, log_settings
from provenance.photos import UnreadablePhoto, find_photos, read_photo
from utils import Users, clopper_pearson, draw_non_member_users, mark_images, verify_provenance


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


def out_world_of_dataset(name, data_root, image_size, suspect):
    """The images of a data set that the model was not trained on: all but those that a run of train.py names, else its
    test images. Raises UserError where that can't be told."""
    data = load_dataset(name, data_root, image_size)
    if suspect.classes not in (None, len(data.class_names)):
        raise UserError(
            f"--dataset {name} has {len(data.class_names)} classes and the model {suspect.classes}",
            advice="give strangers' images with --non_member_folder",
        )
    rows = torch.nonzero(data.is_test).ravel()
    settings = suspect.training_settings or {}
    if settings.get("data") == data_fingerprint(data):
        rows = setup.splits_of(settings, data).non_member
    if len(rows) == 0:
        raise UserError(
            f"--dataset {name}: it is not known which of its images the model has not seen",
            advice="give strangers' images with --non_member_folder",
        )
    return out_world_of_data(data, rows)


def draw_out_world(out_world, record, count, label):
    """`count` strangers, each with as many images of one class as the user published: a `utils.Users`."""
    known = np.where(out_world.labels < 0, 0 if label == exact.AUTO else label, out_world.labels)
    key, samples = record.seed_of("out-world"), int(record.published.sum())
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
        log_settings(
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

    return ask_all(log, suspect, len(samples), prepare, "asking about strangers")[1]


def algorithm_1(own, others, users: Users, label, fpr, classes=None, label_only=False):
    """The paper's verdict on the user beside strangers, with the plain mean loss (a JSON-ready dict).

    own: Answers for the published photos under the user's key; others: for the strangers' images, row by row;
    label: the user's class number, or AUTO (then every set, also a stranger's, gets its majority class).
    """
    mine, theirs = _losses(own, others, [label], _labels(users, label), classes, label_only)
    return {"mean_loss": float(mine.mean()), **_verdict(mine, theirs, fpr)}


def calibrated(case, own, others, own_queries):
    """Algorithm 1 of a `case.Case` once more, without what its references find difficult (see attacks/difficulty.py):
    roots of the losses, of which a share that is worked out over user and strangers alike is taken out.

    own, others: as in `algorithm_1`, unlimited; own_queries: the numbers of the queries about the published photos,
    which the references have answered as well. They are asked about the strangers' images here.
    """
    plan, users, only = case.plan, case.strangers[1], case.plan.answers == "label only"
    answers = (some.limited(only, plan.top_k) for some in (own, others))
    losses = _losses(*answers, [case.label], _labels(users, case.label), case.suspect.classes, only)
    beside = [_roots(*_asked(case, reference, own_queries)) for reference in case.references]
    left = taken_out(_roots(*losses)[:, :, None], np.stack(beside), by_key=False)[:, :, 0]
    return {"mean_score": float(left[0].mean()), **_verdict(left[:1], left[1:], case.options.verdict_fpr)}


def _asked(case, reference, own_queries):
    """A reference's losses for the user's published photos and the strangers' images, as `_losses` returns them."""
    (world, users), audited, asked = case.strangers, case.suspect, reference.suspect
    folder = references.folder_of(case.folder, reference)
    # Answered before, in references.ask: nothing is asked again.
    photos = Photos(case.originals, asked.preprocessing.size)
    order, _, answers = ask_grid(case.record, photos, asked, case.asked, folder, case.bank)
    own = in_order(answers, order).rows(own_queries)
    others = ask_out_world(world, users, case.record, asked, folder / "out_world", case.bank)
    names = audited.class_names or ()
    theirs = [
        references.label_for(asked, label, names[label] if label < len(names) else None, audited.classes)
        if case.label != exact.AUTO
        else exact.AUTO
        for label in users.classes.tolist()
    ]
    return _losses(own, others, [reference.label], theirs, asked.classes)


def _labels(users, label):
    """The strangers' class numbers, or AUTO for each where the user has no class either."""
    return [exact.AUTO] * len(users) if label == exact.AUTO else users.classes.tolist()


def _roots(mine, theirs):
    """Square roots of losses, the user first: float64 (1 + strangers, K)."""
    return exact.score(-np.concatenate([mine, theirs]))


def _losses(own, others, own_labels, other_labels, classes=None, label_only=False):
    """Losses float64 (1, K) and (strangers, K) of Answers, row by row; the label of a set: a class number, or AUTO."""
    count = max(
        classes or 0,
        *(
            int(answers.values.shape[1] if answers.classes is None else answers.classes.max() + 1)
            for answers in (own, others)
        ),
    )

    def losses(answers, labels):
        logs, top, only = answers.log_probabilities(count)
        tops = top.reshape(len(labels), -1)
        named = [
            np.bincount(part[part >= 0], minlength=count).argmax() if label == exact.AUTO else label
            for label, part in zip(labels, tops, strict=True)
        ]
        chosen = np.repeat(named, tops.shape[1])
        if only or label_only:
            return (top != chosen).astype(np.float64).reshape(tops.shape)
        return -logs[np.arange(len(top)), chosen].reshape(tops.shape)

    return losses(own, own_labels), losses(others, other_labels)


def _verdict(mine, theirs, fpr):
    """What the user's mean says beside the strangers' (a JSON-ready dict): float64 (1, K) and (strangers, K)."""
    used, threshold = verify_provenance(mine, theirs, fpr)
    below = int((theirs.mean(axis=1) <= mine.mean()).sum())
    return {
        "used": bool(used[0]),
        "threshold": float(threshold),
        "fpr": fpr,
        "non_member_users": len(theirs),
        "below_user": below,
        "fpr_at_user": below / len(theirs),
        "fpr_interval": clopper_pearson(below, len(theirs)),
    }


def near_duplicates(photos, out_world, limit=3000):
    """How many of the user's photos have a near-duplicate among (at most `limit`) images of the out-world.

    Strangers whose images are the user's own would make the user look like everybody else.
    """

    def hashes(images, numbers):
        return np.stack([perceptual_hash(images[number]) for number in numbers])

    chosen = np.unique(np.linspace(0, len(out_world.images) - 1, min(limit, len(out_world.images))).astype(int))
    mine, theirs = hashes(photos, range(len(photos))), hashes(out_world.images, chosen)
    return int(((mine[:, None] != theirs).sum(axis=2).min(axis=1) <= NEAR_BITS).sum())
