"""What files of models have in common: a query that becomes Answers, and how their preprocessing is settled."""

import hashlib
import math

import numpy as np
import torch

from kit.errors import UserError
from suspects.suspect import Answers, Preprocessing, Suspect

_MOST_CLASSES, _MOST_AT_ONCE = 100_000, 1024  # a damaged file must not fill the memory
_KEYS = {
    "size": "one or two whole numbers, height first",
    "resize": "a whole number of pixels up to 8192",
    "mean": "three numbers",
    "std": "three numbers",
    "white": "1 or 255",
    "interpolation": "a word",
}


class _FileSuspect(Suspect):
    # query: uint8 (N, 3, h, w) -> an array of floats (N, classes), or of whole numbers (N, 1) for label-only models

    def __init__(self, query, identity, preprocessing, batch_size, classes, class_names=None):
        self._query, self.preprocessing, self.batch_size = query, preprocessing, batch_size
        self.name, self.classes, self.class_names = identity["file"], classes, class_names
        self.identity = {**identity, "classes": classes}

    def ask(self, images):
        if images.dtype != np.uint8 or images.shape[1:] != (3, *self.preprocessing.size):
            raise ValueError(f"images are {images.dtype} {images.shape}, not of the size {self.preprocessing.size}")
        try:
            values = self._query(images)
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a stranger's network may fail in any way, most often because of the size
            raise UserError(
                f"{self.name} can't answer for images of {images.shape[2]} x {images.shape[3]} px ({_line(error)})",
                advice="check --net_type and --input_size",
                flag="--net_type",
            ) from None
        wanted = (len(images), 1 if np.issubdtype(values.dtype, np.integer) else self.classes)
        if values.shape != wanted:
            raise UserError(
                f"{self.name} answers with an array {values.shape} instead of {wanted}",
                advice="give a model that answers with one value for each class",
            )
        return _answers(values, self.name)


def _answers(values, name):
    if np.issubdtype(values.dtype, np.integer):
        if values.size and not 0 <= values.min() <= values.max() < 2**31:
            raise UserError(
                f"{name} returned classes from {values.min()} to {values.max()}", advice="they must count from 0"
            )
        return Answers(None, values.astype(np.int32))
    with np.errstate(over="ignore"):  # found by the next line
        values = values.astype(np.float32)
    wrong = int((~np.isfinite(values)).any(axis=1).sum())
    if wrong:
        raise UserError(
            f"{name} returned values that are not finite for {wrong} of {len(values)} images",
            advice="is its file damaged?",
        )
    return Answers(values)


def _pattern(count, size):
    return np.arange(count * 3 * size[0] * size[1], dtype=np.uint32).astype(np.uint8).reshape(count, 3, *size)


def _line(error):
    """An exception as one short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _digest(path):
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror})", advice="check the path") from None
    return digest.hexdigest()


def _preprocessing(path, parts, hint=""):
    """Merge `parts`, [(source, {key: value})]; later ones win. UserError when size, mean or std is missing."""
    chosen = {
        key: (_clean(path, source, key, value), source) for source, facts in parts for key, value in facts.items()
    }
    missing = [_flag(key) for key in ("size", "mean", "std") if key not in chosen]
    if missing:
        raise UserError(
            f"{path} does not say how photos become its input, and a wrong guess would make the audit worthless",
            advice=f"give {' and '.join(missing)} as in its training{hint}",
        )
    sources = [source for source, _ in parts if source in {used for _, used in chosen.values()}]
    return Preprocessing(**{key: value for key, (value, _) in chosen.items()}, source=" and ".join(sources))


def _flag(key):
    return "--input_size" if key == "size" else f"--{key}"


def _clean(path, source, key, value):
    # JSON and flags to what Preprocessing wants; its own checks come after that.
    try:
        if key == "size":
            height, width = (value, value) if isinstance(value, int) else value
            return int(height), int(width)
        if key in ("mean", "std"):
            cleaned = tuple(float(number) for number in value)
            valid = len(cleaned) == 3 and all(map(math.isfinite, cleaned)) and not isinstance(value, str)
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
            f"{path}: {key} {str(value)[:60]!r} (from {source}) can't be", advice=f"give {_flag(key)}: {_KEYS[key]}"
        )
    return cleaned
