"""Answers kept as they arrive, and the evidence bundle from which p can be recomputed without the model.

An audit's folder has audit.json (what was asked, of which model) and answers.bin: one framed block for each batch of
queries, appended and synced when it comes. A torn last block is dropped and asked again, an answered one never is.
The bundle evidence.zip has bundle.json (public part of the record, commitment, the selections' key, model, versions,
result) and answers.npz (order, SHA-256 of every image that was sent, answers). The key of the marks is not in it.

Public: AnswerLog, write_bundle, read_bundle, check_document, BUNDLE_FORMAT.
"""

import hashlib
import io
import json
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from provenance.record import canonical_digest
from provenance.suspect import Answers
from provenance.verdict import AUTO
from runs import UserError, atomic_path, check_same_settings, read_json, write_json

BUNDLE_FORMAT = "membershiptracker-evidence-1"
MAX_BUNDLE_BYTES = 2 << 30
MAX_CLASSES = 1 << 20
_HEAD = struct.Struct("<4sIIIII")  # magic, batch number, images, values a row, classes a row, CRC-32 of the body
_MAGIC = b"MTA1"


class AnswerLog:
    """The answers of one audit, by batch number, on disk.

    settings: a flat dict that says what is asked of whom; a folder with other settings is refused by name, so that
    answers of two models or keys can't mix.
    """

    def __init__(self, folder, settings):
        folder = Path(folder)
        self.path, self._settings_path = folder / "answers.bin", folder / "audit.json"
        if self._settings_path.exists():
            check_same_settings(read_json(self._settings_path), settings, folder,
                                hint="Ask the same, or choose another --out")
        elif self.path.exists():
            raise UserError(f"{self.path} has no audit.json beside it; delete it or choose another --out")
        self.blocks = self._read() if self.path.exists() else {}
        folder.mkdir(parents=True, exist_ok=True)
        write_json(self._settings_path, settings)

    def _read(self):
        blocks, end = {}, 0
        content = self.path.read_bytes()
        while len(content) - end >= _HEAD.size:
            magic, batch, rows, values, classes, checksum = _HEAD.unpack_from(content, end)
            size = rows * (32 + 4 * values + 4 * classes)
            body = content[end + _HEAD.size:end + _HEAD.size + size]
            if magic != _MAGIC or len(body) != size or zlib.crc32(body) != checksum:
                break
            blocks[batch] = _unpack(body, rows, values, classes)
            end += _HEAD.size + size
        if end < len(content):
            # What a kill tore off. Everything before it has been checked and stays.
            with open(self.path, "r+b") as file:
                file.truncate(end)
        return blocks

    def add(self, batch, digests, answers):
        """Append the answers of a batch: digests uint8 (n, 32), `Answers` of n rows. On disk when this returns."""
        values, classes = answers.values, answers.classes
        body = b"".join([np.ascontiguousarray(digests, dtype=np.uint8).tobytes(),
                         b"" if values is None else np.ascontiguousarray(values, dtype="<f4").tobytes(),
                         b"" if classes is None else np.ascontiguousarray(classes, dtype="<i4").tobytes()])
        head = _HEAD.pack(_MAGIC, batch, len(answers), 0 if values is None else values.shape[1],
                          0 if classes is None else classes.shape[1], zlib.crc32(body))
        with open(self.path, "ab") as file:
            start = file.tell()
            try:
                file.write(head + body)
                file.flush()
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(start)
                raise
        self.blocks[batch] = (digests, answers)

    def collect(self):
        """All answers in the order of their batches: (digests uint8 (N, 32), Answers)."""
        ordered = [self.blocks[batch] for batch in sorted(self.blocks)]
        digests = np.concatenate([digests for digests, _ in ordered])
        shapes = {tuple(None if array is None else array.shape[1] for array in (answers.values, answers.classes))
                  for _, answers in ordered}
        if len(shapes) > 1:
            raise UserError(f"the model answered in different shapes ({sorted(map(str, shapes))}); it can't be audited")
        values, classes = ([getattr(answers, name) for _, answers in ordered] for name in ("values", "classes"))
        return digests, Answers(*(None if parts[0] is None else np.concatenate(parts) for parts in (values, classes)))


def _unpack(body, rows, values, classes):
    digests = np.frombuffer(body, np.uint8, rows * 32).reshape(rows, 32)
    numbers = np.frombuffer(body, "<f4", rows * values, rows * 32).reshape(rows, values) if values else None
    named = np.frombuffer(body, "<i4", rows * classes, rows * (32 + 4 * values)).reshape(rows, classes) \
        if classes else None
    return digests, Answers(numbers, named)


def write_bundle(path, document, order, digests, answers):
    """Write evidence.zip: `document` (JSON-ready), the order of the queries, their digests and their answers."""
    arrays = {"order": order.astype(np.int64), "digests": digests}
    arrays |= {name: getattr(answers, name) for name in ("values", "classes") if getattr(answers, name) is not None}
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    members = {"bundle.json": (json.dumps({"format": BUNDLE_FORMAT, **document}, indent=2, allow_nan=False,
                                          ensure_ascii=False) + "\n").encode(),
               "answers.npz": content.getvalue()}
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)  # no clock: same audit, same bytes


def read_bundle(path):
    """Read a bundle: (document, order, digests, Answers). Raises UserError for anything that is not one."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"evidence bundle {path} does not exist; eval.py writes it as evidence.zip")
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > MAX_BUNDLE_BYTES:
                raise ValueError("it unpacks to more than 2 GB")
            document = json.loads(archive.read("bundle.json"))
            with np.load(io.BytesIO(archive.read("answers.npz")), allow_pickle=False) as arrays:
                sizes = sum(_claimed_bytes(arrays, name) for name in arrays.files)
                if sizes > MAX_BUNDLE_BYTES:
                    raise ValueError("its arrays claim more than 2 GB")
                arrays = {name: arrays[name] for name in arrays.files}
        if document.get("format") != BUNDLE_FORMAT:
            raise ValueError(f"it has no {BUNDLE_FORMAT} inside")
        answers = Answers(arrays.get("values"), arrays.get("classes"))
        order, digests = arrays["order"], arrays["digests"]
        if not (order.shape == (len(answers),) and digests.shape == (len(answers), 32)
                and np.array_equal(np.sort(order), np.arange(len(answers)))):
            raise ValueError("its arrays don't fit together")
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, OSError, RuntimeError, RecursionError,
            NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is not an evidence bundle of eval.py ({error}); get an undamaged copy") from None
    return document, order, digests, answers


def _claimed_bytes(arrays, name):
    return arrays.zip.getinfo(f"{name}.npy").file_size


def check_document(document, where):
    """(public part of the record, audit settings) of a bundle whose commitment and selection key fit. UserError."""
    try:
        public, audit, secret = document["record"], document["audit"], bytes.fromhex(document["selection_key"])
        sound = (canonical_digest(public) == document["commitment"]
                 and hashlib.sha256(secret).hexdigest() == public["selection_key_sha256"])
        sizes = [(int(batch["photos"]), int(batch["published"])) for batch in public["batches"]]
        numbers = [int(audit[name]) for name in ("keys", "selections")]
        label = audit["label"]
        complete = {"alpha", "audit_seed", "label_only", "top_k"} <= set(audit) \
            and (label == AUTO or (isinstance(label, int) and 0 <= label < MAX_CLASSES)) \
            and all(0 < published <= photos for photos, published in sizes) and min(numbers) >= 0
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{where} lacks something that a bundle of eval.py has ({error}); get an undamaged copy"
                        ) from None
    if not sound:
        raise UserError(f"{where}: the public part of its record does not fit its commitment; somebody changed it")
    photos = sum(total for total, _ in sizes)
    if not complete or photos * (numbers[1] + 1) > MAX_BUNDLE_BYTES:
        raise UserError(f"{where} has audit settings that can't be; get an undamaged copy")
    return public, audit
