"""ResNeXt-29 2x64d with a CIFAR stem: Xie et al., "Aggregated Residual Transformations ...", CVPR 2017."""

from torchvision.models.resnet import Bottleneck

from networks.resnet import cifar_resnet


def build(num_classes):
    """ResNeXt-29 2x64d: three stages of three bottlenecks, 2 groups, 128, 256, 512 channels inside, twice that out."""
    return cifar_resnet(Bottleneck, [3, 3, 3], num_classes, groups=2, width_per_group=64)
