"""Mean and std of a server that does not state them: which of the usual ones it must have been trained with.

Photos of no consequence are shown under each candidate, whole, and cut into pieces that are shuffled. The one under
which the model is surer about the whole photos than about the pieces, by most, is proposed, and somebody has to confirm
it. Confidence alone would not do: a network that is fed numbers far too large is sure of everything, pieces included.

Never are these the audit's own queries. A choice that depended on them, or on which half was published, would make p
inexact.

Public: Calibration, calibrate, CANDIDATES, MOST_PHOTOS.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from kit.errors import UserError
from suspects.suspect import Preprocessing

CANDIDATES = {
    "0..1": {"mean": (0.0,) * 3, "std": (1.0,) * 3, "white": 1.0},
    "imagenet": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "white": 1.0},
    "0.5/0.5": {"mean": (0.5,) * 3, "std": (0.5,) * 3, "white": 1.0},
    "0..255": {"mean": (0.0,) * 3, "std": (1.0,) * 3, "white": 255.0},
}
MOST_PHOTOS = 16
PIECES = 4  # a side
LEAST_GAIN = 0.03  # below, nothing stands out
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
            "there are no photos to calibrate with"
            if fitting
            else "no usual mean and std fits the flags that are given",
            advice=GIVE,
            flag="--mean",
        )
    source, rows = " and ".join([*givers, "calibration"]), []
    for name, candidate in fitting.items():
        preprocessing = Preprocessing(**{**settings, **candidate}, source=source, form=form)
        whole = np.stack([preprocessing.fit(photo) for photo in photos])
        pieces = np.stack([_in_pieces(image, number) for number, image in enumerate(whole)])
        sure, unsure = (_confidence(ask(preprocessing, images)) for images in (whole, pieces))
        rows.append(
            {
                "name": name,
                **{key: list(value) if isinstance(value, tuple) else value for key, value in candidate.items()},
                "confidence": round(sure, 4),
                "in_pieces": round(unsure, 4),
            }
        )
    best = max(rows, key=lambda row: row["confidence"] - row["in_pieces"])
    found = {"photos": len(photos), "from": calibration.origin, "candidates": rows, "chosen": best["name"]}
    _refuse_unconfirmed(best, rows, len(photos), calibration)
    return Preprocessing(**{**settings, **fitting[best["name"]]}, source=source, form=form), found


def _in_pieces(image, number):
    """A photo, uint8 (3, h, w), cut into PIECES x PIECES that are shuffled; what is left over stays."""
    _, height, width = image.shape
    high, wide = height // PIECES, width // PIECES
    places = [(row * high, column * wide) for row in range(PIECES) for column in range(PIECES)]
    shuffled = image.copy()
    for (top, left), goal in zip(places, np.random.default_rng(number).permutation(len(places)), strict=True):
        to, at = places[goal]
        shuffled[:, to : to + high, at : at + wide] = image[:, top : top + high, left : left + wide]
    return shuffled


def _confidence(answers):
    """The mean of the largest probability."""
    if answers.values is None:
        raise UserError("it names classes alone, so that nothing shows how sure it is", advice=GIVE, flag="--mean")
    there = answers.rows(~answers.missing)
    if not len(there):
        raise UserError("it says nothing usable about the photos of the calibration", advice=GIVE, flag="--mean")
    if there.classes is not None:
        return float(there.values.max(axis=1).mean())
    return float(softmax(there.log_probabilities()[0], axis=1).max(axis=1).mean())


def _refuse_unconfirmed(best, rows, count, calibration):
    table = ", ".join(f"{row['name']} {row['confidence']:.2f} ({row['in_pieces']:.2f} in pieces)" for row in rows)
    seen = (
        f"it does not say how photos become its input. How sure it is of {count} photos ({calibration.origin}), under "
        f"each of the usual mean and std, and of the same photos in shuffled pieces: {table}"
    )
    if best["confidence"] - best["in_pieces"] < LEAST_GAIN:
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
