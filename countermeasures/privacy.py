"""Privacy defences in training (section 5.2.1): DP-SGD, SELENA and HAMP."""

import math
import warnings
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from scipy.optimize import brentq

import utils
from countermeasures.base import Countermeasure
from kit.errors import optional


class DPSGD(Countermeasure):
    """DP-SGD (Abadi et al. 2016) by opacus: Poisson batches, per-image gradients clipped to `clip`, Gaussian noise.

    Batch normalisation, which mixes images, becomes group normalisation; an image's gradient is the mean over
    `multiplicity` augmentations of it before clipping (De et al. 2022), as in the strong baselines of Aerni et al.
    (2024). Table 4 has noise multipliers 0.01 to 0.3 at clip 1. Where `clip` is far below the gradients' usual norm,
    the steps are as much shorter: `lr` is DP-SGD's own learning rate (none: the recipe's). Computed in float32.
    """

    name: ClassVar[str] = "dp_sgd"
    noise_multiplier: float = Field(0.01, ge=0)
    clip: float = Field(1.0, gt=0)
    multiplicity: int = Field(4, ge=1, le=64)
    delta: float = Field(1e-5, gt=0, lt=1)
    lr: float | None = Field(None, gt=0)

    def recipe(self, recipe):
        return replace(recipe, precision="float32", lr=self.lr or recipe.lr)

    def prepare(self, model):
        model = _opacus().validators.ModuleValidator.fix(model)
        for module in model.modules():
            if hasattr(module, "inplace"):
                module.inplace = False  # opacus listens at the layers' outputs, which must then stay as they are
        return model

    def hooks(self, job):
        return _PrivateSteps(self, job.recipe.batch_size, len(job.images))

    def report(self, job):
        """Epsilon at `delta` for all steps; None without noise.

        What is not accounted for: the choice of the epoch by validation accuracy and the statistics of the pixels.
        """
        hooks = self.hooks(job)
        steps = job.recipe.epoch * hooks.steps_per_epoch
        epsilon = None
        if self.noise_multiplier > 0:
            accountant = _opacus().accountants.RDPAccountant()
            accountant.history = [(self.noise_multiplier, hooks.rate, steps)]
            epsilon = accountant.get_epsilon(self.delta)
        return {"epsilon": epsilon, "delta": self.delta, "steps": steps, "sampling_rate": hooks.rate}


def _opacus():
    opacus = optional("opacus", "DP-SGD")
    optional("opacus.validators", "DP-SGD")
    return opacus


class _PrivateSteps(utils.TrainingHooks):
    """The training loop's steps as DP-SGD takes them."""

    def __init__(self, defence, batch_size, images):
        self.defence, self.batch_size, self.rate = defence, batch_size, min(1.0, batch_size / images)
        self.steps_per_epoch = math.ceil(1 / self.rate)

    def attach(self, model, optimizer):
        opacus, copies = _opacus(), self.defence.multiplicity

        class MeanOfCopies(opacus.optimizers.DPOptimizer):
            def clip_and_accumulate(self):
                for parameter in self.params if copies > 1 else ():
                    each = self._get_flat_grad_sample(parameter)
                    parameter.grad_sample = each.reshape(-1, copies, *each.shape[1:]).mean(1)
                super().clip_and_accumulate()

        private = MeanOfCopies(
            optimizer,
            noise_multiplier=self.defence.noise_multiplier,
            max_grad_norm=self.defence.clip,
            expected_batch_size=self.batch_size,
        )
        # Layers behind fixed features have inputs without a gradient; opacus needs none of these.
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        return opacus.GradSampleModule(model), private

    def steps(self, draws, count, batch_size):
        chosen = [np.flatnonzero(draws.random(count) < self.rate) for _ in range(self.steps_per_epoch)]
        # All copies of an image side by side: MeanOfCopies relies on it.
        return [np.repeat(rows, self.defence.multiplicity) for rows in chosen if len(rows)]


class SELENA(Countermeasure):
    """SELENA (Tang et al. 2022): Split-AI, then self-distillation.

    `models` networks are trained, each without a random part of the images, so that every image is unknown to exactly
    `left_out` of them (25 and 10 in their paper); the released network learns, for every training image, the mean
    output of the networks that have not seen it.
    """

    name: ClassVar[str] = "selena"
    models: int = Field(25, ge=2)
    left_out: int = Field(10, ge=1)

    @model_validator(mode="after")
    def _some_are_left(self):
        if self.left_out >= self.models:
            raise ValueError("left_out must be below models")
        return self

    def train(self, job):
        count = len(job.images)
        draws = utils.key_generator(job.seed, "SELENA")
        unseen = np.argsort(draws.random((count, self.models)), axis=1)[:, : self.left_out]
        soft = torch.zeros(count, job.classes)
        for number in range(self.models):
            out = torch.from_numpy((unseen == number).any(axis=1))
            model = job.new_model()
            job.fit(model, job.images[~out], job.labels[~out], f"selena-{number}", validation=None)
            soft[out] += job.logits(model, job.images[out]).softmax(1) / self.left_out
        return job.fit(job.model, labels=soft)


class HAMP(Countermeasure):
    """HAMP (Chen and Pattabiraman 2024): less confident predictions.

    Training on soft labels of high entropy, `threshold` of the largest possible, with the entropy of the prediction
    rewarded by `alpha`; and answers whose scores are those of a random image, in the order of the true ones. (Theirs
    for CIFAR-100: 0.95 and 0.005.)
    """

    name: ClassVar[str] = "hamp"
    threshold: float = Field(0.95, gt=0, lt=1)
    alpha: float = Field(0.005, ge=0)

    def hooks(self, job):
        hooks, top = utils.TrainingHooks(), soft_label(self.threshold, job.classes)
        rest = (1 - top) / (job.classes - 1)

        def loss(logits, labels):
            logs = F.log_softmax(logits, dim=1)
            target = torch.full_like(logs, rest).scatter_(1, labels[:, None], top)
            entropy = -(logs.exp() * logs).sum(1).mean()
            return F.kl_div(logs, target, reduction="batchmean") - self.alpha * entropy

        hooks.loss = loss
        return hooks

    def answer(self, query, seed, learned=None):
        def disguised(images):
            logits = query(images)
            # Any image will do, as long as nobody else knows it; always the same ones, so that answers can be repeated.
            draws = utils.key_generator(seed, "HAMP's images").integers(0, 256, images.shape, dtype=np.uint8)
            scores = query(torch.from_numpy(draws)).sort(1).values
            return torch.zeros_like(logits).scatter_(1, logits.sort(dim=1, stable=True).indices, scores)

        return disguised


def soft_label(threshold, classes):
    """The probability of the true class in a label whose entropy is `threshold` times the largest, log(classes).

    The other classes share the rest evenly; of the two solutions the one above 1 / classes is meant.
    """

    def missing(top):
        rest = 1 - top
        return -top * math.log(top) - rest * math.log(rest / (classes - 1)) - threshold * math.log(classes)

    return brentq(missing, 1 / classes, 1 - 1e-12)
