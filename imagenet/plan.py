"""Who is who in an ImageNet experiment: the source's images, members and non-members.

Public: Source, list_source, User, Plan, plan_users, mark_settings, photos_of_member, shuffled, FORMAT, FOLDERS,
IMAGE_SUFFIXES.
"""

import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kit.errors import UserError
from kit.progress import Progress
from provenance import record as records
from utils import derive_key, key_generator

FORMAT = "membershiptracker-imagenet-1"
# What torchvision's ImageFolder takes for an image; other files of a class are linked, but no user gets them.
FOLDERS = {"member": "members", "non_member": "non_members"}
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
LONGEST_NAME = 230  # bytes; of 255, some are needed for suffixes and temporary names


@dataclass(frozen=True)
class Source:
    """An ImageFolder's classes in the order of their numbers, and their file names.

    listing: {class: its file names, sorted and joined by NUL}: 30 MB for 1.28 million files, a tenth of a list of str.
    """

    folder: str
    listing: dict

    def names(self, label):
        return self.listing[label].split("\0")

    def images(self, label):
        """Names that a user may own: images whose names survive JSON, records and a longer suffix."""
        return [
            name
            for name in self.names(label)
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
            and not name.startswith(".")
            and "\\" not in name
            and len(os.fsencode(name)) <= LONGEST_NAME
            and _is_text(name)
        ]

    @cached_property
    def files(self):
        return sum(names.count("\0") + 1 for names in self.listing.values())

    @cached_property
    def digest(self):
        """SHA-256, hex, of all class and file names: the same in whatever order the disk names them."""
        digest = hashlib.sha256()
        for label, names in self.listing.items():
            digest.update(os.fsencode(f"{label}\0\0{names}\0\0\0"))
        return digest.hexdigest()


def _is_text(name):
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def list_source(folder):
    """List the class folders of an ImageFolder without a call per file. Raises UserError where it is none."""
    root, listing = os.path.realpath(folder), {}
    try:
        with os.scandir(root) as entries:
            labels = sorted(entry.name for entry in entries if entry.is_dir())
    except OSError as error:
        raise UserError(
            f"{folder} can't be opened ({error.strerror})",
            advice="--data_root needs train/CLASS/FILES and val/CLASS/FILES",
        ) from None
    for label in Progress(labels, f"listing {os.path.basename(root)}", unit="class"):
        if not _is_text(label):
            raise UserError(
                f"{folder} has a class folder whose name is not valid UTF-8 ({label!r})", advice="rename it"
            )
        with os.scandir(os.path.join(root, label)) as entries:
            names = []
            for entry in entries:
                if entry.is_dir():  # known from the folder itself, except for links
                    raise UserError(
                        f"{folder}/{label} has a folder inside ({entry.name!r})",
                        advice="images must lie in their class folder itself",
                    )
                names.append(entry.name)
        if not names:
            raise UserError(f"{folder}/{label} is empty, and no training script reads that", advice="remove it")
        listing[label] = "\0".join(sorted(names))
    if not listing:
        raise UserError(
            f"{folder} has no class folders", advice="--data_root needs train/CLASS/FILES and val/CLASS/FILES"
        )
    return Source(root, listing)


@dataclass(frozen=True)
class User:
    """One user: `places` are positions in the shuffled images of the class, one for each of the user's numbers.

    group "member" or "non_member"; side "train" or "val", where the images come from; seed: what all the user's secrets
    follow from; published: how many of the images are marked and shown.
    """

    name: str
    group: str
    label: str
    side: str
    seed: int
    places: np.ndarray
    published: int


@dataclass(frozen=True)
class Plan:
    """All users, and the places that leave the training tree for non-members: pools {class: (first, last + 1)}.

    taken: {(side, class): how many of its shuffled images are anybody's}.
    """

    settings: dict
    users: list
    taken: dict
    pools: dict

    def of_class(self, label):
        return [user for user in self.users if user.label == label]


def mark_settings(settings):
    """The `MarkSettings` of imagenet-prepare.py's settings."""
    names = ("img_blending_ratio", "noise_injection_type", "noise_norm", "format", "quality")
    return records.MarkSettings(ood_pattern="color_stripes", **{name: settings[name] for name in names})


def photos_of_member(published, holdout):
    """How many photos a member owns who publishes `published` of them, as `data_marking.py --holdout` counts."""
    count = published
    while count - round(count * holdout) < published:
        count += 1
    return count


def plan_users(settings, train, val):
    """Choose every user's class and places: a Plan. Raises UserError when the classes have too few images.

    settings: dict of imagenet-prepare.py's settings; train, val: Sources (val may be None when it is not asked for).
    Users go round the classes in an order that the seed decides; a class without room for another user is passed over,
    so that nobody gets a short set.
    """
    order = shuffled(list(train.listing), settings["seed"], "users' classes")
    size = photos_of_member(settings["marked_samples_per_user"], settings["holdout"])
    # One image of each class stays as it is: a class folder must not become empty.
    room = {label: len(train.images(label)) - 1 for label in order}
    users, count = [], Counter()
    for number, label in enumerate(_go_round(order, room, size, settings["num_of_users"], "member")):
        users.append(_user(settings, "member", number, label, "train", np.arange(count[label], count[label] + size)))
        count[label] += size
    taken = {("train", label): number for label, number in count.items()}
    if settings["non_member_source"] == "val":
        left = {label: len(val.images(label)) for label in order if label in val.listing}
    else:
        left = {label: room[label] - count[label] for label in order}
    others, sizes = _non_members(settings, left, count)
    side = settings["non_member_source"]
    pools = {label: (count[label], count[label] + number) for label, number in sizes.items()} if side == "train" else {}
    for label, number in sizes.items():
        taken[side, label] = number + (count[label] if side == "train" else 0)
    return Plan(settings, users + others, taken, pools)


def _non_members(settings, left, first):
    """Non-member users and {class: images set aside for them}; left: {class: images to choose from}, in the order."""
    size, users = settings["marked_samples_per_user"], settings["num_of_non_member_users"]
    side, pool = settings["non_member_source"], settings["non_member_pool"]
    if pool is not None and pool < size:
        raise UserError(f"--non_member_pool {pool} is smaller than the {size} images of a user", advice="raise it")
    own = side == "train" and pool is None
    sizes = {label: pool or number for label, number in left.items()}
    room = left if own else {label: users * size if size <= sizes[label] <= left[label] else 0 for label in left}
    labels = _go_round(list(left), room, size, users, "non-member")
    if own:
        sizes = {label: size * number for label, number in Counter(labels).items()}
    chosen, turns = [], Counter()
    for number, label in enumerate(labels):
        # Either images of their own, or, as in the paper, images that users share, each user's being distinct.
        places = (
            np.arange(turns[label] * size, (turns[label] + 1) * size)
            if own
            else key_generator(settings["seed"], "non-member images", number).choice(sizes[label], size, replace=False)
        )
        turns[label] += 1
        chosen.append(
            _user(settings, "non_member", number, label, side, places + (first[label] if side == "train" else 0))
        )
    return chosen, {label: sizes[label] for label in turns}


def shuffled(names, *key):
    """A list of the names in the order that a key decides; key: parts of `utils.derive_key`."""
    return [names[place] for place in key_generator(*key).permutation(len(names))]


def _go_round(order, room, size, users, who):
    """The classes of `users` users who need `size` images each, `room` being {class: images to give away}."""
    chosen, turn = [], 1
    while len(chosen) < users:
        fitting = [label for label in order if room[label] >= turn * size]
        if not fitting:
            raise UserError(
                f"the classes have room for {len(chosen)} of {users} {who} users of {size} images each",
                advice="lower the number of users or --marked_samples_per_user, or look at --non_member_pool and "
                "--non_member_source",
            )
        chosen += fitting[: users - len(chosen)]
        turn += 1
    return chosen


def _user(settings, group, number, label, side, places):
    seed = int.from_bytes(derive_key(settings["seed"], "imagenet user", group, number)[:6], "little")
    return User(f"{group}_{number:05d}", group, label, side, seed, places, settings["marked_samples_per_user"])
