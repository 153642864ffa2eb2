"""Checking somebody else's evidence: arithmetic and questions always, answers where they can be asked again.

Public: Replay, replay.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import softmax

from kit.errors import UserError
from provenance import evidence, protect, witness
from provenance import grid as user_audit
from provenance import record as records
from suspects.suspect import Preprocessing

# Answers of the same file on another processor differ by rounding; those of another model by far more.
SAME_CHANCE = 0.02
TOLERATED_SHARE = 0.01


@dataclass(frozen=True)
class Replay:
    """What a replay found. result: the verdict recomputed; rows: (name, value) for the table; weaknesses: sentences
    to be shown first; right: whether everything that could be checked fits.
    """

    result: dict
    rows: list
    weaknesses: list
    right: bool
    document: dict


def replay(bundle, record_path=None, folders=(), suspect=None, out=None, data_root=None, roots=None, chain=None):
    """Check the evidence bundle `bundle`: a Replay. Raises UserError for one that does not fit itself.

    record_path, folders: the disclosed record and its originals, to rebuild every image that was sent; suspect: the
    model, opened, to ask it again (needs the record); out: folder for its answers; roots, chain: see `disclosed.check`.
    """
    document, order, digests, answers = evidence.read_bundle(bundle)
    checked = evidence.check_document(document, len(answers), bundle, roots, chain)
    result, _, _ = user_audit.judge(
        checked.record,
        checked.judgement.plan,
        checked.label,
        checked.judgement.alpha,
        order,
        answers,
        document.get("classes"),
        checked.judgement.left_out,
    )
    _refuse_other_result(result, document, bundle)
    rows = [
        ("commitment", f"{checked.record.commitments[-1]}"),
        ("draw", "selection and plan follow from the commitment"),
        ("answers", f"{len(answers)}, {result['missing']} of them missing"),
        ("p recomputed", f"{result['p_value']:.6g}, compared with {result['alpha']:.2g}"),
    ]
    weak, right = list(checked.weaknesses), True
    witnessed = witness.check(document.get("witness"), checked.judgement.digest, digests, answers, bundle)
    if witnessed:
        rows.append(("witness", witnessed))
    if record_path:
        found, right = _questions(checked, document, order, digests, record_path, folders, data_root)
        rows.append(("images sent", found))
    if suspect is not None:
        if not record_path:
            raise UserError(
                "asking the model again takes the images that were sent",
                advice="give the disclosed record and the originals, too",
                command="with --record and --originals",
            )
        found, same = _ask_again(
            Path(bundle), checked, document, order, answers, suspect, record_path, folders, out, data_root
        )
        rows.append(("asked again", found))
        right = right and same
    elif not witnessed:
        weak.insert(0, _unverified(document["model"]))
    return Replay(result, rows, weak, right, document)


def _unverified(model):
    what = f"the file with SHA-256 {model['sha256'][:16]}..." if model.get("sha256") else "this server"
    how = (
        "give the model with --checkpoint, and the record, to ask it again"
        if model.get("sha256")
        else "a neutral party has to run the audit from the disclosed record, as a witness"
    )
    return f"nothing shows that the answers came from {what}: whoever made the bundle could have made them up; {how}"


def _refuse_other_result(result, document, bundle):
    claimed = {name: value for name, value in document["result"].items() if name != "algorithm_1"}
    ours = json.loads(json.dumps(result))
    names = document.get("compared") or ours.keys()
    if any(ours[name] != claimed.get(name) for name in names) or (
        not document.get("compared") and claimed.keys() != ours.keys()
    ):
        raise UserError(
            f"{bundle}: its answers give p = {result['p_value']:.6g}, and its result says {claimed.get('p_value')} or "
            "differs elsewhere",
            advice="somebody changed it",
        )


def _matching_record(checked, record_path):
    record = records.read_record(record_path)
    if record.commitments[-1] != checked.record.commitments[-1]:
        raise UserError(f"{record_path} is not the record of this bundle: its commitment is another")
    return record


def _photos(checked, record, folders, record_path, preprocessing):
    """The originals that were asked about; those that were left out stay out, though they may be there now."""
    paths, out = records.locate_originals(record, folders, record_path, lost=True), set(checked.judgement.left_out)
    lacking = [photo.original for photo, path in zip(record.photos, paths, strict=True) if path is None]
    if len([number for number, path in enumerate(paths) if path is None and number not in out]):
        raise UserError(
            f"{len(lacking)} originals are missing or were changed ({', '.join(lacking[:3])})",
            advice="give the unmarked photos with --originals",
            flag="--originals",
        )
    return user_audit.Photos([None if number in out else path for number, path in enumerate(paths)], preprocessing.size)


def _preprocessing(document):
    try:
        return Preprocessing(
            **{
                name: tuple(value) if isinstance(value, list) else value
                for name, value in document["preprocessing"].items()
            }
        )
    except TypeError as error:
        raise UserError(f"the bundle's preprocessing is damaged ({error})", "get an undamaged copy") from None


def _questions(checked, document, order, digests, record_path, folders, data_root):
    record, preprocessing = _matching_record(checked, record_path), _preprocessing(document)
    photos = _photos(checked, record, folders, record_path, preprocessing)
    bank = protect.load_bank(record.settings, data_root)
    right = user_audit.check_queries(record, photos, preprocessing, checked.judgement.plan, order, digests, bank)
    note = (
        ""
        if right == len(order)
        else " (another kind of processor rounds marks differently; on the audit's own machine all must be)"
    )
    return f"{right} of {len(order)} are bit for bit those of record and originals{note}", right == len(order)


def _ask_again(bundle, checked, document, order, answers, suspect, record_path, folders, out, data_root):
    """(what was found, whether the stored answers are this model's)."""
    model = document["model"]
    if not model.get("sha256") or suspect.identity.get("sha256") != model["sha256"]:
        raise UserError(
            f"--checkpoint is not the model of this bundle, whose SHA-256 is {model.get('sha256') or 'not known'}",
            advice="give the file that was audited",
            flag="--checkpoint",
        )
    if (
        suspect.preprocessing.describe().partition(" (from")[0]
        != _preprocessing(document).describe().partition(" (from")[0]
    ):
        raise UserError(
            f"the bundle's audit fed the model otherwise ({_preprocessing(document).describe()}) than it is now "
            f"({suspect.preprocessing.describe()})",
            advice="give the same flags as then, if they are the model's own",
        )
    record, plan = _matching_record(checked, record_path), checked.judgement.plan
    photos = _photos(checked, record, folders, record_path, suspect.preprocessing)
    folder = Path(out) if out else bundle.parent / f"{bundle.stem}-asked-again"
    bank = protect.load_bank(record.settings, data_root)
    again, _, fresh = user_audit.ask_grid(record, photos, suspect, plan.keys, plan.audit_seed, folder, bank)
    if not np.array_equal(again, order):
        raise UserError("the bundle asked in another order than its record gives", advice="somebody changed it")
    apart = _apart(answers, fresh)
    result, _, _ = user_audit.judge(
        checked.record,
        plan,
        checked.label,
        checked.judgement.alpha,
        order,
        fresh,
        document.get("classes"),
        checked.judgement.left_out,
    )
    same = apart <= TOLERATED_SHARE * len(answers)
    return (
        f"{len(answers) - apart} of {len(answers)} answers are the model's own; they give p = {result['p_value']:.6g}"
        + ("" if same else ": THE STORED ANSWERS ARE NOT THIS MODEL'S"),
        same,
    )


def _apart(stored, fresh):
    """How many answers differ by more than rounding."""
    if (stored.missing != fresh.missing).any() or (stored.values is None) != (fresh.values is None):
        return int((stored.missing != fresh.missing).sum()) or len(stored)
    there = ~stored.missing
    if stored.values is None:
        return int((stored.classes != fresh.classes).any(axis=1).sum())
    if stored.values.shape != fresh.values.shape:
        return len(stored)
    ours, theirs = (softmax(some.log_probabilities()[0][there], axis=1) for some in (stored, fresh))
    return int((np.abs(ours - theirs).max(axis=1) > SAME_CHANCE).sum())
