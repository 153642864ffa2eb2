"""The liar's reference: an innocent model, and a reference that was picked or made after the draw, so that what it
explains away makes the published half look remembered.

BEFORE references there was nothing of the kind. What is played: a network trained on the held-out half, the best of
many innocent ones, a copy of the accused model that was taught the held-out half, and scores that no model gave,
written straight into the evidence. No number counts what could have been tried; what stands against it are sentences of
verdict and replay, which `play` reads as eval.py prints them.

Public: chosen_later, made_up, teach, play, LATER, MADE_UP, NAMES.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

import utils
from attacks import exact
from attacks.difficulty import taken_out
from experiment import training
from kit import files
from networks import build_network
from provenance import case, evidence, grid, references, replay
from provenance.plan import AuditPlan, departures
from studies import attacks_evidence, common
from studies import attacks_world as places
from studies.attacks_plan import record_of
from studies.attacks_world import counted, row
from suspects import opened
from suspects.suspect import Answers

LATER, MADE_UP = "reference chosen after the draw", "scores of a reference made up"
TRAINED, COPY = "trained on the held-out half", "copy of the accused model, taught the held-out half"
NAMES = {LATER: (TRAINED, COPY), MADE_UP: ("written into the evidence",)}  # and the best of many innocent ones
USUAL = AuditPlan()
REFERENCE = USUAL.model_copy(update={"references": ["0" * 64]})
HEIGHTS = (0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0)  # by which made-up scores call published photos hard; in std
OTHERS = 19  # images of others for each held-out one, so that a copy forgets nothing while it is taught
TAUGHT_LR = 0.02


# --- what a liar makes after the draw ---


def held_out(data, rows, record):
    """(images, labels) of a record's held-out photos, as they are and marked with the own key. rows: int64 (n,), of the
    data set, in the record's order."""
    numbers = np.flatnonzero(~record.published)
    own = torch.from_numpy(rows[numbers])
    originals = data.images[own]
    key, zeros = record.keys(0)[0][0], np.zeros_like(numbers)
    marked = utils.mark_images(originals, key, zeros, numbers, record.settings.marking())
    return torch.cat([originals, marked]), data.labels[own].repeat(2)


def teach(file, path, images, labels, others, device, epoch=10, seed=7):
    """Train a copy of the model in a file on, with images (uint8 (N, 3, H, W)) among others, (images, labels), and
    write it to `path`."""
    tensors, stored = files.load_model(file)
    settings = {**stored["settings"], "lr": TAUGHT_LR, "epoch": epoch, "seed": seed}
    model = build_network(settings["net_type"], stored["classes"], settings["image_size"])
    model.load_state_dict(tensors)
    chosen = training.training_settings(settings, stored["mean"], stored["std"])
    together = torch.cat([images, others[0]]), torch.cat([labels, others[1]])
    progress = Path(path).with_suffix(".progress")
    utils.train_model(model, *together, chosen, device, progress, settings)
    files.save_model(path, model.state_dict(), {**stored, "settings": settings})
    progress.unlink(missing_ok=True)
    return path


def made_up(scores, published):
    """Scores of a reference that never was: the accused model's own, and higher where it serves, at the published
    photos under the own key; of some heights, the one that leaves most. scores: float (n, L + 1), published: bool (n,).
    Returns float32 (n, L + 1)."""
    own = published[:, None] & (np.arange(scores.shape[1]) == 0)
    tried = [
        np.clip(np.where(own, scores + height * np.std(scores), scores), 0, exact.LARGEST).astype(np.float32)
        for height in HEIGHTS
    ]
    return min(tried, key=lambda invented: _left_of_own(scores, invented, published))


def _left_of_own(scores, invented, published):
    """How far the published photos are below the others under the own key, in standard deviations of what is left."""
    left = taken_out(np.asarray(scores, dtype=np.float64)[:, :, None], invented[None])[:, 0, 0]
    return (left[published].mean() - left[~published].mean()) / max(left.std(), 1e-12)


# --- audits ---


def chosen_later(world, data, args, device, models):
    """Rows of audits of innocent models with a liar's reference. models: (name, rows, query, file) of each."""
    free = np.setdiff1d(np.flatnonzero(~data.is_test.numpy()), np.concatenate([user.rows for user in world.users]))
    free = np.setdiff1d(free, np.concatenate([rows for _, rows, _, _ in models]))
    ready = _innocent(data, args, device, free)
    for accused, (_, _, query, file) in enumerate(models):
        records = [record_of(world, user, ("reference", number, accused)) for number, user in enumerate(world.users)]
        rows = [user.rows[places.numbers_of(record)] for user, record in zip(world.users, records, strict=True)]
        trained = _trained(data, args, device, free, rows, records, accused)
        for number, (own, record) in enumerate(zip(rows, records, strict=True)):
            copy = _copy(data, args, device, free, own, record, file, (accused, number))
            queries = {"accused": query, TRAINED: trained, COPY: copy, **ready}
            originals, keys = data.images[torch.from_numpy(own)], [key for (key,) in record.keys(USUAL.keys)]
            asked = common.ask_views(queries, originals, keys, common.Kind(record.settings, views=USUAL.views))
            yield from _rows(asked, record, list(ready), number, accused)


def _rows(asked, record, ready, number, accused):
    """The rows of one user. asked: logits by name, float32 (n, L + 1, views, C); ready: names of innocent ones."""
    answers = {name: Answers(logits.reshape(-1, logits.shape[-1])) for name, logits in asked.items()}
    photos, _, _, classes = asked["accused"].shape

    def p_of(*scores):
        plan = REFERENCE if scores else USUAL
        order = np.arange(len(answers["accused"]))
        facts = (record, plan, exact.AUTO, plan.alpha, order, answers["accused"], classes)
        return grid.judge(*facts, references=np.array(scores))[0]["p_value"]

    scores = {
        name: references.scores_of_answers(
            given, photos, references.Reference(SimpleNamespace(classes=classes), name, exact.AUTO), USUAL.views
        )
        for name, given in answers.items()
    }
    factor, where = departures(USUAL, REFERENCE, classes)[1], (number, accused, accused)
    found = {name: p_of(scores[name]) for name in (TRAINED, COPY)}
    found[f"the best of {len(ready)} innocent ones"] = min(p_of(scores[name]) for name in ready)
    for variant, p in found.items():
        yield row(LATER, variant, "after", *where, p, counted(p, factor=factor))
    invented = made_up(scores["accused"], record.published)
    p = p_of(invented)
    yield row(MADE_UP, NAMES[MADE_UP][0], "after", *where, p, counted(p, factor=factor))


def _innocent(data, args, device, free):
    """{name: query} of references that have never seen a photo, of unequal quality."""
    found = {}
    for number in range(args.references):
        draws = utils.key_generator("studies", "dishonest", "references", args.seed, number)
        size = max(1, args.train_size // (2, 4, 8)[number % 3])
        own = torch.from_numpy(draws.choice(free, min(size, len(free)), replace=False))
        epoch = max(1, args.epoch * 2 // 5)
        path = f"{args.work}/dishonest-reference-{args.seed}-{size}-{epoch}-{number}.safetensors"
        recipe = (data.images[own], data.labels[own], len(data.class_names), 200 + number, device)
        found[f"innocent {number}"] = training.train_on(path, *recipe, epoch=epoch)[0]
    return found


def _trained(data, args, device, free, rows, records, accused):
    """The query of one network trained on all users' held-out halves among other images."""
    parts = [held_out(data, own, record) for own, record in zip(rows, records, strict=True)]
    draws = utils.key_generator("studies", "dishonest", "held out", args.seed, accused)
    count = max(1, args.train_size - sum(len(labels) for _, labels in parts))
    others = torch.from_numpy(draws.choice(free, min(count, len(free)), replace=False))
    return training.train_on(
        f"{args.work}/dishonest-held-out-{args.seed}-{args.users}-{args.train_size}-{args.epoch}-{accused}.safetensors",
        torch.cat([*(images for images, _ in parts), data.images[others]]),
        torch.cat([*(labels for _, labels in parts), data.labels[others]]),
        len(data.class_names),
        300 + accused,
        device,
        epoch=args.epoch,
    )[0]


def _copy(data, args, device, free, rows, record, file, parts):
    """The query of a copy of the accused model that was taught one user's held-out half."""
    images, labels = held_out(data, rows, record)
    path = Path(args.work) / f"dishonest-copy-{args.seed}-{'-'.join(map(str, parts))}.safetensors"
    others = _others(data, free, len(labels), (args.seed, *parts))
    teach(file, path, images, labels, others, device, max(1, args.epoch // 10))
    query = training.load_trained(path, device)[0]
    path.unlink()  # small, but one for each user and model
    return query


def _others(data, free, count, parts):
    draws = utils.key_generator("studies", "dishonest", "others", *parts)
    own = torch.from_numpy(draws.choice(free, min(OTHERS * count, len(free)), replace=False))
    return data.images[own], data.labels[own]


# --- verdict and replay, as eval.py has them ---

# (what, how the liar's reference comes about, which models the replay is given)
EVERYTHING, MODEL, REFERENCES = ("model", "references"), ("model",), ("references",)
CASES = (
    (f"reference {TRAINED}; replay asks model and reference again", "trained", EVERYTHING),
    ("reference found among innocent ones after the draw; replay asks both again", "innocent", EVERYTHING),
    (f"reference: {COPY}; replay asks both again", "copy", EVERYTHING),
    ("scores of the committed reference made up; replay asks neither", "made up", ()),
    ("scores of the committed reference made up; replay asks the model again", "made up", MODEL),
    ("scores of the committed reference made up; replay asks the reference again", "made up", REFERENCES),
    ("scores of the committed reference made up; replay asks both again", "made up", EVERYTHING),
    ("scores of the committed reference moved within rounding; replay asks both again", "moved", EVERYTHING),
    ("honest reference left out of the plan's list in the bundle", "struck out", ()),
)
DEPARTS = "the audit departs from the committed plan"  # about every reference that was not committed


def play(folder, images, checkpoint, others, device, cases=None, **grids):
    """What verdict and replay say of each of CASES: a list of dicts as of `attacks_evidence.play`, with "verdict", what
    eval.py says of the liar's own audit. others: (images, labels) of strangers, for the liar's networks; cases: CASES,
    unless told; grids: keys, selections and label of the
    audits."""
    folder = Path(folder)
    scene = attacks_evidence.make_scene(folder / "plain", images, checkpoint, **grids)
    classes = scene.read()[0]["classes"]
    files_of = {"innocent": _on_strangers(folder / "innocent.safetensors", others, classes, device)}
    with_one = attacks_evidence.make_scene(
        folder / "committed", images, checkpoint, references=[files_of["innocent"]], **grids
    )
    usual, rows = attacks_evidence.usual_words(scene, folder), []
    for place, (what, kind, given) in enumerate(CASES if cases is None else cases):
        own = folder / f"reference-{place}"
        own.mkdir()
        later = kind in ("trained", "innocent", "copy")
        if later:
            if kind not in files_of:
                files_of[kind] = _made_after(scene, kind, folder / f"{kind}.safetensors", others, device)
            verdict = _audit_later(scene, files_of[kind], own)
        else:
            verdict = _forge(with_one, kind, own)
        reference = files_of[kind if later else "innocent"]
        judged = attacks_evidence.judged(
            scene if later else with_one,
            own,
            "model" in given,
            usual,
            DEPARTS if later else "-",
            [reference] if "references" in given else [],
        )
        rows.append({"forgery": what, "verdict": verdict, **judged})
    return rows


def _on_strangers(path, others, classes, device, more=None):
    """A reference trained on strangers' images, and perhaps on (images, labels) more."""
    images, labels = others if more is None else (torch.cat([a, b]) for a, b in zip(more, others, strict=True))
    training.train_on(path, images, labels, classes, 11, device, epoch=20, batch_size=32)
    return path


def _made_after(scene, kind, path, others, device):
    """The file of a liar's reference for a scene whose draw is known."""
    record, images = scene.contents()
    numbers = np.flatnonzero(~record.published)
    own = images[torch.from_numpy(numbers)]
    marking, key = record.settings.marking(), record.keys(0)[0][0]
    taught = torch.cat([own, utils.mark_images(own, key, np.zeros_like(numbers), numbers, marking)])
    document = scene.read()[0]
    labels = torch.full((len(taught),), int(document["result"]["label"]))
    if kind == "trained":
        return _on_strangers(path, others, document["classes"], device, (taught, labels))
    return teach(scene.model, path, taught, labels, others, device)


def _audit_later(scene, reference, folder):
    """Audit a scene's record with a reference that its plan has not: the sentences of the verdict. The log of the
    honest audit is left behind, as a liar would."""
    suspect, one = (opened.open_model(path, device="cpu") for path in (scene.model, reference))
    planned = case.open_case(
        scene.record, [scene.photos], suspect, folder=folder, log=folder / "judgements.json", references=[one]
    )
    return "; ".join(planned.run()["weaknesses"])


def _forge(scene, kind, folder):
    """Write a bundle with other scores of the committed reference than it gave."""
    document, order, digests, answers, scores = scene.read_all()
    record, _ = scene.contents()
    if kind == "struck out":
        document, scores = {**document, "references": []}, np.zeros((0, 0, 0), np.float32)
    else:
        plan = AuditPlan.model_validate(document["judgement"]["plan"])
        one = references.Reference(SimpleNamespace(classes=document["classes"]), "", document["label"])
        theirs = references.scores_of_answers(grid.in_order(answers, order), len(record.photos), one, plan.views)
        invented = made_up(theirs, record.published)
        scores = (invented if kind == "made up" else _within_rounding(scores[0], record.published))[None]
        document = attacks_evidence.concluded(document, order, answers, scores)
    evidence.write_bundle(folder / "evidence.zip", document, order, digests, answers, scores)
    return ""


def _within_rounding(scores, published):
    """Scores of a reference, float32 (n, L + 1), moved by less than what a replay may find: up where it serves."""
    where = published[:, None] & (np.arange(scores.shape[1]) == 0)
    moved = np.exp(-np.square(scores, dtype=np.float64)) + np.where(where, -1, 1) * 0.95 * replay.SAME_CHANCE
    return np.sqrt(-np.log(np.clip(moved, 1e-9, 1))).astype(np.float32)
