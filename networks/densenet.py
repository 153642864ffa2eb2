"""DenseNet-121 with a CIFAR stem: Huang et al., "Densely Connected Convolutional Networks", CVPR 2017."""

from torch import nn
from torchvision.models import DenseNet

from networks.layers import Classifier, cifar_stem


def build(num_classes):
    """DenseNet-121: torchvision's (growth 32; 6, 12, 24 and 16 layers) with a 3x3 stem and without its max-pool."""
    model = DenseNet(growth_rate=32, block_config=(6, 12, 24, 16), num_init_features=64, num_classes=num_classes)
    model.features.conv0 = cifar_stem(64)
    model.features.pool0 = nn.Identity()
    model.classifier = Classifier(model.classifier.in_features, num_classes)
    nn.init.zeros_(model.classifier.bias)
    return model
