"""CNN: two convolutions and two fully connected layers, the usual small net of privacy studies on 32-px images."""

from torch import nn

from networks.layers import Classifier

_CHANNELS, _HIDDEN, _SIDE = (32, 64), 128, 8


def build(num_classes):
    """5x5 convolutions of 32 and 64 channels, each with a ReLU and a max-pool of 2, then 128 units."""
    first, second = _CHANNELS
    return nn.Sequential(
        nn.Conv2d(3, first, 5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, 5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        # 8 x 8 is what 32 px become; larger images are averaged down to it.
        nn.AdaptiveAvgPool2d(_SIDE),
        nn.Flatten(),
        nn.Linear(second * _SIDE * _SIDE, _HIDDEN),
        nn.ReLU(inplace=True),
        Classifier(_HIDDEN, num_classes),
    )
