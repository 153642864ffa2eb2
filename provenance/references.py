"""Reference models: models that have not seen the photos, asked the same questions, which tell how difficult each
photo is for anybody (see attacks/difficulty.py).

Which references there are is part of the plan, by digest. Their scores are a function of photos and keys, and so p
stays exact; but whoever may choose a reference after the draw chooses the one that likes the result.

Public: Reference, open_models, matched, digest_of, label_for, ask, folder_of, scores_of_answers, describe, differing.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

import utils
from attacks import exact
from kit.errors import UserError
from kit.files import canonical_digest
from provenance import grid
from provenance.plan import MOST_REFERENCES
from suspects import opened, server
from suspects.suspect import Suspect

WORST = exact.LARGEST
FED = ("--mean", "--std", "--input_size")  # flags of the model under audit alone


@dataclass(frozen=True)
class Reference:
    """One reference of an audit. label: what its score is the loss of, a class number of its own, or AUTO: the class
    that it names most often for all photos under all keys."""

    suspect: Suspect
    digest: str
    label: int | str


def digest_of(suspect):
    """What a plan says of a reference, hex: the SHA-256 of its file; of a server no more than its address."""
    return suspect.identity.get("sha256") or canonical_digest(suspect.identity)


def matched(suspects, audited, label):
    """References out of opened models, in the order of their digests. audited: the Suspect; label: a class number of
    its, or AUTO. Raises UserError for the model under audit itself, one model twice, or too many.
    """
    names = audited.class_names or ()
    name = names[label] if label != exact.AUTO and label < len(names) else None
    found = [Reference(one, digest_of(one), label_for(one, label, name, audited.classes)) for one in suspects]
    digests = [reference.digest for reference in found]
    if digest_of(audited) in digests:
        raise UserError(
            "--reference is the model under audit itself", "give one that has not seen the photos", flag="--reference"
        )
    if len(set(digests)) < len(digests):
        raise UserError("--reference names the same model twice", advice="leave one out", flag="--reference")
    if len(found) > MOST_REFERENCES:
        raise UserError(f"--reference: more than {MOST_REFERENCES} models", advice="leave some out", flag="--reference")
    return sorted(found, key=lambda reference: reference.digest)


def open_models(paths, net_type=None, device="auto", batch_size=64):
    """The models that --reference names, as Suspects; [] for ["none"], None for None. net_type: of files of weights
    alone. Raises UserError.
    """
    if paths is None:
        return None
    if "train" in paths:
        raise UserError(
            "--reference train belongs to data_marking.py, so that the reference is fixed with the photos",
            advice="give a model's path",
            flag="--reference",
        )
    if "none" in paths:
        if len(paths) > 1:
            raise UserError("--reference none and others don't go together", advice="leave one out", flag="--reference")
        return []
    found = []
    for path in paths:
        try:
            if server.is_address(path):
                found.append(server.open_server(path, batch_size=batch_size))
            else:
                found.append(opened.open_model(path, net_type, utils.choose_device(str(device)), batch_size=batch_size))
        except UserError as error:
            raise _about(path, error) from None
    return found


def _about(path, error):
    """An error of opening a reference, without advice that is for the model under audit."""
    problem, advice, command = (
        text and text.replace("--net_type", "--reference_net_type")
        for text in (error.problem, error.advice, error.command)
    )
    if error.flag in FED or any(flag in (advice or "") for flag in FED):
        advice = (
            "a reference has to say itself how it is fed: a run of train.py, an ONNX file, or a network of a library"
        )
    return UserError(f"--reference {path}: {problem}", advice, command, flag="--reference")


def label_for(reference, label, name, classes):
    """The class of `reference` that means class `label` of a model with `classes` classes, which calls it `name` (None:
    by no name): by its name, by its number where both have as many classes and one has no names, else AUTO.
    """
    ours = reference.class_names
    if label == exact.AUTO:
        return label
    if ours and name is not None:
        return ours.index(name) if name in ours else exact.AUTO
    return label if reference.classes is not None and reference.classes == classes else exact.AUTO


def ask(record, originals, references, plan, folder, bank=None):
    """The scores of references for all photos and keys, means over the plan's views: float32 (R, n, L + 1), NaN where
    one gave no answer. originals: paths by number; resumes from `folder`, which gets a folder for each reference.
    """
    found = []
    for place, reference in enumerate(references, 1):
        photos = grid.Photos(originals, reference.suspect.preprocessing.size)
        label = f"asking reference {place} of {len(references)}"
        own = folder_of(folder, reference)
        order, _, answers = grid.ask_grid(record, photos, reference.suspect, plan, own, bank, label=label)
        found.append(scores_of_answers(grid.in_order(answers, order), len(photos), reference, plan.views))
    return np.stack(found) if found else np.zeros((0, 0, 0), np.float32)


def folder_of(folder, reference):
    """Where a reference's answers lie in the folder of an audit."""
    return Path(folder) / f"reference-{reference.digest[:16]}"


def scores_of_answers(answers, photos, reference, views):
    """One reference's scores, float32 (n, L + 1), of Answers by query number."""
    scores, top, _ = grid.scores_of(answers, photos, reference.suspect.classes, reference.label, views)
    label = reference.label
    if label == exact.AUTO:
        named = top[top >= 0]
        label = int(np.bincount(named).argmax()) if len(named) else 0
    return np.clip(scores[:, :, label], -WORST, WORST).astype(np.float32)


def describe(references):
    """What an evidence bundle says of references, JSON-ready."""
    return [
        {
            "digest": one.digest,
            "name": one.suspect.name,
            "model": one.suspect.identity,
            "label": one.label,
            "preprocessing": one.suspect.preprocessing.describe(),
        }
        for one in references
    ]


def differing(stored, fresh, same, of_scores=False):
    """How many scores of one reference, float32 (n, L + 1), differ by more than `same`, as chances. of_scores: of one
    that answers with scores, by more than this share of a score."""
    there = ~np.isnan(stored) & ~np.isnan(fresh)
    lost = int((np.isnan(stored) != np.isnan(fresh)).sum())
    if of_scores:
        return lost + int((~np.isclose(stored[there], fresh[there], rtol=same, atol=0)).sum())
    ours, theirs = (np.exp(-np.square(scores[there], dtype=np.float64)) for scores in (stored, fresh))
    return lost + int((np.abs(ours - theirs) > same).sum())
