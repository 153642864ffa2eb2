"""MLP: fully connected layers for tables (and for images as one row of pixels).

Public: build.
"""

from itertools import pairwise

from torch import nn

from networks.layers import Classifier


def build(num_classes, features, hidden=(256,)):
    """(N, features), or anything that flattens to it -> (N, num_classes) float32 logits, with a ReLU between layers.

    hidden: units of the layers in between, at least one layer.
    """
    layers = [nn.Flatten()]
    for before, after in pairwise((features, *hidden)):
        layers += [nn.Linear(before, after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, Classifier(hidden[-1], num_classes))
