"""The ImageNet experiment's tree: users chosen in an ImageFolder, their images marked, everything else linked.

plan.list_source -> plan.plan_users -> mark_users -> link_tree -> publish -> finish write it (imagenet-prepare.py);
users.find_users reads its member and non-member folders (imagenet-audit.py). All work goes to TREE/.partial, class by
class, and is renamed into place at the end: whoever sees TREE/train sees all of it, and a run that was stopped goes on
with the next class.

1.28 million untouched files are as many links `../../source/CLASS/FILE`, TREE/source being the one link that leaves
the tree. They are short on purpose: ext4 keeps targets below 60 bytes in the inode, longer ones cost 4 KB each.

Public: Tree, check_places, output_name, mark_users, link_tree, publish, finish.
"""

import errno
import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from imagenet.plan import FOLDERS, FORMAT, mark_settings, shuffled
from imagenet.users import read_manifest
from kit.errors import UserError
from kit.files import check_same_settings, file_digest, read_json, write_json
from kit.progress import Progress
from provenance import protect
from provenance import record as records
from provenance.folder import workers
from provenance.photos import UnreadablePhoto, encode_photo, read_photo, write_photo
from provenance.plan import AuditPlan

_FITTING = {"jpeg": (".jpg", ".jpeg"), "png": (".png",)}  # names that a marked file of this format may keep
PARTIAL = ".partial"


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
            raise UserError(f"{self.partial} is a link, and nothing is written outside of the tree", advice="remove it")
        if self.manifest.exists():
            check_same_settings(
                read_manifest(self.manifest)["settings"], settings, self.out, advice="use another --out", command=None
            )
            finish(self)
            return True
        stored = self.partial / "settings.json"
        if not stored.exists() and set(os.listdir(self.out)) - {".lock", PARTIAL}:
            raise UserError(f"--out {self.out} exists and is no tree of this script", advice="choose a new folder")
        if stored.exists():
            check_same_settings(
                read_json(stored), settings, self.out, advice="use another --out, or delete this one", command=None
            )
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
        raise UserError(
            f"--out {out} and --data_root {data_root} lie in each other",
            advice="choose a folder outside of the data set",
        )


def output_name(name, names, format):
    """The name of an image's marked file: its own, where the suffix fits the format and no other file has it."""
    suffix = _FITTING[format][0]
    if os.path.splitext(name)[1].lower() in _FITTING[format]:
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
    pool = ThreadPoolExecutor(workers())
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
        decks[side] = shuffled(names[side], plan.settings["seed"], "shuffled images", side, label)
        spares[side] = iter(range(plan.taken[side, label], len(decks[side])))
    done, unreadable = {}, {}
    while todo := [
        (user, number) for user in users for number in range(len(user.places)) if (user.name, number) not in done
    ]:

        def work(job):
            user, number = job
            return _look_at(decks[user.side][user.places[number]], sources[user.side], user.label)

        failed = {}
        for (user, number), row in zip(todo, list(pool.map(work, todo)), strict=True):
            if isinstance(row, dict):
                done[user.name, number] = row
            else:
                failed[user.side, int(user.places[number])] = row
        unreadable |= _replace(decks, spares, failed, label)
    entries = {
        user.name: _mark_user(
            tree,
            plan,
            user,
            [done[user.name, number] for number in range(len(user.places))],
            sources[user.side],
            names[user.side],
            pool,
        )
        for user in users
    }
    held_out = [decks["train"][place] for place in range(*plan.pools.get(label, (0, 0)))]
    return {"users": entries, "held_out": held_out, "unreadable": unreadable}


def _replace(decks, spares, failed, label):
    """Swap the images that failed, {(side, place): problem}, against spare ones; returns {side/class/name: problem}."""
    unreadable = {}
    for (side, place), problem in sorted(failed.items()):
        bad = decks[side][place]
        spare = next(spares[side], None)
        if spare is None:
            raise UserError(
                f"{side}/{label}: {bad} {problem}, and the class has no other image to take its place",
                advice="lower --marked_samples_per_user or the number of users",
            )
        decks[side][place], decks[side][spare] = decks[side][spare], bad
        unreadable[f"{side}/{label}/{bad}"] = problem
    return unreadable


def _look_at(name, source, label):
    """What a record says of one image, a dict; or str, why it can't be read."""
    path = os.path.join(source.folder, label, name)
    try:
        height, width, _ = read_photo(path).shape
    except UnreadablePhoto as problem:
        return str(problem)
    return {"original": name, "original_sha256": file_digest(path), "height": height, "width": width}


def _folder_of(root, user):
    return root / FOLDERS[user.group] / user.name / user.label


def _mark_user(tree, plan, user, rows, source, names, pool):
    """Draw and mark one user's images, write a member's record; returns the manifest's entry.

    rows: of `_look_at`; names: all file names of the class, so that no marked file takes one of them.
    """
    settings, folder = mark_settings(plan.settings), _folder_of(tree.partial, user)
    # What a model that is trained on the tree calls the class: its number. A label chosen later would have a price.
    label = str(list(source.listing).index(user.label))
    # Without the date: the same seed shall give the same tree, and a secret from a seed is no evidence anyway.
    record = records.commit_batch(
        records.new_record(settings),
        rows,
        1 - user.published / len(rows),
        os.path.join(source.folder, user.label),
        _folder_of(tree.out, user),
        AuditPlan.usual(user.published < len(rows), label=label),
        seed=user.seed,
        created="from a seed",
    )
    marked = {photo.number: output_name(photo.original, names, settings.format) for photo in record.photos}
    record = records.draw_batch(record, marked)
    key, marking = record.keys(0)[0][0], settings.marking()

    def mark(photo):
        pixels = read_photo(os.path.join(source.folder, user.label, photo.original))
        data = encode_photo(protect.mark_photo(pixels, key, photo.number, marking), settings.format, settings.quality)
        write_photo(folder / photo.marked, data)
        return photo.number, hashlib.sha256(data).hexdigest()

    shown = [photo for photo in record.photos if photo.published]
    record = records.finish_batch(record, dict(pool.map(mark, shown)))
    for name in set(os.listdir(folder)) - {photo.marked for photo in shown}:
        os.unlink(folder / name)  # what an interrupted call left
    if user.group == "member":
        records.private_folder(tree.partial / "records")
        records.write_record(tree.partial / "records" / user.name / "record.json", record)
    return {
        "group": user.group,
        "class": user.label,
        "side": user.side,
        "key_sha256": hashlib.sha256(key).hexdigest(),
        "numbers": [photo.number for photo in shown],
        "files": [photo.marked for photo in shown],
        "originals": [photo.original for photo in shown],
        "held_out": [photo.original for photo in record.photos if not photo.published],
    }


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
            raise UserError(
                f"--link hard can't be done for {source.folder} ({error.strerror})", advice="use --link symlink or copy"
            ) from None
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
    write_json(
        tree.manifest,
        {
            "format": FORMAT,
            "settings": plan.settings,
            "class_names": list(train.listing),
            "users": users,
            "unreadable": unreadable,
        },
    )


def finish(tree):
    """Remove what only an interrupted call would need."""
    shutil.rmtree(tree.partial, ignore_errors=True)
