"""Photos as people have them: found in a folder, decoded to upright sRGB pixels, written back without metadata.

Public: PHOTO_SUFFIXES, MAX_JPEG_SIDE, UnreadablePhoto, find_photos, read_photo, encode_photo, write_photo. Needs
Pillow, and pillow-heif for HEIC. The files come from strangers: each that can't be read is refused with a reason, and
only the parsers of the formats below are ever reached, whatever a file's name says.
"""

import errno
import importlib
import io
import logging
import os
import re
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageCms

from dataset.store import MAX_PIXELS
from kit.errors import UserError
from kit.files import atomic_path
from provenance.raw import RAW_SUFFIXES, develop, is_raw

PHOTO_SUFFIXES = frozenset(
    (
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".tif",
        ".tiff",
        ".bmp",
        ".gif",
        ".heic",
        ".heif",
        ".avif",
        ".ppm",
        ".pgm",
    )
)
MAX_JPEG_SIDE = 65_500  # libjpeg's
MAX_BYTES = 1 << 30  # 100 megapixels of 16-bit RGBA are 800 MB; what is larger is no photo
MAX_SCANS = 100  # a progressive JPEG has about ten; one costs a pass over all pixels, but 150 bytes of the file
# Not hidden by their names, but nobody's photos: what macOS, Windows and Synology leave in every folder.
_CLUTTER = {"__macosx", "thumbs.db", "desktop.ini", "@eadir"}
# The plug-ins' classes are called one by one instead of Image.open: that never tries another format (EPS would start
# Ghostscript), keeps the reason of a failure, and tells the size of a picture too large for Pillow. The class of JPEG
# instead of its factory, so that MPO (a JPEG with previews behind it) is read as the JPEG that it starts with.
_READERS = (
    ("JPEG", rb"\xff\xd8\xff", "JpegImagePlugin"),
    ("PNG", rb"\x89PNG\r\n\x1a\n", "PngImagePlugin"),
    ("WebP", rb"RIFF....WEBP", "WebPImagePlugin"),
    ("TIFF", rb"II[*+]\0|MM\0[*+]", "TiffImagePlugin"),
    ("BMP", rb"BM", "BmpImagePlugin"),
    ("GIF", rb"GIF8[79]a", "GifImagePlugin"),
    ("PPM", rb"P[1-6]\s", "PpmImagePlugin"),
    ("AVIF", rb"....ftyp.*avi[fs]", "AvifImagePlugin"),
    ("HEIC", rb"....ftyp(he[iv]|mif1|msf1)", "pillow_heif"),
)
_CLASSES = {"WebP": "WebPImageFile", "HEIC": "HeifImageFile"}  # the others: "PNG" is read by PngImageFile
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Without a handler Python prints what the TIFF reader logs; an application that sets logging up still gets it.
logging.getLogger("PIL").addHandler(logging.NullHandler())


class UnreadablePhoto(Exception):
    """A file that is no readable photo. The message is the reason, one line without the path: "is damaged (...)"."""


def find_photos(folder):
    """Find the photos in `folder` and its sub-folders by their suffixes; a file without a known one by its first bytes.

    Returns (photos, refused, ignored). photos: sorted list of str, paths below the folder with '/'; refused: sorted
    list of (path, reason), what can't be taken though it may be a photo; ignored: sorted list of other files.
    Hidden files and what systems leave behind (__MACOSX, Thumbs.db) count nowhere. Links are followed to files inside
    the folder only; a linked folder's photos are found where they lie. Raises UserError when it is no readable folder.
    """
    root = Path(folder)
    photos, refused, ignored, folders = [], [], [], [""]
    while folders:
        below = folders.pop()
        try:
            with os.scandir(root / below) as entries:
                entries = [entry for entry in entries if not _is_clutter(entry.name)]
        except OSError as error:
            if not below:
                reason = {errno.ENOENT: "does not exist", errno.ENOTDIR: "is not a folder"}.get(
                    error.errno, f"can't be opened ({error.strerror})"
                )
                raise UserError(f"{folder} {reason}", advice="give a folder of photos") from None
            refused.append((below, f"can't be opened ({error.strerror})"))
            continue
        for entry in entries:
            path = f"{below}/{entry.name}" if below else entry.name
            kind, reason = _judge(entry, root)
            if reason:
                # Names that are no UTF-8 couldn't be printed or kept in JSON as they are.
                refused.append((os.fsencode(path).decode("utf-8", "backslashreplace"), reason))
            elif kind == "folder":
                folders.append(path)
            elif kind == "photo":
                photos.append(path)
            else:
                ignored.append(os.fsencode(path).decode("utf-8", "backslashreplace"))
    return sorted(photos), sorted(refused), sorted(ignored)


def _is_clutter(name):
    return name.startswith(".") or name.casefold() in _CLUTTER


def _judge(entry, root):
    """("folder", "photo" or "other", why it is refused or None) of an os.DirEntry."""
    photo = os.path.splitext(entry.name)[1].lower() in PHOTO_SUFFIXES | RAW_SUFFIXES
    try:
        target = os.path.realpath(entry.path, strict=True) if entry.is_symlink() else None
        kind = "folder" if entry.is_dir() else "photo" if photo or _begins_like_one(entry) else "other"
        if kind == "photo" and not entry.is_file():  # opening a named pipe would wait for ever
            return kind, "is not a regular file"
    except OSError as error:
        return "other", {
            errno.ENOENT: "is a link that leads nowhere",
            errno.ELOOP: "is a link that leads in a circle",
        }.get(error.errno, f"can't be opened ({error.strerror})")
    if kind == "other":
        return kind, None
    if target is not None:
        home = os.path.realpath(root)
        if os.path.commonpath([home, target]) != home:
            return kind, "is a link that leaves the folder"
        if kind == "folder":  # followed, links to links could multiply without end
            return kind, "is a link to another folder in here, or in a circle; photos count where they lie"
    try:
        entry.name.encode()
    except UnicodeEncodeError:
        return kind, "has a name that is not valid UTF-8; rename it"
    return kind, None


def _begins_like_one(entry):
    """Whether a file without a known suffix has the first bytes of a photo, such as a JPEG without an extension."""
    if not entry.is_file() or os.path.splitext(entry.name)[1].lower() in (".txt", ".json", ".xmp", ".mov", ".mp4"):
        return False
    with open(entry.path, "rb") as file:
        head = file.read(64)
    return any(re.match(magic, head, re.DOTALL) for name, magic, _ in _READERS if name not in ("BMP", "PPM"))


def read_photo(source):
    """Decode a photo: upright as its EXIF says, in sRGB as its ICC profile says, transparency laid on white.

    Args: source, a path or the file's bytes. Returns a new uint8 array (H, W, 3). More than 8 bits a channel lose the
    lower ones. Files that are damaged, animated, of several pages, above MAX_PIXELS, or of floating-point pixels raise
    UnreadablePhoto. May be called from several threads at once.
    """
    _silence()
    try:
        data = source if isinstance(source, bytes) else _file_bytes(source)
        if is_raw(data):
            return _developed(data)
        image = _opened(data)
        with image:
            image.load()
            _check_size(image)  # HEIF knows the true one only now
            turn = _turn(image)
            pixels = _to_rgb(image)
        return np.array(pixels.transpose(turn) if turn is not None else pixels)
    except UnreadablePhoto:
        raise
    except MemoryError:
        raise UnreadablePhoto("needs more memory than there is") from None
    except Image.DecompressionBombError as error:  # a reader that looked at the size before we could
        claim = re.search(r"\d+ pixels", str(error))
        raise UnreadablePhoto(_too_large(claim[0] if claim else "more pixels")) from None
    except Exception as error:  # Pillow's readers raise nearly anything at a damaged file
        raise UnreadablePhoto(f"is damaged ({_one_line(error)})") from None


def _developed(data):
    try:
        return np.array(develop(data, MAX_PIXELS))
    except ImportError:
        raise UnreadablePhoto(
            "is a raw photo of a camera, which needs the package rawpy: pip install rawpy; or export it as JPEG"
        ) from None
    except ValueError as problem:
        raise UnreadablePhoto(f"{problem}, above the limit of {MAX_PIXELS // 1_000_000} megapixels") from None


def _silence():
    # For the whole process, and looked at in every call: warnings.catch_warnings swaps a list that all threads share,
    # so one thread's end would undo another's silence. This only ever adds, and heals what others' swaps took away.
    quiet = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
    if quiet not in warnings.filters:
        warnings.filterwarnings("ignore", module=quiet[3].pattern)


def _one_line(error):
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:200]


def _file_bytes(path):
    # All at once: Pillow maps some files into memory, and one that shrinks meanwhile would kill the process.
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise UnreadablePhoto("is not a regular file")
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UnreadablePhoto(f"can't be opened ({error.strerror or _one_line(error)})") from None
    if len(data) > MAX_BYTES:
        raise UnreadablePhoto(f"is larger than {MAX_BYTES >> 30} GiB")
    return data


def _opened(data):
    """The file as a Pillow image of acceptable size that is not decoded yet."""
    if not data:
        raise UnreadablePhoto("is empty")
    name, plugin = next(
        ((name, plugin) for name, magic, plugin in _READERS if re.match(magic, data[:64], re.DOTALL)), (None, None)
    )
    if name is None:
        raise UnreadablePhoto(f"is not a {', '.join(reader[0] for reader in _READERS)} file")
    try:
        module = importlib.import_module(plugin if name == "HEIC" else f"PIL.{plugin}")
    except ImportError:
        raise UnreadablePhoto(
            "HEIC needs the package pillow-heif: pip install pillow-heif"
            if name == "HEIC"
            else f"{name} needs a newer Pillow: pip install --upgrade pillow"
        ) from None
    if name == "JPEG" and _scans(data) > MAX_SCANS:
        raise UnreadablePhoto(f"has more than {MAX_SCANS} scans, made to keep its reader busy")
    image = getattr(module, _CLASSES.get(name, f"{name.capitalize()}ImageFile"))(io.BytesIO(data))
    _check_size(image)
    if getattr(image, "is_animated", False):
        raise UnreadablePhoto("is animated or has several pages; give one still picture")
    return image


def _scans(data):
    """How many scans a JPEG has before its end, at most MAX_SCANS + 1."""
    place, scans = 2, 0
    marker = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd7])")  # the others stand alone, without a length
    while scans <= MAX_SCANS and (found := marker.search(data, place)) and found[1] != b"\xd9":
        scans += found[1] == b"\xda"
        place = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return scans


def _too_large(claim):
    return f"claims {claim}, above the limit of {MAX_PIXELS // 1_000_000} megapixels"


def _check_size(image):
    if image.width * image.height > MAX_PIXELS:
        raise UnreadablePhoto(_too_large(f"{image.width} x {image.height} pixels"))


def _turn(image):
    # Not ImageOps.exif_transpose: that writes the rest of the EXIF anew and fails at what cameras put there.
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # damaged EXIF can look like anything, and the picture is good without it
        return None


def _to_rgb(image):
    profile = image.info.get("icc_profile")
    if image.mode == "F":
        raise UnreadablePhoto("has floating-point pixels, which have no known range")
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("1", "L", "LA", "La") else "RGBA")
        alpha = image.getchannel("A")
        image = image.convert(image.mode[:-1])
    else:
        alpha = None
    if image.mode == "LAB":
        profile = None  # convert() knows what Lab means; a profile would be for something else
    if image.mode not in ("L", "CMYK"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    transform = _transform(image.mode, profile) if profile else None
    image = transform.apply(image) if transform else image.convert("RGB")
    if alpha is None:
        return image
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=alpha)
    return white


def _eight_bits(image):
    """Grey of more than 8 bits as "L", or "LA" where one value stands for transparent; convert() would clip at 255."""
    values = np.asarray(image)
    if image.mode == "I" and (values.min() < 0 or values.max() > 0xFFFF):
        raise UnreadablePhoto("has whole-number pixels beyond 16 bits, which have no known range")
    tags = getattr(image, "tag_v2", {})  # Pillow hands a TIFF's numbers through: of 12 bits, or with 0 for white
    grey = (values >> (4 if tags.get(258) == (12,) else 8)).clip(0, 255).astype(np.uint8)
    grey = Image.fromarray(255 - grey if tags.get(262) == 0 else grey)
    transparent = image.info.get("transparency")
    if transparent is None:
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))))


def _transform(mode, profile):
    """From the pixels' own colours to sRGB; None when the profile is sRGB itself, damaged or for another mode."""
    # The shortcut for grey curves is off by several levels in the shadows.
    flags = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), mode, "RGB", flags=flags
        )
    except MemoryError:
        raise
    except Exception:  # viewers, too, show such a photo as if it had no profile
        return None
    if mode == "CMYK":
        return transform
    # There are many sRGB profiles, so they are known by what they do; rounding would only blur these photos.
    steps = np.linspace(0, 255, 9 if mode == "RGB" else 256).round().astype(np.uint8)
    probe = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(27, 27, 3) if mode == "RGB" else steps[None]
    probe = Image.fromarray(probe)
    change = np.asarray(transform.apply(probe)).astype(int) - np.asarray(probe.convert("RGB"))
    return transform if np.abs(change).max() > 2 else None


def encode_photo(pixels, format="png", quality=95):
    """Encode uint8 (H, W, 3) as the bytes of a file without any metadata; the same input gives the same bytes.

    Args: format, "png" (lossless) or "jpeg"; quality, 1..100, for JPEG. Raises UserError for sides too long for JPEG.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise ValueError(f"pixels must be uint8 (H, W, 3), not {pixels.dtype} {pixels.shape}")
    if format == "png":
        # 3000 x 4000 noisy pixels: level 1 takes 1.2 s for 25.2 MB, 2 and 3 the same, 4 to 6 1.7 s for 23.0 MB.
        settings = {"compress_level": 1}
    elif format == "jpeg":
        if max(pixels.shape) > MAX_JPEG_SIDE:
            raise UserError(f"{pixels.shape[1]} x {pixels.shape[0]} pixels don't fit into a JPEG", advice="write a PNG")
        # The stripes' colours live in chroma, which any other subsampling would blur.
        settings = {"quality": quality, "subsampling": 0}
    else:
        raise ValueError(f"format {format!r} is neither png nor jpeg")
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, format, **settings)
    return file.getvalue()


def write_photo(path, data):
    """Write the bytes of `encode_photo`; a reader sees the old file or the whole new one."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
