"""Mean and std of a server that does not state them: which of the usual ones it must have been trained with.

Photos of no consequence are shown under each candidate, whole, and cut into pieces that are shuffled. The one under
which the pieces make the model unsure by most (the entropy of its answers grows) is proposed, and somebody has to
confirm it. Confidence alone would not do: a network that is fed numbers far too large is sure of everything, pieces
included. It is a proposal: candidates that a network can hardly tell apart may be taken for each other.

Never are these the audit's own queries. A choice that depended on them, or on which half was published, would make p
inexact.

Public: Calibration, calibrate, CANDIDATES, MOST_PHOTOS.
"""

from dataclasses import dataclass

import numpy as np
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
GIVE = "give --mean and --std as in its training"


@dataclass(frozen=True)
class Calibration:
    """What may be shown for a calibration. photos: uint8 (H, W, 3) each; origin: where they are from, in words;
    confirmed: the name of the candidate that somebody agreed to, None when nobody has yet.
    """

    photos: list
    origin: str
    confirmed: str | None = None


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
        pieces = np.stack([_in_pieces(image, seed) for seed, image in enumerate([*whole] * SHUFFLES)])
        answers = ask(preprocessing, whole)
        rows.append(
            {
                "name": name,
                **{key: list(value) if isinstance(value, tuple) else value for key, value in candidate.items()},
                "entropy": round(_uncertainty(answers), 4),
                "entropy_in_pieces": round(_uncertainty(ask(preprocessing, pieces)), 4),
            }
        )
    best = max(rows, key=_gain)
    found = {"photos": len(photos), "from": calibration.origin, "candidates": rows, "chosen": best["name"]}
    _refuse_unconfirmed(best, rows, len(photos), calibration)
    return Preprocessing(**{**settings, **fitting[best["name"]]}, source=source, form=form), found


def _gain(row):
    return row["entropy_in_pieces"] - row["entropy"]


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
    seen = (
        f"it does not say how photos become its input. {count} photos ({calibration.origin}) were shown under each of "
        f"the usual mean and std, whole and in shuffled pieces; how much the pieces made it less sure (nats): {table}"
    )
    if _gain(best) < LEAST_GAIN:
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
