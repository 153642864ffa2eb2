"""Data sets: splits, pixel stores and their cache, class folders, archives, CIFAR's files, the embedded photographs.

Every image here is made by the tests, except the photographs that lie in the installed packages. Nothing is downloaded.
"""

import errno
import hashlib
import os
import random
import stat
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_helpers import (
    BLUE,
    GREEN,
    RED,
    RunsCode,
    all_images,
    cache,  # noqa: F401  (a fixture that every test uses)
    fill,
    image_bytes,
    make_zip,
    user_error,
    write_image,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import dataset
from dataset import folders, imagefolder, photos, store
from dataset.base import Recipe, checked_data, make_splits
from dataset.store import FileStore, MemoryStore

# ---------------------------------------------------------------------------------------------------------- registry


def test_names_and_unknown_name():
    assert dataset.dataset_names() == [
        "cifar10",
        "cifar100",
        "tinyimagenet",
        "celeba",
        "artbench",
        "imagefolder",
        "photos",
    ]
    user_error(lambda: dataset.load_dataset("cifar11"), "cifar11", "did you mean cifar10?", *dataset.dataset_names())
    user_error(lambda: dataset.recipe("TinyImagenet"), "did you mean tinyimagenet?")


# SPEC.md section 2: net, training images, epochs, learning rate, batch, weight decay, validation, marked, classes.
SPEC = {
    "cifar10": ("wideresnet284", 25_000, 100, 0.1, 256, 5e-4, 0.2, 25, (0, 2, 5, 6, 9), "train"),
    "cifar100": ("wideresnet284", 25_000, 100, 0.1, 256, 5e-4, 0.2, 25, (17, 36, 69, 80, 93), "train"),
    "tinyimagenet": ("resnet18_pretrained", 25_000, 30, 0.01, 64, 0, 0.2, 25, (4, 58, 102, 168, 184), "imagenet"),
    "celeba": ("resnet18_pretrained", 2_000, 30, 0.01, 16, 0, 0, 2, (58, 95, 164, 228, 306), "imagenet"),
    "artbench": ("resnet18_pretrained", 25_000, 30, 0.01, 64, 0, 0.2, 25, (0, 1, 5, 7, 8), "imagenet"),
}


@pytest.mark.parametrize("name", SPEC)
def test_recipes_are_the_papers(name):
    net, train_size, epoch, lr, batch, decay, val, marked, classes, normalization = SPEC[name]
    assert dataset.recipe(name) == Recipe(
        net, train_size, epoch, lr, batch, 0.9, decay, val, marked, 5_000, classes, normalization
    )


# ------------------------------------------------------------------------------------------------------------ splits


@st.composite
def split_cases(draw):
    labels = np.array(draw(st.lists(st.integers(0, 4), min_size=3, max_size=80)))
    is_test = np.array(draw(st.lists(st.booleans(), min_size=len(labels), max_size=len(labels))))
    is_test[draw(st.integers(0, len(labels) - 1))] = False
    return (
        torch.from_numpy(labels),
        torch.from_numpy(is_test),
        draw(st.integers(1, int((~is_test).sum()))),
        draw(st.sampled_from([0, 0.1, 0.2, 0.45])),
        draw(st.integers(0, 2**40)),
    )


@given(split_cases())
@settings(max_examples=150, deadline=None)
def test_splits_are_a_stratified_partition(case):
    labels, is_test, train_size, val_portion, seed = case
    splits = make_splits(labels, is_test, train_size, val_portion, seed)
    for part in (splits.train, splits.val, splits.non_member, splits.test):
        assert part.dtype == torch.int64 and torch.equal(part, part.unique())
    everything = torch.cat([splits.train, splits.val, splits.non_member])
    assert torch.equal(everything.sort().values, torch.arange(len(labels)))
    assert len(splits.val) == round(train_size * val_portion) and len(splits.train) + len(splits.val) == train_size
    used = torch.cat([splits.train, splits.val])
    assert not is_test[used].any()
    assert torch.equal(splits.test, torch.nonzero(is_test).flatten() if is_test.any() else splits.non_member)
    for drawn, source in ((used, torch.nonzero(~is_test).flatten()), (splits.val, used)):
        share = torch.bincount(labels[source], minlength=5) * (len(drawn) / len(source))
        assert ((torch.bincount(labels[drawn], minlength=5) - share).abs() < 1 - 1e-9).all()
    again = make_splits(labels, is_test, train_size, val_portion, seed)
    assert all(torch.equal(vars(splits)[part], vars(again)[part]) for part in vars(splits))


def test_splits_of_cifars_shape():
    labels, is_test = torch.arange(60_000) % 10, torch.arange(60_000) >= 50_000
    splits = make_splits(labels, is_test, 25_000, 0.2, 1)
    assert torch.bincount(labels[splits.train]).tolist() == [2_000] * 10
    assert torch.bincount(labels[splits.val]).tolist() == [500] * 10
    assert len(splits.non_member) == 35_000 and splits.test.tolist() == list(range(50_000, 60_000))
    # Written down once: another platform or numpy must draw the same images.
    digest = hashlib.sha256(splits.train.numpy().astype("<i8").tobytes() + splits.val.numpy().astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == "569bca7f87458e3d"
    other = make_splits(labels, is_test, 25_000, 0.2, 2)
    overlap = np.isin(other.train, splits.train).mean()
    assert 0.37 < overlap < 0.43, "two seeds share 20,000 of 50,000 images by chance"


def test_no_class_is_favoured_when_shares_are_equal():
    labels = torch.arange(3).repeat_interleave(torch.tensor([4, 4, 4]))
    wins = torch.zeros(3)
    for seed in range(300):
        wins[labels[make_splits(labels, torch.zeros(12, dtype=torch.bool), 1, 0, seed).train]] += 1
    assert wins.min() > 70, wins


def test_splits_leave_other_generators_alone():
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    make_splits(torch.zeros(9, dtype=torch.int64), torch.zeros(9, dtype=torch.bool), 5, 0.2, 0)
    assert before[:2] == (random.getstate(), np.random.get_state()[1].tolist())
    assert torch.equal(before[2], torch.get_rng_state())


@pytest.mark.parametrize(
    ("train_size", "val_portion", "words"),
    [
        (7, 0.2, ("--train_size 7", "1 to 6")),
        (0, 0.2, ("--train_size 0",)),
        (-1, 0.2, ("--train_size -1",)),
        (2.5, 0.2, ("--train_size 2.5",)),
        (float("nan"), 0.2, ("--train_size nan",)),
        (4, 1, ("--val_portion 1",)),
        (4, -0.1, ("--val_portion -0.1",)),
        (4, float("nan"), ("--val_portion nan",)),
        (1, 0.9, ("no training image",)),
    ],
)
def test_splits_that_cannot_be(train_size, val_portion, words):
    labels, is_test = torch.arange(8) % 2, torch.arange(8) >= 6
    user_error(lambda: make_splits(labels, is_test, train_size, val_portion, 0), *words)


# ------------------------------------------------------------------------------------------------------------ stores


@pytest.fixture
def both_stores(tmp_path):
    expected = torch.stack([write_image(tmp_path / f"{i}.png", seed=i) for i in range(5)])
    return MemoryStore(expected), FileStore([tmp_path / f"{i}.png" for i in range(5)], 8, 8), expected


def test_stores_give_the_images_asked_for(both_stores):
    expected = both_stores[2]
    for images in both_stores[:2]:
        assert len(images) == 5 and images.image_shape == (3, 8, 8)
        for wanted in ([4, 0, 0, 2], torch.tensor([4, 0, 0, 2]), np.array([4, 0, 0, 2], dtype=np.int32)):
            got = images[wanted]
            assert got.dtype == torch.uint8 and got.device.type == "cpu" and torch.equal(got, expected[[4, 0, 0, 2]])
        assert images[[]].shape == (0, 3, 8, 8)
        for wrong, error in (
            ([5], IndexError),
            ([-1], IndexError),
            ([0.0], TypeError),
            ([True], TypeError),
            ([[0]], TypeError),
        ):
            with pytest.raises(error):
                images[wrong]
        images[[0]].zero_()
        assert torch.equal(images[[0]], expected[:1]), "the store handed out its own memory"


def test_lazy_equals_in_memory(tmp_path, monkeypatch, cache):
    for i, side in enumerate((8, 31, 200, 64)):
        write_image(tmp_path / f"a/{i}.png", seed=i, size=side)
    write_image(tmp_path / "b/0.png", seed=9)
    memory = dataset.load_dataset("imagefolder", tmp_path, 16)
    monkeypatch.setattr(store, "IN_MEMORY_BYTES", 5 * 3 * 16 * 16 - 1)
    cached = set(cache.iterdir())
    lazy = dataset.load_dataset("imagefolder", tmp_path, 16)
    assert isinstance(memory.images, MemoryStore) and isinstance(lazy.images, FileStore)
    assert torch.equal(all_images(memory), all_images(lazy)) and set(cache.iterdir()) == cached
    (tmp_path / "a/2.png").write_bytes(b"gone bad")
    user_error(lambda: lazy.images[[1, 2]], tmp_path / "a/2.png")


def test_order_survives_many_chunks(tmp_path):
    expected = [write_image(tmp_path / f"{i:03}.png", seed=i, size=2) for i in range(3 * store.CHUNK + 7)]
    got = store.decode_images([tmp_path / f"{i:03}.png" for i in range(len(expected))], 2, 2)
    assert torch.equal(got, torch.stack(expected))


# ------------------------------------------------------------------------------------------------------------- cache


@pytest.fixture
def cached_set(tmp_path, cache):
    """A loaded image folder and its cache file."""
    root = tmp_path / "set"
    fill(root, {"a": 9, "b": 9})
    data = dataset.load_dataset("imagefolder", root)
    return root, data, next(cache.iterdir())


def test_cache_saves_decoding(cached_set, monkeypatch):
    root, data, _ = cached_set
    monkeypatch.setattr(store, "decode_images", lambda *_: pytest.fail("decoded again"))
    assert torch.equal(all_images(dataset.load_dataset("imagefolder", root)), all_images(data))


def test_cache_notices_changed_files(cached_set, cache):
    root, data, _ = cached_set
    path = root / "a/3.png"
    changed, status = write_image(path, seed=999), path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert torch.equal(dataset.load_dataset("imagefolder", root).images[[3]][0], changed)
    (root / "a/3.png").rename(root / "a/99.png")
    renamed = dataset.load_dataset("imagefolder", root)
    assert torch.equal(renamed.images[[8]][0], changed) and torch.equal(renamed.images[[0]], data.images[[0]])
    assert dataset.load_dataset("imagefolder", root, 4).images.image_shape == (3, 4, 4)
    assert len(list(cache.iterdir())) == 4, "each of the four has its own place"


def test_cache_looks_at_names_and_sizes(tmp_path):
    def write(name, seed, size=8):
        write_image(tmp_path / name, seed, size)
        os.utime(tmp_path / name, (0, 0))

    for seed, name in enumerate(("a/0.bmp", "a/1.bmp", "b/0.bmp")):
        write(name, seed)
    before = all_images(dataset.load_dataset("imagefolder", tmp_path, 8))
    write("b/0.bmp", 2, size=9)
    assert not torch.equal(all_images(dataset.load_dataset("imagefolder", tmp_path, 8)), before)
    write("b/0.bmp", 2)
    (tmp_path / "a/0.bmp").rename(tmp_path / "a/2.bmp")
    assert torch.equal(all_images(dataset.load_dataset("imagefolder", tmp_path, 8)), before[[1, 0, 2]])


def test_cache_tells_equal_listings_apart(tmp_path):
    # Uncompressed pictures of one size and one time stamp, as reproducible archives give them.
    loaded = []
    for seed, place in enumerate(("one", "two")):
        for index, name in enumerate(("a/0.bmp", "b/0.bmp")):
            write_image(tmp_path / place / name, seed=10 * seed + index)
            os.utime(tmp_path / place / name, (0, 0))
        loaded.append(all_images(dataset.load_dataset("imagefolder", tmp_path / place)))
    assert not torch.equal(*loaded)


@pytest.mark.parametrize("damage", ["truncated", "flipped bit", "empty", "foreign", "other shape", "pickle"])
def test_damaged_cache_is_rebuilt(cached_set, damage, tmp_path):
    root, data, path = cached_set
    content = bytearray(path.read_bytes())
    if damage == "other shape":
        np.savez(path, pixels=np.zeros((18, 3, 8, 4), dtype=np.uint8))
    elif damage == "pickle":
        RunsCode.marker = str(tmp_path / "hacked")
        np.savez(path, pixels=np.array([RunsCode()], dtype=object))
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes({"truncated": content[:-900], "flipped bit": content, "empty": b"", "foreign": b"hi"}[damage])
    assert torch.equal(all_images(dataset.load_dataset("imagefolder", root)), all_images(data))
    assert not (tmp_path / "hacked").exists()
    with np.load(path) as rebuilt:
        assert np.array_equal(rebuilt["pixels"], all_images(data).numpy())


def test_no_room_for_the_cache_is_no_error(cached_set, cache, monkeypatch, capsys):
    root, data, path = cached_set
    path.unlink()

    def full(file, **_):
        Path(file).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert torch.equal(all_images(dataset.load_dataset("imagefolder", root)), all_images(data))
    assert "No space left" in capsys.readouterr().err and not list(cache.iterdir())
    monkeypatch.setattr(store, "CACHE_FOLDER", root / "a/0.png")  # can't be made
    assert torch.equal(all_images(dataset.load_dataset("imagefolder", root)), all_images(data))


# ---------------------------------------------------------------------------------------------------------- decoding


def test_exact_size_keeps_its_bytes(tmp_path):
    expected = write_image(tmp_path / "x.png", size=33)
    assert np.array_equal(store.decode_image(tmp_path / "x.png", 33, 33).transpose(2, 0, 1), expected)


def test_crop_is_the_centre(tmp_path):
    picture = Image.new("RGB", (16, 8), RED)
    picture.paste(GREEN, (4, 0, 12, 8))
    picture.save(tmp_path / "wide.png")
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "tall.png")
    for name in ("wide.png", "tall.png"):
        assert (store.decode_image(tmp_path / name, 8, 8) == GREEN).all()
    assert (store.decode_image(tmp_path / "wide.png", 4, 2) == GREEN).all()
    assert (store.decode_image(tmp_path / "wide.png", 4, 8)[:, [0, -1]] == RED).all(), "nothing to crop at 2 to 1"


def test_scaling_is_antialiased_and_as_torchvision_does_it(tmp_path):
    Image.fromarray(np.indices((64, 64)).sum(0).astype(np.uint8) % 2 * 255).save(tmp_path / "board.png")
    assert abs(store.decode_image(tmp_path / "board.png", 8, 8).astype(int) - 127).max() <= 2
    from torchvision.transforms import functional

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    picture.save(tmp_path / "noise.png")
    expected = functional.center_crop(functional.resize(picture, 30), 30)
    assert np.array_equal(store.decode_image(tmp_path / "noise.png", 30, 30), np.asarray(expected))


def test_exif_orientation(tmp_path):
    picture = Image.new("RGB", (16, 8), RED)
    picture.paste(BLUE, (8, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise: the left half becomes the top
    picture.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(store.decode_image(tmp_path / "turned.png", 16, 8)[[0, 15], 0], [RED, BLUE])


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("LA", (77, 9), (77, 77, 77)),
        ("RGBA", (1, 2, 3, 128), (1, 2, 3)),
        ("CMYK", (0, 255, 255, 0), RED),
        ("P", 3, (10, 20, 30)),
        ("I;16", 0x8040, (128, 128, 128)),
    ],
)
def test_colour_modes(tmp_path, mode, colour, expected):
    picture = Image.new(mode, (4, 4), colour)
    if mode == "P":
        picture.putpalette([0] * 9 + [10, 20, 30])
    picture.save(tmp_path / "x.tif")
    assert (store.decode_image(tmp_path / "x.tif", 4, 4) == expected).all()


def png_claiming(width, height):
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b"\0" * 9))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("width", "height"), [(10_001, 10_000), (20_000, 20_000), (60_000, 60_000)])
def test_decompression_bombs(tmp_path, width, height):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_claiming(width, height))
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        user_error(lambda: store.decode_images([path], 8, 8), path, "pixels", "limit")
    assert not shown, "Pillow's own warning would be a second line"
    assert limit == Image.MAX_IMAGE_PIXELS


def test_extreme_shapes(tmp_path):
    for size in ((1, 60_000), (60_000, 1)):
        Image.new("RGB", size).save(tmp_path / "line.png")
        user_error(lambda: store.decode_image(tmp_path / "line.png", 224, 224), tmp_path / "line.png", "too narrow")


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "floats"])
def test_unreadable_image(tmp_path, damage):
    fill(tmp_path, {"a": 2, "b": 2})
    path = tmp_path / "b/1.png"
    content = path.read_bytes()
    path.write_bytes({"truncated": content[:-60], "text": b"hello", "empty": b"", "floats": b""}[damage])
    if damage == "floats":
        path = tmp_path / "b/2.tif"
        (tmp_path / "b/1.png").unlink()
        Image.new("F", (8, 8), 0.5).save(path)
    user_error(lambda: dataset.load_dataset("imagefolder", tmp_path, 8), path, "not a readable image")
    if damage in ("text", "empty"):
        user_error(lambda: dataset.load_dataset("imagefolder", tmp_path), path, "not a readable image")


# ------------------------------------------------------------------------------------------------------- imagefolder


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


# ------------------------------------------------------------------------------------------------------ outlier bank


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


# ------------------------------------------------------------------------------------------------------------ photos


@pytest.fixture(scope="module")
def photo_data():
    return dataset.load_dataset("photos")


def test_photos(photo_data):
    data, recipe = photo_data, dataset.recipe("photos")
    assert len(data.class_names) == len(set(data.class_names)) == 99 and len(data.labels) == 2_966
    assert data.images.image_shape == (3, 32, 32) and not data.is_test.any() and data.recipe == recipe
    crops = all_images(data).permute(0, 2, 3, 1).numpy()
    assert photos.deviation(crops).min() > photos.LEAST_DEVIATION + 0.1, "rounding could change which crops are kept"
    assert len(np.unique(crops.reshape(len(crops), -1), axis=0)) == len(crops), "two crops are the same"
    counts = torch.bincount(data.labels)
    for seed in range(5):  # enough images in every class for a user of it on either side
        splits = make_splits(data.labels, data.is_test, recipe.train_size, recipe.val_portion, seed)
        assert torch.bincount(data.labels[splits.non_member]).min() >= 10
        assert torch.bincount(data.labels[splits.train]).min() >= recipe.marked_samples_per_user
    assert len(set(recipe.target_user_cls)) == 5 and counts[list(recipe.target_user_cls)].min() >= 35
    assert recipe.train_size == 1_500 and recipe.marked_samples_per_user == 8 and recipe.num_of_non_member_user == 1_000


def test_photo_crops_are_where_they_say():
    for photo in photos.PHOTOS:
        image = photos.open_photo(photo)
        crops, ninths, corners = photos.crop_photo(image, photo.shrink)
        pixels = np.asarray(image.reduce(photo.shrink))
        taken = np.zeros(pixels.shape[:2], dtype=int)
        for crop, ninth, (y, x) in zip(crops, ninths, corners, strict=True):
            assert np.array_equal(crop, pixels[y : y + 32, x : x + 32])
            taken[y : y + 32, x : x + 32] += 1
            row, column = (y + 16) * 3 // taken.shape[0], (x + 16) * 3 // taken.shape[1]
            assert ninth == 3 * row + column
        assert taken.max() == 1, f"crops of {photo.name} overlap"


def test_constant_crops_are_left_out():
    picture = np.zeros((96, 96, 3), dtype=np.uint8)
    picture[64:, 32:64] = np.random.default_rng(0).integers(0, 256, (32, 32, 3))
    crops, ninths, corners = photos.crop_photo(Image.fromarray(picture), 1)
    assert ninths.tolist() == [7] and corners.tolist() == [[64, 32]] and np.array_equal(crops[0], picture[64:, 32:64])


def test_photos_run_no_foreign_code_and_use_no_network():
    code = (
        "import socket, sys; socket.socket.connect = socket.getaddrinfo = None; "
        "import dataset; dataset.load_dataset('photos'); "
        "print([name for name in ('skimage', 'sklearn', 'torchvision') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(dataset.__file__).parents[1], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")


def test_photos_that_have_changed(tmp_path, monkeypatch):
    class Spec:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr(photos.importlib.util, "find_spec", lambda name: Spec)
    user_error(lambda: dataset.load_dataset("photos"), "astronaut.png", "missing", "scikit-image==")
    write_image(tmp_path / "data/astronaut.png")
    user_error(lambda: dataset.load_dataset("photos"), "astronaut.png", "not the expected file", "scikit-image==")
    monkeypatch.setattr(photos.importlib.util, "find_spec", lambda name: None)
    user_error(lambda: dataset.load_dataset("photos"), "skimage is not installed", "pip install scikit-image==")


# ------------------------------------------------------------------------------------------------------------ checks


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"labels": torch.tensor([0, 1, 2, 0])}, "image 2 has label 2"),
        ({"labels": torch.tensor([0, -1, 1, 0])}, "image 1 has label -1"),
        ({"labels": torch.tensor([0, 0, 0, 1]), "is_test": torch.tensor([False, False, False, True])}, "class 'bee'"),
        ({"labels": torch.tensor([0, 1, 0])}, "one per label"),
        ({"labels": torch.tensor([0, 1, 0]), "is_test": torch.zeros(3, dtype=torch.bool)}, "4 images but 3 labels"),
        ({"labels": torch.tensor([0.0, 1, 0, 1])}, "int64"),
        ({"is_test": torch.zeros(4)}, "bool"),
        ({"images": MemoryStore(torch.full((4, 3, 2, 2), 9, dtype=torch.uint8))}, "all pixels"),
        (
            {
                "images": MemoryStore(torch.zeros((0, 3, 2, 2), dtype=torch.uint8)),
                "labels": torch.zeros(0, dtype=torch.int64),
                "is_test": torch.zeros(0, dtype=torch.bool),
            },
            "no images",
        ),
    ],
)
def test_checks_at_load(change, word):
    good = {
        "images": MemoryStore(torch.arange(48, dtype=torch.uint8).reshape(4, 3, 2, 2)),
        "labels": torch.tensor([0, 1, 1, 0]),
        "class_names": ("ant", "bee"),
        "is_test": torch.zeros(4, dtype=torch.bool),
        "recipe": photos.RECIPE,
    }
    checked_data("mine", **good)
    user_error(lambda: checked_data("mine", **{**good, **change}), "data set mine", word)


def test_checks_of_pixels():
    class Odd:
        image_shape, pixels = (3, 2, 2), torch.rand(4, 3, 2, 2)
        __len__, __getitem__ = lambda self: 4, lambda self, indices: self.pixels[indices]

    labels, is_test = torch.tensor([0, 1, 1, 0]), torch.zeros(4, dtype=torch.bool)
    odd = Odd()
    user_error(lambda: checked_data("mine", odd, labels, "ab", is_test, photos.RECIPE), "mine", "uint8")
    odd.pixels = torch.arange(64, dtype=torch.uint8).reshape(4, 4, 2, 2)
    user_error(lambda: checked_data("mine", odd, labels, "ab", is_test, photos.RECIPE), "mine", "(4, 2, 2)")
    odd.image_shape = (4, 2, 2)
    user_error(lambda: checked_data("mine", odd, labels, "ab", is_test, photos.RECIPE), "mine", "(3, H, W)")
    for pixels in (torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, 3, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            MemoryStore(pixels)
