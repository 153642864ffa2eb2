"""Mark records of versions before 0.2: they can still be read, audited and replayed, and are never written.

Their key and their selection were drawn by the user alone, before anything was committed, and which photos were
published followed from the photos' numbers: whoever was dishonest could draw again until an innocent model liked the
result. Verdicts on them say so.

Public: LegacyRecord, LegacyPublic, read_legacy, public_part, draw_selections, FORMAT, OLD.
"""

import hashlib
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from pydantic import ConfigDict, Field, ValidationError

from kit.errors import UserError
from kit.files import canonical_digest
from provenance.plan import STATISTICS, AuditPlan
from provenance.record import Digest, MarkSettings, Photo, Strict, first_problem
from utils import derive_key, key_words

FORMAT = "membershiptracker-record-1"
SELECTIONS = 999  # of an audit, then
OLD = (
    "the record was made by an early version, whose draw used no public randomness and followed the photos' numbers: "
    "it could have been repeated until it pleased"
)


class LegacyBatch(Strict):
    """Photos marked together; folders as they were given."""

    created: str
    photos: int = Field(ge=1)
    published: int = Field(ge=1)
    data_folder: str
    marked_folder: str

    possible = property(lambda self: (self.published, self.photos))
    drawn: ClassVar[bool] = True
    grouped: ClassVar[bool] = False


class LegacySettings(MarkSettings):
    """The settings of then: uniform noise was continuous, and no other kind had a name."""

    noise_injection_type: Literal["perlin", "uniform", "gabor", "none"]

    def marking(self, outlier_bank=None):
        """The `utils.Marking` of these settings, in today's words."""
        marking = super().marking(outlier_bank)
        is_uniform = marking.noise_injection_type == "uniform"
        return replace(marking, noise_injection_type="uniform_continuous") if is_uniform else marking


class LegacyRecord(Strict):
    """One key and one selection for all batches; the same questions can be asked of it as of a `record.MarkRecord`."""

    format: Literal["membershiptracker-record-1"]
    evidence: bool
    seed: int | None
    software: dict[str, str]
    key: Digest
    selection_key: Digest
    settings: LegacySettings
    batches: list[LegacyBatch]
    photos: list[Photo]
    commitments: list[Digest]

    finished = property(lambda self: len(self.commitments) == len(self.batches))

    @property
    def plan(self):
        """The usual AuditPlan of then."""
        held_out = any(not photo.published for photo in self.photos)
        return AuditPlan.usual(held_out, selections=SELECTIONS if held_out else None, views=1, statistic=STATISTICS[0])

    @property
    def published(self):
        """bool (n,): which photos were published, by number."""
        return np.array([bool(photo.published) for photo in self.photos])

    def key_of(self, photo):
        """The user's own key: 32 bytes."""
        return bytes.fromhex(self.key)

    def keys(self, count, audit_seed=""):
        """The user's own and `count` fresh keys: tuples with the same 32 bytes for each batch."""
        own = bytes.fromhex(self.key)
        fresh = [derive_key(own, "audit key", audit_seed, number) for number in range(1, count + 1)]
        return [(key,) * len(self.batches) for key in (own, *fresh)]

    def selections(self, count, audit_seed=""):
        """What was published and `count` fresh selections: bool (count + 1, n)."""
        return draw_selections(self.selection_key, self.batches, count, audit_seed)

    def seed_of(self, purpose, *parts):
        """A key for what else the audit draws: 32 bytes."""
        return derive_key(bytes.fromhex(self.key), purpose, *parts)


def read_legacy(content, path):
    """The LegacyRecord of a JSON content. Raises UserError for a damaged or inconsistent one."""
    try:
        record = LegacyRecord.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path} is not a mark record of this version: {first_problem(error)}") from None
    counted = [
        (
            sum(photo.batch == number for photo in record.photos),
            sum(photo.batch == number and bool(photo.published) for photo in record.photos),
        )
        for number in range(len(record.batches))
    ]
    numbers, batches = ([getattr(photo, name) for photo in record.photos] for name in ("number", "batch"))
    if (
        numbers != list(range(len(numbers)))
        or counted != [(batch.photos, batch.published) for batch in record.batches]
        or batches != sorted(batches)
        or len(record.commitments) > len(record.batches)
    ):
        raise UserError(f"{path} is inconsistent: its photos don't fit its batches", advice="restore it from a copy")
    if record.batches and not np.array_equal(record.selections(0)[0], record.published):
        raise UserError(
            f"{path}: the published photos are not those that its key draws", advice="restore it from a copy"
        )
    for number, commitment in enumerate(record.commitments, 1):
        if canonical_digest(public_part(record, number)) != commitment:
            raise UserError(
                f"{path} does not fit its commitment {commitment[:16]}...: it was changed after marking",
                advice="restore the record as data_marking.py wrote it",
            )
    return record


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


class _Sizes(Strict):
    model_config = ConfigDict(extra="allow", frozen=True)

    photos: int = Field(ge=1)
    published: int = Field(ge=1)


class LegacyPublic(Strict):
    """The public part as it stands in an evidence bundle."""

    model_config = ConfigDict(extra="allow", frozen=True)

    evidence: bool
    batches: list[_Sizes] = Field(min_length=1)
    selection_key_sha256: Digest


def draw_selections(selection_key, batches, count, audit_seed=""):
    """The published selection and `count` fresh ones: bool (count + 1, n). selection_key: hex; batches: objects with
    the numbers `photos` and `published`.
    """
    secret = bytes.fromhex(selection_key)
    own, fresh = derive_key(secret, "published"), derive_key(secret, "audit selections", audit_seed)
    rows = []
    for number in range(count + 1):
        first, parts = 0, []
        for batch in batches:
            words = key_words(
                fresh if number else own,
                "selection",
                np.full(batch.photos, number),
                np.arange(first, first + batch.photos),
            )
            ranks = words[:, :2].copy().view("<u8")[:, 0]
            chosen = np.zeros(batch.photos, dtype=bool)
            chosen[np.argsort(ranks, kind="stable")[: batch.published]] = True
            parts.append(chosen)
            first += batch.photos
        rows.append(np.concatenate(parts))
    return np.stack(rows)
