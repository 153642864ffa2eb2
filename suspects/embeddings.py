"""A model that answers with embeddings, behind a server or in a file: how far those of a picture's crops are apart.

Public: EmbeddingSuspect.
"""

import numpy as np

from kit.errors import UserError
from suspects.crops import VIEWS, crops, crops_of, disagreement, settings
from suspects.suspect import Answers, Suspect


class EmbeddingSuspect(Suspect):
    """Another Suspect, whose values are taken for an embedding. Each picture costs it VIEWS. Raises UserError for one
    that has a score of its own."""

    pictures_a_query = VIEWS

    def __init__(self, inner):
        if inner.scores:
            raise UserError(
                f"{inner.name} answers with a score of its own", advice="leave --answers out", flag="--answers"
            )
        self._inner, self.name, self.preprocessing = inner, inner.name, inner.preprocessing
        self.concurrency, self.calibration = inner.concurrency, inner.calibration
        score = {"of": "embeddings, version 1", **settings()}
        self.identity = {**inner.identity, "score": score, "pictures_a_query": VIEWS}
        self.scores = f"embeddings, of which a score is made: how far {VIEWS} crops of a picture are apart for it"
        self.settle(b"")

    @property
    def batch_size(self):
        return max(1, self._inner.batch_size // VIEWS)

    def settle(self, seed):
        self._crops = crops_of(seed)

    def ask(self, images):
        views = crops(images, self._crops).reshape(-1, *images.shape[1:])
        found, place = [], 0
        while place < len(views):  # the other's batches may shrink
            part = views[place : place + self._inner.batch_size]
            found.append(self._embedded(part))
            place += len(part)
        with np.errstate(invalid="ignore", divide="ignore"):
            scores = disagreement(np.concatenate(found).reshape(len(images), VIEWS, -1))
        return Answers(None, None, scores[:, None].astype(np.float32))  # NaN where any crop lacks an answer

    def _embedded(self, images):
        answers = self._inner.ask(images)
        if answers.values is None or answers.classes is not None or answers.values.shape[1] < 2:
            raise UserError(
                f"{self.name} answers with labels, or with one number: these are no embeddings",
                advice="leave --answers out, or name the output with the embeddings with --output_name",
                flag="--answers",
            )
        return answers.values
