"""The contact sheet of data_marking.py: original | marked | difference x10 of each photo.

Public: thumbnails, contact_sheet, SHEET_PHOTOS.
"""

import numpy as np
from PIL import Image, ImageDraw

from kit.files import atomic_path

THUMBNAIL, GAP, TEXT = 180, 4, 16
SHEET_PHOTOS = 60  # spread over all photos, where there are more
COLUMNS = ("original", "marked", "difference x10")


def thumbnails(original, published):
    """The three pictures of a photo, side by side, each at most THUMBNAIL px: a PIL image.

    original, published: uint8 (H, W, 3).
    """
    # Without a signed copy: a 100-megapixel photo has 300 MB as it is.
    apart = np.maximum(original, published) - np.minimum(original, published)
    images = [Image.fromarray(pixels) for pixels in (original, published, np.minimum(apart, 25) * 10)]
    for image in images:
        image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)
    strip = Image.new("RGB", (len(images) * (THUMBNAIL + GAP), images[0].height), "white")
    for place, image in enumerate(images):
        strip.paste(image, (place * (THUMBNAIL + GAP), 0))
    return strip


def contact_sheet(rows, path):
    """Write a picture of `rows`, (name, strip of `thumbnails`) each, in one column of rows or two."""
    half = len(rows) if len(rows) <= 8 else -(-len(rows) // 2)
    columns = [rows[start : start + half] for start in range(0, len(rows), half)]
    width = max(strip.width for _, strip in rows) + 2 * GAP
    height = max(sum(strip.height + TEXT for _, strip in column) for column in columns)
    sheet = Image.new("RGB", (width * len(columns), height + TEXT + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for place, column in enumerate(columns):
        left, top = place * width + GAP, TEXT + GAP
        for number, title in enumerate(COLUMNS):
            pen.text((left + number * (THUMBNAIL + GAP), 2), title, fill="black")
        for name, strip in column:
            sheet.paste(strip, (left, top))
            pen.text((left, top + strip.height + 1), _printable(name), fill="black")
            top += strip.height + TEXT
    with atomic_path(path) as temporary:
        sheet.save(temporary)


def _printable(name, length=80):
    name = name.encode("latin-1", "replace").decode("latin-1")  # the built-in font has no other letters
    return name if len(name) <= length else "..." + name[3 - length :]
