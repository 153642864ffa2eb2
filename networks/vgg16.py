"""VGG-16 for 32-px images: Simonyan and Zisserman, ICLR 2015, configuration D, with batch normalisation.

Five max-pools bring 32 px to one position, so a single layer classifies 512 features, as is usual for CIFAR.
torchvision's `vgg16` is ImageNet's, with 224 px and three fully connected layers of 124 M parameters.
"""

from torch import nn

from networks.layers import Classifier, convolution

_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels, convolutions


def build(num_classes):
    """Thirteen 3x3 convolutions in five stages, each stage followed by a max-pool of 2."""
    layers, before = [], 3
    for channels, count in _STAGES:
        for _ in range(count):
            layers += [convolution(before, channels, 3), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
            before = channels
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), Classifier(before, num_classes))
