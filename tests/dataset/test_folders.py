"""Folders of images: layouts, links, sizes, and banks of outlier features."""

import os
import stat

import pytest
import torch
from PIL import Image

import dataset
from dataset import folders, imagefolder, store
from dataset.base import Recipe
from tests.dataset.parts import RED, all_images, fill, image_bytes, make_zip, write_image
from tests.parts import user_error

# --- imagefolder ---


def test_split_layout(tmp_path):
    pixels = fill(tmp_path, {"train/cat/deep/er": 2, "train/ant": 3, "test/cat": 1})
    data = dataset.load_dataset("imagefolder", str(tmp_path))
    assert data.name == "imagefolder" and data.class_names == ("ant", "cat")
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1] and data.labels.dtype == torch.int64
    assert data.is_test.tolist() == [False] * 5 + [True]
    assert torch.equal(
        all_images(data),
        torch.stack(
            [pixels[f"train/ant/{i}.png"] for i in range(3)]
            + [pixels[f"train/cat/deep/er/{i}.png"] for i in range(2)]
            + [pixels["test/cat/0.png"]]
        ),
    )


def test_plain_layout(tmp_path):
    fill(tmp_path, {"b": 2, "a": 1, "a-b": 1})
    data = dataset.load_dataset("imagefolder", tmp_path)
    assert data.class_names == ("a", "a-b", "b") and not data.is_test.any()
    assert sorted(data.labels.tolist()) == [0, 1, 2, 2]


@pytest.mark.parametrize("folder", ["val", "valid", "validation"])
def test_other_names_of_the_test_folder(tmp_path, folder):
    fill(tmp_path, {"train/a": 1, "train/b": 1, f"{folder}/a": 2})
    assert dataset.load_dataset("imagefolder", tmp_path).is_test.sum() == 2
    fill(tmp_path, {"test/a": 1})
    assert dataset.load_dataset("imagefolder", tmp_path).is_test.sum() == 1, "test/ goes first"


def test_what_is_ignored(tmp_path):
    fill(tmp_path, {"a": 2, "b": 2, ".hidden": 1, "a/.thumbs": 1, "__MACOSX/a": 1, ".": 1})
    write_image(tmp_path / "a/.x.png")
    (tmp_path / "a/notes.txt").write_text("no image")
    os.mknod(tmp_path / "a/no-file.png", stat.S_IFSOCK | 0o600)
    data = dataset.load_dataset("imagefolder", tmp_path)
    assert data.class_names == ("a", "b") and data.labels.tolist() == [0, 0, 1, 1]
    write_image(tmp_path / "b/UPPER.JPEG")
    assert len(dataset.load_dataset("imagefolder", tmp_path).labels) == 5


def test_a_class_called_train(tmp_path):
    fill(tmp_path, {"train": 2, "bus": 2})
    assert dataset.load_dataset("imagefolder", tmp_path).class_names == ("bus", "train")


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"train/a": 1, "train/b": 1, "test/a": 1, "test/zebra": 1}, ("'zebra'", "train")),
        ({"train/a": 1, "train/b": 1, "train/empty": 0}, ("empty", "no images")),
        ({"train/a": 1, "train/b": 0, "test/a": 1, "test/b": 1}, ("train/b", "no images")),
        ({"a": 1, "b": 1, "blank/.x": 1}, ("blank", "no images")),
        ({"test/a": 1, "other/a": 1}, ("train/", "test")),
        ({"val/a": 1}, ("train/",)),
        ({}, ("no class folders", "train/<class>/*")),
        ({"only": 2}, ("'only'", "two or more")),
    ],
)
def test_folders_that_are_no_data_set(tmp_path, counts, words):
    for folder in counts:
        (tmp_path / folder).mkdir(parents=True)
    fill(tmp_path, counts)
    user_error(lambda: dataset.load_dataset("imagefolder", tmp_path), "imagefolder", *words)


def test_missing_root(tmp_path):
    user_error(lambda: dataset.load_dataset("imagefolder"), "--data_root", "<class>/*")
    user_error(lambda: dataset.load_dataset("imagefolder", tmp_path / "none"), tmp_path / "none", "<class>/*")
    (tmp_path / "file").write_text("")
    user_error(lambda: dataset.load_dataset("imagefolder", tmp_path / "file"), tmp_path / "file")


def test_links(tmp_path):
    root = tmp_path / "root"
    fill(root, {"train/a": 1, "train/b": 1})
    write_image(tmp_path / "outside/0.png")
    (root / "train/b/inside.png").symlink_to("0.png")
    (root / "val").symlink_to("train")
    assert len(dataset.load_dataset("imagefolder", root).labels) == 6, "links inside the root are followed"
    (tmp_path / "alias").symlink_to(root)
    assert len(dataset.load_dataset("imagefolder", tmp_path / "alias").labels) == 6
    for link, target in (
        ("train/b/x.png", "../../../outside/0.png"),
        ("train/b/x.png", "nowhere.png"),
        ("train/b/more", str(tmp_path / "outside")),
        ("train/b/loop", "../../train"),
        ("train/c", str(tmp_path / "outside")),
        ("test", str(tmp_path / "outside")),
    ):
        (root / link).symlink_to(target)
        if link == "test":
            write_image(tmp_path / "outside/a/0.png")
        user_error(lambda: dataset.load_dataset("imagefolder", root), root / link, "link")
        (root / link).unlink()


def test_size_is_found(tmp_path):
    fill(tmp_path, {"a": 2, "b": 2}, size=48)
    assert dataset.load_dataset("imagefolder", tmp_path).images.image_shape == (3, 48, 48)
    assert dataset.load_dataset("imagefolder", tmp_path, 20).images.image_shape == (3, 20, 20)
    write_image(tmp_path / "b/9.png", size=47)
    assert dataset.load_dataset("imagefolder", tmp_path).images.image_shape == (3, 224, 224)
    fill(tmp_path / "big", {"a": 1, "b": 1}, size=225)
    assert dataset.load_dataset("imagefolder", tmp_path / "big").images.image_shape == (3, 224, 224)
    Image.new("RGB", (30, 20), RED).save(tmp_path / "wide.png")
    file = store.ImageFile("wide.png", 0, 0)
    assert imagefolder.find_image_size(tmp_path, [file], torch.zeros(1)) == 224, "not square"


def test_size_looks_at_every_class(tmp_path):
    counts = {f"c{i:03}": 3 for i in range(100)}
    fill(tmp_path, counts, size=2)
    write_image(tmp_path / "c097/0.png", size=3)  # not among 64 evenly spread ones
    files = folders.list_images(tmp_path)
    labels = torch.tensor([int(file.relative[1:4]) for file in files])
    assert imagefolder.find_image_size(tmp_path, files, labels) == 224


@pytest.mark.parametrize("size", [0, -3, 2.5, 4097, float("nan")])
def test_bad_image_size(tmp_path, size):
    fill(tmp_path, {"a": 1, "b": 1})
    user_error(lambda: dataset.load_dataset("imagefolder", tmp_path, size), "--image_size", size)
    for name in ("cifar10", "cifar100", "photos"):
        user_error(lambda: dataset.load_dataset(name, tmp_path, size), name, "--image_size")  # noqa: B023


def test_recipe_fits_the_images():
    def recipe(size, per_class, test_images=0):
        labels = torch.arange(len(per_class)).repeat_interleave(torch.tensor(per_class))
        labels = torch.cat([labels, torch.zeros(test_images, dtype=torch.int64)])
        return imagefolder.make_recipe(size, labels, torch.arange(len(labels)) >= sum(per_class))

    large = recipe(64, [10_000] * 6, 999)
    assert large == Recipe("wideresnet284", 25_000, 100, 0.1, 256, 0.9, 5e-4, 0.2, 25, 5_000, (0, 1, 2, 3, 5), "train")
    assert recipe(65, [10_000] * 6).net_type == "resnet18_pretrained" and recipe(65, [10_000] * 6).lr == 0.01
    small = recipe(32, [500, 100], 400)
    assert small.train_size == 300 and small.marked_samples_per_user == 20 and small.target_user_cls == (0, 1)
    assert recipe(32, [1, 1]).train_size == 1 and recipe(32, [1, 1]).marked_samples_per_user == 1
    assert dataset.recipe("imagefolder").net_type == "wideresnet284"


# --- outlier bank ---


def test_bank_of_a_folder(tmp_path):
    pixels = fill(tmp_path, {"b/deep": 2, "a": 2, ".": 1})
    write_image(tmp_path / ".hidden.png")
    bank = dataset.load_outlier_bank(str(tmp_path), 8, 8)
    order = ["./0.png", "a/0.png", "a/1.png", "b/deep/0.png", "b/deep/1.png"]
    assert bank.dtype == torch.uint8 and torch.equal(bank, torch.stack([pixels[name] for name in order]))
    assert torch.equal(dataset.load_outlier_bank(tmp_path, 8, 8, limit=3), bank[[0, 2, 4]]), "spread over all folders"
    assert dataset.load_outlier_bank(tmp_path, 6, 10).shape == (5, 3, 6, 10)


def test_bank_of_a_data_set(tmp_path, monkeypatch):
    default = tmp_path / "default"
    fill(default / "celeba", {"train/x": 2, "test/x": 1})
    monkeypatch.setattr(folders, "DEFAULT_ROOT", default)
    make_zip(tmp_path / "tiny-224.zip", {"tiny-224/train/a/0.png": image_bytes(0)})
    assert dataset.load_outlier_bank("tinyimagenet", 8, 8, tmp_path).shape == (1, 3, 8, 8)
    assert dataset.load_outlier_bank("celeba", 8, 8, tmp_path).shape == (3, 3, 8, 8), "dataset/ is looked into as well"
    user_error(lambda: dataset.load_outlier_bank("tinyimagenet", 8, 8), "tiny-224.zip", default)
    user_error(lambda: dataset.load_outlier_bank("tinyimagenet", 8, 8, default / "x"), "tiny-224.zip", default / "x")


def test_bad_banks(tmp_path):
    user_error(lambda: dataset.load_outlier_bank(tmp_path / "none", 8, 8), tmp_path / "none", "tinyimagenet", "celeba")
    user_error(lambda: dataset.load_outlier_bank(tmp_path, 8, 8), tmp_path, "no images")
    (tmp_path / "x.png").write_bytes(b"no image")
    user_error(lambda: dataset.load_outlier_bank(tmp_path, 8, 8), tmp_path / "x.png")
    with pytest.raises(ValueError, match="limit 0"):
        dataset.load_outlier_bank(tmp_path, 8, 8, limit=0)
