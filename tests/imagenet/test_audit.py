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
from imagenet.users import find_users, of_size
from kit.files import read_arrays, read_json
from provenance.folder import workers
from suspects.suspect import Preprocessing
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


def assert_direct_losses(found, checkpoint, users):
    """These are -log p_y of every image through torchvision's own preprocessing, one at a time, but for rounding.

    How far float32 takes them depends on the network and on the order of its sums, which batches and processors choose.
    So it is measured, as the distance of float32's losses from float64's; eight times as far is never reached by
    another order, and a wrong image, crop or class is a thousand times as far.
    """
    model = torchvision.models.resnet18(num_classes=len(CLASSES))
    with torch.serialization.safe_globals([argparse.Namespace]):
        model.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
    change = torchvision.transforms.Compose(
        [
            torchvision.transforms.ToTensor(),
            torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    losses = {}
    for dtype in (torch.float32, torch.float64):
        model = model.eval().to(dtype)
        with torch.inference_mode():
            losses[dtype] = np.array(
                [
                    [
                        torch.nn.functional.cross_entropy(
                            model(change(Image.open(path).convert("RGB"))[None].to(dtype)).double(),
                            torch.tensor([CLASSES.index(label)]),
                        ).item()
                        for label, path in files
                    ]
                    for files in users.values()
                ]
            )
    exact = losses[torch.float64]
    atol = 8 * np.abs(losses[torch.float32] - exact).max()
    assert 0 < atol < 1e-3 and found.shape == exact.shape
    np.testing.assert_allclose(found, exact, rtol=0, atol=atol)


def test_losses_are_those_of_a_direct_computation(script, prepared, checkpoint, tmp_path):
    done = audit(script, prepared[1], checkpoint, tmp_path / "out", manifest=prepared[1] / "manifest.json")
    assert done.code == 0, done.err
    found = read_arrays(tmp_path / "out" / "losses.npz")
    users = {
        group: find_users(prepared[1] / folder)
        for group, folder in (("target", "members"), ("non_member", "non_members"))
    }
    for group, expected in users.items():
        assert_direct_losses(found[f"{group}_cross_entropy"], checkpoint, expected)
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
    assert_direct_losses(found["target_cross_entropy"], checkpoint, users)
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


# --- the original's line ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder like that of the published artifact: a ResNet-50 as PyTorch's examples save it from DataParallel, and
    marked images of the input's size in class folders, of several users each."""
    root = tmp_path_factory.mktemp("published")
    data = root / "ccs-imagenet-data"
    for number, label in enumerate(CLASSES[:2]):
        for folder, count in (("marked_member_data", 5), ("marked_non_member_data", 4), ("val", 1)):
            write_images(data / folder / label, [f"{image}.png" for image in range(count)], number, side=224)
    with utils.seeded("published"):
        model = torch.nn.DataParallel(torchvision.models.resnet50(num_classes=2))
        with torch.no_grad():
            model.train()(torch.randn(8, 3, 64, 64))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    content = {"epoch": 90, "arch": "resnet50", "state_dict": model.state_dict(), "best_acc1": torch.tensor(75.1)}
    torch.save({**content, "optimizer": optimizer.state_dict()}, data / "imagenet-best.pth.tar")
    return root


ORIGINAL_LINE = """--marked_samples_per_user 2 --batch_size 128 --seed 1
    --resume_path ccs-imagenet-data/imagenet-best.pth.tar --val_set_data_folder ccs-imagenet-data/val
    --member_data_folder ccs-imagenet-data/marked_member_data
    --non_member_data_folder ccs-imagenet-data/marked_non_member_data""".split()  # noqa: SIM905


def test_the_originals_line_runs_unchanged(script, published, monkeypatch):
    """ResNet-50 without --arch, weights with "module.", consecutive images of a class as users, and no image scaled:
    each is only normalised, as in the original."""
    monkeypatch.chdir(published)
    done = script("imagenet-audit", *ORIGINAL_LINE)
    assert done.code == 0, done.err
    out = published / "saved_res" / "imagenet-audit"
    found, result = read_arrays(out / "losses.npz"), read_json(out / "result.json")
    assert list(found["target_users"]) == ["n01", "n01+2", "n02", "n02+2"]
    assert result["settings"]["arch"] == "torchvision:resnet50" and result["fed_as_they_are"] == result["images"] == 16
    model = torchvision.models.resnet50(num_classes=2)
    stored = torch.load("ccs-imagenet-data/imagenet-best.pth.tar", weights_only=True)["state_dict"]
    model.load_state_dict({name.removeprefix("module."): value for name, value in stored.items()})
    change = torchvision.transforms.Compose(
        [
            torchvision.transforms.ToTensor(),
            torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    data = torchvision.datasets.ImageFolder("ccs-imagenet-data/marked_member_data", change)
    images, labels = zip(*(data[place] for place in (0, 1, 2, 3, 5, 6, 7, 8)), strict=True)
    with torch.inference_mode():
        losses = torch.nn.functional.cross_entropy(
            model.eval()(torch.stack(images)).double(), torch.tensor(labels), reduction="none"
        )
    assert np.allclose(found["target_cross_entropy"].ravel(), losses.numpy(), atol=1e-4)


def test_images_that_make_no_whole_user_are_named(script, published, monkeypatch):
    monkeypatch.chdir(published)
    done = script("imagenet-audit", *ORIGINAL_LINE)
    left = [f"marked_member_data/{label}/4.png" for label in CLASSES[:2]]
    assert f"2 images that make no whole user: {', '.join(left)}" in " ".join(done.out.split())
    assert read_json(Path("saved_res/imagenet-audit/result.json"))["left_out"] == {"images": 2, "such_as": left}


def test_images_of_a_users_folder_beyond_the_first_are_named(script, prepared, checkpoint, tmp_path):
    done = audit(script, prepared[1], checkpoint, tmp_path / "out", marked_samples_per_user=2)
    left = read_json(tmp_path / "out" / "result.json")["left_out"]
    assert done.code == 0 and left["images"] == 4 + 5 and left["such_as"][0].startswith("members/member_00000/")
    assert "9 images that make no whole user" in done.out


def test_users_of_a_class_are_consecutive_and_end_with_the_class():
    files = {
        label: [(label, f"data/{label}/{number}") for number in range(count)] for label, count in (("a", 7), ("b", 3))
    }
    users, left = of_size(files, "data", 3)
    assert {name: [path for _, path in chosen] for name, chosen in users.items()} == {
        "a": ["data/a/0", "data/a/1", "data/a/2"],
        "a+2": ["data/a/3", "data/a/4", "data/a/5"],
        "b": ["data/b/0", "data/b/1", "data/b/2"],
    }
    assert left == ["data/a/6"]


def test_an_image_of_the_inputs_size_keeps_its_noise():
    """Scaled to 232 and cropped, as before, noise of +-8 has a third of its strength less."""
    unchanged, noise = [], np.random.default_rng(0).choice([120, 136], (224, 224, 3)).astype(np.uint8)
    preprocessing = Preprocessing((224, 224), 232)
    fitted = imagenet_audit.as_it_is(preprocessing, unchanged)(noise)
    assert np.array_equal(fitted, noise.transpose(2, 0, 1)) and unchanged == [1]
    assert np.abs(preprocessing.fit(noise).astype(float) - 128).mean() < 6
    imagenet_audit.as_it_is(preprocessing, unchanged)(noise[:200])
    assert unchanged == [1]


def test_validation_images_have_preprocessing_of_their_own(script, prepared, checkpoint, tmp_path, monkeypatch):
    """--val_resize is torchvision's Resize before the centre crop, and changes no marked image."""
    asked, ask = {}, imagenet_audit.ask

    def noted(*arguments):
        answers = ask(*arguments)
        asked.setdefault(arguments[3], []).append(answers["cross_entropy"])
        return answers

    monkeypatch.setattr(imagenet_audit, "ask", noted)
    for name, resize in (("own", None), ("larger", 48)):
        done = audit(script, prepared[1], checkpoint, tmp_path / name, val_resize=resize, resize=None)
        assert done.code == 0, done.err
    own, larger = asked["validation"]
    assert np.array_equal(*asked["member"]) and np.array_equal(*asked["non_member"]) and not np.allclose(own, larger)
    model = torchvision.models.resnet18(num_classes=len(CLASSES))
    with torch.serialization.safe_globals([argparse.Namespace]):
        model.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
    change = torchvision.transforms.Compose(
        [
            torchvision.transforms.Resize(48),
            torchvision.transforms.CenterCrop(SIDE),
            torchvision.transforms.ToTensor(),
            torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    images, labels = zip(*torchvision.datasets.ImageFolder(prepared[1] / "val", change), strict=True)
    with torch.inference_mode():
        losses = torch.nn.functional.cross_entropy(
            model.eval()(torch.stack(images)).double(), torch.tensor(labels), reduction="none"
        )
    assert np.allclose(larger, losses.numpy(), atol=1e-3)


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
        ("", {"arch": None}, "does not fit torchvision:resnet50"),
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
