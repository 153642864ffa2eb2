"""What files of models have in common: a query that becomes Answers, and how their preprocessing is settled.

Public: FileSuspect, ScoringSuspect, refuse_no_difference, same_weights, answers_of, pattern, one_line,
readable_digest, merged_preprocessing, cleaned_setting, flag_of, SETTINGS, MOST_CLASSES, MOST_AT_ONCE.
"""

import math
import time
from contextlib import contextmanager

import numpy as np
import torch

from kit.errors import UserError
from kit.files import file_digest
from suspects.suspect import Answers, Captioned, Preprocessing, Suspect

MOST_CLASSES, MOST_AT_ONCE = 100_000, 1024  # a damaged file must not fill the memory
CHANGED = 1e-6  # of a score; what changes less has changed nothing but rounding
SETTINGS = {
    "size": "one or two whole numbers, height first",
    "resize": "a whole number of pixels up to 8192",
    "mean": "three numbers",
    "std": "three numbers",
    "white": "1 or 255",
    "interpolation": "a word",
}


@contextmanager
def _answering(name, images, check, flag):
    """What a model in a file is asked inside: whatever goes wrong there is one line. check: flags to look at, in words;
    flag: the first of them."""
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a stranger's network may fail in any way, most often because of the size
        raise UserError(
            f"{name} can't answer for images of {images.shape[2]} x {images.shape[3]} px ({one_line(error)})",
            advice=f"check {check}",
            flag=flag,
        ) from None


class FileSuspect(Suspect):
    """A model in a file."""

    # query: uint8 (N, 3, h, w) -> an array of floats (N, classes), or of whole numbers (N, 1) for label-only models

    def __init__(self, query, identity, preprocessing, batch_size, classes, class_names=None):
        self._query, self.preprocessing, self.batch_size = query, preprocessing, batch_size
        self.name, self.classes, self.class_names = identity["file"], classes, class_names
        self.identity = {**identity, "classes": classes}

    def ask(self, images):
        if images.dtype != np.uint8 or images.shape[1:] != (3, *self.preprocessing.size):
            raise ValueError(f"images are {images.dtype} {images.shape}, not of the size {self.preprocessing.size}")
        with _answering(self.name, images, "--net_type and --input_size", "--net_type"):
            values = self._query(images)
        wanted = (len(images), 1 if np.issubdtype(values.dtype, np.integer) else self.classes)
        if values.shape != wanted:
            raise UserError(
                f"{self.name} answers with an array {values.shape} instead of {wanted}",
                advice="give a model that answers with one value for each class",
            )
        return answers_of(values, self.name)


class ScoringSuspect(Suspect):
    """A model in a file that answers with a score for each picture. Subclasses implement `columns`, and set
    `preprocessing` and `name`."""

    def columns(self, images):
        """Scores of Captioned images: [float64 (N,) of the model, and the same of what it was made of, if known]."""
        raise NotImplementedError

    def ask(self, images):
        if not isinstance(images, Captioned):
            images = Captioned(images, ("",) * len(images))
        if images.dtype != np.uint8 or images.shape[1:] != (3, *self.preprocessing.size):
            raise ValueError(f"images are {images.dtype} {images.shape}, not of the size {self.preprocessing.size}")
        begun = time.perf_counter()
        with _answering(self.name, images, "--input_size", "--input_size"), torch.inference_mode():
            columns = self.columns(images)
        if self.seconds is None and len(images):
            self.seconds = (time.perf_counter() - begun) / sum(map(self.passes_of, images.captions))
        scores = np.stack(columns, axis=1).astype(np.float32)
        wrong = ~np.isfinite(scores).all(axis=1)
        if wrong.all() and len(scores):
            raise UserError(f"{self.name} gives scores that are not finite", advice="is its file damaged?")
        scores[wrong] = np.nan
        return Answers(None, None, scores)


def refuse_no_difference(suspect, path, captions=("",)):
    """Raise UserError where a base and what was made of it, `path`, can't be told apart: whatever was loaded did
    nothing. captions: what neutral pictures are said to show."""
    scores = suspect.ask(Captioned(pattern(len(captions), suspect.preprocessing.size), captions)).scores
    scores = scores.astype(np.float64)
    if (np.abs(scores[:, 0] - scores[:, 1]) <= CHANGED * np.abs(scores).max(axis=1)).all():
        raise UserError(
            f"{path} changes nothing in what --base_model answers: its weights are without effect there",
            advice="check that it is the right file, and the base that it was trained on",
            flag="--base_model",
        )


def same_weights(first, second):
    """Whether two networks have the same tensors by the same names, to the bit."""
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def answers_of(values, name):
    """Answers out of an array of floats (N, classes), or of whole numbers (N, 1). Raises UserError."""
    if np.issubdtype(values.dtype, np.integer):
        if values.size and not 0 <= values.min() <= values.max() < 2**31:
            raise UserError(
                f"{name} returned classes from {values.min()} to {values.max()}", advice="they must count from 0"
            )
        return Answers(None, values.astype(np.int32))
    with np.errstate(over="ignore"):  # found by the next line
        values = values.astype(np.float32)
    wrong = (~np.isfinite(values)).any(axis=1)
    if wrong.all() and len(values):
        raise UserError(
            f"{name} returned values that are not finite for all of {len(values)} images", advice="is its file damaged?"
        )
    values[wrong] = np.nan
    return Answers(values)


def pattern(count, size):
    """A neutral image, `count` times, each a bit different: uint8 (count, 3, height, width)."""
    return np.arange(count * 3 * size[0] * size[1], dtype=np.uint32).astype(np.uint8).reshape(count, 3, *size)


def one_line(error):
    """An exception as one short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def readable_digest(path):
    """`files.file_digest`, whose errors are UserErrors."""
    try:
        return file_digest(path)
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror})", advice="check the path") from None


def merged_preprocessing(path, parts, hint=""):
    """Merge `parts`, [(source, {key: value})]; later ones win. UserError when size, mean or std is missing."""
    chosen = {
        key: (cleaned_setting(path, source, key, value), source)
        for source, facts in parts
        for key, value in facts.items()
    }
    missing = [flag_of(key) for key in ("size", "mean", "std") if key not in chosen]
    if missing:
        raise UserError(
            f"{path} does not say how photos become its input, and a wrong guess would make the audit worthless",
            advice=f"give {' and '.join(missing)} as in its training{hint}",
            flag=missing[0],
        )
    sources = [source for source, _ in parts if source in {used for _, used in chosen.values()}]
    return Preprocessing(**{key: value for key, (value, _) in chosen.items()}, source=" and ".join(sources))


def flag_of(key):
    """The flag of a setting of Preprocessing."""
    return "--input_size" if key == "size" else f"--{key}"


def cleaned_setting(path, source, key, value):
    """JSON and flags to what Preprocessing wants, whose own checks come after that. Raises UserError."""
    try:
        if key == "size":
            height, width = (value, value) if isinstance(value, int) else value
            return int(height), int(width)
        if key in ("mean", "std"):
            cleaned = tuple(float(number) for number in value)
            valid = len(cleaned) == 3 and all(map(math.isfinite, cleaned)) and not isinstance(value, str)
        elif key == "squash":
            cleaned = value
            valid = isinstance(value, bool)
        elif key == "resize":
            cleaned = None if value is None else int(value)
            valid = cleaned is None or 1 <= cleaned <= 8192
        else:
            cleaned = float(value) if key == "white" else value
            valid = isinstance(value, str) if key == "interpolation" else cleaned in (1, 255)
    except (TypeError, ValueError, OverflowError):
        valid = False
    if not valid:
        raise UserError(
            f"{path}: {key} {str(value)[:60]!r} (from {source}) can't be",
            advice=f"give {flag_of(key)}: {SETTINGS[key]}",
            flag=flag_of(key),
        )
    return cleaned
