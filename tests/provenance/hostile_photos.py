"""Damaged and hostile image files, made in memory: what `provenance.photos.read_photo` has to survive.

Public: hostile_files. The same files every time, in some two seconds.
"""

import io
import pickle
import random
import struct
import zipfile
import zlib

import numpy as np
from PIL import Image, features

try:
    import pillow_heif
except ImportError:
    pillow_heif = None


def hostile_files():
    """dict of name -> bytes; names are unique, the content is the same in every process."""
    files = {
        "empty.jpg": b"",
        "zeros.png": bytes(5000),
        "text.jpg": b"not a photo at all\n" * 20,
        "page.jpg": b"<!DOCTYPE html><html><body>404</body></html>",
    }
    for name, data in _base_files().items():
        files |= _damaged(name, data)
    return {
        **files,
        **_foreign(),
        **_huge(),
        **_png_chunks(),
        **_metadata(),
        **_many_frames(),
        **_odd_tiffs(),
        **_odd_others(),
    }


def photo(height=48, width=64):
    """A smooth picture with some noise, uint8 (height, width, 3)."""
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], -1)
    return (smooth * 0.9 + np.random.default_rng(0).integers(0, 25, smooth.shape)).astype(np.uint8)


def saved(image, format, **settings):
    """The bytes of a Pillow image in that format."""
    file = io.BytesIO()
    image.save(file, format, **settings)
    return file.getvalue()


def heif(pixels, **settings):
    """The bytes of a HEIC file of uint8 (H, W, 3); needs pillow_heif."""
    file = io.BytesIO()
    pillow_heif.encode("RGB", pixels.shape[1::-1], pixels.tobytes(), file, **settings)
    return file.getvalue()


def png(width, height, *chunks, depth=8, color=2, rows=b""):
    """A PNG of a header that claims this, further (name, content) chunks, and these rows with their filter bytes."""
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    chunks = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)


def tiff(tags, data=b"", following=0, count=None):
    """A little-endian TIFF of {tag: (type, values)}; `data` lies at offset 8, `following` is where the next page is."""
    types = {3: "H", 4: "I", 11: "f"}
    offset = 8 + len(data)
    entries, far = b"", b""
    for tag, (kind, values) in sorted(tags.items()):
        packed = struct.pack(f"<{len(values)}{types[kind]}", *values)
        if len(packed) > 4:
            place = offset + 2 + 12 * len(tags) + 4 + len(far)
            far += packed
            packed = struct.pack("<I", place)
        entries += struct.pack("<HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    return (
        struct.pack("<2sHI", b"II", 42, offset)
        + data
        + struct.pack("<H", len(tags) if count is None else count)
        + entries
        + struct.pack("<I", following)
        + far
    )


def tiff_tags(width, height, bits=8, samples=3, photometric=2, data=0, **more):
    """The tags of an uncompressed picture in one strip at offset 8."""
    return {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [bits] * samples),
        259: (3, [1]),
        262: (3, [photometric]),
        273: (4, [8]),
        277: (3, [samples]),
        278: (4, [height]),
        279: (4, [data]),
        **{int(tag[1:]): value for tag, value in more.items()},
    }


def _chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _base_files():
    image = Image.fromarray(photo())
    files = {
        "plain.jpg": saved(image, "JPEG"),
        "progressive.jpg": saved(image, "JPEG", progressive=True),
        "cmyk.jpg": saved(image.convert("CMYK"), "JPEG"),
        "rgb.png": saved(image, "PNG"),
        "palette.png": saved(image.quantize(16), "PNG"),
        "lossy.webp": saved(image, "WEBP"),
        "lossless.webp": saved(image, "WEBP", lossless=True),
        "plain.tif": saved(image, "TIFF"),
        "lzw.tif": saved(image, "TIFF", compression="tiff_lzw"),
        "deflate.tif": saved(image, "TIFF", compression="tiff_adobe_deflate"),
        "plain.bmp": saved(image, "BMP"),
        "plain.gif": saved(image.quantize(32), "GIF"),
        "plain.ppm": saved(image, "PPM"),
    }
    if features.check("avif"):
        files["plain.avif"] = saved(image, "AVIF", quality=60)
    if pillow_heif is not None:
        files["plain.heic"] = heif(photo())
    return files


def _damaged(name, data):
    stem, suffix = name.split(".")
    files = {f"{stem}-cut{percent}.{suffix}": data[: len(data) * percent // 100] for percent in (10, 30, 50, 70, 90)}
    files |= {f"{stem}-head{size}.{suffix}": data[:size] for size in (4, 16, 32)}
    for seed in range(6):
        flipped, rng = bytearray(data), random.Random(f"{name} {seed}")
        # Half of them in the header, where the numbers are that a reader trusts.
        for _ in range(1 + 3 * seed):
            flipped[rng.randrange(min(len(data), 100) if seed % 2 else len(data))] ^= 1 << rng.randrange(8)
        files[f"{stem}-flip{seed}.{suffix}"] = bytes(flipped)
    files[f"{stem}-hole.{suffix}"] = data[: len(data) // 3] + bytes(len(data) // 3) + data[len(data) // 3 * 2 :]
    files[f"{stem}-wrong-suffix-of-{suffix}.jpg" if suffix != "jpg" else f"{stem}-wrong-suffix.png"] = data
    return files


class _Harmful:
    def __reduce__(self):
        return exec, ("raise SystemExit('the pickle was opened')",)


def _foreign():
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(zipfile.ZipInfo("photo.jpg"), b"no")
    image = Image.fromarray(photo())
    return {
        "script.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n",
        "drawing.jpg": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "archive.jpg": archive.getvalue(),
        "pickle.png": pickle.dumps(_Harmful()),
        "document.png": b"%PDF-1.7\n" + bytes(99),
        "icon.png": saved(image, "ICO"),
        "targa.tif": saved(image, "TGA"),
        "program.jpg": b"\x7fELF\x02\x01\x01" + bytes(200),
        "video.heic": b"\0\0\0\x18ftypisom" + bytes(200),
    }


def _huge():
    """Claims of many pixels by few bytes, and pictures that unpack to far more than their file."""
    side = 60_000
    bmp, upside = (
        struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 54, 0, 0, 54, 40, side, height, 1, 24, *[0] * 6)
        for height in (side, -side)
    )
    frame = struct.pack("<BHHHHB", 0x2C, 0, 0, side, side, 0) + b"\x02\x02\x4c\x01\0;"
    jpeg = saved(Image.fromarray(photo()), "JPEG")
    place = jpeg.index(b"\xff\xc0") + 5
    canvas = b"VP8X" + struct.pack("<IB3x", 10, 0) + (16_382).to_bytes(3, "little") * 2 + b"VP8L" + bytes(4)
    middling = Image.new("1", (20_000, 20_000))
    progressive = saved(Image.new("L", (4000, 4000)), "JPEG", progressive=True)
    scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    return {
        "huge.png": png(side, side),
        "huge.bmp": bmp,
        "huge.ppm": b"P6 60000 60000 255\n" + bytes(64),
        "huge-negative.bmp": upside,
        "huge.tif": tiff(tiff_tags(side, side)),
        "slim.png": png(0x7FFFFFFF, 1),
        "longest.png": png(0x7FFFFFFF, 0x7FFFFFFF),
        "longest.ppm": b"P6 " + b"9" * 5000 + b" 1 255\n",
        "huge.gif": struct.pack("<6sHHBBB", b"GIF89a", side, side, 0, 0, 0) + frame,
        "huge-frame.gif": struct.pack("<6sHHBBB", b"GIF89a", 8, 8, 0, 0, 0) + frame,
        "huge.jpg": jpeg[:place] + struct.pack(">HH", side, side) + jpeg[place + 4 :],
        "huge.webp": b"RIFF" + struct.pack("<I", len(canvas) + 4) + b"WEBP" + canvas,
        "tall.png": png(1, 90_000_000),
        "bomb-1bit.png": saved(middling, "PNG", compress_level=1),
        "bomb-1bit.tif": saved(middling, "TIFF", compression="group4"),
        "bomb-just-above.png": png(10_001, 10_000, depth=1, color=0, rows=bytes(1252) * 10_000),
        "bomb-rows.png": png(8, 8, rows=bytes(20_000_000)),
        "huge-tile.tif": tiff(tiff_tags(64, 64, t322=(4, [side]), t323=(4, [side]), t324=(4, [8]), t325=(4, [9]))),
        "bomb-scans.jpg": progressive[:-2] + scan * 20_000 + b"\xff\xd9",
    }


def _png_chunks():
    rows = (b"\0" + bytes(range(24))) * 8
    bomb = zlib.compress(bytes(30_000_000), 1)
    chunks = {
        "ztxt-bomb": (b"zTXt", b"Comment\0\0" + bomb),
        "profile-bomb": (b"iCCP", b"icc\0\0" + bomb),
        "itxt-bomb": (b"iTXt", b"Comment\0\1\0\0\0" + bomb),
        "profile-empty": (b"iCCP", b"icc\0\0"),
        "profile-noise": (b"iCCP", b"icc\0\0" + zlib.compress(bytes(range(256)) * 4)),
        "profile-unpacked": (b"iCCP", b"icc\0\0not compressed"),
        "unknown-critical": (b"QUUX", b"?" * 9),
        "palette-short": (b"PLTE", b"\1\2"),
        "transparency-short": (b"tRNS", b"\1"),
        "animation-none": (b"acTL", bytes(8)),
        "animation-endless": (b"acTL", b"\x7f" + bytes(7)),
        "exif-noise": (b"eXIf", b"II*\0\xff\xff\xff\xff"),
    }
    files = {f"{name}.png": png(8, 8, chunk, rows=rows) for name, chunk in chunks.items()}
    files["no-width.png"], files["no-height.png"] = png(0, 8, rows=rows), png(8, 0, rows=rows)
    files["odd-depth.png"], files["odd-color.png"] = png(8, 8, depth=7, rows=rows), png(8, 8, color=5, rows=rows)
    files["no-palette.png"] = png(8, 8, color=3, rows=bytes(72))
    files["no-pixels.png"] = png(8, 8)
    files["long-chunk.png"] = png(8, 8, rows=rows).replace(b"\0\0\0\rIHDR", b"\x7f\xff\xff\xffIHDR")
    files["wrong-crc.png"] = png(8, 8, rows=rows).replace(b"IDAT", b"IDAT\1")
    files["many-chunks.png"] = png(8, 8, *[(b"tEXt", b"a\0b")] * 20_000, rows=rows)
    return files


def _metadata():
    """EXIF and ICC profiles that are wrong beside a picture that is right."""
    image = Image.fromarray(photo())
    loop = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + struct.pack("<HHII", 0x8769, 4, 1, 8)
    cases = {
        "loop": loop + struct.pack("<HHII", 0x8825, 4, 1, 8) + struct.pack("<I", 8),
        "cut": b"Exif\0\0II*\0\x08\0",
        "noise": b"Exif\0\0" + bytes(range(200)),
        "text": b"Exif\0\0" + b"A" * 500,
        "far": b"Exif\0\0II*\0\xf0\xff\xff\xff",
        "many": b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(300),
    }
    entry = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1)
    for name, values in {
        "99": (3, 1, 99),
        "0": (3, 1, 0),
        "text": (2, 4, int.from_bytes(b"6up\0", "little")),
        "list": (3, 2, 0x60006),
        "float": (11, 1, 0x7FC00000),
        "odd-type": (77, 1, 6),
    }.items():
        cases[f"orientation-{name}"] = entry + struct.pack("<HHII", 0x112, *values) + bytes(4)
    files = {f"exif-{name}.jpg": saved(image, "JPEG", exif=exif) for name, exif in cases.items()}
    files |= {f"exif-{name}.webp": saved(image, "WEBP", exif=exif) for name, exif in cases.items()}
    profiles = {
        "text": b"no profile",
        "zeros": bytes(128),
        "head": b"\0\0\2\0lcms" + bytes(120),
        "acsp": struct.pack(">I32x4s", 132, b"acsp") + bytes(92),
        "long": b"\xff" * 100_000,
    }
    files |= {f"profile-{name}.jpg": saved(image, "JPEG", icc_profile=data) for name, data in profiles.items()}
    files |= {
        f"profile-{name}-cmyk.tif": saved(image.convert("CMYK"), "TIFF", icc_profile=data)
        for name, data in profiles.items()
    }
    return files


def _many_frames():
    frames = [Image.fromarray(np.roll(photo(), 9 * step, axis=1)) for step in range(3)]
    settings = {"save_all": True, "append_images": frames[1:], "duration": 40}
    files = {
        "moving.gif": saved(frames[0], "GIF", **settings),
        "moving.webp": saved(frames[0], "WEBP", **settings),
        "moving.png": saved(frames[0], "PNG", **settings),
        "pages.tif": saved(frames[0], "TIFF", save_all=True, append_images=frames[1:]),
    }
    files |= {f"cut-{name}": data[: len(data) * 2 // 3] for name, data in files.items()}
    mpo = saved(frames[0], "MPO", save_all=True, append_images=frames[1:])
    place = mpo.index(b"MPF\0")
    return {
        **files,
        "table-noise.jpg": mpo[: place + 12] + b"\xff" * 40 + mpo[place + 52 :],
        "cut-preview.jpg": mpo[: len(mpo) * 3 // 4],
    }


def _odd_tiffs():
    data = bytes(range(192))
    good = tiff_tags(8, 8, data=192)
    files = {
        "circle": tiff(good, data, following=200),
        "next-nowhere": tiff(good, data, following=0x7FFFFFF0),
        "tag-count": tiff(good, data, count=0xFFFF),
        "no-tags": tiff({}),
        "no-pixels": tiff(good),
        "first-nowhere": b"II*\0\xff\xff\xff\xff",
        "first-in-header": b"II*\0\0\0\0\0" + bytes(60),
        "no-width": tiff(tiff_tags(0, 8, data=192), data),
        "no-height": tiff(tiff_tags(8, 0, data=192), data),
        "strips-nowhere": tiff({**good, 273: (4, [0x7FFFFFFF])}, data),
        "many-strips": tiff({**good, 273: (4, [8] * 50_000), 279: (4, [192] * 50_000), 278: (4, [1])}, data),
        "fax-noise": tiff({**tiff_tags(8, 8, 1, 1, 1, 192), 259: (3, [4])}, data),
    }
    for name, tag, number in (
        ("many-samples", 277, 60_000),
        ("no-samples", 277, 0),
        ("odd-compression", 259, 34_712),
        ("lzw-noise", 259, 5),
        ("deflate-noise", 259, 8),
        ("zstd-noise", 259, 50_000),
        ("jpeg-noise", 259, 7),
        ("odd-colour", 262, 4242),
    ):
        files[name] = tiff({**good, tag: (3, [number])}, data)
    files["odd-bits"] = tiff({**good, 258: (3, [13] * 3)}, data)
    values = struct.pack("<64f", *[float("nan"), float("inf"), -1e38, 0.5] * 16)
    files["nan"] = tiff(tiff_tags(8, 8, 32, 1, 1, 256, t339=(3, [3])), values)
    values = struct.pack("<64i", *[-5, 1 << 30] * 32)
    files["whole-32-bit"] = tiff(tiff_tags(8, 8, 32, 1, 1, 256, t339=(3, [2])), values)
    # Every claimed length of an entry is a chance to ask for memory.
    entry = struct.pack("<2sHIH", b"II", 42, 8, 1) + struct.pack("<HHII", 256, 12, 0x1FFFFFFF, 8)
    files["long-entry"] = entry + bytes(100)
    return {f"{name}.tif": content for name, content in files.items()}


def _odd_others():
    gif = saved(Image.fromarray(photo()).quantize(8), "GIF")
    return {
        "no-size.gif": gif[:6] + bytes(4) + gif[10:],
        "no-size.bmp": b"BM" + bytes(12) + b"\x28" + bytes(39),
        "odd-header.bmp": b"BM" + bytes(12) + b"\xff\xff\xff\x7f" + bytes(100),
        "no-size.ppm": b"P6 0 0 255\n",
        "negative.ppm": b"P6 -8 -8 255\n" + bytes(192),
        "odd-depth.ppm": b"P6 8 8 99999\n" + bytes(192),
        "no-depth.ppm": b"P6 8 8 0\n" + bytes(192),
        "words.ppm": b"P3 2 2 255\nred green blue " * 9,
        "comment.ppm": b"P6 #" + b"x" * 100_000,
        "float.ppm": b"Pf\n2 2\n-1.0\n" + bytes(16),
        "loops.gif": gif[: 13 + 24] + b"\x21\xff\x0b" + b"NETSCAPE2.0" + b"\3\1\0\0" * 50,
        "bare.jpg": b"\xff\xd8\xff",
        "end.jpg": b"\xff\xd8\xff\xd9",
        "markers.jpg": b"\xff\xd8" + b"\xff\xfe\0\2" * 50_000,
        "fill.jpg": b"\xff\xd8" + b"\xff" * 200_000,
        "riff.webp": b"RIFF\xff\xff\xff\xffWEBPVP8 \xff\xff\xff\xff",
        "boxes.heic": b"\0\0\0\x18ftypheic" + bytes(12) + b"\0\0\0\x08meta" * 3000,
        "long-box.avif": b"\0\0\0\x18ftypavif" + bytes(12) + b"\0\0\0\x01meta" + b"\xff" * 8 + bytes(50),
    }
