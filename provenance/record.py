"""The private mark record of one user: key, selection, photos, and the commitment to all of it.

A record is JSON and is checked in full when it is read. Whoever has it can mark as the user does and can tell which
photos were published: it stays private. What may be posted is the commitment, a SHA-256 over the record's public part,
in which the secret part is represented by its own SHA-256 (the 256-bit key inside keeps that from being guessed).

Public: MarkRecord and its parts, new_record, add_batch, finish_batch, commitment_of, public_part, check_commitments,
record_file, read_record, write_record, draw_selections, audit_keys, locate_originals, file_digest, software_versions.
"""

import hashlib
import os
import secrets
from datetime import datetime, timezone
from pathlib import Path, PurePath
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from kit.environment import software_versions
from kit.errors import UserError
from kit.files import canonical_digest, file_digest, read_json, write_json
from provenance.photos import find_photos
from utils import Marking, derive_key, key_words

FORMAT = "membershiptracker-record-1"
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _stays_inside(name):
    # Names are joined to folders: one that could leave its folder is refused with the record.
    # A backslash may be part of a name here and a separator elsewhere: ".." is refused after either.
    if not name or "\0" in name or PurePath(name).anchor or ".." in name.replace("\\", "/").split("/"):
        raise ValueError("a name must be relative and stay inside its folder")
    return name


RelativePath = Annotated[str, Field(max_length=4096), AfterValidator(_stays_inside)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, regex_engine="python-re")


class MarkSettings(_Strict):
    """How photos are marked and written; the names are those of data_marking.py's flags."""

    img_blending_ratio: float = Field(ge=0, le=1)
    noise_injection_type: Literal["perlin", "uniform", "gabor", "none"]
    noise_norm: float = Field(ge=0, le=255)
    ood_pattern: str
    outlier_bank_sha256: Digest | None = None
    format: Literal["png", "jpeg"]
    quality: int = Field(ge=1, le=100)

    def marking(self, outlier_bank=None):
        """The `utils.Marking` of these settings; the bank is what `--ood_pattern` named."""
        return Marking(self.img_blending_ratio, self.noise_injection_type, self.noise_norm, outlier_bank)


class Batch(_Strict):
    """Photos marked together. `published` of its `photos` were chosen at random; folders as they were given."""

    created: str
    photos: int = Field(ge=1)
    published: int = Field(ge=1)
    data_folder: str
    marked_folder: str


class Photo(_Strict):
    """One photo: its number decides its noise, `original` is relative to the batch's folder."""

    number: int = Field(ge=0)
    batch: int = Field(ge=0)
    original: RelativePath
    original_sha256: Digest
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    published: bool
    marked: RelativePath | None = None
    marked_sha256: Digest | None = None

    @model_validator(mode="after")
    def _published_has_a_name(self):
        if self.published != (self.marked is not None):
            raise ValueError("a published photo, and no other, has a marked file")
        return self


class MarkRecord(_Strict):
    """Everything about one user's marks. `commitments` has one entry for each finished batch."""

    format: Literal["membershiptracker-record-1"]
    evidence: bool
    seed: int | None
    software: dict[str, str]
    key: Digest
    selection_key: Digest
    settings: MarkSettings
    batches: list[Batch]
    photos: list[Photo]
    commitments: list[Digest]

    @property
    def finished(self):
        return len(self.commitments) == len(self.batches)

    @property
    def published(self):
        """bool (n,): which photos were published, by number."""
        return np.array([photo.published for photo in self.photos])


def new_record(settings, seed=None):
    """A record without photos. The key comes from the operating system's generator; `seed` is for experiments only."""
    if seed is None:
        key, selection_key = secrets.token_bytes(32), secrets.token_bytes(32)
    else:
        key, selection_key = derive_key(seed, "mark record"), derive_key(seed, "mark record", "selection")
    return MarkRecord(
        format=FORMAT,
        evidence=seed is None,
        seed=seed,
        software=software_versions(),
        key=key.hex(),
        selection_key=selection_key.hex(),
        settings=settings,
        batches=[],
        photos=[],
        commitments=[],
    )


def add_batch(record, photos, holdout, data_folder, marked_folder, output_names):
    """The record with another, unfinished batch, of which a secret random share is to be published.

    photos: dicts original, original_sha256, height, width, in the order of their numbers; holdout in [0, 1): the share
    that stays private, at least one photo being published; output_names: the name of each photo, if it is published.
    """
    batch, first = len(record.batches), len(record.photos)
    published = published_share(len(photos), holdout)
    chosen = _draw(derive_key(bytes.fromhex(record.selection_key), "published"), 0, first, len(photos), published)
    entries = [
        Photo(
            number=first + place,
            batch=batch,
            published=bool(chosen[place]),
            marked=output_names[place] if chosen[place] else None,
            **photo,
        )
        for place, photo in enumerate(photos)
    ]
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return record.model_copy(
        update={
            "batches": [
                *record.batches,
                Batch(
                    created=created,
                    photos=len(photos),
                    published=published,
                    data_folder=str(data_folder),
                    marked_folder=str(marked_folder),
                ),
            ],
            "photos": [*record.photos, *entries],
        }
    )


def published_share(photos, holdout):
    """How many of `photos` photos are published: at least one."""
    return max(1, photos - round(photos * holdout))


def finish_batch(record, marked_digests):
    """The record with the SHA-256 of the last batch's published files, {number: hex}, and its commitment."""
    photos = [
        photo.model_copy(update={"marked_sha256": marked_digests[photo.number]})
        if photo.number in marked_digests
        else photo
        for photo in record.photos
    ]
    record = record.model_copy(update={"photos": photos})
    return record.model_copy(update={"commitments": [*record.commitments, commitment_of(record, len(record.batches))]})


def public_part(record, batches):
    """What may be shown of the first `batches` batches: settings, numbers of photos, digests of the secrets."""
    shown = record.batches[:batches]
    secret = {
        "key": record.key,
        "selection_key": record.selection_key,
        "seed": record.seed,
        "batches": [batch.model_dump() for batch in shown],
        "photos": [photo.model_dump() for photo in record.photos if photo.batch < batches],
    }
    return {
        "format": record.format,
        "evidence": record.evidence,
        "software": record.software,
        "settings": record.settings.model_dump(),
        "batches": [
            {"created": batch.created, "photos": batch.photos, "published": batch.published} for batch in shown
        ],
        "selection_key_sha256": hashlib.sha256(bytes.fromhex(record.selection_key)).hexdigest(),
        "secret_sha256": canonical_digest(secret),
    }


def commitment_of(record, batches):
    """The SHA-256 to post before the photos of the first `batches` batches are published."""
    return canonical_digest(public_part(record, batches))


def check_commitments(record, where):
    """Raise UserError when the record does not open its own commitments."""
    for batches, commitment in enumerate(record.commitments, 1):
        if commitment_of(record, batches) != commitment:
            raise UserError(
                f"{where} does not fit its commitment {commitment[:16]}...: it was changed after marking",
                advice="restore the record as data_marking.py wrote it",
            )


def record_file(path):
    """The record.json that a path names, be it the file or its folder."""
    path = Path(path)
    return path / "record.json" if path.is_dir() else path


def read_record(path):
    """Read and check a record. Raises UserError for a missing, damaged, foreign or inconsistent one."""
    path = record_file(path)
    if not path.is_file():
        raise UserError(
            f"record {path} does not exist",
            advice="data_marking.py writes it as record.json into the folder NAME_record beside the photos",
        )
    try:
        record = MarkRecord.model_validate(
            read_json(path, "put back an undamaged copy: without this record nothing can be proven")
        )
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise UserError(f"{path} is not a mark record of this version: {place}: {first['msg']}") from None
    _check_numbers(record, path)
    check_commitments(record, path)
    return record


def _check_numbers(record, path):
    counted = [(batch.photos, batch.published) for batch in record.batches]
    found = [
        (
            sum(photo.batch == number for photo in record.photos),
            sum(photo.batch == number and photo.published for photo in record.photos),
        )
        for number in range(len(record.batches))
    ]
    hashed = all(
        photo.marked_sha256 is not None
        for photo in record.photos
        if photo.published and photo.batch < len(record.commitments)
    )
    numbers, batches = ([getattr(photo, name) for photo in record.photos] for name in ("number", "batch"))
    if (
        numbers != list(range(len(numbers)))
        or counted != found
        or batches != sorted(batches)
        or len(record.commitments) > len(record.batches)
        or not hashed
    ):
        raise UserError(f"{path} is inconsistent: its photos don't fit its batches", advice="restore it from a copy")
    if record.batches and not np.array_equal(
        draw_selections(record.selection_key, record.batches, 0)[0], record.published
    ):
        raise UserError(
            f"{path}: the published photos are not those that its key draws", advice="restore it from a copy"
        )


def write_record(path, record):
    """Write a record, readable by its owner alone where the system knows such rights."""
    path = Path(path)
    write_json(path, record.model_dump())
    path.chmod(0o600)


def _draw(key, draw, first, count, chosen):
    """bool (count,): `chosen` of the photos first..first+count-1; ranks are SHA-256 words, the same under any numpy."""
    words = key_words(key, "selection", np.full(count, draw), np.arange(first, first + count))
    ranks = words[:, :2].copy().view("<u8")[:, 0]
    selected = np.zeros(count, dtype=bool)
    selected[np.argsort(ranks, kind="stable")[:chosen]] = True
    return selected


def draw_selections(selection_key, batches, count, audit_seed=""):
    """The published selection and `count` fresh ones, drawn in the same way: bool (count + 1, n).

    selection_key: hex; batches: objects or dicts with the numbers `photos` and `published`. Row 0 is what was
    published: it follows from the key, so that nobody can have chosen it.
    """
    sizes = [
        (batch["photos"], batch["published"]) if isinstance(batch, dict) else (batch.photos, batch.published)
        for batch in batches
    ]
    secret = bytes.fromhex(selection_key)
    own, fresh = derive_key(secret, "published"), derive_key(secret, "audit selections", audit_seed)
    rows = []
    for draw in range(count + 1):
        first, parts = 0, []
        for photos, published in sizes:
            parts.append(_draw(fresh if draw else own, draw, first, photos, published))
            first += photos
        rows.append(np.concatenate(parts))
    return np.stack(rows)


def audit_keys(record, count, audit_seed=""):
    """The user's own key and `count` fresh ones, as bytes.

    They follow from the secret key by SHA-256: an audit can be repeated, but not until its result pleases. What an
    opponent or a court adds as `audit_seed` after the commitment was posted, the user could not know at marking time.
    """
    own = bytes.fromhex(record.key)
    return [own] + [derive_key(own, "audit key", audit_seed, number) for number in range(1, count + 1)]


def locate_originals(record, folders, record_path):
    """Where every original is: a list of paths by number. They are known by their SHA-256, whatever their names.

    folders: where to look; without any, the folders that the record names. The held-out photos beside the record
    count too. Raises UserError naming what is missing.
    """
    beside = record_file(record_path).resolve().parent / "held_out"
    places = [Path(folder) for folder in folders] or [Path(batch.data_folder) for batch in record.batches]
    missing_folders = [place for place in places if not place.is_dir()]
    if folders and missing_folders:
        raise UserError(
            f"--originals {missing_folders[0]} is not a folder",
            advice="give the folder with the unmarked photos",
            flag="--originals",
        )
    places = [place for place in [*places, beside] if place.is_dir()]
    found = {}
    for photo in record.photos:
        for place in places:
            path = place / photo.original
            if path.is_file() and file_digest(path) == photo.original_sha256:
                found[photo.number] = path
                break
    if len(found) < len(record.photos):  # renamed or moved: look at every photo
        wanted = {photo.original_sha256: photo.number for photo in record.photos if photo.number not in found}
        for place in places:
            for name in find_photos(place)[0]:
                number = wanted.get(file_digest(place / name))
                if number is not None:
                    found[number] = place / name
    lacking = [photo.original for photo in record.photos if photo.number not in found]
    if lacking:
        raise UserError(
            f"{len(lacking)} of {len(record.photos)} originals are missing or were changed since they were "
            f"marked ({', '.join(lacking[:3])}{', ...' if len(lacking) > 3 else ''})",
            advice=f"looked in {', '.join(map(str, places)) or 'no folder'}: give the unmarked photos with --originals",
            flag="--originals",
        )
    return [found[photo.number] for photo in record.photos]


def private_folder(path):
    """Make a folder that only its owner may enter, where the system knows such rights."""
    path.mkdir(parents=True, exist_ok=True)
    os.chmod(path, 0o700)
