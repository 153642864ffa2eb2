"""What an evidence bundle shows of a record: enough to draw the selections again, nothing that marks a photo.

Public: Disclosed, DisclosedBatch, disclose, check, weaknesses, HONEST.
"""

import base64
import hashlib
from dataclasses import dataclass

import numpy as np
from pydantic import Field, ValidationError

from kit.errors import UserError
from kit.files import canonical_digest
from provenance import beacon, draw, legacy, timestamp
from provenance.plan import AuditPlan
from provenance.record import Commitment, Digest, Strict, first_problem, selections_of, sequence_of

HONEST = "the verdict holds only if the accuser is honest"


class DisclosedBatch(Strict):
    """A batch in the evidence: its commitment, the round's signature, the time stamp, the selections' secret, the
    SHA-256 of its originals (sorted) and of the marked files that were published (sorted).
    """

    commit: Commitment
    signature: str | None = Field(default=None, pattern=r"^[0-9a-f]{96}$")
    timestamp: str | None = None
    selections_secret: Digest
    originals: list[Digest]
    marked: list[Digest]


@dataclass(frozen=True)
class Disclosed:
    """A checked disclosure. sizes: (photos, published) of each batch; weaknesses: sentences on what the verdict
    rests on beside the answers; dates: the `timestamp.Stamp` of each batch, or None; early: of a version before 0.2;
    grouped: whether photos were drawn together.
    """

    commitments: list
    plan: AuditPlan
    sizes: list
    weaknesses: list
    dates: list
    _draw: object
    early: bool = False
    grouped: bool = False
    _order: object = None

    def selections(self, count, audit_seed=""):
        """What was published and `count` fresh selections: bool (count + 1, n)."""
        return self._draw(count, audit_seed)

    def sequence(self, audit_seed=""):
        """The order in which a sequential audit asks about the photos: int (n,), their numbers."""
        return self._order(audit_seed)


def disclose(record):
    """A JSON-ready dict of what evidence shows of a record."""
    if isinstance(record, legacy.LegacyRecord):
        return {
            **legacy.public_part(record, len(record.batches)),
            "commitment": record.commitments[-1],
            "selection_key": record.selection_key,
        }
    return {
        "format": record.format,
        "software": record.software,
        "batches": [
            DisclosedBatch(
                commit=batch.commit,
                signature=batch.signature,
                timestamp=batch.timestamp,
                selections_secret=batch.secrets[1].hex(),
                originals=[photo.original_sha256 for photo in record.photos if photo.batch == number],
                marked=sorted(
                    photo.marked_sha256 for photo in record.photos if photo.batch == number and photo.published
                ),
            ).model_dump(mode="json")
            for number, batch in enumerate(record.batches)
        ],
    }


def check(content, where, roots=None, chain=None):
    """A Disclosed out of a bundle's JSON: the draw follows from commitments and beacon. Raises UserError.

    roots: certificates for time stamps (see timestamp.verify); chain: the beacon's, the pinned one unless told.
    """
    try:
        if isinstance(content, dict) and content.get("format") == legacy.FORMAT:
            return _check_legacy(content, where)
        batches = [DisclosedBatch.model_validate(batch) for batch in content["batches"]]
        if not batches:
            raise KeyError("batches")
    except ValidationError as error:
        raise UserError(f"{where}: its record is not as eval.py writes it: {first_problem(error)}") from None
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{where} shows no record", "get an undamaged copy") from None
    for number, batch in enumerate(batches):
        _check_batch(batch, batches[:number], where)
    found, dates = [], []
    for number, batch in enumerate(batches):
        problems, date = _trust(batch, number, where, roots, chain)
        found += problems
        dates.append(date)
    found += _redraws(batches)
    return Disclosed(
        [batch.commit.digest for batch in batches],
        batches[0].commit.plan,
        [(batch.commit.photos, batch.commit.published) for batch in batches],
        list(dict.fromkeys(found)),
        dates,
        lambda count, audit_seed: selections_of([_drawn(batch) for batch in batches], count, audit_seed),
        grouped=any(batch.commit.groups for batch in batches),
        _order=lambda audit_seed: sequence_of([_drawn(batch)[:3] for batch in batches], audit_seed),
    )


def weaknesses(record, where="the record", roots=None, chain=None):
    """What a verdict on this record will rest on beside answers: sentences, the worst first. UserError for a draw that
    does not follow from its commitments."""
    return check(disclose(record), where, roots, chain).weaknesses


def _drawn(batch):
    randomness = hashlib.sha256(bytes.fromhex(batch.signature)).hexdigest() if batch.signature else ""
    context = draw.context_of(batch.commit.digest, randomness or draw.PRIVATE_RANDOMNESS)
    commit = batch.commit
    return bytes.fromhex(batch.selections_secret), context, commit.photos, commit.published, commit.groups


def _check_batch(batch, before, where):
    commit = batch.commit
    fits = (
        hashlib.sha256(bytes.fromhex(batch.selections_secret)).hexdigest() == commit.selections_sha256
        and batch.originals == sorted(batch.originals)
        and canonical_digest(batch.originals) == commit.originals_sha256
        and len(batch.originals) == commit.photos >= commit.published >= len(batch.marked) >= 1
        and commit.previous == [one.commit.digest for one in before]
        and (not before or (commit.plan, commit.settings) == (before[0].commit.plan, before[0].commit.settings))
        and (batch.signature is None) == (commit.beacon is None)
    )
    if not fits:
        raise UserError(f"{where}: a batch of its record does not fit its commitment", advice="somebody changed it")
    if int(selections_of([_drawn(batch)], 0).sum()) != len(batch.marked):
        raise UserError(f"{where}: a batch published another number of photos than it drew", "somebody changed it")


def _trust(batch, number, where, roots, chain):
    """([sentences], date or None) about the randomness and the date of one batch."""
    commit, found = batch.commit, []
    if not commit.evidence:
        found.append("the secret was drawn from a number, for experiments: this is no evidence")
    if commit.beacon is None:
        found.append(f"{HONEST}: the draw used no public randomness and could have been repeated until it pleased")
    else:
        found += _check_beacon(commit.beacon, batch.signature, where, chain)
    if batch.timestamp is None:
        found.append(
            "the date of the commitment rests on where it was posted: it has to be older than "
            + (f"round {commit.beacon.round} of the beacon ({_time(commit.beacon)})" if commit.beacon else "the photos")
        )
        return found, None
    try:
        stamp = timestamp.verify(base64.b64decode(batch.timestamp, validate=True), commit.digest, roots)
    except (UserError, ValueError) as error:  # a ValueError: no base64
        found.append(f"the time stamp of the commitment can't be relied on ({error})")
        return found, None
    if commit.beacon is not None and stamp.time.timestamp() >= _moment(commit.beacon):
        found.append(
            f"{HONEST}: the commitment was stamped {stamp.time:%Y-%m-%d %H:%M:%S} UTC, after the beacon's round was out"
        )
    return found, stamp


def _moment(named):
    return named.genesis_time + (named.round - 1) * named.period


def _time(named):
    from datetime import datetime, timezone

    return f"{datetime.fromtimestamp(_moment(named), timezone.utc):%Y-%m-%d %H:%M:%S} UTC"


def _check_beacon(named, signature, where, chain):
    chain = chain or beacon.QUICKNET
    if (named.chain, named.public_key, named.genesis_time, named.period) != (
        chain.hash,
        chain.public_key,
        chain.genesis_time,
        chain.period,
    ):
        return [
            f"{HONEST}: the beacon is the chain {named.chain[:16]}..., which this program does not know; give its "
            "public facts with --beacon_chain if you trust it"
        ]
    try:
        beacon.verify(chain, beacon.Round(round=named.round, signature=signature))
    except UserError as error:
        raise UserError(
            f"{where}: its beacon's signature is not that of round {named.round}: {error.problem}"
        ) from None
    return []


def _redraws(batches):
    count = max(len(batch.commit.redrawn) for batch in batches)
    what = "1 earlier draw over this folder was" if count == 1 else f"{count} earlier draws over this folder were"
    return [f"{what} thrown away"] if count else []


def _check_legacy(content, where):
    public = {name: value for name, value in content.items() if name not in ("commitment", "selection_key")}
    checked = legacy.LegacyPublic.model_validate(public)
    key = content.get("selection_key")
    right = (
        isinstance(key, str)
        and len(key) == 64
        and all(letter in "0123456789abcdef" for letter in key)
        and hashlib.sha256(bytes.fromhex(key)).hexdigest() == checked.selection_key_sha256
        and canonical_digest(public) == content.get("commitment")
    )
    if not right or any(batch.published > batch.photos for batch in checked.batches):
        raise UserError(
            f"{where}: the public part of its record does not fit its commitment", advice="somebody changed it"
        )
    found = [f"{HONEST}: {legacy.OLD}"]
    if not checked.evidence:
        found.insert(0, "the secret was drawn from a number, for experiments: this is no evidence")
    return Disclosed(
        [content["commitment"]],
        AuditPlan.usual(any(batch.published < batch.photos for batch in checked.batches)),
        [(batch.photos, batch.published) for batch in checked.batches],
        found,
        [None],
        lambda count, audit_seed: np.asarray(legacy.draw_selections(key, checked.batches, count, audit_seed)),
        True,
    )
