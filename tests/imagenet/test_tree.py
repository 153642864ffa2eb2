"""imagenet-prepare.py: the data's own files but for the marked ones, and the same bits from every call."""

import json
import os
import shutil

import numpy as np
import pytest
import torchvision
from PIL import Image

import utils
from imagenet import prepare as imagenet_prepare
from imagenet import tree
from imagenet.tree import output_name
from imagenet.users import find_users, read_manifest
from provenance import protect
from provenance import record as records
from provenance.photos import encode_photo, read_photo
from tests.imagenet.parts import CLASSES, comparable, entries, make_source, prepare, snapshot, write_images

# --- The tree ---


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
    for name, entry in entries(found, "member").items():
        key = records.read_record(out / "records" / name / "record.json").keys(0)[0][0]
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
    place = imagenet_prepare if stop == "publish" else tree
    real, calls = getattr(place, stop), []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3 or stop == "publish":
            if stop == "publish":  # in the middle of the renames
                os.rename(arguments[0].partial / "members", arguments[0].out / "members")
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(place, stop, interrupted)
        stopped = prepare(script, source, tmp_path / "parts")
    assert stopped.code == 130 and "start the same command again" in stopped.err
    assert not (tmp_path / "parts" / "train").exists() and not (tmp_path / "parts" / "manifest.json").exists()
    assert prepare(script, source, tmp_path / "parts").code == 0
    paths = {name: tmp_path / name for name in ("whole", "parts")}
    for path in paths.values():  # the only bytes that name the place
        for record in path.glob("records/*/record.json"):
            content = json.loads(record.read_text())
            content["batches"][0].pop("marked_folder")
            record.write_text(json.dumps(content))
    assert comparable(paths["parts"]) == comparable(paths["whole"])


def test_an_interrupted_call_with_other_settings_is_refused(script, source, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(imagenet_prepare, "link_tree", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert prepare(script, source, tmp_path / "tree").code == 130
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


# --- Users ---


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
