"""Mean and std of a server that does not state them: which of the usual ones it must have been trained with.

Photos of no consequence are shown under each candidate, whole, and cut into pieces that are shuffled. The one under
which the pieces make the model unsure by most (the entropy of its answers grows) is proposed, and somebody has to
confirm it. Confidence alone would not do: a network that is fed numbers far too large is sure of everything, pieces
included. Where it answers with embeddings, the one is proposed under which those of different photos are furthest
apart: to what it does not know how to look at, a network finds everything alike. It is a proposal: candidates that a
network can hardly tell apart may be taken for each other.

Never are these the audit's own queries. A choice that depended on them, or on which half was published, would make p
inexact.

Public: Calibration, calibrate, CANDIDATES, MOST_PHOTOS.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.spatial.distance import pdist
from scipy.special import entr, softmax

from kit.errors import UserError
from suspects.suspect import Preprocessing

CANDIDATES = {
    "0..1": {"mean": (0.0,) * 3, "std": (1.0,) * 3, "white": 1.0},
    "imagenet": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "white": 1.0},
    "0.5/0.5": {"mean": (0.5,) * 3, "std": (0.5,) * 3, "white": 1.0},
    "0..255": {"mean": (0.0,) * 3, "std": (1.0,) * 3, "white": 255.0},
}
MOST_PHOTOS = 32
PIECES, SHUFFLES = 4, 2  # pieces a side
LEAST_GAIN = 0.05  # nats; below, nothing stands out
LEAST_LEAD = 0.05  # of a distance, to the next: those that took the wrong one had less of a lead
GIVE = "give --mean and --std as in its training"


@dataclass(frozen=True)
class Calibration:
    """What may be shown for a calibration. photos: uint8 (H, W, 3) each; origin: where they are from, in words;
    confirmed: the name of the candidate that somebody agreed to, None when nobody has yet; embeddings: whether that is
    what is answered, and not classes.
    """

    photos: list
    origin: str
    confirmed: str | None = None
    embeddings: bool = False


def calibrate(ask, settings, givers, form, calibration):
    """(Preprocessing with the confirmed candidate, what was found: JSON-ready dict). Raises UserError for the proposal
    as long as nobody has confirmed it.

    ask(preprocessing, images) -> Answers for uint8 (N, 3, h, w); settings, givers: of `metadata.needed_preprocessing`;
    form: what `Preprocessing.form` becomes.
    """
    photos = calibration.photos[:MOST_PHOTOS]
    fitting = {
        name: candidate
        for name, candidate in CANDIDATES.items()
        if all(settings.get(key, value) == value for key, value in candidate.items())
    }
    if not photos or not fitting:
        raise UserError(
            "there are no photos to calibrate with" if fitting else "the flags rule out every usual mean and std",
            advice=GIVE,
            flag="--mean",
        )
    source, rows = " and ".join([*givers, "calibration"]), []
    for name, candidate in fitting.items():
        preprocessing = Preprocessing(**{**settings, **candidate}, source=source, form=form)
        whole = np.stack([preprocessing.fit(photo) for photo in photos])
        shown = {key: list(value) if isinstance(value, tuple) else value for key, value in candidate.items()}
        measure = _distances if calibration.embeddings else _entropies
        rows.append({"name": name, **shown, **measure(partial(ask, preprocessing), whole)})
    best = max(rows, key=_gain)
    found = {"photos": len(photos), "from": calibration.origin, "candidates": rows, "chosen": best["name"]}
    _refuse_unconfirmed(best, rows, len(photos), calibration)
    return Preprocessing(**{**settings, **fitting[best["name"]]}, source=source, form=form), found


def _gain(row):
    """By what candidates are compared: more is better."""
    return row["apart"] if "apart" in row else row["entropy_in_pieces"] - row["entropy"]


def _entropies(ask, whole):
    pieces = np.stack([_in_pieces(image, seed) for seed, image in enumerate([*whole] * SHUFFLES)])
    return {
        "entropy": round(_uncertainty(ask(whole)), 4),
        "entropy_in_pieces": round(_uncertainty(ask(pieces)), 4),
    }


def _distances(ask, whole):
    """1 - cosine of the embeddings of two photos, the mean over all pairs."""
    answers = ask(whole)
    if answers.values is None or answers.classes is not None or answers.values.shape[1] < 2:
        raise UserError("it answers with labels, or with one number: these are no embeddings", GIVE, flag="--answers")
    vectors = answers.values[~answers.missing].astype(np.float64)
    vectors = vectors[np.linalg.norm(vectors, axis=1) > 0]
    if len(vectors) < 2:
        raise UserError("it says nothing usable about the photos of the calibration", advice=GIVE, flag="--mean")
    return {"apart": round(float(pdist(vectors, "cosine").mean()), 4)}


def _in_pieces(image, seed):
    """A photo, uint8 (3, h, w), cut into PIECES x PIECES that are shuffled; what is left over stays."""
    _, height, width = image.shape
    high, wide = height // PIECES, width // PIECES
    places = [(row * high, column * wide) for row in range(PIECES) for column in range(PIECES)]
    shuffled = image.copy()
    for (top, left), goal in zip(places, np.random.default_rng(seed).permutation(len(places)), strict=True):
        to, at = places[goal]
        shuffled[:, to : to + high, at : at + wide] = image[:, top : top + high, left : left + wide]
    return shuffled


def _uncertainty(answers):
    """The mean entropy of answers, in nats; what a top-k answer does not name counts as one class."""
    if answers.values is None:
        raise UserError("it names classes alone, so that nothing shows how sure it is", advice=GIVE, flag="--mean")
    there = answers.rows(~answers.missing)
    if not len(there):
        raise UserError("it says nothing usable about the photos of the calibration", advice=GIVE, flag="--mean")
    if there.classes is None:
        chances = softmax(there.log_probabilities()[0], axis=1)
    else:
        named = np.where(there.classes < 0, 0.0, there.values).clip(0, 1)
        chances = np.concatenate([named, (1 - named.sum(axis=1, keepdims=True)).clip(0, 1)], axis=1)
    return float(entr(chances).sum(axis=1).mean())


def _refuse_unconfirmed(best, rows, count, calibration):
    table = ", ".join(f"{row['name']} {_gain(row):.2f}" for row in rows)
    how = (
        "how far their embeddings were apart (1 - cosine)"
        if calibration.embeddings
        else "whole and in shuffled pieces; how much the pieces made it less sure (nats)"
    )
    seen = (
        f"it does not say how photos become its input. {count} photos ({calibration.origin}) were shown under each of "
        f"the usual mean and std, {how}: {table}"
    )
    next_one = max((_gain(row) for row in rows if row is not best), default=0.0)
    least = next_one + LEAST_LEAD * _gain(best) if calibration.embeddings else LEAST_GAIN
    if _gain(best) <= least:
        raise UserError(f"{seen}. None of them stands out", advice=GIVE, flag="--mean")
    if calibration.confirmed not in (None, best["name"]):
        raise UserError(
            f"{seen}. {best['name']} stands out, not the confirmed {calibration.confirmed}",
            advice=GIVE,
            flag="--confirm_preprocessing",
        )
    if calibration.confirmed is None:
        mean, std = (" ".join(f"{value:g}" for value in best[key]) for key in ("mean", "std"))
        white = f" --white {best['white']:g}" if best["white"] != 1 else ""
        raise UserError(
            f"{seen}. {best['name']} stands out",
            advice=f"if its owner does not say otherwise, confirm that with --confirm_preprocessing {best['name']}",
            command=f"or give --mean {mean} --std {std}{white}",
            flag="--confirm_preprocessing",
        )
