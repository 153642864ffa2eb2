"""Raw photos of cameras (DNG, CR2, CR3, NEF, ARW, ORF, RW2, RAF): told by their first bytes, developed by rawpy.

Most of them look like TIFFs, whose reader would take the small preview for the photo.

Public: RAW_SUFFIXES, is_raw, develop.
"""

import io
import struct

RAW_SUFFIXES = frozenset((".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"))
MAKE, SUB_IFDS, DNG_VERSION = 0x010F, 0x014A, 0xC612  # tags of TIFF
MOST_TAGS = 512


def is_raw(data):
    """Whether the bytes of a file begin like those of a raw photo: a camera's own magic, or a TIFF with the tags of
    DNG, or with those that cameras' own formats share (a maker, and images behind the preview).
    """
    if data[:15] == b"FUJIFILMCCD-RAW" or data[4:12] == b"ftypcrx " or data[:4] in (b"IIRO", b"IIRS", b"IIU\0"):
        return True
    if data[:4] not in (b"II*\0", b"MM\0*"):
        return False
    if data[8:10] == b"CR":
        return True
    tags = _first_tags(data)
    return DNG_VERSION in tags or {MAKE, SUB_IFDS} <= tags


def _first_tags(data):
    order = "<" if data[:2] == b"II" else ">"
    try:
        (start,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, start)
        return {
            struct.unpack_from(order + "H", data, start + 2 + 12 * place)[0] for place in range(min(count, MOST_TAGS))
        }
    except struct.error:  # torn: the TIFF reader says so
        return set()


def develop(data, max_pixels):
    """A raw photo's pixels, upright, sRGB: uint8 (H, W, 3), with the camera's white balance.

    Raises ImportError without rawpy, ValueError for more than max_pixels, and what rawpy raises at damaged files.
    """
    import rawpy

    with rawpy.imread(io.BytesIO(data)) as raw:
        height, width = raw.sizes.height, raw.sizes.width
        if height * width > max_pixels:
            raise ValueError(f"claims {width} x {height} pixels")
        return raw.postprocess(use_camera_wb=True, no_auto_bright=True, output_bps=8)
