"""Photos: every kind of file gives the pixels it stands for or a reason, and folders give the photos in them."""

import io
import json
import os
import re
import struct
import subprocess
import sys
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, features

from kit.errors import UserError
from provenance.photos import UnreadablePhoto, encode_photo, find_photos, read_photo, write_photo
from tests.parts import ROOT, environment
from tests.provenance.hostile_photos import heif, hostile_files, photo, pillow_heif, png, saved, tiff, tiff_tags

needs_heif = pytest.mark.skipif(pillow_heif is None, reason="pillow-heif is not installed")

KINDS = [("PNG", mode) for mode in ("1", "L", "LA", "P", "P clear", "RGB", "RGBA", "I;16")]
KINDS += [("TIFF", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "PA")]
PILLOW = int(PIL.__version__.partition(".")[0])
if PILLOW >= 13:  # older ones can't read the YCbCr that they write
    KINDS.append(("TIFF", "YCbCr"))
KINDS += [
    ("BMP", "1"),
    ("BMP", "L"),
    ("BMP", "P"),
    ("BMP", "RGB"),
    ("WEBP", "RGB"),
    ("WEBP", "RGBA"),
    ("GIF", "P"),
    ("GIF", "P clear"),
    ("PPM", "1"),
    ("PPM", "L"),
    ("PPM", "RGB"),
    ("PPM", "I;16"),
]
CHANNELS = {"LA": 2, "PA": 2, "RGB": 3, "YCbCr": 3, "RGBA": 4, "CMYK": 4}


def on_white(colour, alpha):
    return np.floor((colour * alpha + 255 * (255.0 - alpha)) / 255 + 0.5)


def stored_and_shown(mode, size, rng):
    """A random Pillow image of a mode and, computed without Pillow, the float RGB that it stands for."""
    if mode == "1":
        bits = rng.integers(0, 2, size, dtype=np.uint8)
        return Image.fromarray(bits * 255).convert("1"), np.repeat(bits[..., None] * 255, 3, -1)
    if mode == "I;16":
        values = rng.integers(0, 1 << 16, size, dtype=np.uint16)
        return Image.fromarray(values), np.repeat(values[..., None] >> 8, 3, -1)
    values = rng.integers(0, 256, (*size, CHANNELS.get(mode, 1)), dtype=np.uint8)
    palette = rng.integers(0, 256, (256, 3), dtype=np.uint8)
    name = mode.split()[0]
    image = Image.frombytes(name, size[::-1], values.tobytes())
    if name in ("P", "PA"):
        image.putpalette(palette.tobytes())
    if mode == "P clear":
        image.info["transparency"] = int(values[0, 0, 0])
        return image, np.where(values == values[0, 0, 0], 255, palette[values[..., 0]])
    exact = values.astype(float)
    shown = {
        "L": lambda: exact,
        "LA": lambda: on_white(exact[..., :1], exact[..., 1:]),
        "P": lambda: palette[values[..., 0]],
        "PA": lambda: on_white(palette[values[..., 0]], exact[..., 1:]),
        "RGB": lambda: exact,
        "RGBA": lambda: on_white(exact[..., :3], exact[..., 3:]),
        "CMYK": lambda: (255 - exact[..., :3]) * (255 - exact[..., 3:]) / 255,
        "YCbCr": lambda: (
            (exact - (0, 128, 128)) @ np.array([[1, 1, 1], [0, -0.344136, 1.772], [1.402, -0.714136, 0]])
        ).clip(0, 255),
    }[name]()
    return image, np.broadcast_to(shown, (*size, 3))


@settings(max_examples=400)
@given(st.sampled_from(KINDS), st.integers(1, 64), st.integers(1, 64), st.integers(0, 2**32 - 1))
def test_lossless_files_give_the_known_pixels(kind, height, width, seed):
    format, mode = kind
    image, shown = stored_and_shown(mode, (height, width), np.random.default_rng(seed))
    more = {"lossless": True} if format == "WEBP" else {}
    if "transparency" in image.info:
        more["transparency"] = image.info["transparency"]
    pixels = read_photo(saved(image, format, **more))
    assert pixels.dtype == np.uint8 and pixels.shape == (height, width, 3) and pixels.flags.writeable
    assert np.abs(pixels - shown).max() <= (1 if mode in ("CMYK", "YCbCr") else 0)


@pytest.mark.parametrize("alphas", [bytes(range(0, 256, 2)), b"\0", b"\xff\x80"])
def test_palette_with_partly_transparent_entries(alphas):
    index = np.arange(256, dtype=np.uint8).reshape(16, 16)
    palette = np.random.default_rng(1).integers(0, 256, (256, 3), dtype=np.uint8)
    image = Image.fromarray(index)
    image.putpalette(palette.tobytes())
    alpha = np.frombuffer(alphas.ljust(256, b"\xff"), np.uint8)[:, None].astype(float)
    expected = on_white(palette, alpha).reshape(16, 16, 3)
    assert np.array_equal(read_photo(saved(image, "PNG", transparency=alphas)), expected)


def test_one_transparent_colour_without_an_alpha_channel():
    rows = b"\0" + bytes([10, 20, 30, 10, 20, 31])
    assert read_photo(png(2, 1, (b"tRNS", struct.pack(">3H", 10, 20, 30)), rows=rows)).tolist() == [
        [[255] * 3, [10, 20, 31]]
    ]
    rows = b"\0" + struct.pack(">2H", 300, 0x8001)
    assert read_photo(png(2, 1, (b"tRNS", struct.pack(">H", 300)), depth=16, color=0, rows=rows)).tolist() == [
        [[255] * 3, [128] * 3]
    ]


def test_tiffs_of_unusual_grey():
    values = np.array([[0, 1 << 4, 4095 << 4, 0xFFFF]], dtype="<u2")
    white_is_zero = tiff(tiff_tags(4, 1, 16, 1, 0, 8), values.tobytes())
    assert read_photo(white_is_zero)[0, :, 0].tolist() == [255, 255, 0, 0]
    twelve = tiff(tiff_tags(2, 1, 12, 1, 1, 3), bytes([0xFF, 0xF8, 0x01]))
    assert read_photo(twelve)[0, :, 0].tolist() == [255, 128]
    premultiplied = tiff({**tiff_tags(1, 1, 8, 4, 2, 4), 338: (3, [1])}, bytes([100, 50, 0, 128]))
    assert np.abs(read_photo(premultiplied)[0, 0] - np.array([227.0, 177, 127])).max() <= 1


def test_lab_becomes_rgb():
    gold = Image.merge("LAB", [Image.new("L", (4, 4), value) for value in (220, 131, 207)])  # L 86, a 3, b 79
    assert np.abs(read_photo(saved(gold, "TIFF"))[0, 0] - np.array([253.0, 212, 48])).max() <= 6


TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


def oriented(pixels, format, orientation, **more):
    exif = Image.Exif()
    exif[0x112] = orientation
    return saved(Image.fromarray(pixels), format, exif=exif.tobytes(), **more)


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_orientation_is_exact(format, orientation):
    more = {"lossless": True} if format == "WEBP" else {}
    upright = read_photo(oriented(photo(5, 9), format, orientation, **more))
    assert np.array_equal(upright, TURNED[orientation](photo(5, 9)))


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("format", ["JPEG", "AVIF", pytest.param("HEIF", marks=needs_heif)])
def test_lossy_files_are_close_and_upright(format, orientation):
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    y, x = np.mgrid[:96, :128]
    smooth = np.stack([x * 2, 255 - y * 2, 60 + (x + y) // 2], -1).astype(np.uint8)
    if format == "HEIF":  # as phones write it: turned by the container, which the EXIF repeats
        pillow_heif.register_heif_opener()
    upright = read_photo(oriented(smooth, format, orientation, quality=95))
    assert np.abs(upright.astype(int) - TURNED[orientation](smooth)).mean() < 3


def test_orientation_survives_exif_that_cannot_be_written_again():
    # A comment of type ASCII that is none, as some cameras have it, beside the orientation.
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + struct.pack(">HHIHH", 0x112, 3, 1, 6, 0)
    exif += struct.pack(">HHII", 0x8769, 4, 1, 0xFFFFFFF0) + bytes(4)
    assert read_photo(saved(Image.fromarray(photo()), "JPEG", exif=exif)).shape == (64, 48, 3)


def test_cmyk_jpeg_of_adobe():
    cmyk = np.zeros((16, 16, 4), np.uint8) + np.array([0, 200, 255, 20], np.uint8)
    pixels = read_photo(saved(Image.fromarray(cmyk, "CMYK"), "JPEG", quality=95))
    assert np.abs(pixels - (255.0 - cmyk[..., :3]) * (235 / 255)).max() < 5


# Adobe RGB (1998), whose primaries are seen under D50 like every profile's.
ADOBE = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])


def icc(space, curves, gamma):
    """A small ICC profile, version 2: {tag: (X, Y, Z)} and for all channels one gamma or a table of 0..1."""

    def fixed(numbers):
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(number * 65536)) for number in numbers)

    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": fixed((0.9642, 1, 0.8249)),
        **{name: fixed(value) for name, value in curves.items()},
    }
    for name in (b"kTRC",) if space == b"GRAY" else (b"rTRC", b"gTRC", b"bTRC"):
        curve = [round(gamma * 256)] if np.ndim(gamma) == 0 else np.round(gamma * 65535).astype(int).tolist()
        tags[name] = b"curv\0\0\0\0" + struct.pack(f">I{len(curve)}H", len(curve), *curve)
    table, body = struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        table += struct.pack(">4sII", name, 132 + 12 * len(tags) + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    head = struct.pack(
        ">I4sI4s4s4s12x4s28x3i",
        128 + len(table + body),
        b"none",
        0x02100000,
        b"mntr",
        space,
        b"XYZ ",
        b"acsp",
        63190,
        65536,
        54061,
    ).ljust(128, b"\0")
    return head + table + body


def srgb_curve(linear):
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def adobe_rgb():
    return icc(b"RGB ", dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), ADOBE.T, strict=True)), 2.19921875)


def test_adobe_rgb_becomes_srgb():
    pixels = photo()
    expected = srgb_curve((pixels / 255.0) ** 2.19921875 @ (np.linalg.inv(SRGB) @ ADOBE).T)
    assert np.abs(expected - pixels).max() > 20  # else this test would say nothing
    alpha = Image.fromarray(pixels).convert("RGBA")
    for image in (Image.fromarray(pixels), alpha):
        for format in ("PNG", "TIFF"):
            assert np.abs(read_photo(saved(image, format, icc_profile=adobe_rgb())) - expected).max() <= 2
    few = Image.fromarray(pixels).quantize(16)
    colours = read_photo(saved(few.convert("RGB"), "PNG", icc_profile=adobe_rgb()))
    assert np.array_equal(read_photo(saved(few, "PNG", icc_profile=adobe_rgb())), colours)
    assert not np.array_equal(colours, few.convert("RGB"))


def test_grey_profile_and_profiles_of_another_mode():
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    linear = icc(b"GRAY", {}, 1.0)
    expected = srgb_curve(np.asarray(grey) / 255.0)[..., None]
    assert np.abs(read_photo(saved(grey, "PNG", icc_profile=linear)) - expected).max() <= 2
    half = Image.merge("LA", (grey, Image.new("L", grey.size, 128)))
    shown = read_photo(saved(half, "PNG", icc_profile=linear))
    assert np.abs(shown - (expected * 128 + 255 * 127) / 255).max() <= 2
    for image, profile in ((grey, adobe_rgb()), (grey.convert("CMYK"), adobe_rgb()), (grey.convert("RGB"), linear)):
        assert np.array_equal(read_photo(saved(image, "TIFF", icc_profile=profile)), read_photo(saved(image, "TIFF")))


def test_srgb_profiles_change_nothing():
    pixels = np.random.default_rng(2).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # Another maker's: a table for the curve, and primaries that were rounded, too.
    levels = np.linspace(0, 1, 256)
    table = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    other = icc(b"RGB ", dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), SRGB.T.round(4), strict=True)), table)
    for profile in (own, other):
        assert np.array_equal(read_photo(saved(Image.fromarray(pixels), "PNG", icc_profile=profile)), pixels)


@pytest.fixture(scope="module")
def hostile():
    return hostile_files()


@pytest.fixture(scope="module")
def answers():
    """What a fresh process made of the whole corpus: {"files": {name: shape or reason}, "slowest", "peak", "error"}."""
    code = """
import io, json, sys, time, warnings
import numpy as np
import PIL
from PIL import Image
from provenance.photos import UnreadablePhoto, read_photo
warnings.simplefilter("always")
file = io.BytesIO()
Image.new("RGB", (8, 8)).save(file, "JPEG")
read_photo(file.getvalue())
assert "pillow_heif" not in sys.modules, "loaded for a JPEG"
from tests.provenance import hostile_photos
files, slowest = {}, (0, "")
for name, data in hostile_photos.hostile_files().items():
    start = time.process_time()
    try:
        pixels = read_photo(data)
        assert type(pixels) is np.ndarray and pixels.dtype == np.uint8 and pixels.ndim == 3, name
        files[name] = pixels.shape
    except UnreadablePhoto as error:
        files[name] = str(error)
    slowest = max(slowest, (time.process_time() - start, name))
# Not ru_maxrss: it begins with the size of the process that started this one.
peak = None
if sys.platform == "linux":
    with open("/proc/self/status") as status:
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
print(json.dumps({"files": files, "slowest": slowest, "peak": peak}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {**json.loads(done.stdout), "error": done.stderr}


def test_hostile_files_give_pixels_or_one_line(answers):
    assert len(answers["files"]) >= 220
    for name, answer in answers["files"].items():
        if isinstance(answer, str):
            assert answer.strip() and answer.isprintable() and len(answer) < 300, name
        else:
            assert answer[2] == 3 and min(answer) > 0, name


def test_hostile_files_are_quick_quiet_and_small(answers):
    # Of the processor, which others on it don't add to; what is refused too late takes hours.
    assert answers["slowest"][0] < 60, answers["slowest"]
    assert answers["peak"] is None or answers["peak"] < 1_500_000  # kilobytes
    # libtiff writes lines of its own from C ("ZIPDecode: ..."), which Python can't stop; none may be Python's.
    assert not re.search(r"Warning|warn\(|Traceback|\.py|samples per pixel", answers["error"])


def test_which_hostile_files_are_refused(answers):
    for name, answer in answers["files"].items():
        if re.search(r"-cut\d|^cut-moving", name) or name in ("tall.png", "long-chunk.png", "icon.png", "targa.tif"):
            assert isinstance(answer, str), f"{name} is cut or of another format"
        # Pillow 12 looks at the size of a WebP itself and has no words for it.
        if re.match(r"huge(?!-tile)|longest\.png|slim|bomb-(1bit|just)", name) and (PILLOW, name) != (12, "huge.webp"):
            assert re.fullmatch(r"claims \d+( x \d+)? pixels, above the limit of 100 megapixels", answer), name
        if re.match(r"moving\.|pages\.", name):
            assert "animated" in answer, name
    assert "claims 60000 x 60000 pixels" in answers["files"]["huge.png"]
    assert "scans" in answers["files"]["bomb-scans.jpg"] and answers["files"]["empty.jpg"] == "is empty"
    assert "floating" in answers["files"]["nan.tif"] and "16 bits" in answers["files"]["whole-32-bit.tif"]


def test_damaged_metadata_and_wrong_suffixes_do_no_harm(hostile):
    plain = read_photo(hostile["plain-wrong-suffix.png"])
    assert plain.shape == photo().shape
    names = [name for name in hostile if re.match(r"(exif|profile).*\.jpg$", name) and "list" not in name]
    assert len(names) >= 14
    for name in [*names, "cut-preview.jpg", "table-noise.jpg"]:
        assert np.abs(read_photo(hostile[name]).astype(int) - plain).max() == 0, name


def test_corpus_is_the_same_every_time(hostile):
    assert hostile == hostile_files()


def test_just_below_the_limit_is_read():
    rows = bytes(1251) * 9_999
    assert read_photo(png(10_000, 9_999, depth=1, color=0, rows=rows)).shape == (9_999, 10_000, 3)


def test_mpo_gives_its_first_picture():
    frames = [Image.fromarray(photo()), Image.fromarray(photo()[:20, :30])]
    mpo = saved(frames[0], "MPO", save_all=True, append_images=frames[1:], quality=90)
    assert Image.open(io.BytesIO(mpo)).n_frames == 2
    assert np.array_equal(read_photo(mpo), read_photo(saved(frames[0], "JPEG", quality=90)))


@needs_heif
def test_heic_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(UnreadablePhoto, match=r"^HEIC needs the package pillow-heif: pip install pillow-heif$"):
        read_photo(heif(photo()))


def test_many_threads_at_once(hostile, recwarn):
    some = [data for name, data in hostile.items() if len(data) < 20_000][::3] * 2

    def result(data):
        try:
            return read_photo(data).tobytes()
        except UnreadablePhoto as error:
            return str(error)

    expected = [result(data) for data in some]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(result, some)) == expected
    assert not recwarn.list


def test_sources_that_are_no_files(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(encode_photo(photo()))
    assert np.array_equal(read_photo(path), photo()) and np.array_equal(read_photo(str(path)), photo())
    with pytest.raises(UnreadablePhoto, match="No such file"):
        read_photo(tmp_path / "none.jpg")
    with pytest.raises(UnreadablePhoto, match="regular file"):
        read_photo(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.jpg")
        with pytest.raises(UnreadablePhoto, match="regular file"):
            read_photo(tmp_path / "pipe.jpg")


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_png_keeps_every_pixel(height, width, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    for view in (pixels, pixels[::-1, ::-1], np.asfortranarray(pixels)):
        assert np.array_equal(read_photo(encode_photo(view)), view)


def test_encoded_files_hold_nothing_but_the_picture():
    data = encode_photo(photo())
    assert data == encode_photo(photo().copy()) and encode_photo(photo(), "jpeg") == encode_photo(photo(), "jpeg")
    names, place = [], 8
    while place < len(data):
        length, name = struct.unpack_from(">I4s", data, place)
        names.append(name)
        place += length + 12
    assert names[0] == b"IHDR" and names[-1] == b"IEND" and set(names[1:-1]) == {b"IDAT"}

    data, place, segments = encode_photo(photo(), "jpeg"), 2, {}
    while data[place + 1] != 0xDA:
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        segments[data[place + 1]] = data[place + 4 : place + 2 + length]
        place += 2 + length
    assert set(segments) == {0xE0, 0xDB, 0xC0, 0xC4} and segments[0xE0].startswith(b"JFIF")
    assert segments[0xC0][7::3] == b"\x11\x11\x11"  # each channel has every pixel: 4:4:4


def test_jpeg_keeps_chroma():
    stripes = np.zeros((32, 32, 3), np.uint8) + 128
    stripes[:, ::2, 0] += 30
    stripes[:, 1::2, 2] += 30
    assert np.abs(read_photo(encode_photo(stripes, "jpeg", quality=98)).astype(int) - stripes).max() < 10
    assert len(encode_photo(photo(), "jpeg", quality=30)) < len(encode_photo(photo(), "jpeg"))


def test_what_cannot_be_encoded():
    for pixels in (photo().astype(float), photo()[..., 0], photo()[:0], np.zeros((4, 4, 4), np.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            encode_photo(pixels)
    with pytest.raises(ValueError, match="neither"):
        encode_photo(photo(), "webp")
    long = np.zeros((1, 70_000, 3), np.uint8)
    with pytest.raises(UserError, match="write a PNG"):
        encode_photo(long, "jpeg")
    assert read_photo(encode_photo(long)).shape == long.shape


def test_write_photo(tmp_path):
    write_photo(tmp_path / "new" / "bild.png", encode_photo(photo()))
    assert np.array_equal(read_photo(tmp_path / "new" / "bild.png"), photo())
    with pytest.raises(TypeError):
        write_photo(tmp_path / "new" / "bild.png", None)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["bild.png"]
    assert np.array_equal(read_photo(tmp_path / "new" / "bild.png"), photo())


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


UNICODE = [
    unicodedata.normalize("NFC", "Gärten/blüte.jpg"),
    unicodedata.normalize("NFD", "Höfe/tür.jpg"),
    "日本/猫.heic",
    "🌻 (1).png",
    "a'b\"c.webp",
    "zwei  leer.tiff",
]


@pytest.mark.parametrize("order", [1, -1])
def test_photos_of_a_tree(tmp_path, order):
    photos = ["B.JPG", "a.jpg", "deep/er/est/c.Jpeg", "folder.png/d.gif", *UNICODE]
    other = ["notes.txt", "deep/raw.cr2", "jpg", "x.jpg.bak"]
    clutter = [".hidden.jpg", ".cache/e.jpg", "__MACOSX/f.jpg", "Thumbs.db", "deep/thumbs.db", "._a.jpg", ".DS_Store"]
    make(tmp_path, *(photos + other + clutter)[::order])
    assert find_photos(tmp_path) == (sorted([*photos, "deep/raw.cr2"]), [], ["jpg", "notes.txt", "x.jpg.bak"])
    assert find_photos(str(tmp_path)) == find_photos(tmp_path)


def test_links(tmp_path):
    folder, outside = tmp_path / "photos", tmp_path / "photos-other"
    make(folder, "a.jpg", "sub/b.jpg", "notes.txt")
    make(outside, "secret.jpg")
    links = {
        "inside.jpg": "a.jpg",
        "sub/up.jpg": "../a.jpg",
        "out.jpg": outside / "secret.jpg",
        "album": outside,
        "gone.jpg": "nothing.jpg",
        "circle.jpg": "circle.jpg",
        "sub/parent": "..",
        "again": "sub",
        "words.txt": "notes.txt",
        "hop.jpg": "album/secret.jpg",
    }
    for name, target in links.items():
        (folder / name).symlink_to(target)
    photos, refused, ignored = find_photos(folder)
    assert photos == ["a.jpg", "inside.jpg", "sub/b.jpg", "sub/up.jpg"] and len(ignored) == 2
    reasons = dict(refused)
    assert list(reasons) == sorted(["out.jpg", "album", "gone.jpg", "circle.jpg", "sub/parent", "again", "hop.jpg"])
    assert all("leaves" in reasons[name] for name in ("out.jpg", "album", "hop.jpg"))
    assert "nowhere" in reasons["gone.jpg"] and "circle" in reasons["circle.jpg"]
    (tmp_path / "way").symlink_to(folder)  # the folder itself may be reached by a link
    assert find_photos(tmp_path / "way") == (photos, refused, ignored)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems don't allow such names")
def test_names_that_are_no_utf8(tmp_path):
    for name in (b"\xff.jpg", b"b\xe9.png", b"\xfe.txt"):
        (tmp_path / os.fsdecode(name)).write_bytes(b"")
    (tmp_path / os.fsdecode(b"caf\xe9")).mkdir()
    make(tmp_path / os.fsdecode(b"caf\xe9"), "c.jpg")
    photos, refused, ignored = find_photos(tmp_path)
    assert photos == [] and len(ignored) == 1 and all("UTF-8" in reason for _, reason in refused)
    assert [path.encode() for path, _ in refused] == [b"\\xff.jpg", b"b\\xe9.png", b"caf\\xe9"]


def test_pipes_and_closed_folders(tmp_path, monkeypatch):
    make(tmp_path, "a.jpg", "closed/b.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    scan = os.scandir

    def scandir(path):
        if Path(path).name == "closed":  # root, as whom tests may run, could open any folder
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert find_photos(tmp_path) == (
        ["a.jpg"],
        [("closed", "can't be opened (Permission denied)"), ("pipe.jpg", "is not a regular file")],
        [],
    )
    with pytest.raises(UserError, match="Permission denied"):
        find_photos(tmp_path / "closed")


def test_no_folder(tmp_path):
    make(tmp_path, "a.jpg")
    with pytest.raises(UserError, match=r"none does not exist"):
        find_photos(tmp_path / "none")
    with pytest.raises(UserError, match=r"a\.jpg is not a folder"):
        find_photos(tmp_path / "a.jpg")
    (tmp_path / "empty").mkdir()
    assert find_photos(tmp_path / "empty") == ([], [], [])
