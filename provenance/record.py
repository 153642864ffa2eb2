"""The private mark record of one user: secrets, draws, photos, and the commitment to all of it.

Photos are marked in batches. Each batch is first *committed*: a fresh secret, the SHA-256 of its originals, all
settings, the plan of the audit and a future round of a public beacon are hashed into one number that may be posted.
Then, when the round is out, it is *drawn*: key and published half follow from secret, commitment and the round's
randomness (see draw.py), so that nobody can have chosen them. Then it is *finished*: the marked files are there. A
batch has a secret, a round and a date of its own, and nothing that a record or a piece of evidence says helps to
foresee a later one.

A record is JSON and is checked in full when it is read. Whoever has it can mark as the user does and can tell which
photos were published: it stays private.

Public: MarkRecord, MarkSettings, Batch, Photo, Commitment, BeaconRound, Strict, Digest, RelativePath, new_record,
commit_batch, draw_batch, MOST_LETTERS, finish_batch, changed_batch, published_share, selections_of, sequence_of,
refuse_sequential, record_file, read_record, read_finished, write_record, first_problem, copy_of, COPIES,
locate_originals, private_folder.
"""

import hashlib
import os
import secrets
from datetime import datetime, timezone
from pathlib import Path, PurePath
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_serializer, model_validator

from kit.environment import software_versions
from kit.errors import UserError
from kit.files import canonical_digest, file_digest, read_json, write_json
from kit.names import AS_IT_IS
from provenance import draw
from provenance.photos import find_photos
from provenance.plan import AuditPlan
from utils import Marking, derive_key

FORMAT = "membershiptracker-record-2"
MOST_LETTERS = 10_000  # of a caption
LAST_SECOND = 253_402_300_799  # of the year 9999
COMMITMENT_FORMAT = "membershiptracker-commitment-2"
COPIES = {True: "originals", False: "held_out"}  # folders beside record.json, by whether a photo is published
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def stays_inside(name):
    """A name that may be joined to a folder: ValueError for one that could leave it."""
    # A backslash may be part of a name here and a separator elsewhere: ".." is refused after either.
    if not name or "\0" in name or PurePath(name).anchor or ".." in name.replace("\\", "/").split("/"):
        raise ValueError("a name must be relative and stay inside its folder")
    return name


RelativePath = Annotated[str, Field(max_length=4096), AfterValidator(stays_inside)]


class Strict(BaseModel):
    """A part of a file: unknown names are refused, nothing is changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, regex_engine="python-re")


def _without_none(content, name):
    """What is written of a part that has no caption is what it was before there were captions, digests included."""
    return {key: value for key, value in content.items() if key != name or value is not None}


class MarkSettings(Strict):
    """How photos are marked and written; the names are those of data_marking.py's flags."""

    img_blending_ratio: float = Field(ge=0, le=1)
    noise_injection_type: Literal["perlin", "uniform", "uniform_continuous", "gabor", "none"]
    noise_norm: float = Field(ge=0, le=255)
    ood_pattern: str
    outlier_bank_sha256: Digest | None = None
    format: Literal["png", "jpeg", AS_IT_IS]
    quality: int = Field(ge=1, le=100)

    @property
    def unmarked(self):
        """Whether nothing is marked: the secret is which photos are published."""
        return self.marking().changes_nothing

    def marking(self, outlier_bank=None):
        """The `utils.Marking` of these settings; the bank is what `--ood_pattern` named."""
        return Marking(self.img_blending_ratio, self.noise_injection_type, self.noise_norm, outlier_bank)


class BeaconRound(Strict):
    """The round of a beacon that a commitment names, before it is out. chain: the hash of the chain's parameters."""

    chain: Digest
    public_key: str = Field(pattern=r"^[0-9a-f]{192}$")
    genesis_time: int = Field(ge=0)
    period: int = Field(ge=1)
    round: int = Field(ge=1)

    @classmethod
    def of(cls, chain, number):
        """Round `number` of a `beacon.Chain`."""
        facts = {name: getattr(chain, name) for name in ("public_key", "genesis_time", "period")}
        return cls(chain=chain.hash, round=number, **facts)

    @model_validator(mode="after")
    def _has_a_date(self):
        if self.genesis_time + (self.round - 1) * self.period > LAST_SECOND:
            raise ValueError("its round has no date")
        return self


class Commitment(Strict):
    """What is hashed before the draw. All of it may be shown later, but for the secrets that it holds as digests.

    originals_sha256: digest of the sorted list of the originals' SHA-256; groups: photos of the same number look alike
    and are drawn together, [] when none do; published: how many are published, or nearly so with groups; previous:
    commitments of earlier batches of this record; redrawn: commitments that were made here before and thrown away
    (--overwrite), the oldest first; captions_sha256: digest of the captions in the order of their photos, None where
    none has one.
    """

    format: Literal["membershiptracker-commitment-2"]
    evidence: bool
    created: str
    settings: MarkSettings
    plan: AuditPlan
    photos: int = Field(ge=1)
    published: int = Field(ge=1)
    originals_sha256: Digest
    groups: list[int] = Field(default=[])
    marks_sha256: Digest
    selections_sha256: Digest
    beacon: BeaconRound | None
    previous: list[Digest]
    redrawn: list[Digest]
    captions_sha256: Digest | None = None

    @model_validator(mode="after")
    def _groups_are_numbered(self):
        # Before anything is counted by them: a number of 10^12 would fill the memory.
        groups = set(self.groups)
        if groups and (len(self.groups) != self.photos or (min(groups), max(groups)) != (0, len(groups) - 1)):
            raise ValueError("its groups are not numbered from 0, one for each photo")
        return self

    @property
    def digest(self):
        """The number to post: SHA-256, hex."""
        return canonical_digest(self.model_dump(mode="json", exclude=None if self.groups else {"groups"}))

    @model_serializer(mode="wrap")
    def _as_before(self, serialize):
        return _without_none(serialize(self), "captions_sha256")


class Batch(Strict):
    """Photos marked together. timestamp: base64 of a time stamp of the commitment; signature: the beacon's, when it is
    drawn; folders as they were given."""

    data_folder: str
    marked_folder: str
    secret: Digest
    seed: int | None
    commit: Commitment
    timestamp: str | None = None
    signature: str | None = Field(default=None, pattern=r"^[0-9a-f]{96}$")
    drawn: bool = False
    finished: bool = False

    photos = property(lambda self: self.commit.photos)
    published = property(lambda self: self.commit.published)
    commitment = property(lambda self: self.commit.digest)
    grouped = property(lambda self: bool(self.commit.groups))

    @property
    def randomness(self):
        """The beacon's, hex; PRIVATE_RANDOMNESS without a beacon."""
        if self.commit.beacon is None:
            return draw.PRIVATE_RANDOMNESS
        return hashlib.sha256(bytes.fromhex(self.signature)).hexdigest()

    @property
    def drawn_photos(self):
        """bool (photos,): which of them are published, in the order of their numbers."""
        groups = self.commit.groups
        return draw.selection(self.secrets[1], self.context, 0, self.photos, self.published, groups=groups)

    @property
    def possible(self):
        """(of how many things the draw chooses some, how many there are): photos, or groups that are drawn together."""
        groups = self.commit.groups
        return (
            (self.published, self.photos)
            if not groups
            else (
                max(1, round((max(groups) + 1) * self.published / self.photos)),
                max(groups) + 1,
            )
        )

    @property
    def context(self):
        """The public context of the batch's draws (see draw.py): 32 bytes."""
        return draw.context_of(self.commitment, self.randomness)

    @property
    def secrets(self):
        """(of the marks, of the selections): 32 bytes each."""
        secret = bytes.fromhex(self.secret)
        return draw.mark_secret(secret), draw.selection_secret(secret)


class Photo(Strict):
    """One photo: its number decides its noise, `original` is relative to the batch's folder. published: None before the
    draw; caption: what it is said to show, None for nothing."""

    number: int = Field(ge=0)
    batch: int = Field(ge=0)
    original: RelativePath
    original_sha256: Digest
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    published: bool | None = None
    marked: RelativePath | None = None
    marked_sha256: Digest | None = None
    caption: Annotated[str, Field(max_length=MOST_LETTERS)] | None = None

    @model_validator(mode="after")
    def _published_has_a_name(self):
        if bool(self.published) != (self.marked is not None):
            raise ValueError("a published photo, and no other, has a marked file")
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, serialize):
        return _without_none(serialize(self), "caption")


class MarkRecord(Strict):
    """Everything about one user's marks. Numbers of photos go through the batches, in the order of content's
    SHA-256.
    """

    format: Literal["membershiptracker-record-2"]
    software: dict[str, str]
    settings: MarkSettings
    batches: list[Batch]
    photos: list[Photo]

    finished = property(lambda self: all(batch.finished for batch in self.batches))
    evidence = property(lambda self: all(batch.commit.evidence for batch in self.batches))
    commitments = property(lambda self: [batch.commitment for batch in self.batches])

    @property
    def plan(self):
        """The AuditPlan that was committed first, and binds."""
        return self.batches[0].commit.plan

    @property
    def published(self):
        """bool (n,): which photos were published, by number. False before the draw."""
        return np.array([bool(photo.published) for photo in self.photos])

    def key_of(self, photo):
        """The user's own key for a photo: 32 bytes."""
        return self.keys(0)[0][photo.batch]

    def keys(self, count, audit_seed=""):
        """The user's own and `count` fresh keys: count + 1 tuples with 32 bytes for each batch."""
        drawn = [(batch.secrets[0], batch.context) for batch in self.batches]
        return [
            tuple(draw.mark_key(marks, context, number, audit_seed) for marks, context in drawn)
            for number in range(count + 1)
        ]

    def selections(self, count, audit_seed=""):
        """What was published and `count` fresh selections: bool (count + 1, n)."""
        return selections_of(
            [
                (batch.secrets[1], batch.context, batch.photos, batch.published, batch.commit.groups)
                for batch in self.batches
            ],
            count,
            audit_seed,
        )

    @property
    def sizes(self):
        """(photos, published) of each batch."""
        return [(batch.photos, batch.published) for batch in self.batches]

    @property
    def grouped(self):
        """Whether photos that look alike were drawn together."""
        return any(batch.grouped for batch in self.batches)

    def sequence(self, audit_seed=""):
        """The order in which a sequential audit asks about the photos: int (n,), their numbers."""
        return sequence_of([(batch.secrets[1], batch.context, batch.photos) for batch in self.batches], audit_seed)

    def seed_of(self, purpose, *parts):
        """A key for what else the audit draws, such as the order of its queries: 32 bytes."""
        return derive_key(*(batch.secrets[0] for batch in self.batches), purpose, *parts)


def selections_of(batches, count, audit_seed=""):
    """bool (count + 1, n) out of (secret of the selections, context, photos, published, groups) of each batch."""
    return np.concatenate(
        [
            np.stack(
                [
                    draw.selection(secret, context, number, photos, published, audit_seed, groups)
                    for number in range(count + 1)
                ]
            )
            for secret, context, photos, published, groups in batches
        ],
        axis=1,
    )


def sequence_of(batches, audit_seed=""):
    """`draw.sequence` out of (secret of the selections, context, photos) of each batch."""
    return draw.sequence([batch[:2] for batch in batches], sum(batch[2] for batch in batches), audit_seed)


def new_record(settings):
    """A record without batches."""
    return MarkRecord(format=FORMAT, software=software_versions(), settings=settings, batches=[], photos=[])


def commit_batch(
    record, photos, holdout, data_folder, marked_folder, plan=None, beacon=None, seed=None, redrawn=(), created=None
):
    """The record with another batch, committed and not yet drawn.

    photos: dicts original, original_sha256, height, width, where they have one caption, and, if near-duplicates are to
    be kept together, group;
    holdout in [0, 1): the share that stays private, at least one photo being published; plan: AuditPlan, that of the
    first batch for further ones; beacon: BeaconRound or None; seed: draws the secret from a number, for experiments;
    redrawn: commitments thrown away here before; created: ISO time.
    """
    photos = sorted(photos, key=lambda photo: photo["original_sha256"])
    groups = [photo.get("group", place) for place, photo in enumerate(photos)]
    photos = [{name: value for name, value in photo.items() if name != "group"} for photo in photos]
    first, published = len(record.photos), published_share(len(photos), holdout)
    secret = secrets.token_bytes(32) if seed is None else derive_key(seed, "mark record", len(record.batches))
    plan = (
        record.plan
        if record.batches
        else plan or AuditPlan.usual(published < len(photos), not record.settings.unmarked)
    )
    drawn_together = list(draw.fitting_groups(_from_zero(groups), published))
    if plan.sequential:
        refuse_sequential(bool(drawn_together), [*record.sizes, (len(photos), published)])
    if plan.plain_arm:
        _refuse_plain_arm(record.settings.unmarked, [*record.sizes, (len(photos), published)])
    commit = Commitment(
        format=COMMITMENT_FORMAT,
        evidence=seed is None,
        created=created or datetime.now(timezone.utc).isoformat(timespec="seconds"),
        settings=record.settings,
        plan=plan,
        photos=len(photos),
        published=published,
        originals_sha256=canonical_digest([photo["original_sha256"] for photo in photos]),
        groups=drawn_together,
        marks_sha256=hashlib.sha256(draw.mark_secret(secret)).hexdigest(),
        selections_sha256=hashlib.sha256(draw.selection_secret(secret)).hexdigest(),
        beacon=beacon,
        previous=record.commitments,
        redrawn=list(redrawn),
        captions_sha256=_captions_digest([photo.get("caption") for photo in photos]),
    )
    batch = Batch(
        data_folder=str(data_folder), marked_folder=str(marked_folder), secret=secret.hex(), seed=seed, commit=commit
    )
    entries = [Photo(number=first + place, batch=len(record.batches), **photo) for place, photo in enumerate(photos)]
    return record.model_copy(update={"batches": [*record.batches, batch], "photos": [*record.photos, *entries]})


def _captions_digest(captions):
    """SHA-256 of what photos are said to show, in their order; None where none has a caption."""
    return canonical_digest(captions) if any(caption is not None for caption in captions) else None


def refuse_sequential(grouped, sizes):
    """Raise UserError where nobody can bet on photos one by one. sizes: (photos, published) of each batch."""
    if grouped:
        raise UserError(
            "--sequential: some photos look alike and are drawn together, and its bets are on photos drawn one by one",
            advice="keep one of each, or leave --sequential out",
            flag="--sequential",
        )
    if all(photos == published for photos, published in sizes):
        raise UserError(
            "--sequential: all photos are published, so that there is nothing to bet on",
            advice="give --holdout 0.5, or leave --sequential out",
            flag="--sequential",
        )


def _refuse_plain_arm(unmarked, sizes):
    """Raise UserError where a second test on the photos as they are has nothing to tell. sizes: as above."""
    if unmarked:
        raise UserError(
            "--plain_arm: these photos are published without marks, so that the audit asks about them as they are",
            advice="leave --plain_arm out",
            flag="--plain_arm",
        )
    if all(photos == published for photos, published in sizes):
        raise UserError(
            "--plain_arm: all photos are published, so that there is no other half to compare with",
            advice="give --holdout 0.5, or leave --plain_arm out",
            flag="--plain_arm",
        )


def _from_zero(numbers):
    """The same groups, numbered from 0 in the order of their first members."""
    order = list(dict.fromkeys(numbers))
    return [order.index(number) for number in numbers]


def changed_batch(record, **changes):
    """The record with other values in its last batch."""
    return record.model_copy(update={"batches": [*record.batches[:-1], record.batches[-1].model_copy(update=changes)]})


def draw_batch(record, names, signature=None):
    """The record with its last batch drawn: what is published is decided.

    names: {number: name of the marked file} for every photo of the batch; signature: of the beacon's round, hex, which
    the caller has verified; None without a beacon.
    """
    batch, place = record.batches[-1], len(record.batches) - 1
    if (signature is None) != (batch.commit.beacon is None):
        raise ValueError("a signature belongs to a beacon")
    record = changed_batch(record, signature=signature, drawn=True)
    batch = record.batches[-1]
    chosen = batch.drawn_photos
    first = len(record.photos) - batch.photos
    photos = [
        photo
        if photo.batch != place
        else photo.model_copy(
            update={
                "published": bool(chosen[photo.number - first]),
                "marked": names[photo.number] if chosen[photo.number - first] else None,
            }
        )
        for photo in record.photos
    ]
    return record.model_copy(update={"photos": photos})


def finish_batch(record, marked_digests):
    """The record with the SHA-256 of the last batch's published files, {number: hex}; it is finished."""
    photos = [
        photo.model_copy(update={"marked_sha256": marked_digests[photo.number]})
        if photo.number in marked_digests
        else photo
        for photo in record.photos
    ]
    return changed_batch(record.model_copy(update={"photos": photos}), finished=True)


def published_share(photos, holdout):
    """How many of `photos` photos are published: at least one."""
    return max(1, photos - round(photos * holdout))


def record_file(path):
    """The record.json that a path names, be it the file or its folder."""
    path = Path(path)
    return path / "record.json" if path.is_dir() else path


def read_record(path):
    """Read and check a record: a MarkRecord, or a `legacy.LegacyRecord` of an earlier version.

    Raises UserError for a missing, damaged, foreign or inconsistent one.
    """
    path = record_file(path)
    if not path.is_file():
        raise UserError(
            f"record {path} does not exist",
            advice="data_marking.py writes it as record.json into the folder NAME_record beside the photos",
        )
    content = read_json(path, "put back an undamaged copy: without this record nothing can be proven")
    if isinstance(content, dict) and content.get("format") == "membershiptracker-record-1":
        from provenance.legacy import read_legacy

        return read_legacy(content, path)
    try:
        record = MarkRecord.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path} is not a mark record of this version: {first_problem(error)}") from None
    _check(record, path)
    return record


def read_finished(path):
    """The record of photos that are all marked. Raises UserError."""
    record = read_record(path)
    if not record.finished:
        raise UserError(f"{path} is of an interrupted run", advice="run data_marking.py again, first")
    return record


def first_problem(error):
    """A pydantic ValidationError as one line."""
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc']) or 'the whole'}: {first['msg']}"


def _check(record, path):
    """Everything that follows from something else must do so. Raises UserError."""

    def refuse(problem):
        raise UserError(f"{path} is inconsistent: {problem}", advice="restore the record as data_marking.py wrote it")

    if [photo.number for photo in record.photos] != list(range(len(record.photos))):
        refuse("its photos are not numbered")
    if [photo.batch for photo in record.photos] != [
        number for number, batch in enumerate(record.batches) for _ in range(batch.photos)
    ]:
        refuse("its photos don't fit its batches")
    for number, batch in enumerate(record.batches):
        commit, photos = batch.commit, [photo for photo in record.photos if photo.batch == number]
        last = number == len(record.batches) - 1
        fits = {
            "its secrets": (commit.marks_sha256, commit.selections_sha256)
            == tuple(hashlib.sha256(secret).hexdigest() for secret in batch.secrets),
            "its originals": commit.originals_sha256 == canonical_digest([photo.original_sha256 for photo in photos])
            and photos == sorted(photos, key=lambda photo: photo.original_sha256),
            "its captions": commit.captions_sha256 == _captions_digest([photo.caption for photo in photos]),
            "its settings": commit.settings == record.settings and commit.plan == record.plan,
            "the batches before it": commit.previous == record.commitments[:number],
            "how its secret was drawn": commit.evidence == (batch.seed is None),
        }
        if wrong := [what for what, right in fits.items() if not right]:
            refuse(f"{wrong[0]} don't fit the commitment {batch.commitment[:16]}..., it was changed after marking")
        if (not batch.drawn or not batch.finished) and not last:
            refuse("a batch before the last is not finished")
        if not batch.drawn:
            if batch.finished or any(photo.published is not None for photo in photos):
                refuse("something was published before the draw")
            continue
        if (batch.signature is None) != (commit.beacon is None):
            refuse("its draw does not fit the beacon that it names")
        drawn = batch.drawn_photos
        if [photo.published for photo in photos] != drawn.tolist():
            refuse("the published photos are not those that its secret draws")
        if batch.finished and any(photo.published and photo.marked_sha256 is None for photo in photos):
            refuse("a published photo has no digest")


def write_record(path, record):
    """Write a record, readable by its owner alone where the system knows such rights."""
    path = Path(path)
    write_json(path, record.model_dump(mode="json"))
    path.chmod(0o600)


def copy_of(record_folder, photo):
    """Where a record's folder keeps its copy of an original."""
    return Path(record_folder) / COPIES[bool(photo.published)] / photo.original


def locate_originals(record, folders, record_path, lost=False):
    """Where every original is: a list of paths by number. They are known by their SHA-256, whatever their names.

    folders: where to look; without any, the folders that the record names. The copies beside the record count too.
    lost: whether an original may be missing, None then standing for its path. Raises UserError naming what is missing.
    """
    beside = [record_file(record_path).resolve().parent / name for name in COPIES.values()]
    places = [Path(folder) for folder in folders] or [Path(batch.data_folder) for batch in record.batches]
    missing_folders = [place for place in places if not place.is_dir()]
    if folders and missing_folders:
        raise UserError(
            f"--originals {missing_folders[0]} is not a folder",
            advice="give the folder with the unmarked photos",
            flag="--originals",
        )
    places = [place for place in [*places, *beside] if place.is_dir()]
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
    if lacking and not lost:
        raise UserError(
            f"{len(lacking)} of {len(record.photos)} originals are missing or were changed since they were "
            f"marked ({', '.join(lacking[:3])}{', ...' if len(lacking) > 3 else ''})",
            advice=f"looked in {', '.join(map(str, places)) or 'no folder'}: give the unmarked photos with --originals",
            flag="--originals",
        )
    return [found.get(photo.number) for photo in record.photos]


def private_folder(path):
    """Make a folder that only its owner may enter, where the system knows such rights."""
    path.mkdir(parents=True, exist_ok=True)
    os.chmod(path, 0o700)
