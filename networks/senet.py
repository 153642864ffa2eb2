"""SE-ResNet-18 with a CIFAR stem: Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018."""

from torch import nn
from torchvision.models.resnet import BasicBlock
from torchvision.ops import SqueezeExcitation

from networks.resnet import cifar_resnet

_REDUCTION = 16


class SEBasicBlock(BasicBlock):
    """torchvision's basic block whose residual branch ends with squeeze-and-excitation (Fig. 3, r = 16).

    Same shapes as BasicBlock. The rescaling follows the second batch normalisation, before the addition, so bn2 and it
    form one module: torchvision's forward stays as it is.
    """

    def __init__(self, inplanes, planes, *arguments, **options):
        super().__init__(inplanes, planes, *arguments, **options)
        self.bn2 = nn.Sequential(self.bn2, SqueezeExcitation(planes, planes // _REDUCTION))


def build(num_classes):
    """SE-ResNet-18: ResNet-18 with SEBasicBlock."""
    return cifar_resnet(SEBasicBlock, [2, 2, 2, 2], num_classes)
