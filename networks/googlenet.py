"""GoogLeNet with a CIFAR stem: Szegedy et al., "Going Deeper with Convolutions", CVPR 2015."""

from torch import nn
from torchvision.models import GoogLeNet

from networks.layers import Classifier, cifar_stem


def build(num_classes):
    """torchvision's GoogLeNet (with batch normalisation) without auxiliary classifiers and without the stem's strides.

    The stem's three convolutions stay, the first as 3x3 of stride 1; its two max-pools go.
    """
    # PyTorch's own initialisation: torchvision's (standard deviation 0.01 everywhere) is for its ImageNet recipe.
    model = GoogLeNet(num_classes, aux_logits=False, transform_input=False, init_weights=False)
    model.conv1.conv = cifar_stem(model.conv1.conv.out_channels)
    model.maxpool1 = nn.Identity()
    model.maxpool2 = nn.Identity()
    model.fc = Classifier(model.fc.in_features, num_classes)
    return model
