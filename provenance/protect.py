"""Marking a folder of photos: what data_marking.py does, as functions.

inspect_folder -> open_record (new, resumed or further photos) -> run, and verify for a finished record;
resolve_settings before.
Nothing in the user's own folder is ever written. The record is on disk before the first marked photo, because whoever
has published photos under a key that was lost can never prove anything with them.

Public: Job, places_of, open_record, resolve_settings, load_bank, bank_digest, mark_photo, quality, shrunk, run,
protect, verify.
"""

import hashlib
import os
import threading
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage.metrics import structural_similarity

from dataset import load_outlier_bank
from kit import environment, files
from kit.errors import UserError
from kit.files import atomic_path, check_same_settings, lock_folder, write_json
from kit.names import AS_IT_IS, VISIBILITIES
from provenance import record as records
from provenance import sheet
from provenance.commit import NO_BEACON, Public, date, named_round, settle
from provenance.folder import Folder, each, output_names
from provenance.legacy import LegacyRecord
from provenance.photos import encode_photo, read_photo, write_photo
from provenance.plan import AuditPlan
from utils import REFERENCE_SIZE, mark_images

# The paper's way of marking, written without loss.
DEFAULTS = {
    "img_blending_ratio": 0.7,
    "noise_injection_type": "perlin",
    "noise_norm": 8.0,
    "ood_pattern": "color_stripes",
    "format": "png",
    "quality": 95,
}
SUFFIXES = {"png": ".png", "jpeg": ".jpg", AS_IT_IS: None}
BIG_PIXELS = 30_000_000  # photos above are marked one at a time: a 100-megapixel photo needs more than a gigabyte
SSIM_SIDE = 512
# Rounding differs between processors, so that a mark computed elsewhere may differ in the sign of the noise of a few
# pixels. Another key differs in nearly all of them.
TOLERATED_SHARE = 1e-3


@dataclass(frozen=True)
class Job:
    """A record on its way: the photos of this call (numbers), what is new (note), and where files and randomness come
    from and go."""

    record: records.MarkRecord
    numbers: list
    folder: Folder
    marked_folder: Path
    record_folder: Path
    note: str
    public: Public = NO_BEACON
    keep_originals: bool = True

    @property
    def published(self):
        """How many of the photos of this call are published, or will be."""
        drawn = sum(bool(self.record.photos[number].published) for number in self.numbers)
        last = self.record.batches[-1]
        return drawn if last.drawn else drawn + last.published

    @property
    def record_path(self):
        return self.record_folder / "record.json"


def places_of(data_folder, out=None):
    """(NAME_marked, NAME_record) beside the data folder, or in the folder `out`, where that can't be written to."""
    folder = Path(data_folder).resolve()
    if not folder.name:
        raise UserError(
            f"--data_folder {data_folder} is the root of the disk",
            advice="give the folder with the photos",
            flag="--data_folder",
        )
    place = Path(out).resolve() if out else folder.parent
    if place == folder or folder in place.parents:
        raise UserError(f"--out {out} lies in the folder with the photos", "choose another folder", flag="--out")
    return place / f"{folder.name}_marked", place / f"{folder.name}_record"


def open_record(
    folder,
    settings,
    holdout,
    seed=None,
    record_file=None,
    overwrite=False,
    plan=None,
    public=NO_BEACON,
    out=None,
    keep_originals=True,
):
    """Decide what to do for a `Folder`: start a record, go on with an interrupted one, or extend `record_file`.

    settings: `MarkSettings`, or None to take those of record_file; plan: the `AuditPlan` to commit; public: where
    randomness comes from, a `commit.Public`; out: see `places_of`; keep_originals: whether the record's folder gets
    copies of all originals, because phones and clouds encode their libraries anew. Returns a Job; nothing is written
    yet. Raises UserError where a record or marked photos would be lost.
    """
    marked_folder, record_folder = places_of(folder.path, out)
    opening = _Opening(folder, holdout, marked_folder, seed, plan, public, keep_originals)
    if record_file is not None:
        path = records.record_file(record_file)
        return opening.further(records.read_record(path), path.resolve().parent, settings)
    path = record_folder / "record.json"
    if path.exists() and not overwrite:
        stored = records.read_record(path)
        if stored.finished:
            raise UserError(
                f"{path} exists: it is the only proof for the photos that were marked with it",
                "one record is enough",
                f"give --record {path} to mark further photos, or --overwrite for a new draw (the old record is kept, "
                "and the new one counts it)",
            )
        _refuse_legacy(stored, path)
        last = stored.batches[-1]
        if last.seed != seed:
            raise UserError(
                f"{path} is an unfinished record with another --seed",
                advice="give the same one",
                command="or --overwrite",
            )
        if last.published != records.published_share(last.photos, holdout):
            raise UserError(
                f"{path} is of an interrupted run with another --holdout",
                advice="give the same",
                command="or --overwrite",
                flag="--holdout",
            )
        if plan is not None and plan != stored.plan:
            raise UserError(
                f"{path} has committed another plan of the audit", advice="give the same", command="or --overwrite"
            )
        return opening.further(stored, record_folder, settings)
    if marked_folder.exists() and any(marked_folder.iterdir()):
        if not overwrite:
            raise UserError(
                f"{marked_folder} exists and is not empty", advice="move it away", command="or give --overwrite"
            )
        if path.exists():
            try:
                records.read_record(path)
            except UserError as problem:
                # Photos of two keys in one folder would be published together.
                raise UserError(
                    f"{problem.problem}. It can't be told which photos in {marked_folder} it marked",
                    "move that folder away first",
                ) from None
    return opening.extended(
        records.new_record(settings), folder.photos, record_folder, "new draw", redrawn=_thrown_away(path)
    )


def _refuse_legacy(record, path):
    if isinstance(record, LegacyRecord):
        raise UserError(
            f"{path} was made by an early version: it can be audited and verified, and marks no more photos",
            advice="mark these photos in a folder of their own",
        )


def _thrown_away(path):
    """The commitments of the record that is about to be put away, and of those before it."""
    try:
        old = records.read_record(path) if path.exists() else None
    except UserError:
        return []  # damaged: what it committed can't be told
    if old is None:
        return []
    before = [] if isinstance(old, LegacyRecord) else old.batches[0].commit.redrawn
    return [*before, *old.commitments]


@dataclass(frozen=True)
class _Opening:
    """What `open_record` was asked for."""

    folder: Folder
    holdout: float
    marked_folder: Path
    seed: int | None
    plan: AuditPlan | None
    public: Public
    keep_originals: bool

    def further(self, record, record_folder, settings):
        """A Job for an existing record: to be resumed, made again, or extended."""
        folder, path = self.folder, record_folder / "record.json"
        if settings is not None:
            check_same_settings(
                record.settings.model_dump(),
                settings.model_dump(),
                path,
                advice="one record has one way of marking: leave these flags out",
                command=None,
            )
        known = {photo.original_sha256: photo.number for photo in record.photos}
        new = [photo for photo in folder.photos if photo["original_sha256"] not in known]
        old = sorted(known[photo["original_sha256"]] for photo in folder.photos if photo["original_sha256"] in known)
        if not record.finished:
            last = len(record.batches) - 1
            if new or {photo.number for photo in record.photos if photo.batch == last} - set(old):
                raise UserError(
                    f"{path} belongs to an interrupted run over other photos",
                    advice="restore them and run it again",
                    command="or give --overwrite for a new draw",
                )
            return self._job(record, old, record_folder, "resumed")
        if not new:
            return self._job(record, old, record_folder, "same photos")
        _refuse_legacy(record, path)
        if self.plan is not None and self.plan != record.plan:
            raise UserError(f"{path} has committed its plan already", advice="leave the flags of the plan out")
        return self.extended(record, new, record_folder, "further photos", old)

    def extended(self, record, photos, record_folder, note, old=(), redrawn=()):
        """A Job for a record with another, committed batch."""
        folder, first = self.folder, len(record.photos)
        record = records.commit_batch(
            record,
            photos,
            self.holdout,
            folder.path.resolve(),
            self.marked_folder,
            self.plan,
            named_round(self.public),
            self.seed,
            redrawn,
        )
        numbers = [*old, *range(first, len(record.photos))]
        return self._job(record, numbers, record_folder, note)

    def _job(self, record, numbers, record_folder, note):
        return Job(
            record,
            numbers,
            self.folder,
            self.marked_folder,
            record_folder,
            note,
            self.public,
            self.keep_originals,
        )


def resolve_settings(chosen, record_file=None, data_root=None):
    """(MarkSettings, bank of outlier images or None) out of `chosen`, {name: value}, else a record, else the paper's.

    None as a value stands for "not chosen"; visibility: a name of VISIBILITIES, of which single values may be chosen
    otherwise; metadata: "keep" publishes unmarked photos as the files that they are. Raises UserError for settings that
    would change nothing, unless that was asked for.
    """
    stored = records.read_record(record_file).settings.model_dump() if record_file else {}
    unmarked = _unmarked(chosen, stored)
    if chosen.get("visibility"):
        stored |= VISIBILITIES[chosen["visibility"]]
    if chosen.get("metadata") == "keep":
        if not unmarked or chosen.get("format"):
            raise UserError(
                "--metadata keep publishes files as they are, and a mark or another --format changes them",
                advice="give it with --visibility none alone",
                flag="--metadata",
            )
        stored["format"] = AS_IT_IS
    values = {
        name: chosen[name] if chosen.get(name) is not None else stored.get(name, default)
        for name, default in DEFAULTS.items()
    }
    settings = records.MarkSettings(**values)
    bank = load_bank(settings, data_root)
    settings = settings.model_copy(update={"outlier_bank_sha256": bank_digest(bank)})
    if settings.marking(bank).changes_nothing and not unmarked:
        raise UserError(
            "--img_blending_ratio 1 without noise leaves the photos as they are",
            advice="lower it",
            command="or give --visibility none, if that is what you want",
            flag="--img_blending_ratio",
        )
    return settings, bank


def _unmarked(chosen, stored):
    """Whether the photos are to stay as they are; refuses flags of a mark beside that."""
    if chosen.get("visibility") != "none":
        return not chosen.get("visibility") and bool(stored) and records.MarkSettings(**stored).unmarked
    others = [name for name in VISIBILITIES["none"] if chosen.get(name) is not None]
    if others:
        raise UserError(
            f"--visibility none and --{others[0]} don't go together", advice="leave one out", flag="--visibility"
        )
    return True


def load_bank(settings, data_root=None):
    """The images of `--ood_pattern` for photos, or None for stripes. Raises UserError when they have changed."""
    if settings.ood_pattern == "color_stripes" or settings.img_blending_ratio == 1:
        return None
    bank = load_outlier_bank(settings.ood_pattern, REFERENCE_SIZE, REFERENCE_SIZE, data_root)
    if settings.outlier_bank_sha256 not in (None, bank_digest(bank)):
        raise UserError(
            f"the images of --ood_pattern {settings.ood_pattern} are not those that the photos were marked with",
            advice="restore them",
        )
    return bank


def bank_digest(bank):
    """SHA-256 of a bank of outlier images, None for None."""
    return None if bank is None else hashlib.sha256(bank.numpy().tobytes()).hexdigest()


def mark_photo(pixels, key, number, marking):
    """One photo, uint8 (H, W, 3), with the mark of `key` (bytes) and its number: uint8 (H, W, 3)."""
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
    return mark_images(image, key, [0], [number], marking)[0].permute(1, 2, 0).numpy()


def quality(original, published):
    """(PSNR in dB or None where nothing changed, SSIM or None for photos under 7 px) of two uint8 (H, W, 3) photos.

    SSIM is taken at most at SSIM_SIDE pixels on the shorter side, about what a screen shows of a photo.
    """
    squared = sum(
        float(np.square(before.astype(np.int32) - after).sum(dtype=np.int64))
        for before, after in zip(original, published, strict=True)
    )
    psnr = 10 * np.log10(255**2 * original.size / squared) if squared else None
    small = [
        np.asarray(shrunk(Image.fromarray(photo), SSIM_SIDE, Image.Resampling.BILINEAR))
        for photo in (original, published)
    ]
    ssim = float(structural_similarity(*small, channel_axis=2)) if min(small[0].shape[:2]) >= 7 else None
    return psnr, ssim


def shrunk(image, side, resample):
    """A PIL image, scaled down until its shorter side is `side` pixels, where it is longer."""
    scale = side / min(image.size)
    if scale >= 1:
        return image
    return image.resize([max(1, round(length * scale)) for length in image.size], resample, reducing_gap=3)


def run(job, bank=None, overwrite=False, say=print):
    """Carry a Job out and leave contact_sheet.png and result.json in the record's folder: (finished record, rows).

    say: called with what people have to know before the work is done: the commitment. Raises UserError when the record
    was written by somebody else since the job was made: it would be lost.
    """
    records.private_folder(job.record_folder)
    with lock_folder(job.record_folder):
        _refuse_changed_record(job, overwrite)
        started = datetime.now(timezone.utc)
        record, rows = protect(job, bank, overwrite, sheet.thumbnails, say)
        _write_results(job, record, rows, (datetime.now(timezone.utc) - started).total_seconds())
    return record, rows


def _refuse_changed_record(job, overwrite):
    # The lock is taken only now, and a secret that is overwritten can never be had again.
    if overwrite and job.note == "new draw":
        return
    stored = records.read_record(job.record_path) if job.record_path.exists() else None
    before = len(job.record.batches) - (job.note == "further photos")
    expected = None if job.note == "new draw" else job.record.batches[:before]
    if (stored and stored.batches) != expected:
        raise UserError(
            f"{job.record_path} was written by another call meanwhile, and was left alone", advice="start again"
        )


def _write_results(job, record, rows, seconds):
    shown = (
        [
            rows[place]
            for place in np.unique(
                np.linspace(0, len(rows) - 1, min(len(rows), sheet.SHEET_PHOTOS)).round().astype(int)
            )
        ]
        if rows
        else []
    )
    if shown:
        sheet.contact_sheet([(row["name"], row["thumbnail"]) for row in shown], job.record_folder / "contact_sheet.png")
    write_json(
        job.record_folder / "result.json",
        {
            "settings": record.settings.model_dump(),
            "photos": len(record.photos),
            "published": int(record.published.sum()),
            "commitment": record.commitments[-1],
            "evidence": record.evidence,
            "images": [{name: row[name] for name in ("number", "name", "psnr", "ssim")} for row in rows],
            "skipped": [{"name": name, "reason": reason} for name, reason in job.folder.skipped],
            "duplicates": [{"name": name, "same_as": other} for name, other in job.folder.duplicates],
            "seconds": seconds,
            "versions": environment.software_versions(),
        },
    )


def protect(job, bank=None, overwrite=False, thumbnail=None, say=print):
    """Commit, draw, and write the record, the marked photos and the held-out half.

    thumbnail: None or a function (original, published) -> anything, called for each published photo; say: see `run`.
    Returns (finished record, list of dicts number, name, psnr, ssim, thumbnail), sorted by number.
    """
    marking = job.record.settings.marking(bank)
    if overwrite and job.note == "new draw":
        _put_away(job)
    record = _drawn(job, say)
    chosen = [record.photos[number] for number in job.numbers]
    _refuse_foreign_outputs(job, [photo for photo in chosen if photo.published], overwrite)
    for photo in chosen:
        if not photo.published or job.keep_originals:
            with atomic_path(records.copy_of(job.record_folder, photo)) as temporary:
                temporary.write_bytes(job.folder.content(photo))
    keys = record.keys(0)[0]
    one_big_at_a_time = threading.Lock()

    def mark(photo):
        with one_big_at_a_time if photo.height * photo.width > BIG_PIXELS else nullcontext():
            original = read_photo(job.folder.content(photo))
            published = mark_photo(original, keys[photo.batch], photo.number, marking)
            data = _file_of(published, record.settings, job.folder.content(photo))
            write_photo(job.marked_folder / photo.marked, data)
            if record.settings.format == "jpeg":
                published = read_photo(data)  # what people will see
            psnr, ssim = quality(original, published)
            return {
                "number": photo.number,
                "name": photo.marked,
                "sha256": hashlib.sha256(data).hexdigest(),
                "psnr": psnr,
                "ssim": ssim,
                "thumbnail": thumbnail and thumbnail(original, published),
            }

    rows = each(mark, [photo for photo in chosen if photo.published], "marking")
    if not record.finished:
        record = records.finish_batch(record, {row["number"]: row["sha256"] for row in rows})
        records.write_record(job.record_path, record)
    return record, rows


def _file_of(pixels, settings, original=None):
    """The bytes of a photo's published file. original: those of its own file."""
    return original if settings.format == AS_IT_IS else encode_photo(pixels, settings.format, settings.quality)


def _drawn(job, say):
    """The job's record with its last batch drawn; the commitment is on disk, and said, before that."""
    record = job.record
    if record.finished:
        return record
    if not record.batches[-1].drawn:
        records.write_record(job.record_path, record)
        record = date(record, job.public, job.record_folder, say)
        records.write_record(job.record_path, record)
        record = settle(record, _names(record), job.public)
    records.write_record(job.record_path, record)
    return record


def _names(record):
    """{number: name of its marked file} for the photos of the last batch."""
    last = len(record.batches) - 1
    photos = [photo for photo in record.photos if photo.batch == last]
    taken = [photo.marked for photo in record.photos if photo.marked]
    names = output_names([{"original": photo.original} for photo in photos], SUFFIXES[record.settings.format], taken)
    return dict(zip((photo.number for photo in photos), names, strict=True))


def _refuse_foreign_outputs(job, photos, overwrite):
    if overwrite:
        return
    for photo in photos:
        path = job.marked_folder / photo.marked
        if path.exists() and photo.marked_sha256 is not None and files.file_digest(path) != photo.marked_sha256:
            raise UserError(
                f"{path} exists and is not what this record marked",
                advice="move it away",
                command="or give --overwrite",
            )
        if path.exists() and photo.marked_sha256 is None and job.note == "further photos":
            raise UserError(f"{path} exists already", advice="move it away", command="or give --overwrite")


def _put_away(job):
    """Before a new key: keep the old record under another name, remove the photos that it marked.

    Photos of two keys in one folder would be published together, and the halves of two selections give everything away.
    """
    if not job.record_path.exists():
        return
    try:
        old = records.read_record(job.record_path)
    except UserError:
        old = None
    name = (old.commitments[-1] if old and old.commitments else files.file_digest(job.record_path))[:16]
    os.replace(job.record_path, job.record_folder / f"record-{name}.json")
    for photo in old.photos if old else ():
        if photo.marked is not None:
            path = job.marked_folder / photo.marked
            if path.is_file() and photo.marked_sha256 in (None, files.file_digest(path)):
                path.unlink()
        records.copy_of(job.record_folder, photo).unlink(missing_ok=True)


def verify(record, originals, marked_folders, bank=None):
    """Recompute every published mark from its original: a list of dicts number, name, problem (None when all is well).

    originals: paths by number (`record.locate_originals`); marked_folders: a folder for each batch. The published file
    must have the recorded SHA-256, and its pixels must be those that marking gives today (but for TOLERATED_SHARE).
    """
    marking, settings = record.settings.marking(bank), record.settings

    def check(photo):
        path = Path(marked_folders[photo.batch]) / photo.marked
        row = {"number": photo.number, "name": photo.marked, "problem": None, "differing": 0.0}
        if not path.is_file():
            return {**row, "problem": f"{path} is missing"}
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != photo.marked_sha256:
            return {**row, "problem": "its file was changed after marking"}
        marked = mark_photo(read_photo(originals[photo.number]), record.key_of(photo), photo.number, marking)
        if settings.format == "jpeg":
            marked = read_photo(_file_of(marked, settings))
        published = read_photo(content)
        if published.shape != marked.shape:
            return {**row, "problem": f"it is {published.shape[1]} x {published.shape[0]} px, its original is not"}
        # JPEG spreads one pixel's difference over a block.
        apart = np.maximum(published, marked) - np.minimum(published, marked)
        differing = float((apart.max(axis=2) > (24 if settings.format == "jpeg" else 0)).mean())
        problem = (
            None
            if differing <= TOLERATED_SHARE
            else f"{100 * differing:.1f} % of its pixels are not those of this key's mark"
        )
        return {**row, "problem": problem, "differing": differing}

    return each(check, [photo for photo in record.photos if photo.published], "verifying")
