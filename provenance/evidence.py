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
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kit.errors import UserError
from kit.files import atomic_path, canonical_digest, check_same_settings, read_json, write_json
from suspects.suspect import Answers

BUNDLE_FORMAT = "membershiptracker-evidence-1"
MAX_BUNDLE_BYTES = 2 << 30
MAX_CLASSES = 1 << 20
_HEAD = struct.Struct("<4sIIII")  # magic, batch number, images, values a row, classes a row; a CRC-32 of all follows
_CHECK = struct.Struct("<I")
_MAGIC = b"MTA2"


class AnswerLog:
    """The answers of one audit, by batch number, on disk.

    settings: a flat dict that says what is asked of whom; a folder with other settings is refused by name, so that
    answers of two models or keys can't mix.
    """

    def __init__(self, folder, settings):
        folder = Path(folder)
        self.path, self._settings_path = folder / "answers.bin", folder / "audit.json"
        if self._settings_path.exists():
            check_same_settings(
                read_json(self._settings_path),
                settings,
                folder,
                advice="ask the same",
                command="or choose another --out",
            )
        elif self.path.exists():
            raise UserError(f"{self.path} has no audit.json beside it", advice="delete it or choose another --out")
        self.blocks = self._read() if self.path.exists() else {}
        folder.mkdir(parents=True, exist_ok=True)
        write_json(self._settings_path, settings)

    def _read(self):
        blocks, end = {}, 0
        content = self.path.read_bytes()
        while len(content) - end >= _HEAD.size:
            magic, batch, rows, values, classes = _HEAD.unpack_from(content, end)
            stop = end + _HEAD.size + rows * (32 + 4 * values + 4 * classes)
            if magic != _MAGIC or content[stop : stop + _CHECK.size] != _CHECK.pack(zlib.crc32(content[end:stop])):
                break
            blocks[batch] = _unpack(content[end + _HEAD.size : stop], rows, values, classes)
            end = stop + _CHECK.size
        if end < len(content):
            # What a kill tore off. Everything before it has been checked and stays.
            with open(self.path, "r+b") as file:
                file.truncate(end)
        return blocks

    def add(self, batch, digests, answers):
        """Append the answers of a batch: digests uint8 (n, 32), `Answers` of n rows. On disk when this returns."""
        values, classes = answers.values, answers.classes
        block = b"".join(
            [
                _HEAD.pack(
                    _MAGIC,
                    batch,
                    len(answers),
                    0 if values is None else values.shape[1],
                    0 if classes is None else classes.shape[1],
                ),
                np.ascontiguousarray(digests, dtype=np.uint8).tobytes(),
                b"" if values is None else np.ascontiguousarray(values, dtype="<f4").tobytes(),
                b"" if classes is None else np.ascontiguousarray(classes, dtype="<i4").tobytes(),
            ]
        )
        with open(self.path, "ab") as file:
            start = file.tell()
            try:
                file.write(block + _CHECK.pack(zlib.crc32(block)))
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
        shapes = {
            tuple(None if array is None else array.shape[1] for array in (answers.values, answers.classes))
            for _, answers in ordered
        }
        if len(shapes) > 1:
            raise UserError(
                f"the model answered in different shapes ({sorted(map(str, shapes))})", advice="it can't be audited"
            )
        values, classes = ([getattr(answers, name) for _, answers in ordered] for name in ("values", "classes"))
        return digests, Answers(*(None if parts[0] is None else np.concatenate(parts) for parts in (values, classes)))


def _unpack(body, rows, values, classes):
    digests = np.frombuffer(body, np.uint8, rows * 32).reshape(rows, 32)
    numbers = np.frombuffer(body, "<f4", rows * values, rows * 32).reshape(rows, values) if values else None
    named = (
        np.frombuffer(body, "<i4", rows * classes, rows * (32 + 4 * values)).reshape(rows, classes) if classes else None
    )
    return digests, Answers(numbers, named)


def write_bundle(path, document, order, digests, answers):
    """Write evidence.zip: `document` (JSON-ready), the order of the queries, their digests and their answers."""
    arrays = {"order": order.astype(np.int64), "digests": digests}
    arrays |= {name: getattr(answers, name) for name in ("values", "classes") if getattr(answers, name) is not None}
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    members = {
        "bundle.json": (
            json.dumps({"format": BUNDLE_FORMAT, **document}, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
        ).encode(),
        "answers.npz": content.getvalue(),
    }
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)  # no clock: same audit, same bytes


def read_bundle(path):
    """Read a bundle: (document, order, digests, Answers). Raises UserError for anything that is not one."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"evidence bundle {path} does not exist", advice="eval.py writes it as evidence.zip")
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
        answers, order, digests = _checked_arrays(arrays)
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        EOFError,
        OSError,
        RuntimeError,
        RecursionError,
        NotImplementedError,
        MemoryError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise UserError(
            f"{path} is not an evidence bundle of eval.py ({error})", advice="get an undamaged copy"
        ) from None
    return document, order, digests, answers


def _claimed_bytes(arrays, name):
    return arrays.zip.getinfo(f"{name}.npy").file_size


def _checked_arrays(arrays):
    """(Answers, order, digests) of a bundle's arrays. ValueError for what eval.py would not have written."""
    order, digests = arrays["order"], arrays["digests"]
    values, classes = arrays.get("values"), arrays.get("classes")
    answers = Answers(values, classes)
    if values is not None and (values.dtype != np.float32 or 0 in values.shape or not np.isfinite(values).all()):
        raise ValueError("its answers are not finite float32 numbers")
    if classes is not None and (
        classes.dtype != np.int32 or 0 in classes.shape or not -1 <= classes.min() <= classes.max() < MAX_CLASSES
    ):
        raise ValueError("its classes are not class numbers")
    if (
        order.dtype != np.int64
        or order.shape != (len(answers),)
        or digests.dtype != np.uint8
        or digests.shape != (len(answers), 32)
        or not np.array_equal(np.sort(order), np.arange(len(answers)))
    ):
        raise ValueError("its arrays don't fit together")
    return answers, order, digests


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _Batch(_Part):
    photos: int = Field(ge=1)
    published: int = Field(ge=1)


class _Public(_Part):
    batches: list[_Batch] = Field(min_length=1)
    selection_key_sha256: str


class _Audit(_Part):
    keys: int = Field(ge=0)
    selections: int = Field(ge=0)
    alpha: float = Field(gt=0, le=0.5)
    audit_seed: str
    label: Literal["auto"] | Annotated[int, Field(ge=0, lt=MAX_CLASSES)]
    label_only: bool
    top_k: Annotated[int, Field(ge=1)] | None


class _Document(_Part):
    record: _Public
    commitment: str
    selection_key: str = Field(pattern="^[0-9a-f]{64}$")
    audit: _Audit
    classes: Annotated[int, Field(ge=1, lt=MAX_CLASSES)] | None
    model: dict
    preprocessing: dict
    result: dict


def check_document(document, answers, where):
    """(public part of the record, audit settings) of a bundle whose commitment, selection key and sizes fit. UserError.

    answers: how many the bundle has.
    """
    try:
        checked = _Document.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{where} is not as eval.py writes it: {'.'.join(map(str, first['loc']))}: {first['msg']}",
            advice="get an undamaged copy",
        ) from None
    public, secret = document["record"], bytes.fromhex(checked.selection_key)
    if (
        canonical_digest(public) != checked.commitment
        or hashlib.sha256(secret).hexdigest() != checked.record.selection_key_sha256
    ):
        raise UserError(
            f"{where}: the public part of its record does not fit its commitment", advice="somebody changed it"
        )
    photos = sum(batch.photos for batch in checked.record.batches)
    if (
        photos * (checked.audit.keys + 1) != answers
        or photos * (checked.audit.selections + 1) > MAX_BUNDLE_BYTES
        or any(batch.published > batch.photos for batch in checked.record.batches)
    ):
        raise UserError(
            f"{where}: its {answers} answers are not those of {photos} photos and {checked.audit.keys} keys",
            advice="somebody changed it",
        )
    return public, document["audit"]
