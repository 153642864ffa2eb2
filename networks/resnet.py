"""ResNet-18 with a CIFAR stem: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.

torchvision's ResNet with another stem and classifier; resnext.py and senet.py build on `cifar_resnet`.
Public: build, cifar_resnet.
"""

from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from networks.layers import Classifier, cifar_stem


def build(num_classes):
    """ResNet-18: four stages of two basic blocks with 64, 128, 256 and 512 channels."""
    return cifar_resnet(BasicBlock, [2, 2, 2, 2], num_classes)


def cifar_resnet(block, layers, num_classes, **options):
    """torchvision's ResNet for small images: 3x3 stem of stride 1, no max-pool, `len(layers)` (3 or 4) stages.

    Args: block, torchvision's BasicBlock or Bottleneck or a class of their signature; layers, blocks per stage; options
    of torchvision's ResNet (groups, width_per_group).
    Returns a module from (N, 3, S, S) to (N, num_classes).
    """
    # torchvision always makes four stages: a fourth that isn't wanted is made short and then taken out.
    model = ResNet(block, [*layers, 1][:4], num_classes, **options)
    features = model.fc.in_features
    if len(layers) == 3:
        model.layer4 = nn.Identity()
        features //= 2
    model.conv1 = cifar_stem(model.conv1.out_channels)
    model.maxpool = nn.Identity()
    model.fc = Classifier(features, num_classes)
    return model
