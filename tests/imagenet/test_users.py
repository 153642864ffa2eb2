"""Users of an ImageNet tree: who is one, with which images, in the manifest and in the folders."""

import json
import os

import pytest

from imagenet.plan import Source, plan_users
from imagenet.tree import FOLDERS
from imagenet.users import find_users, read_manifest
from kit.errors import UserError
from kit.files import write_json
from provenance import protect
from provenance import record as records
from tests.imagenet.parts import CLASSES, entries, prepare


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
    assert all(user.published == 3 for user in made.users)
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
        # The number that a model trained on the tree calls the class by: no departure at the audit.
        assert record.plan.label == str(manifest["class_names"].index(entry["class"]))
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
