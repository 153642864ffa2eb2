"""The ImageNet experiment's tree: users chosen in an ImageFolder, their images marked, everything else linked.

list_source -> plan_users -> mark_users -> link_tree -> publish write it (imagenet-prepare.py); find_users reads its
member and non-member folders (imagenet-audit.py). All work goes to TREE/.partial, class by class, and is renamed into
place at the end: whoever sees TREE/train sees all of it, and a run that was stopped goes on with the next class.

1.28 million untouched files are as many links `../../source/CLASS/FILE`, TREE/source being the one link that leaves
the tree. They are short on purpose: ext4 keeps targets below 60 bytes in the inode, longer ones cost 4 KB each.
"""

import errno
import hashlib
import os
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from provenance import protect
from provenance import record as records
from provenance.photos import UnreadablePhoto, encode_photo, read_photo, write_photo
from runs import Progress, UserError, check_same_settings, read_json, write_json
from utils import derive_key, key_generator

FORMAT = "membershiptracker-imagenet-1"
# What torchvision's ImageFolder takes for an image; other files of a class are linked, but no user gets them.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
FITTING = {"jpeg": (".jpg", ".jpeg"), "png": (".png",)}  # names that a marked file of this format may keep
FOLDERS = {"member": "members", "non_member": "non_members"}
PARTIAL = ".partial"
LONGEST_NAME = 230  # bytes; of 255, some are needed for suffixes and temporary names


# ----------------------------------------------------------------------------------------------------------------------
# Source
# ----------------------------------------------------------------------------------------------------------------------

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
        return [name for name in self.names(label)
                if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")
                and "\\" not in name and len(os.fsencode(name)) <= LONGEST_NAME and _is_text(name)]

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
        raise UserError(f"{folder} can't be opened ({error.strerror}); --data_root needs train/CLASS/FILES and "
                        "val/CLASS/FILES") from None
    for label in Progress(labels, f"listing {os.path.basename(root)}", unit="class"):
        if not _is_text(label):
            raise UserError(f"{folder} has a class folder whose name is not valid UTF-8 ({label!r}); rename it")
        with os.scandir(os.path.join(root, label)) as entries:
            names = []
            for entry in entries:
                if entry.is_dir():  # known from the folder itself, except for links
                    raise UserError(f"{folder}/{label} has a folder inside ({entry.name!r}); images must lie in their "
                                    "class folder itself")
                names.append(entry.name)
        if not names:
            raise UserError(f"{folder}/{label} is empty, and no training script reads that; remove it")
        listing[label] = "\0".join(sorted(names))
    if not listing:
        raise UserError(f"{folder} has no class folders; --data_root needs train/CLASS/FILES and val/CLASS/FILES")
    return Source(root, listing)


# ----------------------------------------------------------------------------------------------------------------------
# Users
# ----------------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class User:
    """One user: `places` are positions in the shuffled images of the class, one for each of the user's numbers.

    group "member" or "non_member"; side "train" or "val", where the images come from; record: a `MarkRecord` without
    photos, whose keys follow from the seed; published: bool, which of the numbers are marked and shown.
    """

    name: str
    group: str
    label: str
    side: str
    record: records.MarkRecord
    places: np.ndarray
    published: np.ndarray

    @property
    def key(self):
        return bytes.fromhex(self.record.key)


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
    so that nobody gets a short set (defect 4).
    """
    order = _shuffled(list(train.listing), settings["seed"], "users' classes")
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
        raise UserError(f"--non_member_pool {pool} is smaller than the {size} images of a user; raise it")
    own = side == "train" and pool is None
    sizes = {label: pool or number for label, number in left.items()}
    room = left if own else {label: users * size if size <= sizes[label] <= left[label] else 0 for label in left}
    labels = _go_round(list(left), room, size, users, "non-member")
    if own:
        sizes = {label: size * number for label, number in Counter(labels).items()}
    chosen, turns = [], Counter()
    for number, label in enumerate(labels):
        # Either images of their own, or, as in the paper, images that users share, each user's being distinct.
        places = np.arange(turns[label] * size, (turns[label] + 1) * size) if own else \
            key_generator(settings["seed"], "non-member images", number).choice(sizes[label], size, replace=False)
        turns[label] += 1
        chosen.append(_user(settings, "non_member", number, label, side,
                            places + (first[label] if side == "train" else 0)))
    return chosen, {label: sizes[label] for label in turns}


def _shuffled(names, *key):
    return [names[place] for place in key_generator(*key).permutation(len(names))]


def _go_round(order, room, size, users, who):
    """The classes of `users` users who need `size` images each, `room` being {class: images to give away}."""
    chosen, turn = [], 1
    while len(chosen) < users:
        fitting = [label for label in order if room[label] >= turn * size]
        if not fitting:
            raise UserError(f"the classes have room for {len(chosen)} of {users} {who} users of {size} images each; "
                            "lower the number of users or --marked_samples_per_user, or look at --non_member_pool and "
                            "--non_member_source")
        chosen += fitting[:users - len(chosen)]
        turn += 1
    return chosen


def _user(settings, group, number, label, side, places):
    seed = int.from_bytes(derive_key(settings["seed"], "imagenet user", group, number)[:6], "little")
    record = records.new_record(mark_settings(settings), seed)
    batch = {"photos": len(places), "published": settings["marked_samples_per_user"]}
    published = records.draw_selections(record.selection_key, [batch], 0)[0]
    return User(f"{group}_{number:05d}", group, label, side, record, places, published)


# ----------------------------------------------------------------------------------------------------------------------
# Tree
# ----------------------------------------------------------------------------------------------------------------------

class Tree:
    """The folder to write, and its unfinished parts."""

    def __init__(self, out):
        self.out = Path(out).absolute()
        self.partial = self.out / PARTIAL
        self.manifest, self.result = self.out / "manifest.json", self.out / "result.json"

    def open(self, settings):
        """Start, or go on with what an interrupted call with the same settings left. True when all is done already."""
        if self.partial.is_symlink():
            raise UserError(f"{self.partial} is a link, and nothing is written outside of the tree; remove it")
        if self.manifest.exists():
            check_same_settings(read_manifest(self.manifest)["settings"], settings, self.out, hint="Use another --out")
            finish(self)
            return True
        stored = self.partial / "settings.json"
        if not stored.exists() and set(os.listdir(self.out)) - {".lock", PARTIAL}:
            raise UserError(f"--out {self.out} exists and is no tree of this script; choose a new folder")
        if stored.exists():
            check_same_settings(read_json(stored), settings, self.out, hint="Use another --out, or delete this one")
        else:
            write_json(stored, settings)
        return False

    def finished_class(self, label):
        """Where a class's users are kept once they are marked. Its name may be anything, so it is a digest."""
        return self.partial / "classes" / f"{hashlib.sha256(label.encode()).hexdigest()[:32]}.json"


def check_places(data_root, out):
    """Raise UserError when the tree would lie in the data set or around it."""
    source, target = os.path.realpath(data_root), os.path.realpath(out)
    if os.path.commonpath([source, target]) in (source, target):
        raise UserError(f"--out {out} and --data_root {data_root} lie in each other; choose a folder outside of the "
                        "data set")


def output_name(name, names, format):
    """The name of an image's marked file: its own, where the suffix fits the format and no other file has it."""
    suffix = FITTING[format][0]
    if os.path.splitext(name)[1].lower() in FITTING[format]:
        return name
    marked = name + suffix
    while marked in names:
        marked += suffix
    return marked


def mark_users(tree, plan, train, val):
    """Mark every user's images into the unfinished tree: the manifest's {user: entry}, {side/class/name: problem}.

    Images that can't be read are replaced by others of their class. Raises UserError when a class has too few.
    """
    labels = sorted({user.label for user in plan.users})
    users, unreadable = {}, {}
    bar = Progress(total=len(plan.users), desc="marking", unit="user")
    pool = ThreadPoolExecutor(protect.workers())
    try:
        for label in labels:
            own, kept = plan.of_class(label), tree.finished_class(label)
            if not kept.exists():
                write_json(kept, _mark_class(tree, plan, label, own, {"train": train, "val": val}, pool))
            done = read_json(kept)
            users |= done["users"]
            unreadable |= done["unreadable"]
            bar.update(len(own))
    finally:
        bar.close()
        pool.shutdown(cancel_futures=True)
    return {user.name: users[user.name] for user in plan.users}, unreadable


def _mark_class(tree, plan, label, users, sources, pool):
    """Mark the users of one class, images that can't be read giving way to the next one in the shuffled order."""
    decks, spares, names = {}, {}, {}
    for side in {user.side for user in users} | ({"train"} if label in plan.pools else set()):
        names[side] = sources[side].images(label)
        decks[side] = _shuffled(names[side], plan.settings["seed"], "shuffled images", side, label)
        spares[side] = iter(range(plan.taken[side, label], len(decks[side])))
    done, unreadable = {}, {}
    while todo := [(user, number) for user in users for number in range(len(user.places))
                   if (user.name, number) not in done]:
        def work(job):
            user, number = job
            return _mark_one(tree, user, number, decks[user.side][user.places[number]], sources[user.side],
                             names[user.side])

        failed = {}
        for (user, number), row in zip(todo, list(pool.map(work, todo)), strict=True):
            if isinstance(row, dict):
                done[user.name, number] = row
            else:
                failed[user.side, int(user.places[number])] = row
        unreadable |= _replace(decks, spares, failed, label)
    entries = {user.name: _finish_user(tree, user, [done[user.name, number] for number in range(len(user.places))],
                                       sources[user.side]) for user in users}
    held_out = [decks["train"][place] for place in range(*plan.pools.get(label, (0, 0)))]
    return {"users": entries, "held_out": held_out,
            "unreadable": unreadable}


def _replace(decks, spares, failed, label):
    """Swap the images that failed, {(side, place): problem}, against spare ones; returns {side/class/name: problem}."""
    unreadable = {}
    for (side, place), problem in sorted(failed.items()):
        bad = decks[side][place]
        spare = next(spares[side], None)
        if spare is None:
            raise UserError(f"{side}/{label}: {bad} {problem}, and the class has no other image to take its place; "
                            "lower --marked_samples_per_user or the number of users")
        decks[side][place], decks[side][spare] = decks[side][spare], bad
        unreadable[f"{side}/{label}/{bad}"] = problem
    return unreadable


def _mark_one(tree, user, number, name, source, names):
    """Mark one image: a dict for the user's record, or str, why it can't be read."""
    path = os.path.join(source.folder, user.label, name)
    try:
        pixels = read_photo(path)
    except UnreadablePhoto as problem:
        return str(problem)
    row = {"original": name, "original_sha256": records.file_digest(path), "height": pixels.shape[0],
           "width": pixels.shape[1], "marked": None}
    if user.published[number]:
        settings = user.record.settings
        data = encode_photo(protect.mark_photo(pixels, user.key, number, settings.marking()), settings.format,
                            settings.quality)
        row["marked"] = output_name(name, names, settings.format)
        write_photo(_folder_of(tree.partial, user) / row["marked"], data)
        row["marked_sha256"] = hashlib.sha256(data).hexdigest()
    return row


def _folder_of(root, user):
    return root / FOLDERS[user.group] / user.name / user.label


def _finish_user(tree, user, rows, source):
    """Remove files that an interrupted call left, write a member's record; returns the manifest's entry."""
    folder, kept = _folder_of(tree.partial, user), {row["marked"] for row in rows}
    for name in set(os.listdir(folder)) - kept:
        os.unlink(folder / name)
    numbers = [number for number, row in enumerate(rows) if row["marked"]]
    if user.group == "member":
        photos = [{name: row[name] for name in ("original", "original_sha256", "height", "width")} for row in rows]
        record = records.add_batch(user.record, photos, 1 - len(numbers) / len(rows),
                                   os.path.join(source.folder, user.label), _folder_of(tree.out, user),
                                   [row["marked"] or row["original"] for row in rows])
        # Without the date: the same seed shall give the same tree, and a key from a seed is no evidence anyway.
        batch = record.batches[0].model_copy(update={"created": "from a seed"})
        record = record.model_copy(update={"batches": [batch]})
        assert np.array_equal(record.published, user.published), "record and plan publish different photos"
        record = records.finish_batch(record, {number: rows[number]["marked_sha256"] for number in numbers})
        records.private_folder(tree.partial / "records")
        records.write_record(tree.partial / "records" / user.name / "record.json", record)
    return {"group": user.group, "class": user.label, "side": user.side,
            "key_sha256": hashlib.sha256(user.key).hexdigest(), "numbers": numbers,
            "files": [rows[number]["marked"] for number in numbers],
            "originals": [rows[number]["original"] for number in numbers],
            "held_out": [row["original"] for row in rows if not row["marked"]]}


# ----------------------------------------------------------------------------------------------------------------------
# Links
# ----------------------------------------------------------------------------------------------------------------------

def link_tree(tree, plan, train, val):
    """Write the training tree (and, unless links are enough, the validation tree) class by class; resumes."""
    how, changes = plan.settings["link"], {label: (set(), []) for label in train.listing}
    for label in {user.label for user in plan.users}:
        done = read_json(tree.finished_class(label))
        gone, marked = changes[label]
        gone.update(done["held_out"])
        for name, entry in done["users"].items():
            if entry["group"] == "member":
                gone.update(entry["held_out"], entry["originals"])
                marked += [(_folder(tree, "members") / name / label / file, file) for file in entry["files"]]
    _link_classes(tree, "train", train, how, changes)
    if how == "symlink":
        _symlink(train.folder, tree.partial / "source")
        _symlink(val.folder, tree.partial / "val")
    else:
        _link_classes(tree, "val", val, how, {})


def _folder(tree, name):
    return tree.partial / name if (tree.partial / name).exists() else tree.out / name


def _symlink(target, link):
    link.unlink(missing_ok=True)
    link.symlink_to(target)


def _link_classes(tree, side, source, how, changes):
    if (tree.out / side).is_dir():  # an earlier call came as far as publishing it
        return
    (tree.partial / side).mkdir(exist_ok=True)
    for label in Progress(source.listing, f"writing {side}", unit="class"):
        if not (tree.partial / side / label).exists():
            _link_class(tree, side, source, label, how, *changes.get(label, ((), ())))


def _link_class(tree, side, source, label, how, gone, marked):
    """One class folder, renamed into place when it is complete: links but for `gone`, then (path, name) in `marked`."""
    work = tree.partial / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    names = [name for name in source.names(label) if name not in gone]
    if how == "copy":
        for name in names:
            shutil.copyfile(os.path.join(source.folder, label, name), work / name)
    else:
        # Names relative to an open folder: the kernel does not walk the same path a million times.
        folder, origin = (os.open(path, os.O_RDONLY) for path in (work, os.path.join(source.folder, label)))
        try:
            for name in names:
                if how == "symlink":
                    os.symlink(f"../../source/{label}/{name}", name, dir_fd=folder)
                else:
                    os.link(name, name, src_dir_fd=origin, dst_dir_fd=folder)
        except OSError as error:
            if how == "symlink" or error.errno not in (errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP):
                raise
            raise UserError(f"--link hard can't be done for {source.folder} ({error.strerror}); use --link symlink or "
                            "copy") from None
        finally:
            os.close(folder)
            os.close(origin)
    for path, name in marked:
        try:
            os.link(path, work / name)  # the one file under two names: TREE/members and TREE/train
        except OSError:
            shutil.copyfile(path, work / name)
    os.rename(work, tree.partial / side / label)


def publish(tree, plan, train, users, unreadable):
    """Rename all parts into place and write the manifest, which says that the tree is complete."""
    for name in ("source", "val", "members", "non_members", "records", "train"):
        if os.path.lexists(tree.partial / name):
            os.rename(tree.partial / name, tree.out / name)
    write_json(tree.manifest, {"format": FORMAT, "settings": plan.settings, "class_names": list(train.listing),
                               "users": users, "unreadable": unreadable})


def finish(tree):
    """Remove what only an interrupted call would need."""
    shutil.rmtree(tree.partial, ignore_errors=True)


# ----------------------------------------------------------------------------------------------------------------------
# Reading
# ----------------------------------------------------------------------------------------------------------------------

def read_manifest(path):
    """Read and check a manifest.json. Raises UserError; no name in it can leave the folder that it is joined to."""
    path = Path(path)
    manifest = read_json(path / "manifest.json" if path.is_dir() else path)
    try:
        if manifest["format"] != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        names = list(manifest["class_names"])
        for name, entry in manifest["users"].items():
            names += [name, entry["class"], *entry["files"]]
            if entry["group"] not in FOLDERS or not isinstance(entry["files"], list) or \
                    len(entry["numbers"]) != len(entry["files"]):
                raise ValueError(f"user {name} is not as it should be")
        bad = [name for name in names if not isinstance(name, str) or name in ("", ".", "..") or "/" in name
               or "\0" in name]
        if bad or not isinstance(manifest["settings"], dict):
            raise ValueError(f"{bad[0]!r} is no file name" if bad else "it has no settings")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not a manifest of imagenet-prepare.py ({type(error).__name__}: {error}); give "
                        "TREE/manifest.json") from None
    return manifest


def find_users(folder, manifest=None, group=None):
    """The users of a member or non-member folder: {user: [(class, path), ...]}, sorted by user and then by name.

    With a manifest the users and files are those that it lists for `group`. Without, FOLDER/USER/CLASS/FILES, or
    FOLDER/CLASS/FILES, where a class is one user. Raises UserError.
    """
    root = str(folder)
    if not os.path.isdir(root):
        raise UserError(f"{folder} is not a folder; give one with USER/CLASS/IMAGES or CLASS/IMAGES inside")
    if manifest is not None:
        found = {name: sorted((entry["class"], os.path.join(root, name, entry["class"], file))
                              for file in entry["files"])
                 for name, entry in sorted(manifest["users"].items()) if entry["group"] == group}
        missing = next((path for files in found.values() for _, path in files if not os.path.isfile(path)), None)
        if missing:
            raise UserError(f"{missing} is missing, though the manifest lists it; give the folders and the manifest of "
                            "one tree")
    else:
        found = dict(_users_of_folders(root))
    if not found:
        raise UserError(f"{folder} has no users: neither USER/CLASS/IMAGES nor CLASS/IMAGES")
    return found


def _users_of_folders(root):
    shapes = set()
    for name in _below(root, folders=True):
        classes, files = (_below(os.path.join(root, name), folders) for folders in (True, False))
        if classes and files:
            raise UserError(f"{root}/{name} has both images and folders inside; use USER/CLASS/IMAGES or CLASS/IMAGES")
        if not classes and not files:
            raise UserError(f"{root}/{name} is empty; remove it")
        shapes.add(bool(classes))
        if len(shapes) > 1:
            raise UserError(f"{root} mixes USER/CLASS/IMAGES and CLASS/IMAGES (as {name}); use one of them")
        yield name, [(label, os.path.join(root, name, label, file)) for label in classes
                     for file in _below(os.path.join(root, name, label), False)] or \
            [(name, os.path.join(root, name, file)) for file in files]


def _below(folder, folders):
    """Sorted names of the folders, or of the images, in a folder."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if (
            entry.is_dir() if folders else not entry.is_dir() and not entry.name.startswith(".")
            and os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES))
