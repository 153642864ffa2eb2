"""A neutral party's word for the answers: a signed, hash-chained transcript of requests and replies.

Whoever has to be believed (a court's expert, a notary's office) runs the audit from the disclosed record with `eval.py
--witness KEYFILE`. Each batch of questions and answers is bound to those before it by SHA-256 as it arrives, with the
time, and each link is signed with Ed25519: a folder that somebody else has filled is not taken over. The chain begins
with the plan, the class that is looked at and the order of the questions, without which answers mean nothing. A replay
checks the chain against the bundle's answers and names the key: whose key that is has to be known from elsewhere.

Public: Transcript, read_key, context_of, check, TRANSCRIPT_FILE.
"""

import hashlib
import json
import os
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import Field, ValidationError

from kit.errors import UserError
from kit.files import canonical_digest
from provenance.record import Digest, Strict, first_problem

TRANSCRIPT_FILE = "transcript.jsonl"
FIRST = "0" * 64


def read_key(path):
    """The Ed25519 private key of a PEM file, which is made where there is none. Raises UserError."""
    path = Path(path)
    if not path.exists():
        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        # Never readable by others, not even for a moment.
        with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(pem)
        return key
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError, OSError) as error:
        raise UserError(f"--witness {path} is no private key ({error})", advice="give an Ed25519 key as PEM") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"--witness {path} is not an Ed25519 key", advice="give one as PEM, or a new name to make one")
    return key


class Entry(Strict):
    """One batch: the number of its first query, when its replies came, the digest of requests and replies, and the link
    to what was before.
    """

    first: int = Field(ge=0)
    rows: int = Field(ge=1)
    time: str = Field(pattern=r"^[0-9T:.+-]{19,40}$")
    content: Digest
    link: Digest


class Signed(Strict):
    """A transcript with the signature of its last link: context binds it to one audit (see `context_of`)."""

    context: Digest
    entries: list[Entry] = Field(min_length=1)
    public_key: Digest
    signature: str = Field(pattern=r"^[0-9a-f]{128}$")


def content_digest(digests, answers):
    """SHA-256, hex, of the requests' digests and the replies of one batch."""
    parts = [np.ascontiguousarray(digests, np.uint8).tobytes()]
    for array, kind in ((answers.values, "<f4"), (answers.classes, "<i4")):
        parts.append(b"-" if array is None else np.ascontiguousarray(array, kind).tobytes())
    if answers.scores is not None:  # transcripts of classes have the digests that they had before there were scores
        parts.append(np.ascontiguousarray(answers.scores, "<f4").tobytes())
    return hashlib.sha256(b"|".join(parts)).hexdigest()


def _scores_digest(scores):
    shape = np.asarray(scores.shape, dtype="<i8").tobytes()
    return hashlib.sha256(shape + np.ascontiguousarray(scores, "<f4").tobytes()).hexdigest()


def _start(context):
    return hashlib.sha256(f"{FIRST}:{context}".encode()).hexdigest()


def _link(before, entry):
    return hashlib.sha256(
        f"{before}:{entry['first']}:{entry['rows']}:{entry['time']}:{entry['content']}".encode()
    ).hexdigest()


def context_of(plan, label, order, references=None):
    """What a transcript begins with, hex: the plan's digest, the label (class number or AUTO), the questions' order
    (all of it, or its SHA-256, hex), and the references' scores, float32 (R, n, L + 1), where there are any."""
    asked = (
        order if isinstance(order, str) else hashlib.sha256(np.ascontiguousarray(order, "<i8").tobytes()).hexdigest()
    )
    beside = [] if references is None or not len(references) else [_scores_digest(references)]
    return canonical_digest([plan, label, asked, *beside])


class Transcript:
    """The transcript of an audit on disk, written and signed as answers arrive. context: of `context_of`.

    Raises UserError for a folder with a transcript that this key did not sign for this audit.
    """

    def __init__(self, folder, key, context):
        self._path, self._key, self._context = Path(folder) / TRANSCRIPT_FILE, key, context
        self.entries = []
        if self._path.exists():
            self._read()

    def _read(self):
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        for line in whole.splitlines():
            try:
                stored = json.loads(line)
                signature = bytes.fromhex(stored.pop("signature"))
                entry = Entry.model_validate(stored).model_dump()
                if entry["link"] != _link(self._last, entry):
                    raise ValueError("another audit's")
                self._key.public_key().verify(signature, bytes.fromhex(entry["link"]))
            except (ValueError, KeyError, TypeError, AttributeError, InvalidSignature, RecursionError):
                raise UserError(
                    f"{self._path} is not what this witness wrote in this audit", advice="choose another --out"
                ) from None
            self.entries.append(entry)
        if len(whole) < len(content):
            # What an interruption tore off: its batch is asked again.
            with open(self._path, "r+b") as file:
                file.truncate(len(whole))

    def add(self, first, digests, answers):
        """Bind the answers to the queries from number `first` on to those before them."""
        entry = {
            "first": int(first),
            "rows": len(answers),
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "content": content_digest(digests, answers),
        }
        entry["link"] = _link(self._last, entry)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps({**entry, "signature": self._signature(entry["link"])}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.entries.append(entry)

    def adopt(self, log):
        """Before an audit goes on: answers that the witness has not seen are not taken over.

        One batch may have been answered just before an interruption; it is asked again.
        """
        kept = {first: content_digest(*block) for first, block in log.blocks.items()}
        unseen = kept.keys() - {entry["first"] for entry in self.entries}
        if len(unseen) > 1 or any(kept.get(entry["first"]) != entry["content"] for entry in self.entries):
            raise UserError(
                f"{self._path.parent} holds answers that this witness has not seen", advice="choose another --out"
            )
        for first in unseen:
            del log.blocks[first]

    @property
    def _last(self):
        return self.entries[-1]["link"] if self.entries else _start(self._context)

    def _signature(self, link):
        return self._key.sign(bytes.fromhex(link)).hex()

    def sign(self, count=None):
        """The signed transcript, JSON-ready. count: of the first so many queries, which were answered before the
        others; None for all."""
        entries = self.entries if count is None else [entry for entry in self.entries if entry["first"] < count]
        public = self._key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        return {
            "context": self._context,
            "entries": entries,
            "public_key": public.hex(),
            "signature": self._signature(entries[-1]["link"]),
        }


def check(content, context, digests, answers, where):
    """One line about the witness of a bundle, None where it has none. Raises UserError for a transcript that does not
    fit.

    context: of `context_of`; digests, answers: all that were asked, in the order asked.
    """
    if content is None:
        return None
    try:
        signed = Signed.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{where}: its witness's transcript is damaged: {first_problem(error)}") from None
    before, first, wrong = _start(context), 0, signed.context != context
    for entry in sorted(signed.entries, key=lambda entry: entry.first):
        part = slice(first, first + entry.rows)
        wrong |= entry.first != first or entry.content != content_digest(digests[part], answers.rows(part))
        first += entry.rows
    for entry in signed.entries:
        wrong |= entry.link != _link(before, entry.model_dump())
        before = entry.link
    if wrong or first != len(answers):
        raise UserError(f"{where}: its answers are not those that its witness saw", advice="somebody changed them")
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(signed.public_key)).verify(
            bytes.fromhex(signed.signature), bytes.fromhex(before)
        )
    except InvalidSignature:
        raise UserError(f"{where}: the signature of its witness is wrong", advice="somebody changed it") from None
    return (
        f"{len(answers)} requests and replies, {signed.entries[0].time[:19]} to {signed.entries[-1].time[:19]} UTC, "
        f"signed by the key {signed.public_key}"
    )
