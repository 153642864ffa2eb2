"""Prepare the ImageNet experiment (section 6): choose users, mark their images, write a tree to train on.

Example: python imagenet-prepare.py --data_root IMAGENET --out TREE --num_of_users 1000 --marked_samples_per_user 125
Reads IMAGENET/train/CLASS/FILES and IMAGENET/val/CLASS/FILES, and changes nothing there. Writes TREE/train and TREE/val
for any script that reads an ImageFolder (links to untouched images, the members' marked files, without the images of
non-member users), TREE/members and TREE/non_members for imagenet-audit.py, TREE/records (a mark record of each member,
for eval.py), manifest.json and result.json. Keep all but train and val secret. A call that was interrupted is started
again with the same command.
"""

import argparse
import itertools
import os
import time

import numpy as np

from experiment import flags
from imagenet.plan import list_source, mark_settings, plan_users
from imagenet.tree import FITTING, FOLDERS, Tree, check_places, finish, link_tree, mark_users, publish
from kit import cli, files
from kit.environment import hardware_name, software_versions
from kit.errors import UserError, run_script
from provenance import sheet
from provenance.photos import read_photo
from utils import choose_device

SHEET_USERS = 8


def make_parser():
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    number = cli.number
    parser.add_argument("--data_root", required=True, help="folder with train/CLASS/FILES and val/CLASS/FILES")
    parser.add_argument("--out", required=True, help="TREE, a new folder outside of the data set")
    users = parser.add_argument_group("users")
    users.add_argument(
        "--num_of_users",
        type=number(int, 1),
        default=1000,
        help="member users, whose marked images stay in the training tree (default 1000)",
    )
    users.add_argument("--marked_samples_per_user", type=number(int, 1), default=125, help="default 125")
    users.add_argument(
        "--num_of_non_member_users",
        type=number(int, 1),
        help="users whose images the model never sees (default: as many as members)",
    )
    users.add_argument(
        "--non_member_source",
        choices=("train", "val"),
        default="train",
        help="train: their images are taken out of the training tree (default); val: they own "
        "validation images, 50 of a class in ImageNet, and share them",
    )
    users.add_argument(
        "--non_member_pool",
        type=number(int, 1),
        help="images of each class which its non-member users share, as in the paper (default: images "
        "of their own from train, all images of a class from val)",
    )
    users.add_argument(
        "--holdout",
        type=number(float, 0, 0.9),
        default=0.0,
        help="share of a member's photos that is kept out of the tree, for eval.py's exact test",
    )
    users.add_argument("--seed", type=number(int, 0), default=1, help="decides users, images and marks (default 1)")
    marking = parser.add_argument_group("data marking")
    usual = {name: value for name, value in flags.MARKING.items() if name != "ood_pattern"}
    flags.add_marking_flags(marking, pattern=False, **usual)
    marking.add_argument(
        "--format",
        choices=tuple(FITTING),
        default="jpeg",
        help="of marked files: jpeg (default, names are kept) or png (lossless, three times as large)",
    )
    marking.add_argument("--quality", type=number(int, 1, 100), default=95, help="of JPEG files (default 95)")
    parser.add_argument(
        "--link",
        choices=("symlink", "hard", "copy"),
        default="symlink",
        help="how untouched images get into the tree (default symlink)",
    )
    return parser


def main():
    args = make_parser().parse_args()
    started = time.monotonic()
    check_places(args.data_root, args.out)
    train, val = (list_source(os.path.join(args.data_root, side)) for side in ("train", "val"))
    settings = resolve_settings(args, train, val)
    plan = plan_users(settings, train, val)
    tree = Tree(args.out)
    with files.lock_folder(tree.out):
        if tree.open(settings):
            return show(files.read_json(tree.result), tree)
        listed = time.monotonic()
        users, unreadable = mark_users(tree, plan, train, val)
        marked = time.monotonic()
        link_tree(tree, plan, train, val)
        seconds = {"list": listed - started, "mark": marked - listed, "link": time.monotonic() - marked}
        draw_marks(tree, plan, users, train)
        files.write_json(tree.result, summary(plan, train, users, unreadable, seconds))
        publish(tree, plan, train, users, unreadable)
        finish(tree)
    show(files.read_json(tree.result), tree)


def resolve_settings(args, train, val):
    """Everything that decides the tree, a flat dict; the data's place does not, its names do."""
    settings = {name: value for name, value in vars(args).items() if name not in ("data_root", "out")}
    settings["num_of_non_member_users"] = args.num_of_non_member_users or args.num_of_users
    if mark_settings(settings).marking().changes_nothing:
        raise UserError("--img_blending_ratio 1 without noise leaves the images as they are", advice="lower it")
    return {**settings, "train_names": train.digest, "val_names": val.digest}


def summary(plan, train, users, unreadable, seconds):
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


def draw_marks(tree, plan, users, train):
    """marks.png: one marked image of some members beside its original."""
    rows = []
    for name, entry in itertools.islice(users.items(), min(SHEET_USERS, plan.settings["num_of_users"])):
        original = read_photo(os.path.join(train.folder, entry["class"], entry["originals"][0]))
        folder = next(root for root in (tree.partial, tree.out) if (root / "members").is_dir())
        marked = read_photo(folder / "members" / name / entry["class"] / entry["files"][0])
        rows.append((f"{name}: {entry['files'][0]}", sheet.thumbnails(original, np.asarray(marked))))
    sheet.contact_sheet(rows, tree.out / "marks.png")


def show(result, tree):
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


if __name__ == "__main__":
    run_script(main)
