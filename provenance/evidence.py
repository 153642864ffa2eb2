"""Answers kept as they arrive, and the evidence bundle from which p can be recomputed without the model.

An audit's folder has audit.json (what was asked, of which model) and answers.bin: one framed block for each batch of
queries, appended and synced when it comes, in whatever order and of whatever size. A torn last block is dropped and
asked again, an answered one never is. The bundle evidence.zip has bundle.json (what is disclosed of the record, the
judgement and the log of all judgements, model, versions, result, the witness's transcript) and answers.npz (order,
SHA-256 of every image that was sent, answers). The secret of the marks is not in it.

Public: AnswerLog, write_bundle, read_bundle, check_document, Checked, preprocessing_of, audit_weaknesses,
reference_weaknesses, BUNDLE_FORMAT, ANSWER_FILE.
"""

import io
import json
import os
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from attacks.exact import AUTO, LARGEST
from kit.errors import UserError
from kit.files import atomic_path, check_same_settings, read_json, write_json
from provenance import disclosed, judgements
from provenance.plan import STATISTICS, AuditPlan, departures, same_statistic, unpriced
from provenance.record import first_problem
from suspects.suspect import Answers, Preprocessing, joined

BUNDLE_FORMAT, EARLY_FORMAT = "membershiptracker-evidence-2", "membershiptracker-evidence-1"
ANSWER_FILE = "answers.bin"
MAX_BUNDLE_BYTES = 2 << 30
MAX_CLASSES = 1 << 20
NO_REFERENCES = np.zeros((0, 0, 0), np.float32)
_HEAD = struct.Struct("<4sIIII")  # magic, first query, images, values a row, classes a row; a CRC-32 of all follows
_CHECK = struct.Struct("<I")
# Of classes, and of scores; earlier blocks, all of one size, have the number of the batch instead of the query's.
_MAGIC, _SCORES, _BATCHES = b"MTA3", b"MTS3", b"MTA2"


class AnswerLog:
    """The answers of one audit on disk: blocks = {number of its first query: (digests, Answers)}.

    settings: a flat dict that says what is asked of whom; a folder with other settings is refused by name, so that
    answers of two models or keys can't mix. How many images are asked about at once is none of them.
    """

    def __init__(self, folder, settings):
        folder = Path(folder)
        self.path, self._settings_path = folder / ANSWER_FILE, folder / "audit.json"
        if self._settings_path.exists():
            stored = read_json(self._settings_path)
            stored.pop("batch_size", None)  # was one once
            check_same_settings(
                stored,
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
        blocks, end, batch_size = {}, 0, None
        content = self.path.read_bytes()
        while len(content) - end >= _HEAD.size:
            magic, first, rows, values, classes = _HEAD.unpack_from(content, end)
            stop = end + _HEAD.size + rows * (32 + 4 * values + 4 * classes)
            if magic not in (_MAGIC, _SCORES, _BATCHES) or content[stop : stop + _CHECK.size] != _CHECK.pack(
                zlib.crc32(content[end:stop])
            ):
                break
            if magic == _BATCHES:
                batch_size = batch_size or rows  # the first of all is a full one
                first *= batch_size
            blocks.pop(first, None)  # the order is that in which they came
            blocks[first] = _unpack(content[end + _HEAD.size : stop], rows, values, classes, magic == _SCORES)
            end = stop + _CHECK.size
        if end < len(content):
            # What a kill tore off. Everything before it has been checked and stays.
            with open(self.path, "r+b") as file:
                file.truncate(end)
        return blocks

    def add(self, first, digests, answers):
        """Append the answers to the queries from number `first` on: digests uint8 (n, 32), `Answers` of n rows. On disk
        when this returns."""
        values, classes, scores = answers.arrays
        values = values if scores is None else scores
        block = b"".join(
            [
                _HEAD.pack(
                    _MAGIC if scores is None else _SCORES,
                    first,
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
        self.blocks[first] = (digests, answers)

    def drop_replaced(self):
        """Forget blocks that later ones overlap: what was asked again, in batches of another size."""
        ends = [first + len(answers) for first, (_, answers) in self.blocks.items()]
        covered = np.zeros(max(ends, default=0), dtype=bool)
        for first, (_, answers) in reversed(list(self.blocks.items())):
            part = covered[first : first + len(answers)]
            if part.any():
                del self.blocks[first]
            part[:] = True

    def gaps(self, count):
        """The queries of 0..count - 1 without an answer: [(first, one behind the last), ...]."""
        found, place = [], 0
        for first in [*sorted(self.blocks), count]:
            if first > place:
                found.append((place, first))
            place = max(place, first + (len(self.blocks[first][1]) if first in self.blocks else 0))
        return found

    def collect(self):
        """All answers in the order of the queries: (digests uint8 (N, 32), Answers)."""
        ordered = [self.blocks[first] for first in sorted(self.blocks)]
        digests = np.concatenate([digests for digests, _ in ordered])
        return digests, joined([answers for _, answers in ordered])


def _unpack(body, rows, values, classes, scores=False):
    digests = np.frombuffer(body, np.uint8, rows * 32).reshape(rows, 32)
    numbers = np.frombuffer(body, "<f4", rows * values, rows * 32).reshape(rows, values) if values else None
    named = (
        np.frombuffer(body, "<i4", rows * classes, rows * (32 + 4 * values)).reshape(rows, classes) if classes else None
    )
    return digests, Answers(None, None, numbers) if scores else Answers(numbers, named)


def write_bundle(path, document, order, digests, answers, references=None):
    """Write evidence.zip: `document` (JSON-ready), the order of the queries, their digests and their answers, and the
    scores of references, float32 (R, n, L + 1), where there are any."""
    arrays = {"order": order.astype(np.int64), "digests": digests}
    names = ("values", "classes", "scores")
    arrays |= {name: array for name, array in zip(names, answers.arrays, strict=True) if array is not None}
    if references is not None and len(references):
        arrays["references"] = references
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
    """Read a bundle: (document, order, digests, Answers, scores of its references). Raises UserError for anything that
    is not one."""
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
        if document.get("format") == EARLY_FORMAT:
            document = early_document(document)
        elif document.get("format") != BUNDLE_FORMAT:
            raise ValueError(f"it has no {BUNDLE_FORMAT} inside")
        answers, order, digests = _checked_arrays(arrays, document.get("sequential") is not None)
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
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
    return document, order, digests, answers, arrays.get("references", NO_REFERENCES)


def early_document(document):
    """The document of a bundle of a version before 0.2 in today's form. Raises what damaged ones raise."""
    audit = document["audit"]
    chosen = {"label only": audit["label_only"], "top k": audit["top_k"] is not None}
    plan = AuditPlan(
        label=str(audit["label"]),
        answers=next((name for name, is_so in chosen.items() if is_so), "as given"),
        statistic=STATISTICS[0],
        views=1,
        **{name: audit[name] for name in ("top_k", "keys", "selections", "alpha", "audit_seed")},
    )
    judgement = judgements.Judgement(
        begun=document["record"]["batches"][-1]["created"],
        commitments=[document["commitment"]],
        plan=plan,
        model=document["model"],
        preprocessing="",
        asking=1,
        number=1,
        departures=[],
        alpha=judgements.share_of_alpha(plan, plan, 1, 1),
        previous=judgements.NOTHING,
    ).model_dump(mode="json")
    return {
        "record": {
            **document["record"],
            "commitment": document["commitment"],
            "selection_key": document["selection_key"],
        },
        "judgement": judgement,
        "log": [judgement],
        "label": audit["label"],
        "class_name": None,
        "publications": [],
        **{name: document[name] for name in ("classes", "model", "preprocessing", "result")},
    }


def _claimed_bytes(arrays, name):
    return arrays.zip.getinfo(f"{name}.npy").file_size


def _checked_arrays(arrays, sequential=False):
    """(Answers, order, digests) of a bundle's arrays. ValueError for what eval.py would not have written. sequential:
    whether only some of the queries may have been asked."""
    order, digests = arrays["order"], arrays["digests"]
    values, classes = arrays.get("values"), arrays.get("classes")
    answers = Answers(values, classes, arrays.get("scores"))
    for numbers in (values, answers.scores):
        if numbers is not None and (
            numbers.dtype != np.float32 or 0 in numbers.shape or not np.isfinite(numbers[~answers.missing]).all()
        ):
            raise ValueError("its answers are not finite float32 numbers")
    if classes is not None and (
        classes.dtype != np.int32 or 0 in classes.shape or not -1 <= classes.min() <= classes.max() < MAX_CLASSES
    ):
        raise ValueError("its classes are not class numbers")
    if classes is not None and 8 * len(classes) * int(classes.max() + 1) > MAX_BUNDLE_BYTES:
        raise ValueError("its classes would fill the memory")
    if (
        order.dtype != np.int64
        or order.shape != (len(answers),)
        or digests.dtype != np.uint8
        or digests.shape != (len(answers), 32)
        or not (sequential or np.array_equal(np.sort(order), np.arange(len(answers))))
    ):
        raise ValueError("its arrays don't fit together")
    return answers, order, digests


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


_FormKey = Literal["input", "datatype", "layout", "output", "from"]
_Three = Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=3, max_length=3)]


class _Preprocessing(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    size: Annotated[list[Annotated[int, Field(ge=1, le=4096)]], Field(min_length=2, max_length=2)]
    resize: Annotated[int, Field(ge=1, le=8192)] | None
    mean: _Three
    std: _Three
    white: Literal[1.0, 255.0]
    interpolation: str
    source: Annotated[str, Field(max_length=1000)]
    form: Annotated[dict[_FormKey, str], Field(min_length=5)] | None = None
    squash: bool = False


class _Reference(_Part):
    model_config = ConfigDict(strict=True, extra="forbid")

    digest: str
    name: Annotated[str, Field(max_length=1000)]
    model: dict
    label: Literal["auto"] | Annotated[int, Field(ge=0, lt=MAX_CLASSES)]
    preprocessing: Annotated[str, Field(max_length=2000)]


class _Sequential(_Part):
    model_config = ConfigDict(strict=True, extra="forbid")

    room: Annotated[int, Field(ge=1)] | None
    order_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Document(_Part):
    record: dict
    judgement: dict
    log: list
    label: Literal["auto"] | Annotated[int, Field(ge=0, lt=MAX_CLASSES)]
    class_name: str | None
    classes: Annotated[int, Field(ge=1, lt=MAX_CLASSES)] | None
    model: dict
    preprocessing: _Preprocessing
    publications: list[str]
    references: list[_Reference] = []
    sequential: _Sequential | None = None
    result: dict


@dataclass(frozen=True)
class Checked:
    """What a bundle's document says, checked: the record as far as it is disclosed, the judgement, the log, the
    label as a class number or AUTO, how photos became the model's input, and what the verdict rests on beside the
    answers (sentences).
    """

    record: disclosed.Disclosed
    judgement: judgements.Judgement
    log: list
    label: int | str
    preprocessing: Preprocessing
    weaknesses: list

    @property
    def asked(self):
        """The AuditPlan as far as this model was asked."""
        return self.judgement.plan.asked(self.judgement.model)

    @property
    def by_name(self):
        """Whether the plan has the class by its name, so that its number is the model's word."""
        name = self.judgement.plan.label
        return self.label != AUTO and not (name.isdecimal() and int(name) == self.label)


def preprocessing_of(content):
    """The Preprocessing in a bundle's document. Raises UserError."""
    return Preprocessing(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}
    )


def check_document(document, answers, where, roots=None, chain=None, references=NO_REFERENCES):
    """The Checked document of a bundle whose commitments, draw, plan and sizes fit together. Raises UserError.

    answers: the bundle's Answers; roots, chain: see `disclosed.check`; references: the scores of its references.
    """
    try:
        checked = _Document.model_validate(document)
    except ValidationError as error:
        raise UserError(
            f"{where} is not as eval.py writes it: {first_problem(error)}", advice="get an undamaged copy"
        ) from None
    record = disclosed.check(checked.record, where, roots, chain)
    log = judgements.check_log(checked.log, where)
    (judgement,) = judgements.check_log([{**checked.judgement, "previous": judgements.NOTHING}], where, alone=True)
    stated, judgement = judgement, next((entry for entry in log if entry.same_as(judgement)), None)
    if judgement is None or judgement.digest != stated.model_copy(update={"previous": judgement.previous}).digest:
        raise UserError(f"{where}: its judgement is not in its log", advice="somebody changed it")
    total, preprocessing = sum(photos for photos, _ in record.sizes), preprocessing_of(document["preprocessing"])
    plan, photos = judgement.plan, total - len(set(judgement.left_out))
    asked = plan.asked(judgement.model)
    # Nothing was committed for an early record, so that there is nothing to depart from.
    committed = plan if record.early else record.plan
    departs, factor = departures(committed, plan, checked.classes)
    auto, name = AUTO in (plan.label, checked.label), checked.class_name
    scored = answers.scores is not None
    fits = {
        "its commitments": judgement.commitments[-len(record.commitments) :] == record.commitments
        and (record.early or len(judgement.commitments) == len(record.commitments)),
        "the model": judgement.model == checked.model
        and checked.model.get("classes", checked.classes) in (None, checked.classes),
        "how photos became the model's input": record.early or judgement.preprocessing == preprocessing.describe(),
        "alpha": judgement.alpha == judgements.share_of_alpha(plan, committed, judgement.number, factor)
        and judgement.departures == departs,
        "its statistic": same_statistic(committed, plan),
        "its references": [entry.digest for entry in checked.references] == plan.references
        and all(entry.model.get("sha256", entry.digest) == entry.digest for entry in checked.references)
        and _are_scores(references, asked, photos),
        "its second test": plan.plain_arm == committed.plain_arm,
        "the label": (checked.label, checked.classes) == (AUTO, None)
        if scored
        else plan.label == checked.label
        if auto
        else plan.label in (str(checked.label), name),
        "what was left out": all(0 <= number < total for number in judgement.left_out),
        "the number of classes": _classes_fit(checked.classes, answers),
        "that it went photo by photo": plan.sequential == (checked.sequential is not None)
        and not (plan.sequential and (record.grouped or record.early)),
        "the number of answers": _number_fits(photos * asked.pictures * plan.views, plan, answers)
        and 8 * photos * (plan.selections + 1) <= MAX_BUNDLE_BYTES,
    }
    if wrong := [what for what, right in fits.items() if not right]:
        raise UserError(f"{where}: {wrong[0]} does not fit its plan", advice="somebody changed it")
    found = record.weaknesses + audit_weaknesses(judgement, log, record.plan, preprocessing.source)
    found += reference_weaknesses(plan, record.plan, [entry.model_dump() for entry in checked.references])
    return Checked(record, judgement, log, checked.label, preprocessing, found)


def _number_fits(whole, plan, answers):
    """Where a sequential audit stops is worked out with its answers (see sequential.judge)."""
    return len(answers) == whole or (plan.sequential and len(answers) < whole and len(answers) % plan.views == 0)


def _are_scores(references, plan, photos):
    """Whether an array can be the scores of a plan's references for `photos` photos. plan: as far as it was asked."""
    return (
        references.dtype == np.float32
        and references.shape == ((len(plan.references), photos, plan.pictures) if plan.references else (0, 0, 0))
        and not (np.abs(references) > LARGEST).any()
    )


def _classes_fit(claimed, answers):
    """A choice of the class costs more the more classes there are, so that fewer than there are must not be claimed."""
    if claimed is None:
        return True
    if answers.classes is None:
        return answers.scores is None and answers.values.shape[1] == claimed
    return answers.classes.max() < claimed


def reference_weaknesses(plan, committed, entries):
    """What a verdict rests on because of its references: sentences. entries: of `references.describe`."""
    found = []
    if fresh := unpriced(committed, plan).get("references"):
        found.append(
            f"{disclosed.HONEST}: {len(fresh)} of {len(entries)} references were not fixed with the photos; who "
            "chooses one after the draw can look for the one that likes the result"
        )
    if servers := [entry["name"] for entry in entries if not entry["model"].get("sha256")]:
        found.append(
            f"{disclosed.HONEST}: the reference {servers[0]} is a server, of which only the address was fixed, and not "
            "the answers"
        )
    return found


def _made_of(model, committed):
    """Sentences about the base of a model and the signal that it was asked for, where they are not the committed ones.
    model: its identity, which a replay compares with the model's own."""
    base, signal = (model.get("base") or {}).get("sha256"), (model.get("score") or {}).get("signal", committed.signal)
    if base and base != committed.base:
        yield (
            f"{disclosed.HONEST}, or if the model with SHA-256 {str(base)[:16]}... is public and older than the "
            "photos: this model is said to be made of it, and what that one finds difficult is taken off"
        )
    if committed.base and not base and "score" in model:
        yield (
            f"{disclosed.HONEST}: the model with SHA-256 {committed.base[:16]}..., of which it was to be made, was not "
            "asked"
        )
    if model.get("pictures_a_query"):
        yield (
            f"{disclosed.HONEST}: that the model's answers are taken for embeddings was not fixed with the photos; who "
            "chooses it after the draw can look for what likes the result"
        )
    if signal != committed.signal:
        yield (
            f"{disclosed.HONEST}: what was asked of the model ({str(signal)[:20]}) was not fixed with the photos; who "
            "chooses it after the draw can look for the one that likes the result"
        )


def audit_weaknesses(judgement, log, committed, source):
    """What a verdict rests on beside record and answers: sentences. source: where the preprocessing came from."""
    found = []
    if "audit_seed" in unpriced(committed, judgement.plan):
        found.append(
            f"{disclosed.HONEST}, or if the text that was added to the draw came from the other side: "
            f"{judgement.plan.audit_seed[:60]!r}"
        )
    if "caption" in unpriced(committed, judgement.plan) and judgement.model.get("captions"):
        found.append(
            f"{disclosed.HONEST}: what the model was told that the photos show ({judgement.plan.caption[:60]!r}) was "
            "not fixed with them; who chooses it after the draw can look for the one that likes the result"
        )
    found += _made_of(judgement.model, committed)
    if judgement.left_out:
        found.append(
            f"{disclosed.HONEST}: {len(judgement.left_out)} photos were left out, whose originals are said to be gone; "
            "who chooses them after the draw can bring about any result"
        )
    if judgement.departures:
        found.append(
            f"the audit departs from the committed plan ({'; '.join(judgement.departures)}): alpha was divided by the "
            "number of choices that were open"
        )
    if judgement.number > 1:
        before = [
            f"{entry.p_value:.2g}"
            for entry in log
            if entry.p_value is not None and judgements.same_model(entry.model, judgement.model)
        ]
        found.append(
            f"this is judgement {judgement.number} of this model: alpha was divided by {2**judgement.number} (what "
            f"came out of all of them: p {', '.join(before)})"
        )
    others = len({str(entry.model.get("sha256") or entry.model) for entry in log}) - 1
    if others:
        found.append(f"{others} other model{'s were' if others > 1 else ' was'} audited with this record")
    if "flags" in source:
        found.append(
            f"how photos become the model's input was given by flags ({source}): check that it is the model's own"
        )
    if "calibration" in source:
        found.append(
            "nobody said how photos become the model's input: mean and std are the usual ones that a calibration with "
            "unmarked photos proposed and the accuser confirmed; check with the model's owner, since under wrong ones "
            "every model seems innocent"
        )
    return found
