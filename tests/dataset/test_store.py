"""Stores of images: in memory and in files, their cache, and how a picture is decoded."""

import errno
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dataset
from dataset import store
from dataset.store import FileStore, MemoryStore
from tests.dataset.parts import BLUE, GREEN, RED, RunsCode, all_images, fill, write_image
from tests.parts import user_error

# --- stores ---


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


# --- cache ---


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


# --- decoding ---


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
