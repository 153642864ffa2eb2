"""Checking somebody else's evidence: arithmetic and questions always, answers where they can be asked again.

Public: Replay, replay, SAME_CHANCE.
"""

import json
from contextlib import nullcontext
from dataclasses import dataclass
from tempfile import TemporaryDirectory

import numpy as np
from scipy.special import softmax

from kit.errors import UserError
from provenance import case, disclosed, evidence, protect, witness
from provenance import grid as user_audit
from provenance import record as records
from provenance import references as references_of
from provenance import sequential as one_by_one

# Answers of the same file on another processor differ by rounding; those of another model by far more. What is
# tolerated could still be used to move p: the verdict of the fresh answers has to be the same.
SAME_CHANCE = 0.02
SAME_SCORE = 0.005  # of a score
TOLERATED_SHARE = 0.01
# Early results said the rest otherwise, or did not say it.
EARLY_RESULT = ("p_value", "pairs", "at_most", "photos", "published", "queries", "label")


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


def replay(
    bundle,
    record_path=None,
    folders=(),
    suspect=None,
    out=None,
    data_root=None,
    roots=None,
    chain=None,
    witness_key=None,
    references=(),
):
    """Check the evidence bundle `bundle`: a Replay. Raises UserError for one that does not fit itself.

    record_path, folders: the disclosed record and its originals, to rebuild every image that was sent; suspect: the
    model, opened, to ask it again (needs the record); out: folder for its answers, from which it goes on; roots, chain:
    see `disclosed.check`; witness_key: the public key, hex, of a witness who is trusted; references: those of the
    bundle, opened, to ask them again, too. With the model, the verdict is that of its own answers, now given, and no
    longer of those in the bundle; with references alone the scores are compared, and what they come to.
    """
    document, order, digests, answers, beside = evidence.read_bundle(bundle)
    checked = evidence.check_document(document, answers, bundle, roots, chain, beside)
    result = _judged(checked, document, order, answers, beside, bundle)
    _refuse_other_result(result, checked, document, bundle)
    rows = [
        ("commitment", f"{checked.record.commitments[-1]}"),
        ("draw", "selection and plan follow from the commitment"),
        ("answers", f"{len(answers)}, {result['missing']} of them missing"),
        ("p recomputed", f"{result['p_value']:.6g}, compared with {result['alpha']:.2g}"),
    ]
    weak, right = list(checked.weaknesses), True
    asked_in = document["sequential"]["order_sha256"] if checked.asked.sequential else order
    context = witness.context_of(checked.judgement.digest, checked.label, asked_in, beside)
    witnessed = witness.check(document.get("witness"), context, digests, answers, bundle)
    if witnessed:
        rows.append(("witness", witnessed))
    signer = document["witness"]["public_key"] if witnessed else None
    if witness_key is not None and signer != witness_key.lower():
        raise UserError(f"{bundle} has no witness with the key {witness_key[:64]}", flag="--witness_key")
    if record_path:
        found, right = _questions(checked, document, order, digests, record_path, folders, data_root)
        rows.append(("images sent", found))
    if (suspect is not None or references) and not record_path:
        raise UserError(
            "asking a model again takes the images that were sent",
            advice="give the disclosed record and the originals, too",
            command="with --record and --originals",
        )
    given = beside
    if references:
        places = (record_path, folders, out, data_root)
        found, same, beside = _ask_references(checked, document, beside, references, *places)
        # What is tolerated of the scores, too, could be used to move p: a low chance hides any score that is high.
        if same and _judged(checked, document, order, answers, beside, bundle, given)["detected"] != result["detected"]:
            found, same = f"{found}: WITH THEIR OWN SCORES THE VERDICT IS ANOTHER", False
        rows.append(("references asked", found))
        right = right and same
    elif len(beside) and not witnessed:
        weak.insert(0, _unverified_references(document["references"]))
    if suspect is not None:
        found, same, result = _ask_again(
            bundle,
            checked,
            document,
            order,
            answers,
            suspect,
            record_path,
            folders,
            out,
            data_root,
            result,
            beside,
            given,
        )
        rows.append(("asked again", found))
        right = right and same
    elif not witnessed:
        weak.insert(0, _unverified(document["model"]))
    elif witness_key is None:
        weak.insert(
            0,
            f"the answers are the word of a witness with the key {signer}, which anybody could have made: find out "
            "whose it is, and give it as --witness_key",
        )
    if checked.by_name and (suspect is None or suspect.class_names is None) and witness_key is None:
        weak.append(
            f"that the plan's class {checked.judgement.plan.label!r} has the number {checked.label} is the word of "
            "whoever made the bundle"
        )
    rows = [(name, _printable(value)) for name, value in rows]
    return Replay(result, rows, [_printable(sentence) for sentence in weak], right, document)


def _judged(checked, document, order, answers, beside, bundle, stored=None):
    """The result of answers in the order asked. beside: scores of the references; stored: those in the bundle, where
    references or model were asked again: then all answers are judged, wherever they end."""
    judgement, classes = checked.judgement, document.get("classes")
    if checked.asked.sequential:
        rule = _rule(checked, document, beside, stored)
        one_by_one.check_order(rule, order, document["sequential"]["order_sha256"], bundle)
        rest = (judgement.left_out, judgement.price, beside, bundle, stored is not None)
        return one_by_one.judge(rule, checked.record, order, answers, *rest)[0]
    facts = (checked.asked, checked.label, judgement.alpha, order, answers, classes)
    return user_audit.judge(checked.record, *facts, judgement.left_out, judgement.price, beside)[0]


def _rule(checked, document, beside, ordered=None):
    """The Rule of a sequential audit's bundle. ordered: the references' scores that decided the order, if others."""
    judgement, room = checked.judgement, document["sequential"]["room"]
    facts = (checked.label, judgement.alpha, document.get("classes"), judgement.left_out)
    return one_by_one.rule_of(checked.record, checked.asked, *facts, beside, room, ordered)


def _printable(text):
    """A text of a stranger's without what could change a terminal's looks."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _unverified(model):
    what = f"the file with SHA-256 {str(model['sha256'])[:16]}..." if model.get("sha256") else "this server"
    how = (
        "give the model with --checkpoint, and the record, to ask it again"
        if model.get("sha256")
        else "a neutral party has to run the audit from the disclosed record, as a witness"
    )
    return f"nothing shows that the answers came from {what}: whoever made the bundle could have made them up; {how}"


def _refuse_other_result(result, checked, document, bundle):
    claimed = {name: value for name, value in document["result"].items() if name != "algorithm_1"}
    ours = json.loads(json.dumps(result))
    names = EARLY_RESULT if checked.record.early else ours.keys() | claimed.keys()
    if any(ours.get(name) != claimed.get(name) for name in names):
        raise UserError(
            f"{bundle}: its answers give p = {result['p_value']:.6g}, and its result says "
            f"{str(claimed.get('p_value'))[:20]!r} or differs elsewhere",
            advice="somebody changed it",
        )
    if checked.judgement.p_value not in (None, result["p_value"]):
        raise UserError(f"{bundle}: its log says that another p came out", advice="somebody changed it")


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


def _marked(shown):
    return [batch["marked"] for batch in shown["batches"]]


def _questions(checked, document, order, digests, record_path, folders, data_root):
    record, preprocessing = _matching_record(checked, record_path), checked.preprocessing
    if not checked.record.early and _marked(document["record"]) != _marked(disclosed.disclose(record)):
        raise UserError(f"{record_path} has other marked files than the bundle says", advice="somebody changed it")
    photos = _photos(checked, record, folders, record_path, preprocessing)
    bank = protect.load_bank(record.settings, data_root)
    captioned = bool(document["model"].get("captions"))
    right = user_audit.check_queries(record, photos, preprocessing, checked.asked, order, digests, bank, captioned)
    note = (
        ""
        if right == len(order)
        else " (another kind of processor rounds marks differently; on the audit's own machine all must be)"
    )
    return f"{right} of {len(order)} are bit for bit those of record and originals{note}", right == len(order)


def _unverified_references(entries):
    names = ", ".join(str(entry["name"]) for entry in entries)
    return (
        f"nothing shows that the scores of the references came from {names}: made-up ones give any result; give these "
        "models with --reference, and the record, to ask them again"
    )


def _ask_references(checked, document, stored, suspects, record_path, folders, out, data_root):
    """(what was found, whether the stored scores are those of these models, their own scores). suspects: the
    references, opened.
    """
    record, plan, entries = _matching_record(checked, record_path), checked.asked, document["references"]
    if sorted(map(references_of.digest_of, suspects)) != plan.references:
        raise UserError(
            "--reference are not the models of this bundle, whose SHA-256 are "
            f"{', '.join(digest[:16] for digest in plan.references) or 'none'}",
            advice="give the files that the audit used",
            flag="--reference",
        )
    found = [
        references_of.Reference(one, entry["digest"], entry["label"])
        for one, entry in zip(sorted(suspects, key=references_of.digest_of), entries, strict=True)
    ]
    facts = (checked.label, document["class_name"], document["classes"])
    other = any(one.label != references_of.label_for(one.suspect, *facts) for one in found)
    _photos(checked, record, folders, record_path, checked.preprocessing)  # refuses where originals are gone
    out_of_it = set(checked.judgement.left_out)
    originals = [
        None if number in out_of_it else path
        for number, path in enumerate(records.locate_originals(record, folders, record_path, lost=True))
    ]
    bank = protect.load_bank(record.settings, data_root)
    with nullcontext(out) if out else TemporaryDirectory() as folder:
        fresh = references_of.ask(record, originals, found, plan, folder, bank)
    apart = sum(
        references_of.differing(ours, theirs, SAME_SCORE if one.suspect.scores else SAME_CHANCE, one.suspect.scores)
        for ours, theirs, one in zip(stored, fresh, found, strict=True)
    )
    text = f"{stored.size - apart} of {stored.size} scores are the references' own"
    if other:
        return f"{text}: THEIR CLASSES WERE CHOSEN OTHERWISE THAN BY THE RULE", False, fresh
    if apart > TOLERATED_SHARE * stored.size:
        return f"{text}: THE STORED SCORES ARE NOT THESE MODELS'", False, fresh
    if plan.sequential and not np.array_equal(*(_rule(checked, document, some).places for some in (stored, fresh))):
        return f"{text}: THEY GIVE ANOTHER ORDER OF THE PHOTOS", False, fresh
    return text, True, fresh


def _ask_again(
    bundle, checked, document, order, answers, suspect, record_path, folders, out, data_root, stored, beside, given
):
    """(what was found, whether the stored answers are this model's, the result of its own answers).

    stored: the result that the stored answers give; beside: scores of the references; given: those in the bundle.
    """
    model = document["model"]
    if not model.get("sha256") or suspect.identity.get("sha256") != model["sha256"]:
        raise UserError(
            f"--checkpoint is not the model of this bundle, whose SHA-256 is {model.get('sha256') or 'not known'}",
            advice="give the file that was audited",
            flag="--checkpoint",
        )
    _refuse_other_scores(model, suspect.identity)
    ours, theirs = suspect.preprocessing.describe(), checked.preprocessing.describe()
    if ours.partition(" (from")[0] != theirs.partition(" (from")[0]:
        raise UserError(
            f"the bundle's audit fed the model otherwise ({_printable(theirs)}) than it is now ({ours})",
            advice="give the same flags as then, if they are the model's own",
        )
    record, plan = _matching_record(checked, record_path), checked.asked
    if checked.by_name and suspect.class_names and case.resolve_label(plan.label, suspect) != checked.label:
        raise UserError(f"{bundle}: class {checked.label} is not what the model calls {plan.label!r}")
    photos = _photos(checked, record, folders, record_path, suspect.preprocessing)
    bank = protect.load_bank(record.settings, data_root)
    # Nowhere near the bundle: whoever sent that might have sent answers along.
    with nullcontext(out) if out else TemporaryDirectory() as folder:
        if plan.sequential:
            rule = _rule(checked, document, given)
            again = one_by_one.order_of(rule, record)
            log = user_audit.open_answers(
                record, photos, suspect, plan, folder, sequential=one_by_one.order_digest(again)
            )
            _, fresh = one_by_one.ask(rule, record, photos, suspect, again, log, bank, count=len(answers))
        else:
            again, _, fresh = user_audit.ask_grid(record, photos, suspect, plan, folder, bank)
    whole = document["sequential"]["order_sha256"] if plan.sequential else one_by_one.order_digest(order)
    if one_by_one.order_digest(again) != whole or not np.array_equal(again[: len(order)], order):
        raise UserError("the bundle asked in another order than its record gives", advice="somebody changed it")
    apart = _apart(answers, fresh)
    result = _judged(checked, document, order, fresh, beside, bundle, given)
    found = (
        f"{len(answers) - apart} of {len(answers)} answers are the model's own, which give p = {result['p_value']:.6g}"
    )
    if apart > TOLERATED_SHARE * len(answers):
        return f"{found}: THE STORED ANSWERS ARE NOT THIS MODEL'S", False, result
    if result["detected"] != stored["detected"]:
        return f"{found}: THE VERDICT IS ANOTHER", False, result
    return found, True, result


def _refuse_other_scores(stored, ours):
    """Raise UserError where the same file would be scored otherwise: beside another base, at other draws."""
    names = ("base", "score", "captions")
    if other := [name for name in names if json.loads(json.dumps(ours.get(name))) != stored.get(name)]:
        raise UserError(
            f"the bundle's audit scored the model otherwise ({other[0]} {_printable(str(stored.get(other[0])))[:200]}) "
            f"than it is now ({str(ours.get(other[0]))[:200]})",
            advice="give the same model with --base_model or --answers as then",
            flag="--base_model",
        )


def _apart(stored, fresh):
    """How many answers differ by more than rounding, or are missing on one side alone."""
    forms = [[None if array is None else array.shape for array in some.arrays] for some in (stored, fresh)]
    if forms[0] != forms[1]:
        return len(stored)
    there = ~stored.missing & ~fresh.missing
    lost = int((stored.missing != fresh.missing).sum())
    if stored.scores is not None:
        ours, theirs = stored.scores[there], fresh.scores[there]
        return lost + int((~np.isclose(ours, theirs, rtol=SAME_SCORE, atol=0)).any(axis=1).sum())
    if stored.values is None:
        return lost + int((stored.classes != fresh.classes)[there].any(axis=1).sum())
    classes = None if stored.classes is None else int(max(stored.classes.max(), fresh.classes.max())) + 1
    ours, theirs = (softmax(some.log_probabilities(classes)[0][there], axis=1) for some in (stored, fresh))
    return lost + int((np.abs(ours - theirs).max(axis=1, initial=0) > SAME_CHANCE).sum())
