"""From a commitment to a draw: name a future round of the beacon, have the commitment dated, wait for the round, draw.

Public: Public, NO_BEACON, parse_beacon, named_round, date, settle, COMMITMENT_FILE, SECONDS.
"""

import base64
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from kit.errors import UserError
from kit.files import atomic_path
from provenance import beacon, timestamp
from provenance import record as records

COMMITMENT_FILE = "commitment.txt"
SECONDS = 60  # from the commitment to the round that it names: time for a time stamp, and for posting it
# A commitment that is written later than this before its round would prove nothing.
LATEST = 5


@dataclass(frozen=True)
class Public:
    """Where public randomness and a date come from.

    chain: the beacon's `beacon.Chain`, None for none; given: a `beacon.Round` that somebody else fetched; stamp: the
    address of a time-stamping service (RFC 3161) or a file with its token; roots: certificates for it, None for the
    usual ones; seconds: from the commitment to the round that it names.
    """

    chain: beacon.Chain | None = None
    given: beacon.Round | None = None
    stamp: str | None = None
    roots: str | None = None
    seconds: int = SECONDS


NO_BEACON = Public()


def parse_beacon(text, chain_file=None, stamp=None, roots=None):
    """A Public out of --beacon ("drand", "none", a file, or ROUND:SIGNATURE) and its companions. Raises UserError."""
    if text == "none":
        if chain_file:
            raise UserError("--beacon none and --beacon_chain don't go together", advice="leave one out")
        return Public(None, None, stamp, roots)
    chain = beacon.read_chain(chain_file) if chain_file else beacon.QUICKNET
    return Public(chain, None if text == "drand" else beacon.read_round(text), stamp, roots)


def named_round(public, now=None):
    """The future round that a commitment made now shall name: a `record.BeaconRound`, None without a beacon."""
    if public.chain is None:
        return None
    chain, now = public.chain, time.time() if now is None else now
    return records.BeaconRound.of(chain, beacon.future_round(chain, now, public.seconds))


def date(record, public, folder, say, now=None):
    """The record with a time stamp for its last batch's commitment, where one was asked for and there is none yet.

    Also leaves what is to be posted in COMMITMENT_FILE, and says it, once.
    """
    batch, now = record.batches[-1], time.time() if now is None else now
    path = Path(folder) / COMMITMENT_FILE
    text = _to_post(batch)
    if not path.exists() or batch.commitment not in path.read_text():
        if batch.commit.beacon and not batch.drawn and _moment(batch) < now + LATEST:
            raise UserError("the round of the beacon came out before the commitment was written", advice="start again")
        with atomic_path(path) as temporary:
            temporary.write_text((path.read_text() if path.exists() else "") + text)
        say(text)
    if public.stamp is None or batch.timestamp is not None:
        return record
    digest = batch.commitment
    given = public.stamp
    token = (
        timestamp.request(given, digest) if given.startswith(("http://", "https://")) else timestamp.read(given, digest)
    )
    stamp = timestamp.verify(token, digest, public.roots)
    say(f"the commitment is dated {stamp.time:%Y-%m-%d %H:%M:%S} UTC by {stamp.authority}")
    return records.changed_batch(record, timestamp=base64.b64encode(token).decode())


def _moment(batch):
    named = batch.commit.beacon
    return named.genesis_time + (named.round - 1) * named.period


def _to_post(batch):
    named, commit = batch.commit.beacon, batch.commit
    wait = (
        f"drawn by round {named.round} of the beacon {named.chain[:16]}..., which comes out at "
        f"{datetime.fromtimestamp(_moment(batch), timezone.utc):%Y-%m-%d %H:%M:%S} UTC: post it before then"
        if named
        else "drawn without public randomness"
    )
    return f"commitment {batch.commitment}\n{commit.photos} photos, {commit.published} to publish; {wait}\n"


def settle(record, names, public):
    """The record with its last batch drawn, when its round is out. names: see `record.draw_batch`.

    Waits for the round and fetches it, or takes the one that was given. Raises beacon.Unavailable, a UserError, where
    there is no network: the commitment stays, and the same call goes on with the round.
    """
    named = record.batches[-1].commit.beacon
    if named is None:
        return records.draw_batch(record, names)
    chain = public.chain
    if chain is None:
        raise UserError(
            f"the commitment names round {named.round} of a beacon, which can't be taken back",
            advice="wait for it",
            command="leave --beacon none out, or give --overwrite for a new draw, which will be counted",
        )
    if chain.hash != named.chain:
        raise UserError(
            "the commitment names another beacon than --beacon_chain", advice="give the one that it was made with"
        )
    if public.given is None:
        found = beacon.fetch(chain, named.round)
    else:
        found = public.given
        if found.round != named.round:
            raise UserError(
                f"the commitment names round {named.round}, and --beacon has round {found.round}",
                advice=f"fetch round {named.round}",
                flag="--beacon",
            )
        beacon.verify(chain, found)
    return records.draw_batch(record, names, found.signature)
