"""imagenet-prepare.py's work: from its flags to a tree with everything that belongs to it.

Public: prepare.
"""

import itertools
import os
import time

import numpy as np

from imagenet.plan import FOLDERS, list_source, mark_settings, plan_users
from imagenet.tree import Tree, check_places, finish, link_tree, mark_users, publish
from kit import cli, files
from kit.environment import hardware_name, software_versions
from kit.errors import UserError
from provenance import sheet
from provenance.photos import read_photo
from utils import choose_device

SHEET_USERS = 8


def prepare(args):
    """Write the tree of what imagenet-prepare.py's parser returns, and print the short table at the end."""
    started = time.monotonic()
    check_places(args.data_root, args.out)
    train, val = (list_source(os.path.join(args.data_root, side)) for side in ("train", "val"))
    settings = _resolve_settings(args, train, val)
    plan = plan_users(settings, train, val)
    tree = Tree(args.out)
    with files.lock_folder(tree.out):
        if tree.open(settings):
            return _show(files.read_json(tree.result), tree)
        listed = time.monotonic()
        users, unreadable = mark_users(tree, plan, train, val)
        marked = time.monotonic()
        link_tree(tree, plan, train, val)
        seconds = {"list": listed - started, "mark": marked - listed, "link": time.monotonic() - marked}
        _draw_marks(tree, plan, users, train)
        files.write_json(tree.result, _summary(plan, train, users, unreadable, seconds))
        publish(tree, plan, train, users, unreadable)
        finish(tree)
    _show(files.read_json(tree.result), tree)


def _resolve_settings(args, train, val):
    """Everything that decides the tree, a flat dict; the data's place does not, its names do."""
    settings = {name: value for name, value in vars(args).items() if name not in ("data_root", "out")}
    settings["num_of_non_member_users"] = args.num_of_non_member_users or args.num_of_users
    if mark_settings(settings).marking().changes_nothing:
        raise UserError("--img_blending_ratio 1 without noise leaves the images as they are", advice="lower it")
    return {**settings, "train_names": train.digest, "val_names": val.digest}


def _summary(plan, train, users, unreadable, seconds):
    """The figures of result.json."""
    groups = {group: [entry for entry in users.values() if entry["group"] == group] for group in FOLDERS}
    away = {(entry["class"], name) for entry in groups["member"] for name in entry["held_out"]}
    set_aside = sum(last - first for first, last in plan.pools.values())
    return {
        "settings": plan.settings,
        "classes": len(train.listing),
        "source_files": train.files,
        "tree_files": train.files - len(away) - set_aside,
        "members": len(groups["member"]),
        "non_members": len(groups["non_member"]),
        "marked_files_in_tree": sum(len(entry["files"]) for entry in groups["member"]),
        "held_out_for_members": len(away),
        "held_out_for_non_members": set_aside,
        "unreadable": unreadable,
        "seconds": seconds,
        "hardware": hardware_name(choose_device("cpu")),
        "versions": software_versions(),
    }


def _draw_marks(tree, plan, users, train):
    """marks.png: one marked image of some members beside its original."""
    rows = []
    for name, entry in itertools.islice(users.items(), min(SHEET_USERS, plan.settings["num_of_users"])):
        original = read_photo(os.path.join(train.folder, entry["class"], entry["originals"][0]))
        folder = next(root for root in (tree.partial, tree.out) if (root / "members").is_dir())
        marked = read_photo(folder / "members" / name / entry["class"] / entry["files"][0])
        rows.append((f"{name}: {entry['files'][0]}", sheet.thumbnails(original, np.asarray(marked))))
    sheet.contact_sheet(rows, tree.out / "marks.png")


def _show(result, tree):
    """The short table at the end."""
    settings, seconds = result["settings"], result["seconds"]
    rows = [
        ("classes", result["classes"]),
        ("members", f"{result['members']} users x {settings['marked_samples_per_user']} marked images"),
        (
            "non-members",
            f"{result['non_members']} users x {settings['marked_samples_per_user']} marked images, "
            f"from {settings['non_member_source']}",
        ),
        (
            "training files",
            f"{result['tree_files']} of {result['source_files']}, {result['marked_files_in_tree']} of them marked",
        ),
        (
            "held out",
            f"{result['held_out_for_non_members']} for non-members, {result['held_out_for_members']} of members",
        ),
        ("unreadable, replaced", len(result["unreadable"])),
        ("seconds", ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())),
        ("train on", tree.out / "train"),
        ("manifest", tree.manifest),
        ("plot", tree.out / "marks.png"),
    ]
    cli.show_rows(rows, 22)
    for name, problem in itertools.islice(result["unreadable"].items(), 5):
        print(f"replaced: {name} {problem}")
