"""SpeedyResNet: a nine-layer residual net that trains fast on 32-px images.

The layout is that of the fast CIFAR-10 recipes since DAWNBench: a stem, three stages that each halve the side right
after their first convolution, residual pairs in the first and the last stage, a global max-pool, and logits scaled
down so that a high learning rate does not saturate them. Fast recipes smooth labels; here the loss stays the plain
cross entropy, because the audit reads membership off that very loss.
"""

from torch import nn

from networks.layers import Classifier, convolution

_WIDTHS, _SCALE = (64, 128, 256, 512), 0.125


def build(num_classes):
    """(N, 3, S, S) normalised images -> (N, num_classes) float32 logits."""
    return SpeedyResNet(num_classes)


class SpeedyResNet(nn.Module):
    """See the module; 6.6 M parameters for 10 classes."""

    def __init__(self, num_classes):
        super().__init__()
        stem, first, second, third = _WIDTHS
        self.features = nn.Sequential(
            _unit(3, stem),
            _unit(stem, first, pool=True),
            _Pair(first),
            _unit(first, second, pool=True),
            _unit(second, third, pool=True),
            _Pair(third),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
        )
        self.classifier = Classifier(third, num_classes)

    def forward(self, x):
        return self.classifier(self.features(x)) * _SCALE


class _Pair(nn.Module):
    """Two units and a way around them: (N, channels, H, W) -> the same."""

    def __init__(self, channels):
        super().__init__()
        self.units = nn.Sequential(_unit(channels, channels), _unit(channels, channels))

    def forward(self, x):
        return x + self.units(x)


def _unit(channels_in, channels_out, pool=False):
    # Pooling comes first, so that normalisation and ReLU pass over a quarter of the values.
    return nn.Sequential(
        convolution(channels_in, channels_out, 3),
        *([nn.MaxPool2d(2)] if pool else []),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )
