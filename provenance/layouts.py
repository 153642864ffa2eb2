"""The published photos once more, laid out as trainers of diffusion models read them: for a rehearsal with one's own.

kohya: NAME_kohya/REPEATS_CONCEPT/, each photo with its caption as .txt beside it. imagefolder: NAME_imagefolder/, the
photos and their captions in metadata.jsonl, as diffusers' train_text_to_image_lora.py takes them.

Public: export, LAYOUTS.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path, PurePosixPath

from kit.errors import UserError
from kit.files import file_digest

LAYOUTS = ("kohya", "imagefolder")
CONCEPT = 60  # letters


def export(record, marked_folder, layout, concept, repeats=10, captions=None):
    """Copy the published photos of a record's last folder into a new one: (its path, how many photos).

    record: a finished MarkRecord; marked_folder: where its marked files lie; concept: a word for what they show;
    repeats: how often kohya's trainer shows each in one epoch; captions: one text for all, None for each photo's own.
    An earlier one of the same name is replaced. Raises UserError where a marked file is gone or was changed.
    """
    marked_folder = Path(marked_folder)
    word = "".join(letter if letter.isalnum() or letter in "-." else "-" for letter in concept)[:CONCEPT].strip("-.")
    if not word:
        raise UserError(f"--concept {concept[:60]!r} is no name for a folder", "give a word", flag="--concept")
    goal = marked_folder.with_name(f"{marked_folder.name.removesuffix('_marked')}_{layout}")
    photos = [photo for photo in record.photos if photo.published]
    here = [photo for photo in photos if Path(record.batches[photo.batch].marked_folder).name == marked_folder.name]
    place = Path(tempfile.mkdtemp(prefix=f".{goal.name}-", dir=goal.parent))
    try:
        inside = place / f"{repeats}_{word}" if layout == "kohya" else place
        inside.mkdir(exist_ok=True)
        rows = []
        for photo in here:
            source, caption = marked_folder / photo.marked, captions if captions is not None else photo.caption or ""
            if not source.is_file() or file_digest(source) != photo.marked_sha256:
                raise UserError(f"{source} is missing or was changed since it was marked", "mark the photos again")
            # One folder without sub-folders is what trainers read; the number keeps names apart.
            name = f"{photo.number:05}-{PurePosixPath(photo.marked).name}"
            shutil.copyfile(source, inside / name)
            if layout == "kohya":
                (inside / name).with_suffix(".txt").write_text(caption, "utf-8")
            rows.append({"file_name": name, "text": caption})
        if layout == "imagefolder":
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (inside / "metadata.jsonl").write_text(text, "utf-8")
        place.chmod(0o755)
        _replace(place, goal)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    return goal, len(here)


def _replace(place, goal):
    """Put a finished folder where an earlier one may be. Raises UserError for one that is not of this program."""
    if goal.exists():
        names = [path.name for path in goal.iterdir()]
        ours = [name for name in names if name == "metadata.jsonl" or name[:1].isdigit()]
        if not goal.is_dir() or len(ours) < len(names):
            raise UserError(f"{goal} exists and holds other files", advice="move it away", flag="--layout")
        shutil.rmtree(goal)
    os.replace(place, goal)
