"""Model pruning (section 5.2.4)."""

from typing import ClassVar

from pydantic import Field
from torch import nn
from torch.nn.utils import prune

from countermeasures.base import Countermeasure


class Pruning(Countermeasure):
    """Set the smallest weights of all convolutions and linear layers to zero (Han et al. 2015), without retraining.

    amount: the share of weights that become zero (the paper: 0.1 to 0.9), the smallest of all layers together, or of
    each layer with scope=layer.
    """

    name: ClassVar[str] = "pruning"
    needs_training: ClassVar[bool] = False
    amount: float = Field(0.7, ge=0, lt=1)
    scope: str = Field("global", pattern="^(global|layer)$")

    def after(self, job):
        layers = [(module, "weight") for module in job.model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
        if self.scope == "global":
            prune.global_unstructured(layers, prune.L1Unstructured, amount=self.amount)
        for module, name in layers:
            if self.scope == "layer":
                prune.l1_unstructured(module, name, self.amount)
            prune.remove(module, name)

    def report(self, job):
        weights = [module.weight for module in job.model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
        zeros = sum(int((weight == 0).sum()) for weight in weights)
        return {"zero_weights": zeros / sum(weight.numel() for weight in weights)}
