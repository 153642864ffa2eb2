"""Where the attacks of studies/dishonest.py are played: innocent models, users whose photos none of them has seen, the
models' answers about those photos under a pool of keys, and draws of the old and of the new kind.

A model is asked once for every photo under every key of the pool; whatever an attacker tries is then arrays. A key that
a draw gives (32 bytes) names a column of the pool, own and fresh ones without repetition. A photo's noise is computed
once, by its place among the user's photos.

Public: World, User, Draw, Beacon, make_world, photos_of_one_class, old_draw, old_key, sizes_of, photo_of, commit,
drawn, numbers_of, new_draw, own_column, answers_of, p_of, liking, counted, opportunities, row, KEYS, SELECTIONS.
"""

import hashlib
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch

import utils
from attacks import exact
from provenance import beacon, judgements, legacy
from provenance import record as records
from provenance.grid import scores_of
from provenance.plan import AuditPlan
from studies import common
from suspects.suspect import Answers

PUBLISHED_SHARE = 0.5
KEYS, SELECTIONS = 19, 999  # of the usual plan


@dataclass(frozen=True)
class User:
    """One innocent user. rows: of the data set; label: the photos' class; digests: SHA-256 of the photos; answers:
    float32 (models, n, pool, C), the logits; scores: float32 (models, n, pool), of the photos' class; brightness:
    float32 (n, pool), of the marked images."""

    rows: np.ndarray
    label: int
    digests: list
    answers: np.ndarray
    scores: np.ndarray
    brightness: np.ndarray


@dataclass(frozen=True)
class World:
    """names: of the innocent models; users; pool: how many keys were tried; seed: of everything that is drawn."""

    names: list
    users: list
    pool: int
    seed: int

    @property
    def photos(self):
        """How many photos each user has."""
        return len(self.users[0].rows)

    def draws(self, *parts):
        """A generator for one purpose."""
        return utils.key_generator("studies", "dishonest", self.seed, *parts)


@dataclass(frozen=True)
class Draw:
    """What a draw gives. photos: int64 (n,), the user's photos in the record's order; batches: int64 (n,); columns:
    int64 (batches, L + 1) of the pool, the own key's first; selections: bool (m + 1, n), the published one first."""

    photos: np.ndarray
    batches: np.ndarray
    columns: np.ndarray
    selections: np.ndarray


class Beacon:
    """Public randomness: signatures out of a seeded generator, which nobody looks at before committing."""

    def __init__(self, world, *parts):
        self._draws = world.draws("beacon", *parts)

    def signature(self):
        """The next round's, hex."""
        return self._draws.bytes(48).hex()


def make_world(data, models, users, photos, pool, seed):
    """A World. models: (name, rows that it was trained on, query); photos: of each user, all of one class."""
    world, free = World([name for name, _, _ in models], [], pool, seed), np.flatnonzero(~data.is_test.numpy())
    for _, rows, _ in models:
        free = np.setdiff1d(free, rows)
    labels, draws = data.labels.numpy(), world.draws("users")
    keys = [utils.derive_key("studies", "dishonest", seed, "key", number) for number in range(pool)]
    for number in range(users):
        own = photos_of_one_class(labels, free, photos, number, draws)
        free = np.setdiff1d(free, own)
        world.users.append(_user(data, [query for _, _, query in models], own, keys))
        print(f"user {number + 1} of {users} asked", flush=True)
    return world


def photos_of_one_class(labels, free, photos, number, draws):
    """Rows of a user's photos, drawn from `free` rows of one class, another one for each number of a user."""
    enough = [label for label in np.unique(labels[free]) if (labels[free] == label).sum() >= photos]
    return draws.choice(free[labels[free] == enough[number % len(enough)]], photos, replace=False)


def _user(data, queries, rows, keys):
    originals, numbers = data.images[torch.from_numpy(rows)], np.arange(len(rows))
    label, marking = int(data.labels[rows[0]]), common.SETTINGS.marking()
    answers = [[] for _ in queries]
    brightness = []
    for key in keys:
        marked = utils.mark_images(originals, key, np.zeros_like(numbers), numbers, marking)
        brightness.append(marked.float().mean(dim=(1, 2, 3)).numpy())
        for place, query in enumerate(queries):
            answers[place].append(query(marked).cpu().float().numpy())
    answers = np.stack([np.stack(own, axis=1) for own in answers])
    logs = torch.log_softmax(torch.from_numpy(answers), dim=-1).numpy()
    digests = [hashlib.sha256(image.numpy().tobytes()).digest() for image in originals]
    return User(rows, label, digests, answers, exact.score(logs[..., label]), np.stack(brightness, axis=1))


# --- the old way: key and selection from the accuser's own generator, photos in the order of their files ---


def sizes_of(sizes):
    """(photos, published) of each batch, as the old draw takes them."""
    return [SimpleNamespace(photos=count, published=published) for count, published in sizes]


def old_draw(key, selection_key, sizes, photos, pool, keys=KEYS, selections=SELECTIONS, audit_seed=""):
    """A Draw of version 1. key, selection_key: bytes; sizes: (photos, published) of each batch; photos: the user's, in
    the order of their files."""
    fresh = utils.derive_key(key, "audit key", audit_seed, 1)
    columns = np.tile(_columns(key, fresh, keys, pool), (len(sizes), 1))
    chosen = legacy.draw_selections(selection_key.hex(), sizes_of(sizes), selections, audit_seed)
    return Draw(np.asarray(photos), np.repeat(np.arange(len(sizes)), [size[0] for size in sizes]), columns, chosen)


def old_key(world, *parts):
    """(key, selection key) as the old program drew them: 32 bytes each."""
    draws = world.draws("old", *parts)
    return draws.bytes(32), draws.bytes(32)


# --- the new way: commit, wait for the beacon, draw ---


def photo_of(user, number, name=None, nonce=b""):
    """A record's entry for one of the user's photos. name: of the file, before its number; nonce: changes the file."""
    return {
        "original": f"{name or 'photo'}-{number}.png",
        "original_sha256": hashlib.sha256(user.digests[number] + nonce).hexdigest(),
        "height": 32,
        "width": 32,
    }


def commit(photos, seed, holdout=PUBLISHED_SHARE, plan=None, record=None, redrawn=()):
    """A record with a batch of `photos` (entries), committed to a round that is not out yet."""
    named = records.BeaconRound.of(beacon.QUICKNET, 10**8)
    record = record or records.new_record(common.SETTINGS)
    return records.commit_batch(record, photos, holdout, ".", ".", plan, named, int(seed), redrawn, "2026-01-01")


def drawn(record, signature):
    """The record after its last batch was drawn by a round with this signature, and marked."""
    record = records.draw_batch(record, {photo.number: photo.original for photo in record.photos}, signature)
    return records.finish_batch(record, {photo.number: "0" * 64 for photo in record.photos if photo.published})


def numbers_of(record):
    """Which of the user's photos a record holds, in its order: int64 (n,)."""
    return np.array([int(photo.original.rpartition("-")[2].removesuffix(".png")) for photo in record.photos])


def new_draw(record, pool, keys=KEYS, selections=SELECTIONS, audit_seed=""):
    """The Draw of a drawn record."""
    own, fresh = record.keys(1, audit_seed)
    columns = np.stack([_columns(*pair, keys, pool) for pair in zip(own, fresh, strict=True)])
    batches = np.array([photo.batch for photo in record.photos])
    return Draw(numbers_of(record), batches, columns, record.selections(selections, audit_seed))


def _columns(own, fresh, count, pool):
    """Which columns of the pool an own key and `count` fresh ones are."""
    first = own_column(own, pool)
    others = utils.key_generator(fresh).permutation(pool - 1)[:count]
    return np.concatenate([[first], others + (others >= first)])


def own_column(key, pool):
    """The column of the pool that a key names."""
    return int.from_bytes(key[:8], "little") % pool


# --- verdicts ---


def answers_of(user, model, draw):
    """The grid's logits: float32 (n, L + 1, C)."""
    return user.answers[model][draw.photos[:, None], draw.columns[draw.batches]]


def p_of(answers, selections, plan=None):
    """p of a grid's answers (n, L + 1, C) as the audit computes it. plan: AuditPlan, the usual one unless told."""
    plan = plan or AuditPlan()
    given = Answers(answers.reshape(-1, answers.shape[2])).limited(plan.answers == "label only", plan.top_k)
    label = plan.label if plan.label == exact.AUTO else int(plan.label)
    scores, top, _ = scores_of(given, len(answers), answers.shape[2], label)
    return exact.p_value(exact.statistic_grid(scores, selections, label, top)[0])


def liking(user, model, photos, columns, chosen):
    """T of the own pair as the attacker estimates it for the photos' class: low where an innocent model likes it.

    photos: int64 (n,); columns: int64 (trials,) the own key's; chosen: bool (trials, n). Returns float (trials,).
    """
    scores = user.scores[model][photos][:, columns].T
    return (scores * chosen).sum(axis=1) / chosen.sum(axis=1)


def counted(p, number=1, factor=1):
    """p times what its alpha was divided by: the verdict is USED at alpha where this is at most alpha."""
    plan = AuditPlan()
    return min(1.0, p * plan.alpha / judgements.share_of_alpha(plan, plan, number, factor))


def opportunities(world):
    """(user's number, user, number of the model to try things on, number of the model that is accused)."""
    for number, user in enumerate(world.users):
        for tried in range(len(world.names)):
            for accused in range(len(world.names)):
                yield number, user, tried, accused


def row(attack, variant, when, number, tried, accused, p, fair=None):
    """One attacked audit. p: what the verdict prints; fair: p times what alpha was divided by (`counted`)."""
    return {
        "attack": attack,
        "variant": variant,
        "when": when,
        "user": number,
        "tried on": tried,
        "accused": accused,
        "p": p,
        "counted": p if fair is None else fair,
    }
