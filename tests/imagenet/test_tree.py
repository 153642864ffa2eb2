"""imagenet-prepare.py, imagenet-audit.py and imagenet-eval.sh: the tree, its users, the audit and everything wrong."""

import argparse
import importlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from conftest import ROOT
from PIL import Image

import utils
from imagenet import tree
from imagenet.plan import Source, plan_users
from imagenet.tree import FOLDERS, output_name
from imagenet.users import find_users, read_manifest
from kit.errors import UserError
from kit.files import read_arrays, read_json, write_json
from provenance import protect
from provenance import record as records
from provenance.photos import encode_photo, read_photo

CLASSES = ("n01", "n02", "n03", "n04", "n05")
SIDE = 32
PREPARE = {"--num_of_users": 4, "--marked_samples_per_user": 3, "--num_of_non_member_users": 5, "--seed": 3}


def write_images(folder, names, seed=0):
    draws = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        pixels = draws.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name, "png" if str(name).endswith("png") else "jpeg")


def make_source(root, classes=CLASSES, images=14, val=4):
    for number, label in enumerate(classes):
        names = [f"{label}_{image}.{'png' if image % 5 == 4 else 'JPEG'}" for image in range(images)]
        write_images(root / "train" / label, names, number)
        write_images(root / "val" / label, [f"val_{image}.JPEG" for image in range(val)], 100 + number)
    return root


@pytest.fixture
def source(tmp_path):
    return make_source(tmp_path / "data")


def prepare(script, source, out, **flags):
    chosen = {**PREPARE, **{f"--{name}": value for name, value in flags.items()}}
    return script(
        "imagenet-prepare", "--data_root", source, "--out", out, *(part for item in chosen.items() for part in item)
    )


def snapshot(folder, follow=False):
    """{path: link target or bytes} of all files below a folder."""
    found = {}
    for parent, folders, files in os.walk(folder):
        for name in [*files, *(name for name in folders if os.path.islink(os.path.join(parent, name)))]:
            path = os.path.join(parent, name)
            key = os.path.relpath(path, folder)
            found[key] = (
                os.readlink(path)
                if os.path.islink(path) and not follow
                else Path(path).read_bytes()
                if os.path.isfile(path)
                else None
            )
    return found


def comparable(folder):
    """The snapshot without what tells times."""
    return {name: value for name, value in snapshot(folder).items() if name not in ("result.json", ".lock")}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """(source, tree) with default flags, made once. Tests must not change them."""
    root = tmp_path_factory.mktemp("imagenet")
    source, out = make_source(root / "data"), root / "tree"
    flags = {**PREPARE, "--holdout": 0.25, "--data_root": source, "--out": out}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["imagenet-prepare.py", *(str(part) for item in flags.items() for part in item)])
        importlib.import_module("imagenet-prepare").main()
    return source, out


@pytest.fixture(scope="module")
def manifest(prepared):
    return read_manifest(prepared[1])


def entries(manifest, group):
    return {name: entry for name, entry in manifest["users"].items() if entry["group"] == group}


# ----------------------------------------------------------------------------------------------------------------------
# The tree
# ----------------------------------------------------------------------------------------------------------------------


def test_tree_has_the_sources_files_but_for_those_held_out(prepared, manifest):
    source, out = prepared
    for label in CLASSES:
        away = {
            name
            for entry in manifest["users"].values()
            if entry["class"] == label
            for name in (entry["originals"] if entry["group"] == "non_member" else entry["held_out"])
        }
        renamed = {
            original: file
            for entry in entries(manifest, "member").values()
            if entry["class"] == label
            for original, file in zip(entry["originals"], entry["files"], strict=True)
        }
        expected = {renamed.get(name, name) for name in os.listdir(source / "train" / label) if name not in away}
        assert set(os.listdir(out / "train" / label)) == expected


def test_labels_are_unchanged_under_image_folder(prepared):
    _, out = prepared
    before, after = (torchvision.datasets.ImageFolder(root / "train") for root in prepared)
    assert before.class_to_idx == after.class_to_idx
    labels = {os.path.basename(path).split(".")[0]: label for path, label in before.samples}
    assert all(labels[os.path.basename(path).split(".")[0]] == label for path, label in after.samples)
    assert len(torchvision.datasets.ImageFolder(out / "val").samples) == 4 * len(CLASSES)


@pytest.mark.parametrize("format", ["png", "jpeg"])
def test_member_files_are_the_marked_pixels(script, source, tmp_path, format):
    out = tmp_path / "tree"
    assert prepare(script, source, out, format=format).code == 0
    found = read_manifest(out)
    settings = found["settings"]
    for number, (name, entry) in enumerate(entries(found, "member").items()):
        seed = int.from_bytes(utils.derive_key(3, "imagenet user", "member", number)[:6], "little")
        key = utils.derive_key(seed, "mark record")
        for position, original, file in zip(entry["numbers"], entry["originals"], entry["files"], strict=True):
            pixels = protect.mark_photo(
                read_photo(source / "train" / entry["class"] / original), key, position, utils.Marking()
            )
            expected = encode_photo(pixels, format, settings["quality"])
            assert (out / "train" / entry["class"] / file).read_bytes() == expected
            assert (out / "members" / name / entry["class"] / file).read_bytes() == expected
            if format == "jpeg" and original.endswith("JPEG"):
                assert file == original
            if format == "png":
                assert np.array_equal(np.asarray(Image.open(out / "train" / entry["class"] / file)), pixels)


@pytest.mark.parametrize("link", ["symlink", "hard", "copy"])
def test_untouched_files_have_the_same_content(script, source, tmp_path, link):
    out, before = tmp_path / "tree", snapshot(source)
    assert prepare(script, source, out, link=link).code == 0
    marked = {file for entry in entries(read_manifest(out), "member").values() for file in entry["files"]}
    for side in ("train", "val"):
        for label in CLASSES:
            for path in (out / side / label).iterdir():
                original = source / side / label / path.name
                if path.name in marked:
                    assert not path.is_symlink()
                    assert path.read_bytes() != (original.read_bytes() if original.exists() else b"")
                    continue
                assert path.read_bytes() == original.read_bytes()
                assert path.is_symlink() == (link == "symlink" and side == "train")
                assert os.path.samefile(path, original) == (link != "copy")
    assert snapshot(source) == before


def test_links_are_short_enough_for_an_inode(prepared):
    _, out = prepared
    targets = [os.readlink(path) for path in (out / "train").glob("*/*") if path.is_symlink()]
    assert targets and all(target.startswith("../../source/") for target in targets)
    # With ImageNet's names: the class twice, up to 6 digits.
    assert len("../../source/n01440764/n01440764_123456.JPEG") < 60


def test_nothing_outside_of_the_tree_is_written(script, source, tmp_path):
    (tmp_path / "other").mkdir()
    before = snapshot(tmp_path)
    assert prepare(script, source, tmp_path / "tree").code == 0
    after = snapshot(tmp_path)
    assert {name: value for name, value in after.items() if not name.startswith("tree/")} == before
    assert not (tmp_path / "tree" / ".partial").exists()


@pytest.mark.parametrize("stop", ["_mark_class", "_link_class", "publish", "write_json"])
def test_an_interrupted_call_goes_on_to_the_same_bits(script, source, tmp_path, monkeypatch, stop):
    assert prepare(script, source, tmp_path / "whole").code == 0
    real, calls = getattr(tree, stop), []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3 or stop == "publish":
            if stop == "publish":  # in the middle of the renames
                os.rename(arguments[0].partial / "members", arguments[0].out / "members")
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(tree, stop, interrupted)
        stopped = prepare(script, source, tmp_path / "parts")
    assert stopped.code == 130 and "start the same command again" in stopped.err
    assert not (tmp_path / "parts" / "train").exists() and not (tmp_path / "parts" / "manifest.json").exists()
    assert prepare(script, source, tmp_path / "parts").code == 0
    paths = {name: tmp_path / name for name in ("whole", "parts")}
    for path in paths.values():  # the only bytes that name the place
        for record in path.glob("records/*/record.json"):
            content = json.loads(record.read_text())
            content["batches"][0].pop("marked_folder")
            content.pop("commitments")
            record.write_text(json.dumps(content))
    assert comparable(paths["parts"]) == comparable(paths["whole"])


def test_an_interrupted_call_with_other_settings_is_refused(script, source, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(tree, "link_tree", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        prepare(script, source, tmp_path / "tree")
    refused = prepare(script, source, tmp_path / "tree", seed=4)
    assert refused.code == 2 and "seed is 3 there and 4 here" in refused.err


def test_a_second_call_changes_nothing(script, source, tmp_path):
    first = prepare(script, source, tmp_path / "tree")
    before = {path: path.lstat().st_mtime_ns for path in (tmp_path / "tree").rglob("*")}
    second = prepare(script, source, tmp_path / "tree")
    assert second.code == 0 and second.out == first.out
    assert {path: path.lstat().st_mtime_ns for path in (tmp_path / "tree").rglob("*") if path.name != ".lock"} == {
        path: time for path, time in before.items() if path.name != ".lock"
    }
    assert prepare(script, source, tmp_path / "tree", noise_norm=4).code == 2


def test_the_order_of_directories_does_not_matter(script, source, tmp_path, monkeypatch):
    prepare(script, source, tmp_path / "a")
    real = os.scandir

    class Reversed:
        def __init__(self, path="."):
            self._entries = list(real(path))[::-1]

        def __enter__(self):
            return iter(self._entries)

        __iter__ = __enter__

        def __exit__(self, *_):
            pass

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", Reversed)
        prepare(script, source, tmp_path / "b")
    users = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in "ab"]
    assert users[0] == users[1]
    marked = [snapshot(tmp_path / name / "members") for name in "ab"]
    assert marked[0] == marked[1] and marked[0]


def test_other_seeds_give_other_users(script, source, tmp_path):
    digests = []
    for seed in (1, 2):
        prepare(script, source, tmp_path / str(seed), seed=seed)
        found = read_manifest(tmp_path / str(seed))
        digests.append([(entry["key_sha256"], entry["originals"]) for entry in found["users"].values()])
    assert not {key for key, _ in digests[0]} & {key for key, _ in digests[1]}
    assert digests[0] != digests[1]


def test_unreadable_images_are_replaced_before_anything_is_published(script, source, tmp_path):
    # As many users as fit, so that a damaged image is drawn for certain.
    for label in CLASSES:
        (source / "train" / label / f"{label}_0.JPEG").write_bytes(b"\xff\xd8\xff damaged")
        (source / "train" / label / f"{label}_1.JPEG").write_bytes(b"")
    done = prepare(script, source, tmp_path / "tree", num_of_users=10, num_of_non_member_users=10)
    assert done.code == 0, done.err
    found = read_manifest(tmp_path / "tree")
    assert found["unreadable"] and all(name.startswith("train/n0") for name in found["unreadable"])
    damaged = {f"{label}_{number}.JPEG" for label in CLASSES for number in (0, 1)}
    for entry in found["users"].values():
        assert not damaged & set(entry["originals"]) and len(set(entry["originals"])) == 3
    own = [(entry["class"], name) for entry in found["users"].values() for name in entry["originals"]]
    assert len(own) == len(set(own)) == 60
    assert f"{len(found['unreadable'])}" in next(line for line in done.out.splitlines() if "replaced" in line)


def test_a_class_full_of_damaged_images_is_one_line(script, source, tmp_path):
    for path in (source / "train").glob("*/*"):
        path.write_bytes(b"nothing")
    refused = prepare(script, source, tmp_path / "tree")
    assert refused.code == 2 and refused.err.count("\n") == 1 and "no other image" in refused.err
    assert not (tmp_path / "tree" / "train").exists()


# ----------------------------------------------------------------------------------------------------------------------
# Users
# ----------------------------------------------------------------------------------------------------------------------


def plan(counts, **changes):
    settings = {
        "num_of_users": 4,
        "marked_samples_per_user": 3,
        "num_of_non_member_users": 4,
        "holdout": 0.0,
        "non_member_source": "train",
        "non_member_pool": None,
        "seed": 1,
        "img_blending_ratio": 0.7,
        "noise_injection_type": "perlin",
        "noise_norm": 8.0,
        "format": "png",
        "quality": 95,
        **changes,
    }
    train, val = (
        Source(
            side, {label: "\0".join(f"{label}{image}.png" for image in range(count)) for label, count in counts.items()}
        )
        for side in ("train", "val")
    )
    return plan_users(settings, train, val)


@pytest.mark.parametrize("seed", range(5))
def test_no_image_of_the_training_set_has_two_owners(seed):
    made = plan({"a": 20, "b": 7, "c": 4, "d": 30}, seed=seed, num_of_users=6, num_of_non_member_users=7, holdout=0.25)
    owned = [(user.label, int(place)) for user in made.users for place in user.places]
    assert len(owned) == len(set(owned))
    sizes = {user.name: len(user.places) for user in made.users}
    assert {size for name, size in sizes.items() if name.startswith("member")} == {4}
    assert {size for name, size in sizes.items() if name.startswith("non_member")} == {3}
    assert all(int(user.published.sum()) == 3 for user in made.users)
    assert all(made.taken["train", user.label] > user.places.max() for user in made.users)


def test_users_are_spread_over_classes():
    made = plan(dict.fromkeys("abcdefgh", 100), num_of_users=8, num_of_non_member_users=16)
    assert sorted(user.label for user in made.users if user.group == "member") == list("abcdefgh")
    assert sorted(user.label for user in made.users if user.group == "non_member") == sorted(2 * "abcdefgh")


def test_classes_with_too_few_images_are_passed_over():
    made = plan({"a": 3, "b": 13, "c": 13}, num_of_users=4)  # one image of a class stays as it is
    assert {user.label for user in made.users} == {"b", "c"}


def test_non_members_share_a_pool_of_distinct_images():
    made = plan({"a": 40, "b": 40}, num_of_users=2, num_of_non_member_users=50, non_member_pool=6)
    for user in (user for user in made.users if user.group == "non_member"):
        first, last = made.pools[user.label]
        assert last - first == 6 and len(set(user.places)) == 3
        assert first <= user.places.min() and user.places.max() < last
    members = {(user.label, int(place)) for user in made.users if user.group == "member" for place in user.places}
    pooled = {(label, place) for label, (first, last) in made.pools.items() for place in range(first, last)}
    assert not members & pooled


def test_non_members_of_the_validation_set_leave_the_training_set_alone(script, source, tmp_path):
    assert prepare(script, source, tmp_path / "tree", non_member_source="val", num_of_non_member_users=30).code == 0
    found = read_manifest(tmp_path / "tree")
    assert len(entries(found, "non_member")) == 30
    assert all(name.startswith("val_") for entry in entries(found, "non_member").values() for name in entry["files"])
    assert sum(len(list((tmp_path / "tree" / "train" / label).iterdir())) for label in CLASSES) == 14 * len(CLASSES)


def test_records_fit_the_files_and_hold_photos_out(prepared, manifest):
    source, out = prepared
    for name, entry in entries(manifest, "member").items():
        record = records.read_record(out / "records" / name / "record.json")
        originals = records.locate_originals(record, [source / "train" / entry["class"]], out / "records" / name)
        rows = protect.verify(record, originals, [out / "members" / name / entry["class"]])
        assert len(rows) == 3 and not any(row["problem"] for row in rows)
        assert len(record.photos) == 4 and not record.evidence
        held = {photo.original for photo in record.photos if not photo.published}
        assert held == set(entry["held_out"])
        assert not held & set(os.listdir(out / "train" / entry["class"]))


def test_users_of_the_manifest_and_of_the_folders_agree(prepared, manifest):
    for group, folder in FOLDERS.items():
        listed = find_users(prepared[1] / folder, manifest, group)
        assert listed == find_users(prepared[1] / folder)
        assert all(len(files) == 3 for files in listed.values())


def test_classes_are_users_where_there_are_no_user_folders(source):
    found = find_users(source / "val")
    assert list(found) == list(CLASSES)
    assert found["n02"] == [("n02", str(source / "val" / "n02" / f"val_{image}.JPEG")) for image in range(4)]


HOSTILE = ("a b", "ä\u202e名", "-rf", "..x", "$(touch hacked)", "new\nline", "'quote\"")


def test_hostile_names_survive(script, tmp_path):
    source = make_source(tmp_path / "data", HOSTILE, images=9)
    for label in HOSTILE:
        write_images(
            source / "train" / label,
            ["-n.png", "x\ny.png", "back\\slash.png", "é\u202e.png", ".hidden.png", "L" * 250 + ".png"],
        )
        os.rename(source / "train" / label / "-n.png", os.fsencode(source / "train" / label) + b"/bad\xff.png")
        (source / "train" / label / "notes.txt").write_text("no image")
    done = prepare(
        script,
        source,
        tmp_path / "tree",
        num_of_users=14,
        num_of_non_member_users=14,
        format="png",
        marked_samples_per_user=2,
    )
    assert done.code == 0, done.err
    before, after = (
        {label: set(os.listdir(os.fsencode(root / "train" / label))) for label in HOSTILE}
        for root in (source, tmp_path / "tree")
    )
    for label in HOSTILE:
        assert {b"bad\xff.png", b"back\\slash.png", b"notes.txt", b"L" * 250 + b".png"} <= after[label]
    assert sum(map(len, before.values())) - sum(map(len, after.values())) == 14 * 2
    assert find_users(tmp_path / "tree" / "members") == find_users(
        tmp_path / "tree" / "members", read_manifest(tmp_path / "tree"), "member"
    )
    assert {path.name for path in tmp_path.iterdir()} == {"data", "tree"}


def test_output_names_never_meet():
    names = ["a.png", "a.png.jpg", "a.bmp", "a.JPEG", "a.jpg"]
    assert [output_name(name, names, "jpeg") for name in names] == [
        "a.png.jpg.jpg",
        "a.png.jpg",
        "a.bmp.jpg",
        "a.JPEG",
        "a.jpg",
    ]


def spoil(source, how):
    if how == "no train":
        shutil.rmtree(source / "train")
    elif how == "no val":
        shutil.rmtree(source / "val")
    elif how == "flat val":
        shutil.rmtree(source / "val")
        write_images(source / "val", ["one.JPEG"])
    elif how == "empty class":
        (source / "train" / "n06").mkdir()
    elif how == "nested":
        write_images(source / "train" / "n01" / "images", ["one.JPEG"])
    elif how == "bad class":
        os.mkdir(os.fsencode(source / "train") + b"/n\xff")
    elif how == "no images":
        for path in (source / "train").glob("*/*"):
            path.rename(path.with_suffix(".txt"))


@pytest.mark.parametrize(
    ("how", "flags", "part"),
    [
        ("no train", {}, "can't be opened"),
        ("no val", {}, "can't be opened"),
        ("flat val", {}, "no class folders"),
        ("empty class", {}, "is empty"),
        ("nested", {}, "has a folder inside"),
        ("bad class", {}, "not valid UTF-8"),
        ("no images", {}, "room for 0 of 4 member users"),
        ("", {"marked_samples_per_user": 14}, "room for 0 of 4 member users of 14"),
        ("", {"num_of_users": 21}, "room for 20 of 21 member users"),
        ("", {"num_of_non_member_users": 50}, "non-member users"),
        ("", {"non_member_pool": 2}, "smaller than the 3"),
        ("", {"non_member_pool": 400}, "room for 0 of 5 non-member"),
        ("", {"non_member_source": "val", "marked_samples_per_user": 5}, "room for 0 of 5 non-member"),
        ("", {"img_blending_ratio": 1, "noise_norm": 0}, "leaves the images as they are"),
        ("", {"seed": -1}, "at least 0"),
        ("", {"num_of_users": 0}, "at least 1"),
        ("", {"link": "soft"}, "invalid choice"),
    ],
)
def test_bad_input_of_prepare_is_one_line(script, source, tmp_path, how, flags, part):
    spoil(source, how)
    refused = prepare(script, source, tmp_path / "tree", **flags)
    assert refused.code == 2 and part in refused.err
    assert refused.err.startswith("error: ") and refused.err.count("\n") == 1
    assert not (tmp_path / "tree").exists()


@pytest.mark.parametrize("place", ["data", "data/tree", "data/train/n01", "."])
def test_a_tree_inside_of_the_data_is_refused(script, source, tmp_path, place):
    before = snapshot(tmp_path)
    refused = prepare(script, source, tmp_path / place)
    assert refused.code == 2 and "lie in each other" in refused.err
    assert snapshot(tmp_path) == before


def test_foreign_folders_and_links_are_refused(script, source, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    assert "no tree of this script" in prepare(script, source, tmp_path / "full").err
    (tmp_path / "linked").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "linked" / ".partial").symlink_to(tmp_path / "elsewhere")
    assert "is a link" in prepare(script, source, tmp_path / "linked").err
    assert not any((tmp_path / "elsewhere").iterdir())
    assert [path.name for path in (tmp_path / "full").iterdir() if path.name != ".lock"] == ["thesis.txt"]


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["users"]["member_00000"].update({"files": ["../../../etc/passwd"] * 3}),
        lambda m: m["users"]["member_00000"].update({"class": ".."}),
        lambda m: m["users"].update({"a/b": m["users"]["member_00000"]}),
        lambda m: m["users"]["member_00000"].update({"group": "friend"}),
        lambda m: m["users"]["member_00000"].pop("files"),
        lambda m: m.update({"format": "other"}),
        lambda m: m.update({"users": [1]}),
        lambda m: m.update({"class_names": [1]}),
    ],
)
def test_hostile_manifests_are_refused(manifest, tmp_path, change):
    copy = json.loads(json.dumps(manifest))
    change(copy)
    write_json(tmp_path / "manifest.json", copy)
    with pytest.raises(UserError, match="not a manifest"):
        read_manifest(tmp_path / "manifest.json")


# ----------------------------------------------------------------------------------------------------------------------
# The audit
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A torchvision ResNet-18 as torchvision's own script leaves it: weights, and its flags as a Namespace."""
    path = tmp_path_factory.mktemp("model") / "checkpoint.pth"
    with utils.seeded("test"):
        model = torchvision.models.resnet18(num_classes=len(CLASSES))
        with torch.no_grad():  # statistics of a random network are far from those of its activations
            model.train()(torch.randn(16, 3, SIDE, SIDE))
    torch.save({"model": model.state_dict(), "epoch": 1, "args": argparse.Namespace(lr=0.1, output_dir=".")}, path)
    return path


def audit(script, tree, checkpoint, out, *flags, **replaced):
    named = {
        "--resume_path": checkpoint,
        "--arch": "resnet18",
        "--member_data_folder": tree / "members",
        "--non_member_data_folder": tree / "non_members",
        "--val_set_data_folder": tree / "val",
        "--out": out,
        "--device": "cpu",
        "--input_size": SIDE,
        "--resize": SIDE,
        "--batch_size": 4,
        **{f"--{name}": value for name, value in replaced.items()},
    }
    return script(
        "imagenet-audit",
        *(part for name, value in named.items() if value is not None for part in (name, value)),
        *flags,
    )


def direct_losses(checkpoint, users):
    """-log p_y of every image through torchvision's own preprocessing, one at a time: float64 (users, K)."""
    model = torchvision.models.resnet18(num_classes=len(CLASSES))
    with torch.serialization.safe_globals([argparse.Namespace]):
        model.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
    change = torchvision.transforms.Compose(
        [
            torchvision.transforms.ToTensor(),
            torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    with torch.inference_mode():
        return np.array(
            [
                [
                    torch.nn.functional.cross_entropy(
                        model.eval()(change(Image.open(path).convert("RGB"))[None]).double(),
                        torch.tensor([CLASSES.index(label)]),
                    ).item()
                    for label, path in files
                ]
                for files in users.values()
            ]
        )


def test_losses_are_those_of_a_direct_computation(script, prepared, checkpoint, tmp_path):
    done = audit(script, prepared[1], checkpoint, tmp_path / "out", manifest=prepared[1] / "manifest.json")
    assert done.code == 0, done.err
    found = read_arrays(tmp_path / "out" / "losses.npz")
    users = {
        group: find_users(prepared[1] / folder)
        for group, folder in (("target", "members"), ("non_member", "non_members"))
    }
    for group, expected in users.items():
        losses = direct_losses(checkpoint, expected)
        assert found[f"{group}_cross_entropy"].shape == losses.shape
        assert np.allclose(found[f"{group}_cross_entropy"], losses, atol=1e-4)
        assert list(found[f"{group}_users"]) == list(expected)
    result = read_json(tmp_path / "out" / "result.json")
    member, other = (found[f"{group}_cross_entropy"] for group in ("target", "non_member"))
    for kind in ("set", "instance"):
        assert result["audit"][kind] == utils.membership_inference(member, other, kind == "instance")
    assert result["verdict"]["detected"] == int(utils.verify_provenance(member, other)[0].sum())
    assert result["accuracy"]["validation_images"] == 4 * len(CLASSES)
    assert result["accuracy"]["marked"] == found["target_correct"].mean()
    assert {"roc.png", "losses.png"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert done.out.splitlines()[-1].startswith("plots") and "FPR@100%TPR" in done.out


def test_manifest_and_folders_give_the_same_audit(script, prepared, checkpoint, tmp_path):
    for name, value in (("a", prepared[1] / "manifest.json"), ("b", None)):
        assert audit(script, prepared[1], checkpoint, tmp_path / name, manifest=value).code == 0
    results = [read_json(tmp_path / name / "result.json") for name in "ab"]
    assert results[0]["audit"] == results[1]["audit"] and results[0]["settings"] == results[1]["settings"]


def test_users_are_cut_by_name_and_both_sides_are_scaled_alike(script, prepared, checkpoint, tmp_path):
    done = audit(
        script, prepared[1], checkpoint, tmp_path / "out", marked_samples_per_user=2, scaled_loss=1, instance_mi=1
    )
    assert done.code == 0 and "instance-based, scaled_loss" in done.out
    found, result = (
        read(tmp_path / "out" / name) for read, name in ((read_arrays, "losses.npz"), (read_json, "result.json"))
    )
    users = {name: files[:2] for name, files in find_users(prepared[1] / "members").items()}
    assert np.allclose(found["target_cross_entropy"], direct_losses(checkpoint, users), atol=1e-4)
    assert result["mode"] == "instance" and result["audit"]["set"] == utils.membership_inference(
        found["target_scaled_loss"], found["non_member_scaled_loss"]
    )


def test_a_finished_audit_is_shown_again_and_another_one_is_not_mixed_with_it(
    script, prepared, checkpoint, tmp_path, monkeypatch
):
    first = audit(script, prepared[1], checkpoint, tmp_path / "out")
    stamp = (tmp_path / "out" / "losses.npz").stat().st_mtime_ns
    again = audit(script, prepared[1], checkpoint, tmp_path / "out")
    assert again.out == first.out and (tmp_path / "out" / "losses.npz").stat().st_mtime_ns == stamp
    module = importlib.import_module("imagenet-audit")
    with monkeypatch.context() as patch:
        patch.setattr(module, "judge", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert audit(script, prepared[1], checkpoint, tmp_path / "out", marked_samples_per_user=2).code == 130
    assert not (tmp_path / "out" / "result.json").exists()


def test_networks_of_timm_and_class_order_of_the_manifest(script, prepared, tmp_path):
    timm = pytest.importorskip("timm")
    with utils.seeded("timm"):
        model = timm.create_model("resnet10t", num_classes=len(CLASSES))
    torch.save(
        {"state_dict": model.state_dict(), "arch": "resnet10t", "args": argparse.Namespace(model="resnet10t")},
        tmp_path / "last.pth.tar.pth",
    )
    done = audit(
        script,
        prepared[1],
        tmp_path / "last.pth.tar.pth",
        tmp_path / "out",
        arch="resnet10t",
        val_set_data_folder=None,
        manifest=prepared[1] / "manifest.json",
    )
    assert done.code == 0, done.err
    assert "timm:resnet10t" in done.out and "accuracy, validation" not in done.out


def test_images_stream_in_order_and_few_are_in_memory():
    module, loaded, most = importlib.import_module("imagenet-audit"), [], 0
    images = [("class", number) for number in range(300)]

    def read(number):
        loaded.append(number)
        return number

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "read_photo", read)
        for taken, number in enumerate(module.stream(images, lambda image: image)):
            assert number == taken
            most = max(most, len(loaded) - taken)
    assert len(loaded) == 300 and most <= 5 * protect.workers() + 2


class _Bomb:
    def __reduce__(self):
        return (os.mkdir, ("hacked",))


def test_a_checkpoint_that_holds_code_is_refused(script, prepared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, save in (
        ("a.pth", lambda path: torch.save({"model": {}, "args": _Bomb()}, path)),
        ("b.pth", lambda path: Path(path).write_bytes(pickle.dumps(_Bomb()))),
    ):
        save(name)
        refused = audit(script, prepared[1], name, tmp_path / "out")
        assert refused.code == 2 and "nothing in it was run" in refused.err and refused.err.count("\n") == 1
    assert not (tmp_path / "hacked").exists()


def bad_copy(prepared, tmp_path, how):
    """A copy of the tree's folders with something wrong in it."""
    tree = tmp_path / "copy"
    for name in ("members", "non_members"):
        shutil.copytree(prepared[1] / name, tree / name)
    shutil.copytree(prepared[0] / "val", tree / "val")
    user = tree / "members" / "member_00001"
    label = next(user.iterdir())
    if how == "short":
        next(label.iterdir()).unlink()
    elif how == "damaged":
        next(label.iterdir()).write_bytes(b"\xff\xd8\xff nothing")
    elif how == "class":
        label.rename(user / "n99")
    elif how == "mixed":
        write_images(tree / "members" / "n01", ["one.JPEG"])
    elif how == "both":
        write_images(user, ["one.JPEG"])
    elif how == "no images":
        for path in label.iterdir():
            path.rename(path.with_suffix(".txt"))
    elif how == "empty":
        shutil.rmtree(tree / "members")
        (tree / "members").mkdir()
    elif how == "val":
        shutil.rmtree(tree / "val" / "n05")
    return tree


@pytest.mark.parametrize(
    ("how", "flags", "part"),
    [
        ("short", {}, "users have 2 to 3 images"),
        ("short", {"marked_samples_per_user": 3}, "member_00001 has 2 images"),
        ("short", {"manifest": "manifest.json"}, "is missing, though the manifest lists it"),
        ("damaged", {}, "replace it or remove it"),
        ("class", {}, "class 'n99' is not one of the model's"),
        ("mixed", {}, "mixes USER/CLASS/IMAGES"),
        ("both", {}, "both images and folders"),
        ("no images", {}, "0 to 3 images"),
        ("empty", {}, "has no users"),
        ("val", {}, "the model has 5 classes and the data 4"),
        ("", {"arch": "resnet5O"}, "unknown network"),
        ("", {"arch": "resnet50"}, "does not fit"),
        ("", {"arch": None}, "give --net_type"),
        ("", {"resume_path": "nowhere.pth"}, "does not exist"),
        ("", {"member_data_folder": "nowhere"}, "is not a folder"),
        ("", {"val_set_data_folder": "nowhere"}, "can't be"),
        ("", {"val_set_data_folder": None}, "give --val_set_data_folder or --manifest"),
        ("", {"manifest": "nowhere.json"}, "does not exist"),
        ("", {"fpr": 2}, "at most 1"),
        ("", {"batch_size": 0}, "at least 1"),
        ("", {"device": "gpu"}, "--device gpu"),
        ("same", {}, "are the same folder"),
        ("", {"out": "TREE"}, "holds a run or a tree"),
    ],
)
def test_bad_input_of_audit_is_one_line(script, prepared, checkpoint, tmp_path, how, flags, part):
    tree = bad_copy(prepared, tmp_path, how)
    if how == "same":
        flags = {"non_member_data_folder": tree / "members"}
    if "manifest" in flags and how:
        flags = {"manifest": prepared[1] / "manifest.json"}
    if flags.get("out") == "TREE":
        flags = {"out": prepared[1]}
    refused = audit(script, tree, checkpoint, **{"out": tmp_path / "out", **flags})
    assert refused.code == 2 and part in refused.err, refused.err
    assert refused.err.startswith("error: ") and refused.err.count("\n") == 1
    assert not (tmp_path / "out" / "result.json").exists() and not (tmp_path / "out" / "losses.npz").exists()


def test_the_sweep_names_what_is_missing_and_prints_a_table(script, prepared, checkpoint, tmp_path):
    shutil.copy(checkpoint, tmp_path / "resnet18-3.pth")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "DATA": str(tmp_path),
        "NETS": "resnet18",
        "SAMPLES": "3 2",
        "RES_FOLDER": str(tmp_path / "res"),
        "TREE_3": str(prepared[1]),
        "PYTHON": sys.executable,
        "EXTRA": f"--device cpu --input_size {SIDE} --resize {SIDE}",
    }
    done = subprocess.run(
        ["bash", str(ROOT / "imagenet-eval.sh")], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("not finished: resnet18-2 (") and done.stderr.count("\n") == 1
    row = done.stdout.splitlines()[-1].split()
    result = read_json(tmp_path / "res" / "imagenet-resnet18-3" / "result.json")
    assert row[:2] == ["resnet18", "3"] and float(row[2]) == round(100 * result["audit"]["set"]["fpr_at_100_tpr"], 2)
