"""AlexNet for 32-px images: Krizhevsky et al., NeurIPS 2012, with the channels of his one-tower version (2014).

Kernels, strides and the classifier are scaled down as is usual for CIFAR: a first convolution of stride 2, three
max-pools of 2, two hidden layers. torchvision's `alexnet` is ImageNet's, with 224 px.
"""

from torch import nn

from networks.layers import Classifier

_HIDDEN = 1024


def build(num_classes, dropout=0.5):
    """Five convolutions (64, 192, 384, 256, 256) and three fully connected layers, dropout before the hidden ones."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 192, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(256 * 4, _HIDDEN),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(_HIDDEN, _HIDDEN),
        nn.ReLU(inplace=True),
        Classifier(_HIDDEN, num_classes),
    )
