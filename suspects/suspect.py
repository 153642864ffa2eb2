"""What every model under audit is to the audit: how its input is made, and what it answers.

Public: Answers, Captioned, joined, no_answers, Preprocessing, Suspect, INTERPOLATIONS. `suspects.opened` opens files,
`suspects.server` servers.
"""

from dataclasses import dataclass, field

import numpy as np
from PIL import Image
from scipy.special import logsumexp, softmax

from kit.errors import UserError

TOLERATED, SURE = 1e-3, 1e-5  # how far a sum of probabilities may be from 1, and is when it is no coincidence
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Answers:
    """What a model said about N images, as it came: of classes, or how well it knows each image.

    values: float32 (N, k), logits or probabilities, or None when only the top class comes back;
    classes: int32 (N, k), which classes the values belong to, or None for 0..k-1 in this order;
    scores: float32 (N, 1), low where the model remembers the image, or (N, 2) with the same of the model that it was
    made of, which has not seen the images; without values and classes.
    Label-only answers are classes (N, 1) without values; top-k answers have both, -1 standing for "no such entry".
    An image without an answer has a row of NaN, and of -1 where there are classes: see `missing`.
    """

    values: np.ndarray | None
    classes: np.ndarray | None = None
    scores: np.ndarray | None = None

    def __post_init__(self):
        shapes = [array.shape for array in self.arrays if array is not None]
        if not shapes or any(len(shape) != 2 for shape in shapes) or len(set(shapes)) > 1:
            raise ValueError(f"values and classes must be (N, k) and alike, not {shapes}")
        if self.scores is not None and (len(shapes) > 1 or self.scores.shape[1] not in (1, 2)):
            raise ValueError(f"scores must be (N, 1) or (N, 2) and alone, not {shapes}")

    @property
    def arrays(self):
        """(values, classes, scores), as they are given to `Answers`."""
        return self.values, self.classes, self.scores

    def __len__(self):
        return len(next(array for array in self.arrays if array is not None))

    @property
    def missing(self):
        """bool (N,): images to which there was no answer."""
        if self.scores is not None:
            return np.isnan(self.scores).any(axis=1)
        return (self.classes < 0).all(axis=1) if self.classes is not None else np.isnan(self.values).all(axis=1)

    @property
    def memory(self):
        """float64 (N,) of scores: what is lower than in the model that this one was made of, where that answers, too.

        A plain difference, since both were asked the very same: the difficulty of an image is in both alike. NaN
        without an answer.
        """
        scores = np.where(self.missing[:, None], np.nan, self.scores).astype(np.float64)
        return scores[:, 0] - scores[:, 1] if scores.shape[1] == 2 else scores[:, 0]

    @property
    def kind(self):
        """What the rows of dense values must be, each by itself: "probabilities", "logits", "both", or None where that
        can't be told.
        """
        if self.values is None or self.classes is not None:
            return None
        values = self.values[~self.missing].astype(np.float64)
        within = ((values >= 0) & (values <= 1)).all(axis=1)
        # Closer to 1 than a sum of logits would come by chance; probabilities that were rounded more are neither.
        chances = bool((within & (np.abs(values.sum(axis=1) - 1) < SURE)).any())
        logits = bool(((values < -TOLERATED) | (values > 1 + TOLERATED)).any())
        return {(True, True): "both", (True, False): "probabilities", (False, True): "logits"}.get((chances, logits))

    def rows(self, places):
        """The answers to some images: Answers."""
        return Answers(*(None if array is None else array[places] for array in self.arrays))

    def log_probabilities(self, classes=None):
        """(log probabilities float64 (N, C), top class int64 (N,), whether there are only labels).

        Rows that all lie in [0, 1] and sum to 1 are probabilities, anything else logits; that is decided for all
        answers together. Where a top-k answer names no probability for a class, the class gets what is left over, but
        no more than the smallest one named. Label-only answers become 0 for the class named and -1 elsewhere: a loss is
        an error. Without an answer the row is NaN, and the top class -1. classes: how many there are, None when
        unknown. Scores speak of no classes: UserError.
        """
        if self.scores is not None:
            raise UserError("the model answers with a score, and speaks of no classes")
        there = ~self.missing
        if there.all():
            return self._logs(classes)
        if not there.any():
            raise UserError("the model answered nothing at all", advice="no verdict can be based on that")
        logs, top, only = self.rows(there)._logs(classes)
        every, tops = np.full((len(self), logs.shape[1]), np.nan), np.full(len(self), -1, dtype=np.int64)
        every[there], tops[there] = logs, top
        return every, tops, only

    def _logs(self, classes):
        if self.values is None:
            count = max(classes or 0, int(self.classes.max()) + 1)
            top = self.classes[:, 0].astype(np.int64)
            logs = np.full((len(top), count), -1.0)
            logs[np.arange(len(top)), top] = 0.0
            return logs, top, True
        values = self.values.astype(np.float64)
        if self.classes is not None:
            return (*_spread(values, self.classes, classes), False)
        likely = bool((values >= 0).all() and (np.abs(values.sum(axis=1) - 1) < TOLERATED).all())
        # A probability may have been rounded to 0; its logarithm is then that of the smallest float32.
        logs = (
            np.log(np.maximum(values, np.finfo(np.float32).tiny))
            if likely
            else values - logsumexp(values, axis=1, keepdims=True)
        )
        return logs, values.argmax(axis=1), False

    def limited(self, label_only=False, top_k=None):
        """What would be left of dense answers, if the model only named its top class or its top k probabilities."""
        if self.values is None or self.classes is not None:
            return self
        if label_only:
            top = np.where(self.missing, -1, np.nan_to_num(self.values).argmax(axis=1))
            return Answers(None, top[:, None].astype(np.int32))
        if top_k is None or top_k >= self.values.shape[1]:
            return self
        # The choice between logits and probabilities is made for all answers together, as everywhere.
        logs, top, _ = self.log_probabilities()
        best = np.argsort(-logs, axis=1, kind="stable")[:, :top_k]
        chances = np.take_along_axis(softmax(logs, axis=1), best, axis=1).astype(np.float32)
        return Answers(chances, np.where(top[:, None] < 0, -1, best).astype(np.int32))


def _spread(values, named, classes):
    count = max(classes or 0, int(named.max()) + 1)
    present = named >= 0
    if (np.where(present, values, 0.0) < 0).any() or (np.where(present, values, 0.0) > 1 + 1e-3).any():
        raise UserError(
            "top-k answers must be probabilities from 0 to 1, these are not",
            advice="use --label_only",
            flag="--label_only",
        )
    tiny = np.finfo(np.float32).tiny
    total = np.where(present, values, 0.0).sum(axis=1)
    smallest = np.where(present, values, np.inf).min(axis=1)
    rest = np.clip(np.minimum(1 - total, smallest), tiny, None)
    logs = np.repeat(np.log(rest)[:, None], count, axis=1)
    rows, columns = np.nonzero(present)
    logs[rows, named[rows, columns]] = np.log(np.maximum(values[rows, columns], tiny))
    top = named[np.arange(len(named)), np.where(present, values, -1.0).argmax(axis=1)]
    return logs, top.astype(np.int64)


def joined(parts):
    """Answers one after the other. Raises UserError for parts of different shapes."""
    shapes = {tuple(None if array is None else array.shape[1] for array in answers.arrays) for answers in parts}
    if len(shapes) > 1:
        raise UserError(
            f"the model answered in different shapes ({sorted(map(str, shapes))})", advice="it can't be audited"
        )
    arrays = zip(*(answers.arrays for answers in parts), strict=True)
    return Answers(*(None if some[0] is None else np.concatenate(some) for some in arrays))


def no_answers(count, like):
    """`count` missing answers of the form of the Answers `like`."""
    return Answers(
        None if like.values is None else np.full((count, like.values.shape[1]), np.nan, np.float32),
        None if like.classes is None else np.full((count, like.classes.shape[1]), -1, np.int32),
        None if like.scores is None else np.full((count, like.scores.shape[1]), np.nan, np.float32),
    )


@dataclass(frozen=True)
class Captioned:
    """Images with what each is said to show, for models that are told that: uint8 (N, 3, h, w) and N texts."""

    images: np.ndarray
    captions: tuple

    def __len__(self):
        return len(self.images)

    def __getitem__(self, places):
        """Those at some places (a slice, or whole numbers): Captioned."""
        chosen = np.arange(len(self))[places].tolist()
        return Captioned(self.images[places], tuple(self.captions[place] for place in chosen))

    @property
    def shape(self):
        """That of the images."""
        return self.images.shape

    @property
    def dtype(self):
        """That of the images."""
        return self.images.dtype


@dataclass(frozen=True)
class Preprocessing:
    """How a photo becomes a model's input: resized, cropped at the centre, scaled, normalised.

    size: (height, width) of the input in pixels; resize: the shorter side in pixels before the crop, None for the
    smallest that covers the input; white: what the value 255 becomes, 1.0 or 255.0; mean, std: three numbers each, in
    the same units; interpolation: see INTERPOLATIONS; source: where all that came from, for the printed line; form: how
    a server that does not declare its tensors is asked, {"input", "datatype", "layout", "output", "from"}, or None;
    squash: scaled to the input's height and width at once, whatever its shape, and nothing is cropped.
    """

    size: tuple
    resize: int | None = None
    mean: tuple = (0.0, 0.0, 0.0)
    std: tuple = (1.0, 1.0, 1.0)
    white: float = 1.0
    interpolation: str = "bilinear"
    source: str = "flags"
    form: dict | None = field(default=None, hash=False)
    squash: bool = False

    def __post_init__(self):
        if len(self.size) != 2 or not all(1 <= side <= 4096 for side in self.size):
            raise UserError(
                f"a model input of {self.size} pixels can't be", advice="give --input_size", flag="--input_size"
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise UserError(f"mean {self.mean} and std {self.std} must be three numbers each, std above 0")
        if self.interpolation not in INTERPOLATIONS:
            raise UserError(
                f"interpolation {self.interpolation!r} is unknown", advice=f"use one of {', '.join(INTERPOLATIONS)}"
            )

    def fit(self, pixels):
        """Resize and crop one photo, uint8 (H, W, 3) of any size, to uint8 (3, height, width)."""
        height, width = self.size
        image = Image.fromarray(pixels)
        if self.squash:
            wanted = [width, height]
        elif self.resize is not None:
            # As torchvision's Resize has it, which cuts the longer side's fraction off.
            wanted = [max(1, self.resize * side // min(image.size)) for side in image.size]
        else:
            # As dataset/store.py does for training.
            scale = max(height / image.height, width / image.width)
            wanted = [max(least, round(side * scale)) for side, least in zip(image.size, (width, height), strict=True)]
        if wanted != list(image.size):
            image = image.resize(wanted, INTERPOLATIONS[self.interpolation])
        left, top = (
            (whole - part) // 2 if self.resize is None else round((whole - part) / 2)
            for whole, part in zip(image.size, (width, height), strict=True)
        )
        if (left, top) != (0, 0) or image.size != (width, height):
            image = image.crop((left, top, left + width, top + height))  # black where the photo is too small
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))

    def normalize(self, images):
        """uint8 (N, 3, h, w) to the float32 input of the model."""
        mean, std = (np.asarray(value, dtype=np.float32)[:, None, None] for value in (self.mean, self.std))
        return (images.astype(np.float32) * np.float32(self.white / 255) - mean) / std

    def describe(self):
        """One line for people."""
        resize = "scaled to cover it" if self.resize is None else f"shorter side scaled to {self.resize}"
        resize, crop = ("squashed to it", "") if self.squash else (resize, " centre crop,")
        form = self.form or {}
        sent = (
            f"; sent as {form['input']!r} ({form['datatype']}, {form['layout']}), answers from {form['output']!r} "
            f"({form['from']})"
            if form
            else ""
        )
        return (
            f"input {self.size[0]} x {self.size[1]} px, {resize} ({self.interpolation}),{crop} "
            f"mean {list(self.mean)}, std {list(self.std)}, white is {self.white:g} (from {self.source}){sent}"
        )


class Suspect:
    """A model under audit. Subclasses set the attributes and implement `ask`.

    name: what to call it in the report; preprocessing: see above; classes: how many there are, None when unknown;
    class_names: tuple of str, or None; identity: JSON-ready dict that says which model it was (digest, address);
    batch_size: how many images one `ask` should hold (1 where a server has a fixed batch of one), which may shrink;
    concurrency: how many calls of `ask` may be under way at once, each in a thread of its own;
    calibration: how mean and std were found, JSON-ready (see suspects/calibration.py), or None;
    scores: what its scores are, in words, where it answers with scores and not of classes; None elsewhere;
    pictures_a_query: how many pictures one query shows it, which budgets count;
    seconds: how long a pass through its network took on the first query, of a model whose queries take their time,
    None elsewhere;
    captioned: whether it is told what an image shows, and so asked with Captioned images;
    training_settings: what a run of train.py was trained with, which tells what it has not seen; None elsewhere.
    """

    name: str
    preprocessing: Preprocessing
    classes: int | None = None
    class_names: tuple | None = None
    identity: dict
    batch_size: int = 64
    concurrency: int = 1
    calibration: dict | None = None
    scores: str | None = None
    pictures_a_query: int = 1
    seconds: float | None = None
    captioned: bool = False
    training_settings: dict | None = None

    def ask(self, images):
        """Answers for uint8 images (N, 3, h, w), numpy, of the preprocessing's size, or for Captioned ones. Raises
        UserError.

        An image about which the model says nothing usable (NaN) has a missing row, so that it can't veto a verdict.
        """
        raise NotImplementedError

    def remember(self, answers):
        """Hear what an earlier call was answered: Answers that later ones have to be like."""

    def settle(self, seed):
        """Hear the seed, bytes, from which all that it draws for its answers follows: of an audit, fixed before the
        first query, and one for all photos and keys, so that an answer hangs on the image and its caption alone."""

    def passes_of(self, caption):
        """How often a query with a caption goes through its network, or that of its base."""
        return 1

    def describe(self):
        """What it answers with, in words."""
        return self.scores or f"{self.classes or 'unknown number of'} classes"
