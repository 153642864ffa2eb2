"""What several networks share: the classifier that answers in float32, convolutions, the CIFAR stem.

Public: Classifier, cifar_stem, convolution.
"""

import torch
from torch import nn


class Classifier(nn.Linear):
    """The last layer: nn.Linear that computes in its weights' precision even inside autocast.

    Membership is read off losses, and most members' losses lie near zero: logits rounded to bfloat16 (8 bits, steps of
    0.06 around 10) would turn them into a handful of values with many ties. The layer is too small to cost time.
    (N, in_features) of any float type -> (N, out_features), float32 unless the module was converted.
    """

    def forward(self, features):
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(features.to(self.weight.dtype))


def convolution(channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias, (N, channels_in, H, W) -> (N, channels_out, ceil(H / stride), ceil(W / stride)).

    `kernel` is odd. He et al.'s initialisation (2015) over the outputs, as in torchvision's ResNets.
    """
    layer = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def cifar_stem(channels: int) -> nn.Conv2d:
    """The first convolution of networks for 32-px images: 3x3, stride 1, so (N, 3, S, S) -> (N, channels, S, S).

    ImageNet's stem (7x7, stride 2, then a max-pool of stride 2) would leave 8 x 8 positions of a 32-px image.
    He et al. 2016, section 4.2.
    """
    return convolution(3, channels, 3)
