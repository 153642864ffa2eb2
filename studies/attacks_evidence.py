"""Forged evidence: an honest audit of an innocent model, changed in every way that a forger has, and what a replay
says.

A forgery is "refused" where the replay ends with an error, "found" where it says that something is not the record's or
the model's (exit code 1), "named" where it prints a sentence that the honest bundle has not, and "not seen" otherwise:
then the forger's p stands there as a verdict on which nothing is left to be believed.

Public: play, Scene, make_scene, concluded, judged, usual_words, FORGERIES.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.special import softmax

from kit.errors import UserError
from provenance import beacon, case, evidence, judgements, protect, replay, witness
from provenance import grid as user_audit
from provenance import record as records
from provenance.disclosed import check
from provenance.folder import inspect_folder
from provenance.photos import encode_photo, read_photo
from provenance.plan import AuditPlan, departures
from provenance.references import digest_of
from studies import common
from suspects import opened
from suspects.suspect import Answers

# A round that is out and known: what it draws is right, and that no commitment can name it any more is said by replay.
ROUND = beacon.Round(
    1000, "b44679b9a59af2ec876b1a6b1ad52ea9b1615fc3982b19576350f93447cb1125e342b73a8dd2bacbe47e4b6b63ed5e39"
)
WITHIN = 0.019  # a little less than what two processors may differ by


@dataclass(frozen=True)
class Scene:
    """An innocent user's honest audit: the bundle's path, the record's, the photos' folder, the model's file, and how
    the model is fed otherwise than its file says."""

    bundle: Path
    record: Path
    photos: Path
    model: Path
    fed: dict

    def read(self):
        """(document, order, digests, answers) of the honest bundle, to be changed."""
        return self.read_all()[:-1]

    def read_all(self):
        """The same, and the scores of its references, float32 (R, n, L + 1)."""
        document, *rest = evidence.read_bundle(self.bundle)
        return {name: value for name, value in document.items() if name != "format"}, *rest

    def contents(self):
        """(its MarkRecord, the photos in the record's order, uint8 (n, 3, H, W))."""
        record = records.read_record(self.record)
        pictures = [np.asarray(Image.open(self.photos / photo.original)) for photo in record.photos]
        return record, torch.from_numpy(np.stack(pictures).transpose(0, 3, 1, 2).copy())


def make_scene(
    folder,
    images,
    checkpoint,
    keys=19,
    selections=999,
    seed=None,
    named_round=True,
    label="auto",
    fed=None,
    references=(),
):
    """Photos uint8 (n, 3, H, W) on disk, a record of them, and the honest audit of the model in a file: a Scene.

    seed: draws the secret from a number; named_round: whether the draw takes a beacon's round; label: of the committed
    plan, "auto" or a name for class 0; fed: keys of Preprocessing that are given as flags; references: files of models
    that the plan commits.
    """
    folder = Path(folder)
    photos = folder / "photos"
    photos.mkdir(parents=True)
    for number, image in enumerate(images.numpy()):
        Image.fromarray(image.transpose(1, 2, 0)).save(photos / f"{number:03}.png")
    beside = [opened.open_model(one, device="cpu") for one in references]
    plan = AuditPlan.usual(True, keys=keys, selections=selections, views=1, alpha=0.05, label=label)
    plan = plan.model_copy(update={"references": sorted(map(digest_of, beside))})
    record = _record(inspect_folder(photos), plan, seed, named_round)
    path = folder / "record" / "record.json"
    path.parent.mkdir()
    records.write_record(path, record)
    suspect = opened.open_model(checkpoint, device="cpu", overrides=fed)
    suspect.class_names = None if label == "auto" else (label, *map(str, range(1, suspect.classes)))
    case.open_case(path, [photos], suspect, folder=folder / "audit", references=beside or None).run()
    return Scene(folder / "audit" / "evidence.zip", path, photos, Path(checkpoint), fed or {})


def _record(found, plan, seed, named_round):
    named = records.BeaconRound.of(beacon.QUICKNET, ROUND.round)
    new = records.new_record(common.SETTINGS)
    beacon_round, signature = (named, ROUND.signature) if named_round else (None, None)
    # The draw hangs on the date, too: from a number it is the same again.
    created = None if seed is None else common.MOMENT
    record = records.commit_batch(
        new, found.photos, 0.5, found.path, "marked", plan, beacon_round, seed, created=created
    )
    record = records.draw_batch(record, {photo.number: photo.original for photo in record.photos}, signature)
    marked = {}
    for photo in record.photos:
        if photo.published:
            pixels = read_photo(found.content(photo))
            content = encode_photo(
                protect.mark_photo(pixels, record.key_of(photo), photo.number, common.SETTINGS.marking()), "png", 95
            )
            marked[photo.number] = hashlib.sha256(content).hexdigest()
    return records.finish_batch(record, marked)


# --- what a forger does ---


def _own_pairs(document, order):
    """bool (queries in the order asked,): the published photos under the own key."""
    drawn, keys = check(document["record"], "the bundle"), document["judgement"]["plan"]["keys"]
    photo, key = np.divmod(order, keys + 1)
    return drawn.selections(0, "")[0][photo] & (key == 0)


def _label(document):
    return int(document["result"]["label"])


def _sure(count, classes, label, chance):
    """Logits of answers that give `label` this probability: float32 (count, classes)."""
    values = np.full((count, classes), np.log((1 - chance) / (classes - 1)), dtype=np.float32)
    values[:, label] = np.log(chance)
    return values


def concluded(document, order, answers, references=()):
    """The document with the result that these answers give, also in its log, as a forger would write it. references:
    scores, float32 (R, n, L + 1)."""
    record = check(document["record"], "the bundle")
    (judgement,) = judgements.check_log(
        [{**document["judgement"], "previous": judgements.NOTHING}], "the bundle", alone=True
    )
    result, _, _ = user_audit.judge(
        record,
        judgement.plan,
        document["label"],
        judgement.alpha,
        order,
        answers,
        document["classes"],
        judgement.left_out,
        judgement.price,
        references,
    )
    noted = {**document["judgement"], "p_value": result["p_value"]}
    log = [noted if entry == document["judgement"] else entry for entry in document["log"]]
    return {**document, "judgement": noted, "log": log, "result": result}


def _relogged(document, **changes):
    """The document with one judgement alone in its log, changed."""
    plan = {**document["judgement"]["plan"], **changes.pop("plan", {})}
    entry = {**document["judgement"], "plan": plan, "previous": judgements.NOTHING, **changes}
    return {**document, "judgement": entry, "log": [entry]}


def invented(document, order, digests, answers):
    """Every answer made up: sure about published photos under the own key, unsure about the rest."""
    own, label = _own_pairs(document, order), _label(document)
    values = _sure(len(answers), answers.values.shape[1], label, 0.3)
    values[own] = _sure(int(own.sum()), values.shape[1], label, 0.9)
    return concluded(document, order, Answers(values)), order, digests, Answers(values)


def invented_server(document, order, digests, answers):
    """The same, said to come from a server."""
    model = {"kind": "server", "address": "https://model.example/v2/models/photos"}
    return invented(_relogged({**document, "model": model}, model=model), order, digests, answers)


def invented_but_one(document, order, digests, answers):
    """Every answer made up, and one that is missing."""
    document, order, digests, answers = invented(document, order, digests, answers)
    values = answers.values.copy()
    values[np.flatnonzero(~_own_pairs(document, order))[0]] = np.nan
    return concluded(document, order, Answers(values)), order, digests, Answers(values)


def invented_witnessed(document, order, digests, answers, folder):
    """Every answer made up, and signed by a witness of the forger's own making."""
    document, order, digests, answers = invented_server(document, order, digests, answers)
    plan = judgements.check_log(document["log"], "the bundle")[0].digest
    context = witness.context_of(plan, document["label"], order)
    transcript = witness.Transcript(folder, witness.read_key(folder / "witness.pem"), context)
    transcript.add(0, digests, answers)
    return {**document, "witness": transcript.sign()}, order, digests, answers


def a_few_invented(document, order, digests, answers):
    """One answer of a hundred made up: published photos under the own key."""
    few = np.flatnonzero(_own_pairs(document, order))[: len(answers) // 100]
    values = answers.values.copy()
    values[few] = _sure(len(few), values.shape[1], _label(document), 0.9999)
    return concluded(document, order, Answers(values)), order, digests, Answers(values)


def within_rounding(document, order, digests, answers):
    """Every probability moved by less than what processors may differ by: up where it serves, down elsewhere."""
    own, label = _own_pairs(document, order), _label(document)
    chances = softmax(answers.values.astype(np.float64), axis=1)
    wanted = np.clip(chances[:, label] + np.where(own, WITHIN, -WITHIN), 1e-6, 1 - 1e-6)
    rest = (1 - wanted) / np.maximum(1 - chances[:, label], 1e-12)
    chances *= rest[:, None]
    chances[:, label] = wanted
    moved = Answers(np.log(np.maximum(chances, 1e-12)).astype(np.float32))
    return concluded(document, order, moved), order, digests, moved


def another_class(document, order, digests, answers):
    """The class that pleases most put in the place of the plan's label: "auto", or a name."""
    tried = [concluded({**document, "label": label}, order, answers) for label in range(document["classes"])]
    return min(tried, key=lambda one: one["result"]["p_value"]), order, digests, answers


def fewer_classes(document, order, digests, answers):
    """A label chosen after the draw, and a model said to have one class, so that the choice costs less."""
    label = str(_label(document))
    plan = AuditPlan.model_validate({**document["judgement"]["plan"], "label": label})
    committed = AuditPlan.model_validate(document["judgement"]["plan"])
    departs, factor = departures(committed, plan, 1)
    share = judgements.share_of_alpha(plan, committed, 1, factor)
    model = {**document["model"], "classes": 1}
    document = _relogged(document, plan={"label": label}, departures=departs, alpha=share, model=model)
    document = {**document, "label": int(label), "classes": 1, "model": model}
    return concluded(document, order, answers), order, digests, answers


def input_of_the_file(document, order, digests, answers):
    """How photos became the input was chosen by flags, and the bundle says that the model's file gave it."""
    said = document["judgement"]["preprocessing"].replace("checkpoint and flags", "checkpoint")
    document = _relogged(document, preprocessing=said)
    return {**document, "preprocessing": {**document["preprocessing"], "source": "checkpoint"}}, order, digests, answers


def other_plan(document, order, digests, answers):
    """Another label in the plan, and nothing said of it."""
    label = str(_label(document))
    document = {**_relogged(document, plan={"label": label}), "label": int(label)}
    return concluded(document, order, answers), order, digests, answers


def larger_alpha(document, order, digests, answers):
    """An alpha that was not committed."""
    document = _relogged(document, plan={"alpha": 0.5}, alpha=0.25)
    return concluded(document, order, answers), order, digests, answers


def log_without_judgement(document, order, digests, answers):
    """A log from which a judgement was cut out."""
    entry = {**document["judgement"], "number": 2, "alpha": document["judgement"]["alpha"] / 2}
    return {**document, "judgement": entry, "log": [entry]}, order, digests, answers


def other_result(document, order, digests, answers):
    """Another p than the answers give."""
    result = {**document["result"], "p_value": 0.0001, "detected": True}
    return {**document, "result": result}, order, digests, answers


def other_half(document, order, digests, answers):
    """Another secret of the selections than the committed one."""
    document = json.loads(json.dumps(document))
    document["record"]["batches"][0]["selections_secret"] = "00" * 32
    return document, order, digests, answers


def other_signature(document, order, digests, answers):
    """A round's signature that the forger likes better."""
    document = json.loads(json.dumps(document))
    document["record"]["batches"][0]["signature"] = "8" + "0" * 95
    return document, order, digests, answers


def other_commitment(document, order, digests, answers):
    """A round named after the fact: the draw is another one."""
    document = json.loads(json.dumps(document))
    document["record"]["batches"][0]["commit"]["beacon"]["round"] += 1
    return document, order, digests, answers


def untouched(document, order, digests, answers):
    """Nothing: the bundle of a scene that is itself not as it should be."""
    return document, order, digests, answers


# (what, function, whether the replay asks the model again, scene)
FORGERIES = (
    ("answers invented, of a made-up server", invented_server, False, "honest"),
    ("answers invented, of the model's file; replay has no model", invented, False, "honest"),
    ("answers invented, of the model's file; replay asks it again", invented, True, "honest"),
    ("all answers invented, one missing; replay asks the model again", invented_but_one, True, "honest"),
    ("1 % of the answers invented; replay asks the model again", a_few_invented, True, "honest"),
    ("all answers moved by less than rounding may; replay asks the model again", within_rounding, True, "honest"),
    ("answers invented, signed by a witness of the forger's own", invented_witnessed, False, "honest"),
    ("label auto in the plan, class chosen after the draw; replay asks again", another_class, True, "honest"),
    ("label a name in the plan, class chosen after the draw; replay asks again", another_class, True, "named label"),
    ("label chosen after the draw, fewer classes claimed; replay asks again", fewer_classes, True, "honest"),
    ("input given by flags, said to be the file's own; replay asks again", input_of_the_file, True, "flags"),
    ("another label in the plan", other_plan, False, "honest"),
    ("a larger alpha", larger_alpha, False, "honest"),
    ("a judgement cut out of the log", log_without_judgement, False, "honest"),
    ("another p", other_result, False, "honest"),
    ("another secret of the selections", other_half, False, "honest"),
    ("another signature of the round", other_signature, False, "honest"),
    ("another round", other_commitment, False, "honest"),
    ("secret drawn from a number; replay asks again", untouched, True, "seed"),
    ("no beacon; replay asks again", untouched, True, "no beacon"),
    ("input given by flags; replay asks again", untouched, True, "flags"),
)
# Sentences that an honest bundle of the same plan has, too.
EXPECTED = {fewer_classes: "the audit departs from the committed plan"}
SCENES = {
    "honest": {},
    "named label": {"label": "cat"},
    "seed": {"seed": 5},
    "no beacon": {"named_round": False},
    "flags": {"fed": {"interpolation": "nearest"}},
}


def play(folder, images, checkpoint, forgeries=None, **grid):
    """What replay says of each forgery: a list of dicts forgery, outcome, honest (p before), p, strict (exit code),
    words. forgeries: of FORGERIES, all unless told; grid: keys and selections of the audits."""
    folder, scenes, rows, usual = Path(folder), {}, [], None
    for place, (what, forge, again, kind) in enumerate(forgeries or FORGERIES):
        for needed in {"honest", kind} - scenes.keys():
            own = folder / needed.replace(" ", "-")
            scenes[needed] = make_scene(own, images, checkpoint, **grid, **SCENES[needed])
        usual = usual_words(scenes["honest"], folder) if usual is None else usual
        scene = scenes[kind]
        own = folder / f"forgery-{place}"
        own.mkdir()
        parts = forge(*scene.read(), own) if forge is invented_witnessed else forge(*scene.read())
        evidence.write_bundle(own / "evidence.zip", *parts)
        rows.append({"forgery": what, **judged(scene, own, again, usual, EXPECTED.get(forge, "-"))})
    return rows


def judged(scene, folder, again, usual, expected, references=()):
    """What replay says of the bundle in a folder. As eval.py does: 2 is refused, 1 is wrong or, if strict, weak.

    usual: sentences about the honest bundle; expected: how one begins that is no warning of this forgery; references:
    files of the models that are asked again, too.
    """
    more = {"record_path": scene.record, "folders": [scene.photos]} if again or references else {}
    more["references"] = [opened.open_model(one, device="cpu") for one in references]
    honest = scene.read()[0]["result"]["p_value"]
    try:
        suspect = opened.open_model(scene.model, device="cpu", overrides=scene.fed) if again else None
        found = replay.replay(folder / "evidence.zip", suspect=suspect, out=folder / "again", **more)
    except UserError as error:
        words = error.problem.rpartition("evidence.zip: ")[2]
        return {"outcome": "refused", "honest": honest, "p": None, "strict": 2, "words": words}
    new = [sentence for sentence in found.weaknesses if sentence not in usual and not sentence.startswith(expected)]
    outcome = "found" if not found.right else "named" if new else "not seen"
    asked = ("references asked", "asked again")
    words = [value for name, value in found.rows if name in asked] if not found.right else new[:1]
    strict = 1 if not found.right or found.weaknesses else 0
    p = found.result["p_value"]
    return {"outcome": outcome, "honest": honest, "p": p, "strict": strict, "words": "; ".join(words)}


def usual_words(honest, folder):
    """The sentences about the honest bundle when its model is asked again: here, that nobody stamped its date."""
    suspect = opened.open_model(honest.model, device="cpu")
    again = replay.replay(honest.bundle, honest.record, [honest.photos], suspect, folder / "honest-again")
    return again.weaknesses
