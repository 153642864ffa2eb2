"""Output perturbation (section 5.2.7, appendix G): the model answers with less than it knows."""

import itertools
from typing import ClassVar

import torch
from pydantic import Field

import utils
from countermeasures.base import Countermeasure


class OutputNoise(Countermeasure):
    """Gaussian noise on the logits of every answer (the paper: sigma 0.5 to 5)."""

    name: ClassVar[str] = "output_noise"
    needs_training: ClassVar[bool] = False
    sigma: float = Field(1.0, ge=0)

    def answer(self, query, seed, learned=None):
        numbers = itertools.count()

        def noisy(images):
            logits = query(images)
            draws = utils.key_generator(seed, "output noise", next(numbers)).standard_normal(logits.shape)
            return logits + torch.from_numpy(draws * self.sigma).to(logits)

        return noisy


class LabelOnly(Countermeasure):
    """Only the top class comes back: the loss is 0 if it is the label, and the same number for every other label."""

    name: ClassVar[str] = "label_only"
    needs_training: ClassVar[bool] = False

    def answer(self, query, seed, learned=None):
        def labels_only(images):
            logits = query(images)
            # The cross-entropy of 64 among zeros is exactly 0 or 64 in float64, whatever the class: ties stay ties.
            return torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 64.0)

        return labels_only
