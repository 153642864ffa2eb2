"""Two common ways to memorise less (section 5.2.1): early stopping and dropout."""

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import nn

import utils
from countermeasures.base import Countermeasure


class EarlyStopping(Countermeasure):
    """Stop after a share of the epochs; the learning rate follows the schedule of all of them."""

    name: ClassVar[str] = "early_stopping"
    share: float = Field(0.5, gt=0, le=1)

    def hooks(self, job):
        hooks = utils.TrainingHooks()
        hooks.stop_after = max(1, round(self.share * job.recipe.epoch))
        return hooks


class Dropout(Countermeasure):
    """Dropout of the features that enter the last layer."""

    name: ClassVar[str] = "dropout"
    rate: float = Field(0.5, ge=0, lt=1)

    def prepare(self, model):
        last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        # A hook and not a layer, so that the names of the weights stay as they are.
        last.register_forward_pre_hook(lambda module, inputs: F.dropout(inputs[0], self.rate, module.training))
        return model
