"""imagenet-audit.py: its losses are those of a direct computation, and bad input is one line."""

import argparse
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
from PIL import Image

import utils
from imagenet import audit as imagenet_audit
from imagenet.users import find_users
from kit.files import read_arrays, read_json
from provenance.folder import workers
from tests.imagenet.parts import CLASSES, SIDE, write_images
from tests.parts import ROOT, environment


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
    with monkeypatch.context() as patch:
        patch.setattr(imagenet_audit, "judge", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
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
    loaded, most = [], 0
    images = [("class", number) for number in range(300)]

    def read(number):
        loaded.append(number)
        return number

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imagenet_audit, "read_photo", read)
        for taken, number in enumerate(imagenet_audit.stream(images, lambda image: image)):
            assert number == taken
            most = max(most, len(loaded) - taken)
    assert len(loaded) == 300 and most <= 5 * workers() + 2


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
    variables = environment(
        DATA=str(tmp_path),
        NETS="resnet18",
        SAMPLES="3 2",
        RES_FOLDER=str(tmp_path / "res"),
        TREE_3=str(prepared[1]),
        PYTHON=sys.executable,
        EXTRA=f"--device cpu --input_size {SIDE} --resize {SIDE}",
    )
    done = subprocess.run(
        ["bash", str(ROOT / "imagenet-eval.sh")], env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("not finished: resnet18-2 (") and done.stderr.count("\n") == 1
    row = done.stdout.splitlines()[-1].split()
    result = read_json(tmp_path / "res" / "imagenet-resnet18-3" / "result.json")
    assert row[:2] == ["resnet18", "3"] and float(row[2]) == round(100 * result["audit"]["set"]["fpr_at_100_tpr"], 2)
