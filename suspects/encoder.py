"""Encoders and captioners under audit: how well one knows a picture, with what it is said to show or without.

- CLIP-like models, with a caption: the contrastive loss of the picture. CLIP's (Radford et al. 2021): minus the
  logarithm of the softmax of the caption among DISTRACTORS plain ones. SigLIP's (Zhai et al. 2023): the sum of the
  sigmoid losses of all of them. Both at the model's own scale, from the picture to the captions.
- Captioners: the negative log-likelihood of the caption's tokens given the picture, the mean over them.
- Encoders of pictures alone, and all of the above where no caption is known: how far the embeddings of VIEWS random
  crops of the picture are apart, 1 - cosine, the mean over all pairs (the signal of EncoderMI, Liu et al. 2021).

All are low where the model remembers the picture. Distractors and crops follow from the audit's seed, and are the same
for every picture: a score is a function of picture and caption alone. A base model is asked the very same, and its
score taken off.

Public: EncoderSuspect, open_encoder, distractors_of, contrastive_loss, CAPTIONS, DISTRACTORS.
"""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from scipy.special import logsumexp

from kit.errors import UserError
from suspects import towers
from suspects.answering import ScoringSuspect, merged_preprocessing, pattern, refuse_no_difference, same_weights
from suspects.crops import VIEWS, crops, crops_of, disagreement, settings
from utils import key_generator

DISTRACTORS = 31
ELEMENTS = 1 << 23  # of pictures in one pass: 55 of 224 px
MOST_PAIRS = 16  # of picture and caption in one pass: captioners answer with a number for each word that there is
KEPT_CAPTIONS = 4096
BLIND = 1e-12  # how far crops are apart where they are the same but for rounding
SHOWN = (
    "dog cat horse bird fish cow sheep elephant person child crowd face hand car bus train plane boat bicycle bridge "
    "house church tower street city room kitchen table chair bed book clock lamp phone computer screen bottle cup "
    "meal cake fruit flower tree forest field mountain river lake beach sea sky cloud sunset garden road statue "
    "painting drawing sign map shirt shoe toy plate"
)
CAPTIONS = tuple(f"a photo of a {word}" for word in SHOWN.split())


def distractors_of(seed, captions=CAPTIONS, count=DISTRACTORS):
    """`count` of the plain captions, the same for a seed on every machine: tuple of str."""
    chosen = key_generator(seed, "distractors").permutation(len(captions))[:count]
    return tuple(captions[place] for place in chosen)


def contrastive_loss(right, others, sigmoid=False):
    """The loss of one picture: float64. right: logit of its own caption; others: logits of other captions (K,)."""
    if sigmoid:
        return np.logaddexp(0, -right) + np.logaddexp(0, others).sum()
    return np.logaddexp(0, logsumexp(others - right)) if len(others) else np.float64(0)


class _Knower:
    """A Tower and the captions that it has read."""

    def __init__(self, tower):
        self.tower, self._kept = tower, OrderedDict()

    def _read(self, caption):
        """The embedding of a caption, of length 1: float64 (D,)."""
        if caption not in self._kept:
            if len(self._kept) >= KEPT_CAPTIONS:
                self._kept.popitem(last=False)
            self._kept[caption] = _unit(self.tower.captions([caption]).numpy())[0]
        return self._kept[caption]

    def contrastive(self, feed, captions, distractors):
        """The contrastive losses of pictures with captions: float64 (N,)."""
        pictures = _unit(self._embedded(feed, len(captions)))
        (scale, bias), sigmoid = self.tower.scale(), self.tower.family == "sigmoid"
        found = np.empty(len(captions))
        for place, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
            others = [self._read(other) for other in distractors if other.lower() != caption.lower()]
            right, *rest = scale * (np.stack([self._read(caption), *others]) @ picture) + bias
            found[place] = contrastive_loss(right, np.array(rest), sigmoid)
        return found

    def likelihood(self, feed, captions):
        """The losses of captions given their pictures: float64 (N,)."""
        parts = [slice(first, first + MOST_PAIRS) for first in range(0, len(captions), MOST_PAIRS)]
        return np.concatenate([self.tower.losses(feed(part), captions[part]).numpy() for part in parts])

    def apart(self, feed, count):
        """The disagreement of the views of pictures: float64 (N,)."""
        return disagreement(self._embedded(feed, count * VIEWS).reshape(count, VIEWS, -1))

    def _embedded(self, feed, count):
        size = max(1, ELEMENTS // feed(slice(0, 1)).size)
        parts = [self.tower.pictures(feed(slice(first, first + size))) for first in range(0, count, size)]
        return torch.cat(parts).numpy()


def _unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


class EncoderSuspect(ScoringSuspect):
    """An encoder or a captioner that answers with a score. base: the Tower that it was made of, None for none."""

    def __init__(self, model, identity, preprocessing, batch_size, base=None):
        self._models = [_Knower(one) for one in (model, base) if one is not None]
        self.preprocessing, self.identity, self.name = preprocessing, identity, identity["file"]
        self.captioned, self.batch_size, self._family = model.family != "pictures", batch_size, model.family
        self.scores = _in_words(model, base)
        self.settle(b"")

    def settle(self, seed):
        self._distractors, self._crops = distractors_of(seed), crops_of(seed)

    def passes_of(self, caption):
        return len(self._models) * (1 if caption and self.captioned else VIEWS)

    def columns(self, images):
        told = np.array([bool(caption) and self.captioned for caption in images.captions], dtype=bool)
        found = np.empty((len(self._models), len(images)))
        if told.any():
            found[:, told] = self._told(images[np.flatnonzero(told)])
        if not told.all():
            views = crops(images.images[~told], self._crops)
            feed = self._feed(views.reshape(-1, *views.shape[2:]))
            found[:, ~told] = [one.apart(feed, len(views)) for one in self._models]
        return list(found)

    def _told(self, images):
        feed = self._feed(images.images)
        if self._family == "likelihood":
            return [one.likelihood(feed, images.captions) for one in self._models]
        return [one.contrastive(feed, images.captions, self._distractors) for one in self._models]

    def _feed(self, images):
        """What a part of pictures is as the model's input: a function of their places."""
        return lambda places: self.preprocessing.normalize(images[places])


def _in_words(model, base):
    told = {
        "softmax": f"how badly it tells what a picture is said to show from {DISTRACTORS} plain captions",
        "sigmoid": f"how badly it tells what a picture is said to show from {DISTRACTORS} plain captions",
        "likelihood": "how unlikely it finds what a picture is said to show",
    }
    views = f"how far {VIEWS} crops of a picture are apart for it"
    what = f"{told[model.family]}, or, where nothing is said, {views}" if model.family in told else views
    made_of = ", less that of the model that it was made of" if base else ""
    return f"a {model.name} that answers with a score: {what}{made_of}"


def open_encoder(path, base, device, precision, overrides, batch_size):
    """Open a folder of transformers' or open_clip's as an EncoderSuspect.

    base: the folder of the model that it was made of, or of a public one of its kind, None where none is known;
    overrides: of Preprocessing. Raises UserError for whatever can't be read in full, and for a base of another kind or
    that makes no difference.
    """
    path, dtype = Path(path), torch.bfloat16 if precision == "bfloat16" else torch.float32
    model = towers.read_tower(path, device, dtype)
    other = _base_of(model, base, device, dtype) if base else None
    identity = {"kind": "encoder", "file": path.resolve().name, "sha256": model.digest}
    identity |= {"base": {"file": Path(base).resolve().name, "sha256": other.digest}} if other else {}
    identity |= {"network": model.name, "captions": model.family != "pictures", "score": _score_of(model.family)}
    facts = dict(model.facts)
    if "resize" in overrides:
        facts.pop("squash", None)
    facts = {key: value for key, value in facts.items() if value is not None}
    preprocessing = merged_preprocessing(path, [("folder", facts), ("flags", overrides)])
    suspect = EncoderSuspect(model, identity, preprocessing, batch_size, other)
    _refuse_blind(suspect, path)
    if base:
        refuse_no_difference(suspect, path, ("", CAPTIONS[0]) if suspect.captioned else ("",))
    return suspect


def _refuse_blind(suspect, path):
    """Raise UserError where all that a model is shown is the same to it: it would seem to remember nothing."""
    scores = suspect.ask(pattern(1, suspect.preprocessing.size)).scores
    if (np.abs(scores) < BLIND).any():
        raise UserError(f"{path} embeds all pictures alike", advice="is its file damaged, or --mean and --std wrong?")


def _score_of(family):
    """What the answers hang on beside model and seed, JSON-ready: evidence of another version is scored otherwise."""
    found = {"of": f"{family}, version 1"} | settings()
    return found | ({"distractors": DISTRACTORS} if family in ("softmax", "sigmoid") else {})


def _base_of(model, base, device, dtype):
    """The Tower before fine-tuning. Raises UserError for one of another kind, and for the same one."""
    if not towers.is_tower(base):
        raise UserError(
            f"--base_model {base} has no {towers.CONFIG} or {towers.OPEN_CLIP} that says what it is",
            advice="give the folder of the model that it was made of",
            flag="--base_model",
        )
    other = towers.read_tower(base, device, dtype)
    ours, theirs = model.network.state_dict(), other.network.state_dict()
    shapes = [{name: tuple(value.shape) for name, value in one.items()} for one in (ours, theirs)]
    if (model.name, model.family) != (other.name, other.family) or shapes[0] != shapes[1]:
        raise UserError(
            f"--base_model {base} is not of the kind of the model under audit: a {other.name}"
            + ("" if shapes[0] == shapes[1] else ", with weights of other shapes"),
            advice="give the model that it was fine-tuned from",
            flag="--base_model",
        )
    if same_weights(model.network, other.network):
        raise UserError("--base_model is the model under audit itself", "give what it was made of", flag="--base_model")
    return other
