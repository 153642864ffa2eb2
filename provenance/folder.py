"""What is in a user's folder of photos, read once, and the names of marked files.

Public: Folder, inspect_folder, caption_name, read_caption, half_captioned, output_names, each, workers.
"""

import hashlib
import itertools
import os
import unicodedata
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from kit.errors import UserError
from kit.progress import Progress
from provenance.duplicates import fingerprint, groups_of
from provenance.photos import MAX_JPEG_SIDE, UnreadablePhoto, find_photos, read_photo
from provenance.record import MOST_LETTERS


@dataclass(frozen=True)
class Folder:
    """What is in the user's folder. photos: dicts original, original_sha256, height, width, group and, where a .txt
    lies beside one, caption, sorted by name; skipped: (name, reason) of what could not be read; duplicates: (name, name
    of the same photo); ignored: names; alike: lists of names of photos that look alike, which are drawn together.
    """

    path: Path
    photos: list
    skipped: list
    duplicates: list
    ignored: list
    alike: list = field(default_factory=list)

    @cached_property
    def _names(self):
        return {photo["original_sha256"]: photo["original"] for photo in self.photos}

    def content(self, photo):
        """The bytes of a record's photo, under whatever name it has now. UserError when they changed meanwhile."""
        path = self.path / self._names[photo.original_sha256]
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != photo.original_sha256:
            raise UserError(f"{path} changed while it was being marked", advice="run the command again")
        return content


def workers():
    """Threads for work on photos: all cores, as Pillow and torch release the interpreter."""
    return max(1, min(16, os.cpu_count() or 1))


def each(function, items, label):
    """`function` of every item in a thread pool, in order, with a progress bar on a terminal."""
    pool = ThreadPoolExecutor(workers())
    try:
        return list(Progress(pool.map(function, items), label, len(items), unit="photo"))
    finally:
        pool.shutdown(cancel_futures=True)


def half_captioned(captions):
    """A sentence where some photos have a caption and others none, whose scores can't be compared; None elsewhere."""
    without = sum(not caption for caption in captions)
    if not 0 < without < len(captions):
        return None
    return (
        f"{without} of {len(captions)} photos have none; a model answers on another scale about those, which hides "
        "what it remembers: caption all, or none"
    )


def inspect_folder(path, format="png"):
    """Read every photo of a folder once, to be published in a format. Raises UserError when none can be used."""
    path = Path(path)
    names, refused, ignored = find_photos(path)
    captions = {name: path / beside for name in names if (beside := caption_name(name)) in set(ignored)}

    def inspect(name):
        try:
            content = (path / name).read_bytes()
            pixels = read_photo(content)
            height, width, _ = pixels.shape
        except UnreadablePhoto as problem:
            return name, str(problem)
        except OSError as problem:
            return name, problem.strerror or str(problem)
        if format == "jpeg" and max(height, width) > MAX_JPEG_SIDE:
            return name, f"is {width} x {height} px, and JPEG allows {MAX_JPEG_SIDE}; use --format png"
        told = {"caption": read_caption(captions[name])} if name in captions else {}
        return {
            "original": name,
            "original_sha256": hashlib.sha256(content).hexdigest(),
            "height": height,
            "width": width,
            **told,
            "fingerprint": fingerprint(pixels),
        }

    photos, skipped, duplicates, seen = [], list(refused), [], {}
    for found in each(inspect, names, "reading"):
        if isinstance(found, tuple):
            skipped.append(found)
        else:
            seen.setdefault(found["original_sha256"], []).append(found)
    for same in seen.values():
        # The copy of a published photo in the held-out half would make the halves alike, and the proof weaker. The
        # shortest name is kept: "cat.jpg" rather than "cat (copy).jpg".
        kept = min(same, key=lambda photo: (len(photo["original"]), photo["original"]))
        photos.append(kept)
        duplicates += [(photo["original"], kept["original"]) for photo in same if photo is not kept]
    if not photos:
        why = f": {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
        raise UserError(
            f"{path} has no photo that can be marked ({len(skipped)} can't be read{why})",
            advice="give the folder with the photos as --data_folder",
            flag="--data_folder",
        )
    photos = sorted(photos, key=lambda photo: photo["original"])
    for photo, group in zip(photos, groups_of([photo.pop("fingerprint") for photo in photos]), strict=True):
        photo["group"] = group
    of_photos = {caption_name(name) for name in captions}
    ignored = [name for name in ignored if name not in of_photos]
    return Folder(path, photos, skipped, sorted(duplicates), ignored, _alike(photos))


def caption_name(name):
    """The name of the file with a photo's caption, as trainers of diffusion models look for it."""
    return str(PurePosixPath(name).with_suffix(".txt"))


def read_caption(path):
    """What a photo is said to show, without white space at its ends. Raises UserError."""
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig").strip() if len(content) <= 4 * MOST_LETTERS else None
    except UnicodeDecodeError:
        text = None
    if text is None or len(text) > MOST_LETTERS or "\0" in text:
        raise UserError(f"{path} is no caption of its photo", advice=f"give UTF-8 of at most {MOST_LETTERS:,} letters")
    return text


def _alike(photos):
    groups = {}
    for photo in photos:
        groups.setdefault(photo["group"], []).append(photo["original"])
    return [names for names in groups.values() if len(names) > 1]


def output_names(photos, suffix, taken=()):
    """A name below the marked folder for each photo: its own with the new suffix; `a.jpg.png` where two would meet.
    suffix: None leaves each its own."""

    def fold(name):  # as file systems do that don't tell A from a
        return unicodedata.normalize("NFC", name).casefold()

    originals = [photo["original"] for photo in photos]
    short = [str(PurePosixPath(name).with_suffix(suffix)) if suffix else name for name in originals]
    wanted, used, names = Counter(map(fold, short)), {fold(name) for name in taken}, []
    for plain, original in zip(short, originals, strict=True):
        end = suffix or PurePosixPath(original).suffix
        longer = (f"{original}{f'.{number}' if number else ''}{end}" for number in itertools.count())
        # Where several want a short name none gets it, so that names don't depend on who comes first.
        choices = itertools.chain([plain] if wanted[fold(plain)] == 1 else [], longer)
        names.append(
            next(name for name in choices if fold(name) not in used and (name == plain or fold(name) not in wanted))
        )
        used.add(fold(names[-1]))
    return names
