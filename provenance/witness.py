"""A neutral party's word for the answers: a signed, hash-chained transcript of requests and replies.

Whoever has to be believed (a court's expert, a notary's office) runs the audit from the disclosed record with `eval.py
--witness KEYFILE`. Each batch of questions and answers is bound to those before it by SHA-256 as it arrives, with the
time, and the last link is signed with Ed25519. A replay checks the chain against the bundle's answers and names the
key: whose key that is has to be known from elsewhere.

Public: Transcript, read_key, check, TRANSCRIPT_FILE.
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
from pydantic import Field, ValidationError, model_validator

from kit.errors import UserError
from kit.files import atomic_path
from provenance.record import Digest, Strict, first_problem

TRANSCRIPT_FILE = "transcript.jsonl"
FIRST = "0" * 64


def read_key(path):
    """The Ed25519 private key of a PEM file, which is made where there is none. Raises UserError."""
    path = Path(path)
    if not path.exists():
        key = Ed25519PrivateKey.generate()
        with atomic_path(path) as temporary:
            temporary.write_bytes(
                key.private_bytes(
                    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
                )
            )
            os.chmod(temporary, 0o600)
        path.chmod(0o600)
        return key
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError, OSError) as error:
        raise UserError(f"--witness {path} is no private key ({error})", advice="give an Ed25519 key as PEM") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"--witness {path} is not an Ed25519 key", advice="give one as PEM, or a new name to make one")
    return key


class Entry(Strict):
    """One batch: the number of its first query (in earlier transcripts that of the batch, all being of one size), when
    its replies came, the digest of requests and replies, and the link to what was before.
    """

    first: int | None = Field(None, ge=0)
    batch: int | None = Field(None, ge=0)
    rows: int = Field(ge=1)
    time: str
    content: Digest
    link: Digest

    @model_validator(mode="after")
    def _numbered(self):
        if (self.first is None) == (self.batch is None):
            raise ValueError("an entry has one number, first or batch")
        return self


class Signed(Strict):
    """A transcript with its signature: context binds it to one audit."""

    context: Digest
    entries: list[Entry] = Field(min_length=1)
    public_key: Digest
    signature: str = Field(pattern=r"^[0-9a-f]{128}$")


def content_digest(digests, answers):
    """SHA-256, hex, of the requests' digests and the replies of one batch."""
    parts = [np.ascontiguousarray(digests, np.uint8).tobytes()]
    for array, kind in ((answers.values, "<f4"), (answers.classes, "<i4")):
        parts.append(b"-" if array is None else np.ascontiguousarray(array, kind).tobytes())
    return hashlib.sha256(b"|".join(parts)).hexdigest()


def _link(before, entry):
    number = entry["batch"] if entry.get("first") is None else entry["first"]
    return hashlib.sha256(f"{before}:{number}:{entry['rows']}:{entry['time']}:{entry['content']}".encode()).hexdigest()


def _places(entries):
    """The number of each entry's first query."""
    numbered = [entry["rows"] for entry in entries if entry.get("first") is None]
    # Batches that have numbers are of one size, but for the last.
    size = max(numbered, default=0)
    return [entry["batch"] * size if entry.get("first") is None else entry["first"] for entry in entries]


class Transcript:
    """The transcript of an audit on disk, written as answers arrive. context: hex digest of the plan."""

    def __init__(self, folder, key, context):
        self._path, self._key, self._context = Path(folder) / TRANSCRIPT_FILE, key, context
        self.entries = []
        if self._path.exists():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                try:
                    self.entries.append(Entry.model_validate(json.loads(line)).model_dump(exclude_none=True))
                except (ValueError, ValidationError):
                    break  # a torn last line: its batch is asked again

    def add(self, first, digests, answers):
        """Bind the answers to the queries from number `first` on to those before them."""
        entry = {
            "first": int(first),
            "rows": len(answers),
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "content": content_digest(digests, answers),
        }
        entry["link"] = _link(self.entries[-1]["link"] if self.entries else self._start, entry)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.entries.append(entry)

    def adopt(self, log):
        """Before an audit goes on: answers that the witness has not seen are not taken over.

        One batch may have been answered just before an interruption; it is asked again.
        """
        seen = dict(zip(_places(self.entries), (entry["content"] for entry in self.entries), strict=True))
        unseen = [first for first, kept in log.blocks.items() if seen.get(first) != content_digest(*kept)]
        if len(unseen) > 1 or any(first not in log.blocks for first in seen):
            raise UserError(
                f"{self._path.parent} holds answers that this witness has not seen", advice="choose another --out"
            )
        for first in unseen:
            del log.blocks[first]

    @property
    def _start(self):
        return hashlib.sha256(f"{FIRST}:{self._context}".encode()).hexdigest()

    def sign(self):
        """The signed transcript, JSON-ready."""
        public = self._key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        return {
            "context": self._context,
            "entries": self.entries,
            "public_key": public.hex(),
            "signature": self._key.sign(bytes.fromhex(self.entries[-1]["link"])).hex(),
        }


def check(content, context, digests, answers, where):
    """One line about the witness of a bundle, None where it has none. Raises UserError for a transcript that does not
    fit.

    context: digest of the plan; digests, answers: all that were asked, in the order asked.
    """
    if content is None:
        return None
    try:
        signed = Signed.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{where}: its witness's transcript is damaged: {first_problem(error)}") from None
    before, first, wrong = hashlib.sha256(f"{FIRST}:{context}".encode()).hexdigest(), 0, signed.context != context
    entries = [entry.model_dump() for entry in signed.entries]
    for place, entry in sorted(zip(_places(entries), entries, strict=True), key=lambda pair: pair[0]):
        part = slice(first, first + entry["rows"])
        wrong |= place != first or entry["content"] != content_digest(digests[part], answers.rows(part))
        first += entry["rows"]
    for entry in entries:
        wrong |= entry["link"] != _link(before, entry)
        before = entry["link"]
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
